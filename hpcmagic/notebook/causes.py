"""Why a session is over, in words: from the keeper, the batch system, and the end of the log."""

from __future__ import annotations

import time
from pathlib import Path

from hpcmagic.errors import SessionEnded
from hpcmagic.launch.base import JobState, Launcher
from hpcmagic.rendezvous import TERMINATED, JobRecord, KeeperState, Request, SessionDirectory

LOG_LINES = 12
SETTLE_S = 4.0  # how long the batch system may take to know how a job has ended
ASK_AGAIN_S = 0.5
SLURMS_ENDS = ("TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "DEADLINE")


def cause_of_end(keeper: KeeperState, launcher: Launcher, job: JobRecord | None) -> str:
    """Give why a session ended.

    Whoever sent the keeper a SIGTERM, only the batch system knows; and when it ends a job, the ranks may be gone
    before the keeper is told.
    """
    if keeper.cause == TERMINATED and (job is None or job.launcher == "local"):
        return "it was stopped"
    if job is None or job.launcher == "local" or not _may_be_slurms(keeper.cause):
        return keeper.cause
    return as_seen(keeper.cause, settled(launcher, job))


def as_seen(cause: str, seen: JobState) -> str:
    """Give the keeper's cause, or the batch system's where that knows better."""
    return _by(seen) if _may_be_slurms(cause) and seen.word in SLURMS_ENDS else cause


def _may_be_slurms(cause: str) -> bool:
    return cause == TERMINATED or cause.startswith("the ranks ended")


def settled(launcher: Launcher, job: JobRecord) -> JobState:
    """Ask how a job has ended, and wait a moment for the batch system to know."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        seen = launcher.state(job.job_id)
        if (seen.phase == "ended" and seen.word not in ("GONE", "COMPLETING")) or time.monotonic() >= deadline:
            return seen
        time.sleep(ASK_AGAIN_S)


def _by(seen: JobState) -> str:
    return seen.meaning or f"SLURM says {seen.word}"


def job_cause(seen: JobState) -> str:
    """Give why a job is over whose keeper had no time to say."""
    return _by(seen)


def ended_error(name: str, cause: str, request: Request) -> SessionEnded:
    """Give the error for a session that is over: why, what is lost, and the line that starts again."""
    profile = request.resources.get("profile")
    line = f"%%remote {f'--profile {profile} ' if profile else ''}--nodes {request.nodes}"
    if request.ntasks_per_node > 1:
        line += f" --ntasks-per-node {request.ntasks_per_node}"
    if request.resources.get("time") and request.launcher == "slurm":
        line += f" --time {request.resources['time']}"
    return SessionEnded(
        f"Session {name} has ended: {cause}. Its variables are gone.",
        f"Start again with `{line}`; results that were there: `hpcmagic.attach({name!r}).cells`; more: `%hpc why`.",
    )


def whole_story(name: str, cause: str, directory: SessionDirectory) -> str:
    """Give all that is known of a session's end: the cause, and the log's last lines."""
    said = tail(directory.log, LOG_LINES)
    lines = [f"Session {name} has ended: {cause}."]
    if said.strip():
        lines += [f"The last lines of its log ({directory.log}):", *(f"    {line}" for line in said.splitlines())]
    return "\n".join(lines)


def tail(path: Path, lines: int) -> str:
    """Give a file's last lines."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 400 * lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
