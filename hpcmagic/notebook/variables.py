"""The variables that ranks hold, as they tell themselves: asked, folded where ranks are alike, shown as a table."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Mapping, Sequence

from hpcmagic.notebook import output
from hpcmagic.notebook.perrank import rank_set
from hpcmagic.notebook.progress import nbytes_in_words
from hpcmagic.wire.control import Control
from hpcmagic.wire.holdings import Variable, from_rows

ANSWER_S = 5.0  # C code that holds a rank's interpreter lets it answer late, or not at all
LOOK_S = 0.02
APART = 4  # so many ways in which ranks hold a name are shown apart
LISTED = 200  # lines of the table


class Variables(Mapping[int, dict[str, Variable]]):
    """What each rank holds: by rank, then by name; shown folded, the largest first.

    Attributes
    ----------
    silent
        Ranks that did not answer in time.
    """

    def __init__(self, by_rank: Mapping[int, Sequence[Variable]], silent: Sequence[int] = ()) -> None:
        self._by_rank = {rank: {one.name: one for one in by_rank[rank]} for rank in sorted(by_rank)}
        self.silent = tuple(silent)

    def __getitem__(self, rank: int) -> dict[str, Variable]:
        return self._by_rank[rank]

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_rank)

    def __len__(self) -> int:
        return len(self._by_rank)

    @property
    def nbytes(self) -> dict[int, int]:
        """Bytes in all by rank; what has two names counts once."""
        return {
            rank: sum(one.nbytes for one in held.values() if not one.again) for rank, held in self._by_rank.items()
        }

    def names(self) -> list[str]:
        """Give every name that some rank holds, the largest first."""
        largest: dict[str, int] = {}
        for held in self._by_rank.values():
            for one in held.values():
                largest[one.name] = max(largest.get(one.name, 0), one.nbytes)
        return sorted(largest, key=lambda name: (-largest[name], name))

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Give the table's lines: name, type, shape, bytes, ranks."""
        return [row for name in self.names() for row in self._rows_of(name)]

    def _rows_of(self, name: str) -> list[tuple[str, str, str, str, str]]:
        groups: dict[tuple[str, str, int], list[int]] = {}
        for rank, held in self._by_rank.items():
            if name in held:
                one = held[name]
                groups.setdefault((_type(one), _shape(one), one.nbytes), []).append(rank)
        if len(groups) <= APART:
            return [(name, kind, shape, nbytes_in_words(n), rank_set(r)) for (kind, shape, n), r in groups.items()]
        kinds = list(dict.fromkeys(kind for kind, _, _ in groups))
        shapes = list(dict.fromkeys(shape for _, shape, _ in groups))
        sizes = [nbytes for _, _, nbytes in groups]
        kind = kinds[0] if len(kinds) == 1 else f"{len(kinds)} types"
        shape = shapes[0] if len(shapes) == 1 else f"{len(shapes)} shapes"
        return [(name, kind, shape, _between(sizes), rank_set(r for ranks in groups.values() for r in ranks))]

    def total(self) -> str:
        """Say how much each rank holds in all."""
        groups: dict[str, list[int]] = {}
        for rank, nbytes in self.nbytes.items():
            groups.setdefault(nbytes_in_words(nbytes), []).append(rank)
        if len(groups) == 1:
            return f"{next(iter(groups))} a rank" if len(self) > 1 else next(iter(groups))
        if len(groups) <= APART:
            return ", ".join(f"[{rank_set(ranks)}] {size}" for size, ranks in groups.items())
        most = max(self.nbytes, key=lambda rank: self.nbytes[rank])
        return f"{_between(list(self.nbytes.values()))} a rank, most on rank {most}"

    def _told_of_silent(self) -> str:
        if not self.silent:
            return ""
        return f"{output.ranks_in_words(self.silent)} did not answer: C code may hold the interpreter there."

    def _head(self) -> tuple[str, ...]:
        return ("name", "type", "shape", "bytes", "ranks")[: 5 if len(self) + len(self.silent) > 1 else 4]

    def _shown(self) -> list[tuple[str, ...]]:
        head, rows = self._head(), self.rows()
        more = [(f"… {len(rows) - LISTED} more",) + ("",) * (len(head) - 1)] if len(rows) > LISTED else []
        return [*(row[: len(head)] for row in rows[:LISTED]), *more]

    def __repr__(self) -> str:
        lines = [self._head(), *self._shown()]
        if len(lines) == 1:
            return "\n".join(filter(None, ("No variables.", self._told_of_silent())))
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join(filter(None, (*map(str.rstrip, text), f"total: {self.total()}", self._told_of_silent())))

    def _repr_html_(self) -> str:
        rows = self._shown()
        if not rows:
            return f"<p>{html.escape(repr(self))}</p>"
        head = "".join(f'<th style="text-align:left">{name}</th>' for name in self._head())
        body = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in row) + "</tr>"
            for row in rows
        )
        below = " · ".join(filter(None, (f"total: {self.total()}", self._told_of_silent())))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><div>{html.escape(below)}</div>"


def variables_of(
    control: Control, ranks: Sequence[int], *, everything: bool = False, wait_s: float = ANSWER_S
) -> Variables:
    """Ask ranks for their variables; who has not answered in time is named.

    Raises
    ------
    PeerLost
        A rank is not connected.
    """
    answers = control.holdings(ranks, everything=everything)
    deadline = time.monotonic() + wait_s
    while len(answers) < len(ranks) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    told = {rank: from_rows(answer["variables"]) for rank, answer in dict(answers).items()}
    return Variables(told, [rank for rank in ranks if rank not in told])


def _type(one: Variable) -> str:
    return f"{one.kind} {one.dtype}".rstrip()


def _shape(one: Variable) -> str:
    if one.shape is not None:
        return str(one.shape)
    return "" if one.length is None else f"length {one.length}"


def _between(sizes: Sequence[int]) -> str:
    least, most = nbytes_in_words(min(sizes)), nbytes_in_words(max(sizes))
    return least if least == most else f"{least} to {most}"
