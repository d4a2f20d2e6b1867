"""A value's bytes, from where it lies to where it shall be: all of them, none twice, into memory of its own."""

import pickle
import sys
import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hpcmagic.wire import messages, parcels
from hpcmagic.wire.messages import FRAME_NBYTES, Parcel
from hpcmagic.wire.parcels import (
    STAGE_NBYTES,
    Room,
    blocks,
    is_plain_array,
    landing,
    order_of,
    packed,
    pickled_small,
)

RECORD = np.dtype([("t", "M8[ms]"), ("id", ">u4"), ("name", "U5"), ("at", "f4", (2, 3))])
DTYPES = [
    "?", "i1", "u2", "<i4", ">i4", ">u8", "f2", "<f4", ">f8", "g", "c8", ">c16", "S5", "<U3", ">U3", "V7", "M8[ns]",
    ">M8[us]", "M8[D]", "m8[s]", RECORD, np.dtype([("a", "u1"), ("b", "f8")], align=True),
    np.dtype([("outer", [("inner", "i2", (2,)), ("c", "c8")]), ("flag", "?")]),
]  # fmt: skip
LAYOUTS = {
    "C": lambda a: a.reshape(6, 5, 4),
    "F": lambda a: np.asfortranarray(a.reshape(6, 5, 4)),
    "flat": lambda a: a,
    "strided": lambda a: a.reshape(6, 20)[::2, 3::5],
    "every other": lambda a: a[::2],
    "backwards": lambda a: a[::-1],
    "backwards both": lambda a: a.reshape(6, 20)[::-1, ::-3],
    "turned": lambda a: a.reshape(6, 5, 4).transpose(1, 0, 2),
    "columns of F": lambda a: np.asfortranarray(a.reshape(6, 20))[:, 4:9],
    "rows of F": lambda a: np.asfortranarray(a.reshape(6, 20))[2:4],
    "one": lambda a: a[7:8].reshape(1, 1, 1),
    "no axis": lambda a: a[5:6].reshape(()),
    "none": lambda a: a[:0],
    "none of many": lambda a: a.reshape(6, 20)[:, 5:5],
    "spread": lambda a: np.broadcast_to(a[:4], (3, 4)),
}
TABLE = pa.table({"a": np.arange(1000), "s": [str(number) for number in range(1000)]})


def array_of(dtype, count=120):
    """An array of any type, its bytes at random, but texts and truths that are some."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(0)
    if dtype.names:
        array = np.zeros(count, dtype)
        for name in dtype.names:
            field = array[name]
            field[...] = array_of(field.dtype, field.size).reshape(field.shape)
        return array
    if dtype.kind in "?USb":
        return rng.integers(0, 2 if dtype.kind == "b" else 99_999, count).astype(dtype)
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).copy()


def same(value, other):
    """Require the same bytes in the same places, of the same type, and the same order in memory."""
    assert type(value) is type(other)
    assert value.dtype == other.dtype
    assert value.dtype.isalignedstruct == other.dtype.isalignedstruct
    assert value.shape == other.shape
    assert order_of(value) == order_of(other)
    if value.dtype.names:
        for name in value.dtype.names:
            assert value[name].tobytes() == other[name].tobytes()
    else:
        assert value.tobytes() == other.tobytes()


def travelled(value, order=""):
    """Give a value as it arrives: what is known before comes as a message, then the bytes, block after block."""
    parcel, parts = packed(value, order)
    again = pickle.loads(pickle.dumps(parcel))
    assert again == parcel
    room, frames = Room(again), 0
    for block, place in zip(blocks(parts), room.blocks(), strict=True):
        assert 0 < len(block) <= messages.FRAME_NBYTES
        place[:] = block
        frames += 1
    assert frames == parcel.frames
    return room.value()


def landed(value, target, order):
    """Let an array's bytes land in one that is there already."""
    parcel, parts = packed(value, order)
    frames = 0
    for block, place in zip(blocks(parts), landing(target, order), strict=True):
        place[:] = block
        frames += 1
    assert frames == parcel.frames


