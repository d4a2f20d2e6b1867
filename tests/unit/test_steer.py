"""The same simulation where nobody can watch it: it runs, costs nothing, and applies a log again."""

import json
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from two_lines import two_lines

from hpcmagic import steer
from hpcmagic.engine import communicators, steering
from hpcmagic.engine.desk import Batch, Desk
from hpcmagic.engine.fields import Part
from hpcmagic.engine.live import Live
from hpcmagic.engine.words import Words, loaded
from hpcmagic.errors import SteerError


def line(step, name="dt", new=2.0, verb="set", **more):
    return json.dumps({"step": step, "verb": verb, "name": name, "old": 1.0, "new": new, "user": "me", **more})


@pytest.fixture(autouse=True)
def nothing_left_to_replay():
    """A log that a test did not use is not the next one's."""
    yield
    steer._replayed.clear()


@pytest.fixture
def log(tmp_path):
    """Write a log."""

    def write(*lines):
        file = tmp_path / "steering-1.jsonl"
        file.write_text("".join(f"{one}\n" for one in lines))
        return file

    return write


def values(live, steps=6):
    """What a simulation sees."""
    return [(step, live.param("dt", 1.0), live.param("n", np.int64(3))) for step in live.steps(steps)]


def in_session():
    """A simulation as in a session, of one rank."""
    return Live(Words(None, 0), Desk(), steer._replayed.pop() if steer._replayed else {}, 0.01)


BOTH = pytest.mark.parametrize("make", [steer.live, in_session], ids=["alone", "in a session"])


@BOTH
def test_defaults(make):
    """Parameters are their defaults; numbers and fields go nowhere, whatever they are."""
    live = make()
    assert values(live) == [(step, 1.0, 3) for step in range(6)]
    live.publish(energy="no number")
    live.field("T", "no field")


@BOTH
@pytest.mark.parametrize("kind", [int, np.int32, range, lambda n: iter(range(n)), np.arange])
def test_steps(make, kind):
    """Steps are a number of them, or whatever can be gone through."""
    assert list(make().steps(kind(5))) == [0, 1, 2, 3, 4]


@BOTH
def test_one_loop(make):
    """A simulation is gone through once, in a session and outside alike."""
    live = make()
    assert list(live.steps(2)) == [0, 1]
    with pytest.raises(SteerError) as caught:
        list(live.steps(2))
    assert two_lines(caught).message == "This simulation is over."


@BOTH
@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        (("time step", 1), "A parameter is called 'time step'."),
        (("dt", None), "The parameter 'dt' holds a NoneType."),
        (("dt", 1, {"min": "a"}), "The parameter 'dt' has the range 'a' to None."),
        (
            ("dt", 2, {"max": 1}),
            "The default of a parameter is outside its range: dt = 2 is above its greatest value, 1.",
        ),
    ],
)
def test_not_declared(make, declaration, said):
    """A parameter that a session would refuse is refused outside of it too, when it is declared."""
    name, default, *bounds = declaration
    live = make()
    with pytest.raises(SteerError) as caught:
        live.param(name, default, **dict(*bounds))
    assert two_lines(caught).message == said


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan"), "1", None])
def test_no_share(share):
    """A part of the time that is none is refused, before anybody divides by it."""
    with pytest.raises(SteerError) as caught:
        steer.live(share=share)
    two_lines(caught)


@pytest.mark.parametrize(
    ("steps", "count"), [(7, 7), (range(500, 1000), 1000), (range(9, 0, -1), 10), (0, 0), (iter([1]), 0)]
)
def test_how_many_steps(steps, count):
    """The number of steps in all is that of the last, also of a run that goes on from a checkpoint."""
    live = in_session()
    list(live.steps(steps))
    assert live._run.steps == count


@pytest.mark.parametrize("name", [3, None, ("a", 1)])
def test_field_of_odd_name(name):
    """A field has a text as its name, or those who watch could not be told of it."""
    live = in_session()
    live.field(name, np.ones(3))
    assert list(live._run.fields) == [str(name)]


