"""Values over the ranks, there and back: what comes is what was sent, on each of the paths that bytes may take."""

import array
import contextlib
import datetime as dt
import os
import re
import signal
import threading
import time

import numpy as np
import pandas as pd
import polars as pl
import psutil
import pyarrow as pa
import pytest
from faults import in_thread
from two_lines import two_lines

import hpcmagic
from hpcmagic.engine.transfers import FUNCTIONS_KEPT
from hpcmagic.notebook import data, progress
from hpcmagic.notebook import session as sessions
from hpcmagic.wire import crypto, parcels, shared
from hpcmagic.wire.messages import FRAME_NBYTES, REQUEST
from notebooks import shown_by

PATHS = ("shared memory", "wire", "chain")
FEW = 11  # rows: they travel with the request
EAGER = 80_000  # bytes a rank: they go by themselves, but are not waited for
LARGE = 600_000  # bytes of which all ranks' parts are bound at once


@pytest.fixture(scope="module")
def without_mpi(session_dir):
    """Four ranks that are no MPI world: what all get is passed from one to the next."""
    options = {"launcher": "local", "session": "chain", "session_dir": str(session_dir / "d"), "mpi": "none"}
    held = hpcmagic.start(nodes=4, **options)
    yield held
    held.stop()


@pytest.fixture(scope="module", params=PATHS)
def path(request):
    """One of the paths, and a session whose bytes take it."""
    held = request.getfixturevalue("without_mpi" if request.param == "chain" else "session")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "ALLOWED", request.param == "shared memory")
        patch.setattr(data, "EAGER_NBYTES", EAGER)
        patch.setattr(data, "SPREAD_NBYTES", LARGE // 2)
        yield request.param, held
        held.data.channels.close()


ONE_PATH = pytest.mark.parametrize("path", PATHS[:1], indirect=True)
TWO_PATHS = pytest.mark.parametrize("path", PATHS[:2], indirect=True)  # of those, what only some ranks get takes one


def opened(session):
    """The channels that are open."""
    return [channel for _, channel in session.data.channels._open.values()]


@pytest.fixture(scope="class")  # before the watches look: channels stay
def ranks(path):
    """Four ranks, with channels to all of them."""
    taken, session = path
    if not opened(session):
        session.scatter(opened=bytes(LARGE))
    assert {channel.shared is not None for channel in opened(session)} == {taken == "shared memory"}
    return session


@pytest.fixture
def fresh(ranks):
    """The same, for a test that opens others."""
    ranks.data.channels.close()
    yield ranks
    ranks.data.channels.close()


@pytest.fixture
def slowly(monkeypatch):
    """Let this notebook take its time, ``slowly(seconds)`` a frame, for what it sends and what it receives."""

    def slow_down(seconds):
        def slow(function):
            def slowed(*args):
                for block in function(*args):
                    time.sleep(seconds)
                    yield block

            return slowed

        monkeypatch.setattr(data, "blocks", slow(parcels.blocks))
        monkeypatch.setattr(data, "landing", slow(parcels.landing))
        monkeypatch.setattr(data.Room, "blocks", slow(parcels.Room.blocks))

    return slow_down


def same(got, was):
    """Require that a value is what another was: type, bytes, order, index, schema."""
    assert type(got) is type(was)
    match was:
        case np.ma.MaskedArray():
            same(np.ma.getmaskarray(got), np.ma.getmaskarray(was))
            same(got.data, was.data)
            assert got.fill_value == was.fill_value
        case np.ndarray():
            assert (got.dtype, got.shape) == (was.dtype, was.shape)
            assert order_of(got) in ("any", order_of(was)) or order_of(was) == "any"
            for field in was.dtype.names or ():  # what lies between them may be anything
                assert got[field].tobytes() == was[field].tobytes()
            if was.dtype.hasobject:
                assert got.tolist() == was.tolist()
            elif not was.dtype.names:
                assert got.tobytes() == was.tobytes()
        case pd.DataFrame():
            pd.testing.assert_frame_equal(got, was, check_exact=True, check_freq=True, check_flags=True)
        case pd.Series():
            pd.testing.assert_series_equal(got, was, check_exact=True, check_freq=True)
        case pd.Index():
            pd.testing.assert_index_equal(got, was, exact=True, check_exact=True)
        case pl.DataFrame() | pl.Series():
            assert got.equals(was, null_equal=True)
            assert repr(got.dtypes if isinstance(was, pl.DataFrame) else got.dtype) == repr(
                was.dtypes if isinstance(was, pl.DataFrame) else was.dtype
            )
        case pa.Table() | pa.RecordBatch():
            assert got.equals(was, check_metadata=True)
        case _:
            assert got == was
            if isinstance(was, list | tuple):
                assert [*map(type, got)] == [*map(type, was)]


def order_of(values):
    """How an array lies, as numpy.copy's K would keep it."""
    c, f = values.flags.c_contiguous, values.flags.f_contiguous
    return "any" if c == f else "C" if c else "F"


def there_and_back(session, values, axis=0):
    """Scatter values together, look at what the ranks have, gather them together."""
    session.scatter(values, axis=axis)
    joined = session.gather(*values)
    for (name, was), got in zip(values.items(), joined if len(values) > 1 else (joined,), strict=True):
        try:
            same(got, was)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def noise(dtype, *shape):
    """An array of any dtype whose bytes are zeros and ones by chance."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    return np.random.default_rng(7).integers(0, 2, count, "u1").view(dtype).reshape(shape)


DTYPES = (
    "?", "i1", ">i2", "<u8", "f2", ">f4", "f8", "g", "c16", "S7", "U5", "V6", "M8[ns]", ">M8[D]", "m8[25s]",
    np.dtype([("a", "i1"), ("b", ">f8"), ("c", "S3")], align=True),
    np.dtype({"names": ["x", "y"], "formats": ["f4", ("i2", (2, 2))], "offsets": [8, 0], "itemsize": 24}),
)  # fmt: skip


@TWO_PATHS
@pytest.mark.parametrize("nbytes", [0, 4 * EAGER // len(DTYPES), LARGE], ids=["few", "eager", "large"])
def test_dtypes(ranks, nbytes):
    """Every dtype comes back with its bytes and its byte order, few rows with a request and many by themselves."""
    rows = {name: max(FEW, nbytes // np.dtype(name).itemsize) for name in DTYPES}
    there_and_back(ranks, {f"v{i}": noise(dtype, rows[dtype]) for i, dtype in enumerate(DTYPES)})
    assert list(ranks.run("v0.shape[0]")) == [len(part) for part in np.array_split(range(rows["?"]), 4)]


@TWO_PATHS
def test_shards_are_the_ranks_own(ranks):
    """A rank gets the rows that numpy.array_split gives it, may write to them, and the notebook's stay as they were."""
    x = np.arange(1_000_003.0)
    kept = x.copy()
    ranks.scatter(x=x)
    ranks.run("x += 1000 * rank")
    assert (x == kept).all()
    for rank, part in enumerate(np.array_split(x, 4)):
        same(ranks.pull("x", ranks=rank)[rank], part + 1000 * rank)
    same(ranks.gather("x"), np.concatenate([part + 1000 * r for r, part in enumerate(np.array_split(x, 4))]))
    assert ranks.gather("x").flags.writeable


LAYOUTS = {
    "C": lambda a: a,
    "F": np.asfortranarray,
    "gaps": lambda a: np.repeat(np.repeat(a, 2, 0), 2, 1)[::2, ::2],
    "reversed": lambda a: a[::-1, :, ::-1],
    "axes swapped": lambda a: np.ascontiguousarray(a.transpose(1, 0, 2)).transpose(1, 0, 2),
    "read only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "repeated": lambda a: np.broadcast_to(a[:, :1, :1], a.shape),
}


@TWO_PATHS
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(6, 5, 7), (60, 50, 140)], ids=["few", "large"])
def test_layouts(ranks, axis, shape):
    """However an array lies and along whichever axis it is cut, it comes back as it was, in its order."""
    there_and_back(ranks, {f"v{i}": lay(noise("<f8", *shape)) for i, lay in enumerate(LAYOUTS.values())}, axis)


