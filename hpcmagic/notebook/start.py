"""From a request to ranks that answer: find the session by its name, or submit a job and wait for it.

    options ─► profiles.resolve ─► launcher ─► session's directory there?
                                                 ├─ no:  make it, keys and request into it, submit
                                                 ├─ yes: pick it up; other resources asked → an error
                                                 └─ ended: say why; start anew only when asked to
              ─► wait (queue: without limit; start: the keeper's limit) ─► connect, verify ─► Session
"""

from __future__ import annotations

import atexit
import contextlib
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpcmagic.errors import LaunchError, ProfileError
from hpcmagic.launch import slurm
from hpcmagic.launch.base import JobSpec, JobState, Launcher
from hpcmagic.launch.local import LocalLauncher
from hpcmagic.launch.slurm import SlurmLauncher
from hpcmagic.notebook import frontend
from hpcmagic.notebook.output import StatusLine, clock, time_of_day
from hpcmagic.notebook.perrank import rank_set
from hpcmagic.notebook.session import Session, Status, ended_error, status_of, stop, tail
from hpcmagic.profiles import SIZES, Resources, resolve, walltime_s
from hpcmagic.rendezvous import JobRecord, KeeperState, Request, SessionDirectory
from hpcmagic.wire.crypto import make_keys

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
ASKING_SIZES = (*SIZES, "partition", "account", "qos", "constraint")
LOOK_S = (0.02, 0.5)  # how often to look at state.json: at first, and at most
ASK_S = (0.5, 15.0)  # how often to ask the batch system
KEEPER_SILENT_S = 3.0  # how long a keeper's last word may take after its job has ended

LAUNCHERS: dict[str, type[LocalLauncher] | type[SlurmLauncher]] = {"local": LocalLauncher, "slurm": SlurmLauncher}


@dataclass
class Found:
    """A session's directory, with what its files say."""

    directory: SessionDirectory
    request: Request
    job: JobRecord | None
    keeper: KeeperState | None

    @property
    def launcher(self) -> Launcher:
        """The batch system that the session's job is in."""
        return LAUNCHERS[self.request.launcher]()

    def job_state(self) -> JobState:
        """Ask the batch system about the session's job."""
        return JobState("ended") if self.job is None else self.launcher.state(self.job.job_id)

    def ended(self) -> str:
        """Give why the session has ended, or nothing while it lives."""
        if self.keeper is not None and self.keeper.phase == "ended":
            return self.keeper.cause or "without a word"
        seen = self.job_state()
        if seen.phase == "ended":
            return seen.meaning or (f"SLURM says {seen.word}" if seen.word != "ENDED" else "its keeper is gone")
        return ""


def start(session: str | None = None, *, keep: bool = False, unasked: bool = True, **options: Any) -> Session:
    """Start a session, or pick up the one of that name; returns when all its ranks are ready.

    Parameters
    ----------
    session
        Its name; None = the notebook's own, else a fresh one.
    keep
        Let it run on when this kernel exits though nobody sits at it (nbclient, papermill).
    unasked
        Whether to submit a job though neither an option nor a profile says what to ask for: a call does, a
        bare ``%%remote`` does not.
    **options
        Every option of ``%%remote`` by its name with underscores: ``nodes=4, time="0:30:00"``.

    Raises
    ------
    ProfileError
        What was asked for cannot be.
    LaunchError
        The batch system refused, or the job did not become a session.
    """
    resources, launcher = plan(options)
    name, fresh = (session, False) if session else (frontend.session_name()[0], not frontend.notebook_path())
    require_name(name)
    found = find(resources, name)
    if found is not None and (cause := found.ended()):
        if not _asked_sizes(resources):
            raise ended_error(found.request.session, cause, found.request)
        found.directory.put_aside()
        found = None
    if found is None:
        if not unasked:
            require_asked(resources)
        resources = launcher.completed(resources)
        found = _submit(name, resources, launcher)
        if fresh:
            print(f"Session {name} (a name for `--session` and `%hpc`).")
    else:
        require_same(found.request, resources)
    held = _wait_until_ready(found)
    if not keep and frontend.unattended():
        atexit.register(_stop_at_exit, held)
    return held


def plan(options: dict[str, Any]) -> tuple[Resources, Launcher]:
    """Resolve options, and find out where to run.

    Raises
    ------
    ProfileError
        Where SLURM answers and nobody said what to ask for: nothing is bought in silence.
    """
    resources = resolve(options)
    name = resources.launcher or ("slurm" if slurm.answers() else "local")
    if not resources.launcher:
        resources = resources.with_origin("what is there", launcher=name)
    return resources, LAUNCHERS[name]()


def require_asked(resources: Resources) -> None:
    """Refuse to buy nodes that nobody asked for.

    Raises
    ------
    ProfileError
        Shows the line to type.
    """
    if resources.launcher == "slurm" and not resources.profile and not _asked_sizes(resources):
        raise ProfileError(
            "SLURM answers here, and nothing says what to ask it for: no job was submitted.",
            "Type e.g. `%%remote --nodes 1 --time 0:30:00`, or name a profile with `--profile`.",
        )


