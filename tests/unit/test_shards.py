"""Which rank holds which rows, and that what was cut is joined again to what it was."""

import array
import collections
import datetime as dt
import decimal
import pickle
import re
import subprocess
import sys
from collections import UserList, UserString, deque, namedtuple
from itertools import pairwise

import numpy as np
import pandas as pd
import polars as pl
import polars.testing
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from two_lines import two_lines

from hpcmagic.errors import DataError
from hpcmagic.shards import bounds, count_rows, cut, join, kind, require_alike

SIZES = (1, 2, 3, 7, 20)
Point = namedtuple("Point", "x y")  # noqa: PYI024


def travelled(shards):
    """Give shards as ranks hold them: copied, by pickle save for arrays, whose byte order it may change."""
    return [s.copy() if type(s) is np.ndarray else pickle.loads(pickle.dumps(s, protocol=5)) for s in shards]


# ---- bounds


@given(st.integers(0, 400), st.integers(1, 60))
def test_bounds_as_array_split(rows, size):
    """Ranks hold the rows that numpy.array_split gives them."""
    assert [stop - start for start, stop in bounds(rows, size)] == [len(a) for a in np.array_split(range(rows), size)]


@given(st.integers(0, 10**30), st.integers(1, 300))
def test_bounds_cover_all(rows, size):
    """Every row is on one rank, in order, and no rank holds two more than another, however many rows there are."""
    shards = bounds(rows, size)
    assert len(shards) == size
    assert (shards[0][0], shards[-1][1]) == (0, rows)
    assert all(one[1] == other[0] for one, other in pairwise(shards))
    lengths = [stop - start for start, stop in shards]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] in {0, 1}


def test_bounds_fewer_rows_than_ranks():
    """Where rows do not suffice, the last ranks hold none."""
    assert bounds(2, 4) == ((0, 1), (1, 2), (2, 2), (2, 2))