@TWO_PATHS
def test_few_rows(ranks):
    """With fewer rows than ranks the last ranks get none; no rows at all are rows too."""
    shapes = [(0,), (0, 3), (5, 0), (1,), (2, 3), (3, 100_000), (1, 300_000), (0, 100_000)]
    values = {f"v{i}": noise("f8", *shape) for i, shape in enumerate(shapes)}
    there_and_back(ranks, values)
    there_and_back(ranks, {name: np.asfortranarray(value) for name, value in values.items()})
    assert list(ranks.run("v5.shape")) == [(1, 100_000)] * 3 + [(0, 100_000)]
    assert [value.dtype.name for value in ranks.pull("v1")] == ["float64"] * 4


@TWO_PATHS
def test_order_of_shards_of_one_row(ranks):
    """An array in Fortran's order stays in it, though some ranks have a single row, which tells of no order."""
    for columns in (3, 40_000):
        ranks.scatter(x=np.asfortranarray(noise("f8", 5, columns)))
        assert order_of(ranks.gather("x")) == "F"


@TWO_PATHS
def test_objects_and_masks(ranks):
    """Arrays of objects and masked arrays come back whole: items, masks, fill values."""
    masked = np.ma.masked_array(noise("f8", LARGE // 8, 2), noise("?", LARGE // 8, 2), fill_value=7.5)
    objects = np.empty(FEW, object)
    objects[:] = [None, "text", {"k": (1, 2)}, 3, 4.5, dt.date(2024, 2, 29), b"x", [], 1j, True, ()]
    many = np.array([f"word {i}" * (i % 3) for i in range(60_000)], object)
    values = {"objects": objects, "many": many, "masked": masked[:FEW], "more": masked, "none": np.ma.arange(9.0)}
    there_and_back(ranks, values)


def frame(rows):
    """A pandas table with a bit of everything."""
    stamps = pd.date_range("2024-03-30", periods=rows, freq="37min", tz="Europe/Paris")
    return pd.DataFrame(
        {
            "f": noise("f8", rows),
            "i": pd.array([None if i % 5 == 0 else i for i in range(rows)], "Int32"),
            "text": [f"größe {i % 9}" for i in range(rows)],
            "kind": pd.Categorical([("a", "b", "c")[i % 3] for i in range(rows)], ["c", "b", "a", "unused"], ordered=True),
            "when": stamps,
            ("a", 1): np.arange(rows, dtype="i2"),
        },
        index=pd.Index(stamps.tz_convert("UTC"), name="at"),
    )  # fmt: skip


def pandas_values(rows):
    """Tables, columns and indexes of pandas."""
    table = frame(rows)
    pairs = pd.MultiIndex.from_arrays([np.arange(rows) // 7, list(table["text"])], names=["n", "t"])
    return {
        "table": table,
        "plain": table.reset_index(drop=True),
        "pairs": table[["f"]].set_axis(pairs),
        "no_columns": table[[]],
        "column": table["i"],
        "kinds": table["kind"],
        "index": table.index,
        "one_type": pd.DataFrame(noise("f4", rows, 5), columns=list("abcde")),
    }


def polars_values(rows):
    """Tables and columns of polars."""
    table = pl.DataFrame(
        {
            "f": noise("f8", rows),
            "text": [None if i % 4 == 0 else f"größe {i}" for i in range(rows)],
            "kind": pl.Series([("a", "b")[i % 2] for i in range(rows)], dtype=pl.Enum(["b", "a"])),
            "list": [[i] * (i % 3) for i in range(rows)],
            "when": pl.Series(range(rows), dtype=pl.Datetime("ms", "Asia/Tokyo")),
            "struct": [{"x": i, "y": str(i)} for i in range(rows)],
        }
    )
    return {"table": table, "column": table["text"], "wide": pl.DataFrame(noise("i4", rows, 9))}


def arrow_values(rows):
    """Tables, batches and columns of Arrow."""
    batch = pa.RecordBatch.from_pydict(
        {
            "f": pa.array(noise("f8", rows)),
            "text": pa.array([None if i % 4 == 0 else f"größe {i}" for i in range(rows)]),
            "kind": pa.array([("a", "b")[i % 2] for i in range(rows)], pa.string()).dictionary_encode(),
            "list": pa.array([[i] * (i % 3) for i in range(rows)], pa.list_(pa.int32())),
        }
    ).replace_schema_metadata({"made": "here"})
    table = pa.Table.from_batches([batch.slice(0, rows // 3), batch.slice(rows // 3)])
    return {"batch": batch, "table": table, "column": batch.column(0), "chunked": table.column("text")}


@TWO_PATHS
@pytest.mark.parametrize("rows", [3, 0, 60_000])
@pytest.mark.parametrize("library", [pandas_values, polars_values, arrow_values])
def test_tables(ranks, library, rows):
    """Tables are cut by rows, and come back with their index, columns, dtypes, schema and its metadata."""
    there_and_back(ranks, library(rows))


@TWO_PATHS
def test_sequences(ranks):
    """Lists, tuples, texts, bytes and ranges come back as what they were."""
    there_and_back(
        ranks,
        {
            "few": [1, "two", None, {"three": 3}],
            "pair": ("a", 2.5),
            "text": "äöü – €",
            "steps": range(5, 1000, 5),
            "nothing": [],
            "no_text": "",
            "raw": b"12345",
            "numbers": array.array("d", range(9)),
        },
    )
    there_and_back(
        ranks,
        {
            "list": [{"n": i, "word": f"word {i}"} for i in range(40_000)],
            "tuple": tuple(range(300_000)),
            "text": "größe " * 120_000,
            "steps": range(10**9),
            "raw": bytes(LARGE),
            "changing": bytearray(LARGE),
            "numbers": array.array("d", range(100_000)),
        },
    )
    assert [len(part) for part in ranks.run("tuple.__class__ and text")] == [180_000] * 4


@ONE_PATH
def test_what_has_no_rows(ranks):
    """What cannot be cut, or not along that axis, is refused in two lines before anything is sent."""
    for value, axis, words in (
        (3, 0, "no rows to cut"),
        (np.float64(3), 0, "no rows"),
        (np.ones((2, 2)), 2, "no axis 2"),
    ):
        with pytest.raises(hpcmagic.DataError, match=words) as error:
            ranks.scatter({"uncut": value}, axis=axis)
        assert "`%push uncut`" in two_lines(error).mend
    with pytest.raises(hpcmagic.RankError, match="'uncut' is not defined"):
        ranks.pull("uncut")


def test_more_than_shared_memory_holds(ranks):
    """A value goes through however large it is: memory that is shared is filled again and again."""
    x = noise("u1", 4 * 3 * shared.SHARED_NBYTES + 12_345)
    there_and_back(ranks, {"x": x})
    ranks.push(x=x[: 2 * shared.SHARED_NBYTES])
    same(ranks.pull("x", ranks=2)[2], x[: 2 * shared.SHARED_NBYTES])


@TWO_PATHS
def test_axis_is_remembered(ranks):
    """What was cut along an axis is joined along it, whatever was made of it, until the name gets another value."""
    x = noise("f8", 30, 20_000)
    ranks.scatter(x=x, axis=1)
    assert list(ranks.run("x.shape")) == [(30, 5_000)] * 4
    ranks.run("x = (x * 2).astype('f4')[:, ::2].copy()")
    same(ranks.gather("x"), np.concatenate([(p * 2).astype("f4")[:, ::2] for p in np.split(x, 4, 1)], 1))
    assert ranks.gather("x", axis=0).shape == (120, 2_500)
    ranks.push(x=x)
    assert ranks.gather("x").shape == (120, 20_000)
    ranks.scatter({"x": x[:, :8]}, axis=-1)
    same(ranks.gather("x"), x[:, :8])


@TWO_PATHS
def test_gather_of_what_was_never_scattered(ranks):
    """What each rank has made under one name is joined in order, of whatever length."""
    ranks.run("import numpy\nmade = numpy.full(rank * 50_000, rank)\nword = 'abcd'[rank]\nlisted = [rank] * rank")
    for joined in (ranks.gather("made"), *ranks.gather("made", "made")):
        same(joined, np.repeat(range(4), np.arange(4) * 50_000))
    assert ranks.gather("word", "listed") == ("abcd", [1, 2, 2, 3, 3, 3])


@pytest.mark.parametrize("nbytes", [800, EAGER // 2, LARGE], ids=["few", "eager", "large"])
@pytest.mark.parametrize("to", [None, [2], "0,3"], ids=["all", "one", "two"])
def test_push_and_pull(ranks, nbytes, to):
    """Values go to all ranks or to some, each has its own, and they come back one a rank, to be written to."""
    ranks.run("x = y = 'old'")
    x = noise("f8", nbytes // 8)
    ranks.push({"x": x, "y": {"deep": [x, "text"]}}, ranks=to)
    ranks.run("x += rank\ny['deep'][0] -= rank", ranks=to)
    got_x, got_y = ranks.pull("x", "y")
    chosen = ranks.chosen(to)
    for rank in range(4):
        if rank in chosen:
            same(got_x[rank], x + rank)
            same(got_y[rank]["deep"][0], x - rank)
            assert got_x[rank].flags.writeable
        else:
            assert (got_x[rank], got_y[rank]) == ("old", "old")
    got_x[chosen[0]][:] = 0
    same(ranks.pull("x", ranks=chosen[0])[chosen[0]], x + chosen[0])


def test_push_of_many_kinds(ranks):
    """A push to all of large values of many kinds brings each rank what the notebook has."""
    values = {"table": frame(30_000), "arrow": arrow_values(30_000)["table"], "text": "ä" * LARGE, "none": None,
              "strided": noise("f8", 300, 400)[:, ::2], "fortran": np.asfortranarray(noise("f8", 300, 400))}  # fmt: skip
    ranks.push(values)
    for name, was in values.items():
        for got in ranks.pull(name, ranks="1,3"):
            if was is None:
                assert got is None
            else:
                same(got, was)


@ONE_PATH
def test_names_that_are_options(ranks):
    """Names that the methods have for options of their own can be moved as well."""
    ranks.push({"ranks": [1], "axis": 2, "self": 3})
    assert [ranks.pull(name).same() for name in ("ranks", "axis", "self")] == [[1], 2, 3]
    there_and_back(ranks, {"axis": np.arange(9)})
    ranks.run("del axis, ranks")


@ONE_PATH
def test_functions_travel(ranks):
    """A function of the notebook's own travels by value, with the array that it closes over."""
    weights = noise("f8", LARGE // 8)
    ranks.push(f=lambda n: float(weights.sum()) + n)
    assert list(ranks.run("f(rank)")) == [weights.sum() + r for r in range(4)]


# ---- how it goes


@ONE_PATH
def test_much_to_the_notebook(ranks, monkeypatch, capsys):
    """Before more than a gigabyte comes to the notebook, it is said how much, by name; of less, and there, nothing."""
    assert data.MUCH_NBYTES == 1_000_000_000
    x = noise("u1", LARGE)
    ranks.scatter(x=x)
    ranks.push(y=x)
    monkeypatch.setattr(data, "MUCH_NBYTES", 2 * LARGE)
    ranks.gather("x")
    assert capsys.readouterr().out == ""
    ranks.gather("x", "y")
    assert capsys.readouterr().out == "gather: 3.0 MB come to this notebook (x 600 kB, y 2.4 MB)\n"
    ranks.pull("y")
    assert capsys.readouterr().out == "pull: 2.4 MB come to this notebook (y 2.4 MB)\n"


@TWO_PATHS
def test_progress(ranks, lines, slowly, monkeypatch):
    """From one second on a line says how far it is, how fast and how long still; before, there is none."""
    assert progress.SHOWN_AFTER_S == 1.0
    x = noise("u1", 4 * 20 * FRAME_NBYTES)
    ranks.scatter(x=x)
    assert lines == []
    monkeypatch.setattr(progress, "SHOWN_AFTER_S", 0.1)
    monkeypatch.setattr(progress, "SHOWN_EACH_S", 0.05)
    slowly(0.006)
    ranks.scatter(x=x)
    ranks.gather("x")
    for verb in ("scatter x", "gather x"):
        shown = [line for line in lines if line.startswith(f"{verb}: ") and "waits" not in line]
        assert shown, lines
        assert re.search(r": \S+ *\d+ %  [\d.]+ MB of 21 MB, [\d.]+ MB/s, \d+ s left$", shown[-1])
        parts = [int(re.search(r"(\d+) %", line)[1]) for line in shown]
        assert parts == sorted(parts)


MOVES = {
    "scatter": lambda s, x: s.scatter(x=x),
    "push": lambda s, x: s.push(x=x),
    "push to one": lambda s, x: s.push({"x": x}, ranks=[1]),
    "push of little": lambda s, x: s.push(x=x[: EAGER // 2]),
    "gather": lambda s, x: s.gather("kept"),
    "pull": lambda s, x: s.pull("kept"),
}


AFTERWARDS = {"scatter": LARGE // 4, "push": LARGE, "push to one": LARGE, "push of little": EAGER // 2}  # on rank 1


def on(*pairs):
    """Of paths and verbs only these pairs: others take the same way through the code."""
    return pytest.mark.parametrize(("path", "verb"), pairs, indirect=["path"], ids=map(" ".join, pairs))


SHARED, WIRE, CHAIN = PATHS


@on(
    (SHARED, "scatter"),
    (SHARED, "push to one"),
    (SHARED, "push of little"),
    (SHARED, "gather"),
    (SHARED, "pull"),
    (WIRE, "push"),
    (CHAIN, "push"),
)
def test_waits_for_a_cell(fresh, lines, monkeypatch, verb):
    """What is asked for while a rank works on a cell waits for it, says so, and then comes about."""
    monkeypatch.setattr(progress, "SHOWN_AFTER_S", 0.1)
    monkeypatch.setattr(progress, "SHOWN_EACH_S", 0.1)
    monkeypatch.setattr(sessions, "LOOK_S", 0.2)
    x = noise("u1", LARGE)
    fresh.scatter(kept=x)
    cell = fresh.run("import time\ntime.sleep(0.5)\nx = 'of the cell'", ranks=[1], block=False)
    begun = time.monotonic()
    MOVES[verb](fresh, x)
    assert cell.done()
    assert 0.4 < time.monotonic() - begun < 10
    waits = [line for line in lines if re.match(r"(.*: )?wait(s|ing) for rank 1\b", line)]
    assert waits, lines
    if verb in AFTERWARDS:
        assert verb == "push of little" or any(f", busy with {cell.name}, " in line for line in waits)
        assert fresh.run("len(x)", ranks=[1])[1] == AFTERWARDS[verb]


@contextlib.contextmanager
def interrupted(after_s=0.4):
    """Press Ctrl-C in a while, if what is done in here is not over by then; it must be so soon after."""
    timer = threading.Timer(after_s, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    begun = time.monotonic()
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    assert time.monotonic() - begun < after_s + 4


MAPPED = "import gc, mmap\nsum(len(one) for one in gc.get_objects() if type(one) is mmap.mmap and not one.closed)"


@contextlib.contextmanager
def busy(session, rank):
    """A rank works on a cell, which is taken back at the end."""
    cell = session.run("import time; time.sleep(60)", ranks=[rank], block=False)
    try:
        yield
    finally:
        cell.cancel()
        assert cell.wait(10)


@TWO_PATHS
def test_interrupt_of_little(fresh):
    """Ctrl-C while a rank is busy takes back what that rank has not got; those that have it keep it."""
    fresh.run("x = 'old'")
    words = r"Stopped(: push x\. Ranks that have got it keep it| waiting for rank 1; )"
    with busy(fresh, 1), interrupted(), pytest.raises(hpcmagic.CellError, match=words) as error:
        fresh.push(x=bytes(EAGER // 2))
    two_lines(error)
    assert list(fresh.run("x if rank == 1 else len(x)", timeout=5)) == [EAGER // 2, "old", EAGER // 2, EAGER // 2]
    fresh.push(x=bytes(EAGER // 2))
    assert fresh.run("len(x)", timeout=5).same() == EAGER // 2


def resident(pids):
    """What processes hold in memory, in bytes."""
    return [psutil.Process(pid).memory_info().rss for pid in pids]


@on((SHARED, "scatter"), (SHARED, "push"), (WIRE, "scatter"), (WIRE, "push"), (WIRE, "push to one"), (CHAIN, "push"))
@pytest.mark.parametrize("moment", ["a rank is busy", "bytes move"])
def test_interrupt_sending(fresh, slowly, verb, moment):
    """Ctrl-C ends what is being sent on both ends: no name is bound, no memory kept, and the next one works."""
    x = np.ones(32 << 20, "u1")
    fresh.run("x = 'old'")
    before = list(fresh.run(MAPPED))
    words = rf"Stopped(: {verb.split()[0]} x\. Nothing was bound| before anything had moved)"
    with contextlib.ExitStack() as meanwhile:
        if moment == "bytes move":
            slowly(0.01)
        else:
            meanwhile.enter_context(busy(fresh, 1))
        with interrupted(), pytest.raises(hpcmagic.CellError, match=words) as error:
            MOVES[verb](fresh, x)
        two_lines(error)
        assert list(fresh.run("x", ranks=[0, 2, 3], timeout=5)) == ["old"] * 3
    assert fresh.run("x", timeout=5).same() == "old"
    assert max(now - was for now, was in zip(fresh.run(MAPPED), before, strict=True)) < x.nbytes // 8
    slowly(0)
    MOVES[verb](fresh, x := noise("u1", LARGE))
    parts = dict(enumerate(np.split(x, 4) if verb == "scatter" else [x] * 4))
    for rank in [1] if verb == "push to one" else range(4):
        same(fresh.pull("x", ranks=rank)[rank], parts[rank])


@on((SHARED, "gather"), (SHARED, "pull"), (WIRE, "gather"))
@pytest.mark.parametrize("moment", ["a rank is busy", "bytes move"])
def test_interrupt_receiving(fresh, slowly, verb, moment):
    """Ctrl-C ends what is being received: nothing of it is kept here, or there, and the next one works."""
    x = np.ones(32 << 20, "u1")
    fresh.scatter(kept=x)
    (before,) = resident([os.getpid()])
    with contextlib.ExitStack() as meanwhile:
        if moment == "bytes move":
            slowly(0.01)
        else:
            meanwhile.enter_context(busy(fresh, 1))
        with interrupted(), pytest.raises(hpcmagic.CellError, match="Stopped") as error:
            MOVES[verb](fresh, x)
        two_lines(error)
    assert resident([os.getpid()])[0] - before < 8 << 20, "whoever keeps the error keeps what had come so far"
    slowly(0)
    same(fresh.gather("kept"), x)
    assert freed(fresh, "kept") > 6 << 20


def freed(session, name):
    """How much the rank frees that frees least when a name is gone; it may come in time."""
    pids = list(session.run("import os; os.getpid()"))
    held = resident(pids)
    session.run(f"del {name}")
    deadline = time.monotonic() + 3
    while True:
        least = min(was - now for was, now in zip(held, resident(pids), strict=True))
        if least > 6 << 20 or time.monotonic() > deadline:
            return least
        time.sleep(0.05)


@TWO_PATHS
def test_ranks_let_go(ranks, tmp_path):
    """What was written to a file, and what could not be joined, is not held on to by the ranks.

    A rank's part is larger than what the C library ever keeps for the next one (32 MB: mallopt(3), M_MMAP_THRESHOLD).
    """
    x = np.ones(136 << 20, "u1")
    ranks.scatter(x=x)
    ranks.gather("x", to=str(tmp_path / "x.npy"))
    assert freed(ranks, "x") > 6 << 20
    ranks.run("import numpy\nx = numpy.ones((4500, 1000 + rank))")
    with pytest.raises(hpcmagic.DataError, match="cannot be joined"):
        ranks.gather("x")
    assert freed(ranks, "x") > 6 << 20
    (tmp_path / "x.npy").unlink()


@TWO_PATHS
def test_from_two_threads(ranks):
    """Two threads of a notebook move data without meeting: one after the other."""
    x, y = noise("f8", LARGE // 8), noise("f8", LARGE // 4)
    ranks.scatter(x=x, y=y)
    others = [in_thread(lambda name=name: [ranks.gather(name) for _ in range(8)]) for name in "xy"]
    for other, was in zip(others, (x, y), strict=True):
        for got in other():
            same(got, was)


@TWO_PATHS
def test_two_kernels(fresh, session_dir, kernel):
    """Two notebooks at one session move data at the same time, each over channels of its own."""
    other = kernel(f"""
        import numpy
        s = hpcmagic.attach({fresh.name!r}, session_dir={str(session_dir / "d")!r})
        x = numpy.arange(300_000.0)
        print("there", s.gather("common").sum())
        for _ in range(10):
            s.scatter(theirs=x)
            s.push(pushed=x)
            assert (s.gather("theirs") == x).all()
            assert all((one == x).all() for one in s.pull("pushed"))
        print("moved", s.data.channels.moved_nbytes)
    """)
    x = noise("f8", 250_000)
    fresh.scatter(common=x)
    other.wait_for("picked up")
    for _ in range(10):
        fresh.scatter(ours=x)
        fresh.push(mine=x)
        same(fresh.gather("ours"), x)
    other.wait_for("moved")
    assert other.end()
    assert f"there {x.sum()}" in other.said
    assert (fresh.gather("theirs") == np.arange(300_000.0)).all()


def cross(session, monkeypatch, order):
    """Let a notebook ask its ranks in some order, and the first time all but one of them a while later."""
    client, first, send_to = session.control.client, [], session.send_to
    send = client._send

    def slow_once(stream, kind, *args, **kwargs):
        sent = send(stream, kind, *args, **kwargs)
        if kind == REQUEST and not first:
            first.append(kind)
            time.sleep(0.4)
        return sent

    monkeypatch.setattr(client, "_send", slow_once)
    monkeypatch.setattr(session, "send_to", lambda messages: send_to(dict(list(messages.items())[::order])))


@on((SHARED, "scatter"), (WIRE, "scatter"), (WIRE, "push"), (CHAIN, "push"))
def test_two_that_cross(fresh, session_dir, monkeypatch, verb):
    """Two notebooks that reach the ranks in opposite orders do not wait for each other for ever: both come about."""
    other = hpcmagic.attach(fresh.name, session_dir=str(session_dir / "d"))
    try:
        cross(fresh, monkeypatch, 1)
        cross(other, monkeypatch, -1)
        x, y = noise("u1", LARGE), noise("u1", 2 * LARGE)
        sending = in_thread(lambda: MOVES[verb](other, y))
        fresh.scatter(ours=x)
        assert sending(20) is None
        same(fresh.gather("ours"), x)
        same(fresh.gather("x"), y if verb == "scatter" else np.tile(y, 4))
    finally:
        other.data.channels.close()
        other.control.close()


@TWO_PATHS
def test_bytes_are_counted(ranks):
    """A session knows how many bytes this notebook has moved, and closing its channels forgets none."""
    before = ranks.data.channels.moved_nbytes
    ranks.scatter(x=noise("u1", LARGE))
    once = ranks.data.channels.moved_nbytes - before
    assert LARGE < once < 1.02 * LARGE
    ranks.gather("x")
    assert 2 * LARGE < ranks.data.channels.moved_nbytes - before < 2.04 * LARGE


def test_push_to_all_leaves_once(ranks):
    """What all ranks get leaves the notebook once, unless they share memory with it."""
    x = noise("u1", 4 << 20)
    before = ranks.data.channels.moved_nbytes
    ranks.push(x=x)
    copies = 4 if ranks.data.channels.all_here() else 1
    assert copies * x.nbytes < ranks.data.channels.moved_nbytes - before < 1.02 * copies * x.nbytes
    assert ranks.run("int(x.sum())").same() == x.sum()


@TWO_PATHS
def test_keys_that_have_served(fresh):
    """Before a key has sealed all that it may, the connection is replaced by one with fresh keys."""
    x = noise("u1", LARGE)
    names = []
    for _ in range(3):
        fresh.scatter(x=x)
        names.append({channel.name for channel in opened(fresh)})
    for channel in opened(fresh):
        channel.sealer._blocks = crypto.KEY_LIMIT_BLOCKS - 1000
    fresh.scatter(x=x)
    same(fresh.gather("x"), x)
    assert names[0] == names[1] == names[2]
    assert not names[0] & {channel.name for channel in opened(fresh)}


@TWO_PATHS
def test_after_a_restart(fresh):
    """New ranks get channels of their own; what the old ones had been given is gone."""
    x = noise("f8", LARGE // 8)
    fresh.scatter(x=x)
    old = {channel.name for channel in opened(fresh)}
    fresh.restart()
    with pytest.raises(hpcmagic.RankError, match="'x' is not defined"):
        fresh.gather("x")
    fresh.scatter(x=x)
    fresh.push(y=x)
    same(fresh.gather("x"), x)
    same(fresh.pull("y")[3], x)
    assert not old & {channel.name for channel in opened(fresh)}


# ---- map


@ONE_PATH
def test_map(ranks):
    """Results come in the order of the items, on all ranks, though some take longer; from any iterable."""
    factor = 3

    def slow_first(n):
        import time

        time.sleep(0.05 if n < 2 else 0)
        return factor * n, rank  # noqa: F821  # a builtin of the ranks

    results = ranks.map(slow_first, iter(range(100)))
    assert [value for value, _ in results] == [3 * n for n in range(100)]
    assert {rank for _, rank in results} == {0, 1, 2, 3}
    assert ranks.map(slow_first, []) == []
    assert [value for value, _ in ranks.map(slow_first, range(3))] == [0, 3, 6]
    assert ranks.map(str.upper, "abc") == ["A", "B", "C"]
    assert [a.sum() for a in ranks.map(np.ones, [100_000] * 6)] == [100_000.0] * 6


@ONE_PATH
def test_maps_at_once(ranks):
    """Of more maps at the same time than ranks keep functions for none takes another's, and none is refused."""
    others = [in_thread(lambda n=n: ranks.map(lambda x: n * x, range(96))) for n in range(FUNCTIONS_KEPT + 3)]
    for n, other in enumerate(others):
        assert other() == [n * x for x in range(96)]


@ONE_PATH
def test_map_raises(ranks):
    """What the function raises names the item, and the parts that had not begun are never begun."""
    ranks.run("import builtins; builtins.done = []")

    def fails(n):
        import builtins

        builtins.done.append(n)
        if n == 40:
            raise ValueError("forty")

    with pytest.raises(hpcmagic.RankError, match="forty") as error:
        ranks.map(fails, range(400))
    assert "item 40" in error.value.full
    assert len(error.value.ranks) == 1
    assert sum(map(len, ranks.run("import builtins; builtins.done"))) < 400
    with pytest.raises(hpcmagic.DataError, match=r"`items\[0\]` is a _thread.lock") as error:
        ranks.map(len, [threading.Lock()])
    two_lines(error)
    assert ranks.map(abs, [-1]) == [1]


@ONE_PATH
def test_map_shows_what_it_does(ranks, lines, capsys, monkeypatch):
    """What the function prints is shown with its rank, and a bar says how many items are done."""
    monkeypatch.setattr(progress, "SHOWN_AFTER_S", 0.1)
    monkeypatch.setattr(progress, "SHOWN_EACH_S", 0.0)

    def prints(n):
        import time

        time.sleep(0.05)
        print("item", n)

    ranks.map(prints, range(16))
    assert sorted(re.findall(r"^\[[\d,-]+\] item (\d+)$", capsys.readouterr().out, re.MULTILINE), key=int) == [
        str(n) for n in range(16)
    ]
    assert any(re.match(r"map: █* *\d+ %  \d+ of 16, ", line) for line in lines)


@ONE_PATH
def test_map_interrupted(ranks):
    """Ctrl-C ends a map soon, on the ranks as well."""
    with interrupted(), pytest.raises(hpcmagic.CellError, match=r"Stopped after \d+ of 40 items"):
        ranks.map(time.sleep, [5] * 40)
    assert list(ranks.run("rank", timeout=4)) == [0, 1, 2, 3]


# ---- files


FILES = {
    "npy": "x.npy",
    "hdf5": "x.h5:/group/x",
    "zarr": "x.zarr",
    "zarr inside": "x.zarr:/group/x",
}


@ONE_PATH
@pytest.mark.parametrize("name", FILES.values(), ids=FILES)
def test_array_files(ranks, tmp_path, name):
    """The ranks write an array into a file and read it from there, each its rows; nothing passes the notebook."""
    file = f"{tmp_path}/{name}"
    x = np.asfortranarray(noise("<f8", 40, 3_000)) if name.endswith("npy") else noise("<f8", 40, 3_000)
    ranks.scatter(x=x, axis=1)
    before = ranks.data.channels.moved_nbytes
    assert ranks.gather("x", to=file) is None
    ranks.scatter({"a": hpcmagic.File(file), "b": hpcmagic.File(file)})
    ranks.scatter(c=hpcmagic.File(file), axis=1)
    ranks.run("b += 1; assert b.flags.writeable")
    ranks.gather("c", to=file)
    ranks.scatter(d=hpcmagic.File(file))
    assert ranks.data.channels.moved_nbytes == before
    assert list(ranks.run("(a.shape, c.shape)")) == [((10, 3_000), (40, 750))] * 4
    for got in ranks.gather("a", "c", "d"):
        same(np.ascontiguousarray(got), np.ascontiguousarray(x))
    same(np.ascontiguousarray(ranks.gather("b")), np.ascontiguousarray(x + 1))
    assert [path.name for path in tmp_path.iterdir()] == [name.partition(":")[0]]
    if name.endswith("npy"):
        same(np.load(file), x)


@ONE_PATH
@pytest.mark.parametrize("library", ["pandas", "polars", "arrow"])
def test_table_files(ranks, tmp_path, library):
    """The ranks write tables into Parquet, and read their rows of it, as Arrow tables."""
    table = pa.Table.from_pydict({"f": noise("f8", 10_001), "text": [f"w{i}" for i in range(10_001)]})
    value = {"pandas": table.to_pandas, "polars": lambda: pl.from_arrow(table), "arrow": lambda: table}[library]()
    file = tmp_path / "t.parquet"
    ranks.scatter(t=value)
    ranks.gather("t", to=hpcmagic.File(str(file)))
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]
    ranks.scatter(back=hpcmagic.File(str(file)))
    assert list(ranks.run("len(back)")) == [2501, 2500, 2500, 2500]
    assert ranks.gather("back").to_pydict() == table.to_pydict()


@ONE_PATH
def test_relative_file(ranks, tmp_path, monkeypatch):
    """A relative name is meant from where the notebook is, wherever the ranks are."""
    monkeypatch.chdir(tmp_path)
    ranks.scatter(x=np.arange(10))
    ranks.gather("x", to="here.npy")
    same(np.load(tmp_path / "here.npy"), np.arange(10))
    ranks.scatter(y=hpcmagic.File("here.npy"))
    same(ranks.gather("y"), np.arange(10))


@ONE_PATH
def test_one_name_a_file(ranks, tmp_path, monkeypatch):
    """Several names do not go into one file, and no rank is asked for a file of an unknown kind: two lines say so."""
    ranks.push(a=[1], b=[2])
    with pytest.raises(hpcmagic.DataError, match="can hold one variable, not 2") as error:
        ranks.gather("a", "b", to=str(tmp_path / "x.npy"))
    two_lines(error)
    monkeypatch.setattr(ranks, "send_to", None)
    unknown = hpcmagic.File(str(tmp_path / "x.xyz"))
    known = hpcmagic.File(str(tmp_path / "x.npy"))
    for move in (lambda: ranks.gather("a", to=unknown), lambda: ranks.scatter(b=[1], a=known, c=unknown)):
        with pytest.raises(
            hpcmagic.DataError, match=r"`.*/x\.xyz` is no file whose rows ranks read or write"
        ) as error:
            move()
        assert ".npy, .zarr, .parquet" in two_lines(error).mend
    assert list(tmp_path.iterdir()) == []


# ---- in a notebook


def test_magics(home):
    """The magics move what they name, and say what became of it."""
    path = home / "x.npy"
    shown = shown_by(
        home,
        "%load_ext hpcmagic",
        "import numpy as np; x = np.arange(24.0).reshape(4, 6); y = np.ones((8, 100_000)); a, b = 1, 'two'",
        "%hpc start --nodes 4",
        "%scatter x y",
        "%remote x.shape, y.shape",
        "%gather x",
        "%gather y --as z",
        "(x == np.arange(24.0).reshape(4, 6)).all(), (z == y).all(), z is not y",
        "%scatter x --axis 1",
        "%remote x.shape if rank == 3 else None",
        f"%gather x --to {path}",
        f"%scatter f --from {path} --axis 1",
        "%gather f\n(f == x).all()",
        "%%remote --push a,b --scatter y --gather w\nw = y * a + len(b)\nw.shape",
        "(w == y + 3).all()",
        "%push a b --ranks 2",
        "p = %pull y --ranks 1\ny[1].shape, p is y",
        "%hpc",
    )
    assert "x, y cut over 4 ranks" in shown[3]
    assert "((1, 6), (2, 100000))" in shown[4]
    assert shown[5].strip() == "x (was ndarray (4, 6)): replaced here by what came from the ranks"
    assert shown[6].strip() == ""
    assert shown[7].count("True") == 3
    assert "(4, 1)" in shown[9]
    assert f"x → {path}" in shown[10]
    assert "True" in shown[12]
    assert "[0-3] (2, 100000)" in shown[13]
    assert "replaced" not in shown[13]
    assert "True" in shown[14]
    assert "a, b → rank 2" in shown[15]
    assert "y (was ndarray (8, 100000)): replaced here by what came from the ranks" in shown[16]
    assert "((2, 100000), True)" in shown[16]
    head, row = shown[17].splitlines()[:2]
    assert re.search(r"\bmoved\b", head)
    assert re.search(r"\b\d+ MB\b", row)


SAID = {
    "%scatter": ("%scatter needs the name of a variable", "→ Write e.g. `%scatter x`"),
    "%gather": ("%gather needs the name of a variable", "→ Write e.g. `%gather x`"),
    "%scatter nowhere": ("`nowhere` is not defined here", "→ Bind it in this notebook first"),
    "%gather nowhere": ("NameError on all 2 ranks: name 'nowhere' is not defined",),
    "%scatter x --axes 1": ("%scatter has no option '--axes'", "→ Did you mean `--axis`?"),
    "%gather x --form f.npy": ("%gather has no option '--form'",),
    "%scatter x --axis one": ("%scatter: argument --axis", "→ `%scatter -h` shows the options"),
    "%gather x --as 1st": ("--as '1st' is not a name for a variable",),
    "%gather x y --as z": ("`--as` names one variable, and several are gathered",),
    "%gather x y --to z.npy": ("can hold one variable, not 2",),
    "%scatter x[0]": ("`x[0]` is not defined here",),
    "%scatter x --axis 3": ("`x` has no axis 3 to cut along",),
    "%scatter x --from nowhere.npy": ("nowhere.npy` is not there",),
    "%scatter x --from file.xyz": (
        "file.xyz` is no file whose rows ranks read or write",
        "→ Name one that ends in .npy",
    ),
    "%gather x --to file.xyz": (
        "file.xyz` is no file whose rows ranks read or write",
        "→ Name one that ends in .npy",
    ),
    "%%remote --scatter nowhere\nran = True": ("`nowhere` is not defined here",),
    "%%remote -a --gather x\nran = True": ("`-a` and `--gather` do not go together",),
    "%scatter -h": ("--axis K", "--from FILE[:/path]"),
    "%gather -h": ("--axis K", "--as NAME", "--to FILE[:/path]"),
}


CATCHING = """
def said(magic):
    line, _, cell = magic.lstrip("%").partition(chr(10))
    name, _, rest = line.partition(" ")
    run = get_ipython()
    try:
        run.run_cell_magic(name, rest, cell) if cell else run.run_line_magic(name, rest)
    except Exception as error:
        print(error)
"""


def test_what_the_magics_refuse(home):
    """What cannot be is said in two lines with the mend, and nothing is bound or run; `-h` shows the options."""
    shown = shown_by(
        home, "%load_ext hpcmagic", CATCHING, "x = y = [1, 2, 3]", "%hpc start --nodes 2",
        *(f"said({magic!r})" for magic in SAID), "%remote [name for name in ('ran', 'x', 'nowhere') if name in dir()]",
    )  # fmt: skip
    for (magic, words), said in zip(SAID.items(), shown[4:-1], strict=True):
        for word in words:
            assert word in said, magic
        if "-h" not in magic and "NameError" not in words[0]:
            assert len(said.strip().splitlines()) == 2, magic
    assert "[0-1] []" in shown[-1]
