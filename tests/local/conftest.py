"""Real ranks on this machine, and a watch on what tests leave behind."""

import importlib.util
import os
import shutil
import time
from contextlib import suppress
from itertools import count

import psutil
import pytest

import hpcmagic

OURS = ("hpcmagic.keeper", "hpcmagic.engine")
MAY_TAKE_S = 8.0  # for the last processes to end: a rank looks for its keeper once a second


@pytest.fixture(autouse=True, scope="session")
def with_mpi():
    """CI never tests without MPI in silence; on a user's machine sessions then run without it."""
    lacking = [] if shutil.which("mpiexec") else ["mpiexec"]
    if importlib.util.find_spec("mpi4py") is None:
        lacking.append("mpi4py")
    if lacking and os.environ.get("CI") == "true":
        pytest.fail(f"CI lacks {' and '.join(lacking)}: these tests would run without MPI", pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def nothing_left_of_module(tmp_path_factory):
    """Fail a module whose sessions outlive it."""
    yield from _watched(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory):
    """Fail a test whose sessions outlive it; the module's own session, there before, may."""
    yield from _watched(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def session_dir(tmp_path_factory):
    """A private place for sessions (0700), with a short path."""
    return tmp_path_factory.mktemp("s", numbered=True)


@pytest.fixture(scope="module")
def session(session_dir):
    """Four local ranks, for all tests of a module."""
    held = hpcmagic.start(nodes=4, launcher="local", session="module", session_dir=str(session_dir / "d"))
    yield held
    held.stop()


@pytest.fixture
def own_session(tmp_path):
    """Start a session of the test's own, ``own_session(nodes=1, **options)``; it is stopped at the end."""
    held = []
    numbers = count()

    def start(nodes=1, **options):
        options = {"session": f"own{next(numbers)}", "session_dir": str(tmp_path / "d"), **options}
        held.append(hpcmagic.start(nodes=nodes, launcher="local", **options))
        return held[-1]

    yield start
    for one in held:
        one.stop()


def _watched(below):
    before = set(_ours(below))
    yield
    deadline = time.monotonic() + MAY_TAKE_S
    while (left := [p for p in _ours(below) if p not in before]) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        named = [_named(process) for process in left]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        pytest.fail(f"still alive after the test, now killed: {'; '.join(named)}", pytrace=False)


def _ours(below):
    """Keepers, engines and what starts engines: children of this process, or told of a directory of its tests."""
    me = psutil.Process()
    children = {child.pid for child in me.children(recursive=True)}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            argv = process.cmdline()
            named = any(word in OURS for word in argv)
            told = any(word.startswith(f"{below}{os.sep}") for word in argv)
            if named and (told or process.pid in children) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _named(process):
    with suppress(psutil.NoSuchProcess):
        return f"{process.pid} {' '.join(process.cmdline())}"
    return f"{process.pid} (gone meanwhile)"
