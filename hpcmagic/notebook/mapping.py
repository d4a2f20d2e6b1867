"""A function of the notebook's on the ranks: over a sequence, whichever rank is free; or once on each.

items ─► parts, four a rank ─► at most two requests a rank ─► results, each in its place
"""

from __future__ import annotations

import pickle
import queue
import reprlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpcmagic.errors import CellError, DataError
from hpcmagic.notebook import output
from hpcmagic.notebook.perrank import PerRank
from hpcmagic.notebook.pickling import cannot_be_loaded, pickle_for_ranks, sources_of
from hpcmagic.notebook.progress import Progress
from hpcmagic.wire.messages import Apply, Call, Pickled
from hpcmagic.wire.pending import Pending

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session

PARTS_A_RANK = 4  # so many parts each rank gets on average: few requests, and no long wait for the last
AHEAD = 2  # requests a rank has at a time: it never waits for the notebook
LOOK_S = 0.25


class Mapped:
    """One call of `Session.map`.

    Raises
    ------
    DataError
        The function or an item cannot be pickled; it is no function, or there are no items.
    """

    def __init__(self, session: Session, function: Callable[[Any], Any], items: Iterable[Any], key: int) -> None:
        self.session = session
        self.key = key
        self.items = _listed(function, items)
        self.results: list[Any] = [None] * len(self.items)
        self.function = pickle_for_ranks(_name(function), function)
        self.sources = sources_of(function)
        size = max(1, len(self.items) // (session.size * PARTS_A_RANK))
        self._parts = [range(i, min(i + size, len(self.items))) for i in range(0, len(self.items), size)]
        self._ready = [(part, pickle_for_ranks("items", [self.items[i] for i in part])) for part in self._parts]
        self._told: set[int] = set()  # ranks that have the function
        self._under_way: dict[Pending, tuple[range, Pickled]] = {}
        self._over: queue.SimpleQueue[Pending] = queue.SimpleQueue()

    def run(self) -> list[Any]:
        """Give the results in order.

        Raises
        ------
        RankError
            The function raised; the number of the item is named. Parts that had not begun are withdrawn.
        DataError
            Results cannot be loaded here.
        CellError
            Ctrl-C.
        """
        progress = Progress("map", len(self.items), lambda amount: f"{amount:.0f}")
        done = 0
        try:
            for _ in range(AHEAD):
                for rank in range(self.session.size):
                    self._send(rank)
            while self._under_way:
                done += self._take()
                progress.update(done)
        except KeyboardInterrupt:
            raise CellError(f"Stopped after {done} of {len(self.items)} items.", "Their results are lost.") from None
        finally:
            progress.close()
            self._withdraw()
        return self.results

    def _send(self, rank: int) -> None:
        if not self._ready:
            return
        part, items = self._ready.pop(0)
        self._ask(rank, part, items, None if rank in self._told else self.function)
        self._told.add(rank)

    def _ask(self, rank: int, part: range, items: Pickled, function: Pickled | None) -> None:
        sources = self.sources if function is not None else {}
        pending = self.session.send_to({rank: Apply(self.key, function, items, part.start, sources)})
        self._under_way[pending] = part, items
        pending.at_end(lambda: self._over.put(pending))

    def _take(self) -> int:
        """Take one part's results, and send its rank another part; give how many came."""
        try:
            pending = self._over.get(timeout=LOOK_S)
        except queue.Empty:
            self.session.look(time.monotonic())
            return 0
        part, items = self._under_way.pop(pending)
        output.show({r.rank: r.outputs for r in pending.replies.values()}, labels=self.session.size > 1)
        (reply,) = self.session.answers(pending)
        if reply.lacks_function:  # other maps' functions came meanwhile
            self._ask(reply.rank, part, items, self.function)
            return 0
        try:
            self.results[part.start : part.stop] = reply.value.load() if reply.value is not None else []
        except pickle.UnpicklingError as error:
            raise cannot_be_loaded(f"map's results {part.start}-{part.stop - 1}", reply.rank, error) from error
        self._send(reply.rank)
        return len(part)

    def _withdraw(self) -> None:
        """Have ranks leave what they have not done; what they work on is interrupted."""
        if not self.session.ended:
            for pending in self._under_way:
                self.session.control_path().withdraw(pending)


def call_on_all(
    session: Session, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> PerRank:
    """Call a function once on every rank; show what it prints, give what it returns.

    Raises
    ------
    RankError
        It raised.
    DataError
        It, or an argument, cannot be pickled; or it is no function.
    """
    _require_function("call", function)
    what = pickle_for_ranks(_name(function), function), pickle_for_ranks("arguments", (tuple(args), dict(kwargs)))
    pending = session.send_to(dict.fromkeys(range(session.size), Call(*what, sources_of(function))))
    try:
        replies = session.answers(pending)
    finally:
        printed = {rank: pending.replies[rank].outputs for rank in sorted(pending.replies)}
        output.show(printed, labels=session.size > 1)
    return output.values(replies) or PerRank({})


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", "function"))


def _require_function(verb: str, function: Any) -> None:
    if not callable(function):
        raise DataError(
            f"{verb} was given {reprlib.repr(function)} to call, which is no function.",
            f"Write e.g. `session.{verb}(function, …)`.",
        )


def _listed(function: Any, items: Any) -> list[Any]:
    """Give the items, if there is something to call with each."""
    _require_function("map", function)
    try:
        given = iter(items)
    except TypeError:
        raise DataError(
            f"map goes over a sequence; {reprlib.repr(items)} is none.",
            "Write e.g. `session.map(function, range(5))`.",
        ) from None
    return list(given)
