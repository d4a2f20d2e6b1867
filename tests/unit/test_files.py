"""Files whose rows ranks read and write: what comes back, how little is read, and what an error leaves behind."""

import errno
import itertools
import os
import pickle
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from two_lines import two_lines

from hpcmagic import files
from hpcmagic.errors import DataError
from hpcmagic.files import (
    File,
    Whole,
    begin_writing,
    dtype_from,
    dtype_text,
    finish_writing,
    give_up,
    look,
    read_rows,
    steps,
    write_rows,
)
from hpcmagic.files.datasets import _runs
from hpcmagic.files.kinds import CHUNKS, EDGES, ROWS

ARRAYS = ["x.npy", "x.h5:/group/rho", "x.h5", "x.zarr", "x.zarr:/group/rho"]
EVERY = [*ARRAYS, "x.parquet"]
RECORD = np.dtype([("a", "<f4"), ("when", "<M8[ns]"), ("v", ">i2", (2,))])

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have a Zarr V3 specification", "ignore:Consolidated metadata is currently not part"
)


def whole_of(value, order="C"):
    """What all rows of an array or a table are together."""
    is_array = isinstance(value, np.ndarray)
    return Whole("array", value.shape, dtype_text(value.dtype), order) if is_array else Whole("table")


def bounds(rows, ranks):
    """As many rows for each rank, the first ones with one more."""
    each, over = divmod(rows, ranks)
    return list(itertools.pairwise(rank * each + min(rank, over) for rank in range(ranks + 1)))


def written(file, value, ranks=1, axis=0, order="C"):
    """Write as ranks do: at once where they may, the last first."""
    rows = value.shape[axis] if isinstance(value, np.ndarray) else len(value)
    begin_writing(file, whole_of(value, order))

    def write(rank, step):
        begin, end = bounds(rows, ranks)[rank]
        shard = value.take(range(begin, end), axis) if axis else value[begin:end]
        write_rows(file, shard, begin, rank, axis, step=step)

    for step, at_once in steps(file).items():
        with ThreadPoolExecutor(ranks if at_once else 1) as pool:
            list(pool.map(write, reversed(range(ranks)), itertools.repeat(step)))
    finish_writing(file)
    return file


def read(file, ranks=1, axis=0):
    """Read as ranks do, and join."""
    seen = look(file)
    shards = [read_rows(file, *both, axis, seen) for both in bounds(seen.rows_along(axis), ranks)]
    return np.concatenate(shards, axis) if seen.columns == () else pa.concat_tables(shards)


def table(rows=10):
    """A table with numbers and text."""
    texts = pa.array([f"row {n}" for n in range(rows)], pa.string())
    return pa.table({"n": pa.array(range(rows), pa.int64()), "s": texts})


def left_beside(folder):
    """What is in a directory besides what is meant to be there."""
    return [path.name for path in Path(folder).rglob("*") if "hpcmagic" in path.name]


@pytest.fixture
def made(tmp_path):
    """A file of each kind, with ten rows, by name."""

    def make(name, value=None):
        file = File(name).absolute(str(tmp_path))
        if value is None:
            value = table() if file.kind() == "parquet" else np.arange(30.0).reshape(10, 3)
        return written(file, value)

    return make


# ---- names


@pytest.mark.parametrize(
    ("given", "path", "inner"),
    [
        ("big.h5:/rho", "big.h5", "/rho"),
        ("run.zarr:/group/array", "run.zarr", "/group/array"),
        ("A.NC4:/a/b", "A.NC4", "/a/b"),
        ("big.h5:/", "big.h5", ""),
        ("big.h5://a//b/", "big.h5", "/a/b"),
        ("/d/a.h5:/b.zarr:/c", "/d/a.h5", "/b.zarr:/c"),
        ("12:30.npy", "12:30.npy", ""),
        ("big.h5:rho", "big.h5:rho", ""),
        ("x.npy:/rho", "x.npy:/rho", ""),
        ("a:/b.h5", "a:/b.h5", ""),
        (Path("x.npy"), "x.npy", ""),
    ],
)
def test_inner_split_off(given, path, inner):
    """An array within a file is named behind `:/`; any other colon is a part of the name."""
    assert (File(given).path, File(given).inner) == (path, inner)


def test_file_is_a_value():
    """Files are equal however they were written, and travel as they are."""
    file = File("big.h5:/rho")
    assert file == File("big.h5", "/rho") == File("big.h5", "rho") == pickle.loads(pickle.dumps(file))
    assert str(file) == "big.h5:/rho"
    assert str(File("x.npy")) == "x.npy"
    assert len({file, File("big.h5", "/rho")}) == 1


@pytest.mark.parametrize(
    ("given", "absolute"),
    [
        ("x.npy", "/notebooks/x.npy"),
        ("./d/x.h5:/rho", "/notebooks/d/x.h5:/rho"),
        ("../x.npy", "/notebooks/../x.npy"),
        ("/data/x.npy", "/data/x.npy"),
        ("~/x.npy", "/home/me/x.npy"),
        ("~else/x.npy", "/notebooks/~else/x.npy"),
    ],
)
def test_meant_from_the_notebook(given, absolute, monkeypatch):
    """A relative path is meant from the notebook's directory, wherever a rank runs."""
    monkeypatch.setenv("HOME", "/home/me")
    assert str(File(given).absolute("/notebooks")) == absolute


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x.npy", "npy"), ("x.H5", "hdf5"), ("x.hdf5", "hdf5"), ("x.he5", "hdf5"), ("x.nc", "hdf5"), ("x.nc4", "hdf5"),
     ("x.zarr", "zarr"), ("x.zarr/", "zarr"), ("x.parquet", "parquet"), ("x.pq", "parquet")],
)  # fmt: skip
def test_kind_by_suffix(name, kind):
    """The suffix says what a file is, before there is one."""
    assert File(name).kind() == kind


