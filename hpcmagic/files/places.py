"""Rows that are written to their places among the data of one file, by all ranks at once, with no library between.

Of a page that it holds, an NFS client writes more than it was given, over what others wrote there. It holds pages
that it read, or wrote at a file's end. So no rank reads: what the whole is, and where its data begin, another file
tells.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from hpcmagic.errors import DataError
from hpcmagic.files.kinds import Whole, _Format, dtype_from, fitting, library


class _Placed(_Format):
    """A file in which the data of an array lie in one piece."""

    def tell(self, whole: Whole, offset: int) -> None:
        """Tell the ranks what the whole is, and the place in the file at which its data begin."""
        self.layout.write_text(json.dumps({"whole": asdict(whole), "offset": offset}))

    @contextmanager
    def writing(self, flags: int = 0) -> Iterator[int]:
        fd = os.open(self.part, os.O_WRONLY | flags, 0o600)
        try:
            yield fd
            os.fsync(fd)  # NFS tells of a full disk no sooner
        finally:
            os.close(fd)

    def write(self, value: Any, begin: int, rank: int, axis: int, _step: str) -> None:
        told = json.loads(self.layout.read_text())
        whole, offset = Whole(**told["whole"]), told["offset"]
        shape, dtype = whole.shape, dtype_from(whole.dtype)
        rows, axis = fitting(value, (shape, dtype), begin, rank, axis)
        end = begin + rows.shape[axis]
        if whole.order == "F":
            rows, shape, axis = rows.T, shape[::-1], len(shape) - 1 - axis
        rows = library("numpy").ascontiguousarray(rows, dtype)
        with self.writing() as fd:
            places = _places(shape, dtype.itemsize, begin, end, axis)
            self.move(lambda piece, place: os.pwrite(fd, piece, offset + place), rows, places)

    def move(self, some: Callable[[Any, int], int], rows: Any, places: Iterator[tuple[int, int]]) -> None:
        """Read or write rows in C order; `some` moves some bytes from or to a place, and says how many."""
        left = memoryview(rows.reshape(-1).view("u1") if rows.nbytes else b"")
        for begin, nbytes in places if left else ():
            piece, left, place = left[:nbytes], left[nbytes:], begin
            while piece:
                done = some(piece, place)
                if not done:
                    raise DataError(f"`{self.store}` has become shorter while it was read.", "Read it again.")
                piece, place = piece[done:], place + done


def _places(shape: tuple[int, ...], itemsize: int, begin: int, end: int, axis: int) -> Iterator[tuple[int, int]]:
    """Give place among the data and length, in bytes, of each run of the rows in C order."""
    row = itemsize * math.prod(shape[axis + 1 :])
    for outer in range(math.prod(shape[:axis])):
        yield (outer * shape[axis] + begin) * row, (end - begin) * row
