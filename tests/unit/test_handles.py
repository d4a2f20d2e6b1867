"""Handles of cells: how it goes, what was put out, what it gave; from the wire, and from the journal alike."""

import asyncio
import itertools
import threading
import time
from types import SimpleNamespace

import pytest
from two_lines import two_lines

from hpcmagic.errors import CellError, LaunchError, ProfileError, RankError, SessionEnded, StillRunning
from hpcmagic.keeper.journal import Journal
from hpcmagic.notebook import cell_list, glance, handles, timeout
from hpcmagic.notebook.cell_list import Cells, OwnCells, all_cells, from_journal
from hpcmagic.notebook.handles import Cell
from hpcmagic.notebook.pickling import pickle_for_ranks
from hpcmagic.rendezvous import SessionDirectory
from hpcmagic.testing import FakeClock
from hpcmagic.wire.history import append_record, cell_path, cell_paths
from hpcmagic.wire.messages import Frame, Output, Raised, Reply, RunCell, Stand, to_frames
from hpcmagic.wire.pending import Pending

WAITS_S = 10.0


class Holder:
    """A session as its cells see it."""

    name = "demo"

    def __init__(self, directory, size=4):
        self.directory = directory
        self.size = size
        self.ended = ""
        self.asked = []
        self.last_error = None
        self.path = SimpleNamespace(stands=lambda *_: {})

    def control_path(self):
        """The way to the ranks."""
        return self.path

    def interrupt(self, cell):
        """Note that ranks were asked to give up."""
        self.require_alive()
        self.asked.append(cell.id)

    def require_alive(self):
        """Raise where the session has ended."""
        if self.ended:
            raise SessionEnded(f"Session demo has ended: {self.ended}.", "Start again.")

    def look(self, now_s):  # noqa: ARG002  # as a session has it
        """Do so."""
        self.require_alive()

    def note_error(self, error):
        """Keep it."""
        self.last_error = error


@pytest.fixture
def session(tmp_path):
    """A session of four ranks."""
    return Holder(SessionDirectory.create(tmp_path / "state" / "demo"))


def gave(rank, value=None, printed="", streamed=0):
    """A rank's answer when all went well."""
    outputs = (Output("stdout", printed),) if printed else ()
    if value is None:
        return Reply(rank, outputs, streamed)
    return Reply(rank, outputs, streamed, has_value=True, value=pickle_for_ranks("v", value))


def failed(rank, name="ValueError", text="boom"):
    """A rank's answer when it raised."""
    return Reply(rank, raised=Raised(name, text, (Frame("cell 1, line 1", "<module>", "f()"),), "whole"))


class Wire:
    """A cell of this kernel's: what ranks do comes over the wire, and the keeper writes it down."""

    def __init__(self, session, ranks, source="f()", cell_id="c0ffee", **kwargs):
        self.cell_id, self.ranks = cell_id, ranks
        self.pending = Pending(ranks, cell_id)
        self.journal = Journal(session.directory.cells, **kwargs)
        content = {"cell": cell_id, "name": "cell 1", "ranks": list(ranks), "client": "me@here:1#abc"}
        self.journal.on_request(content, to_frames(RunCell(source, "cell 1")))
        self.cell = Cell(session, cell_id, source, "cell 1", ranks, client="me@here:1#abc", pending=self.pending)

    def put_out(self, rank, piece, text, *, on_wire=True):
        """Let a piece of output come."""
        outputs = (Output("stdout", text),)
        self.journal.on_output({"cell": self.cell_id, "rank": rank, "piece": piece}, to_frames(outputs))
        if on_wire:
            self.pending.take_piece(rank, piece, outputs)

    def answer(self, reply):
        """Let a rank end."""
        raised = reply.raised.name if reply.raised is not None else ""
        self.journal.on_reply({"cell": self.cell_id, "rank": reply.rank, "raised": raised}, to_frames(reply))
        self.pending.take(reply)

    def lose(self, *ranks):
        """Let ranks go."""
        self.journal.on_lost(ranks, "gone")
        for rank in ranks:
            self.pending.lose(rank)

    def get_stuck(self, waiting):
        """Let ranks wait for ever."""
        self.journal.on_stuck(self.cell_id, {str(rank): where for rank, where in waiting.items()})
        self.pending.give_up(waiting)

    def handle(self):
        """The cell's handle in the kernel that sent it."""
        return self.cell


