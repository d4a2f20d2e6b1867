"""Output of many ranks, shown as it comes: lines that ranks share wait a moment for each other, and are folded.

    pieces by rank ─► whole lines, by rank and time ─┬─ what all running ranks have said alike ─► shown at once
                                                     └─ what nobody else has said for a while ─► shown with its rank

What is not a whole line yet, a progress bar say, is for the status line (`partial`).
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice

from hpcmagic.notebook import output
from hpcmagic.wire.messages import Output

HOLD_S = 1.0  # how long a line waits for other ranks to say the same
ALONE_S = 0.2  # … of a rank whose last lines waited in vain
PARTIAL_SHOWN = 80  # characters of a line that is not whole yet


class Streamed:
    """Shows a cell's output while it runs.

    Parameters
    ----------
    ranks
        The ranks that the cell runs on.
    labels
        Whether lines are labelled with their ranks.
    clock
        Gives the monotonic time in seconds.
    """

    def __init__(self, ranks: Sequence[int], *, labels: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.labels = labels
        self._clock = clock
        self._queues: dict[int, deque[tuple[float, Output]]] = {rank: deque() for rank in ranks}
        self._alone: set[int] = set()  # ranks whose last lines nobody else has said
        self._begun: dict[tuple[int, str], str] = {}  # lines that are not whole yet, by rank and stream

    def add(self, fresh: Mapping[int, Sequence[Output]]) -> None:
        """Take what has come."""
        now = self._clock()
        for rank, outputs in fresh.items():
            queue = self._queues[rank]
            for piece in outputs:
                if piece.kind in ("stdout", "stderr"):
                    text = self._begun.pop((rank, piece.kind), "") + piece.text
                    whole, newline, rest = text.rpartition("\n")
                    queue.extend((now, Output(piece.kind, line + "\n")) for line in whole.split("\n") if newline)
                    if rest:
                        self._begun[rank, piece.kind] = rest
                else:
                    self._end_lines(rank, now)
                    queue.append((now, piece))

    def _end_lines(self, rank: int, now: float) -> None:
        for kind in ("stdout", "stderr"):
            rest = self._begun.pop((rank, kind), "")
            if rest:
                self._queues[rank].append((now, Output(kind, rest)))

    def waits(self) -> bool:
        """Whether something is held back that other ranks may say too."""
        return any(self._queues.values())

    def partial(self) -> str:
        """Give what stands in the newest line that is not whole yet, with its rank."""
        if not self._begun:
            return ""
        (rank, _), text = next(reversed(self._begun.items()))
        last = text.rstrip("\r").rpartition("\r")[2].strip()[:PARTIAL_SHOWN]
        return f"[{rank}] {last}" if self.labels and last else last

    def show_due(self, running: Collection[int]) -> None:
        """Show what need not wait any longer.

        Parameters
        ----------
        running
            The ranks that may still say something.
        """
        speaking = [rank for rank, queue in self._queues.items() if queue or rank in running]
        queues = [self._queues[rank] for rank in speaking]
        if not any(queues):
            return
        alike = _alike(queues)
        if alike:
            self._alone -= set(speaking)
            self._show(dict.fromkeys(speaking, alike))
        now = self._clock()
        due = {rank: self._due(rank, now) for rank in speaking}
        if any(due.values()):
            counts = self._with_companions(due)
            texts = {rank: {p.text for _, p in islice(self._queues[rank], n)} for rank, n in counts.items() if n}
            together = Counter(text for lines in texts.values() for text in lines)
            self._alone |= {rank for rank, lines in texts.items() if all(together[text] == 1 for text in lines)}
            self._alone -= {rank for rank, lines in texts.items() if any(together[text] > 1 for text in lines)}
            self._show(counts)

    def _due(self, rank: int, now: float) -> int:
        hold_s = ALONE_S if rank in self._alone else HOLD_S
        return sum(1 for came, _ in self._queues[rank] if now - came >= hold_s)

    def flush(self) -> None:
        """Show all that is left."""
        now = self._clock()
        for rank in self._queues:
            self._end_lines(rank, now)
        self._show({rank: len(queue) for rank, queue in self._queues.items()})

    def _with_companions(self, due: dict[int, int]) -> dict[int, int]:
        """Add to what is due the same lines of other ranks, younger as they are."""
        said = {rank: Counter(p.text for _, p in islice(self._queues[rank], n)) for rank, n in due.items()}
        most: Counter[str] = Counter()
        for lines in said.values():
            most |= lines
        taken = dict(due)
        for rank, n in due.items():
            for _, piece in islice(self._queues[rank], n, None):
                if said[rank][piece.text] >= most[piece.text]:
                    break
                said[rank][piece.text] += 1
                taken[rank] += 1
        return taken

    def _show(self, counts: Mapping[int, int]) -> None:
        parts = {rank: [self._queues[rank].popleft()[1] for _ in range(n)] for rank, n in counts.items() if n}
        if parts:
            output.show(parts, labels=self.labels)


def _alike(queues: Sequence[deque[tuple[float, Output]]]) -> int:
    """Give how many pieces at the front are the same in all queues."""
    number = 0
    for pieces in zip(*queues, strict=False):
        first = pieces[0][1]
        if any(piece != first for _, piece in pieces[1:]):
            break
        number += 1
    return number
