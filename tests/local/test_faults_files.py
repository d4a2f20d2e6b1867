"""Disks, descriptors, clocks, other kernels and sheer size: what a session meets beside its ranks and its keeper.

docs/faults.md lists them.
"""

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from faults import SOON_S, all_gone, eventually, everyone, in_thread, keeper_of, raised, soon
from two_lines import two_lines

import hpcmagic
from hpcmagic.notebook.found import find, stop_found
from hpcmagic.profiles import resolve
from hpcmagic.wire.messages import OUTPUT_LIMIT_NBYTES

DAY_S = 86400
GIGABYTE = 10**9


@pytest.fixture
def on_disk(disk):
    """Two ranks, with their session's directory on the small disk."""
    held = hpcmagic.start(nodes=2, launcher="local", session="a", session_dir=str(disk / "s"))
    yield held
    held.stop()


@pytest.fixture
def a(home):
    """Two ranks in session a."""
    held = hpcmagic.start(nodes=2, session="a")
    yield held
    held.stop()


def fill(disk):
    """Leave no byte free."""
    path = disk / "full"
    with path.open("wb", buffering=0) as out, suppress(OSError):
        while out.write(bytes(4096)):
            pass
    return path


# ---- the session's directory


def test_disk_full(on_disk, disk, capsys):
    """A full disk stops no cell: that cells are not written down is said, once; a restart works; room mends it."""
    on_disk.run("kept = rank")
    filler = fill(disk)
    capsys.readouterr()
    eventually(
        lambda: list(on_disk.run("print('works')\nkept")) == [0, 1] and "not written" in capsys.readouterr().out
    )
    assert "No space left on device" in on_disk.keeper_state().warning
    with soon():
        on_disk.restart()
    with soon():
        assert on_disk.run("comm.allreduce(1) if comm else 2").same() == 2
    on_disk.run("print('y' * 2_000_000)", ranks=[0])
    assert "[… and the rest is lost: No space left on device]" in capsys.readouterr().err
    filler.unlink()
    on_disk.run("print('written')")
    eventually(lambda: on_disk.cells[-1].output == "[0-1] written\n")
    eventually(lambda: not on_disk.keeper_state().warning)


def test_disk_full_before(disk):
    """Where there is no room for a session, two lines say so, and nothing is left."""
    (disk / "s").mkdir(mode=0o700)
    fill(disk)
    with pytest.raises(hpcmagic.LaunchError, match="No space left on device") as error:
        hpcmagic.start(nodes=2, launcher="local", session="a", session_dir=str(disk / "s"))
    assert "Free some space" in two_lines(error).mend
    assert list((disk / "s").iterdir()) == []


def test_disk_read_only(on_disk, disk, capsys):
    """A disk that becomes read-only stops no cell, and it is said."""
    path = str(on_disk.directory.path)
    subprocess.run(["mount", "--bind", path, path], check=True, timeout=20)  # of the disk itself files are open
    subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True, timeout=20)
    try:
        eventually(lambda: on_disk.run("rank").ranks == (0, 1) and "Read-only file system" in capsys.readouterr().out)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True, timeout=20)


