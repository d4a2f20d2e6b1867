"""Writes down what passes by: every cell, its output, its replies, for whoever attaches later.

    request ─► a new file in cells/    output, reply ─► behind it
    a rank gone ─► "lost"              one that waits for ever ─► "stuck"

Nothing is kept in memory but sizes and names. On disk the oldest finished cells give way: first their
outputs and values, then all of them. A disk that is full stops the writing, never the cells.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmagic.wire.history import Record, append_record, cell_path, read_records

LIMIT_NBYTES = 512 << 20  # of all cells' files together
LIMIT_CELLS = 5000


@dataclass
class _Cell:
    path: Path
    waits_for: set[int]
    pieces: dict[int, int] = field(default_factory=dict)  # of output, by rank: how many are there
    nbytes: int = 0
    began_s: float = field(default_factory=time.monotonic)
    dropped: bool = False


class Journal:
    """The cells of one session, as they pass the keeper.

    Parameters
    ----------
    folder
        Where the cells' files are written.
    limit_nbytes
        How large they may be together.
    """

    def __init__(self, folder: Path, limit_nbytes: int = LIMIT_NBYTES) -> None:
        self.folder = folder
        self.limit_nbytes = limit_nbytes
        self.trouble = ""  # why nothing is written at the moment
        self.nbytes = 0
        self.stuck: dict[str, str] = {}  # by rank: where it waits for ever
        self._stuck_in: dict[str, str] = {}  # … and in which cell
        self._cells: OrderedDict[str, _Cell] = OrderedDict()
        self._number = 0

    @property
    def unfinished(self) -> list[str]:
        """The ids of cells that some rank has not answered."""
        return [cell for cell, noted in self._cells.items() if noted.waits_for]

    def on_request(self, content: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Note a cell, once for all its ranks."""
        cell = content.get("cell")
        if not cell or cell in self._cells:
            return
        self._number += 1
        path = cell_path(self.folder, self._number, cell)
        self._cells[cell] = _Cell(path, set(content["ranks"]))
        head = {"kind": "cell", "number": self._number, "sent": time.time(), **content}
        self._write(cell, head, buffers)
        self._make_room()

    def on_output(self, content: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Note a piece of a rank's output."""
        noted = self._cells.get(content.get("cell", ""))
        if noted is not None:
            noted.pieces[content["rank"]] = content["piece"] + 1
        self._write(content.get("cell", ""), {"kind": "output", **content}, buffers)

    def on_reply(self, content: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Note how a rank ended."""
        cell = self._cells.get(content.get("cell", ""))
        if cell is not None:
            cell.waits_for.discard(content["rank"])
            if self._stuck_in.get(str(content["rank"])) == content["cell"]:
                self._forget_stuck(str(content["rank"]))
            head = {"kind": "reply", "elapsed_s": round(time.monotonic() - cell.began_s, 3), **content}
            self._write(content["cell"], head, buffers)
            self._make_room()

    def on_stuck(self, cell: str, ranks: dict[str, str]) -> None:
        """Note ranks that wait for ever in a cell, each with where: nobody waits for them any more."""
        noted = self._cells.get(cell)
        left = {rank: where for rank, where in ranks.items() if noted is not None and int(rank) in noted.waits_for}
        if left:
            self.stuck |= left
            self._stuck_in |= dict.fromkeys(left, cell)
            self._write(cell, {"kind": "stuck", "cell": cell, "ranks": left})

    def _forget_stuck(self, rank: str) -> None:
        self.stuck.pop(rank, None)
        self._stuck_in.pop(rank, None)

    def on_last_words(self, rank: int, words: Record) -> None:
        """Note what a rank that is gone had flushed, unless it came."""
        cell = self._cells.get(words.head.get("cell", ""))
        if cell is not None and rank in cell.waits_for and words.head["piece"] >= cell.pieces.get(rank, 0):
            self.on_output({**words.head, "rank": rank}, words.frames)

    def on_lost(self, ranks: Iterable[int], cause: str) -> None:
        """Note ranks that will answer no more."""
        gone = set(ranks)
        for rank in gone:
            self._forget_stuck(str(rank))
        for cell in self.unfinished:
            lost = self._cells[cell].waits_for & gone
            if lost:
                self._cells[cell].waits_for -= lost
                self._write(cell, {"kind": "lost", "cell": cell, "ranks": sorted(lost), "cause": cause})

    def _write(self, cell: str, head: dict[str, Any], frames: Sequence[Any] = ()) -> None:
        noted = self._cells.get(cell)
        if noted is None or noted.dropped:
            return
        try:
            size = append_record(noted.path, head, frames)
        except OSError as error:
            self.trouble = f"cells are not written down: {error.strerror}"
            return
        self.trouble = ""
        noted.nbytes += size
        self.nbytes += size

    def _make_room(self) -> None:
        """Let the oldest finished cells give way."""
        finished = [cell for cell, noted in self._cells.items() if not noted.waits_for]
        for cell in finished if self.nbytes > self.limit_nbytes else ():
            if self.nbytes <= self.limit_nbytes:
                break
            self._drop(cell)
        for cell in finished[: max(0, len(self._cells) - LIMIT_CELLS)]:
            noted = self._cells.pop(cell)
            self.nbytes -= noted.nbytes
            noted.path.unlink(missing_ok=True)

    def _drop(self, cell: str) -> None:
        """Leave of a cell its source and how its ranks ended."""
        noted = self._cells[cell]
        if noted.dropped:
            return
        kept = noted.path.with_name(f".{noted.path.name}")
        size = 0
        try:
            for record, _ in read_records(noted.path, heads_only=True):
                if record.kind != "output":
                    size += append_record(kept, record.head, record.frames)
            size += append_record(kept, {"kind": "dropped", "cell": cell})
            kept.replace(noted.path)
        except OSError as error:
            self.trouble = f"cells are not written down: {error.strerror}"
            kept.unlink(missing_ok=True)
            noted.path.unlink(missing_ok=True)
            size = 0
        self.nbytes += size - noted.nbytes
        noted.nbytes, noted.dropped = size, True
