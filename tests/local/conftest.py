"""Real ranks on this machine, and a watch on what tests leave behind."""

import importlib.util
import os
import shutil
import tempfile
from itertools import count

import pytest
from jupyter_core.utils import ensure_event_loop
from leftovers import Descriptors, Processes, SharedMemory, TemporaryFiles, Threads, nothing_left

import hpcmagic


@pytest.fixture(autouse=True, scope="session")
def with_mpi():
    """CI never tests without MPI in silence; on a user's machine sessions then run without it."""
    lacking = [] if shutil.which("mpiexec") else ["mpiexec"]
    if importlib.util.find_spec("mpi4py") is None:
        lacking.append("mpi4py")
    if lacking and os.environ.get("CI") == "true":
        pytest.fail(f"CI lacks {' and '.join(lacking)}: these tests would run without MPI", pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def temporary(tmp_path_factory):
    """A folder of the tests' own as the system's one for temporary files: what is left there is theirs."""
    folder = tmp_path_factory.mktemp("t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        yield folder


@pytest.fixture(scope="session")
def watches(tmp_path_factory, temporary):
    """Everything that a test could leave behind."""
    ensure_event_loop()  # nbclient's: one a process, kept to its end
    below = tmp_path_factory.getbasetemp()
    return Processes(below), SharedMemory(), TemporaryFiles(temporary), Threads(), Descriptors()


@pytest.fixture(autouse=True, scope="module")
def nothing_left_of_module(watches):
    """Fail a module that leaves something behind."""
    with nothing_left(*watches):
        yield


@pytest.fixture(autouse=True)
def nothing_left_of_test(watches, nothing_left_of_module):
    """Fail a test that leaves something behind; the module's own session, there before, may stay."""
    with nothing_left(*watches):
        yield


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
