"""A session that lives: output as it comes, handles, every cell in the journal, restart, two notebooks at once."""

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from textwrap import dedent

import pytest
from faults import eventually, soon
from jupyter_client.manager import start_new_kernel
from two_lines import two_lines

import hpcmagic
from notebooks import shown_by


class Timed:
    """A standard output that notes when what was written."""

    def __init__(self):
        self.begun = time.monotonic()
        self.written = []

    def write(self, text):
        self.written.append((time.monotonic() - self.begun, text))
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return False

    def when(self, text):
        return next(at for at, written in self.written if text in written)


# ---- output as it comes


def test_output_as_it_comes(session, monkeypatch, unhurried):
    """What ranks print is shown while the cell runs, folded, and not only at its end."""
    shown = Timed()
    monkeypatch.setattr(sys, "stdout", shown)
    session.run("import time\nprint('first')\ntime.sleep(2)\nprint('last')")
    assert shown.when("[0-3] first") < shown.when("[0-3] last") - 1


def test_lone_rank_streams(session, monkeypatch):
    """A rank that reports alone is not held back until the others speak."""
    shown = Timed()
    monkeypatch.setattr(sys, "stdout", shown)
    session.run("import time\nif rank == 2: print('alone')\ntime.sleep(3)")
    assert shown.when("[2] alone") < 2.8


def test_c_code_and_children_stream(session, monkeypatch):
    """The output of C code and of child processes comes while they run, too."""
    shown = Timed()
    monkeypatch.setattr(sys, "stdout", shown)
    session.run("import ctypes, time\nctypes.CDLL(None).puts(b'from C')\ntime.sleep(2.5)", ranks=[0])
    assert shown.when("from C") < 2.3
    shown.begun = time.monotonic()
    session.run("!echo from a child; sleep 2.5", ranks=[1])
    assert shown.when("from a child") < 2.3


def test_nothing_lost_in_a_flood(session, capsys):
    """Every line of a flood that stays below the limit arrives once and in order, on every rank."""
    session.run("for i in range(20000): print(rank, i)")
    out = capsys.readouterr().out
    for rank in range(4):
        assert re.findall(rf"^\[{rank}\] {rank} (\d+)$", out, re.MULTILINE) == [str(i) for i in range(20000)]


def test_too_much_goes_to_the_log(session, capsys):
    """A rank that prints without end leaves 1 MB in the cell; the rest is in its log."""
    session.run("line = 'x' * 99\nfor _ in range(100_000): print(line)\nprint('the end')", ranks=[1])
    captured = capsys.readouterr()
    assert len(captured.out) < 1_100_000
    assert "the rest is in `%hpc log RANK`" in captured.err
    assert session.log(1).splitlines()[-1] == "the end"
    assert session.directory.rank_log(1).stat().st_size > 8_000_000


def test_large_value_stays(session):
    """A value above 10 MB stays on its rank, described; a name fetches it."""
    big = session.run("big = bytes(11_000_000)\nbig", ranks=[0])
    assert "bytes, length 11000000" in repr(big[0])
    assert "%pull" in repr(big[0])


# ---- handles


def test_handle(session):
    """A handle tells how its cell goes, and gives output and value when it is over."""
    handle = session.run("import time\nprint('working')\ntime.sleep(1.5)\nrank * 2", block=False)
    assert not handle.done()
    assert handle.state == "running"
    with pytest.raises(hpcmagic.StillRunning) as late:
        handle.result(timeout=0.1)
    assert isinstance(late.value, TimeoutError)
    time.sleep(0.8)
    assert handle.output == "[0-3] working\n"
    assert list(handle.result()) == [0, 2, 4, 6]
    assert (handle.state, handle.done(), handle.cancel()) == ("done", True, False)


def test_handle_of_an_error(session):
    """A handle raises what the ranks raised, as often as it is asked."""
    handle = session.run("1 / 0", block=False)
    for _ in range(2):
        with pytest.raises(hpcmagic.RankError, match="ZeroDivisionError on all 4 ranks"):
            handle.result()
    assert handle.state == "failed"
    assert isinstance(handle.exception(), hpcmagic.RankError)


