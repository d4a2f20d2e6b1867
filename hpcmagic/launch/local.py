"""The keeper as a detached process on this machine: the same code as in a job, without a batch system."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from hpcmagic.errors import LaunchError
from hpcmagic.launch.base import JobSpec, JobState, exported
from hpcmagic.profiles import Resources

STOP_S = 8.0  # the keeper ends its ranks within 5 s

_children: dict[int, subprocess.Popen[bytes]] = {}  # keepers that this process started: it must reap them


class LocalLauncher:
    """Starts keepers here. A job's id is ``pid@start``, so that a reused pid is never taken for it."""

    name = "local"

    def completed(self, resources: Resources) -> Resources:
        """Nothing is left open: the machine is as it is."""
        return resources

    def script(self, spec: JobSpec) -> str:
        """Give the command that would be started."""
        return shlex.join(self._command(spec)) + "\n"

    def expected_start(self, spec: JobSpec) -> str:  # noqa: ARG002  # whatever is asked for
        """Nothing has to wait here."""
        return ""

    def submit(self, spec: JobSpec) -> str:
        """Start the keeper, detached: it outlives this process."""
        log = os.open(spec.directory.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            keeper = subprocess.Popen(
                self._command(spec),
                env={name: os.environ[name] for name in exported(spec.resources)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise LaunchError(
                f"Cannot start {self._command(spec)[0]}: {error.strerror}.", "Is that Python installed?"
            ) from error
        finally:
            os.close(log)
        _children[keeper.pid] = keeper
        return f"{keeper.pid}@{_start_ticks(keeper.pid)}"

    def state(self, job_id: str, *, max_age_s: float = 0.0) -> JobState:  # noqa: ARG002  # to look costs nothing
        """Say whether the keeper still runs."""
        pid, _, began = job_id.partition("@")
        child = _children.get(int(pid))
        status = child.poll() if child is not None else None
        if status is None and (child is not None or _start_ticks(int(pid)) == began):
            return JobState("running", "RUNNING", nodes=os.uname().nodename, elapsed_s=_since(began))
        how = f" (killed by {signal.Signals(-status).name})" if status is not None and status < 0 else ""
        return JobState("ended", "ENDED", meaning=f"its keeper is gone{how}", exit_status=status)

    def known(self, job_id: str) -> JobState:
        """Say whether the keeper still runs: that is known at once."""
        return self.state(job_id)

    def cancel(self, job_id: str) -> None:
        """Ask the keeper to end its ranks and itself; kill it when it does not."""
        pid = int(job_id.partition("@")[0])
        for sign, wait_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            if self.state(job_id).phase == "ended":
                return
            try:
                os.kill(pid, sign)
            except ProcessLookupError:
                return
            deadline = time.monotonic() + wait_s
            while self.state(job_id).phase != "ended" and time.monotonic() < deadline:
                time.sleep(0.02)

    def _command(self, spec: JobSpec) -> list[str]:
        return [spec.resources.python or sys.executable, "-m", "hpcmagic.keeper", str(spec.directory.path)]


def _since(ticks: str) -> float:
    """Give the seconds since a process began, by a clock that nobody sets."""
    began_s = int(ticks or 0) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_s)


def _start_ticks(pid: int) -> str:
    """Give a process's start time in clock ticks since boot; nothing for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
