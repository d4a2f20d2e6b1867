"""The test bed, a real SLURM on this machine, and a watch on what tests leave behind in it."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

BED = Path("/var/lib/hpcmagic-bed")
SCRIPT = Path(__file__).with_name("cluster")
USERS = ("alice", "bob", "carol")
LACKING = 77  # the script's exit code where a machine cannot have a bed
OPEN_MPI = "ompi."  # its folder for all runs of a user stays, what a run makes in it must not
PROCESSES_MAY_TAKE = 5.0  # seconds after a test for its last processes to end
FILES_MAY_TAKE = 3.0  # for SLURM to remove what it made for a step
JOBS_MAY_TAKE = 3.0  # for its last job to end
COMPLETING_MAY_TAKE = 15.0  # SLURM itself waits KillWait=10 s before it kills


def run(*argv: str, timeout: float, input: str | None = None) -> subprocess.CompletedProcess[str]:  # noqa: A002
    """Run a command; when it takes too long, end it with all the processes of its group."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(input, timeout=timeout)
    except BaseException:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=2)
        raise
    return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)


class Cluster:
    """The bed, as the script `cluster` beside this file makes it.

    Hosts share the file system but for /tmp and /dev/shm: hand files over below a user's home.
    """

    python = "/opt/hpcmagic-site/venv/bin/python"  # holds this checkout's package
    nodes = ("n1", "n2", "n3", "n4")

    def verb(self, *argv: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a verb of the script; it must succeed."""
        done = run(str(SCRIPT), *argv, timeout=timeout)
        if done.returncode:
            pytest.fail(f"cluster {' '.join(argv)}: {done.stdout}{done.stderr}", pytrace=False)
        return done

    def hub(
        self,
        *argv: str,
        timeout: float = 60,
        input: str | None = None,  # noqa: A002
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root on the hub."""
        return run(str(SCRIPT), "hub", *argv, timeout=timeout, input=input)

    def on(
        self,
        node: str,
        *argv: str,
        timeout: float = 60,
        input: str | None = None,  # noqa: A002
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root on a node."""
        return run(str(SCRIPT), "on", node, *argv, timeout=timeout, input=input)

    def as_user(
        self,
        user: str,
        *argv: str,
        timeout: float = 60,
        input: str | None = None,  # noqa: A002
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the hub as that user, as after a login."""
        return run(str(SCRIPT), "as", user, *argv, timeout=timeout, input=input)

    @contextmanager
    def configured(self, **options: str) -> Iterator[None]:
        """Change options of slurm.conf for the time of a block."""
        self.verb("set", *(f"{key}={value}" for key, value in options.items()))
        try:
            yield
        finally:
            self.verb("reset")

    def jobs(self) -> list[tuple[str, str, str]]:
        """Id, user with name, and state of each job that is not over."""
        done = self.hub("squeue", "-h", "-o", "%i|%u %j|%T")
        if done.returncode:
            pytest.fail(f"squeue: {done.stderr}", pytrace=False)
        return [(job, who, state) for job, who, state in (row.split("|") for row in done.stdout.splitlines())]


def processes() -> dict[int, str]:
    """PID and command line of each process of the bed's users, wherever on this machine."""
    uids = {pwd.getpwnam(user).pw_uid for user in USERS}
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            pid = int(entry.name)
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if entry.stat().st_uid in uids and words:  # no words: over, but not yet reaped
                found[pid] = f"{pid} ({entry.owner()}): {words[:200]}"
    return found


def end(pids: dict[int, str]) -> None:
    """Kill those processes, each verified through a handle that no reused PID can take over."""
    uids = {pwd.getpwnam(user).pw_uid for user in USERS}
    for pid in pids:
        with suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                if Path(f"/proc/{pid}").stat().st_uid in uids:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def files() -> dict[str, Path]:
    """What the bed's users have in /tmp and /dev/shm of each host: temporary files, shared memory."""
    uids = {pwd.getpwnam(user).pw_uid for user in USERS}
    found = {}
    for host in ("hub", *Cluster.nodes):
        pid = (BED / "run" / f"host.{host}").read_text().split()[0]
        for folder in ("tmp", "dev/shm"):
            for path in Path(f"/proc/{pid}/root", folder).iterdir():
                with suppress(OSError):
                    empty = path.name.startswith(OPEN_MPI) and not any(path.iterdir())
                    if path.lstat().st_uid in uids and not empty:
                        found[f"{host}:/{folder}/{path.name}"] = path
    return found


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def settled(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true within that time."""
    end_of_wait = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end_of_wait:
            return False
        time.sleep(0.1)
    return True


def unavailable(reason: str) -> None:
    """Skip, but fail where the bed is expected: a green run must mean that these tests ran."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Bring the bed up; leave it as it was found, up or down."""
    if os.geteuid() != 0:
        unavailable("the SLURM test bed needs root: sudo env PATH=$PATH python -m pytest tests/slurm")
    bed = Cluster()
    was_up = run(str(SCRIPT), "status", timeout=30).returncode == 0
    done = run(str(SCRIPT), "up", timeout=1200)
    if done.returncode:
        if done.returncode == LACKING:
            unavailable(done.stderr.strip().splitlines()[-1])
        pytest.fail(done.stderr.strip(), pytrace=False)
    bed.verb("reset")
    remove(files().values())
    end(processes())  # strays of an earlier run: no test of this one shall be blamed for them
    yield bed
    if not was_up:
        bed.verb("down")


@pytest.fixture(autouse=True)
def nothing_left(cluster: Cluster) -> Iterator[None]:
    """After each test: no job in the queue, no process of a user, no file in a host's /tmp or shared memory."""
    yield
    settled(lambda: all(state == "COMPLETING" for _, _, state in cluster.jobs()), JOBS_MAY_TAKE)
    if all(state == "COMPLETING" for _, _, state in cluster.jobs()):
        settled(lambda: not cluster.jobs(), COMPLETING_MAY_TAKE)
    jobs = cluster.jobs()
    settled(lambda: bool(jobs) or not processes(), PROCESSES_MAY_TAKE)
    left = processes()
    settled(lambda: bool(jobs or left) or not files(), FILES_MAY_TAKE)
    kept = files()
    remove(kept.values())
    if not jobs and not left and not kept:
        return
    if jobs:
        cluster.hub("scancel", *(job for job, _, _ in jobs))
    end(left)
    if jobs or left:
        cluster.verb("reset")
        settled(lambda: not (end(processes()) or processes()), PROCESSES_MAY_TAKE)
        remove(files().values())
    lines = [" ".join(("job", *job)) for job in jobs] + [f"process {line}" for line in left.values()]
    lines += [f"file {name}" for name in kept]
    pytest.fail("left behind by this test (and ended now):\n" + "\n".join(lines), pytrace=False)
