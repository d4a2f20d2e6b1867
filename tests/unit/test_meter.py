"""The visible meter without a page: what is told and when, what a click does, and the same facts as text."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from two_lines import two_lines

from hpcmagic.errors import LaunchError, ProfileError
from hpcmagic.launch.base import JobState
from hpcmagic.notebook import frontend, meter, meter_line, readings, start, widgets
from hpcmagic.notebook.magics import HpcMagics
from hpcmagic.notebook.meter import (
    ALONE_BEAT_S,
    ATTENDED_S,
    BEAT_S,
    GRACE_S,
    LINGERS_S,
    READ_S,
    STAYS_S,
    Meter,
    page_code,
)
from hpcmagic.notebook.meter_line import in_words
from hpcmagic.notebook.readings import Reading
from hpcmagic.testing import FakeClock

SOON_S = 20.0
LOCAL = Reading("waves", "ready", nodes=1, ranks=4, unit="core-hours", spent=0.5, rate_per_hour=4.0, elapsed_s=450.0,
                idle_s=225.0)  # fmt: skip
ON_SLURM = Reading(
    "waves", "ready", job="66", nodes=2, ranks=4, unit="billing-minutes", spent=54.1, rate_per_hour=269.0,
    ceiling=749.0, elapsed_s=723.0, left_s=1077.0, idle_s=540.0, balance=4200.0, balance_whose="account alice-lab",
    budget=100.0, budget_spent=60.0, budget_what="session",
)  # fmt: skip


class FakeScreen:
    """A comm."""

    def __init__(self):
        self.sent, self.closed = [], False

    def send(self, message):
        self.sent.append(message)

    def close(self):
        self.closed = True

    def of(self, kind):
        """What was sent of a kind."""
        return [message for message in self.sent if message["kind"] == kind]


class FakeSession:
    """What a person can do to a session; `waits` keeps whoever does it."""

    def __init__(self, name="waves"):
        self.name, self.ended, self.done, self.refuses = name, "", [], None
        self.waits = threading.Event()
        self.waits.set()

    def _do(self, what):
        assert self.waits.wait(SOON_S)
        if self.refuses:
            raise self.refuses
        self.done.append(what)

    def stop(self):
        self._do("stop")

    def extend(self, time):
        self._do(f"extend {time:.0f}")
        return "Until 16:00."

    def keep(self):
        self._do("keep")


class Bench:
    """A meter without a thread, a clock, and the reading that it finds."""

    def __init__(self):
        self.clock, self.screen, self.session = FakeClock(), FakeScreen(), FakeSession()
        self.reading = ON_SLURM
        self.meter = Meter(self.read, self.session, self.screen, self.clock)

    def read(self):
        if isinstance(self.reading, Exception):
            raise self.reading
        return self.reading

    def after(self, seconds, **changed):
        """Let time pass, as a session does that goes on as before; give what is told then."""
        self.clock.advance(seconds)
        if isinstance(self.reading, Reading):
            one = self.reading
            later = {
                "spent": one.spent + one.rate_per_hour * seconds / 3600, "elapsed_s": one.elapsed_s + seconds,
                "left_s": one.left_s and one.left_s - seconds,
                "idle_left_s": one.idle_left_s and one.idle_left_s - seconds,
            }  # fmt: skip
            self.reading = replace(one, **{**later, **changed})
        before = len(self.screen.of("news"))
        self.meter.turn()
        return self.screen.of("news")[before:]

    def answer(self, number=1):
        """Wait for an answer to a click."""
        until = time.monotonic() + SOON_S
        while len(self.screen.of("answer")) < number:
            assert time.monotonic() < until
            self.meter.turn()
            threading.Event().wait(0.01)
        return self.screen.of("answer")[number - 1]


@pytest.fixture
def bench():
    """A meter on a session in a job."""
    return Bench()


def test_beats(bench):
    """A page is told at once how things stand, then on a beat: it counts by itself meanwhile."""
    (first,) = bench.after(0)
    assert first["silent_s"] == BEAT_S + GRACE_S == 12
    assert first["reading"]["spent"] == 54.1
    told = [bool(bench.after(READ_S)) for _ in range(6)]
    assert told == [False, True] * 3


@pytest.mark.parametrize(
    "changed",
    [{"state": "fallen", "reason": "rank 1 died"}, {"busy": True}, {"warning": "budget"}, {"left_s": 3000.0},
     {"idle_left_s": 1200.0}, {"stale_s": 9.0}, {"balance": 4000.0}, {"ceiling": 900.0}],
)  # fmt: skip
def test_changes(bench, changed):
    """What a page could not know by counting is told when it is read."""
    bench.after(0)
    assert bench.after(1) == []
    (news,) = bench.after(1, **changed)
    assert {name: news["reading"][name] for name in changed} == changed
    assert bench.after(1) == []


def test_countdown_kept(bench):
    """A countdown that begins anew is told; one that goes on is not."""
    bench.reading = replace(ON_SLURM, idle_limit_s=1200.0, idle_left_s=100.0)
    bench.after(0)
    assert bench.after(1) == []
    (news,) = bench.after(1, idle_left_s=1200.0)
    assert news["reading"]["idle_left_s"] == 1200.0


def test_alone(bench):
    """While no page is heard of the Jupyter server need not keep a beat every few seconds; one that comes is told."""
    bench.after(0)
    (news,) = bench.after(ATTENDED_S)
    assert news["silent_s"] == ALONE_BEAT_S + GRACE_S
    assert bench.after(BEAT_S) == []
    bench.meter.receive({"kind": "hello"})
    (news,) = bench.after(0)
    assert news["silent_s"] == BEAT_S + GRACE_S


def test_not_readable(bench):
    """Files that are not there for a moment end no meter."""
    bench.after(0)
    bench.reading = OSError("stale file handle")
    assert bench.after(READ_S) == []
    bench.reading = LaunchError("It is damaged.", "Look.")
    assert bench.after(READ_S) == []
    bench.reading = ON_SLURM
    assert len(bench.after(READ_S)) == 1


@pytest.mark.parametrize(("reason", "stays_s"), [("it was stopped", LINGERS_S), ("walltime reached", STAYS_S)])
def test_end(bench, reason, stays_s):
    """A session that is over is shown as such for a while: shortly, if it was stopped."""
    bench.after(0)
    (news,) = bench.after(1, state="ended", reason=reason, left_s=None)
    assert news["reading"]["state"] == "ended"
    bench.after(stays_s - 1)
    assert not bench.meter.closed
    bench.after(1)
    assert bench.meter.closed


def test_end_counts_no_more(bench):
    """What is over costs no more; what was known last stands, until accounting has spoken."""
    bench.after(0)
    (news,) = bench.after(1, state="ended", spent=None, rate_per_hour=None, unit="", idle_s=None, busy=True)
    assert (news["reading"]["spent"], news["reading"]["idle_s"]) == (54.1, 540.0)
    assert "busy" not in news["reading"]
    bench.reading = replace(ON_SLURM, state="ended", spent=70.0)
    (news,) = bench.after(BEAT_S)
    assert news["reading"]["spent"] == 54.1
    (news,) = bench.after(1, spent=55.0, confirmed=True)
    assert (news["reading"]["spent"], news["reading"]["confirmed"]) == (55.0, True)


@pytest.mark.parametrize(
    ("verb", "does", "says"),
    [("stop", "stop", "Stopped"), ("extend", "extend 1800", "Until 16:00."), ("keep", "keep", "Kept")],
)
def test_click(bench, verb, does, says):
    """A click is taken at once, done, and answered."""
    bench.meter.receive({"kind": "do", "id": "p-1", "verb": verb, "seconds": 1800})
    answer = bench.answer()
    assert bench.screen.sent[0] == {"kind": "taken", "id": "p-1", "verb": verb}
    assert answer["id"] == "p-1"
    assert answer["done"].startswith(says)
    assert bench.session.done == [does]


def test_refused(bench):
    """A refusal comes with its mend; what no button does is no click."""
    bench.session.refuses = LaunchError("Only an operator may.", "Ask your site.")
    bench.meter.receive({"kind": "do", "id": "p-1", "verb": "extend", "seconds": "many"})
    answer = bench.answer()
    assert (answer["refused"], answer["mend"]) == ("Only an operator may.", "Ask your site.")
    bench.session.refuses = OSError("no space left")
    bench.meter.receive({"kind": "do", "id": "p-2", "verb": "keep"})
    assert "no space left" in bench.answer(2)["refused"]
    bench.screen.sent.clear()
    bench.meter.receive({"kind": "do", "id": "p-3", "verb": "restart"})
    assert bench.after(0) == []
    assert bench.screen.of("taken") == []


@pytest.mark.parametrize(("seconds", "asked"), [(1800, 1800), (1e12, 30 * 86400), (1, 60), (None, 1800)])
def test_seconds_within_reason(bench, seconds, asked):
    """A page can ask for what a person could mean, and for nothing else."""
    bench.meter.receive({"kind": "do", "id": "p-1", "verb": "extend", "seconds": seconds})
    bench.answer()
    assert bench.session.done == [f"extend {asked}"]


def test_slow_verb(bench):
    """A batch system that takes its time does not stop the beat."""
    bench.session.waits.clear()
    bench.meter.receive({"kind": "do", "id": "p-1", "verb": "stop"})
    for _ in range(3):
        assert len(bench.after(BEAT_S)) == 1
    assert bench.screen.of("answer") == []
    bench.session.waits.set()
    assert bench.answer()["done"]


def test_thread():
    """A meter that has begun tells by itself; closed from a page or from here it takes its screen away."""
    screen = FakeScreen()
    one = Meter(lambda: LOCAL, FakeSession(), screen)
    one.begin()
    one.receive({"kind": "close"})
    one._thread.join(SOON_S)
    assert screen.closed
    assert one.closed
    other = Meter(lambda: LOCAL, FakeSession(), screen)
    other.begin()
    other.close()
    assert not other._thread.is_alive()


@pytest.fixture
def pages(monkeypatch):
    """A notebook that shows widgets; what was opened there."""
    opened = []

    class FakeWidget(FakeScreen):
        def __init__(self, name, code, place):
            super().__init__()
            self.name, self.code, self.place = name, code, place
            opened.append(self)

        def listen(self, receive):
            self.receive = receive

    def parsed(parser, line):
        words, rest = parser.split(line, lambda text, *_: text)
        return parser.parse(words), rest

    magics = SimpleNamespace(meter=True, held={}, parsed=parsed)
    shell = SimpleNamespace(magics_manager=SimpleNamespace(registry={"HpcMagics": magics}), user_ns={})
    monkeypatch.setattr(frontend, "shell", lambda: shell)
    monkeypatch.setattr(widgets, "can_be_shown", lambda: True)
    monkeypatch.setattr(widgets, "Unseen", FakeWidget)
    monkeypatch.setattr(readings, "reading", lambda session: replace(LOCAL, session=session.name))
    yield SimpleNamespace(opened=opened, magics=magics)
    meter.hide()


def test_one_a_session(pages):
    """A session has one meter, whoever comes back to it; the new one is there before the old one goes."""
    session, again = FakeSession(), FakeSession()
    meter.appear(session)
    meter.appear(session)
    assert [one.place for one in pages.opened] == ["waves"]
    meter.appear(again)
    assert [one.closed for one in pages.opened] == [True, False]
    meter.appear(FakeSession("bench"))
    assert meter._shown.keys() == {"waves", "bench"}
    meter.hide()
    assert all(one.closed for one in pages.opened)


def test_line(pages, capsys):
    """`%meter off` takes meters away and lets none come; `on` puts them into the pages anew; alone it shows and tells."""
    session = pages.magics.held["waves"] = FakeSession()
    meter.appear(session)
    meter_line.turn(pages.magics, "off")
    assert not pages.magics.meter
    assert pages.opened[0].closed
    meter.appear(session)
    assert len(pages.opened) == 1
    meter_line.turn(pages.magics, "")
    meter_line.turn(pages.magics, "")
    assert [one.closed for one in pages.opened] == [True, False]
    meter_line.turn(pages.magics, "on")
    assert [one.closed for one in pages.opened] == [True, True, False]
    assert capsys.readouterr().out.count("waves: ready, 4 ranks on this machine") == 3


def test_line_refuses(pages, capsys):
    """Words that it does not take are named; `-h` says which it takes; without a session nothing is paid."""
    with pytest.raises(ProfileError) as refused:
        meter_line.turn(pages.magics, "up")
    assert "'up'" in two_lines(refused).message
    meter_line.turn(pages.magics, "-h")
    assert "%meter off" in capsys.readouterr().out
    meter_line.turn(pages.magics, "")
    assert "no session" in capsys.readouterr().out
    assert "%meter off" in HpcMagics.turn_meter.__doc__


def test_comes_by_itself(laptop, monkeypatch):
    """Whoever starts a session or comes back to it gets its meter."""
    shown = []
    monkeypatch.setattr(meter, "appear", shown.append)
    held = laptop.cell(nodes=2)
    assert shown == [held]
    there = SimpleNamespace(
        half=False, require_here=lambda: None, ended=lambda: "", request=held.request, keeper=None
    )
    monkeypatch.setattr(start, "find_anywhere", lambda name, **_: there)
    start.attach("demo")
    assert shown == [held, there]


@pytest.fixture
def queued(desk, pages, monkeypatch):
    """A session whose job waits in the queue; the person before the notebook waits no more."""

    def gives_up(found, **_):
        raise LaunchError("Stopped waiting.", "Run the cell again.")

    monkeypatch.setattr(start, "wait_until_ready", gives_up)
    with pytest.raises(LaunchError):
        desk.cell(nodes=2, time="30")
    return SimpleNamespace(session=meter._shown["demo"].verbs, desk=desk)


def test_in_the_queue(queued, pages):
    """While its job waits a session has a meter as well: nothing is paid, and it can be taken out of the queue."""
    one = queued.session.read()
    assert (one.session, one.state, one.job, one.nodes, one.ranks) == ("demo", "pending", "1", 2, 2)
    assert "the nodes are busy" in one.reason
    assert not one.spent
    queued.desk.launcher.jobs["1"] = JobState("running", "RUNNING", elapsed_s=5.0, left_s=1795.0)
    queued.session._seen.look()
    assert queued.session.read().state == "starting"
    with pytest.raises(ProfileError) as not_yet:
        queued.session.keep()
    assert "not ready yet" in two_lines(not_yet).message
    queued.session.stop()
    assert queued.desk.alive == []
    assert queued.session.read().state == "ended"


def test_nobody_waits_any_more(queued, pages, capsys):
    """A job that is left in the queue stays in sight, and `%meter` tells of it."""
    meter_line.turn(pages.magics, "")
    assert "demo: pending, 2 ranks on 2 nodes, job 1" in capsys.readouterr().out
    ready = FakeSession("demo")
    meter.appear(ready)
    assert meter._shown["demo"].verbs is ready


def test_in_words():
    """The same facts as text: how it stands, what it costs, what was paid for nothing."""
    first, second, third = in_words(ON_SLURM).splitlines()
    assert first.startswith("waves: ready, 4 ranks on 2 nodes, job 66, 17 min 57 s left, until ")
    assert second == (
        "54.1 billing-minutes spent, 269 an hour, at most 749 by its walltime, account alice-lab has 4,200 left, "
        "budget of the session: 40 of 100 left"
    )
    assert third == "idle waste: 40.4 billing-minutes, 9 min (75%)"
    more = replace(ON_SLURM, price=0.02, currency="EUR", stale_s=60.0, idle_left_s=90.0, warning="Budget.")
    _, second, third, stale, warning = in_words(more).splitlines()
    assert second.startswith("54.1 billing-minutes (1.08 EUR) spent")
    assert third.endswith("ends in 1 min 30 s if no cell runs")
    assert stale.startswith("stale since ")
    assert warning == "Budget."


def test_in_words_at_its_ends():
    """A job that waits has cost nothing; one that is over says why, and whether accounting has confirmed its cost."""
    waits = Reading("waves", "pending", "Resources – the nodes are busy", "66", ranks=4, left_s=1800.0)
    assert in_words(waits) == "waves: pending, 4 ranks, job 66, 30 min left: Resources – the nodes are busy"
    over = replace(
        ON_SLURM, state="ended", reason="it was stopped", left_s=None, confirmed=True, balance=None, budget=None
    )
    first, second, _ = in_words(over).splitlines()
    assert first.endswith("for 12 min 3 s: it was stopped")
    assert second == "54.1 billing-minutes spent by accounting"


def test_page_code():
    """What runs in the page is one module, and asks for nothing elsewhere."""
    code = page_code()
    assert code.count("export default") == 1
    assert "import " not in code
    assert "http" not in code
    assert "innerHTML" not in code
