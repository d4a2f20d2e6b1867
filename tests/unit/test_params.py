"""Parameters of a simulation: what they take, and with which words all else is refused."""

import enum
import math

import numpy as np
import pytest
from two_lines import two_lines

from hpcmagic.engine.params import Check, accepted
from hpcmagic.engine.patience import Patience
from hpcmagic.errors import SteerError
from hpcmagic.ranges import Refused, declared, new_value


class Colour(enum.IntEnum):
    RED = 3


@pytest.mark.parametrize(
    ("default", "plain"),
    [
        (1, 1),
        (True, True),
        (0.5, 0.5),
        ("x", "x"),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.int16(7), 7),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array(2.0), 2.0),
        (Colour.RED, 3),
    ],
)
def test_declared(default, plain):
    """Defaults of NumPy's, and other subclasses, count as what they are in Python."""
    param = declared("p", default)
    assert (type(param.value), param.value, param.default) == (type(plain), plain, plain)
    assert param.kind == type(plain).__name__
    assert new_value("p", default, param) == plain


@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        (("p", [1.0]), "The parameter 'p' holds a list."),
        (("p", None), "The parameter 'p' holds a NoneType."),
        (("p", np.ones(3)), "The parameter 'p' holds a ndarray."),
        (("p", 1j), "The parameter 'p' holds a complex."),
        (("", 1), "A parameter is called ''."),
        ((3, 1), "A parameter is called 3."),
        (("time step", 1), "A parameter is called 'time step'."),
        (("a=b", 1), "A parameter is called 'a=b'."),
        (("lambda", 1), "A parameter is called 'lambda'."),
        (("p", 1, "a"), "The parameter 'p' has the range 'a' to None."),
        (("p", 1, None, math.nan), "The parameter 'p' has the range None to nan."),
        (("p", 2, 3), "The default of a parameter is outside its range: p = 2 is below its least value, 3."),
        (("p", 2, 0, 1), "The default of a parameter is outside its range: p = 2 is above its greatest value, 1."),
    ],
)
def test_not_declared(declaration, said):
    """What cannot be steered is refused as it is declared."""
    with pytest.raises(SteerError) as caught:
        declared(*declaration)
    assert two_lines(caught).message == said


TAKEN = [
    (1.0, 2, 2.0),
    (1, 2.0, 2),
    (1, np.int64(4), 4),
    (1.0, np.float32(0.5), 0.5),
    (False, True, True),
    ("a", "", ""),
]


@pytest.mark.parametrize(("default", "value", "new"), TAKEN)
def test_taken(default, value, new):
    """What a parameter takes has its type afterwards."""
    taken = new_value("p", value, declared("p", default))
    assert (type(taken), taken) == (type(new), new)


@pytest.mark.parametrize(
    ("default", "value", "reason"),
    [
        (1.0, "2", "p takes a number, not '2'"),
        (1.0, True, "p takes a number, not True"),
        (1.0, None, "p takes a number, not None"),
        (1.0, np.ones(2), "p takes a number, not array([1., 1.])"),
        (1.0, 1j, "p takes a number, not 1j"),
        (1.0, math.inf, "p takes a finite number, not inf"),
        (1.0, math.nan, "p takes a finite number, not nan"),
        (1.0, 10**400, "p takes a finite number, not inf"),
        (1, 1.5, "p takes a whole number, not 1.5"),
        (1, math.nan, "p takes a whole number, not nan"),
        (1, True, "p takes a whole number, not True"),
        (1, 10**400, "p takes a whole number of at most 1024 bits"),
        (True, 1, "p takes True or False, not 1"),
        pytest.param(True, 10**5000, "p takes True or False, not such a long int", id="long int"),
        ("a", 1, "p takes a text, not 1"),
        (1.0, "x" * 10_000, "p takes a number, not 'xxxxxxxxxxxx...xxxxxxxxxxxxx'"),
    ],
)
def test_refused(default, value, reason):
    """What it does not take is refused, with the value."""
    with pytest.raises(Refused) as caught:
        new_value("p", value, declared("p", default))
    assert str(caught.value) == reason


def test_range():
    """Both ends of a range belong to it."""
    param = declared("p", 1.0, np.float64(0.0), 2)
    assert new_value("p", 0, param) == 0.0
    assert new_value("p", 2, param) == 2.0
    for value, said in ((-0.1, "below its least value, 0.0"), (2.1, "above its greatest value, 2")):
        with pytest.raises(Refused, match=said):
            new_value("p", value, param)


def unlucky(_):
    raise ValueError("line one\nline two")


def silent(_):
    raise AssertionError


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (lambda _: False, "its check says no"),
        (lambda _: np.bool_(False), "its check says no"),
        (lambda _: 0, "its check says no"),
        (lambda _: "too odd", "too odd"),
        (unlucky, "ValueError: line one"),
        (silent, "AssertionError"),
        (lambda _: np.array([True, True]), "ValueError: The truth value of an array"),
    ],
)
def test_check_refuses(check, reason):
    """The user's own check refuses with False, a text, or whatever it raises."""
    with pytest.raises(Refused, match=f"p = 2: {reason}"):
        accepted("p", 2, {"p": Check(declared("p", 1), check)})


@pytest.mark.parametrize("check", [None, lambda _: None, lambda _: True, lambda _: np.bool_(True), lambda _: ""])
def test_check_agrees(check):
    """It agrees with True, and with nothing."""
    assert accepted("p", 2, {"p": Check(declared("p", 1), check)}) == 2


def test_unknown():
    """Of a name that there is none of the nearest is guessed, else some of those that there are."""
    checks = {f"speed{n}": Check(declared("p", 1)) for n in range(30)}
    for name, said in (("sped3", "did you mean speed3?"), ("x", "there is speed0, speed1, .*speed9, …$")):
        with pytest.raises(Refused, match=f"{name} is no parameter of this simulation: {said}"):
            accepted(name, 1, checks)
    with pytest.raises(Refused, match="none was declared yet"):
        accepted("p", 1, {})
    for odd in (1, None, ("p",)):
        with pytest.raises(Refused, match="names, which are texts"):
            accepted(odd, 1, checks)


def test_patience():
    """An interrupt that comes while our own code runs is raised once nothing is half done; else the handler does."""
    patience = Patience()
    assert not patience.holds()
    done = []

    def work():
        with patience, patience:
            assert patience.holds()
            done.append("all")

    def give_up():
        with patience:
            patience.holds()
            patience.let_through()
            done.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]
    with patience:
        pass  # it was raised once
    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert not patience.holds()
    with patience:
        with patience.lifted():
            assert not patience.holds()  # the user's own code runs
        assert patience.holds()
        patience.forget()
    assert done == ["all"]


def test_patience_until_later(monkeypatch):
    """What is raised while a generator is closed would be lost: it comes a moment later instead."""
    later = []
    monkeypatch.setattr("hpcmagic.engine.patience.threading.Timer", lambda *timer: later.append(timer) or Started())
    patience = Patience()
    with patience.until_later():
        patience.holds()
    assert len(later) == 1
    with patience.until_later():
        pass
    assert len(later) == 1


class Started:
    def start(self):
        """Never."""
