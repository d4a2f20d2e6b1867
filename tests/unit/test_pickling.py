"""The user's values on their way to the ranks: what cannot travel is named by the way to it."""

import io
import threading
import time

import numpy as np
import pytest

from hpcmagic.errors import DataError
from hpcmagic.notebook.pickling import pickle_for_ranks


class Holder:
    """Holds things as attributes."""

    def __init__(self, **things):
        vars(self).update(things)


class Slotted:
    """Holds a thing in a slot."""

    __slots__ = ("thing",)

    def __init__(self, thing):
        self.thing = thing


class Stubborn:
    """Cannot be pickled, and says why at length."""

    def __reduce__(self):
        raise RuntimeError("I will not\ngo " + "on " * 1000)


def lock():
    """Something that can never be pickled."""
    return threading.Lock()


def closure_over(thing):
    """A function that closes over a thing."""
    harmless = 1

    def function():
        return harmless, thing

    return function


def with_empty_cell(thing):
    """A function with a name that is not bound yet, beside the culprit."""

    def function():
        return a_name_not_bound, thing

    if not thing:
        a_name_not_bound = 1
    return function


def from_a_notebook(source, **names):
    """A function as a notebook's cell defines it."""
    namespace = {"__name__": "__main__", **names}
    exec(source, namespace)  # noqa: S102
    return namespace["function"]


CULPRITS = {
    "itself": (lock, "x", "_thread.lock"),
    "dict": (lambda: {"a": 1, "lock": lock()}, "x['lock']", "_thread.lock"),
    "list": (lambda: [1, 2, lock()], "x[2]", "_thread.lock"),
    "tuple": (lambda: (1, (2, lock())), "x[1][1]", "_thread.lock"),
    "nested": (lambda: {"a": [0, {"b": (lock(),)}]}, "x['a'][1]['b'][0]", "_thread.lock"),
    "attribute": (lambda: Holder(a=1, lock=lock()), "x.lock", "_thread.lock"),
    "attribute of an attribute": (lambda: Holder(a=Holder(b=[lock()])), "x.a.b[0]", "_thread.lock"),
    "slot": (lambda: Slotted(lock()), "x.thing", "_thread.lock"),
    "closure": (lambda: closure_over(lock()), "x.<closure thing>", "_thread.lock"),
    "closure in a list": (lambda: [closure_over({"k": lock()})], "x[0].<closure thing>['k']", "_thread.lock"),
    "empty cell": (lambda: with_empty_cell(lock()), "x.<closure thing>", "_thread.lock"),
    "global": (lambda: from_a_notebook("def function(): return guard", guard=lock()), "guard", "_thread.lock"),
    "object array": (lambda: {"a": np.array([1, lock()], dtype=object)}, "x['a']", "numpy.ndarray"),
    "generator": (lambda: [(i for i in range(3))], "x[0]", "generator"),
    "open file": (lambda: {"out": io.TextIOWrapper(io.BytesIO())}, "x['out']", "_io.TextIOWrapper"),
    "refuses": (lambda: {"s": Stubborn()}, "x['s']", "Stubborn"),
    "key": (lambda: {lock(): 1}, "x", "dict"),
    "set": (lambda: {1, closure_over(lock())}, "x{…}.<closure thing>", "_thread.lock"),
}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize(("make", "path", "kind"), CULPRITS.values(), ids=CULPRITS.keys())
def test_culprit_named(make, path, kind):
    """What cannot be pickled is named by the way to it inside the value, and by its type."""
    with pytest.raises(DataError, match="cannot be pickled") as error:
        pickle_for_ranks("x", make())
    message = error.value.message
    assert path in message, message
    assert kind in message, message
    assert len(message) < 400


def test_culprit_in_a_large_value():
    """Looking for the culprit among a million parts takes no time that one notices."""
    value = [list(range(1000)) for _ in range(1000)]
    value[500].append(lock())
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"x\[500\]"):
        pickle_for_ranks("x", value)
    assert time.perf_counter() - began < 5


def test_culprit_in_a_circle():
    """A value that contains itself is no trap."""
    value = {"lock": lock()}
    value["self"] = value
    with pytest.raises(DataError, match="cannot be pickled"):
        pickle_for_ranks("x", value)


def test_interrupt_while_pickling():
    """Ctrl-C while a large value is pickled is Ctrl-C, and no fault of the value."""

    class Slow:
        def __reduce__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pickle_for_ranks("x", Slow())