@pytest.mark.parametrize("marker", ["zarr.json", ".zgroup", ".zarray", "part-0.parquet", "a.pq"])
def test_kind_of_a_directory(tmp_path, marker):
    """A directory without a suffix is what lies in it."""
    (tmp_path / marker).touch()
    assert File(str(tmp_path)).kind() == ("zarr" if "z" in marker else "parquet")


@pytest.mark.parametrize("name", ["x.csv", "x", "x.npz", "big.h5:rho", "x.npy:/rho", "", "."])
def test_unknown_kind(tmp_path, monkeypatch, name):
    """For another file the kinds that there are are named."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"\.npy.*\.parquet.*\.h5.*big\.h5:/rho") as error:
        File(name).kind()
    two_lines(error)


@pytest.mark.parametrize("name", ["x.csv", "big.h5:rho", "sub/x.npz", "here", "."])
def test_refused_in_the_notebook(tmp_path, name):
    """The notebook refuses what has the name of another kind, or is one; what it does not see it leaves to the ranks."""
    (tmp_path / "here").mkdir()
    with pytest.raises(DataError, match="is no file whose rows") as error:
        File(name).require_known(str(tmp_path))
    two_lines(error)
    (tmp_path / "here/part-0.parquet").touch()
    for known in ("x.npy", "big.h5:/rho", "here", "there"):
        File(known).require_known(str(tmp_path))


@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
def test_nothing_within(name):
    """A file that is one array or one table has nothing within."""
    with pytest.raises(DataError, match="one whole") as error:
        look(File(name, "/rho"))
    two_lines(error)


# ---- dtypes


@pytest.mark.parametrize(
    "dtype",
    ["<f8", ">f8", "|u1", "?", "<c16", "<f2", "<U7", "|S3", "<M8[ns]", ">m8[us]", "|V5", "T", RECORD,
     np.dtype([("a", "i1"), ("b", "f8")], align=True), [("a", [("b", "<i4"), ("c", "S2")])], [("größe", "<f4")]],
)  # fmt: skip
def test_dtype_in_text(dtype):
    """A dtype comes back from text as it was: byte order, unit, fields and gaps."""
    dtype = np.dtype(dtype)
    text = dtype_text(dtype)
    assert isinstance(text, str)
    assert dtype_from(text) == dtype
    assert dtype_from(text).itemsize == dtype.itemsize


# ---- what was written is what is read


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("name", ARRAYS)
def test_round_trip(tmp_path, name, axis, ranks):
    """However many ranks wrote, and however many read, the array is the same along every axis."""
    value = np.random.default_rng(1).random((5, 4, 6))
    file = written(File(name).absolute(str(tmp_path)), value, ranks, axis)
    seen = look(file)
    assert (seen.shape, seen.dtype, seen.rows, seen.rows_along(axis)) == ((5, 4, 6), "<f8", 5, value.shape[axis])
    assert seen.size >= value.nbytes or "zarr" in name
    for readers in (1, 3, 8):
        np.testing.assert_array_equal(read(file, readers, axis), value)
    assert left_beside(tmp_path) == []


@pytest.mark.parametrize("name", ["x.h5", "x.zarr"])
@pytest.mark.parametrize("axis", [0, 1])
def test_large_at_once(tmp_path, name, axis):
    """Ranks that write at once into one array of many chunks leave each other's rows whole."""
    value = np.random.default_rng(1).random((1_500, 1_400))
    file = written(File(str(tmp_path / name)), value, 5, axis)
    if "zarr" in name:
        assert min(zarr.open(file.path).chunks) < 1_400 // 2
    np.testing.assert_array_equal(read(file, 3, axis), value)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 15))
