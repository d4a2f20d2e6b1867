"""The sessions that are there: each by its directory, with what its files and its job say."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from hpcmagic.errors import LaunchError, ProfileError
from hpcmagic.forms import did_you_mean
from hpcmagic.launch import slurm
from hpcmagic.launch.base import FRESH_S, JobState, Launcher
from hpcmagic.launch.local import LocalLauncher
from hpcmagic.launch.slurm import SlurmLauncher
from hpcmagic.notebook import frontend
from hpcmagic.notebook.causes import cause_of_end
from hpcmagic.notebook.status import Status, ran_here_s, status_of
from hpcmagic.profiles import Resources, profile_names, resolve
from hpcmagic.rendezvous import JobRecord, KeeperState, Request, SessionDirectory

T = TypeVar("T")
LAUNCHERS: dict[str, type[LocalLauncher | SlurmLauncher]] = {"local": LocalLauncher, "slurm": SlurmLauncher}
ASK_AT_ONCE = 8  # jobs, of the batch system
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")  # of a session, and of its directory
RESERVED = ("ended", "budget.json")  # what else lies beside the directories of sessions


HALF = Request(
    session="", launcher="local", ntasks=0, nodes=0, ntasks_per_node=0, cpus_per_task=0, mpi="", interface="",
    submit_host="", no_client_limit_s=0, start_timeout_s=0, server_public="", client_public="", engine_public="",
)  # fmt: skip


@dataclass
class Found:
    """A session's directory, with what its files say."""

    directory: SessionDirectory
    request: Request
    job: JobRecord | None
    keeper: KeeperState | None
    seen: JobState = field(default_factory=lambda: JobState("unknown"))

    @property
    def half(self) -> bool:
        """Whether it is only half made: by a kernel at work, or by one that died over it."""
        return self.request.ntasks == 0 or self.job is None

    @property
    def launcher(self) -> Launcher:
        """The batch system that the session's job is in."""
        return LAUNCHERS[self.request.launcher]()

    @property
    def elsewhere(self) -> str:
        """The other host that a local session lives on, whose directory this one sees; else nothing."""
        host = self.job.host if self.job is not None and self.request.launcher == "local" else ""
        return host if host != socket.gethostname() else ""

    def require_here(self) -> None:
        """Refuse a session that lives on another host, and listens there only.

        Raises
        ------
        LaunchError
            Names the host.
        """
        if self.elsewhere and (self.keeper is None or self.keeper.phase != "ended"):
            raise LaunchError(
                f"Session {self.request.session} runs on {self.elsewhere} itself, and cannot be reached from here.",
                f"Work on {self.elsewhere}, or give this notebook another `--session`.",
            )

    def job_state(self, max_age_s: float = 0.0) -> JobState:
        """Ask the batch system about the session's job, unless an answer so old will do."""
        if self.elsewhere:
            return JobState("unknown", meaning=f"on {self.elsewhere}")
        return JobState("unknown") if self.job is None else self.launcher.state(self.job.job_id, max_age_s=max_age_s)

    @property
    def fallen(self) -> KeeperState | None:
        """The keeper's word where the ranks are gone and the job is held for a restart."""
        return self.keeper if self.keeper is not None and self.keeper.phase == "fallen" else None

    def ended(self) -> str:
        """Give why the session has ended, or nothing while it lives."""
        if self.keeper is not None and self.keeper.phase == "ended":
            return cause_of_end(self.keeper, self.launcher, self.job) or "without a word"
        self.seen = seen = self.job_state()
        if seen.phase == "ended":
            return seen.meaning or (f"SLURM says {seen.word}" if seen.word != "ENDED" else "its keeper is gone")
        return ""


def sessions(**options: object) -> list[Status]:
    """Give the status of every session of yours, by name."""
    found = [one for resources in everywhere(**options) for one in all_found(resources)]
    slurm.POLL.hurry()  # who lists them may just have ended one, with scancel
    with ThreadPoolExecutor(ASK_AT_ONCE) as pool:  # one after the other they would wait for ever while SLURM is away
        return list(pool.map(status_of_found, found))