class Past(Wire):
    """The same cell as another kernel sees it: by the journal only."""

    def handle(self):
        """The cell's handle in another kernel."""
        return from_journal(self.cell.session, self.cell_id, cell_paths(self.journal.folder)[self.cell_id][1])


@pytest.fixture(params=[Wire, Past], ids=["wire", "journal"])
def sent(request, session):
    """Send a cell to ranks; give what lets it go on, and its handle's maker."""
    return lambda ranks=(0, 1), **kwargs: request.param(session, ranks, **kwargs)


def look(on_its_way):
    """The handle of a cell, as it is now."""
    return on_its_way.handle()


# ---- how it goes


def test_what_it_is(sent):
    """A handle knows its source, its name, its ranks, and who sent it, without what tells clients of one process apart."""
    cell = look(sent(ranks=(1, 3), source="  x = 1\nx + 1\n"))
    assert (cell.source, cell.name, cell.ranks, cell.client) == ("  x = 1\nx + 1\n", "cell 1", (1, 3), "me@here:1")
    assert abs(cell.sent - time.time()) < WAITS_S
    assert repr(cell) == "<cell 1: running on 2 ranks, 0 s: 'x = 1'>"


def test_long_source_in_short():
    """A long first line is shortened in a handle's repr."""
    pending = Pending([])
    cell = Cell(SimpleNamespace(ended="", size=1), "c", "x" * 1000, "cell 1", [], pending=pending)
    assert repr(cell) == f"<cell 1: done: '{'x' * handles.SOURCE_SHOWN}…'>"


@pytest.mark.parametrize(
    ("happens", "state", "words"),
    [
        ([], "running", "running on 2 ranks, 0 s"),
        ([gave(0)], "running", "1 of 2 done, waiting for rank 1, 0 s"),
        ([failed(0, "KeyError")], "running", "1 of 2 done (KeyError), waiting for rank 1, 0 s"),
        ([gave(0), gave(1)], "done", "done"),
        ([failed(0, "KeyError"), gave(1)], "failed", "failed KeyError"),
        ([failed(1, "KeyError"), failed(0, "IndexError")], "failed", "failed IndexError, KeyError"),
        ([failed(0, "KeyboardInterrupt"), gave(1)], "interrupted", "interrupted KeyboardInterrupt"),
        ([failed(0, "KeyboardInterrupt"), failed(1)], "failed", "failed KeyboardInterrupt, ValueError"),
        ([1], "running", "1 of 2 done, waiting for rank 0, 0 s"),
        ([gave(0), 1], "lost", "lost"),
        ([failed(0), 1], "failed", "failed ValueError"),
        ([0, 1], "lost", "lost"),
    ],
)
def test_state(sent, happens, state, words):
    """A cell runs while a rank may still answer; then it is done, failed, interrupted, or lost."""
    on_its_way = sent()
    for event in happens:
        on_its_way.lose(event) if isinstance(event, int) else on_its_way.answer(event)
    cell = look(on_its_way)
    assert (cell.state, cell.how_it_goes(), cell.done()) == (state, words, state != "running")


def test_session_ended(sent, session):
    """When its session has ended a cell runs no more: whoever has not answered is lost."""
    on_its_way = sent()
    on_its_way.answer(gave(0, 1, "kept\n"))
    cell = look(on_its_way)
    assert cell.state == "running"
    session.ended = "its walltime was reached"
    assert (cell.state, cell.missing(), cell.wait(0)) == ("lost", (), True)
    assert cell.output == "[0] kept\n"
    with pytest.raises(SessionEnded, match="walltime"):
        cell.result()


def test_end_of_the_session_is_noticed(sent, session, monkeypatch):
    """Whoever waits for a cell of a session that ends meanwhile does not wait for ever."""
    cell = look(sent())
    monkeypatch.setattr(handles, "time", SimpleNamespace(monotonic=FakeClock(), sleep=lambda _: None, time=time.time))
    monkeypatch.setattr(Pending, "wait", lambda *_: False)
    looks = itertools.count()

    def require_alive():
        if next(looks) == 3:
            session.ended = "gone"
            raise SessionEnded("gone")

    session.require_alive = require_alive
    assert cell.wait(60)
    assert cell.state == "lost"


