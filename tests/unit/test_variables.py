"""The variables of the ranks: what a rank tells of its own, and how those of all ranks are shown."""

import array
import collections
import json
import math
import sys

import numpy as np
import pandas as pd
import pytest

from hpcmagic.engine import inventory as module
from hpcmagic.engine.inventory import inventory
from hpcmagic.notebook import variables
from hpcmagic.notebook.variables import Variables, variables_of
from hpcmagic.wire.holdings import Variable, from_rows, to_rows


def told(value):
    """What a rank tells of one value."""
    (one,) = inventory({"x": value}, {}, everything=True)
    return one


class Hostile:
    """An object whose every answer is an error, or takes for ever."""

    def _raise(self, *_args):
        raise SystemExit("asked")

    __sizeof__ = __len__ = __eq__ = __repr__ = __getattr__ = _raise
    __hash__ = None
    __class__ = nbytes = shape = dtype = property(_raise)


class HostileArray(np.ndarray):
    """An array of a user's class, whose answers are his own."""

    nbytes = shape = dtype = property(lambda _: 1 / 0)


def test_kinds():
    """Type, shape or length, and the bytes: of arrays their numbers, of tables with their index."""
    table = pd.DataFrame({"a": np.zeros(100), "b": np.zeros(100)}, index=np.arange(100.0))
    assert told(np.zeros((3, 4), "f4")) == Variable("x", "numpy.ndarray", (3, 4), None, "float32", 48)
    assert told(np.arange(100)[::2]).nbytes == 400
    assert told(np.float64(1)).nbytes == 8
    assert (told(table).nbytes, told(table).shape, told(table).kind) == (2400, (100, 2), "pandas.DataFrame")
    assert told(table["a"]).nbytes == 1600
    assert told(table.index).nbytes == 800
    assert told([1, 2, 3]) == Variable("x", "list", None, 3, "", sys.getsizeof([1, 2, 3]))
    assert told("abc").length == 3
    assert told(array.array("d", [1, 2])).length == 2
    assert told(collections.Counter("abc")).kind == "collections.Counter"
    assert told(7) == Variable("x", "int", None, None, "", sys.getsizeof(7))


def test_sparse():
    """A sparse array counts by its parts."""
    sparse = pytest.importorskip("scipy.sparse")
    assert told(sparse.eye(100, format="csr")).nbytes >= 1200


def test_nothing_of_the_users_is_asked():
    """No code of the user's runs, whatever its classes do when they are asked."""
    assert told(Hostile()).nbytes > 0
    assert told(Hostile()).shape is None
    hostile = np.zeros(10).view(HostileArray)
    assert (told(hostile).nbytes, told(hostile).shape, told(hostile).dtype) == (80, (10,), "float64")


def test_nothing_is_walked_through():
    """Strings in a table and what a list holds are not gone through."""
    table = pd.DataFrame({"a": pd.Series(["long" * 1000] * 100, dtype=object)})
    assert told(table).nbytes < 2000
    assert told([np.zeros(1000)]).nbytes < 200


def test_hidden():
    """IPython's own names, modules and functions are left out, unless everything is asked for."""
    namespace = {"x": 1, "_": 2, "_i1": "x", "exit": exit, "np": np, "f": lambda: 1, "In": [], "sin": math.sin}
    hidden = {"exit": exit, "In": namespace["In"]}
    assert [one.name for one in inventory(namespace, hidden)] == ["x"]
    assert {one.name for one in inventory(namespace, hidden, everything=True)} == set(namespace)
    assert [one.name for one in inventory({"In": "mine"}, hidden)] == ["In"]  # the user's own assignment


def test_order_and_names():
    """The largest come first; one object under two names counts once; a name that is no text is passed over."""
    x = np.zeros(10)
    held = inventory({"a": 1, "x": x, "y": x, 7: "seven"}, {})
    assert [(one.name, one.again) for one in held] == [("x", False), ("y", True), ("a", False)]