def is_name(name: object) -> bool:
    """Whether a session may be called so."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None and name not in RESERVED


def find(resources: Resources, name: str) -> Found | None:
    """Find a session by its name, or by the notebook file that made it, since renamed."""
    path = resources.directory / name
    if is_name(name) and _is_folder(path):  # no other folder of the user's is a session, whatever path is typed
        return _read(SessionDirectory.open(path))
    identity = frontend.notebook_identity()
    if identity and name == frontend.session_name()[0]:
        return next((f for f in all_found(resources) if f.request.notebook == identity), None)
    return None


def find_anywhere(name: str, **options: object) -> Found | None:
    """Find a session by its name in the directories of all profiles."""
    places = everywhere(**options)
    return next((found for resources in places if (found := find(resources, name)) is not None), None)


def find_ended(name: str, **options: object) -> Found | None:
    """Find the newest session of a name among those that have ended and were put aside."""
    shelved = (SessionDirectory.latest_ended(resources.directory, name) for resources in everywhere(**options))
    return next((_read(directory) for directory in shelved if directory is not None), None) if is_name(name) else None


def ended_names(**options: object) -> list[str]:
    """Give the names of sessions that have ended and whose cells can still be read, the newest first."""
    shelved = [path for resources in everywhere(**options) for path in (resources.directory / "ended").glob("*~*")]
    newest = sorted(shelved, key=lambda path: int(path.name.rpartition("~")[2]), reverse=True)
    return list(dict.fromkeys(path.name.rpartition("~")[0] for path in newest))


def session_names(**options: object) -> list[str]:
    """Give the names of your sessions, by their directories alone: nobody is asked how they stand."""
    return sorted({found.request.session for resources in everywhere(**options) for found in all_found(resources)})


def no_session(name: str, *, past: bool = False, **options: object) -> ProfileError:
    """Give the error for a name that no session has, nor, with `past`, one that has ended; the nearest is guessed."""
    names = session_names(**options) + (ended_names(**options) if past else [])
    mend = f"{did_you_mean(name, names)}`%hpc` lists yours."
    if past:
        return ProfileError(f"There is no session {name!r}, nor was there one.", mend)
    return ProfileError(f"There is no session {name!r}.", mend)


def put_aside(**options: object) -> list[Found]:
    """Give every session that has ended and whose directory is kept, the oldest first."""
    shelves = [resources.directory / "ended" for resources in everywhere(**options)]
    paths = [path for shelf in shelves for path in shelf.glob("*~*")]
    return [_read(SessionDirectory.open(path)) for path in sorted(paths, key=_number)]


def _number(path: Path) -> int:
    number = path.name.rpartition("~")[2]
    return int(number) if number.isdecimal() else 0


def everywhere(**options: object) -> list[Resources]:
    """Give one `Resources` for each directory that some profile keeps sessions in."""
    names = profile_names(roles=False)  # your sessions are yours, also where you have left a profile's group
    resolved = [resolve({**options, **named}, roles=False) for named in ({}, *({"profile": name} for name in names))]
    return list({resources.directory: resources for resources in reversed(resolved)}.values())


def all_found(resources: Resources) -> list[Found]:
    """Give every session whose directory is there."""
    root = resources.directory
    paths = sorted(p for p in root.iterdir() if p.is_dir() and p.name != "ended") if _is_folder(root) else []
    return [_read(SessionDirectory.open(path)) for path in paths]


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(PermissionError):
        if not path.is_dir():
            return False
        if os.access(path, os.R_OK | os.X_OK):
            return True
    raise ProfileError(f"You may not look into {path}.", "Name a `session_dir` of your own.")


def stop(directory: SessionDirectory, launcher: Launcher, job: JobRecord | None) -> None:
    """Cancel a session's job and put its directory aside."""
    if job is not None:
        launcher.cancel(job.job_id)
    if directory.path.exists() and not directory.is_aside():
        directory.put_aside()


def stop_found(found: Found) -> None:
    """End a session that this kernel may not hold."""
    found.require_here()
    stop(found.directory, found.launcher, found.job)


def _read(directory: SessionDirectory) -> Found:
    request = _whole(directory, directory.request, Request) or HALF
    request = replace(request, session=request.session or directory.path.name)
    job = _whole(directory, directory.job, JobRecord)
    return Found(directory, request, job, _whole(directory, directory.state, KeeperState))


def _whole(directory: SessionDirectory, path: Path, kind: type[T]) -> T | None:
    """Give a record, or None where it is damaged: that of one session must not hide the others."""
    try:
        return directory.read_record(path, kind)
    except LaunchError:
        return None


def status_of_found(found: Found, max_age_s: float = FRESH_S) -> Status:
    """Give how a session stands, by its files and its job."""
    seen = found.job_state(max_age_s)
    job = found.job or JobRecord(found.request.launcher, "", time.time())
    ended_here = found.request.launcher == "local" and seen.phase == "ended"
    elapsed_s = ran_here_s(found.directory, job) if ended_here else seen.elapsed_s
    return status_of(
        found.request, job, found.keeper, seen, elapsed_s=elapsed_s, left_s=seen.left_s, directory=found.directory
    )
