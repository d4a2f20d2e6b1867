"""How a cell stands: who has answered, who is missing, who is gone, who waits for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Standing:
    """How a cell stands."""

    missing: tuple[int, ...]  # ranks that have not answered, and still may
    raised: frozenset[str]  # the names of what was raised
    lost: frozenset[int]  # ranks that are gone
    waiting: Mapping[int, str]  # ranks that wait for ever, each with where
    dropped: bool = False  # its values gave way to younger cells'


def written_standing(ranks: Sequence[int], heads: Sequence[Mapping[str, Any]]) -> Standing:
    """Give how a cell stands by the heads of its records in the journal."""
    answered = {head["rank"]: head.get("raised", "") for head in heads if head["kind"] == "reply"}
    lost = {rank for head in heads if head["kind"] == "lost" for rank in head["ranks"]}
    stuck = {int(rank): where for head in heads if head["kind"] == "stuck" for rank, where in head["ranks"].items()}
    over = {*answered, *lost, *stuck}
    return Standing(
        tuple(sorted(rank for rank in ranks if rank not in over)),
        frozenset(name for name in answered.values() if name),
        frozenset(lost),
        {rank: where for rank, where in stuck.items() if rank not in answered and rank not in lost},
        any(head["kind"] == "dropped" for head in heads),
    )