@BOTH
@pytest.mark.parametrize("steps", [[0.5], ["a"], [None]])
def test_odd_steps(make, steps):
    """Steps that are no whole numbers are refused where they are told to others."""
    live = make()
    if make is steer.live:
        assert list(live.steps(steps)) == steps
    else:
        with pytest.raises(SteerError) as caught:
            list(live.steps(steps))
        assert two_lines(caught).message == f"A step is {steps[0]!r}."


@BOTH
def test_replay(make, log, tmp_path, monkeypatch):
    """A log's changes are made again at their steps, by the next simulation only; a stop ends it."""
    monkeypatch.chdir(tmp_path)
    file = log(line(2), line(3, new=5.0), " ", line(3, "n", 7), line(5, "", None, "stop"), "")
    steer.replay(file)
    assert values(make(), 100) == [(0, 1.0, 3), (1, 1.0, 3), (2, 2.0, 3), (3, 5.0, 7), (4, 5.0, 7)]
    assert values(make(), 2) == [(0, 1.0, 3), (1, 1.0, 3)]


MALFORMED = {
    "no JSON": "step 3",
    "cut short": line(3)[:-5],
    "a list": "[1, 2]",
    "a number": "7",
    "nothing of it": "{}",
    "a text as step": line("3"),
    "half a step": line(0.5),
    "a true step": line(True),
    "another verb": line(3, verb="pause"),
    "set without a name": line(3, ""),
    "stop with a name": line(3, verb="stop"),
    "a list as value": line(3, new=[1]),
    "no value": line(3, new=None),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_malformed_log(log, text):
    """A file that is no log, or damaged, is refused at once; nothing of it is applied."""
    with pytest.raises(SteerError) as caught:
        steer.replay(log(line(1), text))
    assert "is no steering log, or is damaged" in two_lines(caught).message
    assert values(steer.live(), 2) == [(0, 1.0, 3), (1, 1.0, 3)]


@BOTH
@pytest.mark.parametrize(
    ("new", "said"),
    [
        (20.0, "dt = 20.0 is above its greatest value, 10.0"),
        (-1, "dt = -1.0 is below its least value, 0.0"),
        ("fast", "dt takes a number, not 'fast'"),
        (float("inf"), "dt takes a finite number, not inf"),
    ],
)
def test_log_that_does_not_fit(make, log, new, said):
    """A log that sets a parameter to what it does not take is refused as it is declared, with file and line."""
    file = log(line(1), line(2, "other", "x"), line(3, new=new))
    steer.replay(file)
    live = make()
    with pytest.raises(SteerError) as caught:
        live.param("dt", 1.0, min=0.0, max=10.0)
    assert two_lines(caught).message == f"The steering log does not fit this simulation: {file}, line 3: {said}."


@BOTH
@pytest.mark.parametrize(
    ("default", "new", "said"),
    [
        (3, 4.0, ""),
        (3, 4.5, "p takes a whole number, not 4.5"),
        (3, float("inf"), "p takes a whole number, not inf"),
        (3, True, "p takes a whole number, not True"),
        (np.float32(0.5), 1, ""),
        (True, False, ""),
        (True, 1, "p takes True or False, not 1"),
        ("up", "down", ""),
        ("up", 1, "p takes a text, not 1"),
    ],
)
def test_log_of_other_types(make, log, default, new, said):
    """What a log may set a parameter to is the same in a session and outside."""
    steer.replay(log(line(0, "p", new)))
    live = make()
    if said:
        with pytest.raises(SteerError, match=said):
            live.param("p", default)
    else:
        (taken,) = [live.param("p", default) for _ in live.steps(1)]
        assert (type(taken), taken) == (type(getattr(default, "item", lambda: default)()), new)


def test_log_of_another_simulation(log):
    """A log that sets what is no parameter is told of, in a session and outside; what was not come to is not."""
    lines = [line(1), line(2, "dtt"), line(90, "later")]
    steer.replay(log(*lines))
    with pytest.warns(UserWarning, match=r"the steering log sets dtt, which is no parameter .*, line 2\)") as told:
        values(steer.live())
    assert len(told) == 1
    steer.replay(log(*lines))
    live = in_session()
    values(live)
    assert [text.partition(",")[0] for text in live._run.warnings] == ["the steering log sets dtt"]


def test_damaged_line_named(log):
    """Of a log that is damaged the line is named."""
    with pytest.raises(SteerError, match="line 2: ") as caught:
        steer.replay(log(line(1), "{"))
    two_lines(caught)


@BOTH
@pytest.mark.parametrize("steps", [2.5, None, 1j])
def test_number_of_steps(make, steps):
    """What is neither a whole number nor an iterable of some is no number of steps."""
    live = make()
    with pytest.raises(SteerError) as caught:
        list(live.steps(steps))
    assert two_lines(caught).message == f"The number of steps is {steps!r}."


@pytest.mark.parametrize("comm", ["abc", 5, [0, 1], object()])
def test_no_communicator(comm):
    """What is no communicator is refused, in a session and outside alike."""
    with pytest.raises(SteerError) as caught:
        steer.live(comm)
    assert type(comm).__name__ in two_lines(caught).message


def test_log_that_cannot_be_read(tmp_path):
    """So is one that is not there."""
    for file, said in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(SteerError) as caught:
            steer.replay(file)
        assert two_lines(caught).message == f"The steering log {file} cannot be read: {said}."
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SteerError) as caught:
        steer.replay(tmp_path / "binary")
    two_lines(caught)