def test_stuck(sent):
    """Ranks that wait for ever are waited for no more: the cell has failed, and its error names them."""
    on_its_way = sent(ranks=(0, 1, 2, 3))
    on_its_way.answer(failed(0, "KeyboardInterrupt"))
    on_its_way.get_stuck({1: "comm.Barrier(), cell 1, line 2", 2: "comm.Barrier(), cell 1, line 2", 3: "comm.recv()"})
    on_its_way.answer(gave(3))
    cell = look(on_its_way)
    assert (cell.state, cell.done(), cell.wait(0)) == ("failed", True, True)
    assert cell.how_it_goes() == "failed KeyboardInterrupt, ranks 1-2 wait in comm.Barrier(), cell 1, line 2"
    with pytest.raises(RankError, match="KeyboardInterrupt on rank 0") as error:
        cell.result()
    assert "\nRanks 1-2 wait in comm.Barrier(), cell 1, line 2: for ever.\n→ `%hpc restart`" in error.value.text
    assert error.value.waiting == dict.fromkeys((1, 2), "comm.Barrier(), cell 1, line 2")


def test_stuck_then_lost(sent):
    """Ranks that waited for ever and are gone since are named no more."""
    on_its_way = sent()
    on_its_way.answer(failed(0))
    on_its_way.get_stuck({1: "comm.Barrier()"})
    on_its_way.lose(1)
    cell = look(on_its_way)
    assert (cell.state, cell.how_it_goes()) == ("failed", "failed ValueError")
    assert cell.exception().waiting == {}


# ---- what it has put out


def test_output(sent):
    """Output is there while it runs, folded; asking again gives the same, the rest of the reply behind the pieces."""
    on_its_way = sent()
    assert look(on_its_way).output == ""
    on_its_way.put_out(0, 0, "a\n")
    on_its_way.put_out(1, 0, "a\n")
    cell = look(on_its_way)
    assert cell.output == cell.output == "[0-1] a\n"
    on_its_way.put_out(0, 1, "b\n")
    on_its_way.answer(gave(0, printed="c\n", streamed=2))
    assert cell.output == look(on_its_way).output == "[0-1] a\n[0] b\n[0] c\n"


def test_output_in_order(sent):
    """A reply that overtook the last pieces of output is put behind them."""
    on_its_way = sent(ranks=(0,))
    on_its_way.put_out(0, 0, "a\n")
    on_its_way.answer(gave(0, printed="c\n", streamed=2))
    on_its_way.put_out(0, 1, "b\n")
    assert look(on_its_way).output == "[0] a\n[0] b\n[0] c\n"


def test_lost_on_the_wire(sent):
    """A piece that was lost on its way to the notebook is read where the keeper wrote it down."""
    on_its_way = sent(ranks=(0,))
    on_its_way.put_out(0, 0, "a\n", on_wire=False)
    on_its_way.put_out(0, 1, "b\n")
    on_its_way.answer(gave(0, printed="c\n", streamed=2))
    cell = look(on_its_way)
    assert cell.output == cell.output == "[0] a\n[0] b\n[0] c\n"


def test_no_labels(sent, session):
    """A session of one rank needs no labels."""
    session.size = 1
    on_its_way = sent(ranks=(0,))
    on_its_way.put_out(0, 0, "a\n")
    assert look(on_its_way).output == "a\n"


def test_show(sent, capsys):
    """Showing a cell prints here what it has put out, as often as one likes."""
    on_its_way = sent()
    on_its_way.put_out(1, 0, "a\n")
    cell = look(on_its_way)
    cell.show()
    cell.show()
    assert capsys.readouterr().out == "[1] a\n[1] a\n"


def test_drain_keeps(session):
    """What was taken to be shown while it ran is in the handle's output all the same, and is taken once."""
    on_its_way = Wire(session, (0, 1))
    on_its_way.put_out(0, 0, "a\n")
    assert on_its_way.cell.drain() == {0: (Output("stdout", "a\n"),)}
    assert on_its_way.cell.drain() == {}
    assert on_its_way.cell.output == "[0] a\n"


def test_long_output_in_short(sent):
    """A handle shows the end of a long output."""
    on_its_way = sent(ranks=(0,))
    on_its_way.put_out(0, 0, "".join(f"line {n}\n" for n in range(100)))
    lines = look(on_its_way).as_text().splitlines()
    assert lines[:2] == ["cell 1: running on 1 rank, 0 s", "…"]
    assert lines[2:] == [f"[0] line {n}" for n in range(100 - glance.TAIL_LINES, 100)]


