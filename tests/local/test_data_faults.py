"""Data on their way when something breaks: what is said, that no name is bound to half of anything, what works on.

docs/faults.md lists them. Four ranks serve all tests here that leave them alive.
"""

import os
import re
import signal
import threading
import time

import numpy as np
import pytest
from faults import SOON_S, eventually, in_thread, soon
from two_lines import two_lines

import hpcmagic
from hpcmagic.notebook import data
from hpcmagic.wire import parcels, shared

NBYTES = 12 << 20
SLOW = """
    import numpy
    from hpcmagic.notebook import data
    from hpcmagic.wire import bulk, parcels, shared

    def slowly(function):
        def slowed(*args):
            for number, block in enumerate(function(*args)):
                if number == 2:
                    print("moving", flush=True)
                time.sleep(0.02)
                yield block
        return slowed

    data.blocks, data.landing = slowly(parcels.blocks), slowly(parcels.landing)
    shared.ALLOWED = {share}
    s = hpcmagic.attach("module", session_dir={folder!r})
    x = numpy.ones({nbytes}, "u1")
    s.{move}
"""


@pytest.fixture(params=["shared memory", "wire"])
def ranks(request, session, monkeypatch):
    """The four ranks, on each path; the channels are closed at the end."""
    monkeypatch.setattr(shared, "ALLOWED", request.param == "shared memory")
    session.run("x = 'old'")
    yield session
    session.data.channels.close()


def unharmed(session):
    """Nothing was bound on any rank, and the next transfers work."""
    assert session.run("x", timeout=SOON_S).same() == "old"
    x = np.arange(400_000.0)
    with soon(10):
        session.scatter(y=x)
        assert (session.gather("y") == x).all()
        session.push(y=x)
        assert all((one == x).all() for one in session.pull("y"))


@pytest.fixture
def moving(monkeypatch):
    """Let this notebook take its time with each frame; tell when some are on their way."""
    begun = threading.Event()

    def slowly(function):
        def slowed(*args):
            for number, block in enumerate(function(*args)):
                if number == 2:
                    begun.set()
                time.sleep(0.005)
                yield block

        return slowed

    monkeypatch.setattr(data, "blocks", slowly(parcels.blocks))
    monkeypatch.setattr(data, "landing", slowly(parcels.landing))
    return begun


# ---- processes


SENDING = {
    "scatter": lambda s, x: s.scatter(x=x),
    "push": lambda s, x: s.push(x=x),
}


@pytest.mark.parametrize("verb", SENDING)
def test_rank_killed_in_mid_transfer(own_session, monkeypatch, moving, verb):
    """A rank killed while it receives is named, what the notebook has is whole, and new ranks in the same job take it."""
    monkeypatch.setattr(shared, "ALLOWED", verb == "scatter")
    session = own_session(nodes=3)
    pid = session.run("import os; os.getpid()")[1]
    x = np.random.default_rng(5).integers(0, 255, NBYTES, "u1")
    kept = x.copy()
    sending = in_thread(lambda: SENDING[verb](session, x))
    assert moving.wait(SOON_S)
    os.kill(pid, signal.SIGKILL)
    with soon():
        error = sending()
    assert isinstance(error, hpcmagic.SessionEnded), error
    assert "rank 1 exited on signal 9 (Killed)" in error.message
    assert len(str(error).splitlines()) == 2
    assert session.status().state == "fallen"
    assert (x == kept).all()
    with pytest.raises(hpcmagic.SessionEnded) as refused:
        SENDING[verb](session, x)
    assert str(refused.value) == str(error)
    monkeypatch.undo()
    keeper = session.keeper_state().keeper_pid
    session.restart()
    assert session.keeper_state().keeper_pid == keeper
    session.scatter(x=x)
    assert session.run("len(x)").same() == NBYTES // 3
    assert (session.gather("x") == kept).all()
    session.push(x=x)
    assert all((one == kept).all() for one in session.pull("x"))


KILLED = {
    "scatter": "scatter(x=x)",
    "push": "push(x=x)",
    "push to two": "push({'x': x}, ranks=[1, 2])",
    "gather": "gather('big')",
    "pull": "pull('big')",
}


PATHS_OF_KILLED = [("shared memory", "scatter"), ("shared memory", "gather"), *(("wire", verb) for verb in KILLED)]