def test_each_row_of_a_zarr_once(counts, chunk):
    """Every row is written in one of the two steps; of the first, no chunk has a part of two ranks."""
    ends = list(itertools.accumulate(counts))
    shards = list(itertools.pairwise([0, *ends]))
    runs = {step: [_runs(*shard, ends[-1], chunk, step) for shard in shards] for step in (CHUNKS, EDGES, ROWS)}
    rows = [row for step in (CHUNKS, EDGES) for own in runs[step] for run in own for row in range(*run)]
    assert sorted(rows) == list(range(ends[-1]))
    chunks = [{row // chunk for run in own for row in range(*run)} for own in runs[CHUNKS]]
    assert sum(map(len, chunks)) == len(set().union(*chunks))
    assert [own for own in runs[ROWS] if own != [own[0]]] == []
    assert [own[0] for own in runs[ROWS]] == shards


def test_hdf5_with_more_than_arrays(tmp_path):
    """What an HDF5 file begins with stays, a user block too."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", userblock_size=512) as root:
        root["other/y"] = np.arange(5)
        root["x"] = np.zeros(3)
    with path.open("r+b") as opened:
        opened.write(b"a user block")
    value = np.random.default_rng(1).random((9, 4)).astype(">f4")
    written(File(f"{path}:/x"), value, 4)
    np.testing.assert_array_equal(read(File(f"{path}:/x"), 2), value)
    with h5py.File(path) as root:
        assert root["other/y"][...].tolist() == [0, 1, 2, 3, 4]
    assert path.read_bytes().startswith(b"a user block")


@settings(max_examples=150)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.data(),
    st.sampled_from("CF"),
    st.sampled_from(["<f8", ">i4", "|u1", "<M8[s]", "|S3", RECORD]),
)
def test_npy_anyhow(tmp_path_factory, shape, data, order, dtype):
    """Rows of an .npy come and go in any shape, order and dtype, and numpy reads and writes the same file."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    plain = np.random.default_rng(1).integers(97, 122, nbytes, "u1").view(dtype).reshape(shape)
    file = File(str(tmp_path_factory.mktemp("npy") / "x.npy"))
    written(file, plain, data.draw(st.integers(1, 4)), axis, order)
    loaded = np.load(file.path)
    assert loaded.dtype == dtype
    assert loaded.tobytes() == plain.tobytes()
    assert loaded.flags.f_contiguous if order == "F" else loaded.flags.c_contiguous
    np.save(file.path, np.array(plain, order=order))
    begin = data.draw(st.integers(0, shape[axis]))
    end = data.draw(st.integers(begin, shape[axis]))
    rows = read_rows(file, begin, end, axis)
    wanted = plain.take(range(begin, end), axis)
    assert (rows.dtype, rows.shape, rows.tobytes()) == (dtype, wanted.shape, wanted.tobytes())
    assert rows.flags.writeable
    assert rows.flags.f_contiguous if look(file).order == "F" else rows.flags.c_contiguous


@pytest.mark.parametrize("name", ["x.h5", "x.zarr"])
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<i2", "?", "<c16", "|S5"])
def test_dtypes_within(tmp_path, name, dtype):
    """Numbers of every kind go into HDF5 and Zarr."""
    value = np.arange(12).reshape(6, 2).astype(dtype)
    file = written(File(str(tmp_path / name)), value, 3)
    rows = read(file, 2)
    np.testing.assert_array_equal(rows, value)
    assert dtype_from(look(file).dtype).newbyteorder("=") == value.dtype.newbyteorder("=")


@pytest.mark.parametrize("dtype", ["<M8[ns]", "<U3", [("a", "<f4"), ("b", "<i2")]])
def test_zarr_of_times_and_text(tmp_path, dtype):
    """Zarr also takes times, text and records."""
    value = np.zeros(4, dtype)
    np.testing.assert_array_equal(read(written(File(str(tmp_path / "x.zarr")), value, 2), 3), value)


@pytest.mark.parametrize("name", EVERY)
def test_no_rows(made, name):
    """A rank may have no rows, of a file with rows and of one without."""
    file = made(name)
    for begin in (0, 4, 10):
        rows = read_rows(file, begin, begin)
        assert len(rows) == 0
        assert rows.shape[1] == look(file).shape[1]
    empty = made(name, table(0) if "parquet" in name else np.zeros((0, 3)))
    assert look(empty).shape[0] == 0
    assert len(read_rows(empty, 0, 0)) == 0


@pytest.mark.parametrize("name", ARRAYS)
def test_rows_are_ours(made, name):
    """What was read is the rank's own: it may be written to, and the file stays."""
    file = made(name)
    rows = read_rows(file, 2, 5)
    rows += 1
    np.testing.assert_array_equal(read_rows(file, 2, 5), rows - 1)


@pytest.mark.parametrize("bounds", [(-1, 2), (3, 2), (0, 11), (11, 11)])
@pytest.mark.parametrize("name", EVERY)
def test_no_such_rows(made, name, bounds):
    """Rows that there are not are refused, with those that there are."""
    with pytest.raises(DataError, match=r"no rows.*\n.*0:10") as error:
        read_rows(made(name), *bounds)
    two_lines(error)


@pytest.mark.parametrize("axis", [2, -3])
@pytest.mark.parametrize("name", EVERY)
def test_no_such_axis(made, name, axis):
    """Along an axis that there is not nothing is read."""
    with pytest.raises(DataError, match="no axis") as error:
        read_rows(made(name), 0, 1, axis)
    two_lines(error)


@pytest.mark.parametrize("name", ["x.npy", "x.h5:/x", "x.zarr"])
def test_single_value(tmp_path, name):
    """A single value can be looked at, but has no rows."""
    if name == "x.npy":
        np.save(tmp_path / "x.npy", 1.0)
    elif name == "x.zarr":
        zarr.create_array(str(tmp_path / "x.zarr"), shape=(), dtype="f8")
    else:
        with h5py.File(tmp_path / "x.h5", "w") as root:
            root["x"] = 1.0
    file = File(name).absolute(str(tmp_path))
    assert look(file).shape == ()
    with pytest.raises(DataError, match="no axis 0") as error:
        read_rows(file, 0, 0)
    two_lines(error)


def test_contents_travel(made):
    """What a rank sees of a file can be compared elsewhere, and is the same each time."""
    file = made("x.npy", np.zeros(3, RECORD))
    assert pickle.loads(pickle.dumps(look(file))) == look(file)


# ---- .npy


def test_only_own_bytes(tmp_path, monkeypatch):
    """Of an .npy a rank reads the header and its own rows, in one piece where they lie together."""
    value = np.arange(6_000_000.0).reshape(6000, 1000)
    np.save(tmp_path / "x.npy", value)
    asked = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, place: asked.append(place) or preadv(fd, buffers, place))
    np.testing.assert_array_equal(read_rows(File(str(tmp_path / "x.npy")), 100, 300), value[100:300])
    assert asked == [128 + 100 * 8000]


def test_unfinished_is_never_read(made, monkeypatch):
    """Ranks only write to an unfinished .npy: NFS would write back what it has read, over others' rows."""
    flags, opened = set(), set()
    os_open, path_open = os.open, Path.open

    def spy(path, how, *args, **kwargs):
        fd = os_open(path, how, *args, **kwargs)
        if str(path).endswith("-part"):
            flags.add(how & os.O_ACCMODE)
        return fd

    monkeypatch.setattr(os, "open", spy)
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: opened.add(path.suffix) or path_open(path, *a, **k))
    made("x.npy")
    assert flags == {os.O_WRONLY}
    assert opened == {".hpcmagic-layout"}


def test_read_in_pieces(made, monkeypatch):
    """A system that moves less than was asked for is asked again, in reading and in writing."""
    preadv, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, place: preadv(fd, [buffers[0][:7]], place))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: pwrite(fd, data[:128], place))
    value = np.arange(300.0).reshape(20, 15)
    np.testing.assert_array_equal(read(made("x.npy", value), 3, 1), value)


