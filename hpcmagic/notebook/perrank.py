"""Sets of ranks, written and read; and one value a rank, shown folded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hpcmagic.errors import DataError, ProfileError

MOST_RANKS = 1_000_000
SHOWN = 32  # distinct values that a display shows before it says how many more there are


def rank_set(ranks: Iterable[int]) -> str:
    """Write ranks as SLURM writes nodes.

    >>> rank_set([0, 1, 2, 5])
    '0-2,5'
    """
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def choose_ranks(ranks: Any, size: int) -> tuple[int, ...]:
    """Give the ranks that a user's words name, in order.

    >>> choose_ranks("0,2-3", 4)
    (0, 2, 3)
    """
    if ranks is None:
        return tuple(range(size))
    if isinstance(ranks, str):
        chosen = _parsed_ranks(ranks)
    else:
        try:
            chosen = [int(rank) for rank in ([ranks] if isinstance(ranks, int) else ranks)]
        except (TypeError, ValueError):
            raise ProfileError(f"ranks {ranks!r} is malformed.", "Write numbers, e.g. `[0, 2, 3]`.") from None
    outside = sorted({rank for rank in chosen if not 0 <= rank < size})
    if outside or not chosen:
        raise ProfileError(
            f"There is no rank {', '.join(map(str, outside)) or 'in an empty choice'}: the session has {size}.",
            f"Choose from 0-{size - 1}." if size > 1 else "Its only rank is 0.",
        )
    return tuple(sorted(set(chosen)))


def _parsed_ranks(text: str) -> list[int]:
    chosen: list[int] = []
    try:
        for item in text.split(","):
            low, dash, high = item.strip().partition("-")
            last = int(high if dash else low)
            chosen += range(int(low), min(last, int(low) + MOST_RANKS) + 1)
    except ValueError:
        raise ProfileError(f"--ranks {text!r} is malformed.", "Write it as e.g. `--ranks 0,2-3`.") from None
    return chosen


class StaysOnRank:
    """Stands in for a value that was not sent: too large, or not to be pickled."""

    def __init__(self, rank: int, described: str) -> None:
        self.rank = rank
        self.described = described

    def __repr__(self) -> str:
        return f"<{self.described}; stays on its rank: bind it to a name and `%pull` that>"


class PerRank(Sequence[Any]):
    """What each rank gave: a sequence indexed by rank.

    Parameters
    ----------
    values
        Value by rank.
    """

    def __init__(self, values: Mapping[int, Any]) -> None:
        self._values = dict(sorted(values.items()))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that gave a value, in order."""
        return tuple(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values.values())

    def __getitem__(self, rank: Any) -> Any:
        """Give the value of a rank; a slice or a negative number counts within the ranks there are."""
        if isinstance(rank, slice) or rank < 0:
            return list(self._values.values())[rank]
        try:
            return self._values[rank]
        except KeyError:
            raise IndexError(f"no value of rank {rank}; there are those of {rank_set(self._values)}") from None

    def same(self) -> Any:
        """Give the one value that all ranks hold.

        Raises
        ------
        DataError
            The ranks differ; it names who.
        """
        groups = self._groups()
        if len(groups) != 1:
            shown = "; ".join(f"ranks {rank_set(r)}: {_short(text)}" for text, r in list(groups.items())[:4])
            raise DataError(f"The ranks hold different values: {shown}.", "Index by rank, e.g. `result[0]`.")
        return next(iter(self))

    def _groups(self) -> dict[str, list[int]]:
        """Give the ranks by what they show, in order of their lowest rank."""
        groups: dict[str, list[int]] = {}
        for rank, value in self._values.items():
            groups.setdefault(repr(value), []).append(rank)
        return groups

    def __repr__(self) -> str:
        lines = []
        groups = self._groups()
        for text, ranks in list(groups.items())[:SHOWN]:
            label = f"[{rank_set(ranks)}] "
            lines.append(label + text.replace("\n", "\n" + " " * len(label)))
        if len(groups) > SHOWN:
            lines.append(f"… and {len(groups) - SHOWN} more")
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # IPython's signature
        for number, line in enumerate(repr(self).splitlines()):
            if number:
                printer.break_()
            printer.text("PerRank(...)" if cycle else line)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"