def test_as_html(sent):
    """What ranks print stands on the page as text."""
    on_its_way = sent(ranks=(0,))
    on_its_way.put_out(0, 0, "<script>x</script> & y\n")
    page = look(on_its_way).as_html()
    assert "&lt;script&gt;x&lt;/script&gt; &amp; y" in page
    assert "<script>" not in page


# ---- what it gave


def test_result(sent):
    """The last values come back by rank."""
    on_its_way = sent(ranks=(3, 1))
    on_its_way.answer(gave(3, "three"))
    on_its_way.answer(gave(1, "one"))
    cell = look(on_its_way)
    assert dict(zip(cell.result().ranks, cell.result(), strict=True)) == {1: "one", 3: "three"}
    assert cell.exception() is None


def test_no_value(sent):
    """Where no rank had a value there is none."""
    on_its_way = sent(ranks=(0,))
    on_its_way.answer(gave(0))
    assert look(on_its_way).result() is None


def test_raised(sent, session):
    """What ranks raised is raised by the result, and kept for `%hpc why`; `exception` gives it."""
    on_its_way = sent()
    on_its_way.answer(gave(0, 1))
    on_its_way.answer(failed(1))
    cell = look(on_its_way)
    with pytest.raises(RankError, match="ValueError on rank 1: boom") as error:
        cell.result()
    assert session.last_error is error.value
    assert isinstance(cell.exception(), RankError)


def test_still_running(sent):
    """A result that is not there in time is a TimeoutError that says how it goes; the cell runs on."""
    on_its_way = sent()
    on_its_way.answer(gave(0, 1))
    cell = look(on_its_way)
    for ask in (cell.result, cell.exception):
        with pytest.raises(TimeoutError, match="waiting for rank 1") as error:
            ask(timeout=0)
        assert isinstance(error.value, StillRunning)
        assert len(str(error.value).splitlines()) == 2
    assert cell.state == "running"


def test_lost(sent):
    """Of a cell whose ranks are gone the result is an error that names them; what it had put out is there."""
    on_its_way = sent()
    on_its_way.put_out(1, 0, "last words\n")
    on_its_way.answer(gave(0, 1))
    on_its_way.lose(1)
    cell = look(on_its_way)
    with pytest.raises(SessionEnded, match="never ended on rank 1"):
        cell.result()
    assert isinstance(cell.exception(), LaunchError)
    assert cell.output == "[1] last words\n"


def test_raised_before_lost(sent):
    """What a rank raised is the better news where another is gone."""
    on_its_way = sent()
    on_its_way.answer(failed(0))
    on_its_way.lose(1)
    with pytest.raises(RankError, match="ValueError on rank 0"):
        look(on_its_way).result()


@pytest.mark.parametrize(("reply", "state"), [(gave(0, "x" * 3000), "done"), (failed(0, text="y" * 3000), "failed")])
def test_dropped(session, reply, state):
    """Of a cell that gave way to younger ones state and source are left; its result is an error that says so."""
    on_its_way = Past(session, (0,), limit_nbytes=1000)
    on_its_way.put_out(0, 0, "printed\n")
    on_its_way.answer(reply)
    cell = look(on_its_way)
    assert (cell.state, cell.source, cell.output) == (state, "f()", "")
    with pytest.raises(CellError, match="not kept any more") as error:
        cell.result()
    assert not isinstance(error.value, RankError)


def test_waits_for_the_journal(session, monkeypatch):
    """A cell of another kernel is looked at again and again, ever less often, until it is over."""
    on_its_way = Past(session, (0,))
    cell, clock, slept = look(on_its_way), FakeClock(), []

    def sleep(seconds):
        slept.append(seconds)
        clock.advance(seconds)
        if len(slept) == 20:
            on_its_way.answer(gave(0, "at last"))

    monkeypatch.setattr(handles, "time", SimpleNamespace(monotonic=clock, sleep=sleep, time=time.time))
    assert list(cell.result()) == ["at last"]
    assert slept == sorted(slept)
    assert (slept[0], slept[-1]) == handles.LOOK_S