# ---- kinds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.zeros(3), "array"),
        (np.zeros((2, 0), "M8[s]"), "array"),
        (np.zeros(3, [("a", "i4"), ("b", "U3")]), "array"),
        (np.zeros(3, object), "object array"),
        (np.zeros(3, [("a", "i4"), ("b", object)]), "object array"),
        (np.array(["a"], np.dtypes.StringDType()), "object array"),
        (np.ma.zeros(3), "object array"),
        (np.zeros(3, [("a", "i4")]).view(np.recarray), "object array"),
        (np.zeros((3, 3)).view(np.matrix), "object array"),
        (pd.DataFrame(), "pandas"),
        (pd.Series([1]), "pandas"),
        (pd.Index([1]), "pandas"),
        (pd.Categorical(["a"]), "pandas"),
        (pl.DataFrame(), "polars"),
        (pl.Series(), "polars"),
        (pa.table({}), "arrow"),
        (pa.record_batch({"a": [1]}), "arrow"),
        (pa.array([1]), "arrow"),
        (pa.chunked_array([[1]]), "arrow"),
        ([], "sequence"),
        (Point(1, 2), "sequence"),
        ("", "sequence"),
        (b"", "sequence"),
        (bytearray(), "sequence"),
        (memoryview(b"abc"), "sequence"),
        (range(3), "sequence"),
        (array.array("d"), "sequence"),
        (UserList(), "sequence"),
        (None, ""),
        (3, ""),
        (np.float64(3), ""),
        ({}, ""),
        (set(), ""),
        ({}.keys(), ""),
        ((i for i in ()), ""),
        (deque(), ""),
        (memoryview(np.zeros((2, 2))), ""),
        (memoryview(np.zeros(2, ">f8")), ""),
        (memoryview(np.zeros(())), ""),
        (list, ""),
        (np, ""),
        (pl.LazyFrame(), ""),
        (pa.scalar(1), ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_kind(value, expected):
    """A value's kind says how it is cut; what takes no slices is not cut at all."""
    assert kind(value) == expected


def test_libraries_not_imported():
    """Ranks and kernels may lack every library: none is imported to cut what is not theirs."""
    code = """
import sys
from hpcmagic.shards import cut, join
for value in ([1, 2], (1,), "abc", range(9), bytearray(b"abc")):
    assert join("x", cut("x", value, 2)) == value
print(*{"numpy", "pandas", "polars", "pyarrow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("", "")


# ---- arrays

STRUCTURED = np.dtype([("a", "i1"), ("b", ">f8"), ("c", "U3")], align=True)
DTYPES = [
    "f8", ">f8", "f2", "c16", "?", "i1", ">u2", "U5", ">U2", "S3", "V5", "M8[ns]", "M8[D]", ">M8[s]", "m8[us]",
    "longdouble", STRUCTURED, [("a", "f4", (2, 2)), ("b", [("c", "O")])], "O", np.dtypes.StringDType(),
    np.dtypes.StringDType(na_object=None), np.dtype("f8", metadata={"unit": "m"}),
]  # fmt: skip


def filled(shape, dtype, order="C"):
    """Give an array of bytes that are not all alike."""
    counted = np.arange(int(np.prod(shape))).reshape(shape) % 100
    dtype = np.dtype(dtype)
    if dtype.kind == "V" and dtype.names is None:
        return np.asarray(counted.astype("S5").view("V5"), order=order)
    if dtype.names is None:
        return np.asarray(counted.astype(dtype), order=order)
    result = np.zeros(shape, dtype, order=order)
    result[dtype.names[0]] = counted if not dtype[0].shape else counted[..., None, None]
    return result


def assert_same_array(result, original, *, order=True):
    """The same type, dtype, shape and values, and the same order of memory."""
    assert type(result) is type(original)
    assert result.dtype == original.dtype
    assert result.dtype.str == original.dtype.str
    assert (result.dtype.metadata or {}) == (original.dtype.metadata or {})
    assert result.shape == original.shape
    if original.dtype.hasobject:
        assert repr(result.tolist()) == repr(original.tolist())
    else:
        assert result.tobytes() == original.tobytes()
    if order:
        assert (result.flags.c_contiguous, result.flags.f_contiguous) == (
            original.flags.c_contiguous,
            original.flags.f_contiguous,
        )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(13,), (0,), (5, 4), (4, 0), (0, 4), (2, 3, 4), (1, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_array(dtype, shape, size):
    """An array comes back with its dtype, byte order and alignment, along any axis, from any number of ranks."""
    original = filled(shape, dtype)
    for axis in range(-len(shape), len(shape)):
        shards = cut("x", original, size, axis)
        assert len(shards) == size
        assert_same_array(join("x", shards, axis), original)
        assert_same_array(join("x", travelled(shards), axis), original)


@given(
    hnp.arrays(
        st.one_of(hnp.scalar_dtypes(), hnp.array_dtypes(), hnp.byte_string_dtypes(), hnp.unicode_string_dtypes()),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6),
    ),
    st.integers(1, 9),
    st.data(),
)
def test_any_array(original, size, data):
    """Whatever the dtype, shape, axis and order of an array, and however many ranks: the same bytes come back."""
    axis = data.draw(st.integers(-original.ndim, original.ndim - 1))
    original = np.asarray(original, order=data.draw(st.sampled_from("CF")))
    shards = cut("x", original, size, axis)
    assert [s.shape[axis] for s in shards] == [stop - start for start, stop in bounds(original.shape[axis], size)]
    several_rows = original.shape[axis] == 0 or original.shape[axis] >= 2 * size
    assert_same_array(join("x", shards, axis), original, order=several_rows)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_memory_order_kept(axis, size):
    """A Fortran array comes back as one, be its shards views, or copies in its order; empty ones have no say."""
    original = np.asfortranarray(np.arange(6 * 5 * 4.0).reshape(6, 5, 4))
    shards = cut("x", original, size, axis)
    copies = [np.asfortranarray(s) for s in shards] + [np.take(original, [], axis)]
    assert_same_array(join("x", shards, axis), original)
    assert_same_array(join("x", copies, axis), original)


def test_memory_order_disputed():
    """Where some shards are C and some Fortran, C wins; a shard that is both has no say."""
    c, f, both = np.ones((2, 3)), np.asfortranarray(np.ones((2, 3))), np.ones((1, 3))
    assert join("x", [c, f]).flags.c_contiguous
    assert join("x", [f, c]).flags.c_contiguous
    assert join("x", [both, f]).flags.f_contiguous
    assert join("x", [c, both]).flags.c_contiguous


def test_shards_are_views():
    """Cutting copies nothing."""
    original = np.zeros((5, 4))
    assert all(np.shares_memory(s, original) for s in cut("x", original, 3, 1))
    assert all(
        np.shares_memory(s.array._ndarray, original) for s in cut("x", pd.Series(original[:, 0], copy=False), 3)
    )


def test_strided_array():
    """A view with gaps, or backwards, comes back with the same values."""
    base = np.arange(60).reshape(6, 10)
    for original in (base[::2, ::3], base[::-1, ::-1], base.T[1::2]):
        assert_same_array(join("x", cut("x", original, 2)), original, order=False)
    assert_same_array(join("x", cut("x", base.T[1::2], 2)), base.T[1::2].copy(order="K"))


def masked(**options):
    """Give a masked array with two values masked."""
    return np.ma.array(np.arange(12).reshape(6, 2), mask=[[0, 1], [0, 0], [0, 0], [1, 0], [0, 0], [0, 0]], **options)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(
    "original",
    [
        masked(),
        masked(fill_value=77, dtype=">i4"),
        masked(hard_mask=True),
        np.ma.array(np.arange(6.0).reshape(2, 3)),
        np.ma.array(np.arange(6.0).reshape(2, 3), mask=False),
        np.ma.array(np.zeros((0, 3)), mask=np.zeros((0, 3), bool)),
        np.ma.array(np.zeros((3, 2), "i4,f8"), mask=[[(0, 1), (0, 0)]] * 3),
    ],
    ids=["mask", "fill value", "hard", "nomask", "all false", "empty", "structured"],
)
def test_masked_array(original, axis, size):
    """A masked array keeps its mask, or that it has none, its fill value and its hardness."""
    result = join("x", cut("x", original, size, axis), axis)
    assert_same_array(result.data, original.data)
    assert (result.mask is np.ma.nomask) == (original.mask is np.ma.nomask)
    assert np.array_equal(result.mask, original.mask)
    assert type(result) is np.ma.MaskedArray
    assert result.fill_value == original.fill_value
    assert result.hardmask == original.hardmask


def test_masked_array_of_some_ranks():
    """Where one rank masks something and another nothing, the whole has a mask."""
    result = join("x", [np.ma.array([1, 2]), np.ma.array([3, 4], mask=[True, False])])
    assert result.mask.tolist() == [False, False, True, False]


class Measured(np.ndarray):
    """An array with a unit."""

    def __array_finalize__(self, other):
        self.unit = getattr(other, "unit", "none")


@pytest.mark.parametrize("size", SIZES)
def test_subclass_of_array(size):
    """A matrix, a record array and a user's own come back as what they are, with their attributes."""
    records = np.rec.array([(1, 2.5, "x"), (2, 3.5, "yy")], dtype=[("a", "i1"), ("b", ">f8"), ("c", "U2")])
    metres = np.arange(5.0).view(Measured)
    metres.unit = "m"
    for original in (np.arange(6).reshape(3, 2).view(np.matrix), records, metres, np.char.array(["a", "bc"])):
        result = join("x", cut("x", original, size))
        assert_same_array(result, original)
    assert join("x", cut("x", metres, size)).unit == "m"
    assert join("x", cut("x", records, size)).c.tolist() == ["x", "yy"]


def test_array_of_ragged_objects():
    """Objects stay the objects they were, arrays among them."""
    original = np.empty(3, object)
    original[:] = [np.arange(3), None, {"a": [1]}]
    result = join("x", cut("x", original, 2))
    assert all(one is other for one, other in zip(result, original, strict=True))


def test_mapped_file(tmp_path):
    """Shards of a mapped file are plain arrays, which travel without a copy."""
    np.save(tmp_path / "x.npy", np.arange(10.0))
    original = np.load(tmp_path / "x.npy", mmap_mode="r")
    shards = cut("x", original, 3)
    assert {kind(s) for s in shards} == {"array"}
    assert_same_array(join("x", shards), np.arange(10.0))
    assert_same_array(join("x", [original[:5], original[5:]]), np.arange(10.0))


# ---- pandas

TIMES = pd.date_range("2024-03-30", periods=9, freq="6h", tz="Europe/Berlin", name="when")
NINE = list(range(9))


def frame(index=None, **columns):
    """Give a table of nine rows."""
    return pd.DataFrame({"a": NINE, "b": [f"{n}" for n in NINE], **columns}, index=index)


def with_attrs(value):
    """Note an array in the attributes, which does not take `==`."""
    value.attrs = {"unit": "m", "origin": np.zeros(3)}
    return value


def unused(value):
    """Keep every other row, and with it all levels."""
    return value.iloc[::2]


PANDAS = {
    "plain": frame(),
    "no rows": frame().iloc[:0],
    "no columns": frame()[[]],
    "nothing": pd.DataFrame(),
    "named columns": frame().rename_axis(columns="field"),
    "columns twice": pd.DataFrame(np.arange(18).reshape(9, 2), columns=["a", "a"]),
    "columns numbered": pd.DataFrame(np.arange(18.0).reshape(9, 2)),
    "columns nan": pd.DataFrame(np.arange(18.0).reshape(9, 2), columns=[np.nan, 1]),
    "columns categorical": pd.DataFrame(np.zeros((9, 2)), columns=pd.CategoricalIndex(["x", "y"], ["y", "x", "z"])),
    "columns by date": pd.DataFrame(np.zeros((9, 2)), columns=pd.date_range("2024", periods=2, freq="D")),
    "columns of levels": pd.DataFrame(
        np.zeros((9, 4)), columns=pd.MultiIndex.from_product([["x", "y"], [1, 2]], names=["letter", None])
    ),
    "index named": frame(pd.Index(NINE[::-1], name="n")),
    "index twice": frame([1, 1, 2, 2, 2, 0, 0, 9, 9]),
    "index object": frame(pd.Index([1, 2, 3, True, 2.5, "x", None, (1, 2), 9], dtype=object)),
    "index object of numbers": frame(pd.Index(NINE, dtype=object)),
    "index object of text": frame(pd.Index([f"{n}" for n in NINE], dtype=object)),
    "index text": frame(list("abcdefghi")),
    "index range": frame(pd.RangeIndex(5, 32, 3, name="n")),
    "index range down": frame(pd.RangeIndex(8, -1, -1)),
    "index range, empty": frame(pd.RangeIndex(5, 32, 3)).iloc[4:4],
    "index float": frame([float("nan"), *NINE[1:]]),
    "index int8": frame(pd.Index(NINE, dtype="int8")),
    "index time": frame(TIMES),
    "index time, empty": frame(TIMES).iloc[:0],
    "index time, no freq": frame(TIMES[[0, 1, 2, 3, 4, 5, 8, 7, 6]]),
    "index delta": frame(pd.timedelta_range("1h", periods=9, freq="2h")),
    "index period": frame(pd.period_range("2024-01", periods=9, freq="M")),
    "index interval": frame(pd.interval_range(0, 9)),
    "index categorical": frame(pd.CategoricalIndex(list("abcabcabc"), ["c", "b", "a", "z"], ordered=True, name="k")),
    "index nullable": frame(pd.Index([1, None, *NINE[2:]], dtype="Int64")),
    "index arrow": frame(pd.Index(list("abcdefghi"), dtype=pd.ArrowDtype(pa.string()))),
    "index of levels": frame(pd.MultiIndex.from_product([["x", "y", "z"], [1, 2, 3]], names=["letter", None])),
    "index of levels, unused": unused(
        frame(pd.MultiIndex.from_arrays([TIMES, pd.Categorical(list("abcabcabc"))], names=["when", "k"]))
    ),
    "index of levels, nan": frame(pd.MultiIndex.from_arrays([[1, None, *NINE[2:]], [*"abcdefgh", None]])),
    "attrs": with_attrs(frame()),
    "categories": frame(c=pd.Categorical(list("abcabcabc"), ["c", "a", "b", "unused"])),
    "categories, ordered": frame(c=pd.Categorical([None, *"bcabcabc"], ["c", "a", "b"], ordered=True)),
    "categories of times": frame(c=pd.Categorical(TIMES)),
    "times": frame(c=TIMES.as_unit("ms"), d=TIMES.tz_localize(None), e=TIMES - TIMES[0]),
    "nullable": frame(
        c=pd.array([1, None, *NINE[2:]], dtype="Int8"),
        d=pd.array([True, None] + [False] * 7, dtype="boolean"),
        e=pd.array([None] * 9, dtype="Float32"),
        f=pd.array(["x", None] + ["y"] * 7, dtype="string"),
        g=pd.array([None] * 9, dtype="Int64"),
    ),
    "objects": frame(c=pd.Series([1, 2, 3, True, 2.5, "x", None, (1, 2), [3]], dtype=object)),
    "objects all None": frame(c=pd.Series([None] * 9, dtype=object)),
    "sparse": frame(c=pd.arrays.SparseArray([0, 0, 1] * 3, fill_value=0)),
    "periods": frame(c=pd.period_range("2024-01", periods=9, freq="M"), d=pd.interval_range(0, 9)),
    "arrow": frame(
        c=pd.array([[1], None, [2, 3]] * 3, dtype=pd.ArrowDtype(pa.list_(pa.int8()))),
        d=pd.array([decimal.Decimal("1.50"), None, decimal.Decimal(0)] * 3, dtype=pd.ArrowDtype(pa.decimal128(9, 2))),
    ),
    "numbers": frame(c=np.arange(9, dtype="f4"), d=np.arange(9, dtype="c8"), e=np.arange(9) > 3),
    "one block": pd.DataFrame(np.arange(36, dtype="u2").reshape(9, 4), columns=list("zyxw")),
    "series": pd.Series(NINE, name="s"),
    "series unnamed": pd.Series(list("abcdefghi"), index=TIMES),
    "series of objects": pd.Series(["a", "b", None, 1], dtype=object, name=("x", 1)),
    "series named nan": pd.Series(NINE, name=float("nan")),
    "series empty": pd.Series([], dtype="Int64", index=pd.Index([], dtype="str")),
    "series, categories": with_attrs(pd.Series(pd.Categorical(list("abc"), list("zcba"), ordered=True))),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("original", PANDAS.values(), ids=PANDAS.keys())
def test_pandas(original, size):
    """A table comes back with its index, columns, dtypes and attributes."""
    before = original.copy()
    for shards in (cut("x", original, size), travelled(cut("x", original, size))):
        result = join("x", shards)
        check = (
            pd.testing.assert_frame_equal if isinstance(original, pd.DataFrame) else pd.testing.assert_series_equal
        )
        check(result, original, check_exact=True, check_freq=True, check_index_type="exact", check_flags=True)
        assert_same_index(result.index, original.index)
        assert_same_dtypes(result, original)
        assert repr(result.attrs) == repr(original.attrs)
        if isinstance(original, pd.DataFrame):
            assert_same_index(result.columns, original.columns)
        else:
            assert repr(result.name) == repr(original.name)
    assert repr(original.attrs) == repr(before.attrs)


def assert_same_dtypes(result, original):
    """The same dtypes, and the very values in columns of objects."""
    columns = zip(result.items(), original.items(), strict=True) if isinstance(original, pd.DataFrame) else []
    pairs = [(mine, its) for (_, mine), (_, its) in columns] or [(result, original)]
    for mine, its in pairs:
        if isinstance(its, pd.Series):
            assert repr(mine.dtype) == repr(its.dtype)
            assert type(mine.array) is type(its.array)
            if its.dtype == object:
                assert [repr(v) for v in mine] == [repr(v) for v in its]


def assert_same_index(result, original):
    """The same class, values, names, levels and frequency."""
    pd.testing.assert_index_equal(result, original, exact=True, check_exact=True)
    assert type(result) is type(original)
    assert repr(result.names) == repr(original.names)
    assert repr(result.dtype) == repr(original.dtype)
    assert getattr(result, "freq", None) == getattr(original, "freq", None)
    if isinstance(original, pd.RangeIndex):
        assert (result.start, result.step, len(result)) == (original.start, original.step, len(original))
    if original.dtype == object:
        assert [repr(v) for v in result] == [repr(v) for v in original]
    if isinstance(original, pd.MultiIndex):
        assert all(mine.identical(its) for mine, its in zip(result.levels, original.levels, strict=True))
        assert all((mine == its).all() for mine, its in zip(result.codes, original.codes, strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in PANDAS if name.startswith("index")])
def test_pandas_index(name, size):
    """An index by itself comes back as well, as does the array inside."""
    original = PANDAS[name].index
    assert_same_index(join("x", travelled(cut("x", original, size))), original)
    if not isinstance(original, pd.MultiIndex):
        result = join("x", cut("x", original.array, size))
        assert type(result) is type(original.array)
        pd.testing.assert_series_equal(pd.Series(result), pd.Series(original.array), check_exact=True)


def test_pandas_extension_array():
    """A column's array comes back with its categories."""
    original = pd.Categorical(list("abcab"), list("zcba"), ordered=True)
    result = join("x", cut("x", original, 3))
    assert result.equals(original)
    assert result.dtype == original.dtype


class Table(pd.DataFrame):
    """A user's own table."""

    _metadata = ("place",)

    @property
    def _constructor(self):
        return Table


def test_subclass_of_pandas():
    """A user's own table stays one."""
    assert type(join("x", cut("x", Table(frame()), 2))) is Table


def test_pandas_index_after_ranks_changed_it():
    """Where ranks numbered their own rows anew or dropped some, every row keeps the number it has there."""
    shards = [s.reset_index(drop=True) for s in cut("x", frame(), 2)]
    assert join("x", shards).index.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    shards = [s[s.a > 4] for s in cut("x", frame(), 3)]
    assert join("x", shards).index.tolist() == [5, 6, 7, 8]
    shards = [s.iloc[1:] for s in cut("x", frame(TIMES), 2)]
    assert join("x", shards).index.equals(TIMES.delete([0, 5]))


def test_pandas_levels_after_ranks_changed_them():
    """Levels of an index that differ between ranks are joined by their values, with their dtypes."""
    original = PANDAS["index of levels, unused"]
    shards = cut("x", original, 2)
    for shard in shards:
        shard.index = shard.index.remove_unused_levels()
    result = join("x", shards)
    assert result.index.equals(original.index)
    assert result.index.dtypes.to_list() == original.index.dtypes.to_list()
    assert result.index.names == original.index.names


@given(
    st.sampled_from(list(PANDAS)),
    st.slices(9).filter(lambda rows: rows.step is None or rows.step > 0),
    st.integers(1, 12),
)
def test_any_rows_of_pandas(name, rows, size):
    """Whatever rows there are of a table, its index included, they come back from any number of ranks."""
    original = PANDAS[name].iloc[rows]
    result = join("x", cut("x", original, size))
    check = pd.testing.assert_frame_equal if isinstance(original, pd.DataFrame) else pd.testing.assert_series_equal
    check(result, original, check_exact=True, check_freq=True, check_index_type="exact")
    assert_same_index(result.index, original.index)
    assert_same_dtypes(result, original)


def test_pandas_flags():
    """A table that allows no label twice comes back so, and is not joined where ranks made two alike."""
    original = frame().set_flags(allows_duplicate_labels=False)
    shards = cut("x", original, 3)
    assert not join("x", shards).flags.allows_duplicate_labels
    with pytest.raises(DataError, match="cannot be joined") as error:
        join("x", [shards[0], shards[0]])
    two_lines(error)


# ---- polars

DAYS = [dt.date(2024, 1, n) for n in range(1, 8)]
COLUMNS = {
    "ints": pl.Series([1, None, 3, 4, 5, 6, 7], dtype=pl.Int8),
    "big": pl.Series([2**100, None, 3, 4, 5, 6, 7], dtype=pl.Int128),
    "text": pl.Series(["a", "b", None, "d", "e", "ä", ""]),
    "enum": pl.Series(["b", "a", None, "b", "b", "b", "b"], dtype=pl.Enum(["unused", "b", "a"])),
    "categorical": pl.Series(["x", "y", None, "x", "z", "x", "x"], dtype=pl.Categorical),
    "list": pl.Series([[1], [], None, [2, 3], [4], [5], [None]], dtype=pl.List(pl.Int16)),
    "array": pl.Series([[1, 2]] * 6 + [None], dtype=pl.Array(pl.Float32, 2)),
    "struct": pl.Series([{"p": 1, "q": [{"r": "s"}]}] * 6 + [None]),
    "list of enum": pl.Series([["a"], ["b", "a"], None, [], ["a"], ["a"], ["b"]], dtype=pl.List(pl.Enum(["b", "a"]))),
    "date": pl.Series(DAYS),
    "time": pl.Series(DAYS, dtype=pl.Datetime("ms", "Europe/Berlin")),
    "span": pl.Series([dt.timedelta(hours=n) for n in range(7)], dtype=pl.Duration("ns")),
    "clock": pl.Series([dt.time(n) for n in range(7)]),
    "decimal": pl.Series([decimal.Decimal(n) for n in range(7)], dtype=pl.Decimal(20, 3)),
    "binary": pl.Series([b"\0", b"", None, b"a", b"b", b"c", b"d"]),
    "bool": pl.Series([True, None, False, True, True, True, False]),
    "null": pl.Series([None] * 7),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [7, 1, 0])
def test_polars_frame(size, rows):
    """A polars table comes back with its schema, nested and categorical columns included."""
    original = pl.DataFrame(COLUMNS).head(rows)
    for shards in (cut("x", original, size), travelled(cut("x", original, size))):
        result = join("x", shards)
        assert result.schema == original.schema
        pl.testing.assert_frame_equal(result, original, check_exact=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("column", COLUMNS)
def test_polars_series(column, size):
    """A polars Series comes back with its name and dtype."""
    for rows in (7, 0):
        original = COLUMNS[column].alias("s").head(rows)
        result = join("x", travelled(cut("x", original, size)))
        assert (result.name, result.dtype) == (original.name, original.dtype)
        pl.testing.assert_series_equal(result, original, check_exact=True)


@given(st.slices(7).filter(lambda rows: rows.step is None or rows.step > 0), st.integers(1, 12))
def test_any_rows_of_polars_and_arrow(rows, size):
    """Whatever rows there are of a table, they come back from any number of ranks."""
    original = pl.DataFrame(COLUMNS)[rows]
    pl.testing.assert_frame_equal(join("x", cut("x", original, size)), original, check_exact=True)
    original = original.drop("big").to_arrow()
    assert_same_arrow(join("x", cut("x", original, size)), original)


def test_polars_odd_ones():
    """Tables without columns, and columns of Python objects, come back too."""
    for original in (pl.DataFrame(), pl.DataFrame(height=5)):
        assert join("x", cut("x", original, 3)).shape == original.shape
    objects = [object() for _ in range(4)]
    assert join("x", cut("x", pl.Series("o", objects, dtype=pl.Object), 3)).to_list() == objects


# ---- arrow

ARROW = {
    "ints": pa.array([1, None, 3, 4, 5], pa.int8()),
    "text": pa.array(["a", None, "c", "ä", ""]),
    "large text": pa.array(["a", None, "c", "ä", ""], pa.large_string()),
    "text view": pa.array(["a", None, "c", "ä", "more than twelve bytes"], pa.string_view()),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 1, 1], pa.int8()), ["a", "b", "unused"]),
    "ordered": pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 1, 1]), ["a", "b"], ordered=True),
    "list": pa.array([[1], [], None, [2, 3], [None]], pa.list_(pa.int16())),
    "large list": pa.array([[1], [], None, [2, 3], [None]], pa.large_list(pa.int16())),
    "fixed list": pa.array([[1, 2], [3, 4], None, [5, 6], [7, None]], pa.list_(pa.int16(), 2)),
    "list of dictionary": pa.array(
        [["a"], ["b"], None, ["a", "a"], []], pa.list_(pa.dictionary(pa.int8(), pa.string()))
    ),
    "struct": pa.array([{"p": 1, "q": ["r"]}, None, {"p": None, "q": None}, {"p": 4, "q": []}, {"p": 5, "q": ["s"]}]),
    "map": pa.array([[("k", 1)], [], None, [("a", None)], []], pa.map_(pa.string(), pa.int8())),
    "time": pa.array([0, 1, None, 3, 4], pa.timestamp("us", "Europe/Berlin")),
    "date": pa.array([0, 1, None, 3, 4], pa.date32()),
    "decimal": pa.array([decimal.Decimal("1.23")] * 5, pa.decimal256(50, 2)),
    "binary": pa.array([b"a", b"", None, b"cd", b"e"], pa.binary()),
    "fixed binary": pa.array([b"ab", None, b"cd", b"ef", b"gh"], pa.binary(2)),
    "bool": pa.array([True, None, False, True, True]),
    "half": pa.array(np.arange(5, dtype="f2")),
    "null": pa.nulls(5),
    "run ends": pa.RunEndEncodedArray.from_arrays(pa.array([2, 5], pa.int32()), ["a", "b"]),
    "union": pa.UnionArray.from_sparse(
        pa.array([0, 1, 0, 1, 0], pa.int8()), [pa.array(range(5)), pa.array(list("abcde"))]
    ),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(20.0).reshape(5, 2, 2)),
    "uuid": pa.array([bytes(16)] * 5, pa.uuid()),
}


