"""From a request to ranks that answer: find the session by its name, or submit a job and wait for it.

options ─► profiles.resolve ─► launcher ─► session's directory there?
                                             ├─ no:  make it, keys and request into it, submit
                                             ├─ yes: pick it up; other resources asked → an error
                                             ├─ fallen: say why; a restart gives it ranks, no second job is bought
                                             └─ ended: say why; start anew only when asked to
          ─► wait (queue: without limit; start: the keeper's limit) ─► connect, verify ─► Session
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from hpcmagic.cost import Quote
from hpcmagic.errors import LaunchError, ProfileError
from hpcmagic.launch import slurm
from hpcmagic.launch.base import JobSpec, Launcher
from hpcmagic.notebook import budget, frontend, meter
from hpcmagic.notebook.buying import offer, quoted_line
from hpcmagic.notebook.causes import ended_error, fallen_error
from hpcmagic.notebook.found import LAUNCHERS, Found, find, find_anywhere, find_ended, is_name, no_session
from hpcmagic.notebook.lifespan import hold
from hpcmagic.notebook.output import clock, count, quiet
from hpcmagic.notebook.queued import Queued
from hpcmagic.notebook.session import Session
from hpcmagic.notebook.waiting import wait_until_ready
from hpcmagic.profiles import SIZES, Resources, canonical, resolve, walltime_s
from hpcmagic.rendezvous import HOLD_ALONE_S, HOLD_S, JobRecord, Limits, Request, SessionDirectory
from hpcmagic.wire.crypto import make_keys
from hpcmagic.wire.descriptors import require_descriptors

ASKING_SIZES = (*SIZES, "partition", "account", "qos", "constraint")


def start(
    session: str | None = None, *, keep: bool = False, unasked: bool = True, yes: bool = False, **options: Any
) -> Session:
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
    yes
        Submit without asking what may cost more than the profile's `confirm_above`.
    **options
        Every option of ``%%remote`` by its name with underscores: ``nodes=4, time="0:30:00"``.

    Raises
    ------
    ProfileError
        What was asked for cannot be.
    LaunchError
        The batch system refused, or the job did not become a session.
    SessionEnded
        The session of that name has ended, and nothing new was asked for; or its ranks have, and its job is held.
    """
    if "HPCMAGIC_KEEPER_PID" in os.environ:
        raise LaunchError(
            "This is a rank of a session: it starts none of its own.", "Start sessions from the notebook."
        )
    require_descriptors()
    resources, launcher = plan(options)
    name = session or frontend.session_name()[0]
    require_name(name)
    found = find(resources, name)
    if found is not None and found.half:
        raise LaunchError(
            f"Session {name} is being started by another kernel.",
            f"Run the cell again in a moment; if it stays so, `%hpc stop {name}` clears it away.",
        )
    if found is not None:
        found.require_here()
    if found is not None and (cause := found.ended()):
        if "asked for" not in _origins_of_sizes(resources):
            raise ended_error(found.request.session, cause, found.request)
        found.directory.put_aside()
        found = None
    if found is not None and found.fallen:
        raise fallen_error(found.request.session, found.fallen, found.seen.left_s)
    submitted = found is None
    if found is None:
        if not unasked:
            require_asked(resources)
        resources = launcher.completed(resources)
        found = _bought(name, resources, launcher, yes=yes)
    else:
        require_same(found.request, resources)
    held = _waited_for(found, submitted=submitted)
    if not keep and frontend.unattended():
        atexit.register(_stop_at_exit, held)
    return held