def dry_run(session: str | None = None, **options: Any) -> str:
    """Give the exact script that `start` would submit; nothing is submitted, no file is written."""
    resources, launcher = plan(options)
    resources = launcher.completed(resources)
    name = session or frontend.session_name()[0]
    return launcher.script(JobSpec(name, SessionDirectory(resources.directory / name), resources))


def sessions(**options: Any) -> list[Status]:
    """Give the status of every session of yours, by name."""
    return [_status(found) for found in all_found(resolve(options))]


def find(resources: Resources, name: str) -> Found | None:
    """Find a session by its name, or by the notebook file that made it, since renamed."""
    path = resources.directory / name
    if path.is_dir():
        return _read(SessionDirectory.open(path))
    identity = frontend.notebook_identity()
    if identity and name == frontend.session_name()[0]:
        return next((f for f in all_found(resources) if f.request.notebook == identity), None)
    return None


def all_found(resources: Resources) -> list[Found]:
    """Give every session whose directory is there."""
    root = resources.directory
    paths = sorted(p for p in root.iterdir() if p.is_dir() and p.name != "ended") if root.is_dir() else []
    found = (_read(SessionDirectory.open(path)) for path in paths)
    return [f for f in found if f is not None]


def require_name(name: str) -> None:
    """Refuse a name that could not be a directory's.

    Raises
    ------
    ProfileError
        It is malformed.
    """
    if not re.fullmatch(NAME, name) or name == "ended":
        raise ProfileError(
            f"--session {name!r} is not a name for a session.", "Use letters, digits, `_`, `-` and `.`, at most 64."
        )


def stop_found(found: Found) -> None:
    """End a session that this kernel may not hold."""
    stop(found.directory, found.launcher, found.job)


def _read(directory: SessionDirectory) -> Found | None:
    request = directory.read_record(directory.request, Request)
    if request is None:  # another kernel is just making it, or died while it did
        return None
    job = directory.read_record(directory.job, JobRecord)
    return Found(directory, request, job, directory.read_record(directory.state, KeeperState))


def _status(found: Found) -> Status:
    seen = found.job_state()
    job = found.job or JobRecord(found.request.launcher, "", time.time())
    local = found.request.launcher == "local"
    elapsed_s = time.time() - job.submitted if local else seen.elapsed_s
    return status_of(found.request, job, found.keeper, seen, elapsed_s, seen.left_s)


def _asked_sizes(resources: Resources) -> bool:
    return any(name in resources.origins for name in ASKING_SIZES)


def _submit(name: str, resources: Resources, launcher: Launcher) -> Found:
    """Make the session's directory, keys and request, and submit its job."""
    try:
        directory = SessionDirectory.create(resources.directory / name)
    except FileExistsError:
        raise LaunchError(
            f"Session {name} is being started by another kernel.", "Run the cell again in a moment."
        ) from None
    try:
        public = {who: key.decode() for who, key in make_keys(directory).items()}
        request = Request(
            session=name,
            launcher=resources.launcher,
            ntasks=resources.ntasks,
            nodes=resources.nodes,
            ntasks_per_node=resources.ntasks_per_node,
            cpus_per_task=resources.cpus_per_task,
            mpi=resources.mpi,
            interface=resources.interface,
            submit_host=socket.gethostname(),
            no_client_limit_s=resources.no_client_limit_s,
            start_timeout_s=resources.start_timeout_s,
            server_public=public["server"],
            client_public=public["client"],
            engine_public=public["engine"],
            resources=resources.asked(),
            notebook=frontend.notebook_identity(),
        )
        directory.write_record(directory.request, request)
        job = JobRecord(launcher.name, launcher.submit(JobSpec(name, directory, resources)), time.time())
        directory.write_record(directory.job, job)
    except BaseException:
        with contextlib.suppress(OSError):
            directory.put_aside()
        raise
    print(_announcement(resources, job))
    return Found(directory, request, job, None)


def _announcement(resources: Resources, job: JobRecord) -> str:
    """Say what was asked for, and where it came from."""
    limit = clock(resources.no_client_limit_s) if resources.no_client_limit_s else ""
    lonely = f"ends after {limit} with no notebook connected and no cell running" if limit else ""
    ranks = f"{resources.ntasks} rank{'s' if resources.ntasks > 1 else ''}"
    if resources.launcher == "local":
        why = "no SLURM here" if resources.origins.get("launcher") == "what is there" else "as asked"
        return f"Starting {ranks} on this machine ({why}); {lonely or 'runs until %hpc stop'}."
    time_origin = resources.origins.get("time", "")
    limit_s = walltime_s(resources.time)
    walltime = f"walltime {clock(limit_s) if limit_s else resources.time or 'unknown'} ({time_origin})"
    details = [f"{name} {getattr(resources, name)}" for name in ("partition", "account", "qos", "mem")
               if getattr(resources, name)]  # fmt: skip
    nodes = f"{resources.nodes} node{'s' if resources.nodes > 1 else ''} × {resources.ntasks_per_node}"
    return f"Job {job.job_id}: {nodes} ranks, {', '.join([walltime, *details])}" + (f"; {lonely}." if lonely else ".")