def address(buffer):
    """Where a buffer's bytes lie in memory."""
    return np.frombuffer(buffer, dtype=np.uint8).ctypes.data


@pytest.fixture
def small_frames(monkeypatch):
    """Frames and stages so small that arrays of a few numbers take many."""
    for module, name, nbytes in (
        (messages, "FRAME_NBYTES", 64),
        (parcels, "FRAME_NBYTES", 64),
        (parcels, "STAGE_NBYTES", 100),
    ):
        monkeypatch.setattr(module, name, nbytes)


# ---- arrays


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_come_back(dtype, layout, small_frames):
    """An array of any type, shape and layout arrives with its bytes, type, shape and order."""
    array = LAYOUTS[layout](array_of(dtype))
    same(travelled(array), array.copy("F" if order_of(array) == "F" else "C"))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_as_asked(layout, order, small_frames):
    """Who asks for an order gets it, however the array lies here."""
    array = LAYOUTS[layout](array_of("f8"))
    same(travelled(array, order), array.copy(order))


@given(st.data())
def test_any_array(data):
    """So does whatever else NumPy knows: of any type, and seen through any slices."""
    dtype = data.draw(hnp.scalar_dtypes() | hnp.array_dtypes(max_size=3), label="dtype")
    whole = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)), label="array")
    array = np.asarray(whole[data.draw(hnp.basic_indices(whole.shape), label="slices")])
    array = array.transpose(data.draw(st.permutations(range(array.ndim)), label="axes"))
    same(travelled(array), array.copy(order_of(array)))