def test_cancel(session):
    """Cancelling interrupts a cell that runs, and withdraws one that waits behind it."""
    first = session.run("import time; time.sleep(60)", block=False)
    second = session.run("second_ran = True", block=False)
    assert second.cancel()
    time.sleep(0.5)
    assert first.cancel()
    assert first.wait(10)
    assert second.wait(10)
    assert (first.state, second.state) == ("interrupted", "interrupted")
    assert session.run("'second_ran' in dir()").same() is False


def test_withdrawn_at_once(own_session, tmp_path):
    """A cell that is withdrawn behind a busy one is over at once, in every kernel and in the journal."""
    session = own_session(nodes=2, session="withdrawn")
    busy = session.run("import time; time.sleep(60)", block=False)
    other = hpcmagic.attach("withdrawn", session_dir=str(tmp_path / "d"))
    mine = session.run("ran = True", block=False)
    theirs = other.run("ran = True", block=False)
    eventually(lambda: len(session.cells) == 3)
    assert mine.cancel()
    (from_here,) = (cell for cell in session.cells if cell.id == theirs.id)  # the two came in either order
    assert from_here.cancel()
    assert mine.wait(5)
    assert theirs.wait(5)
    for one in (session, other):
        eventually(lambda one=one: [cell.state for cell in one.cells] == ["running", "interrupted", "interrupted"], 5)
    assert busy.cancel()
    assert busy.wait(10)
    assert session.run("'ran' in dir()").same() is False
    other.control.close()


def test_callbacks_and_await(session):
    """Callbacks come once, with the handle; a handle can be awaited."""
    called = []
    handle = session.run("import time; time.sleep(0.5); rank", block=False)
    handle.add_done_callback(called.append)

    async def wait_for_it():
        return await handle

    assert list(asyncio.run(wait_for_it())) == [0, 1, 2, 3]
    handle.add_done_callback(called.append)
    assert called == [handle, handle]


def test_timeout_of_a_handle(session):
    """A cell that nobody waits for is interrupted when its time is up."""
    handle = session.run("import time; time.sleep(60)", timeout=1, block=False)
    assert handle.wait(15)
    assert handle.state == "interrupted"
    with pytest.raises(hpcmagic.CellError) as error:
        handle.result()
    assert two_lines(error).message.endswith("its --timeout of 1 s on ranks 0-3; it was interrupted.")


def test_display_that_is_final(home):
    """In a notebook that nobody sits at a handle's display ends with how its cell ended, or says that it may be old."""
    _, shown, *_, left = shown_by(
        home,
        "%load_ext hpcmagic",
        "%%remote -a --nodes 2 -o quick\nimport time; time.sleep(1)\nrank * 10",
        "quick",
        "quick.result()",
        "%%remote -a\ntime.sleep(600)",
    )
    assert shown.strip().endswith("\ncell 2: done\n[0] 0\n[1] 10")
    assert "running on 2 ranks" in left
    assert left.strip().endswith("(when this was shown last)")


def test_display_when_the_kernel_ends(home):
    """When a kernel ends, the display of a cell that runs on is drawn once more, and says that it may be old."""
    manager, client = start_new_kernel(cwd=str(home))
    shown = []
    try:
        client.execute_interactive("%load_ext hpcmagic", timeout=60)
        client.execute_interactive("%%remote -a --nodes 1 --keep\nimport time; time.sleep(600)", timeout=60)
        manager.request_shutdown()
        while not shown or "when this was shown last" not in shown[-1]:
            message = client.get_iopub_msg(timeout=20)
            if message["msg_type"] == "update_display_data":
                shown.append(message["content"]["data"]["text/plain"])
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
    assert "running on 1 rank" in shown[-1]


# ---- every cell of the session