def test_disk_read_only_before(disk):
    """Where a session's directory cannot be made, two lines say so."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=20)
    with pytest.raises(hpcmagic.LaunchError, match="Read-only file system") as error:
        hpcmagic.start(nodes=1, launcher="local", session="b", session_dir=str(disk / "s"))
    two_lines(error)


@pytest.mark.parametrize("left", ["gone", "another's"])
def test_stale_directory(home, left):
    """A directory whose keeper is gone is said to be that of an ended session, and whoever has its number is spared."""
    session = hpcmagic.start(nodes=2, session="a")
    session.control.close()
    keeper, *ranks = everyone(session)
    keeper.kill()
    assert all_gone([keeper, *ranks])
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        if left == "another's":
            record = json.loads(session.directory.job.read_text())
            session.directory.write(session.directory.job, json.dumps({**record, "job_id": f"{bystander.pid}@1"}))
        with pytest.raises(hpcmagic.SessionEnded, match="its keeper is gone"):
            hpcmagic.start(session="a")
        again = hpcmagic.start(nodes=2, session="a")
        assert again.run("rank").ranks == (0, 1)
        again.stop()
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n", timeout=20)


def test_start_that_never_was_one(home):
    """A directory with a request and no job is that of a start that died: it is said, and can be cleared away."""
    path = home / "state" / "hpcmagic" / "a"
    path.mkdir(mode=0o700, parents=True)
    for folder in (path.parent, path):
        folder.chmod(0o700)
    (path / "request.json").touch(mode=0o600)
    (path / "request.json").write_text("{}")
    with pytest.raises(hpcmagic.LaunchError, match="being started by another kernel") as error:
        hpcmagic.start(nodes=1, session="a")
    assert "`%hpc stop a`" in two_lines(error).mend
    stop_found(find(resolve({}), "a"))
    assert hpcmagic.sessions() == []


@pytest.mark.parametrize("name", ["state.json", "job.json", "request.json", "a cell"])
@pytest.mark.parametrize("garbage", ["", "{", "[1]", "\0\0"], ids=["empty", "half", "other", "zeros"])
def test_garbage(damaged, capsys, name, garbage):
    """A damaged file is named in two lines, hides no other session, and its session can be cleared away."""
    directory = damaged.directory
    path = next(iter(directory.cells.iterdir())) if name == "a cell" else directory.path / name
    whole = path.read_bytes()
    path.write_text(garbage)
    try:
        assert [status.session for status in hpcmagic.sessions()] == ["a", "b"]
        if name == "a cell":
            assert damaged.run("rank").ranks == (0,)
            assert damaged.cells[-1].source == "rank"
        elif name == "state.json":
            with pytest.raises(hpcmagic.LaunchError, match=r"state\.json is damaged") as error:
                damaged.run("rank")
            assert "`%hpc stop b`" in two_lines(error).mend
        else:
            with pytest.raises(hpcmagic.LaunchError, match="another kernel") as error:
                hpcmagic.start(session="b")
            assert "`%hpc stop b`" in two_lines(error).mend
    finally:
        path.write_bytes(whole)
    assert damaged.run("rank").ranks == (0,)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A session whose files the tests damage, beside another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("HPCMAGIC_LAUNCHER", "local")
        one, two = (hpcmagic.start(nodes=1, session=name, mpi="none") for name in "ab")
        two.run("first = 1")
        eventually(lambda: two.keeper_state().clients)
        yield two
        one.stop()
        two.stop()


def test_wrong_modes(a):
    """A directory that others may read is refused, with the line that closes it."""
    path = a.directory.path
    path.chmod(0o755)
    for call in (lambda: hpcmagic.start(session="a"), lambda: hpcmagic.attach("a"), hpcmagic.sessions):
        with pytest.raises(hpcmagic.ProfileError, match="has mode 0755") as error:
            call()
        assert f"`chmod 700 {path}`" in two_lines(error).mend
    path.chmod(0o700)
    assert a.run("rank").ranks == (0, 1)


def test_directory_removed(a):
    """A session whose directory somebody removes in a running cell ends, and says so."""
    all_of_it = everyone(a)
    working = in_thread(lambda: a.run("import time; time.sleep(60)"))
    time.sleep(0.5)
    shutil.rmtree(a.directory.path)
    with soon():
        error = working()
    assert "its directory is gone: somebody has removed it" in error.message
    assert all_gone(all_of_it)


# ---- the kernel's own limits, and its clock


@pytest.mark.parametrize("spare", [0, 3, 15, 40])
def test_no_descriptors(home, kernel, spare):
    """A kernel that may open no more files says so in two lines, and leaves no session behind."""
    other = kernel(f"""
        import resource
        from hpcmagic.notebook import start, session
        from hpcmagic.wire import control
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + {spare}, 4096))
        try:
            start.start(session="a", nodes=1)
            print("started")
        except hpcmagic.HpcMagicError as error:
            print("refused", len(str(error).splitlines()), error)
    """)
    said = other.end()
    assert other.process.returncode == 0, said
    assert "refused 2 " in said
    assert "files" in said
    assert hpcmagic.sessions() == []


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S], ids=["forward", "back"])
def test_clock_jumps(a, monkeypatch, lines, jump_s):
    """A clock that is set by a day ends nothing, and no time is ever negative."""
    real = time.time
    working = in_thread(lambda: a.run("import time; time.sleep(2.5); rank"))
    time.sleep(0.5)
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    assert list(working()) == [0, 1]
    assert all(f"{second} s" in "".join(lines) for second in (1, 2))
    assert a.elapsed_s() >= 0
    assert a.status().elapsed_s >= 0
    assert all(status.elapsed_s >= 0 for status in hpcmagic.sessions())
    handle = a.run("import time; time.sleep(1)", block=False)
    assert "-" not in handle.how_it_goes().replace("2 ranks", "")
    assert handle.wait(SOON_S)
    assert a.status().state == "ready"


# ---- two kernels


def test_stopped_by_another(a, kernel):
    """Who works on a session that another kernel stops is told so at once."""
    other = kernel("""
        s = hpcmagic.attach("a")
        sys.stdin.readline()
        s.stop()
    """)
    other.wait_for("picked up")
    handle = a.run("import time; time.sleep(60)", block=False)
    working = in_thread(lambda: a.run("rank"))
    other.go_on()
    with soon():
        error = working()
    assert isinstance(error, hpcmagic.SessionEnded)
    assert "Session a has ended: it was stopped" in error.message
    assert handle.wait(SOON_S)
    assert handle.state == "lost"


def test_restarted_by_another(a, kernel):
    """Who works on a session that another kernel restarts is told so at once, and can work on."""
    other = kernel("""
        s = hpcmagic.attach("a")
        sys.stdin.readline()
        s.restart()
        print("done")
    """)
    other.wait_for("picked up")
    working = in_thread(lambda: a.run("import time; time.sleep(60)"))
    time.sleep(0.5)
    other.go_on()
    with soon():
        error = working()
    assert isinstance(error, hpcmagic.SessionEnded)
    assert error.message == "The ranks of session a were restarted elsewhere: their variables are gone."
    other.wait_for("done")
    assert list(eventually(lambda: after_restart(a))) == [0, 1]


def after_restart(session):
    with suppress(hpcmagic.PeerLost):
        return session.run("rank")
    return None


# ---- size


def test_many_large_results(a):
    """Three hundred cells with 1 MB a rank: keeper, ranks and kernel stay small, and the journal within its limit."""
    watched = [psutil.Process(), *everyone(a)]
    for _ in range(10):
        a.run("bytes(1_000_000)")
    before = [process.memory_info().rss for process in watched]
    for _ in range(300):
        a.run("bytes(1_000_000)")
    limit = time.monotonic() + SOON_S  # what passed through is given back a few seconds later
    while True:
        grown = [p.memory_info().rss - was for p, was in zip(watched, before, strict=True)]
        if max(grown) < 50e6 or time.monotonic() > limit:
            break
        time.sleep(0.5)
    assert max(grown) < 50e6, [f"{p.pid}: {g / 1e6:.0f} MB" for p, g in zip(watched, grown, strict=True)]
    kept = sum(path.stat().st_size for path in a.directory.cells.iterdir())
    assert kept < 540e6
    assert a.cells[-1].result()[1] == bytes(1_000_000)
    with pytest.raises(hpcmagic.CellError, match="are not kept any more"):
        a.cells[0].result()
    shutil.rmtree(a.directory.cells)


def test_prints_without_end(a, capsys):
    """A rank that prints a gigabyte leaves 1 MB in the cell and the rest in its log; nobody's memory grows."""
    watched = [psutil.Process(), keeper_of(a)]
    before = [process.memory_info().rss for process in watched]
    a.run(f"line = 'x' * 9_999\nfor _ in range({GIGABYTE // 10_000}): print(line)\nprint('the end')", ranks=[1])
    shown = capsys.readouterr()
    assert len(shown.out) <= 1.01 * OUTPUT_LIMIT_NBYTES
    assert "the rest is in `%hpc log RANK`" in shown.err
    assert a.log(1).endswith("the end")
    assert a.directory.rank_log(1).stat().st_size > GIGABYTE - 2 * OUTPUT_LIMIT_NBYTES
    assert max(p.memory_info().rss - was for p, was in zip(watched, before, strict=True)) < 50e6
    a.directory.rank_log(1).unlink()


def test_read_after_stop(a, home):
    """Outputs and results of a session that was stopped are there, here and for whoever attaches."""
    a.run("print('kept', rank)\nrank * 5")
    raised(a, "1 / 0")
    a.stop()
    for held in (a, hpcmagic.attach("a")):
        assert held.cells[0].output == "[0] kept 0\n[1] kept 1\n"
        assert list(held.cells[0].result()) == [0, 5]
        with pytest.raises(hpcmagic.RankError, match="ZeroDivisionError"):
            held.cells[1].result()
        with pytest.raises(hpcmagic.SessionEnded, match="it was stopped"):
            held.run("1")