def require_same(request: Request, resources: Resources) -> None:
    """Refuse to run on other resources than asked for.

    Raises
    ------
    ProfileError
        Names the difference and the mend.
    """
    asked = resources.asked()
    names = [n for n in asked if resources.origins.get(n) == "asked for" and n != "launcher"]
    if "ntasks" in resources.origins:
        names.append("ntasks")
    differing = [n for n in dict.fromkeys(names) if request.resources.get(n) != asked[n]]
    if not differing:
        return
    has = ", ".join(f"--{n.replace('_', '-')} {request.resources.get(n)}" for n in differing)
    wants = ", ".join(f"--{n.replace('_', '-')} {asked[n]}" for n in differing)
    fewer = resources.ntasks < request.ntasks
    mend = f"Use fewer ranks of it with `--ranks 0-{resources.ntasks - 1}`; else `%hpc stop`, then run this again."
    raise ProfileError(
        f"Session {request.session} runs with {has}, not {wants}.",
        mend if fewer else "`%hpc stop` ends it (its variables are lost); then run this again, or use another `--session`.",
    )


def _wait_until_ready(found: Found) -> Session:
    """Wait for the job and its ranks, saying how it stands; Ctrl-C leaves the job where it is."""
    job, name = found.job, found.request.session
    if job is None:
        raise LaunchError(f"Session {name} was never submitted.", "`%hpc stop` clears it away; then start again.")
    line, launcher, began_s = StatusLine(), found.launcher, time.monotonic()
    from hpcmagic.wire.control import Control  # ipyparallel loads while the job starts

    try:
        for text in _progress(found, launcher):
            line.update(text)
        control = Control.connect(found.directory, found.request)
    except KeyboardInterrupt:
        where = "stays in the queue" if found.keeper is None and job.launcher == "slurm" else "goes on starting"
        raise LaunchError(
            f"Stopped waiting; job {job.job_id} of session {name} {where}.",
            "Run the cell again to wait for it; `%hpc stop` cancels it.",
        ) from None
    session = Session(found.directory, found.request, launcher, job, control)
    line.finish(_ready_line(session, time.monotonic() - began_s))
    return session


def _ready_line(session: Session, waited_s: float) -> str:
    keeper = session.keeper_state()
    nodes = len(set(keeper.nodes))
    where = "this machine" if session.request.launcher == "local" else f"{nodes} node{'s' if nodes > 1 else ''}"
    world = f"MPI world of {keeper.world} ({keeper.starter})" if keeper.world else f"no MPI ({keeper.note or keeper.starter})"
    left = session.left_s()
    until = f", until {time_of_day(left)}" if left is not None else ""
    return f"Session {session.name}: {session.size} ranks on {where} ready in {clock(waited_s)}, {world}{until}."


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
        found.keeper = directory.read_record(directory.state, KeeperState)
        if found.keeper is not None and found.keeper.phase == "ready":
            return
        if found.keeper is not None and found.keeper.phase == "ended":
            raise _not_started(found, found.keeper.cause)
        now = time.monotonic()
        if now >= ask_at:
            seen = launcher.state(job_id)
            ask_s = min(ask_s * 1.5, ASK_S[1])
            ask_at = now + ask_s
            if seen.hopeless:
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
        return f"Job {job_id} waits in the queue{why}{expected}; {waited} so far (Ctrl-C leaves it there)"
    missing = [rank for rank in range(request.ntasks) if rank not in keeper.ranks]
    nodes = sorted({keeper.nodes[rank] for rank in missing if rank < len(keeper.nodes)})
    on = f" on {', '.join(nodes[:4])}{' …' if len(nodes) > 4 else ''}" if nodes and request.launcher == "slurm" else ""
    waiting = f", waiting for rank {rank_set(missing)}{on}" if missing else ""
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
    said = [line for line in tail(directory.log, 3).splitlines() if line.strip()]
    log = f" Its log ends: {' | '.join(said)}" if said else ""
    directory.put_aside()
    mend = "See above; `--dry-run` shows the script."
    if "MPI" in cause:
        mend = "Install mpi4py and an MPI library where the ranks run, or start with `mpi = \"none\"` in your profile."
    return LaunchError(f"Session {found.request.session} did not start: {cause}.{log}", mend)


def _stop_at_exit(session: Session) -> None:
    """Stop the session of a kernel that nobody sits at."""
    with contextlib.suppress(Exception):
        session.stop()