def test_cells(own_session):
    """Every cell is there with source, state, output and result, whoever keeps its handle."""
    session = own_session(nodes=2)
    session.run("print('one')\nrank")
    with pytest.raises(hpcmagic.RankError):
        session.run("1 / 0")
    session.run("x = 3", ranks=[1])
    one, two, three = session.cells
    assert (one.source, one.state, one.output) == ("print('one')\nrank", "done", "[0-1] one\n")
    assert list(one.result()) == [0, 1]
    assert two.state == "failed"
    with pytest.raises(hpcmagic.RankError, match="ZeroDivisionError"):
        two.result()
    assert (three.ranks, three.result()) == ((1,), None)
    assert "print('one')" in repr(session.cells)


def test_cells_after_the_end(own_session, tmp_path):
    """What a session gave can be read when it has ended: by its object, and by whoever attaches."""
    session = own_session(nodes=2, session="over")
    session.run("print('kept')\n[rank, 'kept']")
    running = session.run("import time; time.sleep(60)", block=False)
    time.sleep(0.5)
    session.stop()
    assert list(session.cells[0].result()) == [[0, "kept"], [1, "kept"]]
    assert running.state == "lost"
    later = hpcmagic.attach("over", session_dir=str(tmp_path / "d"))
    assert later.cells[0].output == "[0-1] kept\n"
    assert list(later.cells[0].result()) == [[0, "kept"], [1, "kept"]]
    assert later.cells[1].state == "lost"
    for call in (lambda: later.run("1"), later.cells[1].result, later.restart):
        with pytest.raises(hpcmagic.SessionEnded, match="it was stopped"):
            call()


def test_attach_to_what_never_was(tmp_path):
    """A name that no session has, or had, is refused in two lines."""
    with pytest.raises(hpcmagic.ProfileError, match="no session 'nobody'"):
        hpcmagic.attach("nobody", session_dir=str(tmp_path / "d"))


# ---- two at once


def test_two_at_once(own_session, tmp_path, capsys):
    """Two kernels on one session both work, see each other's cells, and are told of each other."""
    session = own_session(nodes=2, session="shared")
    code = f"""
        import hpcmagic, sys, time
        other = hpcmagic.attach("shared", session_dir={str(tmp_path / "d")!r})
        time.sleep(1)  # the keeper looks four times a second who is there
        other.run("mine = 'other'\\nprint('from the other')")
        print(other.run("rank"), flush=True)
        sys.stdin.readline()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    said = [other.stdout.readline() for _ in range(3)]
    deadline = time.monotonic() + 10
    while "also connected" not in "".join(said) and time.monotonic() < deadline:
        said.append(other.stdout.readline())
    assert re.search(rf"also connected: \S+@\S+:{os.getpid()}\b", "".join(said))
    time.sleep(1)
    assert session.run("mine").same() == "other"
    assert re.search(rf"also connected: \S+@\S+:{other.pid}\b", capsys.readouterr().out)
    assert session.cells[0].client.endswith(f":{other.pid}")
    assert session.cells[0].output == "[0-1] from the other\n"
    other.communicate("\n", timeout=30)
    time.sleep(1)
    session.run("")
    assert "nobody else is connected any more" in capsys.readouterr().out


def test_follow_a_cell_of_another(own_session, tmp_path):
    """A cell that another kernel runs can be waited for, read while it runs, and cancelled."""
    session = own_session(nodes=2, session="watched")
    run = threading.Thread(target=lambda: session.run(SLOW, block=False).exception())
    run.start()
    time.sleep(1)
    other = hpcmagic.attach("watched", session_dir=str(tmp_path / "d"))
    (seen,) = other.cells
    assert (seen.state, seen.output) == ("running", "[0-1] begun\n")
    assert seen.cancel()
    assert seen.wait(10)
    run.join(10)
    assert (seen.state, seen.output) == ("interrupted", "[0-1] begun\n")
    other.control.close()


SLOW = "import time\nprint('begun')\nfor _ in range(600): time.sleep(0.1)"


# ---- restart


def test_restart(own_session):
    """New processes in the same job, with a verified MPI world and no variables."""
    session = own_session(nodes=2)
    before = list(session.run("kept = 1\nimport os\nos.getpid()"))
    job = session.job
    session.restart()
    assert session.job == job
    assert not set(before) & set(session.run("import os; os.getpid()"))
    assert session.run("'kept' in dir()").same() is False
    if session.keeper_state().world:
        assert session.run("comm.allreduce(1)").same() == 2
    assert [cell.state for cell in session.cells] == ["done"] * len(session.cells)


def test_stuck_then_restarted(own_session):
    """One rank raises, the others wait in MPI: both are named, later cells are refused, a restart mends it."""
    session = own_session(nodes=3)
    if not session.keeper_state().world:
        pytest.skip("there is no MPI here")
    begun = time.monotonic()
    with pytest.raises(hpcmagic.RankError) as stuck:
        session.run("if rank == 1:\n    raise ValueError('bad')\ncomm.Barrier()")
    assert time.monotonic() - begun < 15
    assert stuck.value.ranks == (1,)
    assert set(stuck.value.waiting) == {0, 2}
    assert "Ranks 0,2 wait in comm.Barrier(), cell 1, line 3" in stuck.value.text
    with pytest.raises(hpcmagic.CellError, match="would never come to this cell") as refused:
        session.run("1")
    assert "`--ranks 1`" in refused.value.mend
    assert session.run("'free'", ranks=[1])[1] == "free"
    session.restart()
    assert session.run("comm.allreduce(1)").same() == 3


@pytest.fixture
def mpi_pair(own_session):
    """Two ranks with MPI."""
    session = own_session(nodes=2, session="stuck")
    if not session.keeper_state().world:
        pytest.skip("there is no MPI here")
    return session


FIRST = {
    "allreduce": "comm.allreduce(1)",
    "reduce": "comm.reduce(1, root=1)",
    "of a communicator of the user's": "new.allreduce(1)",
    "Barrier": "comm.Barrier()",
}


@pytest.mark.parametrize("call", FIRST.values(), ids=FIRST)
def test_stuck_in_the_first_call(mpi_pair, call):
    """A rank that waits for another that has raised is found so in its very first call, mpi4py's pickled ones too."""
    with soon(15), pytest.raises(hpcmagic.RankError) as stuck:
        mpi_pair.run(f"new = comm.Dup()\nif rank == 0: raise ValueError('bad')\n{call}")
    assert stuck.value.waiting == {1: f"{call}, cell 1, line 3"}