def test_many(monkeypatch):
    """Of very many the largest are told."""
    monkeypatch.setattr(module, "MOST", 2)
    assert [one.name for one in inventory({"a": 1, "b": "b" * 100, "c": "c" * 50}, {})] == ["b", "c"]


def test_travels():
    """What is told passes through JSON, names that are no UTF-8 included."""
    held = inventory({"x": np.zeros((2, 3)), "t": (1,), "k\ud800": 1}, {})
    assert from_rows(json.loads(json.dumps(to_rows(held)).encode())) == held


# ---- shown


def held(name, nbytes, shape=None, kind="numpy.ndarray", **rest):
    """A variable of a rank."""
    return Variable(name, kind, shape, rest.pop("length", None), rest.pop("dtype", ""), nbytes, **rest)


def test_folded():
    """Ranks that are alike share a line, others have their own; the largest name first; and what each holds in all."""
    small = held("n", 28, kind="int")
    of = Variables({
        0: [held("x", 2000, (26,), dtype="float64"), small],
        1: [held("x", 1000, (25,), dtype="float64"), small, held("l", 500, kind="list", length=3)],
        2: [held("x", 1000, (25,), dtype="float64"), small, held("y", 1000, again=True)],
    })  # fmt: skip
    assert repr(of).splitlines() == [
        "name  type                   shape     bytes   ranks",
        "x     numpy.ndarray float64  (26,)     2.0 kB  0",
        "x     numpy.ndarray float64  (25,)     1.0 kB  1-2",
        "y     numpy.ndarray                    1.0 kB  2",
        "l     list                   length 3  500 B   1",
        "n     int                              28 B    0-2",
        "total: [0] 2.0 kB, [1] 1.5 kB, [2] 1.0 kB",
    ]
    assert of[1]["x"].shape == (25,)
    assert of.nbytes == {0: 2028, 1: 1528, 2: 1028}
    assert of.names() == ["x", "y", "l", "n"]


def test_all_different():
    """Where many ranks differ, one line says from what to what."""
    of = Variables({rank: [held("x", 1000 * (rank + 1), (rank,))] for rank in range(100)})
    assert repr(of).splitlines()[1:] == [
        "x     numpy.ndarray  100 shapes  1.0 kB to 100 kB  0-99",
        "total: 1.0 kB to 100 kB a rank, most on rank 99",
    ]


def test_one_rank():
    """One rank needs no column of ranks."""
    assert repr(Variables({0: [held("x", 8, kind="int")]})).splitlines() == [
        "name  type  shape  bytes", "x     int          8 B", "total: 8 B",
    ]  # fmt: skip
    assert repr(Variables({0: []})) == "No variables."


def test_silent_ranks():
    """Ranks that did not answer are named."""
    said = repr(Variables({0: [held("x", 8)], 2: [held("x", 8)]}, silent=[1, 3]))
    assert said.splitlines()[-2:] == [
        "total: 8 B a rank", "ranks 1,3 did not answer: C code may hold the interpreter there.",
    ]  # fmt: skip


def test_as_page():
    """In a notebook it is a table, and what ranks send is escaped."""
    page = Variables({0: [held("x", 8, kind="<script>")], 1: []})._repr_html_()
    assert page.startswith("<table>")
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "total: [0] 8 B, [1] 0 B" in page
    assert Variables({0: []})._repr_html_() == "<p>No variables.</p>"


def test_very_many_lines():
    """Of very many lines the first are shown, and how many more there are."""
    of = Variables({0: [held(f"x{n}", 8) for n in range(variables.LISTED + 3)]})
    assert len(repr(of).splitlines()) == variables.LISTED + 3
    assert repr(of).splitlines()[-2].rstrip() == "… 3 more"


def test_late_ranks():
    """Who has not answered in time is silent, and is not waited for any longer."""

    class Control:
        def holdings(self, ranks, everything):
            assert (ranks, everything) == ([0, 1], True)
            return {0: {"variables": to_rows([held("x", 8)])}}

    of = variables_of(Control(), [0, 1], everything=True, wait_s=0)
    assert (list(of), of.silent) == ([0], (1,))
