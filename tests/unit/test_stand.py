"""Where a rank stands: the cell's line, and the MPI call it is in; looking runs no code of the user's."""

import functools
import linecache
import queue
import sys
import textwrap
import threading
import time
import types

import pytest

from hpcmagic.engine.tracebacks import stand
from hpcmagic.wire.messages import Stand

CELL = "<cell 3>"
WAITS_S = 10.0
LOOKS = 3  # as often in one place: it is blocked there


class Comm(queue.SimpleQueue):
    """Blocks in C code, as MPI's calls do, until something is put into it."""

    Barrier = queue.SimpleQueue.get


class Request:
    """Has a call of the class, as `MPI.Request.Waitall` is one."""


Comm.__module__ = Request.__module__ = "mpi4py.MPI"


def mpi(comm):
    """mpi4py's module as a cell sees it."""
    module = types.ModuleType("mpi4py.MPI")
    Request.Waitall = classmethod(functools.partial(comm.get))  # C code all the way, with no frame of its own
    module.COMM_WORLD, module.Request = comm, Request
    return module


def written(source, filename):
    """Compile source under a file's name, under which its lines are found too."""
    text = textwrap.dedent(source)
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    return compile(text, filename, "exec")


class Rank:
    """A thread that runs a cell until it blocks."""

    def __init__(self, code, names):
        self.comm, self.gate = Comm(), queue.SimpleQueue()
        self.names = {"comm": self.comm, "gate": self.gate, "MPI": mpi(self.comm), **names}
        self.thread = threading.Thread(target=lambda: exec(code, self.names), daemon=True)  # noqa: S102
        self.thread.start()

    def stands(self):
        """Where it stands, once it moves no more."""
        deadline = time.monotonic() + WAITS_S
        seen = [None]
        while seen[-1] is None or not seen[-1].where or len(seen) < LOOKS or len(set(seen[-LOOKS:])) > 1:
            assert time.monotonic() < deadline, f"it goes on moving: {seen[-LOOKS:]}"
            time.sleep(0.01)
            seen.append(stand(2, "request", sys._current_frames()[self.thread.ident]))
        return seen[-1]

    def end(self):
        """Let it run to its end."""
        for _ in range(3):
            self.comm.put(None)
            self.gate.put(None)
        self.thread.join(WAITS_S)
        assert not self.thread.is_alive()


@pytest.fixture
def cell(monkeypatch):
    """Run source as cell 3; give the rank."""
    monkeypatch.setattr(linecache, "cache", dict(linecache.cache))
    ranks = []

    def run(source, **names):
        ranks.append(Rank(written(source, CELL), names))
        return ranks[-1]

    yield run
    for rank in ranks:
        rank.end()


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("comm.Barrier()", "comm.Barrier()"),
        ("MPI.COMM_WORLD.Barrier()", "MPI.COMM_WORLD.Barrier()"),
        ("x = [1, comm.Barrier()]; y = 2", "comm.Barrier()"),
        ("comm.Barrier(\n    timeout=None\n)", "comm.Barrier(\n    timeout=None\n)"),
        ("ä = 'ä', comm.Barrier()", "comm.Barrier()"),
        ("wait = comm.Barrier; wait()", "wait()"),
        ("MPI.Request.Waitall()", "MPI.Request.Waitall()"),
    ],
)
def test_in_mpi(cell, source, call):
    """Of a rank that waits in MPI line, source and call are named, however the call is written."""
    found = cell(f"\n{source}\n").stands()
    assert (found.rank, found.request, found.where) == (2, "request", "cell 3, line 2")
    assert found.source == source.splitlines()[0]
    assert found.call == call


def test_in_a_function(cell):
    """Names of a function's own, attributes of objects, and names from outside are found as the cell finds them."""
    found = cell("""\
        class Solver:
            def __init__(self, comm):
                self.comm = comm

            def step(self):
                world = self
                world.comm.Barrier()

        Solver(comm).step()
        """).stands()
    assert (found.where, found.source, found.call) == (
        "cell 3, line 7", "world.comm.Barrier()", "world.comm.Barrier()"
    )  # fmt: skip


