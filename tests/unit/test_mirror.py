"""The notebook's mirror against a real desk over a sealed channel: what is there is here, and what is cut is told."""

import socket
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

from hpcmagic.engine.desk import Desk
from hpcmagic.engine.fields import Collect, part_of
from hpcmagic.engine.params import Check
from hpcmagic.errors import ChannelError, HpcMagicError
from hpcmagic.notebook import mirror as mirrors
from hpcmagic.notebook.mirror import Mirror
from hpcmagic.notebook.simulation import Applied, _leader, as_text, event_in_words, news_of
from hpcmagic.ranges import declared, plain
from hpcmagic.wire.bulk import Channel, Invitation
from hpcmagic.wire.looks import Command, Poke, Pulse, send
from hpcmagic.wire.moving import run_one

SESSION = "a keeper's public key"


class Watched:
    """A desk, its readers, and a mirror of it."""

    def __init__(self):
        self.desk = Desk()
        self.desk.begin("cell")
        self.desk.run.declare("a", Check(declared("a", 1.0, 0.0, 9.0)))
        self.threads, self.ends = [], []
        self.mirror = Mirror(self.connection(), self.connection())
        assert self.mirror.wait(lambda: self.mirror.newest, 20)

    def connection(self):
        ours, theirs = socket.socketpair()
        invitation = Invitation.fresh()
        end = Channel(theirs, invitation, SESSION, at_rank=True)
        thread = threading.Thread(target=self.desk.serve, args=(end, Channel.close))
        thread.start()
        self.threads.append(thread)
        self.ends.append(end)
        return Channel(ours, invitation, SESSION, at_rank=False)

    def boundary(self, step):
        """Pass one, and let the mirror know all that is."""
        batch = self.desk.take(step)
        self.mirror.refresh(20)
        return batch

    def close(self):
        self.mirror.close()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Steering logs come into a directory of the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def watched():
    made = Watched()
    yield made
    made.close()


def test_refreshed(watched):
    """What was there when it was asked for is here when it is answered, however little else happens."""
    for step in range(30):
        watched.desk.run.publish(step, {"n": step})
        watched.desk.take(step)
        watched.mirror.refresh(20)
        assert news_of(watched.mirror).step == step
        assert list(watched.mirror.curves["n"].values) == list(map(float, range(step + 1)))


def test_commands(watched):
    """A command is sent, and what becomes of it is known by its number; parameters are as they are."""
    mirror = watched.mirror
    numbers = [mirror.tell(Command("set", "me", {"a": value})) for value in (2, 99)]
    assert len(set(numbers)) == 2
    watched.mirror.refresh(20)
    assert mirror.outcome(numbers[0]) is None
    assert watched.boundary(5).changes == (("a", 2.0),)
    taken, refused = map(mirror.outcome, numbers)
    assert (taken.step, taken.refused, taken.changes) == (5, "", (("a", 1.0, 2.0),))
    assert "above its greatest value" in refused.refused
    assert news_of(mirror).params["a"].value == 2.0
    watched.boundary(6)
    assert news_of(mirror).params["a"].value == 2.0  # not told again, and known still
    assert [event.command for event in mirror.events] == numbers
    assert mirror.wait(lambda: mirror.outcome(numbers[0]), 0.0)
    assert not mirror.wait(lambda: mirror.outcome(1), 0.0)


def test_pictures(watched):
    """A field that is wanted comes here, and only what is new of it."""
    run, array = watched.desk.run, np.arange(12.0).reshape(3, 4)
    run.fields["f"] = (3, 4)
    watched.mirror.want("f", 10, 100.0)
    for frame in (1, 2):
        collect = Collect(frame, "f", 1)
        run.pictures["f"] = collect, {0: part_of(collect, array * frame, ((0, 3), (0, 4)), frame)}
        there = watched.mirror.pictures
        assert watched.mirror.wait(lambda f=frame, there=there: "f" in there and there["f"].frame == f, 20)
        assert np.allclose(there["f"].as_array(), array * frame, atol=0.1)
    assert watched.desk.wanted()[0].pixels == 10
    watched.mirror.want("", 10, 100.0)
    watched.mirror.refresh(20)
    watched.mirror.refresh(20)
    assert watched.desk.wanted() == []


def test_another_run(watched):
    """With another run curves, pictures and events begin anew; what became of older commands is known still."""
    old = watched.mirror.tell(Command("set", "me", {"a": 2}))
    watched.desk.run.publish(0, {"n": 1.0})
    watched.mirror.refresh(20)
    assert watched.boundary(0).changes
    assert set(watched.mirror.curves) == {"n"}
    waits = watched.mirror.tell(Command("pause", "me"))
    watched.mirror.refresh(20)
    watched.desk.begin("next")
    watched.mirror.refresh(20)
    news = news_of(watched.mirror)
    assert (news.run, news.cell, news.params) == (2, "next", {})
    assert (watched.mirror.curves, watched.mirror.events) == ({}, [])
    watched.mirror.refresh(20)
    assert watched.mirror.outcome(old).step == 0
    assert "started anew" in watched.mirror.outcome(waits).refused
    watched.desk.run.publish(0, {"m": 1.0})
    watched.mirror.refresh(20)
    assert set(watched.mirror.curves) == {"m"}


def test_pulses_are_kept(watched):
    """How the ranks get on is told now and then, and known between."""
    watched.desk.run.pulses[3] = Pulse(1, 0.5, 0.0, 0.0)
    assert watched.mirror.wait(lambda: 3 in news_of(watched.mirror).pulses, 20)
    for _ in range(3):
        watched.mirror.refresh(20)
        assert news_of(watched.mirror).pulses[3].step_s == 0.5