def test_waits_no_longer(session, monkeypatch):
    """Waiting for a cell of another kernel ends when its time is up."""
    cell, clock = look(Past(session, (0,))), FakeClock()
    monkeypatch.setattr(handles, "time", SimpleNamespace(monotonic=clock, sleep=clock.advance, time=time.time))
    assert not cell.wait(3.0)
    assert clock.now_s == pytest.approx(3.0)


# ---- cancel, callbacks, await


def test_cancel(sent, session):
    """A cell that runs is interrupted; one that is over is left alone, and says so."""
    on_its_way = sent(ranks=(0,))
    cell = look(on_its_way)
    assert cell.cancel() is True
    on_its_way.answer(gave(0))
    assert cell.cancel() is False
    assert session.asked == ["c0ffee"]


def test_cancel_after(session):
    """A cell that runs longer than it may is interrupted, and says so itself, with the time that it had."""
    interrupted = threading.Event()
    session.interrupt = lambda _: interrupted.set()
    on_its_way = Wire(session, (0, 1))
    cell = on_its_way.cell
    cell.cancel_after(0.01)
    assert interrupted.wait(WAITS_S)
    on_its_way.answer(gave(0, 7))
    on_its_way.answer(failed(1, "KeyboardInterrupt", ""))
    with pytest.raises(CellError) as error:
        cell.result()
    assert two_lines(error).message == (
        "The cell ran longer than its --timeout of 0.01 s on ranks 0-1; it was interrupted."
    )
    assert (cell.state, cell.how_it_goes()) == ("interrupted", "interrupted by its --timeout of 0.01 s")
    assert "--timeout of 0.01 s" in glance.as_text(cell)
    assert str(cell.exception()) == str(error.value)


def test_error_of_its_own_after_the_alarm(session):
    """What a cell raises besides, though it was interrupted, is told as ever."""
    interrupted = threading.Event()
    session.interrupt = lambda _: interrupted.set()
    on_its_way = Wire(session, (0,))
    on_its_way.cell.cancel_after(0.01)
    assert interrupted.wait(WAITS_S)
    on_its_way.answer(failed(0))
    with pytest.raises(RankError, match="ValueError"):
        on_its_way.cell.result()


@pytest.mark.parametrize(
    ("stands", "left_s"),
    [
        ({}, 0.0),  # C code holds all interpreters
        ({0: ("own", 5.0), 1: ("own", 6.0)}, 4.0),
        ({0: ("own", 3.0), 1: ("other", 99.0)}, 7.0),
        ({0: ("own", 12.0), 1: ("other", 1.0)}, 0.0),
        ({0: ("other", 99.0), 1: ("other", 99.0)}, 10.0),
        ({0: ("", 99.0), 1: ("other", 1.0)}, 10.0),
        ({1: ("own", 10.0)}, 0.0),
    ],
)
def test_time_limit(session, stands, left_s):
    """A time limit counts from where a rank begins the cell; while all wait behind another it does not count at all."""
    cell = Wire(session, (0, 1)).cell
    told = {rank: Stand(rank, request, for_s=for_s) for rank, (request, for_s) in stands.items()}
    session.path = SimpleNamespace(stands=lambda *_: told, runs=lambda _, stand: stand.request == "own")
    assert timeout.left_s(cell, 10.0) == left_s


def test_alarm_set_again(session, monkeypatch):
    """An alarm that rings while the cell waits for its turn is set again, and interrupts nothing."""
    set_to = []
    monkeypatch.setattr(timeout.Alarm, "_set", lambda _, in_s: set_to.append(in_s))
    cell = Wire(session, (0,)).cell
    told = {0: Stand(0, "other", for_s=99.0)}
    session.path = SimpleNamespace(stands=lambda *_: told, runs=lambda _, stand: stand.request == "own")
    cell.cancel_after(7)
    cell._alarm.ring()
    told[0] = Stand(0, "own", for_s=6.9)
    cell._alarm.ring()
    assert set_to == [7, 7, timeout.LOOK_S]
    assert session.asked == []
    told[0] = Stand(0, "own", for_s=7.1)
    cell._alarm.ring()
    assert session.asked == ["c0ffee"]


