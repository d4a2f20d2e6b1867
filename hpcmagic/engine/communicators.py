"""hpcmagic's own communicators, with the ranks of the user's: what we say never meets what the user says.

    the user's communicator ─ attribute ─► agreed    the ranks agree on it whether the last simulation left it clean
                                           used      its words go over this one; another takes its place if not

The collective calls that make them do not block, and one that Ctrl-C has interrupted is gone on with by the next.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Any

from hpcmagic.engine.patience import patience
from hpcmagic.engine.words import Words, nap

_limbo: list[Words] = []  # whose requests MPI still knows
_keys: list[int] = []  # under which MPI keeps what is ours with a communicator


class _Ours:
    """What is kept with one communicator of the user's."""

    def __init__(self) -> None:
        self.agreed: Any = None
        self.used: Any = None
        self.former: Words | None = None
        self.number = 0
        self.doing: tuple[Any, Any] | None = None  # what comes of a collective call, and its request


def words_for(comm: Any) -> Words:
    """Give the words of a new simulation; all ranks of `comm` call it together."""
    if comm is None or comm.size == 1:
        return Words(None, 0)
    with patience:
        ours = _kept_with(comm)
        if ours.agreed is None:
            ours.agreed = _done(ours, comm.Idup)
        if ours.used is not None and not _all_clean(ours):
            if ours.former is not None:
                _limbo.append(ours.former)
            ours.used = None
        if ours.used is None:
            ours.used = _done(ours, ours.agreed.Idup)
        ours.number += 1
        ours.former = Words(ours.used, ours.number)
    return ours.former


def _kept_with(comm: Any) -> _Ours:
    from mpi4py import MPI

    if not _keys:
        _keys.append(MPI.Comm.Create_keyval())
    ours: _Ours | None = comm.Get_attr(_keys[0])
    if ours is None:
        ours = _Ours()
        comm.Set_attr(_keys[0], ours)
    return ours


def _all_clean(ours: _Ours) -> bool:
    from mpi4py import MPI

    def begin() -> tuple[Any, Any]:
        own, least = array("i", [ours.former is None or ours.former.clean]), array("i", [0])
        return (own, least), ours.agreed.Iallreduce(own, least, MPI.MIN)

    return bool(_done(ours, begin)[1][0])


def _done(ours: _Ours, begin: Callable[[], tuple[Any, Any]]) -> Any:
    """Wait for a collective call without blocking in it."""
    if ours.doing is None:
        ours.doing = begin()
    result, request = ours.doing
    began_s = time.perf_counter()
    while not request.Test():
        patience.let_through()
        nap(time.perf_counter() - began_s)
    ours.doing = None
    return result