@pytest.mark.parametrize(("ranks", "verb"), PATHS_OF_KILLED, indirect=["ranks"], ids=map(" ".join, PATHS_OF_KILLED))
def test_kernel_killed_in_mid_transfer(ranks, kernel, session_dir, verb):
    """A notebook killed in mid-transfer leaves no name half bound; another one works on at once."""
    if verb in ("gather", "pull"):
        ranks.push(big=np.ones(NBYTES, "u1"))
    other = kernel(SLOW.format(share=shared.ALLOWED, folder=str(session_dir / "d"), nbytes=NBYTES, move=KILLED[verb]))
    other.wait_for("picked up" if verb == "pull" else "moving")
    other.kill()
    ranks.data.channels.close()  # whoever opens some clears away what it has left
    unharmed(ranks)


def test_kernel_killed_while_ranks_wait(session, kernel, session_dir, monkeypatch):
    """A notebook killed while some ranks wait for one that is busy keeps none of them."""
    monkeypatch.setattr(shared, "ALLOWED", False)
    session.run("x = 'old'")
    for busy in (0, 2):
        cell = session.run("import time; time.sleep(60)", ranks=[busy], block=False)
        other = kernel(SLOW.format(share=False, folder=str(session_dir / "d"), nbytes=NBYTES, move="push(x=x)"))
        try:
            other.wait_for("picked up")
            time.sleep(0.3)
            other.kill()
            others = [rank for rank in range(4) if rank != busy]
            assert session.run("x", ranks=others, timeout=5).same() == "old"
        finally:
            cell.cancel()
            assert cell.wait(10)
    unharmed(session)
    session.data.channels.close()


# ---- connections


def test_connection_cut_while_idle(ranks):
    """A connection that was cut between two transfers is made anew without a word."""
    unharmed(ranks)
    for _, channel in ranks.data.channels._open.values():
        channel.sock.shutdown(2)
    unharmed(ranks)


@pytest.mark.parametrize(
    ("ranks", "verb"),
    [("shared memory", "scatter"), ("shared memory", "gather"), ("wire", "push")],
    indirect=["ranks"],
    ids=["shared memory scatter", "shared memory gather", "wire push"],
)
def test_connection_cut_in_mid_transfer(ranks, moving, monkeypatch, verb):
    """A connection that is cut while something moves is an error that names the rank; nothing is bound."""
    x = np.ones(NBYTES, "u1")
    ranks.scatter(big=x)
    moving.clear()
    working = in_thread(lambda: ranks.gather("big") if verb == "gather" else SENDING[verb](ranks, x))
    assert moving.wait(SOON_S)
    ranks.data.channels._open[0][1].sock.shutdown(2)
    with soon():
        error = working()
    monkeypatch.undo()
    assert isinstance(error, hpcmagic.PeerLost), error
    assert re.match(r"Rank \d: the bulk channel is cut", error.message)
    assert len(str(error).splitlines()) == 2
    unharmed(ranks)


def test_no_shared_memory(session, monkeypatch):
    """Where there is no room in shared memory, or none at all, the wire serves; no file is left there."""
    session.run("x = 'old'")
    ours = shared.FOLDER.glob(f"{shared.PREFIX}{os.getuid()}-{'?' * 32}")
    before = set(ours)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    unharmed(session)
    assert {channel.shared for _, channel in session.data.channels._open.values()} == {None}
    session.data.channels.close()
    monkeypatch.setattr(shared, "FOLDER", shared.FOLDER / "nowhere")
    unharmed(session)
    monkeypatch.undo()
    session.data.channels.close()
    assert set(shared.FOLDER.glob(f"{shared.PREFIX}{os.getuid()}-{'?' * 32}")) <= before


def test_memory_of_a_killed_notebook(session, kernel, session_dir):
    """Shared memory of a notebook that was killed before it had lost its name is removed by the next one."""
    session.run("x = 'old'")
    session.data.channels.close()
    before = set(shared.FOLDER.glob(f"{shared.PREFIX}*"))
    other = kernel(f"""
        from hpcmagic.wire import shared
        shared.Shared.unlink = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        hpcmagic.attach("module", session_dir={str(session_dir / "d")!r}).scatter(x=bytes({NBYTES}))
    """)
    other.end()
    left = set(shared.FOLDER.glob(f"{shared.PREFIX}*")) - before
    assert len(left) >= 4
    unharmed(session)
    assert not any(path.exists() for path in left)
    session.data.channels.close()


