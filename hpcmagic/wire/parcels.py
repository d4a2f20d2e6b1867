"""A value as it travels: its parts, byte after byte; and the room that it arrives in.

    value ─► packed() ─► Parcel (says how large the parts are) ─► room_for() ─► Room ─► value
                      └► parts ─► blocks() ═══ sealed frames ═══► Room.blocks() ┘

A plain NumPy array is one part: its bytes in the order in which it lies, taken from where it is and received where
it shall be. Any other value is pickled with protocol 5: the pickle is the first part, each large buffer another.
NumPy itself is only needed where an array travels.
"""

from __future__ import annotations

import mmap
import pickle
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hpcmagic.wire.messages import FRAME_NBYTES, ArrayHead, Parcel, Pickled

STAGE_NBYTES = 2 << 20  # of an array that does not lie as it travels: copied so much at a time
MAPPED_NBYTES = 1 << 20  # room of this size or more is a mapping of its own: given back when the value goes
ARROW = ("Table", "RecordBatch", "Array", "ChunkedArray")
SMALL_BUFFER_NBYTES = 16 << 10  # smaller buffers of a value stay in its pickle


def is_plain_array(value: Any) -> bool:
    """Whether a value is a NumPy array that is nothing but its bytes."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and not value.dtype.hasobject


def order_of(array: Any) -> str:
    """Give the order in which an array lies; C where it lies in neither."""
    return "F" if array.flags.fnc else "C"


def packed(value: Any, order: str = "") -> tuple[Parcel, list[Any]]:
    """Give a value's parcel and its parts; none of an array's bytes is copied.

    Raises
    ------
    pickle.PicklingError
        It cannot be pickled.
    """
    if is_plain_array(value):
        order = order or order_of(value)
        return Parcel((value.nbytes,), ArrayHead(value.shape, pickle.dumps(value.dtype), order)), [
            value.T if order == "F" else value
        ]
    pickled = Pickled.of(_compact(value), SMALL_BUFFER_NBYTES)
    parts = [memoryview(pickled.body), *(memoryview(b).cast("B") for b in pickled.buffers)]
    return Parcel(tuple(part.nbytes for part in parts)), parts


def pickled_small(value: Any, order: str = "") -> Pickled:
    """Pickle a value that travels with a request, as it would arrive over the bulk channel.

    Raises
    ------
    pickle.PicklingError
        It cannot be pickled.
    """
    if is_plain_array(value):
        return Pickled.of(_SmallArray(value, order or order_of(value)))
    return Pickled.of(_compact(value))


class _SmallArray:
    """An array as its bytes, which unpickle as the array: in NumPy's own pickle some lose their byte order."""

    def __init__(self, array: Any, order: str) -> None:
        self.array = array
        self.order = order

    def __reduce__(self) -> Any:
        flat = self.array.T if self.order == "F" else self.array
        body = pickle.PickleBuffer(_bytes_of(flat.copy("C")))
        return _array, (self.array.shape, self.array.dtype, self.order, body)


def _array(shape: tuple[int, ...], dtype: Any, order: str, buffer: Any) -> Any:
    """Give the array whose bytes these are; it lies there."""
    import numpy as np

    own = buffer if memoryview(buffer).nbytes else None
    return np.ndarray(shape, dtype, own, order="F" if order == "F" else "C")


def _compact(value: Any) -> Any:
    """Give what stands for a value in its pickle: of a slice of an Arrow table or array, the slice alone."""
    if type(value).__module__.partition(".")[0] != "pyarrow":
        return value
    kinds = (base.__name__ for base in type(value).__mro__)
    kind = next((kind for kind in kinds if kind in (*ARROW, "ExtensionArray")), "")
    return _ArrowStream(value, kind) if kind in ARROW else value


class _ArrowStream:
    """An Arrow table, or an array as a table's only column, in Arrow's streaming format; it unpickles as what it was.

    Pickled itself, a slice takes along all that it was cut from.
    """

    def __init__(self, value: Any, kind: str) -> None:
        self.value = value
        self.kind = kind

    def __reduce__(self) -> Any:
        import pyarrow as pa

        table = self.value if "Array" not in self.kind else pa.table([self.value], [""])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write(table)
        return _read_arrow, (pickle.PickleBuffer(sink.getvalue()), self.kind)