def arrow_table(columns):
    """Give a table with metadata of its own and of a field's, and a field that is never null."""
    fields = [pa.field(name, column.type, metadata={"of": name}) for name, column in columns.items()]
    fields.append(pa.field("sure", pa.int64(), nullable=False))
    schema = pa.schema(fields, metadata={"made": "here"})
    return pa.table([*columns.values(), pa.array(range(5))], schema=schema)


def assert_same_arrow(result, original):
    """The same class, type and values, metadata included."""
    assert type(result) is type(original)
    result.validate(full=True)
    if isinstance(original, pa.Table | pa.RecordBatch):
        assert result.schema.equals(original.schema, check_metadata=True)
        assert result.equals(original, check_metadata=True)
    else:
        assert result.type == original.type
        assert result.equals(original)
        assert len(result) == len(original)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("column", ARROW)
def test_arrow_array(column, size):
    """An arrow array, and one in chunks, comes back with its type."""
    for array_ in (ARROW[column], ARROW[column].slice(0, 0)):
        chunked = pa.chunked_array([array_, array_.slice(1), array_.slice(0, 0)])
        for original in (array_, chunked, pa.chunked_array([], array_.type)):
            assert_same_arrow(join("x", cut("x", original, size)), original)
            assert_same_arrow(join("x", travelled(cut("x", original, size))), original)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [5, 1, 0])
