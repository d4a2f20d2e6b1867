"""A value as it travels: its parts, byte after byte; and the room that it arrives in.

    value ─► packed() ─► Parcel (says how large the parts are) ─► room_for() ─► Room ─► value
                      └► parts ─► blocks() ═══ sealed frames ═══► Room.blocks() ┘

A plain NumPy array is one part: its bytes in the order in which it lies, taken from where it is and received where
it shall be. Any other value is pickled with protocol 5: the pickle is the first part, each large buffer another.
Of an Arrow table or array that is one buffer, Arrow's stream, made of pieces of memory that is not copied.
NumPy itself is only needed where an array travels.
"""

from __future__ import annotations

import mmap
import pickle
import sys
from collections.abc import Iterable, Iterator, Sequence
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
    """Give a value's parcel and its parts; of arrays and Arrow's tables no bytes are copied.

    A part is a view of memory, an array, or a list of views.

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
    if kind := _arrow_kind(value):
        body = Pickled.of(_ArrowStream([], kind), -1).body  # its one buffer, though empty here, is another part
        stream = _stream_of(value, kind)
        return Parcel((len(body), sum(piece.nbytes for piece in stream))), [memoryview(body), stream]
    pickled = Pickled.of(value, SMALL_BUFFER_NBYTES)
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
    if kind := _arrow_kind(value):
        return Pickled.of(_ArrowStream(_stream_of(value, kind), kind))
    return Pickled.of(value)


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


def _arrow_kind(value: Any) -> str:
    """Give which of Arrow's tables and arrays a value is; "" if none."""
    if type(value).__module__.partition(".")[0] != "pyarrow":
        return ""
    kinds = (base.__name__ for base in type(value).__mro__)
    kind = next((kind for kind in kinds if kind in (*ARROW, "ExtensionArray")), "")
    return kind if kind in ARROW else ""


def _stream_of(value: Any, kind: str) -> list[memoryview]:
    """Give a table, or an array as a table's only column, in Arrow's streaming format, piece by piece.

    Pickled itself, a slice takes along all that it was cut from. Here it is the slice alone: its pieces lie where
    the table's buffers do.
    """
    import pyarrow as pa

    pieces: list[memoryview] = []
    try:
        table = value if "Array" not in kind else pa.table([value], [""])
        with pa.ipc.new_stream(_Pieces(pieces), table.schema) as stream:
            stream.write(table)
    except Exception as error:  # as of a pickle: Arrow has no way to write some types
        raise pickle.PicklingError(str(error)) from error
    return pieces


class _Pieces:
    """A file, as far as Arrow asks for one, that keeps what is written to it, and where it lies."""

    closed = False

    def __init__(self, pieces: list[memoryview]) -> None:
        self.write = lambda piece: pieces.append(memoryview(piece).cast("B"))


class _ArrowStream:
    """Arrow's stream, which unpickles as the table or array that it holds."""

    def __init__(self, pieces: list[memoryview], kind: str) -> None:
        self.pieces = pieces
        self.kind = kind

    def __reduce__(self) -> Any:
        return _read_arrow, (pickle.PickleBuffer(b"".join(self.pieces)), self.kind)


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
        elif isinstance(part, list):
            yield from _staged_out(part)
        elif part.flags.c_contiguous:
            yield from _cut(_bytes_of(part))
        else:
            yield from _staged_out(map(_contiguous, _sections(part)))


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


def _contiguous(array: Any) -> memoryview:
    import numpy as np

    return _bytes_of(np.ascontiguousarray(array))


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


def _staged_out(pieces: Iterable[memoryview]) -> Iterator[memoryview]:
    """Copy pieces together, and give blocks of them."""
    block, filled = memoryview(bytearray(FRAME_NBYTES)), 0
    for piece in pieces:
        flat = piece
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
