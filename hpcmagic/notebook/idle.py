"""How long a session's cells ran, by its journal: what was paid beside that was paid while no cell ran."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from hpcmagic.wire.history import cell_paths, read_records

Span = tuple[float, float]  # begin and end, seconds since the epoch, by the keeper's clock


def busy_s(folder: Path, *, over: bool) -> float:
    """Give the seconds in which at least one cell ran.

    Parameters
    ----------
    folder
        The journal's.
    over
        Whether the session has ended: a cell that nobody answered ran as long as something was written of it.
    """
    return covered_s(filter(None, (_span(path, over=over) for _, path in cell_paths(folder).values())))


def covered_s(spans: Iterable[Span]) -> float:
    """Give the length of what spans cover together: cells that run at the same time count once.

    >>> covered_s([(0.0, 10.0), (5.0, 12.0), (20.0, 21.0)])
    13.0
    """
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _span(path: Path, *, over: bool) -> Span | None:
    """Give when a cell began and ended; None while its file is not whole, or is gone."""
    heads = [record.head for record, _ in read_records(path, heads_only=True)]
    if not heads or "sent" not in heads[0]:
        return None
    begin, missing = float(heads[0]["sent"]), set(heads[0].get("ranks", ()))
    ends = list(_ends(heads, begin, missing))
    given_up = over or any(head["kind"] in ("lost", "stuck") for head in heads)
    if missing:
        ends.append(_written(path) if given_up else time.time())
    return begin, max([begin, *ends])


def _ends(heads: Iterable[dict[str, object]], begin: float, missing: set[object]) -> Iterator[float]:
    for head in heads:
        if head["kind"] == "reply":
            missing.discard(head["rank"])
            yield begin + float(str(head.get("elapsed_s", 0.0)))


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