WAYS = {
    "result": lambda handle: handle.result(),
    "await": lambda handle: asyncio.run(awaited(handle)),
    "wait": lambda handle: handle.wait() and handle.result(0),
}


async def awaited(handle):
    return await handle


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_stuck_handle(mpi_pair, tmp_path, way):
    """Whoever waits for a handle learns that its ranks wait for ever; so does every kernel, and none sends more."""
    called = threading.Event()
    handle = mpi_pair.run("if rank == 0: raise ValueError('bad')\ncomm.Barrier()", block=False)
    handle.add_done_callback(lambda _: called.set())
    with soon(15), pytest.raises(hpcmagic.RankError, match="ValueError on rank 0: bad") as stuck:
        way(handle)
    assert called.wait(5)
    other = eventually(lambda: other_sees(hpcmagic.attach("stuck", session_dir=str(tmp_path / "d"))))
    for session, cell in ((mpi_pair, handle), (mpi_pair, mpi_pair.cells[-1]), (other, other.cells[-1])):
        assert (cell.state, cell.done()) == ("failed", True)
        assert cell.how_it_goes() == "failed ValueError, rank 1 waits in comm.Barrier(), cell 1, line 2"
        with pytest.raises(hpcmagic.RankError) as again:
            cell.result()
        assert (str(again.value), again.value.waiting) == (str(stuck.value), stuck.value.waiting)
        with pytest.raises(
            hpcmagic.CellError, match=r"Rank 1 still waits in comm.Barrier.*would never come"
        ) as refused:
            session.run("1")
        assert "`--ranks 0`" in refused.value.mend
    mpi_pair.restart()
    assert list(other.run("rank")) == [0, 1]
    other.control.close()


def other_sees(session):
    """A session in which a cell that is stuck has been told of."""
    if session.keeper_state().stuck:
        return session
    session.control.close()
    return None


