"""LocalLauncher, with real keepers: it passes the contract of every launcher, and never hits another's process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launcher_contract import LauncherContract, spec_in
from two_lines import two_lines

from hpcmagic.errors import LaunchError
from hpcmagic.launch import local
from hpcmagic.launch.local import LocalLauncher
from hpcmagic.profiles import Resources
from hpcmagic.rendezvous import TERMINATED, KeeperState

STARTS_WITHIN_S = 30.0


@pytest.fixture
def launcher():
    return LocalLauncher()


@pytest.fixture
def make_spec(tmp_path):
    return lambda session: spec_in(tmp_path / "sessions", Resources(launcher="local", mpi="none"), session)


def eventually(condition):
    """Wait until something holds."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


def running_in(directory):
    """Processes of this machine that have a session's directory among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(directory.path).encode() in words:
            found.append(int(path.parent.name))
    return found


class TestLocalLauncher(LauncherContract):
    """The rules of every launcher, and those of processes on this machine."""

    unknown_id = f"{os.getpid()}@1"  # this process's number, but not its time of birth
    may_take_s = 10.0

    def test_reused_number(self, launcher):
        """A process that got the number of a keeper long gone is never taken for it, and never hit."""
        bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            job_id = f"{bystander.pid}@1"
            assert launcher.state(job_id).phase == "ended"
            launcher.cancel(job_id)
            assert bystander.poll() is None
        finally:
            bystander.communicate(b"\n")

    def test_ranks_end_with_it(self, launcher, make_spec):
        """Cancelling a session that is ready ends its keeper and every rank of it; no process is left."""
        spec = make_spec("ready")
        directory = spec.directory
        with self.submitted(launcher, spec) as job_id:
            eventually(
                lambda: (directory.read_record(directory.state, KeeperState) or KeeperState("")).phase == "ready"
            )
            assert len(running_in(directory)) >= 2
            launcher.cancel(job_id)
            assert launcher.state(job_id).phase == "ended"
            eventually(lambda: not running_in(directory))
        assert directory.read_record(directory.state, KeeperState).cause == TERMINATED
        assert not list(directory.path.glob("*.key"))

    def test_keeper_killed(self, launcher, make_spec):
        """A keeper that was killed has ended, its ranks leave by themselves, and the state says how it went."""
        spec = make_spec("killed")
        with self.submitted(launcher, spec) as job_id:
            eventually(lambda: len(running_in(spec.directory)) >= 2)
            os.kill(int(job_id.partition("@")[0]), signal.SIGKILL)
            state = eventually(lambda: (s := launcher.state(job_id)).phase == "ended" and s)
            assert "SIGKILL" in state.meaning
            eventually(lambda: not running_in(spec.directory))

    def test_survives_its_starter(self, make_spec):
        """A keeper is detached: it outlives the kernel that started it, and another one can tell and cancel it."""
        spec = make_spec("detached")
        code = (
            "import sys; from pathlib import Path; from hpcmagic.launch.base import JobSpec; "
            "from hpcmagic.launch.local import LocalLauncher; from hpcmagic.profiles import Resources; "
            "from hpcmagic.rendezvous import SessionDirectory; "
            "resources = Resources(launcher='local', mpi='none'); "
            "print(LocalLauncher().submit(JobSpec('detached', SessionDirectory(Path(sys.argv[1])), resources)))"
        )
        command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", code, str(spec.directory.path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        job_id = done.stdout.strip()
        launcher = LocalLauncher()
        try:
            assert int(job_id.partition("@")[0]) not in local._children
            assert launcher.state(job_id).phase == "running"
            assert os.getsid(int(job_id.partition("@")[0])) != os.getsid(0)
        finally:
            launcher.cancel(job_id)
            self.require_ended(launcher, job_id)

    def test_python_not_there(self, launcher, make_spec):
        """A Python that cannot be started is named, in two lines."""
        spec = make_spec("nowhere")
        spec = type(spec)(spec.session, spec.directory, Resources(launcher="local", python="/no/such/python"))
        with pytest.raises(LaunchError, match="/no/such/python") as error:
            launcher.submit(spec)
        assert sys.executable not in str(error.value)
        two_lines(error)

    def test_log_is_private(self, launcher, make_spec):
        """What the keeper says is written where nobody else can read it."""
        spec = make_spec("log")
        with self.submitted(launcher, spec):
            assert spec.directory.log.stat().st_mode & 0o777 == 0o600