@pytest.mark.parametrize(("limit_s", "waits_s"), [(7, 7), (float("inf"), threading.TIMEOUT_MAX)])
def test_not_cancelled_after(session, monkeypatch, limit_s, waits_s):
    """The alarm of a cell that is over in time is put off; no timer waits longer than one can."""
    timers = []

    class Timer:
        def __init__(self, seconds, _function):
            self.seconds, self.state = seconds, "made"
            timers.append(self)

        def start(self):
            self.state = "started"

        def cancel(self):
            self.state = "cancelled"

    monkeypatch.setattr(timeout.threading, "Timer", Timer)
    on_its_way = Wire(session, (0,))
    on_its_way.cell.cancel_after(limit_s)
    assert [(timer.seconds, timer.state) for timer in timers] == [(waits_s, "started")]
    on_its_way.answer(gave(0))
    assert timers[0].state == "cancelled"


def test_session_gone_when_the_alarm_rings(session):
    """An alarm that finds the session ended raises nothing in its thread."""
    cell = Wire(session, (0,)).cell

    def interrupt(_):
        raise SessionEnded("gone")

    session.interrupt = interrupt
    cell.cancel_after(WAITS_S)
    cell._alarm.ring()
    cell.lose()


def test_callback(session):
    """A callback is called once, with the cell, when the last rank has answered."""
    on_its_way, told = Wire(session, (0, 1)), []
    on_its_way.cell.add_done_callback(told.append)
    on_its_way.answer(gave(0))
    assert told == []
    on_its_way.answer(gave(1))
    on_its_way.lose(1)
    assert told == [on_its_way.cell]


def test_callback_of_a_cell_that_is_over(sent, session):
    """A callback of a cell that is over, be it with its session, is called at once."""
    over = sent(ranks=(0,))
    over.answer(gave(0))
    lost = sent(ranks=(0,), cell_id="facade")
    cells = [look(over), look(lost)]
    session.ended = "gone"
    cells[1].lose()  # as a session does with cells that run when it ends
    for cell in cells:
        called = threading.Event()
        cell.add_done_callback(lambda _, called=called: called.set())
        assert called.wait(WAITS_S)


def test_await(sent, monkeypatch):
    """A cell can be awaited: the loop goes on meanwhile, and gets the result."""
    patient = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: threading.Event().wait(0.01), time=time.time)
    monkeypatch.setattr(handles, "time", patient)
    on_its_way = sent(ranks=(0,))
    cell = look(on_its_way)

    async def both():
        waiting = asyncio.ensure_future(awaited(cell))
        await asyncio.sleep(0)
        assert not waiting.done()
        on_its_way.answer(gave(0, "value"))
        return await waiting

    assert list(asyncio.run(both())) == ["value"]


def test_await_given_up(session, caplog):
    """An await that was given up is forgotten: nobody complains when the cell is over, the loop being closed."""
    on_its_way = Wire(session, (0,))
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(awaited(on_its_way.cell), 0.05))
    on_its_way.answer(gave(0))
    assert caplog.text == ""
    assert on_its_way.cell.done()


async def awaited(cell):
    return await cell


def test_await_raises(session):
    """What ranks raised comes out of an await."""
    on_its_way = Wire(session, (0,))
    on_its_way.answer(failed(0))
    with pytest.raises(RankError, match="boom"):
        asyncio.run(awaited(on_its_way.cell))


# ---- all cells


def test_all_cells(session):
    """Every cell is there in the order of the journal: this kernel's live ones, others read; unwritten ones last."""
    old = Wire(session, (0,), source="old", cell_id="a1")
    old.answer(gave(0, 1))
    journal = old.journal
    live = Cell(session, "b2", "live", "cell 2", (0,), pending=Pending([0]))
    journal.on_request(
        {"cell": "b2", "name": "cell 2", "ranks": [0], "client": "x"}, to_frames(RunCell("live", "cell 2"))
    )
    fresh = Cell(session, "c3", "fresh", "cell 3", (0,), pending=Pending([0]))
    cells = all_cells(session, {"c3": fresh, "b2": live})
    assert [cell.source for cell in cells] == ["old", "live", "fresh"]
    assert cells[1] is live
    assert cells[-1] is fresh
    assert [cell.source for cell in cells[:2]] == ["old", "live"]
    assert [line.split(":")[0] for line in repr(cells).splitlines()] == ["[0] <cell 1", "[1] <cell 2", "[2] <cell 3"]
    assert cells.newest(3) == repr(cells)
    assert [line.split(":")[0] for line in cells.newest(1).splitlines()] == ["… 2 before", "[2] <cell 3"]
    assert repr(Cells([])) == "no cells yet"