def test_header_of_every_version(tmp_path):
    """Every version of .npy is read, field names in any script among them."""
    for version, name in [((1, 0), "a"), ((2, 0), "größe"), ((3, 0), "大きさ")]:
        value = np.zeros(5, [(name, "<f4"), ("b", "<i2")])
        value["b"] = range(5)
        with (tmp_path / "x.npy").open("wb") as out:
            np.lib.format.write_array(out, value, version)
        rows = read_rows(File(str(tmp_path / "x.npy")), 1, 4)
        assert rows.dtype == value.dtype
        np.testing.assert_array_equal(rows, value[1:4])


def test_npy_cut(tmp_path):
    """An .npy that was cut says so, by how much; whole rows that are still there are no excuse."""
    path = tmp_path / "x.npy"
    np.save(path, np.arange(100.0))
    os.truncate(path, 500)
    for attempt in (look, lambda file: read_rows(file, 0, 2)):
        with pytest.raises(DataError, match="shorter than its header says: 500 bytes, not 928") as error:
            attempt(File(str(path)))
        two_lines(error)


def test_npy_cut_meanwhile(tmp_path, monkeypatch):
    """An .npy that is cut while it is read is an error, and not the end of the rank."""
    path = tmp_path / "x.npy"
    np.save(path, np.arange(100000.0))
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *a: os.truncate(path, 4096) or preadv(*a))
    with pytest.raises(DataError, match="shorter while it was read") as error:
        read_rows(File(str(path)), 0, 100000)
    two_lines(error)


class Bomb:
    """What unpickling runs."""

    def __reduce__(self):
        return os._exit, (3,)


def test_no_pickle(tmp_path):
    """Objects in an .npy are pickles: they are never loaded."""
    np.save(tmp_path / "x.npy", np.array([Bomb()], object), allow_pickle=True)
    for attempt in (look, lambda file: read_rows(file, 0, 1)):
        with pytest.raises(DataError, match="pickled") as error:
            attempt(File(str(tmp_path / "x.npy")))
        two_lines(error)


# ---- arrays within a file


def store(path, names):
    """An HDF5 file or a Zarr store with small arrays of these names."""
    for name in names:
        if path.suffix == ".h5":
            with h5py.File(path, "a") as root:
                root[name] = np.arange(4.0)
        else:
            zarr.open_group(str(path), mode="a").create_array(name, shape=(4,), dtype="f8")[:] = np.arange(4.0)
    return str(path)


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_only_array_taken(tmp_path, suffix):
    """Where there is one array, it need not be named, however deep it lies."""
    path = store(tmp_path / f"x{suffix}", ["a/b/c"])
    for file in (File(path), File(path, "/a/b/c")):
        np.testing.assert_array_equal(read_rows(file, 1, 3), [1.0, 2.0])


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
@pytest.mark.parametrize(
    ("names", "inner", "said"),
    [
        (["a", "g/b"], "", "several arrays"),
        (["a", "g/b"], "/c", "no array `/c`"),
        (["a", "g/b"], "/g", "no array `/g`"),
        (["a", "g/b"], "/a/b", "no array `/a/b`"),
    ],
)
def test_array_not_named(tmp_path, suffix, names, inner, said):
    """Which array is meant has to be said; the error names those that there are."""
    with pytest.raises(DataError, match=said) as error:
        look(File(store(tmp_path / f"x{suffix}", names), inner))
    assert f"x{suffix}:/a" in two_lines(error).mend
    assert f"x{suffix}:/g/b" in error.value.mend


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_arrays_by_the_dozen(tmp_path, suffix):
    """The error stays short, however many arrays there are."""
    with pytest.raises(DataError) as error:
        look(File(store(tmp_path / f"x{suffix}", [f"array{n:02}" for n in range(30)])))
    assert two_lines(error).mend.count("array") == 8
    assert error.value.mend.endswith(" …")


def test_groups_in_a_circle(tmp_path):
    """HDF5 groups may hold each other: nothing is looked for without end."""
    with h5py.File(tmp_path / "x.h5", "w") as root:
        group = root.create_group("a")
        group.create_group("b")["back"] = group
    with pytest.raises(DataError, match="holds no array") as error:
        look(File(str(tmp_path / "x.h5")))
    two_lines(error)


def test_no_space_in_hdf5(tmp_path):
    """A dataset without a shape is no rows."""
    with h5py.File(tmp_path / "x.h5", "w") as root:
        root["x"] = h5py.Empty("f8")
    assert look(File(str(tmp_path / "x.h5"))).shape == ()


def test_open_elsewhere_on_this_rank(tmp_path):
    """A file that the cell's own code holds open is read as well."""
    path = store(tmp_path / "x.h5", ["a"])
    with h5py.File(path, "r"):
        np.testing.assert_array_equal(read_rows(File(path), 0, 4), np.arange(4.0))


def test_hdf5_text(tmp_path):
    """Text of any length comes as HDF5 gives it, and says that it is objects."""
    with h5py.File(tmp_path / "x.h5", "w") as root:
        root["s"] = ["a", "bc", "def"]
    file = File(str(tmp_path / "x.h5"))
    assert look(file).dtype == "|O"
    assert list(read_rows(file, 1, 3)) == [b"bc", b"def"]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_of_both_formats(tmp_path, zarr_format):
    """Zarr stores of both formats are read, and arrays in F order come so."""
    path = str(tmp_path / "x.zarr")
    order = {"order": "F"} if zarr_format == 2 else {}
    array = zarr.create_array(path, shape=(4, 3), dtype="f8", zarr_format=zarr_format, **order)
    array[:] = np.arange(12.0).reshape(4, 3)
    rows = read_rows(File(path), 1, 3)
    np.testing.assert_array_equal(rows, np.arange(12.0).reshape(4, 3)[1:3])
    assert look(File(path)).order == ("F" if rows.flags.f_contiguous else "C")


# ---- Parquet


def parquet(folder, rows, size=3, first=0):
    """A Parquet file with small row groups."""
    folder.mkdir(exist_ok=True)
    path = folder / f"part.{first}.parquet"
    pq.write_table(table(100)[first : first + rows], path, row_group_size=size)
    return path


