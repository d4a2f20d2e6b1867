"""The desk at rank 0: what waits is done at the next boundary, all is answered, nobody is waited for."""

import json
import resource
import stat
import threading
import time

import pytest

from hpcmagic.engine import desk as desks
from hpcmagic.engine.desk import QUIET, Batch, Desk
from hpcmagic.engine.params import Check
from hpcmagic.engine.patience import patience
from hpcmagic.engine.runs import SERIES_KEPT, WARNINGS_KEPT
from hpcmagic.engine.series import Series
from hpcmagic.ranges import declared
from hpcmagic.wire.looks import Command, Look


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A desk with a run that has two parameters."""
    monkeypatch.chdir(tmp_path)
    made = Desk()
    made.begin("cell")
    made.run.declare("a", Check(declared("a", 1.0, 0.0, 9.0)))
    made.run.declare("b", Check(declared("b", "x")))
    return made


def tell(desk, verb, number, **values):
    desk.accept(Command(verb, "me", values, number))


def look(desk, **what):
    return desk.news(Look(**{"wait_s": 0.0, **what}))


def outcomes(desk):
    """By command: its step, or why it was refused."""
    return {event.command: event.refused or event.step for event in look(desk, run=1).events}


def log(desk):
    from pathlib import Path

    lines = Path(desk.run.log.path).read_text().splitlines() if desk.run.log.path else []
    return [(line["step"], line["verb"], line["name"], line["old"], line["new"]) for line in map(json.loads, lines)]


def test_quiet(desk):
    """Where nobody wants anything a boundary is nothing."""
    assert desk.take(3) is QUIET
    assert look(desk).step == 3
    assert log(desk) == []


def test_changes(desk):
    """All that waits is done at one boundary, in order; the last one wins, and each is answered."""
    tell(desk, "set", 1, a=2)
    tell(desk, "set", 2, a=10)
    tell(desk, "set", 3, c=1)
    tell(desk, "set", 4, a=3.5, b="y")
    assert desk.has_commands()
    assert desk.take(7) == Batch((("a", 2.0), ("a", 3.5), ("b", "y")))
    news = look(desk)
    assert [event.command for event in news.events] == [1, 2, 3, 4]
    assert [bool(event.refused) for event in news.events] == [False, True, True, False]
    assert news.events[3].changes == (("a", 2.0, 3.5), ("b", "x", "y"))
    assert {event.step for event in news.events} == {7}
    assert {name: param.value for name, param in news.params.items()} == {"a": 3.5, "b": "y"}
    assert news.params["a"].default == 1.0
    assert log(desk) == [(7, "set", "a", 1.0, 2.0), (7, "set", "a", 2.0, 3.5), (7, "set", "b", "x", "y")]
    assert desk.take(8) is QUIET


def test_pause_step_resume(desk):
    """Paused stays paused but for a step, a resume, a stop; what is behind a step waits for the next boundary."""
    tell(desk, "pause", 1)
    assert desk.take(3).paused
    assert desk.take(3).paused
    tell(desk, "set", 2, a=2)
    assert desk.take(3) == Batch((("a", 2.0),), paused=True)
    tell(desk, "set", 3, a=99)
    assert desk.take(3) == Batch(paused=True)
    tell(desk, "step", 4)
    tell(desk, "step", 5)
    tell(desk, "set", 6, a=4)
    assert desk.take(3) == Batch()
    assert desk.has_commands()
    assert desk.take(4) == Batch()
    assert desk.take(5) == Batch((("a", 4.0),), paused=True)
    assert look(desk).paused
    tell(desk, "resume", 7)
    assert desk.take(5) == Batch()
    assert desk.take(6) is QUIET
    assert outcomes(desk) == {1: 3, 2: 3, 3: outcomes(desk)[3], 4: 3, 5: 4, 6: 5, 7: 5}
    tell(desk, "step", 8)  # while it runs: one more, then paused
    assert desk.take(7) == Batch()
    assert desk.take(8).paused


def test_stop(desk):
    """Stop ends it; what came behind it is refused when the run ends."""
    tell(desk, "pause", 1)
    tell(desk, "stop", 2)
    tell(desk, "set", 3, a=5)
    assert desk.take(9) == Batch((), stop=True)
    desk.end("it was stopped")
    tell(desk, "resume", 4)
    assert outcomes(desk) == {
        1: 9,
        2: 9,
        3: "the simulation is over: it was stopped",
        4: "the simulation is over: it was stopped",
    }
    assert log(desk) == [(9, "stop", "", None, None)]
    desk.end("something else")
    assert look(desk).over == "it was stopped"


def test_begun_anew(desk):
    """What waits for a run that another replaces is refused; the new one begins with its defaults, not paused."""
    tell(desk, "set", 1, a=2)
    desk.take(0)
    tell(desk, "pause", 2)
    desk.begin()
    assert outcomes(desk)[2] == "the simulation was started anew meanwhile"
    news = look(desk, run=1, params=3)
    assert (news.run, news.params, news.step, news.paused) == (2, {}, 0, False)
    assert desk.take(0) is QUIET
    before = Desk()
    tell(before, "pause", 3)
    assert outcomes(before) == {3: "no simulation has come alive yet"}


def test_too_many(desk, monkeypatch):
    """Commands, events, series and warnings are bounded; each command is answered still."""
    monkeypatch.setattr(desks, "COMMANDS_KEPT", 3)
    for number in range(1, 6):
        tell(desk, "set", number, a=number)
    assert len(desk.take(0).changes) == 3
    assert [number for number, told in outcomes(desk).items() if told == "too many commands wait already"] == [4, 5]
    tell(desk, "dance", 9)
    assert outcomes(desk)[9] == "there is no dance"
    for number in range(2 * SERIES_KEPT):
        desk.run.publish(0, {f"s{number}": 1})
    assert len(desk.run.series) == SERIES_KEPT
    for number in range(2 * WARNINGS_KEPT):
        desk.run.warn(f"{number}")
    assert len(desk.run.warnings) == WARNINGS_KEPT


def test_events_missed(desk, monkeypatch):
    """One who comes late is told how many events he has missed."""
    from collections import deque

    desk._events = deque(maxlen=5)
    for number in range(1, 9):
        tell(desk, "set", number, a=number)
    desk.take(0)
    for run in (0, 1):
        news = look(desk, run=run)
        assert [event.number for event in news.events] == [4, 5, 6, 7, 8]
        assert news.missed_events == 3
    monkeypatch.setattr(desks, "EVENTS_AT_FIRST", 2)
    assert [event.number for event in look(desk).events] == [7, 8]
    desk.begin()
    news = look(desk)
    assert (news.events, news.missed_events) == ((), 8)  # of runs before, to one who has just come
    assert look(desk, run=1, events=6).missed_events == 0
    assert [event.number for event in look(desk, run=1, events=6).events] == [7, 8]


def test_interrupted_check(desk):
    """A check that an interrupt ends leaves no command without an answer."""

    def check(_):
        assert not patience.holds()
        raise KeyboardInterrupt

    desk.run.declare("c", Check(declared("c", 0), check))
    tell(desk, "set", 1, c=1)
    with pytest.raises(KeyboardInterrupt), patience:
        desk.take(0)
    desk.end("it was interrupted")
    assert outcomes(desk) == {1: "the simulation was interrupted meanwhile"}


def test_replayed(desk):
    """A log that is applied again makes its changes first, and is written down again; no name is a stop."""
    tell(desk, "set", 1, a=3)
    assert desk.take(4, [("a", 2.0, ""), ("zz", 7, "")]) == Batch((("a", 2.0), ("zz", 7), ("a", 3.0)))
    assert desk.take(5, [("", None, "")]).stop
    assert [(event.command, event.user, event.verb) for event in look(desk).events] == [
        (0, "replay", "set"),
        (1, "me", "set"),
        (0, "replay", "stop"),
    ]
    assert [line[2:] for line in log(desk)] == [
        ("a", 1.0, 2.0),
        ("zz", None, 7),
        ("a", 2.0, 3.0),
        ("", None, None),
    ]


# ---- the log


def test_log_is_private(desk, tmp_path):
    """A log lies in the directory of the run, for its owner alone, each run with its own."""
    for number in range(3):
        tell(desk, "set", number + 1, a=number)
        desk.take(number)
        assert stat.S_IMODE((tmp_path / desk.run.log.path).stat().st_mode) == 0o600
        desk.end("")
        desk.begin()
        desk.run.declare("a", Check(declared("a", 1.0)))
    assert len(list(tmp_path.glob("steering-*.jsonl"))) == 3


def test_log_without_holes(desk, tmp_path):
    """When a disk takes nothing the changes are made all the same; once it does again, the log is whole."""
    tell(desk, "set", 1, a=2)
    desk.take(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / desk.run.log.path).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
    try:
        tell(desk, "set", 2, a=3)
        assert desk.take(2) == Batch((("a", 3.0),))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert look(desk).warnings == ("the steering log cannot be written: File too large",)
    assert outcomes(desk)[2] == 2
    assert len(log(desk)) == 1  # and no half line
    tell(desk, "set", 3, a=4)
    desk.take(3)
    assert [line[0] for line in log(desk)] == [1, 2, 3]


def test_log_written_at_the_end(desk, tmp_path, monkeypatch):
    """What could not be written is tried once more when the run ends."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    tell(desk, "set", 1, a=2)
    desk.take(1)
    assert look(desk).warnings == ("the steering log cannot be written: No such file or directory",)
    monkeypatch.chdir(tmp_path)
    desk.end("it came to its end")
    assert [line[0] for line in log(desk)] == [1]