# ---- memory


LIMIT = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_AS)
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), hard))
"""
UNLIMIT = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)"


@pytest.mark.parametrize("verb", SENDING)
@pytest.mark.parametrize("rank", [0, 2])
def test_rank_without_memory(ranks, verb, rank):
    """A rank that has no memory for its part says so; no rank has the name, and all work on."""
    x = np.zeros(240 << 20 if verb == "scatter" else 60 << 20, "u1")
    ranks.run(LIMIT, ranks=[rank])
    try:
        with soon(), pytest.raises(hpcmagic.RankError, match=f"MemoryError on rank {rank}") as error:
            SENDING[verb](ranks, x)
    finally:
        ranks.run(UNLIMIT, ranks=[rank])
    assert error.value.ranks == (rank,)
    unharmed(ranks)


def test_notebook_without_memory(ranks, monkeypatch):
    """A notebook that has no memory for what comes says so; the ranks keep it, and give it when there is some."""
    x = np.arange(400_000.0)
    ranks.scatter(y=x)

    def no_room(*_, **__):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", no_room)
        patch.setattr(data, "Room", no_room)
        for move in (ranks.gather, ranks.pull):
            with pytest.raises(MemoryError):
                move("y")
    assert (ranks.gather("y") == x).all()


# ---- values


def test_rank_without_the_name(ranks):
    """A rank that has no such name is named, and what it has keeps its place."""
    ranks.run("z = 1", ranks="0,1,3")
    for move in (ranks.gather, ranks.pull, lambda name: ranks.gather(name, to="never.npy")):
        with pytest.raises(hpcmagic.RankError, match=r"NameError on rank 2: name 'z' is not defined") as error:
            move("z")
        assert error.value.ranks == (2,)
    ranks.run("del z", ranks="0,1,3")
    unharmed(ranks)


UNLIKE = {
    "dtype": ("numpy.ones(100_000, 'f4' if rank == 2 else 'f8')", "rank 2"),
    "shape": ("numpy.ones((1000, 100 + (rank == 1)))", "rank 1"),
    "dimensions": ("numpy.ones((1000, 100)[:1 + (rank != 3)])", "rank 3"),
    "byte order": ("numpy.ones(9, '>f8' if rank else '<f8')", "rank 0"),
    "kind": ("numpy.ones(100_000) if rank else [1.0] * 100_000", "rank 0"),
    "no rows": ("numpy.float64(1) if rank == 2 else numpy.ones(9)", "rank 2"),
    "columns": ("pandas.DataFrame({'a' if rank else 'b': [1]})", "rank 0"),
    "nothing that joins": ("{rank: 1}", "dict"),
}


@pytest.mark.parametrize("how", UNLIKE)
def test_shards_that_do_not_fit(session, tmp_path, how):
    """Shards that do not fit each other are refused with who differs, before any byte of them moves; no file is made."""
    source, words = UNLIKE[how]
    session.run(f"import numpy, pandas\nunlike = {source}")
    before = session.data.channels.moved_nbytes
    with pytest.raises(hpcmagic.DataError) as error:
        session.gather("unlike")
    assert words in two_lines(error).message
    assert "%pull unlike" in error.value.mend
    with pytest.raises(hpcmagic.HpcMagicError):
        session.gather("unlike", to=str(tmp_path / "x.npy"))
    assert list(tmp_path.iterdir()) == []
    assert session.data.channels.moved_nbytes == before


def test_value_that_cannot_be_pickled(ranks):
    """What cannot be pickled is named with the way to it, wherever it is, and nothing is bound."""
    for move in (
        lambda v: ranks.push(x=v),
        lambda v: ranks.scatter(x=v),
        lambda v: ranks.push(x=v, y=np.ones(NBYTES)),
    ):
        with pytest.raises(hpcmagic.DataError, match=r"`x\[1\]\['k'\]` is a _thread.lock") as error:
            move([1, {"k": threading.Lock()}, 2, 3])
        two_lines(error)
    ranks.run("import threading\nlock = [1, threading.Lock()] if rank == 2 else [1]")
    for move in (ranks.gather, ranks.pull):
        with pytest.raises(
            hpcmagic.RankError, match="TypeError on rank 2: `lock` is a list, length 2, which cannot be"
        ):
            move("lock")
    unharmed(ranks)


@pytest.fixture
def unloadable():
    """A class whose values come to nothing when they are loaded on a rank (which has a builtin of that name)."""

    class Unloadable:
        def __init__(self, there="rank"):
            self.test = "hasattr(builtins, 'rank')" if there == "rank" else "not hasattr(builtins, 'rank')"
            self.ballast = bytes(4_000_000)

        def __reduce__(self):
            import builtins

            return eval, (f"1 / 0 if {self.test} else None", {"builtins": builtins}, {"ballast": self.ballast})

    return Unloadable


def test_value_that_cannot_be_loaded(ranks, unloadable):
    """What cannot be loaded at the other end is said with its name; no rank is bound to anything, and all work on."""
    for value in (unloadable(), [unloadable()] * 4):
        move = ranks.scatter if isinstance(value, list) else ranks.push
        with pytest.raises(
            hpcmagic.RankError, match=r"TypeError on .*: `x` cannot be loaded on the rank: ZeroDivision"
        ):
            move(x=value)
    ranks.push(mine=unloadable)
    ranks.run("import numpy, builtins\nmine = [mine('notebook')] if rank == 1 else [1]")
    for move in (ranks.gather, ranks.pull):
        with pytest.raises(
            hpcmagic.DataError, match="`mine` of rank 1 cannot be loaded here: ZeroDivisionError"
        ) as error:
            move("mine")
        two_lines(error)
    unharmed(ranks)


# ---- files


@pytest.mark.parametrize("name", ["x.npy", "x.h5", "x.zarr", "x.parquet"])
def test_disk_full(session, disk, name):
    """A disk that fills up while ranks write is said to be full; what was there stays as it was, nothing is left."""
    path, table = disk / name, name.endswith("parquet")
    session.run("import numpy, pandas\nsmall = numpy.full(9, rank)\nrng = numpy.random.default_rng(rank)")
    session.run("large = rng.random(400_000)")
    if table:
        session.run("small, large = pandas.DataFrame({'a': small}), pandas.DataFrame({'a': large})")
    session.gather("small", to=str(path))
    before = {p.relative_to(disk): p.read_bytes() for p in disk.rglob("*") if p.is_file()}
    with pytest.raises(hpcmagic.RankError, match=r"No space left on device while writing `") as error:
        session.gather("large", to=str(path))
    assert "Free some there" in str(error.value)
    assert {p.relative_to(disk): p.read_bytes() for p in disk.rglob("*") if p.is_file()} == before
    assert [p.name for p in disk.iterdir()] == [name]
    session.scatter(small=hpcmagic.File(str(path)))
    back = session.gather("small")
    assert list(back["a"].to_pylist() if table else back) == list(np.repeat(range(4), 9))


def refused(session, path, words, **options):
    """The error of a file that cannot be scattered; the name keeps its value on all ranks."""
    session.run("x = 'old'")
    with pytest.raises(hpcmagic.HpcMagicError, match=words) as error:
        session.scatter(x=hpcmagic.File(str(path)), **options)
    assert session.run("x").same() == "old"
    return error.value


def test_files_that_cannot_be_read(session, tmp_path):
    """A file that is missing, shorter than it says, no file of its kind, or lacks the axis, is named, and why."""
    path = tmp_path / "x.npy"
    error = refused(session, path, rf"`{path}` is not there on host \w+")
    assert error.ranks == (0, 1, 2, 3)
    assert "Name a path that all ranks see" in str(error)
    np.save(path, np.arange(100_000.0))
    refused(session, path, "no axis 1 in the shape", axis=1)
    os.truncate(path, 500_000)
    refused(session, path, r"shorter than its header says: 500000 bytes, not 800128")
    path.write_bytes(b"no array at all")
    refused(session, path, rf"`{path}` cannot be read")
    np.save(path, np.array([{}, []], object))
    refused(session, path, "holds pickled objects, which are not read")


CHANGE = """
from hpcmagic.engine import transfers
real = transfers.read_rows
def changed(file, *args):
    transfers.read_rows = real
    if rank == 2:
        {change}
    return real(file, *args)