@pytest.fixture
def groups_read(monkeypatch):
    """The row groups that are read, by file."""
    read = []
    plain = pq.ParquetFile.read_row_groups

    def spy(self, groups, *args, **kwargs):
        read.append(list(groups))
        return plain(self, groups, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", spy)
    return read


@pytest.mark.parametrize(
    ("begin", "end", "groups"),
    [
        (0, 3, [[0]]),
        (2, 4, [[0, 1]]),
        (4, 5, [[1]]),
        (9, 10, [[3]]),
        (8, 12, [[2, 3], [0]]),
        (13, 13, []),
        (0, 25, [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1]]),
        (24, 25, [[1]]),
    ],
)
def test_only_groups_that_overlap(tmp_path, groups_read, begin, end, groups):
    """Of a directory only the row groups are read that hold some of a rank's rows, and exactly these rows come."""
    for first, rows in ((0, 10), (10, 10), (20, 5)):
        parquet(tmp_path / "d", rows, first=first)
    rows = read_rows(File(str(tmp_path / "d")), begin, end)
    assert groups_read == groups
    assert rows.equals(table(100)[begin:end])


@settings(max_examples=60)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=13), st.integers(1, 4), st.integers(1, 9))
def test_parquet_anyhow(tmp_path_factory, lengths, size, ranks):
    """All rows come once and in order, however they lie in files and row groups."""
    folder = tmp_path_factory.mktemp("d")
    first = 0
    for number, rows in enumerate(lengths):
        pq.write_table(table(100)[first : first + rows], folder / f"part.{number}.parquet", row_group_size=size)
        first += rows
    assert look(File(str(folder))).shape == (first, 2)
    assert read(File(str(folder)), ranks).equals(table(first))


def test_other_files_beside(tmp_path):
    """What Spark and Dask put beside their tables is no table."""
    parquet(tmp_path / "d", 10)
    for name in ("_SUCCESS", "_metadata", ".part.0.parquet.crc"):
        (tmp_path / "d" / name).touch()
    assert look(File(str(tmp_path / "d"))).rows == 10


@pytest.mark.parametrize("name", ["year=2020", "notes.txt", None])
def test_strange_directory(tmp_path, name):
    """A directory with anything else in it, such as one that is cut by a column, is refused."""
    folder = tmp_path / "d.parquet"
    folder.mkdir()
    if name:
        parquet(folder, 10)
        (folder / name).mkdir()
    with pytest.raises(DataError, match=name or "no Parquet file") as error:
        look(File(str(folder)))
    two_lines(error)


@pytest.mark.parametrize("other", [{"m": [1], "s": ["a"]}, {"n": ["text"], "s": ["a"]}, {"n": [1]}])
def test_files_that_differ(tmp_path, other):
    """Files with other columns, or with other types in them, are not one table."""
    parquet(tmp_path / "d", 10)
    pq.write_table(pa.table(other), tmp_path / "d" / "z.parquet")
    with pytest.raises(DataError) as error:
        look(File(str(tmp_path / "d")))
    two_lines(error)


def test_column_of_nulls(tmp_path):
    """A rank whose column holds nothing knows no type for it, and takes the others'."""
    file = File(str(tmp_path / "x.parquet"))
    begin_writing(file, Whole("table"))
    write_rows(file, pa.table({"s": [None, None]}), 0, 0)
    write_rows(file, pa.table({"s": ["a"]}), 2, 1)
    finish_writing(file)
    for begin, end in ((0, 1), (1, 3), (3, 3)):
        assert read_rows(file, begin, end).schema == pa.schema({"s": pa.string()})


@pytest.mark.parametrize(
    ("of", "back"),
    [
        (lambda t: t, lambda t: t),
        (lambda t: t.combine_chunks().to_batches()[0], lambda t: t),
        (pa.Table.to_pandas, lambda t: pa.table(t.to_pandas())),
        (pl.from_arrow, lambda t: pl.from_arrow(t).to_arrow()),
    ],
    ids=["pyarrow", "batch", "pandas", "polars"],
)
def test_tables_of_every_library(tmp_path, of, back):
    """Tables of pyarrow, pandas and polars are written, one file a rank, in the order of the ranks."""
    file = File(str(tmp_path / "x.parquet"))
    begin_writing(file, Whole("table"))
    for rank, (begin, end) in enumerate(bounds(10, 3)):
        write_rows(file, of(table()[begin:end]), begin, rank)
    finish_writing(file)
    assert sorted(os.listdir(file.path)) == [f"part-{rank:05}.parquet" for rank in range(3)]
    assert read(file, 2).to_pylist() == back(table()).to_pylist()
    assert pd.read_parquet(file.path)["s"].tolist() == table()["s"].to_pylist()


def test_index_of_pandas(tmp_path):
    """The index of a DataFrame comes back."""
    file = File(str(tmp_path / "x.parquet"))
    frame = pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="key"))
    pd.testing.assert_frame_equal(read(written(file, frame)).to_pandas(), frame)


@pytest.mark.parametrize("value", [[1], np.zeros(3), pd.Series([1]), {"a": [1]}, pl.Series([1]), None])
def test_no_table(tmp_path, value):
    """What is no table is refused by the rank that holds it."""
    file = File(str(tmp_path / "x.parquet"))
    begin_writing(file, Whole("table"))
    with pytest.raises(DataError, match="Rank 5 holds") as error:
        write_rows(file, value, 0, 5)
    two_lines(error)


# ---- files that cannot be read