def test_arrow_table(size, rows):
    """An arrow table or record batch comes back with its schema and all metadata."""
    table = arrow_table(ARROW)
    in_chunks = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    batch = pa.RecordBatch.from_arrays([c.chunk(0) for c in table.columns], schema=table.schema)
    for original in (table.slice(0, rows), in_chunks.slice(0, rows), batch.slice(0, rows)):
        assert_same_arrow(join("x", cut("x", original, size)), original)
        assert_same_arrow(join("x", travelled(cut("x", original, size))), original)


def test_arrow_dictionaries_kept():
    """A dictionary stays as it is in every chunk, unused words included."""
    original = arrow_table(ARROW)
    result = join("x", cut("x", original, 2))
    assert {tuple(c.dictionary.to_pylist()) for c in result["dictionary"].chunks} == {("a", "b", "unused")}


def test_arrow_dictionaries_of_ranks():
    """Ranks may have made dictionaries of their own: the values are joined."""
    one, other = pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "b"]).dictionary_encode()
    assert join("x", [one, other]).to_pylist() == ["a", "b", "c", "b"]
    assert join("x", [pa.table({"k": one}), pa.table({"k": other})])["k"].to_pylist() == ["a", "b", "c", "b"]


def test_arrow_without_columns():
    """A table without columns still has its rows."""
    schema = pa.schema([], metadata={"made": "here"})
    table = pa.table({"a": range(5)}).select([]).replace_schema_metadata({"made": "here"})
    batch = pa.record_batch({"a": range(5)}).select([]).replace_schema_metadata({"made": "here"})
    for original in (table, batch, schema.empty_table()):
        result = join("x", cut("x", original, 3))
        assert_same_arrow(result, original)
        assert result.num_rows == original.num_rows