def attach(session: str, **options: Any) -> Session:
    """Come back to a session by its name: variables, running cells, output so far, finished results are there.

    A session that has ended can be attached to as well: nothing runs there, but its cells can be read. One whose
    ranks have ended can be restarted, too, while its job is held.

    Parameters
    ----------
    session
        Its name, as `hpcmagic.sessions()` lists it.
    **options
        `session_dir` or `profile`, where the session's directory is not where your profiles say.

    Raises
    ------
    ProfileError
        There is no session of that name, nor was there one whose cells are kept.
    """
    require_name(session)
    found = find_anywhere(session, **options)
    if found is not None and not found.half:
        found.require_here()
        cause = found.ended()
        return ended_session(found, cause) if cause else _waited_for(found, submitted=False)
    past = find_ended(session, **options)
    if past is None:
        raise no_session(session, past=True, **options)
    return ended_session(past, past.ended() or "it was stopped")


def _waited_for(found: Found, *, submitted: bool) -> Session:
    """Wait until a session is ready, its meter in sight meanwhile and then."""
    if found.request.launcher == "slurm" and (found.keeper is None or found.keeper.phase == "starting"):
        meter.appear(Queued(found))
    held = wait_until_ready(found, submitted=submitted)
    if (
        submitted and found.request.session in budget.known()
    ):  # by SLURM's count, not the keeper's: it may have begun late
        hold(held, may_end=True)
    meter.appear(held)
    return held


def ended_session(found: Found, cause: str) -> Session:
    """Give a session that is over, for its cells and its log."""
    job = found.job or JobRecord(found.request.launcher, "", 0.0)
    held = Session(found.directory, found.request, found.launcher, job, None, ended=cause)
    quiet(f"Session {held.name} has ended: {cause}. {count(len(held.cells), 'cell')} can still be read: `.cells`.")
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
    if resources.launcher == "slurm" and not resources.profile and not any(_origins_of_sizes(resources)):
        raise ProfileError(
            "SLURM answers here, and nothing says what to ask it for: no job was submitted.",
            "Type e.g. `%%remote --nodes 1 --time 0:30:00`, or name a profile with `--profile`.",
        )


def dry_run(session: str | None = None, **options: Any) -> str:
    """Give the exact script that `start` would submit; nothing is submitted, no file is written."""
    resources, launcher = plan(options)
    resources = launcher.completed(resources)
    name = session or frontend.session_name()[0]
    require_name(name)
    resources, _ = budget.applied(name, resources)
    script = launcher.script(JobSpec(name, SessionDirectory(resources.directory / name), resources))
    line = quoted_line(resources)
    return f"{script}# {line}\n" if line else script


def require_name(name: str) -> None:
    """Refuse a name that could not be a directory's.

    Raises
    ------
    ProfileError
        It is malformed.
    """
    if not is_name(name):
        raise ProfileError(
            f"--session {name!r} is not a name for a session.",
            "Use letters, digits, `_`, `-` and `.`, at most 64.",
        )


def _origins_of_sizes(resources: Resources) -> set[str]:
    """Give where the resources that were asked for come from; sbatch's own defaults ask for nothing."""
    origins = {resources.origins.get(name, "") for name in ASKING_SIZES}
    return {origin for origin in origins if "SBATCH_" not in origin} - {""}


def _bought(name: str, resources: Resources, launcher: Launcher, *, yes: bool) -> Found:
    """Cut what is asked for to what budgets allow, say what it costs, and submit it."""
    cut, limits = budget.applied(name, resources)
    spec = JobSpec(name, SessionDirectory(cut.directory / name), cut)
    quote = offer(cut, yes=yes, expected_start=lambda: launcher.expected_start(spec))
    with budget.in_turn():
        if budget.MONTH_KEY in budget.known():  # others may have bought while somebody was asked
            cut, limits = budget.applied(name, cut)
        return _submit(resources, JobSpec(name, spec.directory, cut), launcher, quote, limits)