# ---- numbers and readers


class Number:
    def __init__(self, error):
        self.error = error

    def __float__(self):
        raise self.error


@pytest.mark.parametrize(
    "value", ["1", b"1", None, 1j, [1.0], 10**400, Number(OSError("x")), Number(ZeroDivisionError()), object]
)
def test_no_number(desk, value):
    """What is no number is told of, once, and never raised."""
    for _ in range(2):
        desk.run.publish(0, {"odd": value, "good": 1})
    assert desk.run.warnings == [f"odd was not published: {type(value).__name__} is no number"]
    assert set(desk.run.series) == {"good"}
    assert list(desk.run.series["good"].since(0, 0).values) == [1.0, 1.0]


def test_never_waits_for_readers(desk):
    """Numbers are published and boundaries passed while whoever reads holds the desk for ever."""
    done = threading.Event()

    def simulate():
        for step in range(1000):
            desk.take(step)
            desk.run.publish(step, {"a": 1.0, f"b{step % 7}": 2.0})
        done.set()

    with desk._changed:
        thread = threading.Thread(target=simulate)
        thread.start()
        assert done.wait(20)
    thread.join()


def test_readers_meanwhile(desk, monkeypatch):
    """What is read while it is written to fits together."""
    stop = threading.Event()

    def simulate():
        step = 0
        while not stop.is_set():
            for _ in range(100):
                desk.run.publish(step, {"n": float(step), f"m{step % 400}": 1.0})
                step += 1

    thread = threading.Thread(target=simulate)
    thread.start()
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            for curve in look(desk).series.values():
                assert len(curve.steps) == len(curve.values)
    finally:
        stop.set()
        thread.join()
    curve = desk.run.series["n"].since(0, 0)
    assert list(map(float, curve.steps)) == list(curve.values)


