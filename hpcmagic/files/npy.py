"""Files of numpy: .npy, read and written by place."""

from __future__ import annotations

import io
import math
import os
from typing import Any

from hpcmagic.errors import DataError
from hpcmagic.files.kinds import Header, Whole, dtype_from, dtype_text, library
from hpcmagic.files.places import _Placed, _places


class _Npy(_Placed):
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

    def begin(self, whole: Whole) -> None:
        """Make the file as long as it will be, and only then its header."""
        dtype, header = dtype_from(whole.dtype), io.BytesIO()
        described = {"descr": dtype.descr if dtype.names else dtype.str, "fortran_order": whole.order == "F"}
        library("numpy").lib.format.write_array_header_1_0(header, described | {"shape": whole.shape})
        with self.writing(os.O_CREAT | os.O_EXCL) as fd:
            os.truncate(fd, header.tell() + math.prod(whole.shape) * dtype.itemsize)
            os.pwrite(fd, header.getvalue(), 0)
        self.tell(whole, header.tell())
