"""Sets of ranks, written and read; and one value a rank, shown folded."""

from __future__ import annotations

import contextlib
import operator
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hpcmagic.errors import DataError, ProfileError

MOST_OUTSIDE = 1000  # ranks beyond the session that an error still looks at
SHOWN = 32  # distinct values that a display shows before it says how many more there are
SHOWN_CHARACTERS = 3000  # of one value


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
    chosen = _parsed_ranks(ranks, size) if isinstance(ranks, str) else _listed_ranks(ranks)
    outside = {rank for rank in chosen if not 0 <= rank < size}
    if outside or not chosen:
        named = f"no rank {_few(rank_set(outside))}" if outside else "nothing in an empty choice"
        raise ProfileError(
            f"There is {named}: the session has {size} rank{'s' if size > 1 else ''}.",
            f"Choose from 0-{size - 1}." if size > 1 else "Its only rank is 0.",
        )
    return tuple(sorted(set(chosen)))


def _few(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def _listed_ranks(ranks: Any) -> list[int]:
    try:
        return [operator.index(rank) for rank in (ranks if isinstance(ranks, Iterable) else [ranks])]
    except TypeError:
        raise ProfileError(f"ranks {_few(repr(ranks))} is malformed.", "Write numbers, e.g. `[0, 2, 3]`.") from None


def _parsed_ranks(text: str, size: int) -> list[int]:
    """Read ranks as SLURM writes nodes; of a range far beyond the session only the first few."""
    chosen: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", item, re.ASCII)
        if match is None:
            raise ProfileError(f"--ranks {_few(repr(text))} is malformed.", "Write it as e.g. `--ranks 0,2-3`.")
        low, high = int(match[1]), int(match[2] or match[1])
        chosen += range(low, min(high, max(low, size) + MOST_OUTSIDE) + 1)
    return chosen


class StaysOnRank:
    """Stands in for a value that was not sent: too large, or not to be pickled."""

    def __init__(self, rank: int, described: str) -> None:
        self.rank = rank
        self.described = described

    def __repr__(self) -> str:
        hint = "" if "cannot be" in self.described else ": bind it to a name and `%pull` that"
        return f"<{self.described}; stays on its rank{hint}>"


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
        if not isinstance(rank, slice):
            rank = operator.index(rank)
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
        kinds: list[tuple[Any, list[int]]] = []
        for rank, value in self._values.items():
            ranks = next((r for known, r in kinds if _equal(known, value)), None)
            if ranks is None:
                kinds.append((value, [rank]))
            else:
                ranks.append(rank)
            if len(kinds) > SHOWN:
                break
        if len(kinds) != 1:
            shown = "; ".join(f"ranks {rank_set(r)}: {_short(value)}" for value, r in kinds[:4])
            raise DataError(f"The ranks hold different values: {shown}.", "Index by rank, e.g. `result[0]`.")
        return kinds[0][0]

    def __reversed__(self) -> Iterator[Any]:
        return iter(list(self._values.values())[::-1])

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Give the lowest rank that holds a value."""
        for rank, held in self._values.items():
            if rank >= start and (stop is None or rank < stop) and _equal(held, value):
                return rank
        raise ValueError(f"no rank holds {_short(value)}")

    def _groups(self) -> dict[str, list[int]]:
        """Give the ranks by what they show, in order of their lowest rank."""
        groups: dict[str, list[int]] = {}
        for rank, value in self._values.items():
            groups.setdefault(_repr(value), []).append(rank)
        return groups

    def __repr__(self) -> str:
        lines = []
        groups = self._groups()
        for text, ranks in list(groups.items())[:SHOWN]:
            shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"
            label = f"[{rank_set(ranks)}] "
            lines.append(label + shown.replace("\n", "\n" + " " * len(label)))
        if len(groups) > SHOWN:
            lines.append(f"… and {len(groups) - SHOWN} more")
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # IPython's signature
        for number, line in enumerate(repr(self).splitlines()):
            if number:
                printer.break_()
            printer.text("PerRank(...)" if cycle else line)


def _repr(value: Any) -> str:
    """Give a value's repr, or say that it has none: that of a user's class may raise anything."""
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__qualname__}, its repr() raised {type(error).__name__}>"


def _short(value: Any) -> str:
    text = " ".join(_repr(value).split())
    return text if len(text) <= 60 else text[:57] + "…"


def _equal(a: Any, b: Any) -> bool:
    """Whether two values are the same, arrays and tables included: by ==, and where that says no by their bytes."""
    if type(a) is not type(b):
        return False
    with contextlib.suppress(Exception):  # an array's == gives an array, a user's may raise anything
        if bool(a == b):
            return True
    try:
        return bool(pickle.dumps(a, protocol=5) == pickle.dumps(b, protocol=5))
    except Exception:  # a user's class may refuse in its own way: two such values are as equal as they look
        return _repr(a) == _repr(b)