def test_news_when_there_are_any(desk):
    """A look is answered as soon as there is an event, or it is poked; else when its time is up."""
    for cause in (lambda: desk.poke("me"), lambda: (tell(desk, "pause", 1), desk.take(0))):
        known = look(desk, name="me")
        answers = []
        waiting = Look(
            run=1, events=0, params=known.params_version, wait_s=60.0, hz=0.1, name="me", pokes=known.pokes
        )
        thread = threading.Thread(target=lambda w=waiting, a=answers: a.append(desk.news(w)))
        thread.start()
        time.sleep(0.05)
        assert answers == []
        cause()
        thread.join(20)
        assert answers[0].pokes == known.pokes or answers[0].pokes == known.pokes + 1
        assert answers[0].params == {}  # as they were


def test_pokes_are_bounded(desk, monkeypatch):
    """Names of those who have gone are not kept for ever."""
    for number in range(5000):
        desk.poke(f"{number}")
    assert len(desk._pokes) <= desks.POKED_KEPT + 1


def test_wanted(desk, monkeypatch):
    """Each field that somebody looks at is wanted, as finely and often as anybody wants it, while somebody looks."""
    now = 100.0
    monkeypatch.setattr(desks.time, "monotonic", lambda: now)
    desk.run.fields.update(f=(), g=())
    for reader, (name, pixels, hz) in enumerate([("f", 100, 1), ("f", 50, 5e9), ("g", -3, 0.0), ("no", 9, 9)]):
        desk.news(Look(field=name, pixels=pixels, hz=hz, wait_s=0.0), reader)
    wanted = {one.name: (one.pixels, one.hz) for one in desk.wanted()}
    assert wanted == {"f": (100, 100.0), "g": (1, 0.1)}
    desk.news(Look(wait_s=0.0), 2)
    assert {one.name for one in desk.wanted()} == {"f"}
    now = 200.0
    assert desk.wanted() == []
    assert desk._wanted == {}


def test_odd_picture_is_told_of(desk, monkeypatch):
    """A field that cannot be put together does not cut off who looks at other things."""
    from hpcmagic.engine.fields import Collect, Part

    desk.run.fields["f"] = (2, 2)
    desk.run.pictures["f"] = Collect(1, "f", 1), {0: Part(1, ((0, 2), (0, 2)), 0, (2, 2), 0.0, 1.0, b"short")}
    news = look(desk, field="f")
    assert news.picture is None
    assert look(desk).warnings[0].startswith("the field f is not shown: ValueError")


def test_series_is_cheap():
    """A number costs a few microseconds at most."""
    series, began_s = Series(), time.process_time()
    for step in range(20_000):
        series.add(step, 1.0)
    assert time.process_time() - began_s < 0.2