@pytest.mark.parametrize(
    ("shape", "slices"),
    [
        ((1200, 500), np.s_[::2, ::-1]),
        ((3, 1000, 300), np.s_[:, ::-2]),  # of which one section of the first axis is above a stage
        ((2, 3, 700, 200), np.s_[..., 3:]),
        ((2, 400_001), np.s_[:, 1:]),
        ((1_000_000,), np.s_[::-3]),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_strided_arrays(shape, slices, order):
    """A large array that lies scattered arrives whole, copied together a stage at a time; so it lands in such a one."""
    array = np.random.default_rng(0).random(shape)[slices]
    assert array.nbytes > STAGE_NBYTES
    assert not array.flags.c_contiguous
    same(travelled(array, order), array.copy(order))
    around = np.zeros(shape)
    landed(array, around[slices], order)
    np.testing.assert_array_equal(around[slices], array)
    around[slices] = 0
    assert not around.any()


@pytest.mark.parametrize(
    "dtype", [np.dtype([("image", "u2", (1200, 1024)), ("t", "f8")]), "S1200000", "U400000"], ids=str
)
def test_large_records(dtype):
    """Records of which each is as large as a stage travel too, and land, where they lie scattered."""
    array = np.zeros(6, dtype)
    if array.dtype.names:
        array["image"], array["t"] = np.arange(6)[:, None, None], np.arange(6)
    else:
        array[:] = ["a", "bb", "c" * 300_000, "", "e", "f"]
    array = array[::-2]
    same(travelled(array), array.copy())
    target = np.zeros(6, dtype)[::2]
    landed(array, target, "C")
    same(target, array)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f8", ">i2", RECORD], ids=str)
def test_landing(dtype, order, layout, small_frames):
    """What arrives lands in any array that is there already, and touches nothing beside it."""
    if layout == "spread":
        return  # several of its places are one
    array = LAYOUTS[layout](array_of(dtype))
    for name, view in LAYOUTS.items():
        around = np.zeros(120, dtype)
        target = view(around)
        if target.shape != array.shape or name == "spread":
            continue
        landed(array, target, order)
        same(target.copy(), array.copy())
    wide = np.zeros((*array.shape, 3), dtype)
    landed(array, wide[..., 1], order)
    same(wide[..., 1].copy(), array.copy())
    wide[..., 1] = np.zeros((), dtype)
    assert wide.tobytes() == np.zeros_like(wide).tobytes()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_shards_land_in_the_whole(axis, order, small_frames):
    """Shards along any axis land each in its part of the whole, which is then what was cut."""
    whole = np.asarray(np.random.default_rng(0).random((7, 6, 5)), order=order)
    again = np.full_like(whole, np.nan, order=order)
    for part, place in zip(np.array_split(whole, 3, axis), np.array_split(again, 3, axis), strict=True):
        landed(part, place, order)
    same(again, whole)


@pytest.mark.parametrize("order", ["C", "F"])
def test_nothing_copied(order):
    """An array that lies in one piece is sent from where it is, and received where it shall be."""
    array = np.asarray(np.random.default_rng(0).random((300, 700)), order=order)
    before, (_, parts) = address(array.T if order == "F" else array), packed(array)
    at = [(address(block), len(block)) for block in blocks(parts)]
    assert at == [
        (before + start, min(FRAME_NBYTES, array.nbytes - start)) for start in range(0, array.nbytes, FRAME_NBYTES)
    ]
    at = [(address(block), len(block)) for block in landing(array, order)]
    assert sum(nbytes for _, nbytes in at) == array.nbytes
    assert at[0][0] == before


def test_rows_are_not_copied():
    """Rows of an array, as they are cut for the ranks, are sent from where they lie in it, read-only ones too."""
    array = np.random.default_rng(0).random((1000, 500))
    array.flags.writeable = False
    for rows in np.array_split(array, 3):
        assert all(np.shares_memory(np.frombuffer(block, np.uint8), rows) for block in blocks(packed(rows)[1]))


@pytest.mark.parametrize("order", ["C", "F"])
def test_little_memory_for_scattered_arrays(order):
    """An array that lies scattered is never copied as a whole: neither here nor where it lands."""
    array, target = np.ones((8 << 10, 1 << 11))[:, ::2], np.zeros((8 << 10, 1 << 11))[:, 1::2]
    assert array.nbytes == 64 << 20
    tracemalloc.start()
    landed(array, target, order)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * STAGE_NBYTES
    assert target.all()


@pytest.mark.parametrize("count", [1, 100, 200_000])
@pytest.mark.parametrize("frozen", [False, True])
def test_memory_of_its_own(count, frozen):
    """What arrived can be written to, and has nothing to do with what was sent."""
    array = np.arange(float(count))
    wanted = array.copy()
    array.flags.writeable = not frozen
    again = travelled(array)
    assert again.flags.writeable
    assert again.flags.aligned
    assert not np.shares_memory(again, array)
    array.flags.writeable = True
    array[:] = -1
    np.testing.assert_array_equal(again, wanted)
    again += 1
    assert (array == -1).all()


def test_two_values_of_one_room():
    """Each room is memory of its own: two values of one parcel do not share any."""
    parcel, _ = packed(np.zeros(200_000))
    one, other = Room(parcel).value(), Room(parcel).value()
    one[:] = 1
    assert not other.any()


def test_no_room():
    """A value for which there is no memory is refused before a byte of it comes."""
    with pytest.raises(MemoryError, match="no room for"):
        Room(Parcel((1 << 55,)))


# ---- any other value


class Point:
    """A class of the user's."""

    def __init__(self, weights):
        self.weights = weights


VALUES = {
    "None": None,
    "text": "Grüße\0" * 50_000,
    "bytes": b"\0\1" * 200_000,
    "bytearray": bytearray(b"abc" * 100_000),
    "numbers": list(range(100_000)),
    "nested": {"a": [1, (2.5, {"b"})], 3: None},
    "arrays": {"big": np.arange(100_000.0), "small": np.arange(3), "F": np.asfortranarray(np.ones((300, 200)))},
    "objects": np.array([None, "x", {"a": 1}], dtype=object),
    "texts": np.array(["a", "ä" * 1000], dtype=np.dtypes.StringDType()),
    "masked": np.ma.array(np.arange(50_000.0), mask=np.arange(50_000) % 3 == 0),
    "frame": pd.DataFrame({"a": np.arange(50_000), "b": np.random.default_rng(0).random(50_000)}, index=range(1, 50_001)),
    "mixed frame": pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": pd.to_datetime(["2020-01-01", None])}),
    "series": pd.Series(np.arange(60_000), name="s"),
    "polars": pl.DataFrame({"a": range(50_000), "s": ["x", "yy"] * 25_000}),
    "arrow": TABLE,
}  # fmt: skip


def alike(value, other):
    """Whether two values are the same."""
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(alike(value[key], other[key]) for key in value)
    if isinstance(value, np.ma.MaskedArray):
        return alike(value.data, other.data) and alike(value.mask, other.mask)
    if isinstance(value, np.ndarray):
        same_kind = value.dtype == other.dtype and value.flags.fnc == other.flags.fnc
        return same_kind and np.array_equal(value, other)
    equals = getattr(value, "equals", None)
    return equals(other) if equals else value == other


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back(name):
    """Anything that pickles arrives as it was, by either way: over the channel, and small with a request."""
    for again in (travelled(VALUES[name]), pickled_small(VALUES[name]).load()):
        assert type(again) is type(VALUES[name])
        assert alike(VALUES[name], again)


def test_large_parts_are_not_copied():
    """The large arrays inside of a value are sent from where they lie; small ones go with its pickle."""
    value = Point({"big": np.arange(100_000.0), "small": np.arange(10.0)})
    parcel, parts = packed(value)
    assert parcel.array is None
    assert [part.nbytes for part in parts] == list(parcel.sizes)
    assert [address(part) for part in parts[1:]] == [address(value.weights["big"])]
    assert parcel.sizes[0] < 2000


def test_large_parts_are_its_own():
    """The arrays inside of what arrived can be written to, and share nothing with those that were sent."""
    value = {"a": np.zeros(100_000), "b": np.zeros(3)}
    again = travelled(value)
    for array in again.values():
        array[:] = 1
    assert not value["a"].any()
    assert not value["b"].any()


def test_what_is_shared_stays_shared():
    """Two names for one array inside a value are one array after it, and travel once."""
    array = np.zeros(100_000)
    value = {"x": array, "y": array}
    assert packed(value)[0].nbytes < array.nbytes + 2000
    again = travelled(value)
    again["x"][0] = 1
    assert again["y"][0] == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["", "C", "F"])
def test_small_arrays(dtype, order):
    """An array that travels with a request arrives as it would over the channel."""
    for layout in LAYOUTS.values():
        array = layout(array_of(dtype))
        again = pickled_small(array, order).load()
        same(again, travelled(array, order))
        again[...] = np.zeros((), dtype)


def test_what_cannot_be_pickled():
    """A value that does not pickle is refused, with the reason."""
    for pack in (packed, pickled_small):
        with pytest.raises(pickle.PicklingError, match="lock"):
            pack({"a": __import__("threading").Lock()})


def test_what_cannot_be_loaded():
    """What arrives and cannot be loaded is an error of its own, not one of the wire."""
    room = Room(Parcel((3,)))
    for place in room.blocks():
        place[:] = b"\x80\x05."
    with pytest.raises(pickle.UnpicklingError):
        room.value()


def test_no_numpy(monkeypatch):
    """A side that has not loaded NumPy needs none for what is no array."""
    monkeypatch.delitem(sys.modules, "numpy")
    assert not is_plain_array([1])
    assert travelled({"a": b"x" * 100_000}) == {"a": b"x" * 100_000}
    assert "numpy" not in sys.modules


@pytest.mark.parametrize("kind", [np.matrix, np.recarray, np.memmap])
def test_subclasses_are_no_plain_arrays(kind):
    """An array of a subclass is more than its bytes."""
    assert is_plain_array(np.zeros((2, 2)))
    assert not is_plain_array(np.zeros((2, 2)).view(kind))


# ---- slices of Arrow's


BATCH = TABLE.to_batches()[0]
ARRAYS = {
    "numbers": pa.array(range(100_000)),
    "texts": pa.array([str(number) for number in range(100_000)]),
    "truths": pa.array([True, None, False] * 30_000),
    "lists": pa.array([[number] for number in range(30_000)]),
    "words": pa.array(["a", "b", None] * 30_000).dictionary_encode(),
    "chunks": pa.chunked_array([range(50_000), range(50_000)]),
    "words in chunks": pa.chunked_array([pa.array([word] * 50_000).dictionary_encode() for word in "ab"]),
}


@pytest.mark.parametrize("rows", [slice(0, 0), slice(3, 10), slice(990, 1000)], ids=str)
@pytest.mark.parametrize("table", [TABLE, BATCH, pa.concat_tables([TABLE] * 3)], ids=["table", "batch", "chunks"])
def test_slices_of_tables(table, rows):
    """A slice of an Arrow table or batch takes its own rows along, not the table; it arrives as it was."""
    cut = table.slice(rows.start, rows.stop - rows.start).replace_schema_metadata({"unit": "m"})
    limit = 2000 if len(cut) else 5000  # of a batch without rows Arrow writes where its texts would end
    assert packed(cut)[0].nbytes < limit
    assert pickled_small(cut).nbytes < limit
    for again in (travelled(cut), pickled_small(cut).load()):
        assert type(again) is type(cut)
        assert again.equals(cut, check_metadata=True)


@pytest.mark.parametrize("rows", [slice(0, 0), slice(3, 10), slice(49_999, 50_001)], ids=str)
@pytest.mark.parametrize("name", ARRAYS)
def test_slices_of_arrays(name, rows):
    """So does a slice of an Arrow array, in one piece or in chunks."""
    cut = ARRAYS[name].slice(rows.start, rows.stop - rows.start)
    assert packed(cut)[0].nbytes < 2000
    for again in (travelled(cut), pickled_small(cut).load()):
        assert type(again) is type(cut)
        assert again.type == cut.type
        assert again.equals(cut)


def test_arrow_is_not_copied():
    """What of an Arrow table is large travels from where it lies."""
    table = pa.table({"n": range(100_000), "text": [str(number) for number in range(100_000)]})
    _, (body, stream) = packed(table.slice(10_000, 80_000))
    lies = [(b.address, b.address + b.size) for c in table.columns for b in c.chunk(0).buffers() if b is not None]
    begins = [np.frombuffer(piece, "u1").ctypes.data for piece in stream if len(piece) > 330_000]
    assert len(begins) == 2, "numbers and text; of the text's offsets Arrow makes others"
    assert all(any(low <= begin < high for low, high in lies) for begin in begins)
    assert sum(len(piece) for piece in stream if len(piece) < 300_000) + len(body) < 5000


def test_arrow_that_cannot_be_written(monkeypatch):
    """What Arrow's streaming format has no room for cannot be pickled."""

    def refuse(*_):
        raise pa.ArrowNotImplementedError("no such type in a stream")

    monkeypatch.setattr(pa.ipc, "new_stream", refuse)
    for pack in (packed, pickled_small):
        with pytest.raises(pickle.PicklingError, match="no such type in a stream"):
            pack(TABLE)


def test_no_chunks():
    """A chunked array without any chunk arrives as such, and so do arrays and batches without rows or columns."""
    for empty in (
        pa.chunked_array([], pa.int8()),
        pa.array([], pa.string()),
        pa.table({}),
        BATCH.slice(0, 0),
        pa.nulls(3),
    ):
        again = travelled(empty)
        assert type(again) is type(empty)
        assert again.equals(empty)


class Labels(pa.ExtensionType):
    """An extension of Arrow's that only its user knows."""

    def __init__(self):
        super().__init__(pa.int64(), "labels")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage, _serialized):
        return cls()


def test_extension_arrays():
    """An array of an extension that is not registered is still one when it arrives."""
    array = pa.ExtensionArray.from_storage(Labels(), pa.array([1, 2, 3]))
    again = travelled(array)
    assert again.type == array.type
    assert again.equals(array)


def test_slices_of_polars():
    """Slices of Polars' frames take their own rows along."""
    frame = pl.DataFrame({"a": range(100_000), "s": ["x"] * 100_000})
    assert packed(frame.slice(5, 10))[0].nbytes < 5000
    assert travelled(frame.slice(5, 10)).equals(frame.slice(5, 10))