def test_alone_costs_nothing():
    """Where nobody can watch, a step's calls cost next to nothing, and nothing of a session is loaded."""
    live, array = steer.live(), np.ones(4)
    began_s = time.process_time()
    for _ in live.steps(20_000):
        live.param("dt", 1e-3, min=0.0, max=1.0)
        live.publish(energy=1.0)
        live.field("T", array, box=((0, 4),))
    assert (time.process_time() - began_s) / 20_000 < 20e-6  # benchmarks/steer_alone.py measures it
    code = "import sys\nfrom hpcmagic import steer\nsteer.live().steps(1)\n"
    code += (
        "print(*[name for name in sys.modules if 'hpcmagic.engine' in name or 'numpy' in name or 'mpi4py' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_child_of_a_rank(monkeypatch):
    """A process that a rank has forked is no rank: its simulation is its own."""
    monkeypatch.setattr(steering, "_here", None)
    made = steering.Steering(None)
    assert steering.here() is made
    monkeypatch.setattr(steering.os, "getpid", lambda: made.pid + 1)
    assert steering.here() is None
    assert type(steer.live()) is steer._Alone


def test_steering(monkeypatch):
    """One simulation at a time; a second one inside the first's loop is refused, and the first goes on."""
    monkeypatch.setattr(steering, "_here", None)
    made = steering.Steering(None)
    assert made.watch({}) | {"began": 0} == {
        "status": "ok",
        "run": 0,
        "size": 0,
        "alive": False,
        "cell": "",
        "began": 0,
        "step": 0,
        "steps": 0,
        "paused": False,
    }
    made.cell = "one"
    first = steer.live()
    steps = first.steps(10)
    assert next(steps) == 0
    with pytest.raises(SteerError) as caught:
        steer.live()
    assert two_lines(caught).message == "A simulation is live already in this cell."
    again = first.steps(10)
    with pytest.raises(SteerError, match="gone through already"):
        next(again)
    assert next(steps) == 1
    assert made.watch({}) | {"began": 0} == {
        "status": "ok",
        "run": 1,
        "size": 1,
        "alive": True,
        "cell": "one",
        "began": 0,
        "step": 1,
        "steps": 10,
        "paused": False,
    }
    made.cell_over(failed=False)
    assert not made.watch({})["alive"]
    assert made.desk.run.over == "the ranks have left the loop"
    waiting = steer.live()
    made.cell_over(failed=False)
    assert made.watch({})["alive"]  # its loop may be in the next cell
    other = steer.live()
    with pytest.raises(SteerError, match="This simulation is over"):
        next(waiting.steps(1))
    assert list(other.steps(3)) == [0, 1, 2]
    assert made.desk.run.number == 3
    never = steer.live()
    made.cell_over(failed=True)
    assert not made.watch({})["alive"]
    with pytest.raises(SteerError, match="This simulation is over"):
        next(never.steps(1))


def test_how_it_ended(monkeypatch):
    """What a run's end is put down to."""
    for ended, why in (
        (list, "it came to its end"),
        (lambda steps: (next(steps), steps.close()), "the ranks have left the loop"),
    ):
        desk = Desk()
        ended(Live(Words(None, 0), desk, {}, 0.01).steps(3))
        assert desk.run.over == why
    desk = Desk()
    with pytest.raises(KeyboardInterrupt):
        list(Live(Words(None, 0), desk, {}, 0.01).steps(interrupted()))
    assert desk.run.over == "it was interrupted"


def interrupted():
    yield 0
    raise KeyboardInterrupt


class Pending:
    """A collective call of MPI's that is not through before it has been asked a few times."""

    def __init__(self, asked=3, interrupt=False):
        self.left, self.interrupt = asked, interrupt

    def Test(self):  # noqa: N802  # mpi4py's name
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        self.left -= 1
        return self.left < 0


class Comm:
    """A communicator that counts what is made of it."""

    rank, size = 1, 2

    def __init__(self):
        self.kept, self.made, self.interrupt = {}, 0, False

    def Get_attr(self, key):  # noqa: N802  # mpi4py's name
        return self.kept.get(key)

    def Set_attr(self, key, value):  # noqa: N802  # mpi4py's name
        self.kept[key] = value

    def Idup(self):  # noqa: N802  # mpi4py's name
        self.made += 1
        pending, self.interrupt = Pending(interrupt=self.interrupt), False
        return Comm(), pending

    def Iallreduce(self, own, least, _op):  # noqa: N802  # mpi4py's name
        least[0] = own[0]
        return Pending()


def test_only_words_are_loaded():
    """A pickle that another rank may have forged makes our messages, and calls nothing else."""
    part = Part(1, ((0, 2),), 7, (1, 2), 0.0, 1.0, b"ab")
    assert loaded(bytearray(pickle.dumps((3, part)))) == (3, part)
    assert loaded(bytearray(pickle.dumps(Batch((("dt", 0.5),))))) == Batch((("dt", 0.5),))
    for forged in (pickle.dumps(print), pickle.dumps((1, Desk)), b"cos\nsystem\n(Vtrue\ntR."):
        with pytest.raises(pickle.UnpicklingError, match="is no word of a simulation's"):
            loaded(bytearray(forged))


def test_communicators(monkeypatch):
    """Ours are made once for each of the user's, and anew where the last simulation has left words on their way."""
    pytest.importorskip("mpi4py")
    monkeypatch.setattr("hpcmagic.engine.communicators.nap", lambda _: None)
    assert communicators.words_for(None).size == 1
    user = Comm()
    user.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        communicators.words_for(user)
    first = communicators.words_for(user)
    first.clean = True
    assert user.made == 1  # what an interrupt has left under way is gone on with
    second = communicators.words_for(user)
    assert second._comm is first._comm
    assert (first._number, second._number) == (1, 2)
    second.clean = False
    third = communicators.words_for(user)
    assert third._comm is not second._comm
    assert communicators.words_for(Comm())._number == 1
    assert second in communicators._limbo
    communicators._limbo.clear()