def test_many_cells(session, monkeypatch):
    """How each of many cells stands is read from its own file: the folder is looked through once for all of them."""
    for number in range(3):
        Wire(session, (0,), source="x", cell_id=f"a{number}").answer(gave(0, number))
    cells = all_cells(session, {})
    monkeypatch.setattr(handles, "cell_paths", None)
    assert repr(cells).count("done") == 3
    assert [cell.result()[0] for cell in cells] == [0, 1, 2]


def test_what_has_just_ended(session, monkeypatch):
    """A cell that this kernel has seen end is listed and over, though the keeper writes a moment later."""
    own, pending = OwnCells(), Pending([0], "c0ffee")
    own.add(Cell(session, "c0ffee", "f()", "cell 1", (0,), pending=pending), pending)
    assert [cell.state for cell in own.among_all(session)] == ["running"]
    pending.take(gave(0))
    clock, slept = FakeClock(), []

    def sleep(seconds):
        clock.advance(seconds)
        slept.append(seconds)
        if len(slept) == 3:
            Wire(session, (0,)).answer(gave(0))

    monkeypatch.setattr(cell_list, "time", SimpleNamespace(monotonic=clock, sleep=sleep))
    assert [cell.state for cell in own.among_all(session)] == ["done"]
    assert len(slept) == 3
    assert len(own.among_all(session)) == 1


def test_what_is_never_written(session, monkeypatch):
    """A keeper that cannot write is not waited for for long, and once."""
    own, pending, clock = OwnCells(), Pending([0], "c0ffee"), FakeClock()
    own.add(Cell(session, "c0ffee", "f()", "cell 1", (0,), pending=pending), pending)
    pending.take(gave(0))
    monkeypatch.setattr(cell_list, "time", SimpleNamespace(monotonic=clock, sleep=clock.advance))
    assert (len(own.among_all(session)), len(own.among_all(session))) == (0, 0)
    assert clock.now_s == pytest.approx(cell_list.LAG_S, abs=0.1)


def test_half_written_cell(session):
    """A cell whose first record is not whole yet, or never came, is none."""
    path = cell_path(session.directory.cells, 1, "a1")
    path.touch()
    assert list(all_cells(session, {})) == []
    append_record(path, {"kind": "reply", "rank": 0})
    assert list(all_cells(session, {})) == []


def test_many_lines_of_cells():
    """In the list of cells each takes one line that is not too long."""
    cell = Cell(SimpleNamespace(ended="", size=1), "c", "s", "cell " + "9" * 500, [], pending=Pending([]))
    assert [len(line) <= 160 for line in repr(Cells([cell, cell])).splitlines()] == [True, True]


def test_lose(session):
    """Once a cell is given up every rank that has not answered is lost, and whoever waits is told."""
    on_its_way, told = Wire(session, (0, 1, 2)), []
    on_its_way.answer(gave(1))
    on_its_way.cell.add_done_callback(told.append)
    on_its_way.cell.lose()
    assert (on_its_way.pending.lost, told, on_its_way.cell.state) == ({0, 2}, [on_its_way.cell], "lost")


@pytest.mark.parametrize("limit_s", ["x", "5", 0, -1, float("nan"), [1]])
def test_no_time_limit(limit_s):
    """What is no time above 0 is refused before a cell is sent."""
    with pytest.raises(ProfileError) as error:
        timeout.require_time(limit_s)
    assert repr(limit_s) in two_lines(error).message


@pytest.mark.parametrize("limit_s", [None, 1, 0.5, float("inf")])
def test_time_limits(limit_s):
    """No limit, and any number above 0, will do."""
    timeout.require_time(limit_s)


def test_waiting_for_no_time(session):
    """A time to wait that is none, and a callback that is none, are refused in two lines."""
    cell = Wire(session, (0,)).cell
    for call in (cell.wait, cell.result):
        with pytest.raises(ProfileError) as error:
            call(timeout="x")
        assert two_lines(error).message == "timeout='x' is not a time."
    assert cell.wait(0) is False
    with pytest.raises(CellError) as error:
        cell.add_done_callback(5)
    assert two_lines(error).message == "5 cannot be called."