transfers.read_rows = changed
"""
KEPT = """
import gc
sum(len(one._read) for one in gc.get_objects() if type(one) is transfers.Transfers)
"""
CHANGES = {
    "written over": "numpy.save(file.path, numpy.zeros(100_000))",
    "cut": "import os; os.truncate(file.path, 1000)",
    "removed": "import os; os.unlink(file.path)",
    "touched": "import os; os.utime(file.path, (1, 1))",
}


@pytest.mark.parametrize("how", CHANGES)
def test_file_that_changes(session, tmp_path, how):
    """A file that changes between the ranks' looking and their reading is said to; no rank is bound to anything."""
    path = tmp_path / "x.npy"
    np.save(path, np.arange(100_000.0))
    session.run("import numpy\n" + CHANGE.format(change=CHANGES[how]))
    error = refused(session, path, "has changed while it was read|shorter than its header|is not there on host")
    assert 2 in error.ranks
    assert session.run(KEPT).same() == 0
    np.save(path, np.arange(10.0))
    session.scatter(x=hpcmagic.File(str(path)))
    assert (session.gather("x") == np.arange(10.0)).all()


def test_rank_killed_while_it_writes(own_session, tmp_path):
    """A rank killed while it writes leaves the file that was there before; the next ones to write clear up."""
    session = own_session(nodes=2)
    path = tmp_path / "x.npy"
    np.save(path, np.arange(3))
    session.run("import numpy, os\nx = numpy.ones(9)\nfrom hpcmagic.engine import transfers")
    session.run("transfers.write_rows = lambda *_, **__: os.kill(os.getpid(), 9)", ranks=[1])
    with soon(), pytest.raises(hpcmagic.SessionEnded, match="rank 1"):
        session.gather("x", to=str(path))
    assert (np.load(path) == np.arange(3)).all()
    session.restart()
    session.run("import numpy\nx = numpy.ones(9)")
    session.gather("x", to=str(path))
    assert (np.load(path) == np.ones(18)).all()
    assert [p.name for p in tmp_path.iterdir() if "x.npy" in p.name] == ["x.npy"]


