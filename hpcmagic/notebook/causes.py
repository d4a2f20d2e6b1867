"""Why a session is over, or its ranks are gone, in words: from the keeper, the batch system, and the log's end."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hpcmagic.errors import SessionEnded
from hpcmagic.launch.base import JobState, Launcher
from hpcmagic.notebook.output import time_of_day
from hpcmagic.rendezvous import TERMINATED, JobRecord, KeeperState, Request, SessionDirectory

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session

LOG_LINES = 12
SETTLE_S = 4.0  # how long the batch system may take to know how a job has ended
ASK_AGAIN_S = 0.5
RANKS_ENDED = "the ranks ended"
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


def cause_aside(directory: SessionDirectory, request: Request, launcher: Launcher, job: JobRecord) -> str:
    """Give why a session is over whose directory is gone: another of the user's notebooks may have put it aside."""
    aside = directory.where_it_is(request)
    keeper = aside.read_record(aside.state, KeeperState) if aside is not directory else None
    if keeper is None:
        return "its directory is gone: somebody has removed it"
    return cause_of_end(keeper, launcher, job) or "it was stopped"


def as_seen(cause: str, seen: JobState) -> str:
    """Give the keeper's cause, or the batch system's where that knows better."""
    return _by(seen) if _may_be_slurms(cause) and seen.word in SLURMS_ENDS else cause


def _may_be_slurms(cause: str) -> bool:
    return cause == TERMINATED or cause.startswith(RANKS_ENDED)


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


def fallen_error(name: str, keeper: KeeperState, left_s: float | None) -> SessionEnded:
    """Give the error for a session whose ranks are gone and whose job is held: why, and both ways on."""
    how = keeper.cause.removeprefix(f"{RANKS_ENDED}: ")
    return SessionEnded(
        f"In session {name} the ranks ended: {how}. Their variables are gone.",
        f"`%hpc restart` starts new ranks in the same job, which is held until {held_until(keeper, left_s)}; "
        f"`%hpc stop` ends it; results that were there: `hpcmagic.attach({name!r}).cells`; more: `%hpc why`.",
    )


def held_words(keeper: KeeperState, left_s: float | None) -> str:
    """Say how the ranks ended, how long the job is held for others, and what can be done."""
    return f"{keeper.cause}; job held until {held_until(keeper, left_s)}: `%hpc restart` or `%hpc stop`"


def held_until(keeper: KeeperState, left_s: float | None) -> str:
    """Give the time of day until which a job without ranks is held; its walltime may come before."""
    held_s = max(0.0, keeper.held_until - time.time())
    return time_of_day(held_s if left_s is None else min(held_s, left_s))


def story_of(session: Session) -> str:
    """Give the whole story of a session that is over, or whose ranks are gone; of others nothing."""
    if session.ended:
        return whole_story(session.name, session.ended, session.directory)
    with contextlib.suppress(FileNotFoundError):
        keeper = session.keeper_state()
        if keeper.phase == "fallen":
            return whole_story(session.name, keeper.cause, session.directory, over=False)
    return ""


def whole_story(name: str, cause: str, directory: SessionDirectory, *, over: bool = True) -> str:
    """Give all that is known of a session's end, or its ranks': the cause, and the log's last lines."""
    said = tail(directory.log, LOG_LINES)
    lines = [f"Session {name} has ended: {cause}." if over else f"In session {name} {cause}."]
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
