"""Real ranks on this machine, and a watch on what tests leave behind."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from itertools import count

import pytest
from faults import Kernel
from jupyter_core.utils import ensure_event_loop
from leftovers import Descriptors, Processes, SharedMemory, TemporaryFiles, Threads, nothing_left

import hpcmagic
from hpcmagic.notebook import output, streaming
from hpcmagic.notebook.found import all_found, stop_found
from hpcmagic.profiles import resolve


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


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A state directory of this test's own; whatever is left in it at the end is stopped."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HPCMAGIC_LAUNCHER", "local")
    yield tmp_path
    for found in all_found(resolve({})):
        stop_found(found)


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB, mounted for the test."""
    path = tmp_path / "disk"
    path.mkdir(mode=0o700)
    mounting = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(path)]
    if os.getuid() != 0 or subprocess.run(mounting, capture_output=True, timeout=20).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=20)


@pytest.fixture
def kernel():
    """Start other kernels, ``kernel(code)``; they are killed at the end."""
    started = []

    def start(code):
        started.append(Kernel(code))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def unhurried(monkeypatch):
    """Let lines wait for those of other ranks until the cell's end: what is alike is folded on a busy machine too."""
    monkeypatch.setattr(streaming, "HOLD_S", 600.0)


@pytest.fixture
def lines(monkeypatch):
    """Every text that the status line has shown."""
    shown = []
    monkeypatch.setattr(output.StatusLine, "update", lambda _, text: shown.append(text))
    return shown