def _submit(
    resources: Resources, spec: JobSpec, launcher: Launcher, quote: Quote | None, limits: Limits | None
) -> Found:
    """Make the session's directory, keys and request, and submit its job; a budget may have cut what it asks for."""
    name = spec.session
    if not Path().exists():
        raise LaunchError("The directory that you are in has been removed.", "Go to another with `%cd`.")
    try:
        directory = SessionDirectory.create(spec.directory.path)
    except FileExistsError:
        raise LaunchError(
            f"Session {name} is being started by another kernel.",
            f"Run the cell again in a moment; if it stays so, `%hpc stop {name}` clears it away.",
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
            hold_s=HOLD_S,
            hold_alone_s=HOLD_ALONE_S,
            idle_limit_s=resources.idle_limit_s,
        )
        directory.write_record(directory.request, request)
        if quote is not None:
            directory.write_record(directory.quote, quote)
        if limits is not None:
            directory.write_record(directory.limits, limits)
        job = JobRecord(launcher.name, launcher.submit(spec), time.time(), socket.gethostname())
    except BaseException:
        shutil.rmtree(directory.path, ignore_errors=True)
        raise
    try:
        directory.write_record(directory.job, job)
    except BaseException:  # nobody would ever find that job again
        launcher.cancel(job.job_id)
        shutil.rmtree(directory.path, ignore_errors=True)
        raise
    print(_announcement(name, spec.resources, job))
    return Found(directory, request, job, None)


def _announcement(name: str, resources: Resources, job: JobRecord) -> str:
    """Say what was asked for, and where it came from."""
    lonely = _ends_after(resources)
    if resources.launcher == "local":
        why = "no SLURM here" if resources.origins.get("launcher") == "what is there" else "as asked"
        ranks = count(resources.ntasks, "rank")
        return f"Session {name}: {ranks} on this machine ({why}).\nIt {lonely or 'runs until %hpc stop'}."
    time_origin = resources.origins.get("time", "")
    limit_s = walltime_s(resources.time)
    walltime = f"walltime {clock(limit_s) if limit_s else resources.time or 'unknown'} ({time_origin})"
    details = [f"{name} {getattr(resources, name)}" for name in ("partition", "account", "qos", "mem")
               if getattr(resources, name)]  # fmt: skip
    nodes = f"{count(resources.nodes, 'node')} × {count(resources.ntasks_per_node, 'rank')}"
    said = f"Session {name}: job {job.job_id}, {nodes}, {', '.join([walltime, *details])}"
    return f"{said}.\nIt {lonely}." if lonely else f"{said}."


def _ends_after(resources: Resources) -> str:
    """Say after how long without anybody, or without a cell, the session ends."""
    limits = ((resources.no_client_limit_s, "with no notebook connected and no cell running"),
              (resources.idle_limit_s, "in which no cell runs"))  # fmt: skip
    said = ", or ".join(f"after {clock(limit_s)} {when}" for limit_s, when in limits if limit_s)
    return f"ends {said}" if said else ""


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
        names = ["ntasks", *(name for name in names if name != "ntasks_per_node")]
    has_values = request.resources
    if request.launcher == "local":  # the machine is as it is: only the number of ranks can differ
        names = [name for name in names if name in ("nodes", "ntasks", "ntasks_per_node")]
    differing = [n for n in dict.fromkeys(names) if canonical(n, has_values.get(n)) != canonical(n, asked[n])]
    if not differing:
        return
    has = ", ".join(f"--{n.replace('_', '-')} {request.resources.get(n)}" for n in differing)
    wants = ", ".join(f"--{n.replace('_', '-')} {asked[n]}" for n in differing)
    fewer = resources.ntasks < request.ntasks
    mend = f"Use fewer ranks of it with `--ranks 0-{resources.ntasks - 1}`; else `%hpc stop`, then run this again."
    raise ProfileError(
        f"Session {request.session} runs with {has}, not {wants}.",
        mend
        if fewer
        else "`%hpc stop` ends it (its variables are lost); then run this again, or use another `--session`.",
    )


def _stop_at_exit(session: Session) -> None:
    """Stop the session of a kernel that nobody sits at."""
    with contextlib.suppress(Exception):
        session.stop()
