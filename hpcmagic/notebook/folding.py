"""Texts of many ranks → one text: common lines once, `[0-3] ready`; between them each rank's own, in rank order."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hpcmagic.notebook.perrank import rank_set

EXACT_PAIRS = 40_000  # up to so many pairs of lines are compared one by one; beyond, lines that occur once


def fold(texts: Mapping[int, str], *, labels: bool = True) -> str:
    r"""Merge the ranks' texts into one.

    >>> print(fold({0: "a\nok\n", 1: "b\nok\n"}), end="")
    [0] a
    [1] b
    [0-1] ok
    """
    groups: dict[str, list[int]] = {}
    for rank in sorted(texts):
        if texts[rank]:
            groups.setdefault(texts[rank], []).append(rank)
    merged = _aligned([(_lines(text), ranks) for text, ranks in groups.items()])
    return "".join(f"[{label}] {line}\n" if labels else f"{line}\n" for line, label in merged)


def _lines(text: str) -> list[str]:
    r"""Cut text at newlines only; of a line that was drawn anew behind ``\r`` its last state stays."""
    lines = text.removesuffix("\n").split("\n")
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines]


def _aligned(bodies: Sequence[tuple[list[str], list[int]]]) -> Iterator[tuple[str, str]]:
    """Give each line with its ranks; the lines that all have in common once."""
    if not bodies:
        return
    common = bodies[0][0]
    for lines, _ in bodies[1:]:
        common = _common(common, lines) if common else common
    everyone = rank_set(rank for _, ranks in bodies for rank in ranks)
    at = [0] * len(bodies)
    for anchor in (*common, None):
        pieces: dict[tuple[str, ...], list[int]] = {}
        for number, (lines, ranks) in enumerate(bodies):
            end = len(lines) if anchor is None else lines.index(anchor, at[number])
            pieces.setdefault(tuple(lines[at[number] : end]), []).extend(ranks)
            at[number] = end + 1
        for piece, ranks in pieces.items():
            label = rank_set(ranks)
            yield from ((line, label) for line in piece)
        if anchor is not None:
            yield anchor, everyone


def _common(a: list[str], b: list[str]) -> list[str]:
    """Give lines that two texts have in common, in order; many, in little time, if not always the most."""
    most = min(len(a), len(b))
    head = next((n for n in range(most) if a[n] != b[n]), most)
    most -= head
    tail = next((n for n in range(most) if a[-1 - n] != b[-1 - n]), most)
    middle_a, middle_b = a[head : len(a) - tail], b[head : len(b) - tail]
    if len(middle_a) * len(middle_b) <= EXACT_PAIRS:
        blocks = difflib.SequenceMatcher(None, middle_a, middle_b, autojunk=False).get_matching_blocks()
        middle: Iterable[str] = (line for m in blocks for line in middle_a[m.a : m.a + m.size])
    else:
        middle = _common_unique(middle_a, middle_b)
    return [*a[:head], *middle, *a[len(a) - tail :]]


def _common_unique(a: list[str], b: list[str]) -> list[str]:
    """Give the longest run of lines, in order, among those that each text holds just once (patience diff)."""
    count_a, count_b = Counter(a), Counter(b)
    place_in_b = {line: n for n, line in enumerate(b) if count_b[line] == 1 and count_a[line] == 1}
    candidates = [line for line in a if line in place_in_b]
    lowest_end: list[int] = []  # of an increasing run, by its length
    holders: list[int] = []
    before: list[int] = []
    for number, line in enumerate(candidates):
        length = bisect_left(lowest_end, place_in_b[line])
        before.append(holders[length - 1] if length else -1)
        lowest_end[length : length + 1] = [place_in_b[line]]
        holders[length : length + 1] = [number]
    run: list[str] = []
    number = holders[-1] if holders else -1
    while number >= 0:
        run.append(candidates[number])
        number = before[number]
    return run[::-1]
