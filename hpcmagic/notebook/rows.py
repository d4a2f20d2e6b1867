"""Rows that lie in a file: each rank reads its own, or writes its own; none of them passes the notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcmagic import shards
from hpcmagic.errors import DataError, HpcMagicError
from hpcmagic.files import Contents, File, Whole, dtype_text, steps
from hpcmagic.notebook import output
from hpcmagic.wire.messages import ArrayHead, Bind, LookAt, Offered, ReadRows, Write

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session


def scatter_file(session: Session, names: Sequence[str], file: File, axis: int, transfer: int) -> None:
    """Let each rank read its own rows of a file, and bind names to them once all have.

    Raises
    ------
    RankError
        A rank cannot read it; names the rank and the host.
    DataError
        It is not the same file everywhere, or has no such axis.
    """
    file = file.absolute(str(Path.cwd()))
    ranks = range(session.size)
    seen = {reply.rank: reply.seen for reply in session.ask(dict.fromkeys(ranks, LookAt(file))) if reply.seen}
    contents = _same(session, file, seen)
    edges = shards.bounds(contents.rows_along(axis), session.size)
    session.ask({rank: ReadRows(transfer, file, *edges[rank], axis, contents) for rank in ranks})
    session.ask(dict.fromkeys(ranks, Bind(transfer, tuple(names), axis)))


def _same(session: Session, file: File, seen: Mapping[int, Contents]) -> Contents:
    """Give what all ranks see of a file."""
    contents = seen[0]
    other = sorted(rank for rank, one in seen.items() if one != contents)
    if other:
        nodes = session.keeper_state().nodes
        raise DataError(
            f"`{file}` is not the same file everywhere: {output.ranks_in_words(other)} "
            f"{'have' if len(other) > 1 else 'has'} another than rank 0 on host {nodes[0]}; "
            f"rank {other[0]} is on host {nodes[other[0]]}.",
            "Put it on a file system that all nodes share.",
        )
    return contents


def gather_file(
    session: Session, name: str, file: File, offered: Mapping[int, Offered], *, axis: int, transfer: int
) -> None:
    """Let each rank write its own rows into a file, which takes its place when it is whole.

    Raises
    ------
    RankError
        A rank cannot write, for want of room say; what was there before stays.
    DataError
        The shards do not fit each other, or the kind of file.
    """
    file = file.absolute(str(Path.cwd()))
    whole, begins = _whole(name, offered, axis)
    session.ask({0: Write("begin", file, whole)})
    try:
        for step, at_once in steps(file).items():
            asked = {
                rank: Write(step, file, transfer=transfer, name=name, begin=begin, axis=axis)
                for rank, begin in enumerate(begins)
            }
            for part in [asked] if at_once else [{rank: one} for rank, one in asked.items()]:
                session.ask(part)
        session.ask({0: Write("finish", file)})
    except (HpcMagicError, KeyboardInterrupt):
        if not session.ended:
            session.ask({0: Write("give up", file)})
        raise


def _whole(name: str, offered: Mapping[int, Offered], axis: int) -> tuple[Whole, list[int]]:
    """Give what the file will be as a whole, and the row at which each rank begins."""
    heads = [one.parcel.array for one in offered.values() if one.parcel.array is not None]
    if not heads:
        return Whole("table", (), "", "C"), [0] * len(offered)
    if len(heads) < len(offered):
        raise DataError(f"`{name}` is an array on some ranks only.", f"`%pull {name}` gives each rank's own.")
    require_heads_alike(name, heads, axis)
    axis %= len(heads[0].shape)
    rows = [head.shape[axis] for head in heads]
    shape = (*heads[0].shape[:axis], sum(rows), *heads[0].shape[axis + 1 :])
    return Whole("array", shape, dtype_text(heads[0].dtype), heads[0].order), [
        sum(rows[:r]) for r in range(len(rows))
    ]


def require_heads_alike(name: str, heads: Sequence[ArrayHead], axis: int) -> None:
    """Refuse arrays that do not fit each other, before a byte of them moves.

    Raises
    ------
    DataError
        Names which ranks differ, and how.
    """
    import numpy as np

    shards.require_alike(name, [np.broadcast_to(np.empty((), head.dtype), head.shape) for head in heads], axis)
