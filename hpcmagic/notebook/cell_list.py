"""Every cell of a session: this kernel's own that still run, all others as the journal tells of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import overload

from hpcmagic.notebook.handles import Cell, Holder
from hpcmagic.wire.history import cell_paths, read_records
from hpcmagic.wire.messages import from_frames


class Cells(Sequence[Cell]):
    """Every cell of a session, in the order in which they were sent."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = list(cells)

    def __len__(self) -> int:
        return len(self._cells)

    @overload
    def __getitem__(self, index: int) -> Cell: ...
    @overload
    def __getitem__(self, index: slice) -> list[Cell]: ...
    def __getitem__(self, index: int | slice) -> Cell | list[Cell]:
        """Give a cell by its place, the first being 0."""
        return self._cells[index]

    def __repr__(self) -> str:
        return "\n".join(f"[{place}] {cell!r}"[:160] for place, cell in enumerate(self._cells)) or "no cells yet"


def all_cells(session: Holder, live: Mapping[str, Cell]) -> Cells:
    """Give a session's cells: this kernel's own that still run, all others by the journal."""
    found: dict[str, Cell] = {}
    for cell_id, (_, path) in cell_paths(session.directory.cells).items():
        cell = live.get(cell_id) or from_journal(session, cell_id, path)
        if cell is not None:
            found[cell_id] = cell
    return Cells([*found.values(), *(cell for cell_id, cell in live.items() if cell_id not in found)])


def from_journal(session: Holder, cell_id: str, path: Path) -> Cell | None:
    """Give a cell as the journal tells of it; None while its first record is not whole."""
    first = next(read_records(path), None)
    if first is None or first[0].kind != "cell":
        return None
    head, sent = first[0].head, from_frames(first[0].frames)
    return Cell(
        session, cell_id, sent.source, head["name"], head["ranks"],
        client=head["client"], sent=head["sent"], first_line=sent.first_line,
    )  # fmt: skip