def test_stuck_while_nobody_waits(mpi_pair, tmp_path):
    """Another kernel finds out about a cell that nobody waits for; ranks that go on after all are free again."""
    handle = mpi_pair.run(
        "if rank == 0: raise ValueError('bad')\ncomm.Barrier()\nprint('went on')\n'late'", block=False
    )
    other = hpcmagic.attach("stuck", session_dir=str(tmp_path / "d"))
    with soon(15), pytest.raises(hpcmagic.RankError, match="for ever"):
        eventually(lambda: other.cells)[-1].result()
    assert list(mpi_pair.run("comm.Barrier(); rank", ranks=[0])) == [0]
    assert handle.wait(10)
    assert eventually(lambda: not mpi_pair.keeper_state().stuck)
    for session in (mpi_pair, other):
        assert session.cells[0].output == "[1] went on\n"
        assert list(session.run("rank")) == [0, 1]
    other.control.close()


def test_slow_ranks_are_not_stuck(session):
    """Where one rank raises and others are just slow, the cell waits for them."""
    error = None
    try:
        session.run("import time\nif rank == 0: 1 / 0\ntime.sleep(6)\nprint('slow but there')")
    except hpcmagic.RankError as raised:
        error = raised
    assert error.waiting == {}
    assert session.cells[-1].output == "[1-3] slow but there\n"


# ---- in a notebook


def test_handles_in_a_notebook(home):
    """`-a` gives a handle whose display is kept up to date; it can be awaited, listed, cancelled by name."""
    shown = shown_by(
        home,
        "%load_ext hpcmagic",
        "%%remote --nodes 2 -a -o slow\nimport time\nprint('on its way')\ntime.sleep(1)\nrank + 1",
        "list(await slow)",
        "h = _",
        "%remote -a -o long time.sleep(60)",
        "long",
        "%hpc cells",
        "import time; time.sleep(1)\n%hpc cancel long",
        "long.wait(10); long.state",
        "import time; time.sleep(1)",
    )
    assert "cell 2: done" in shown[1]  # it was over before the notebook was
    assert shown[2] == "[1, 2]"
    assert "cell 5: " in shown[5]  # though its first display is alive
    assert "[1] <cell 5: running on 2 ranks" in shown[6]
    assert "interrupted" in shown[7]
    assert shown[8] == "'interrupted'"


def test_displays_of_ranks_change(home):
    """A rank's display is updated in place, and clear_output clears what came before."""
    shown = shown_by(
        home,
        "%load_ext hpcmagic",
        "%%remote --nodes 1\nfrom IPython.display import display, clear_output\nimport time\n"
        "h = display({'text/plain': 'old'}, raw=True, display_id=True)\ntime.sleep(0.5)\n"
        "h.update({'text/plain': 'new'}, raw=True)",
        "%%remote\nprint('gone')\ntime.sleep(0.5)\nclear_output()\nprint('stays')",
    )
    assert "new" in shown[1]
    assert "old" not in shown[1]
    assert "stays" in shown[2]
    assert "gone" not in shown[2]


def test_name_that_only_the_notebook_has(home):
    """A NameError for a name that the notebook has says how to send it."""
    shown = shown_by(home, "%load_ext hpcmagic", "def f(x): return x", "%%remote --nodes 2\nf(rank)", fails=True)
    assert "`f` is defined here, not on the ranks. → `--push f`" in shown[2]


def test_why_in_a_notebook(home):
    """`%hpc why` shows the whole traceback of an error that was shown short."""
    shown = shown_by(
        home,
        "%load_ext hpcmagic",
        "%hpc start --nodes 2",
        "try:\n    get_ipython().run_cell_magic('remote', '', 'import json\\njson.loads(\"{\")')\n"
        "except Exception as error:\n    print(len(str(error).splitlines()))",
        "%hpc why",
        "%hpc restart",
        "%remote 'json' in dir()",
        "%hpc attach",
    )
    assert "raw_decode" in shown[3]
    assert "2 new ranks in the same job" in shown[4]
    assert "False" in shown[5]
    assert "failed JSONDecodeError" in shown[6]