@pytest.mark.parametrize("name", EVERY)
def test_missing(tmp_path, name):
    """A file that is not there is named with its host: another may see another file system."""
    file = File(name).absolute(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere/x\.\w+` is not there on host \w+") as error:
        look(file)
    two_lines(error)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("data", [b"", b"junk" * 500])
def test_damaged(tmp_path, name, data):
    """A file that is not what its name says is an error in two lines."""
    file = File(name).absolute(str(tmp_path))
    Path(file.path).write_bytes(data)
    with pytest.raises(DataError, match="cannot be read") as error:
        look(file)
    two_lines(error)


@pytest.mark.parametrize("name", EVERY)
def test_damaged_anywhere(made, name):
    """Wherever a file is damaged, its rows come as they were, or as others, or there is an error in two lines."""
    file = made(name)
    path = max((p for p in [Path(file.path), *Path(file.path).rglob("*")] if p.is_file()), key=lambda p: p.name)
    data = path.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 60)):
        for damaged in (data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :], data[:place]):
            path.write_bytes(damaged)
            assert len(said_of(file).splitlines()) in {0, 2}


def said_of(file):
    """What is said when a file is read to its end."""
    try:
        read_rows(file, 0, look(file).rows)
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["x.npy", "x.h5", "x.parquet"])
def test_closed(tmp_path, name, monkeypatch):
    """A file that may not be read says so. (Root may read all: the system's answer is a stand-in.)"""
    path = tmp_path / name
    path.touch()

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(h5py, "File", refuse)
    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(DataError, match=r"may not be read on host \w+: Permission denied") as error:
        look(File(str(path)))
    two_lines(error)


@pytest.mark.parametrize("name", ["x.npy", "x.h5"])
def test_directory_in_its_place(tmp_path, name):
    """A directory is no .npy and no HDF5, to read and to replace."""
    (tmp_path / name).mkdir()
    file = File(str(tmp_path / name))
    for attempt in (look, lambda file: begin_writing(file, Whole("array", (3,), "<f8"))):
        with pytest.raises(DataError, match="Is a directory") as error:
            attempt(file)
        two_lines(error)
    assert left_beside(tmp_path) == []


def change(file):
    """Change a file as another program would, its size and its header kept."""
    target = files._format(file).target
    path = max((path for path in [target, *target.rglob("*")] if path.is_file()), key=lambda path: path.name)
    now = max(path.stat().st_mtime_ns, look(file).mtime_ns)
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(now, now + 1))


@pytest.mark.parametrize("name", EVERY)
def test_changed_since(made, name):
    """A file that is not the one that was looked at is not read."""
    file = made(name)
    seen = look(file)
    read_rows(file, 0, 3, expected=seen)
    change(file)
    with pytest.raises(DataError, match="has changed while it was read") as error:
        read_rows(file, 0, 3, expected=seen)
    two_lines(error)


@pytest.mark.parametrize("name", EVERY)
def test_changed_meanwhile(made, name, monkeypatch):
    """A file that changes while a rank reads it gives no rows, whether the caller expected something or not."""
    file = made(name)
    form = type(files._format(file))
    plain = form.read

    def read_and_change(self, *args):
        rows = plain(self, *args)
        change(file)
        return rows

    monkeypatch.setattr(form, "read", read_and_change)
    for expected in (None, look(file)):
        with pytest.raises(DataError, match="has changed while it was read"):
            read_rows(file, 0, 3, expected=expected)


def test_neighbour_changed(tmp_path):
    """Another array of a Zarr store may be written while one is read."""
    path = store(tmp_path / "x.zarr", ["a"])
    seen = look(File(path, "/a"))
    store(tmp_path / "x.zarr", ["b"])
    read_rows(File(path, "/a"), 0, 4, expected=seen)


# ---- writing: what there is stays until all is there


@pytest.mark.parametrize("name", EVERY)
def test_in_one_step(made, name):
    """An older file is what others see until the new one is whole."""
    file = made(name)
    before = read(file)
    new = table(4) if name == "x.parquet" else np.ones((7, 2), "<f4")
    begin_writing(file, whole_of(new))
    assert read(file).tolist() == before.tolist() if isinstance(new, np.ndarray) else read(file).equals(before)
    write_rows(file, new, 0, 0)
    assert look(file).rows == 10
    finish_writing(file)
    assert look(file).shape == new.shape
    assert left_beside(Path(file.path).parent) == []


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("there", [True, False])
def test_given_up(tmp_path, made, name, there):
    """Whoever gives up leaves nothing of his own, and what was there as it was. He may do so twice."""
    file = made(name) if there else File(name).absolute(str(tmp_path))
    seen = look(file) if there else None
    new = table(4) if name == "x.parquet" else np.ones((7, 2), "<f4")
    begin_writing(file, whole_of(new))
    write_rows(file, new, 0, 0)
    assert left_beside(tmp_path) != []
    give_up(file)
    give_up(file)
    assert left_beside(tmp_path) == []
    assert look(file) == seen if there else not os.path.exists(file.path)


@pytest.mark.parametrize("name", EVERY)
def test_attempt_of_the_dead(made, name):
    """What a killed rank left is no obstacle."""
    file = made(name)
    new = table(4) if name == "x.parquet" else np.ones((7, 2), "<f4")
    begin_writing(file, whole_of(new))
    write_rows(file, new, 0, 3)
    written(file, new, 2)
    assert look(file).rows == len(new)
    assert left_beside(Path(file.path).parent) == []


@pytest.mark.parametrize("name", ["x.zarr", "x.zarr:/g/a", "x.parquet"])
def test_killed_between_renames(made, name):
    """A directory that was put aside for one that never came is put back."""
    file = made(name)
    form = files._format(file)
    form.target.rename(form.aside)
    new = table(4) if name == "x.parquet" else np.ones((7, 2), "<f4")
    begin_writing(file, whole_of(new))
    assert look(file).rows == 10
    give_up(file)


@pytest.mark.parametrize("name", ["x.zarr", "x.zarr:/g/a", "x.parquet"])
def test_rename_failed(made, name, monkeypatch):
    """If the new directory cannot take its place, the old one is there again."""
    file = made(name)
    new = table(4) if name == "x.parquet" else np.ones((7, 2), "<f4")
    begin_writing(file, whole_of(new))
    write_rows(file, new, 0, 0)
    rename = Path.rename

    def refuse(self, target):
        if self.name.endswith("-part"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DataError, match="Input/output error") as error:
        finish_writing(file)
    two_lines(error)
    assert look(file).rows == 10


@pytest.mark.parametrize("name", EVERY)
def test_finished_without_a_beginning(tmp_path, name):
    """Ranks that do not see what rank 0 began, and a rank 0 that began nothing, say so with their host."""
    file = File(name).absolute(str(tmp_path))
    shard = table() if name == "x.parquet" else np.zeros((3, 2))
    for attempt in (lambda: write_rows(file, shard, 0, 1), lambda: finish_writing(file)):
        with pytest.raises(DataError, match="is not there on host") as error:
            attempt()
        two_lines(error)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", EVERY)
def test_no_place(tmp_path, name):
    """A directory that is missing is not made, but named."""
    file = File(name).absolute(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere` is not there on host") as error:
        begin_writing(file, Whole("table") if name == "x.parquet" else Whole("array", (3,), "<f8"))
    two_lines(error)


@pytest.mark.parametrize("name", EVERY)
def test_private(made, name):
    """New files and directories are open to their owner alone, whatever the umask."""
    path = made(name).path
    assert stat.S_IMODE(os.stat(path).st_mode) == (0o700 if os.path.isdir(path) else 0o600)


@pytest.mark.parametrize("name", ["x.npy", "x.parquet", "x.zarr"])
def test_link_stays(tmp_path, name):
    """A link stays, and what it points to is replaced."""
    (tmp_path / "far").mkdir()
    link = tmp_path / name
    link.symlink_to(tmp_path / "far" / name)
    value = table() if name == "x.parquet" else np.zeros((10, 3))
    for _ in range(2):
        written(File(str(link)), value)
        assert link.is_symlink()
        assert look(File(str(link))).rows == 10
    assert os.listdir(tmp_path / "far") == [name]


@pytest.mark.parametrize("name", EVERY)
def test_closed_to_writing(made, name, monkeypatch):
    """What its owner has closed is not replaced. (Root may: the system's answer is a stand-in.)"""
    file = made(name)
    seen = look(file)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match=r"may not be written on host \w+: Permission denied") as error:
        begin_writing(file, whole_of(table() if name == "x.parquet" else np.zeros(3)))
    two_lines(error)
    assert look(file) == seen


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_others_stay(tmp_path, suffix):
    """What else a file holds stays, when one array in it is written or replaced."""
    path = store(tmp_path / f"x{suffix}", ["a", "g/b"])
    for shape in ((6, 2), (3,)):
        for inner in ("/g/new", "/g/b", "/deep/er/new"):
            value = np.random.default_rng(1).random(shape)
            np.testing.assert_array_equal(read(written(File(path, inner), value, 2), 3), value)
            np.testing.assert_array_equal(read(File(path, "/a")), np.arange(4.0))
    assert left_beside(tmp_path) == []


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
@pytest.mark.parametrize("inner", ["/g", "/a/b", "/a/b/c"])
def test_groups_stay(tmp_path, suffix, inner):
    """A group is not replaced by an array, nor is an array by a group."""
    file = File(store(tmp_path / f"x{suffix}", ["a", "g/b"]), inner)
    with pytest.raises(DataError) as error:
        written(file, np.zeros(3))
    two_lines(error)
    give_up(file)
    for name in ("/a", "/g/b"):
        np.testing.assert_array_equal(read(File(file.path, name)), np.arange(4.0))
    assert left_beside(tmp_path) == []


