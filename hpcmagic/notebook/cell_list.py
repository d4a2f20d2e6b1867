"""Every cell of a session: this kernel's own that still run, all others as the journal tells of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import overload

from hpcmagic.notebook.handles import Cell, Holder
from hpcmagic.wire.history import cell_paths, read_records
from hpcmagic.wire.messages import from_frames
from hpcmagic.wire.pending import Pending

LAG_S = 1.0  # of a full disk nothing is ever written
LOOK_S = 0.02


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
        return self.newest(len(self))

    def newest(self, number: int) -> str:
        """Give the last so many, one a line, and how many there are before."""
        before = max(0, len(self) - number)
        lines = [f"… {before} before: `%hpc cells`"] if before else []
        lines += [f"[{place}] {self[place]!r}"[:160] for place in range(before, len(self))]
        return "\n".join(lines) or "no cells yet"


class OwnCells:
    """A kernel's own cells that are not over, and which of them was over last."""

    def __init__(self) -> None:
        self._live: dict[str, Cell] = {}  # by id
        self._last_over = ""

    def add(self, cell: Cell, pending: Pending) -> None:
        """Hold a cell until it is over: whoever wants it then keeps its handle, or reads the journal."""
        self._live[cell.id] = cell
        cell_id = cell.id
        pending.at_end(lambda: self._forget(cell_id))

    def _forget(self, cell_id: str) -> None:
        self._live.pop(cell_id, None)
        self._last_over = cell_id

    def among_all(self, session: Holder) -> Cells:
        """Give all cells of the session; what this kernel has seen end is over in the list, too."""
        last, self._last_over = self._last_over, ""
        if last and not session.ended:
            wait_until_written(session, last)
        return all_cells(session, dict(self._live))

    def live(self) -> list[Cell]:
        """Give those that are not over."""
        return list(self._live.values())

    def lose(self) -> None:
        """Note that the ranks never will answer."""
        for cell in self.live():
            cell.lose()


def wait_until_written(session: Holder, cell_id: str) -> None:
    """Wait until the journal knows that a cell is over: the keeper writes a moment after the kernel has heard."""
    deadline = time.monotonic() + LAG_S
    while time.monotonic() < deadline:
        _, path = cell_paths(session.directory.cells).get(cell_id, (0, None))
        cell = from_journal(session, cell_id, path) if path is not None else None
        if cell is not None and cell.done():
            return
        time.sleep(LOOK_S)


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
        client=head["client"], sent=head["sent"], first_line=sent.first_line, file=path.name,
    )  # fmt: skip
