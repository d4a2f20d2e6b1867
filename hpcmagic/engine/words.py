"""What the ranks of one simulation tell each other, over a communicator of hpcmagic's own.

    rank 0 ─ Ibcast ─► all      a word at each boundary: GO, or a BATCH and its pickle; at last OVER
    rank 0 ─ Isend ──► each     End: who has left the loop, at which step, and why
    others ─ Isend ──► rank 0   LEFT, PULSE, PART
    all ─ Ibarrier             now and then: rank 0 waits where the slowest has not heard the one before

A word passes from rank to rank along MPI's tree. A rank that has left does not pass it on for longer than it lingers;
so the end is told to each rank by itself too. No wait here blocks in MPI.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hpcmagic.engine.desk import Batch
from hpcmagic.engine.fields import Collect, Part
from hpcmagic.engine.patience import patience
from hpcmagic.errors import SteerError
from hpcmagic.wire.looks import Pulse

GO, BATCH, OVER = range(3)
HEAD = struct.Struct("!BxxxIIq")  # kind, number of the simulation, length of what follows, step
LEFT, PULSE, PART, END = range(4)  # tags
SPIN_S = 300e-6  # a wait so short only lets others have the processor …
NAPS_S = 50e-6, 2e-3  # … a longer one naps: at first, and after a second
LINGER_S = 2.0
AHEAD = 16  # words that rank 0 may be ahead of the slowest rank


@dataclass(frozen=True, slots=True)
class Word:
    """What rank 0 tells at a boundary."""

    kind: int
    step: int
    what: Any = None


@dataclass(frozen=True, slots=True)
class End:
    """Who has left the loop, so that it is over for all."""

    rank: int
    step: int
    why: str


KNOWN = {(kind.__module__, kind.__name__): kind for kind in (Batch, Collect, End, Part, Pulse)}


class _Unpickler(pickle.Unpickler):
    """Loads words and nothing else: MPI's traffic is clear text, and a pickle could otherwise run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Give one of our own messages.

        Raises
        ------
        pickle.UnpicklingError
            It is none.
        """
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no word of a simulation's")
        return KNOWN[module, name]


def loaded(words: bytearray) -> Any:
    """Load what another rank has said."""
    return _Unpickler(io.BytesIO(words)).load()


class Words:
    """One simulation's.

    Parameters
    ----------
    comm
        Nobody else uses it; None for a process by itself.
    number
        Of the simulation on this communicator, alike on all ranks: what belongs to a former one is left alone.
    """

    def __init__(self, comm: Any, number: int) -> None:
        self._comm = comm
        self._number = number
        self.rank: int = 0 if comm is None else comm.rank
        self.size: int = 1 if comm is None else comm.size
        self.waited_s = 0.0  # for other ranks, in all
        self.clean = False  # whether it is over, and nothing is on its way any more
        self._count = 0  # words that were told, or heard
        self._over = False  # whether the last of them was
        self._end: tuple[int, End, float] | None = None  # after how many words; when it came
        self._head: tuple[bytearray, Any] | None = None  # rank 0's word that is awaited, and the request for it
        self._body: tuple[bytearray, Any] | None = None
        self._flying: deque[tuple[Any, Any]] = deque()  # requests, with the memory that they send from
        self._level: deque[Any] = deque()  # barriers that not all ranks have come to
        self._coming: list[tuple[Any, int, int, bytearray]] = []
        if comm is not None:
            from mpi4py import MPI

            self._status = MPI.Status()

    # ── rank 0 ───────────────────────────────────────────────────────────────────────────────

    def tell(self, kind: int, step: int, what: Any = None) -> None:
        """Tell all ranks."""
        if self._comm is None:
            return
        body = b"" if what is None else pickle.dumps(what)
        for words in (HEAD.pack(kind, self._number, len(body), step), body):
            if words:
                room = bytearray(words)
                self._flying.append((self._comm.Ibcast(room, root=0), room))
        self._counted()

    def tell_end(self, end: End) -> None:
        """Tell each rank that it is over."""
        if self._comm is None:
            return
        words = pickle.dumps((self._number, self._count, end))
        for rank in range(1, self.size):
            self._flying.append((self._comm.Isend(words, rank, END), words))
        self.tell(OVER, end.step, end)

    def hear(self) -> list[tuple[int, int, Any]]:
        """Take what other ranks have said and what has come whole: which rank, under which tag, what."""
        if self._comm is None:
            return []
        while (message := self._comm.Improbe(status=self._status)) is not None:
            room = bytearray(self._status.Get_count())
            self._coming.append((message.Irecv(room), self._status.Get_source(), self._status.Get_tag(), room))
        heard = []
        for one in self._coming[:]:
            request, rank, tag, room = one
            if request.Test():
                self._coming.remove(one)
                number, what = loaded(room)
                if number == self._number:
                    heard.append((rank, tag, what))
        self.reap()
        return heard

    def too_far_ahead(self) -> bool:
        """Whether too much of what was told has not been heard; that it has left is not enough, MPI keeps it."""
        return len(self._level) > 1

    # ── other ranks ──────────────────────────────────────────────────────────────────────────

    def tell_root(self, tag: int, what: Any) -> None:
        """Tell rank 0."""
        words = pickle.dumps((self._number, what))
        self._flying.append((self._comm.Isend(words, 0, tag), words))
        self.reap()

    def next(self) -> Word | End:
        """Wait for rank 0's next word, or the end that comes instead of it.

        Raises
        ------
        SteerError
            The word is of another simulation.
        """
        began_s = now = time.perf_counter()
        try:
            while (word := self._come()) is None:
                now = time.perf_counter()
                if (end := self._ended(now)) is not None:
                    return end
                patience.let_through()
                nap(now - began_s)
            return word.what if word.kind == OVER else word
        finally:
            self.waited_s += now - began_s

    def _come(self) -> Word | None:
        """Give rank 0's next word, if it is there; in doing so pass it on."""
        if self._head is None:
            room = bytearray(HEAD.size)
            self._head = room, self._comm.Ibcast(room, root=0)
        if not self._head[1].Test():
            return None
        kind, number, nbytes, step = HEAD.unpack(self._head[0])
        if number != self._number:
            raise SteerError(
                "The ranks are not at the same simulation: a cell was interrupted while it began.",
                "`%hpc restart` gives new ranks.",
            )
        if nbytes and self._body is None:
            room = bytearray(nbytes)
            self._body = room, self._comm.Ibcast(room, root=0)
        if self._body is not None and not self._body[1].Test():
            return None
        word = Word(kind, step, loaded(self._body[0]) if self._body is not None else None)
        self._head = self._body = None
        self._counted()
        self._over = kind == OVER
        return word

    def _ended(self, now: float) -> End | None:
        """Give the end, if it came and all words before it, or these do not come any more."""
        while self._end is None and (message := self._comm.Improbe(0, END, self._status)) is not None:
            room = bytearray(self._status.Get_count())
            message.Recv(room)  # short: it has come whole
            number, count, end = loaded(room)
            if number == self._number:
                self._end = count, end, now
        if self._end is None or (self._count < self._end[0] and now - self._end[2] < LINGER_S):
            return None
        return self._end[1]

    # ── both ─────────────────────────────────────────────────────────────────────────────────

    def _counted(self) -> None:
        """Count a word; after every so many all ranks come to a barrier, and nobody waits there."""
        self._count += 1
        if self._count % (AHEAD // 2) == 0:
            self._level.append(self._comm.Ibarrier())

    def reap(self) -> None:
        """Let go of what has been sent, and of barriers that all have come to."""
        while self._flying and self._flying[0][0].Test():
            self._flying.popleft()
        while self._level and self._level[0].Test():
            self._level.popleft()

    def finish(self) -> None:
        """Stay a little until the last word was passed on, and all that was sent has left."""
        if self._comm is None:
            return
        began_s = now = time.perf_counter()
        with suppress(SteerError):
            while now - began_s < LINGER_S and not self._is_through():
                nap(now - began_s)
                now = time.perf_counter()
        self.clean = self._is_through() and not self._coming

    def _is_through(self) -> bool:
        if self.rank and not self._over:
            self._come()
        self.reap()
        return not self._flying and (self._over or not self.rank)


def nap(waited_s: float) -> None:
    """Let others have the processor, the longer the longer it has been waited."""
    if waited_s < SPIN_S:
        os.sched_yield()
    else:
        time.sleep(NAPS_S[waited_s > 1])