def test_store_of_several_stays(tmp_path):
    """A Zarr store that is a group is not replaced by an array; one that is an array takes none within."""
    group, array = File(store(tmp_path / "g.zarr", ["a"])), File(str(tmp_path / "a.zarr"))
    written(array, np.arange(4.0))
    for file in (group, File(array.path, "/x")):
        with pytest.raises(DataError) as error:
            begin_writing(file, Whole("array", (3,), "<f8"))
        two_lines(error)
    for file in (File(group.path, "/a"), array):
        np.testing.assert_array_equal(read(file), np.arange(4.0))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_list_of_a_store_kept(tmp_path, zarr_format):
    """A Zarr store keeps its format, and its list of all arrays if it had one."""
    path = str(tmp_path / "x.zarr")
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    root.create_array("a", shape=(3,), dtype="f8")
    zarr.consolidate_metadata(path)
    written(File(path, "/g/b"), np.arange(5.0), 2)
    again = zarr.open_consolidated(path)
    np.testing.assert_array_equal(again["g/b"][:], np.arange(5.0))
    assert again["g/b"].metadata.zarr_format == zarr_format
    assert "a" in again


@pytest.mark.parametrize("name", ["notes.txt", ".git", "sub"])
def test_strange_directory_stays(tmp_path, name):
    """A directory with anything besides Parquet files in it is not replaced."""
    parquet(tmp_path / "d.parquet", 10)
    (tmp_path / "d.parquet" / name).mkdir()
    with pytest.raises(DataError, match=name) as error:
        begin_writing(File(str(tmp_path / "d.parquet")), Whole("table"))
    two_lines(error)
    assert left_beside(tmp_path) == []


def test_directory_that_is_no_store_stays(tmp_path):
    """A directory that happens to end in .zarr is not replaced."""
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / "thesis.txt").touch()
    with pytest.raises(DataError) as error:
        begin_writing(File(str(tmp_path / "x.zarr")), Whole("array", (3,), "<f8"))
    two_lines(error)
    assert os.listdir(tmp_path / "x.zarr") == ["thesis.txt"]


def test_file_becomes_a_directory(tmp_path):
    """A single Parquet file is replaced by a directory of one file a rank, and that by another."""
    file = File(str(parquet(tmp_path / "d", 10)))
    for ranks in (2, 3):
        assert read(written(file, table(7), ranks)).equals(table(7))
        assert len(os.listdir(file.path)) == ranks


# ---- what cannot be written


