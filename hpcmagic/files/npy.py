"""Files of numpy: .npy, read and written by place."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from hpcmagic.errors import DataError
from hpcmagic.files.kinds import Header, Whole, _Format, dtype_from, dtype_text, fitting, library


class _Npy(_Format):
    """Read and written by place, without a memory map: that kills a rank (SIGBUS) when the file is cut."""

    def header(self) -> Header:
        with self.store.open("rb", buffering=0) as opened:
            shape, order, dtype, _ = self.read_header(opened)
        return shape, dtype_text(dtype), order, ()

    def read_header(self, opened: Any) -> tuple[tuple[int, ...], str, Any, int]:
        """Give shape, order, dtype, and where the data begin."""
        numpy_format = library("numpy").lib.format
        version = numpy_format.read_magic(opened)
        read = numpy_format.read_array_header_1_0 if version == (1, 0) else numpy_format.read_array_header_2_0
        shape, fortran, dtype = read(opened)
        offset, nbytes = opened.tell(), os.fstat(opened.fileno()).st_size
        if dtype.hasobject:
            raise DataError(f"`{self.store}` holds pickled objects, which are not read.", "Save numbers or text.")
        if nbytes < (wanted := offset + math.prod(shape) * dtype.itemsize):
            message = f"`{self.store}` is shorter than its header says: {nbytes} bytes, not {wanted}."
            raise DataError(message, "Write it again: it was cut, or is not written to its end.")
        if version > (2, 0):  # fields are named in UTF-8; the data are mapped, but not looked at
            dtype = numpy_format.open_memmap(opened.name, mode="r").dtype
        return shape, "F" if fortran else "C", dtype, offset

    def read(self, begin: int, end: int, axis: int) -> Any:
        with self.store.open("rb", buffering=0) as opened:
            shape, order, dtype, offset = self.read_header(opened)
            if order == "F":  # is the transpose in C order
                shape, axis = shape[::-1], len(shape) - 1 - axis
            rows = library("numpy").empty((*shape[:axis], end - begin, *shape[axis + 1 :]), dtype)
            places = _places(shape, dtype.itemsize, begin, end, axis)
            self.move(lambda piece, place: os.preadv(opened.fileno(), [piece], offset + place), rows, places)
        return rows.T if order == "F" else rows

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

    def begin(self, whole: Whole) -> None:
        """Make the file as long as it will be, and only then its header.

        Of a page that it holds, an NFS client writes more than it was given, over what others wrote there. It holds
        pages that it read, or wrote at a file's end. So no rank reads: shape and dtype are told in another file.
        """
        dtype, header = dtype_from(whole.dtype), io.BytesIO()
        described = {"descr": dtype.descr if dtype.names else dtype.str, "fortran_order": whole.order == "F"}
        library("numpy").lib.format.write_array_header_1_0(header, described | {"shape": whole.shape})
        with self.writing(os.O_CREAT | os.O_EXCL) as fd:
            os.truncate(fd, header.tell() + math.prod(whole.shape) * dtype.itemsize)
            os.pwrite(fd, header.getvalue(), 0)
        self.layout.write_text(json.dumps(asdict(whole)))

    @contextmanager
    def writing(self, flags: int = 0) -> Iterator[int]:
        fd = os.open(self.part, os.O_WRONLY | flags, 0o600)
        try:
            yield fd
            os.fsync(fd)  # NFS tells of a full disk no sooner
        finally:
            os.close(fd)

    def write(self, value: Any, begin: int, rank: int, axis: int) -> None:
        whole = Whole(**json.loads(self.layout.read_text()))
        shape, dtype = whole.shape, dtype_from(whole.dtype)
        rows, axis = fitting(value, (shape, dtype), begin, rank, axis)
        end = begin + rows.shape[axis]
        if whole.order == "F":
            rows, shape, axis = rows.T, shape[::-1], len(shape) - 1 - axis
        rows = library("numpy").ascontiguousarray(rows, dtype)
        with self.writing() as fd:
            offset = os.fstat(fd).st_size - math.prod(shape) * dtype.itemsize
            places = _places(shape, dtype.itemsize, begin, end, axis)
            self.move(lambda piece, place: os.pwrite(fd, piece, offset + place), rows, places)


def _places(shape: tuple[int, ...], itemsize: int, begin: int, end: int, axis: int) -> Iterator[tuple[int, int]]:
    """Give place among the data and length, in bytes, of each run of the rows in C order."""
    row = itemsize * math.prod(shape[axis + 1 :])
    for outer in range(math.prod(shape[:axis])):
        yield (outer * shape[axis] + begin) * row, (end - begin) * row
