"""What belongs to no session any more: processes here, jobs in the queue; listed, and ended when asked to."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hpcmagic.errors import LaunchError
from hpcmagic.launch import slurm
from hpcmagic.launch.base import FRESH_S
from hpcmagic.notebook.found import all_found, everywhere
from hpcmagic.notebook.output import clock
from hpcmagic.rendezvous import JobRecord, KeeperState, Request, SessionDirectory

OURS = ("hpcmagic.keeper", "hpcmagic.engine")


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something that nothing of ours knows of."""

    what: str
    end: Callable[[], None]


def orphans() -> list[Orphan]:
    """Find what belongs to no session: our processes here without a directory, our jobs without a session."""
    return [*_processes(), *_jobs()]


def _processes() -> list[Orphan]:
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.uids().real != os.getuid():
                continue
            argv = process.cmdline()
            ours = len(argv) > 3 and argv[1] == "-m" and argv[2] in OURS
            if ours and not _has_session(Path(argv[3]), process.pid):
                what = f"process {process.pid} here: {argv[2]} of {argv[3]}"
                found.append(Orphan(what, partial(_end, process)))
    return found


def _end(process: Any) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def _has_session(path: Path, pid: int) -> bool:
    """Whether a process's session is there, and not over."""
    directory = SessionDirectory(path)
    try:
        keeper = directory.read_record(directory.state, KeeperState)
        request = directory.read_record(directory.request, Request)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, LaunchError):  # nobody can tell: then it is left alone
        return True
    if request is None:
        return False
    return keeper is None or keeper.phase != "ended" or keeper.keeper_pid == pid


def _jobs() -> list[Orphan]:
    jobs = {job: seen for job, seen in slurm.POLL.jobs(FRESH_S).items() if seen.phase != "ended" and not seen.stale}
    if not jobs:
        return []
    sessions = [found for place in everywhere() for found in all_found(place)]
    if any(found.half for found in sessions):  # one that is being made may have its job already
        return []
    known = {found.job.job_id for found in sessions if found.job is not None}
    launcher = slurm.SlurmLauncher()
    return [
        Orphan(f"job {job}, {seen.word.lower()}, for {clock(int(seen.elapsed_s))}", partial(launcher.cancel, job))
        for job, seen in jobs.items()
        if job not in known and not _lives_elsewhere(job)
    ]


def _lives_elsewhere(job_id: str) -> bool:
    """Whether a job's session lies where no profile looks: its script names the directory. True if nobody tells."""
    asked = ["scontrol", "write", "batch_script", job_id, "-"]
    try:
        said = slurm.run(asked, timeout_s=slurm.QUERY_TIMEOUT_S).stdout
        command = shlex.split(said.strip().rpartition("\n")[2])
        if "hpcmagic.keeper" not in command:
            return True
        directory = SessionDirectory(Path(command[-1]))
        job = directory.read_record(directory.job, JobRecord)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, LaunchError):
        return True
    return job is None or job.job_id == job_id
