"""A handle at a glance: how its cell goes, the end of what it has put out, and in the end its value or its error."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hpcmagic.errors import HpcMagicError
from hpcmagic.notebook import output
from hpcmagic.wire.messages import Output

if TYPE_CHECKING:
    from hpcmagic.notebook.handles import Cell

TAIL_LINES = 12  # of its output
TAIL_NBYTES = 4000  # of each rank's output
COLOURS = {"running": "#1976d2", "done": "#2e7d32", "failed": "#c62828"}


def as_text(cell: Cell) -> str:
    """Give how a cell goes, and the end of its output."""
    return "\n".join([f"{cell.name}: {cell.how_it_goes()}", *_tail(cell)])


def as_html(cell: Cell) -> str:
    """Give the same as a page."""
    colour = COLOURS.get(cell.state, "#8d6e63")
    name, goes = html.escape(cell.name), html.escape(cell.how_it_goes())
    tail = "\n".join(_tail(cell))
    body = f'<pre style="margin:0.3em 0 0 1.1em; font-size:90%">{html.escape(tail)}</pre>' if tail else ""
    return f'<div><span style="color:{colour}">●</span> <b>{name}</b> {goes}{body}</div>'


def _tail(cell: Cell) -> list[str]:
    """Give the last lines of the output, and how it ended."""
    ends = {rank: _end(pieces) for rank, pieces in cell.outputs().items()}
    lines = output.text_of(ends, labels=cell.session.size > 1).splitlines()
    lines = ["…", *lines[-TAIL_LINES:]] if len(lines) > TAIL_LINES else lines
    if not cell.done():
        return lines
    try:
        value = cell.outcome()
    except HpcMagicError as error:
        return [*lines, *str(error).splitlines()]
    ended = repr(value).splitlines() if value is not None else []
    return [*lines, *(["→"] if lines and ended else []), *ended[:TAIL_LINES]]


def _end(pieces: Sequence[Output]) -> list[Output]:
    """Give the last pieces of a rank's output, the first of them cut: a display is drawn twice a second."""
    kept: list[Output] = []
    nbytes = 0
    for piece in reversed(pieces):
        text = piece.text if len(piece.text) <= TAIL_NBYTES else piece.text[-TAIL_NBYTES:].partition("\n")[2]
        kept.append(replace(piece, text=text))
        nbytes += len(text)
        if nbytes >= TAIL_NBYTES:
            break
    return kept[::-1]