def test_cut(watched):
    """Whoever waits when the connection is cut is told, and so is who comes later."""
    seen = []
    watched.mirror.watchers.append(lambda: seen.append(watched.mirror.lost))
    watched.ends[0].hang_up()
    assert watched.mirror.wait(lambda: False, 20)
    assert isinstance(watched.mirror.lost, ChannelError)
    with pytest.raises(ChannelError):
        watched.mirror.tell(Command("pause", "me"))
    watched.mirror._thread.join(20)
    assert seen[-1] is watched.mirror.lost


def test_news_that_cannot_be_read(watched, monkeypatch):
    """News that this Python cannot load are told of, rather than waited for without end."""
    monkeypatch.setattr(watched.mirror, "_take", lambda _: {}["numpy"])
    assert watched.mirror.wait(lambda: False, 20)
    assert "News of the simulation cannot be read here: 'numpy'." in watched.mirror.lost.message


def test_interrupted_while_it_tells(watched, monkeypatch):
    """Ctrl-C in the middle of a command leaves no half of it for the next one to stumble over: the line is cut."""

    def halfway(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mirrors, "run_one", halfway)
        with pytest.raises(KeyboardInterrupt):
            watched.mirror.tell(Command("pause", "me"))
    assert watched.mirror.wait(lambda: False, 20)
    with pytest.raises(HpcMagicError):
        watched.mirror.tell(Command("pause", "me"))
    assert not watched.desk.has_commands()


def test_watcher_that_raises(watched):
    """A watcher that raises is not called again; others are."""
    good, bad = [], []
    watched.mirror.watchers += [lambda: bad.append(1) or {}["x"], lambda: good.append(1)]
    watched.mirror.refresh(20)
    watched.mirror.refresh(20)
    assert watched.mirror.wait(lambda: len(good) > 2, 20)
    assert len(bad) == 1


def test_idle(monkeypatch):
    """When nobody has looked for a while the mirror lets go."""
    monkeypatch.setattr(mirrors, "IDLE_S", 0.3)
    watched = Watched()
    assert watched.mirror.wait(lambda: False, 20)
    assert "Nobody has looked" in watched.mirror.lost.message
    watched.close()


def test_reader_that_sends_rubbish(watched):
    """Whoever says what the desk does not know is let go, or not listened to; others are served."""
    channel = watched.connection()
    run_one(channel, send(channel, 0, "rubbish"))
    run_one(channel, send(channel, 1, Poke("nobody")))
    with suppress(HpcMagicError):  # it may be cut before all has left
        run_one(channel, send(channel, 5, Poke("out of turn")))
    watched.threads[-1].join(20)
    channel.close()
    watched.mirror.refresh(20)
    assert watched.mirror.lost is None


def test_in_words(watched):
    """How a simulation stands, in a few lines."""
    watched.desk.run.steps = 100
    watched.desk.run.fields["T"] = ()
    watched.desk.run.publish(3, {"energy": 0.125})
    watched.desk.run.warn("something odd")
    watched.desk.run.pulses[0] = Pulse(3, 0.01, 0.0, 0.0)
    watched.mirror.tell(Command("set", "me@here:1", {"a": 2}))
    watched.mirror.tell(Command("set", "me@here:1", {"a": "b"}))
    watched.mirror.refresh(20)
    watched.boundary(4)
    assert watched.mirror.wait(lambda: news_of(watched.mirror).pulses, 20)
    text = as_text(news_of(watched.mirror), watched.mirror)
    assert text.splitlines() == [
        "Simulation running, step 4 of 100, 100 steps/s",
        "  a = 2.0  [0, 9]  (default 1.0)",
        "  energy: 0.125 at step 3",
        "  fields: T",
        "  a: 1.0 → 2.0 applied at step 4 (me@here:1)",
        "  me@here:1: set refused: a takes a number, not 'b'",
        "  ! something odd",
    ]
    watched.desk.end("it came to its end")
    watched.mirror.refresh(20)
    assert as_text(news_of(watched.mirror), watched.mirror).startswith("Simulation over: it came to its end, step 4")
    assert str(Applied(7)) == "applied at step 7"
    assert event_in_words(watched.mirror.events[0]).startswith("a: 1.0 → 2.0")


def test_leader():
    """Who answers for the newest simulation: the first that leads one alive, else of the newest cell that had one."""

    def told(alive, cell, began, run=1):
        return {"alive": alive, "cell": cell, "began": began, "run": run}

    none = told(alive=False, cell="", began=99.0, run=0)
    assert _leader({}) is None
    assert _leader({0: none, 1: none}) is None
    assert _leader({0: told(False, "x", 1.0), 2: told(True, "y", 0.5)}) == 2
    assert _leader({0: told(False, "x", 1.0), 2: told(False, "y", 2.0), 3: none}) == 2
    assert _leader({1: told(False, "x", 1.2), 0: told(False, "x", 1.0)}) == 0  # without MPI each has one


def test_plain():
    """Numbers of NumPy's become Python's; what is none stays."""
    for value in (np.float64(1.5), np.float32(1.5), np.array(1.5), np.array([1.5])):
        assert (type(plain(value)), plain(value)) == (float, 1.5)
    many = np.ones(3)
    assert plain(many) is many
    assert plain(None) is None
    assert time is plain(time)