# ---- sequences

SEQUENCES = [
    list(range(10)), [], [Point(1, 2), Point(3, 4)], (1, "a", None), (), "grüße", "", b"bytes", bytearray(b"bytes"),
    array.array("f", [1, 2, 3]), array.array("u", "äöü") if sys.version_info < (3, 13) else array.array("w", "äöü"),
    array.array("B"), memoryview(b"bytes"), memoryview(bytearray(b"bytes")), memoryview(array.array("d", [1, 2, 3])),
    memoryview(b"abcdef")[::2], memoryview(b""), range(10), range(0), range(5, 5), range(3, 30, 4), range(10, 0, -3),
    range(7, 8), range(0, 10**30, 7), range(10**30, -(10**30), -(10**9)), UserList([1, 2, 3]), UserString("abc"),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("original", SEQUENCES, ids=lambda value: repr(value)[:40])
def test_sequence(original, size):
    """A sequence comes back as what it was, of the same type."""
    shards = cut("x", original, size)
    assert {type(s) for s in shards} == {type(original)}
    assert len(shards) == size
    result = join("x", shards)
    assert type(result) is type(original)
    assert result == original
    for attribute in {array.array: ["typecode"], memoryview: ["format", "readonly"], range: ["start", "step"]}.get(
        type(original), ()
    ):
        assert getattr(result, attribute) == getattr(original, attribute)


@given(
    st.one_of(st.lists(st.integers()), st.text(), st.binary(), st.lists(st.integers()).map(tuple)), st.integers(1, 9)
)
@example("", 3)
def test_any_sequence(original, size):
    """Whatever is in a sequence, and however many ranks there are, it comes back."""
    shards = cut("x", original, size)
    assert [len(s) for s in shards] == [stop - start for start, stop in bounds(len(original), size)]
    assert join("x", shards) == original


@given(st.integers(-99, 99), st.integers(-99, 99), st.integers(-9, 9).filter(bool), st.integers(1, 9))
def test_any_range(start, stop, step, size):
    """A range comes back as a range."""
    result = join("x", cut("x", range(start, stop, step), size))
    assert type(result) is range
    assert result == range(start, stop, step)


class Countdown(collections.abc.Sequence):
    """A user's sequence, whose slices are lists."""

    def __len__(self):
        return 5

    def __getitem__(self, at):
        return [5, 4, 3, 2, 1][at]


class Vector(UserList):
    """A user's sequence that adds up by its items."""

    def __add__(self, other):
        return Vector(a + b for a, b in zip(self, other, strict=False))


@pytest.mark.parametrize("original", [Countdown(), Point(1, 2), np.str_("abc"), collections.UserString("abc")[:0]])
def test_sequence_with_other_slices(original):
    """Of a sequence whose slices are of another type, ranks get lists of its items."""
    shards = cut("x", original, 2)
    assert "".join(map(str, join("x", shards))) == "".join(map(str, original))
    if len(original):
        assert {type(s) for s in shards} == {list}


def test_sequence_that_adds_by_item():
    """A `+` that does not join is not taken for one that does."""
    assert join("x", cut("x", Vector([1, 2, 3, 4]), 2)) == [1, 2, 3, 4]


def test_sequences_made_on_ranks():
    """What ranks made as a named tuple each, is joined as a list; nothing is lost."""
    assert join("x", [Point(1, 2), Point(3, 4)]) == [1, 2, 3, 4]


def test_ranges_that_do_not_follow():
    """Ranges that make no range are not spelled out, for they may be endless."""
    with pytest.raises(DataError, match="follow") as error:
        join("x", [range(10**12), range(10**12)])
    two_lines(error)


# ---- what cannot be cut


@pytest.mark.parametrize(
    ("value", "called"),
    [
        (3, "an int"),
        (None, "None"),
        ({"a": 1}, "a dict"),
        ({1}, "a set"),
        ((i for i in ()), "a generator"),
        (np.array(1.5), r"float64 \(\)"),
        (np.array(None), r"object \(\)"),
        (np.float32(1), "a numpy.float32"),
        (pl.LazyFrame(), "a polars.LazyFrame"),
        (deque([1]), "a collections.deque"),
        (memoryview(np.zeros((2, 2))), "a memoryview"),
    ],
)
def test_not_to_be_cut(value, called):
    """What has no rows is named, with what sends it whole."""
    for attempt in (count_rows, lambda name, value: cut(name, value, 2)):
        with pytest.raises(DataError, match=rf"`x` is {called}, which has no rows") as error:
            attempt("x", value)
        assert "`%push x`" in two_lines(error).mend


@pytest.mark.parametrize(
    ("value", "axis"),
    [(np.zeros((3, 4)), 2), (np.zeros((3, 4)), -3), ([1], 1), (frame(), 1), (pl.DataFrame(), -1), (pa.table({}), 1)],
)
def test_no_such_axis(value, axis):
    """An axis that a value does not have is named; tables and lists are cut by rows only."""
    with pytest.raises(DataError, match=f"axis {axis}") as error:
        count_rows("x", value, axis)
    assert "`%push x`" in two_lines(error).mend
    with pytest.raises(DataError, match=f"axis {axis}") as error:
        join("x", [value, value], axis)
    assert re.match(r"Join it along another: `%gather x --axis [01]`; or `%pull x`", two_lines(error).mend)


@pytest.mark.parametrize(
    ("value", "axis", "rows"),
    [
        (np.zeros((3, 4)), 0, 3), (np.zeros((3, 4)), 1, 4), (np.zeros((3, 4)), -1, 4), (frame(), 0, 9),
        (pl.DataFrame({"a": [1, 2]}), 0, 2), (pa.table({"a": [1]}), 0, 1), (range(10**30), 0, 10**30), ("abc", 0, 3),
    ],
)  # fmt: skip
def test_count_rows(value, axis, rows):
    """Rows are counted along the axis."""
    assert count_rows("x", value, axis) == rows


# ---- what does not fit

PART = frame()
MISFITS = {
    "as in the brief": (
        [np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((3, 5), "f4")],
        "rank 2 holds float32 (3, 5), ranks 0-1 hold float64 (3, 4)",
    ),
    "rows differ too": (
        [np.zeros((3, 4)), np.zeros((2, 4)), np.zeros((3, 5))],
        "rank 2 holds float64 (3, 5), ranks 0-1 hold float64 (n, 4)",
    ),
    "byte order": ([np.zeros(3), np.zeros(3, ">f8")], "rank 0 holds float64 (3,), rank 1 holds >f8 (3,)"),
    "axes": ([np.zeros(3), np.zeros((3, 1))], "rank 0 holds float64 (3,), rank 1 holds float64 (3, 1)"),
    "an array and none": ([np.zeros(3), None, None], "rank 0 holds float64 (3,), ranks 1-2 hold None"),
    "matrix": ([np.zeros((1, 2)), np.ones((1, 2)).view(np.matrix)], "float64 (1, 2), rank 1 holds numpy.matrix float64 (1, 2)"),
    "list and tuple": ([[1], [2], (3,), [4]], "rank 2 holds a tuple, ranks 0-1,3 hold a list"),
    "libraries": ([PART, pl.DataFrame()], "rank 0 holds a pandas.DataFrame, rank 1 holds a polars.DataFrame"),
    "column dtype": (
        [PART, PART, PART.astype({"a": "f4"})],
        "rank 2 holds a pandas.DataFrame with column 'a' float32, ranks 0-1 hold a pandas.DataFrame with column 'a' int64",
    ),
    "column missing": (
        [PART, PART[["a"]]],
        "holds a pandas.DataFrame with 2 columns, column 'b' str, rank 1 holds a pandas.DataFrame with 1 column.",
    ),
    "column order": ([PART, PART[["b", "a"]]], "column 'a' int64, column 'b' str, "),
    "categories": (
        [pd.Series(["a"], dtype=pd.CategoricalDtype(["a"])), pd.Series(["b"], dtype=pd.CategoricalDtype(["b"]))],
        "rank 0 holds a pandas.Series with dtype CategoricalDtype(categories=['a'], ordered=False",
    ),
    "index dtype": ([PART, PART.set_index("b", drop=False)], "index None int64"),
    "index levels": ([PART, PART.set_index(["a", "b"], drop=False)], "index 'a' int64, index 'b' str"),
    "series names": ([pd.Series([1], name="p"), pd.Series([1], name="q")], "with name 'p', rank 1"),
    "extension arrays": ([pd.array([1]), pd.array([1], dtype="Int8")], "Int8"),
    "polars dtype": ([pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [1.0]})], "with column 'a' Int64, rank 1"),
    "polars enum": (
        [pl.Series("s", [], pl.Enum(["p"])), pl.Series("s", [], pl.Enum(["q"]))],
        "with dtype Enum(categories=['p']), rank 1",
    ),
    "arrow schema": ([pa.table({"a": [1]}), pa.table({"a": ["x"]})], "with column 'a' int64, rank 1"),
    "arrow type": ([pa.array([1]), pa.array(["x"])], "rank 0 holds a pyarrow.Int64Array, rank 1"),
    "arrow type in chunks": ([pa.chunked_array([[1]]), pa.chunked_array([["x"]])], "with type int64, rank 1"),
    "typecode": ([array.array("d"), array.array("f")], "with items d, rank 1"),
}  # fmt: skip