def test_interrupted_while_ranks_write(session, tmp_path):
    """Ctrl-C while ranks write leaves the file that was there before, and nothing beside it."""
    path = tmp_path / "x.npy"
    np.save(path, np.arange(3))
    session.run(
        "import numpy, time\nx = numpy.ones(9)\nfrom hpcmagic.engine import transfers\nreal = transfers.write_rows"
    )
    slow = "def slow(*args, **kwargs):\n    time.sleep(30)\n    real(*args, **kwargs)\ntransfers.write_rows = slow"
    session.run(slow, ranks=[1])
    timer = threading.Timer(0.5, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with soon(5), pytest.raises(hpcmagic.CellError, match="Stopped") as error:
        session.gather("x", to=str(path))
    two_lines(error)
    timer.join()
    session.run("transfers.write_rows = real", timeout=5)
    assert (np.load(path) == np.arange(3)).all()
    eventually(lambda: [p.name for p in tmp_path.iterdir()] == ["x.npy"], 5)
    session.gather("x", to=str(path))
    assert (np.load(path) == np.ones(36)).all()


TAKE_ALL = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
"""


def test_no_descriptors_on_a_rank(own_session, monkeypatch):
    """A rank that can open no more files says so, wherever it lacks one; as soon as it has them the transfer works.

    So it does though no message has come to its control thread before.
    """
    monkeypatch.setattr(shared, "ALLOWED", False)
    session = own_session(nodes=2)
    session.run("x = 'old'")
    session.run(TAKE_ALL, ranks=[1])
    for _ in range(3):  # for the port, for what watches it, for the connection
        with (
            soon(5),
            pytest.raises(hpcmagic.PeerLost, match="Rank 1 opens no bulk port: Too many open files") as error,
        ):
            session.scatter(x=np.ones(NBYTES, "u1"))
        two_lines(error)
        assert session.run("x").same() == "old"
        session.run("os.close(taken.pop())", ranks=[1])
    session.run("for _ in range(3): os.close(taken.pop())", ranks=[1])
    unharmed(session)
    session.data.channels.close()