@pytest.mark.parametrize(
    "source",
    ["gate.get()", "comm.queue.get()", "[gate][0].get()", "(lambda: gate.get)()()", "gate.get() if 1 else comm"],
)
def test_not_in_mpi(cell, source):
    """A rank that waits for something else, though by a name of MPI's, or by no name at all, is in no MPI call."""
    comm = types.SimpleNamespace(queue=(gate := queue.SimpleQueue()))
    rank = cell(source, comm=comm, **({"gate": gate} if "comm.queue" in source else {}))
    found = rank.stands()
    gate.put(None)
    assert (found.where, found.source, found.call) == ("cell 3, line 1", source, "")


class Watchful:
    """Notes which threads have run its code."""

    callers, gate = set(), None

    @property
    def by_property(self):
        """Run code by looking at an attribute."""
        self.callers.add(threading.get_ident())
        return self.gate

    def __getattr__(self, name):
        self.callers.add(threading.get_ident())
        if name.startswith("__"):
            raise AttributeError(name)
        return self.gate


class Jealous:
    """Notes every look at whatever it has."""

    callers = Watchful.callers

    def __getattribute__(self, name):
        Jealous.callers.add(threading.get_ident())
        if name.startswith("__"):
            raise AttributeError(name)
        return Watchful.gate


class Callee(queue.SimpleQueue, Watchful):
    """Blocks when it is called."""

    __call__ = queue.SimpleQueue.get


@pytest.mark.parametrize(
    "source", ["mine.by_property.get()", "mine.anything.get()", "jealous.anything.get()", "callee()"]
)
def test_no_code_of_the_users(cell, monkeypatch, source):
    """Looking where a rank stands runs no code of the user's: no property, no attribute that is made up."""
    callee, gate = Callee(), Comm()
    monkeypatch.setattr(Watchful, "gate", gate)
    monkeypatch.setattr(Watchful, "callers", callers := set())
    monkeypatch.setattr(Jealous, "callers", callers)
    rank = cell(source, mine=Watchful(), jealous=Jealous(), callee=callee)
    found = rank.stands()
    gate.put(None)
    callee.put(None)
    assert (found.where, found.call) == ("cell 3, line 1", "")
    assert callers <= {rank.thread.ident}


def test_in_a_library(cell):
    """A rank deep in a library is at the cell's own line."""
    event = threading.Event()
    found = cell("event.wait()", event=event).stands()
    event.set()
    assert (found.where, found.source, found.call) == ("cell 3, line 1", "event.wait()", "")


def test_in_a_module_of_the_users(cell):
    """A rank in a module of the user's own is at the line there."""
    names = {}
    exec(written("def solve(comm):\n    comm.Barrier()\n", "physics/solver.py"), names)  # noqa: S102
    found = cell("solve(comm)", solve=names["solve"]).stands()
    assert (found.where, found.source, found.call) == ("physics/solver.py:2", "comm.Barrier()", "comm.Barrier()")


def test_in_mpi4pys_python(cell):
    """A rank in a part of mpi4py that is Python is in MPI, too."""
    names = {}
    there = "/usr/lib/python3/site-packages/mpi4py/util/pkl5.py"
    exec(written("def recv(queue):\n    queue.get()\n", there), names)  # noqa: S102
    found = cell("recv(gate)", recv=names["recv"]).stands()
    assert (found.where, found.source, found.call) == ("cell 3, line 1", "recv(gate)", "mpi4py's recv()")


def test_source_is_gone(cell):
    """Where the source cannot be read the place is named all the same."""
    rank = cell("comm.Barrier()")
    rank.stands()
    del linecache.cache[CELL]
    found = rank.stands()
    assert (found.where, found.source, found.call) == ("cell 3, line 1", "", "")


def test_not_moved(cell):
    """Two looks at a rank that has not moved have one mark; once it has gone on to another call the mark is another."""
    rank = cell("comm.Barrier()\ncomm.Barrier()")
    first = rank.stands()
    assert first.mark
    assert rank.stands().mark == first.mark
    rank.comm.put(None)
    deadline = time.monotonic() + WAITS_S
    while (second := rank.stands()).where == first.where:
        assert time.monotonic() < deadline
    assert second.mark != first.mark


def test_in_no_cell():
    """A rank that runs no cell's code stands nowhere, whatever it does."""
    assert stand(1, "", None) == Stand(1)
    assert stand(1, "a push", sys._getframe()) == Stand(1, "a push")