@pytest.mark.parametrize(("shards", "told"), MISFITS.values(), ids=MISFITS.keys())
def test_misfit(shards, told):
    """Shards that do not fit are not made to: the error names which ranks differ, and how."""
    with pytest.raises(DataError, match="`x` cannot be joined: rank") as error:
        join("x", shards)
    raised = two_lines(error)
    assert told in raised.message
    assert raised.mend == "Make them alike, or `%pull x` gives each rank's own."


def test_misfit_found_beforehand():
    """What does not fit is refused before anything is sent: stand-ins of the same shape tell, with no bytes in them."""
    heads = [np.broadcast_to(np.empty((), "f8"), (10**9, width)) for width in (4, 4, 5)]
    require_alike("x", heads[:2])
    require_alike("x", heads, 1)
    with pytest.raises(DataError, match=r"rank 2 holds float64 \(1000000000, 5\)"):
        require_alike("x", heads)


def test_misfit_axis_counts():
    """Along the axis shards may differ, away from it they may not."""
    shards = [np.zeros((3, 4)), np.zeros((3, 5))]
    assert join("x", shards, 1).shape == join("x", shards, -1).shape == (3, 9)
    with pytest.raises(DataError):
        join("x", shards)


def test_misfit_of_empty():
    """A rank without rows is not passed over: its dtype would be lost without a word."""
    with pytest.raises(DataError, match=r"rank 1 holds float64 \(0,\)"):
        join("x", [np.zeros(3, int), np.array([])])


