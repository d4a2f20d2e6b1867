"""Waiting for a session: its state, SLURM's reason in words, which ranks are missing; updated in place.

queue (no time limit) ─► the job runs, its keeper writes state.json ─► k of n ranks ─► connect, verify ─► Session
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator

from hpcmagic.errors import HpcMagicError, LaunchError
from hpcmagic.launch import slurm
from hpcmagic.launch.base import JobState, Launcher
from hpcmagic.notebook.causes import held_words, tail
from hpcmagic.notebook.found import Found, stop
from hpcmagic.notebook.output import StatusLine, clock, count, ranks_in_words, time_of_day
from hpcmagic.notebook.session import Session
from hpcmagic.profiles import MPI_WAYS
from hpcmagic.rendezvous import KeeperState, Request

LOOK_S = (0.02, 0.5)  # how often to look at state.json: at first, and at most
ASK_S = (0.5, 15.0)  # how often to ask the batch system: at first, and then, together with all other kernels
KEEPER_SILENT_S = 3.0  # how long a keeper's last word may take after its job has ended
NO_MPI_MEND = "Install mpi4py and an MPI library where the ranks run, or set another `mpi` in your profile: {ways}."


def wait_until_ready(found: Found, *, submitted: bool) -> Session:
    """Wait for the job and its ranks, saying how it stands; Ctrl-C leaves the job where it is.

    Parameters
    ----------
    submitted
        Whether this very call submitted the job, or picks up what is there.
    """
    job, name = found.job, found.request.session
    if job is None:
        raise LaunchError(f"Session {name} was never submitted.", "`%hpc stop` clears it away; then start again.")
    line, launcher, began_s = StatusLine(), found.launcher, time.monotonic()
    from hpcmagic.wire.control import Control  # ipyparallel loads while the job starts

    try:
        for text in _progress(found, launcher):
            line.update(text)
        control = Control.connect(found.directory, found.request)
    except HpcMagicError:
        line.clear()
        raise
    except KeyboardInterrupt:
        line.clear()
        queued = found.keeper is None and job.launcher == "slurm" and found.seen.phase != "running"
        where = "stays in the queue" if queued else "goes on starting"
        raise LaunchError(
            f"Stopped waiting; job {job.job_id} of session {name} {where}.",
            "Run the cell again to wait for it; `%hpc stop` cancels it.",
        ) from None
    session = Session(found.directory, found.request, launcher, job, control)
    weakref.finalize(session, control.close_unused).atexit = False
    waited_s = time.monotonic() - began_s
    line.finish(_ready_line(session, f"ready in {clock(waited_s)}" if submitted else "picked up"))
    return session


def _ready_line(session: Session, how: str) -> str:
    keeper = session.keeper_state()
    if keeper.phase == "fallen":
        return f"In session {session.name} {held_words(keeper, session.left_s())}."
    nodes = len(set(keeper.nodes))
    where = "this machine" if session.request.launcher == "local" else count(nodes, "node")
    world = (
        f"MPI world of {keeper.world} ({keeper.starter})"
        if keeper.world
        else f"no MPI ({keeper.note or keeper.starter})"
    )
    left = session.left_s()
    until = f", until {time_of_day(left)}" if left is not None else ""
    return f"Session {session.name}: {count(session.size, 'rank')} on {where} {how}, {world}{until}."


def _progress(found: Found, launcher: Launcher) -> Iterator[str]:
    """Give a line on how things stand, again and again until the ranks are ready.

    Raises
    ------
    LaunchError
        The job ended, or can never start.
    """
    assert found.job is not None  # noqa: S101  # for the type checker: the caller looked
    directory, request, job_id = found.directory, found.request, found.job.job_id
    began_s, look_s, ask_s = time.monotonic(), LOOK_S[0], ASK_S[0]
    ask_at, ended_at, seen = began_s + ask_s, 0.0, JobState("unknown")
    while True:
        try:
            found.keeper = directory.read_record(directory.state, KeeperState)
        except FileNotFoundError:
            launcher.cancel(job_id)  # if the directory was only removed, the job would start for nobody
            raise LaunchError(
                f"Session {request.session} was stopped elsewhere while it started.",
                "Run the cell again to start it anew.",
            ) from None
        if found.keeper is not None and found.keeper.phase in ("ready", "fallen"):
            return
        if found.keeper is not None and found.keeper.phase == "ended":
            raise _not_started(found, found.keeper.cause)
        now = time.monotonic()
        if now >= ask_at:
            before, seen = seen, launcher.state(job_id, max_age_s=ask_s if ask_s == ASK_S[1] else 0.0)
            found.seen = seen
            ask_s = min(ask_s * 1.5, ASK_S[1])
            ask_at = now + ask_s
            again = before.reason == seen.reason and not seen.stale  # SLURM's first word may not be its second
            if seen.hopeless and again:
                raise _never_starts(found, launcher, seen)
            if seen.phase == "ended":
                ended_at = ended_at or now
                ask_at = now + ASK_S[0]
                if now - ended_at > KEEPER_SILENT_S:
                    raise _not_started(found, seen.meaning or f"SLURM says {seen.word}", seen)
        yield _progress_line(request, found.keeper, seen, job_id, now - began_s)
        time.sleep(look_s)
        look_s = min(look_s * 1.05, LOOK_S[1])


def _progress_line(request: Request, keeper: KeeperState | None, seen: JobState, job_id: str, waited_s: float) -> str:
    waited = clock(int(waited_s))
    if keeper is None:
        if request.launcher == "local" or seen.phase in ("running", "unknown"):
            return f"Job {job_id}: starting, {waited}" if request.launcher == "slurm" else f"Starting, {waited}"
        why = f": {seen.reason} – {seen.meaning}" if seen.meaning else f": {seen.reason}" if seen.reason else ""
        expected = f"; expected to start {seen.expected_start}" if seen.expected_start else ""
        mend = f" → {seen.mend.replace('JOBID', job_id)}" if seen.mend else ""
        return f"Job {job_id} waits in the queue{why}{expected}; {waited} so far (Ctrl-C leaves it there){mend}"
    missing = [rank for rank in range(request.ntasks) if rank not in keeper.ranks]
    nodes = sorted({keeper.nodes[rank] for rank in missing if rank < len(keeper.nodes)})
    on = (
        f" on {', '.join(nodes[:4])}{' …' if len(nodes) > 4 else ''}" if nodes and request.launcher == "slurm" else ""
    )
    waiting = f", waiting for {ranks_in_words(missing)}{on}" if missing else ""
    return f"{request.ntasks - len(missing)} of {request.ntasks} ranks connected{waiting}, {waited}"


def _never_starts(found: Found, launcher: Launcher, seen: JobState) -> LaunchError:
    """Withdraw a job that cannot start as it stands: it has lost nothing by it."""
    stop(found.directory, launcher, found.job)
    job_id = found.job.job_id if found.job else ""
    return LaunchError(
        f"Job {job_id} can never start as it stands: {seen.reason} – {seen.meaning}. It was taken out of the queue.",
        seen.mend.replace("JOBID", job_id),
    )


def _not_started(found: Found, cause: str, seen: JobState | None = None) -> LaunchError:
    directory = found.directory
    if seen is not None and seen.exit_status == slurm.NO_SUCH_DIRECTORY:
        directory.put_aside()
        return LaunchError(
            f"The nodes do not see {directory.path}, the session's directory.",
            "Set `session_dir` in your profile to a directory on a file system that the nodes share.",
        )
    said = [line for line in tail(directory.log, 2).splitlines() if line.strip()]
    log = f" Its log ends: {' | '.join(said)}" if said and "«" not in cause else ""
    directory.put_aside()
    mend = "See above; `--dry-run` shows the script."
    if "mpi" in cause.lower():
        mend = NO_MPI_MEND.format(ways=", ".join(MPI_WAYS))
    return LaunchError(f"Session {found.request.session} did not start: {cause}.{log}", mend)