@pytest.mark.parametrize("name", EVERY)
def test_kind_that_does_not_fit(tmp_path, name):
    """A table goes into .parquet, an array into the others, and the error says which."""
    is_table = name == "x.parquet"
    whole = Whole("array", (3,), "<f8") if is_table else Whole("table")
    with pytest.raises(DataError, match="cannot hold") as error:
        begin_writing(File(name).absolute(str(tmp_path)), whole)
    assert (".npy" if is_table else ".parquet") in two_lines(error).mend
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("dtype", ["|O", "T", "[('a', '<f4'), ('b', '|O')]"])
def test_no_objects(tmp_path, name, dtype):
    """Objects would be pickles: they are not written."""
    with pytest.raises(DataError, match="Python objects") as error:
        begin_writing(File(name).absolute(str(tmp_path)), Whole("array", (3,), dtype))
    two_lines(error)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "dtype"), [("x.h5", "<M8[ns]"), ("x.h5", "<U3"), ("x.zarr", "<f16")])
def test_dtype_unknown_there(tmp_path, name, dtype):
    """A dtype that a kind of file does not know is said, with the other kinds."""
    file = File(str(tmp_path / name))
    with pytest.raises(DataError, match=r"cannot be written(.|\n)*\.npy") as error:
        begin_writing(file, Whole("array", (3,), dtype))
    two_lines(error)
    give_up(file)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    ("shard", "begin"),
    [
        (np.zeros((2, 4)), 0),
        (np.zeros(2), 0),
        (np.zeros((2, 3, 1)), 0),
        (np.zeros((2, 3)), 9),
        (np.zeros((2, 3)), -1),
        (np.zeros((11, 3)), 0),
        (np.zeros((2, 3), "c16"), 0),
        (np.zeros((2, 3), "<i8"), 0),
        (np.zeros((2, 3), "O"), 0),
        (np.float64(1), 0),
        (np.ma.masked_array(np.zeros((2, 3)), True), 0),
    ],
)
def test_rows_that_do_not_fit(tmp_path, name, shard, begin):
    """Rows of another shape or dtype, or beyond the whole, are refused by their rank: nothing is cut or changed."""
    file = File(name).absolute(str(tmp_path))
    begin_writing(file, Whole("array", (10, 3), "<f8"))
    with pytest.raises(DataError, match="Rank 4 holds") as error:
        write_rows(file, shard, begin, 4)
    two_lines(error)


def test_narrower_rows(made):
    """Rows of a narrower dtype, of shorter text or of another byte order are written without loss."""
    for dtype, shard in [("<f8", np.arange(3, dtype=">f4")), ("<U5", np.array(["a", "bc", "def"]))]:
        file = made("x.npy")
        begin_writing(file, Whole("array", (3,), dtype))
        write_rows(file, shard, 0, 0)
        finish_writing(file)
        assert read(file).tolist() == shard.tolist()
        assert look(file).dtype == dtype


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", ["x.npy", "x.h5", "x.parquet"])
def test_disk_full(made, name, number, monkeypatch):
    """A disk that is full, or a quota that is used up, is said, and what was there stays."""
    file = made(name)
    seen = look(file)
    new = table(4) if name == "x.parquet" else np.ones((7, 2))
    begin_writing(file, whole_of(new))

    def full(*args):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync" if name == "x.parquet" else "pwrite", full)
        with pytest.raises(DataError, match=f"{os.strerror(number)} while writing `.*{name}`") as error:
            write_rows(file, new, 0, 0)
    two_lines(error)
    give_up(file)
    assert look(file) == seen
    assert left_beside(Path(file.path).parent) == []


def test_disk_full_as_hdf5_says_it(made, monkeypatch):
    """HDF5 gives the system's error in its text alone."""
    text = "Can't synchronously write data (file write failed: time = x\n, errno = 28, error message = 'No space')"
    file = made("x.h5")

    def full(*_, **__):
        raise OSError(text)

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(DataError, match="No space left on device while writing") as error:
        begin_writing(file, Whole("array", (3,), "<f8"))
    two_lines(error)


FILL = """
import os, sys, numpy as np, pyarrow as pa
from hpcmagic.errors import DataError
from hpcmagic.files import File, Whole, begin_writing, give_up, write_rows
file, x = File(sys.argv[1]), np.random.default_rng(1).random(1_000_000)
is_table = file.kind() == "parquet"
try:
    begin_writing(file, Whole("table") if is_table else Whole("array", x.shape, "<f8"))
    write_rows(file, pa.table({"x": x}) if is_table else x, 0, 0)
except DataError as error:
    give_up(file)
    print(error.message, os.listdir(os.path.dirname(file.path)))
"""


@pytest.mark.parametrize("name", EVERY)
def test_disk_really_full(tmp_path, name):
    """On a full disk no kind of file crashes its rank, and none leaves anything behind.

    Whoever may not mount a small disk has the stand-ins above.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.getuid() or not mount or subprocess.run(command, capture_output=True).returncode:
        return
    try:
        line = [sys.executable, "-W", "ignore", "-c", FILL, str(disk / name)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    said = f"No space left on device while writing `{disk / name.partition(':')[0]}`."
    assert done.stdout.strip() == f"{said} []", done.stderr


# ---- libraries


@pytest.mark.parametrize(
    ("name", "library", "called"),
    [
        ("x.npy", "numpy", "arrays"),
        ("x.h5", "h5py", "HDF5"),
        ("x.zarr", "zarr", "Zarr"),
        ("x.pq", "pyarrow", "Parquet"),
    ],
)
def test_library_missing(tmp_path, name, library, called, monkeypatch):
    """A library that the ranks lack is named, and how to install it."""
    (tmp_path / name).touch()
    for module in [m for m in sys.modules if m.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"{called} needs {library}, which is not installed") as error:
        look(File(str(tmp_path / name)))
    assert "hpcmagic[files]" in two_lines(error).mend


def test_nothing_loaded():
    """No library is loaded before a file of its kind is met."""
    code = "import sys, hpcmagic.files; print({'numpy', 'h5py', 'zarr', 'pyarrow', 'asyncio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
