"""Replies and pieces of output on their way, from whichever order they come in to the order they were made in."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpcmagic.wire.messages import Output, Reply


class Pending:
    """Replies and pieces of output on their way, by rank.

    Parameters
    ----------
    ranks
        Who is to answer.
    cell
        The cell's id; "" for a request that is no cell.
    """

    made = 0  # in this process: who compares two looks knows whether ranks were asked for anything in between

    def __init__(self, ranks: Sequence[int], cell: str = "") -> None:
        Pending.made += 1
        self.ranks = tuple(ranks)
        self.cell = cell
        self.replies: dict[int, Reply] = {}
        self.lost: set[int] = set()
        self.stuck: dict[int, str] = {}  # ranks that wait for ever, each with where
        self.restarts = 0  # how often the ranks had been started anew when it was sent
        self.on_end: list[Callable[[], None]] = []
        self._pieces: dict[int, dict[int, tuple[Output, ...]]] = {rank: {} for rank in self.ranks}
        self._given: dict[int, int] = dict.fromkeys(self.ranks, 0)
        self._changed = threading.Condition()

    def take(self, reply: Reply) -> None:
        """Note a reply (called in the client's thread)."""
        self._note(lambda: self.replies.setdefault(reply.rank, reply))

    def take_piece(self, rank: int, number: int, outputs: tuple[Output, ...]) -> None:
        """Note a piece of output, once (called in the client's thread)."""
        with self._changed:
            if number >= self._given.get(rank, 0):
                self._pieces[rank][number] = outputs
                self._changed.notify_all()

    def lose(self, rank: int) -> None:
        """Note that a rank will never answer (called in the client's thread)."""
        self._note(lambda: self.lost.add(rank))

    def give_up(self, stuck: Mapping[int, str]) -> None:
        """Wait no more for ranks that wait for ever; should one answer all the same, it counts."""
        self._note(lambda: self.stuck.update(stuck))

    def _note(self, change: Callable[[], Any]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()
            callbacks = [] if self.missing() else self.on_end
            self.on_end = [] if callbacks else self.on_end
        for callback in callbacks:
            _call(callback)

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call when nothing is missing any more: at once, or later in the client's thread."""
        with self._changed:
            if self.missing():
                self.on_end.append(callback)
                return
        _call(callback)

    def missing(self) -> tuple[int, ...]:
        """Ranks that have neither answered nor gone, and still may."""
        return tuple(r for r in self.ranks if r not in self.replies and r not in self.lost and r not in self.stuck)

    def waiting(self) -> dict[int, str]:
        """Ranks that wait for ever, each with where."""
        stuck = dict(self.stuck)
        return {r: where for r, where in stuck.items() if r not in self.replies and r not in self.lost}

    def lacks_pieces(self) -> tuple[int, ...]:
        """Ranks that have answered, of whose output a piece that went ahead has not come."""
        with self._changed:
            return tuple(
                rank
                for rank, reply in self.replies.items()
                if self._given[rank] + len(self._pieces[rank]) < reply.streamed
            )

    def speaking(self) -> tuple[int, ...]:
        """Ranks of whose output more may come: they run, or have answered faster than their last pieces."""
        return self.missing() + self.lacks_pieces()

    def new_output(self, *, give_up: bool = False) -> dict[int, tuple[Output, ...]]:
        """Give what has come since the last call, by rank and in order; with `give_up` despite of gaps."""
        fresh: dict[int, tuple[Output, ...]] = {}
        with self._changed:
            for rank, pieces in self._pieces.items():
                outputs: list[Output] = []
                while self._given[rank] in pieces or (give_up and pieces):
                    outputs += pieces.pop(self._given[rank], ())
                    self._given[rank] += 1
                reply = self.replies.get(rank)
                if reply is not None and (0 if give_up else reply.streamed) <= self._given[rank] <= reply.streamed:
                    outputs += reply.outputs
                    self._given[rank] = reply.streamed + 1
                if outputs:
                    fresh[rank] = tuple(outputs)
        return fresh

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is missing; False when the time is up first. Ctrl-C comes through."""
        return self._wait_for(lambda: not self.missing(), timeout_s)

    def wait_for_news(self, timeout_s: float) -> bool:
        """Wait until nothing is missing, or some output has come; False when the time is up first."""
        return self._wait_for(lambda: not self.missing() or self._has_next(), timeout_s)

    def _has_next(self) -> bool:
        return any(self._given[rank] in pieces for rank, pieces in self._pieces.items())

    def _wait_for(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)


def _call(callback: Callable[[], None]) -> None:
    """Call what a user may have written: what it raises is logged, and stops neither others nor the wire."""
    try:
        callback()
    except Exception:
        logging.getLogger("hpcmagic").exception("A callback of a cell raised")
