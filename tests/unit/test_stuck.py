"""Ranks that wait for ever: found when all that are missing stay in MPI, and only then."""

from types import SimpleNamespace

import pytest

from hpcmagic.errors import CellError
from hpcmagic.notebook import stuck
from hpcmagic.notebook.handles import Cell
from hpcmagic.notebook.stuck import Whereabouts, dumped_stand, require_not_stuck
from hpcmagic.wire.messages import Raised, Reply, Stand
from hpcmagic.wire.pending import Pending

BARRIER = "comm.Barrier()"


class Session:
    """A session whose ranks stand where the test says."""

    ended = ""
    size = 200

    def __init__(self):
        self.places = {}
        self.given_up = []
        self.asked = []
        self.told = SimpleNamespace(stuck={})

    def control_path(self):
        """The way to the ranks, which tell where they stand."""
        stands = dict(self.places)
        return SimpleNamespace(
            stands=lambda ranks, _timeout_s: {rank: stands[rank] for rank in ranks if rank in stands},
            ask_keeper=lambda verb, **what: self.asked.append((verb, what)),
        )


@pytest.fixture
def session(monkeypatch):
    """A session; ranks that say nothing are not asked by a signal, which is noted."""
    session = Session()
    session.dumped = []
    monkeypatch.setattr(stuck, "dumped_stands", lambda _cell, ranks: session.dumped.append(ranks) or {})
    return session


def where_they_stand(session, ranks=(0, 1, 2), raised=True):
    """A cell whose first rank has answered, and a look at where the others stand."""
    pending = Pending(ranks, "c")
    pending.take(Reply(0, raised=Raised("ValueError", "", (), "") if raised else None))
    source = "x = 1\ny = new.allreduce(x)"
    return Cell(session, "c", source, "cell 3", ranks, pending=pending, first_line=2), Whereabouts()


def waits(rank, mark="a", call=BARRIER):
    """A rank in MPI."""
    return Stand(rank, "r", "cell 3, line 2", BARRIER, call, mark)


def looks(look, number=5):
    """Look so often, a second apart."""
    cell, where = look
    return [where.look(cell, 10.0 + second) for second in range(number)]


def test_all_wait(session):
    """All that are missing in the same MPI call three times over: they wait for ever, and it is said where."""
    session.places = {1: waits(1), 2: waits(2)}
    look, said = where_they_stand(session), f"{BARRIER}, cell 3, line 2"
    pending = look[0].pending
    assert looks(look, 4) == [False, False, True, False]
    assert pending.waiting() == {1: said, 2: said}
    assert session.given_up == [pending]
    assert session.asked == [("hpcmagic_abandon", {"cell": "c", "waiting": {"1": said, "2": said}})]


def test_once_a_second(session):
    """Ranks are asked once a second at most, however often one looks."""
    session.places = {1: waits(1), 2: waits(2)}
    cell, where = where_they_stand(session)
    assert not any(where.look(cell, 10.0 + tenth / 10) for tenth in range(10))


@pytest.mark.parametrize(
    "places",
    [{1: waits(1)}, {1: waits(1), 2: waits(2, call="")}, {}],
    ids=["one says nothing", "one is elsewhere", "nobody says anything"],
)
def test_not_all_wait(session, places):
    """Who says nothing, or is not in MPI, may yet come."""
    session.places = places
    assert not any(looks(where_they_stand(session)))


def test_one_moves(session):
    """Ranks that go from one call to the next do not wait for ever."""
    cell, where = where_they_stand(session)
    for second in range(9):
        session.places = {1: waits(1), 2: waits(2, mark=str(second))}
        assert not where.look(cell, 10.0 + second)


def test_nobody_raised(session):
    """While no rank has raised nobody is asked, and no signal is sent."""
    session.places = {1: waits(1), 2: waits(2)}
    assert not any(looks(where_they_stand(session, raised=False)))
    assert session.dumped == []


def test_sample(session):
    """Of many ranks some are asked; what they do is said of all."""
    session.places = {rank: waits(rank) for rank in range(1, 200)}
    look = where_they_stand(session, ranks=range(200))
    assert looks(look, 3)[-1]
    assert list(look[0].pending.waiting()) == list(range(1, 200))


STACK = 'Stack (most recent call first):\n  File "<cell 3>", line {line} in <module>\n  File "interactiveshell.py", line 9'


@pytest.mark.parametrize(
    ("line", "call"), [(3, "new.allreduce(x)"), (2, ""), (99, "")], ids=["pickled reduction", "other", "no such line"]
)
def test_dumped(session, line, call):
    """A stack tells the line; C code that holds the interpreter is MPI's where a pickled reduction stands there."""
    cell, _ = where_they_stand(session)
    told = dumped_stand(cell, 1, STACK.format(line=line))
    assert (told.where, told.call, told.source) == (f"cell 3, line {line}", call, stuck.IN_C_CODE)
    assert dumped_stand(cell, 1, STACK.format(line=line).replace("cell 3", "cell 3#2")).where == told.where
    assert dumped_stand(cell, 1, "") == Stand(1)


@pytest.mark.parametrize("source", ["functools.reduce(add, x)", "np.add.reduce(x)", "numpy.add.reduce(x)", "sum(x)"])
def test_not_mpis(source):
    """Reductions of other libraries are none of MPI's."""
    assert stuck.HOLDING.search(source) is None


def test_refused(session):
    """Ranks that wait for ever take no more cells, whoever found out; the free ones do, and so do those that went on."""
    session.size = 3
    session.told.stuck = {"1": "comm.Barrier(), cell 3, line 2"}
    require_not_stuck(session, [0, 2])
    with pytest.raises(
        CellError, match=r"Rank 1 still waits in comm.Barrier.., cell 3, line 2, and would never"
    ) as no:
        require_not_stuck(session, [0, 1, 2])
    assert "`--ranks 0,2`" in no.value.mend
    pending = Pending([1, 2], "c")
    pending.give_up({1: "comm.Barrier()", 2: "comm.recv()"})
    session.given_up.append(pending)
    with pytest.raises(CellError, match=r"Ranks 1-2 still wait in comm.Barrier"):
        require_not_stuck(session, [0, 1, 2])
    pending.take(Reply(1))
    require_not_stuck(session, [0, 1])