def _read_arrow(buffer: Any, kind: str) -> Any:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(buffer)) as stream:
        table = stream.read_all()
    if kind == "Table":
        return table
    if "Array" in kind:
        column = table.column(0)
        whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        return column if kind == "ChunkedArray" else whole
    batches = table.to_batches()
    return (
        batches[0]
        if batches
        else pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in table.schema], schema=table.schema)
    )


def blocks(parts: Sequence[Any]) -> Iterator[memoryview]:
    """Give the bytes of parts as blocks of `FRAME_NBYTES`, the last of each part shorter."""
    for part in parts:
        if isinstance(part, memoryview):
            yield from _cut(part)
        elif part.flags.c_contiguous:
            yield from _cut(_bytes_of(part))
        else:
            yield from _staged_out(part)


def landing(array: Any, order: str) -> Iterator[memoryview]:
    """Give room, block after block, for the bytes of an array that is there already; they come in this order."""
    target = array.T if order == "F" else array
    if target.flags.c_contiguous:
        yield from _cut(_bytes_of(target))
    else:
        yield from _staged_in(target)


class Room:
    """Memory for a value that is to come.

    Raises
    ------
    MemoryError
        There is not enough.
    """

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel
        self._buffers = [_memory(size) for size in parcel.sizes]

    def blocks(self) -> Iterator[memoryview]:
        """Give room, block after block."""
        for buffer in self._buffers:
            yield from _cut(memoryview(buffer))

    def value(self) -> Any:
        """Give the value, once all has come.

        Raises
        ------
        pickle.UnpicklingError
            It cannot be loaded here.
        """
        head = self.parcel.array
        if head is None:
            body, *buffers = self._buffers
            return Pickled(bytes(body), tuple(buffers)).load_in_place()
        return _array(head.shape, head.dtype, head.order, self._buffers[0])


def _memory(nbytes: int) -> Any:
    if nbytes < MAPPED_NBYTES:
        return bytearray(nbytes)
    try:
        memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for {nbytes / 1e6:.0f} MB: {error.strerror}") from error
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _cut(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, view.nbytes, FRAME_NBYTES):
        yield view[start : start + FRAME_NBYTES]


def _bytes_of(array: Any) -> memoryview:
    """Give the bytes of a C-contiguous array, where they are; datetimes and others know no buffer protocol."""
    import numpy as np

    return memoryview(array.reshape(-1).view(np.uint8)) if array.nbytes else memoryview(b"")


def _sections(array: Any) -> Iterator[Any]:
    """Cut an array along its first axes into sections of at most `STAGE_NBYTES`, in C order."""
    if array.nbytes <= STAGE_NBYTES or array.ndim == 0:
        yield array
        return
    rows = max(1, STAGE_NBYTES * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        section = array[start : start + rows]
        if rows == 1 and array.ndim > 1:  # one of its own records may be larger
            yield from _sections(section[0])
        else:
            yield section


def _staged_out(array: Any) -> Iterator[memoryview]:
    """Copy an array together, section after section, and give blocks of it."""
    import numpy as np

    block, filled = memoryview(bytearray(FRAME_NBYTES)), 0
    for section in _sections(array):
        flat = _bytes_of(np.ascontiguousarray(section))
        while flat:
            taken = flat[: FRAME_NBYTES - filled]
            block[filled : filled + len(taken)] = taken
            filled, flat = filled + len(taken), flat[len(taken) :]
            if filled == FRAME_NBYTES:
                yield block
                filled = 0
    if filled:
        yield block[:filled]


def _staged_in(array: Any) -> Iterator[memoryview]:
    """Give room for blocks, and copy what came into an array, section after section."""
    import numpy as np

    block = memoryview(bytearray(FRAME_NBYTES))
    left, came = array.nbytes, memoryview(b"")
    for section in _sections(array):
        stage = np.empty(section.shape, section.dtype)
        room = _bytes_of(stage)
        while room:
            if not came:
                came = block[: min(FRAME_NBYTES, left)]
                yield came
                left -= len(came)
            taken = min(len(came), len(room))
            room[:taken] = came[:taken]
            room, came = room[taken:], came[taken:]
        section[...] = stage