@pytest.mark.parametrize("shards", [[1, 2, 3], [{}, {}], [None], [np.float64(1)], [np.array(1.0)] * 2, [deque()], []])
def test_not_to_be_joined(shards):
    """What has no rows is not joined; it may be pulled."""
    with pytest.raises(DataError, match="`x` cannot be joined: ") as error:
        join("x", shards)
    assert two_lines(error).mend == "`%pull x` gives each rank's own."


def test_misfit_stays_short():
    """However much differs on however many ranks, the error stays short."""
    shards = [
        pd.DataFrame(np.zeros((2, 300)), columns=[f"{rank} {n}" * 50 for n in range(300)]) for rank in range(50)
    ]
    for given_ in (shards, [[1] if rank % 2 else "a" for rank in range(5000)]):
        with pytest.raises(DataError) as error:
            join("x", given_)
        assert len(str(two_lines(error))) < 2500


class Stubborn(UserList):
    """A user's sequence that cannot be joined in a way of its own."""

    def __add__(self, other):
        if other:
            raise RuntimeError("not\ntoday")
        return Stubborn()


def test_refused_by_its_own():
    """What a type of a library's or a user's refuses, is told in two lines."""
    with pytest.raises(DataError, match="not today") as error:
        join("x", [Stubborn([1]), Stubborn([2])])
    two_lines(error)
