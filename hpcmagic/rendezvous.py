"""Where both sides meet: every file of a session's directory by name, with its modes checked.

<session_dir>/<session>/        0700, every file 0600
    request.json                what the keeper and the engines are told   (kernel writes)
    job.json                    which job it is                            (kernel writes)
    job.sh                      the script as it was submitted             (kernel writes)
    quote.json                  what the job is expected to be charged     (kernel writes)
    limits.json                 how long it may run by its budget          (kernel writes)
    server.key client.key       key pairs of the keeper and of the notebooks
    engine.key signing.key      key pair of the ranks; ipyparallel's message key
    connection.json             where the controller listens               (keeper writes)
    state.json                  the keeper's word on how things stand      (keeper writes)
    job.log                     what the keeper and srun say
    ranks/rank-0.log …          what a rank prints outside of cells, and beyond a cell's limit
    ranks/last-0 …              what a rank has flushed and not sent yet: its last words, should it die
    ranks/where-0.txt …         where a rank stood when the keeper asked (SIGURG)
    cells/000017~9f3ab2 …       every cell: source, output, replies (wire/history.py)
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self, TypeVar

from hpcmagic.errors import LaunchError, ProfileError

T = TypeVar("T")

PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600
WRONG_WORLD = 78  # exit status by which a rank says that MPI's world is not the session's
NO_MPI = 79  # … that mpi4py or its library cannot be loaded
KEEPER_GONE = 80  # … that its keeper no longer runs
TERMINATED = "it was told to end (SIGTERM)"  # a cause that the batch system may know better
FULL = (errno.ENOSPC, errno.EDQUOT)
LOOKS, LOOK_AGAIN_S = 3, 0.05  # at a record that makes no sense: a full disk lets it be written in place only
HOLD_S = 300.0  # how long a job whose ranks have fallen is held for a restart: it costs money meanwhile …
HOLD_ALONE_S = 60.0  # … and how long when no notebook is connected
ENDED_KEPT = 20  # directories of ended sessions that stay readable


@dataclass(frozen=True, slots=True)
class Request:
    """What the keeper and the engines are told; compute nodes read no other configuration."""

    session: str
    launcher: str
    ntasks: int
    nodes: int
    ntasks_per_node: int
    cpus_per_task: int
    mpi: str  # auto | pmix | pmi2 | mpiexec | none
    interface: str  # network interface to listen on; "" = the one that routes to submit_host
    submit_host: str
    no_client_limit_s: float  # 0 = as long as the job
    start_timeout_s: float
    server_public: str
    client_public: str
    engine_public: str
    resources: dict[str, Any] = field(default_factory=dict)  # as asked for, to compare later
    notebook: dict[str, int] = field(default_factory=dict)  # device and inode, to survive a rename
    hold_s: float = HOLD_S  # 0 = the ranks' end is the job's
    hold_alone_s: float = HOLD_ALONE_S
    idle_limit_s: float = 0.0  # with no cell running or waiting for so long the session ends; 0 = never


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a session's job may run by its budget: the keeper holds that, whoever is connected or not."""

    run_s: float | None = None  # since the job began
    warn_s: float = 0.0
    budget: str = ""  # in words


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Which job a session is."""

    launcher: str
    job_id: str
    submitted: float  # seconds since the epoch, for people to read
    host: str = ""  # where it was submitted; a local session lives on this machine only


@dataclass(frozen=True, slots=True)
class KeeperState:
    """The keeper's word on how things stand."""

    phase: str  # starting | ready | fallen: the ranks are gone, the job is held | ended
    ranks: tuple[int, ...] = ()  # connected
    nodes: tuple[str, ...] = ()  # by rank: the node each rank is, or should be, on
    world: int = 0  # verified size of MPI.COMM_WORLD; 0 = no MPI
    starter: str = ""  # how the ranks were started
    note: str = ""  # e.g. why there is no MPI
    cause: str = ""  # of the end, or of the ranks' fall
    held_until: float = 0.0  # seconds since the epoch, for people to read: so long a job without ranks is held
    keeper_pid: int = 0
    keeper_host: str = ""
    clients: tuple[str, ...] = ()  # who is connected: alice@login1:4711#…
    restarts: int = 0  # how often the ranks were started anew
    stuck: dict[str, str] = field(default_factory=dict)  # by rank: where it waits for ever, as in a cell's error
    warning: str = ""  # e.g. that the walltime is near, or that the journal is not written


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the controller listens. No secret: keys have files of their own."""

    host: str
    engine: dict[str, Any]  # channel → port, as ipyparallel names them
    client: dict[str, Any]


def slug(name: str) -> str:
    """Give the directory's name for a session: readable, unique, no path inside."""
    if not name:
        return "session"
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(name).name).strip("-.")[:40]
    if readable == name:
        return name
    return f"{readable or 'session'}-{blake2b(name.encode(), digest_size=4).hexdigest()}"


@functools.lru_cache(maxsize=32)  # the keeper's word is read before each request, and seldom changes
def _record_of(text: str, kind: Any) -> Any:
    raw = json.loads(text)
    known = {f.name for f in fields(kind)}
    return kind(**{name: _frozen(value) for name, value in raw.items() if name in known})


def _frozen(value: Any) -> Any:
    """Turn JSON's lists into tuples, as records have them."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class SessionDirectory:
    """One session's directory; owns every file name in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.request = path / "request.json"
        self.job = path / "job.json"
        self.script = path / "job.sh"
        self.quote = path / "quote.json"
        self.limits = path / "limits.json"
        self.connection = path / "connection.json"
        self.state = path / "state.json"
        self.log = path / "job.log"
        self.ranks = path / "ranks"
        self.cells = path / "cells"

    def __repr__(self) -> str:
        return f"SessionDirectory({str(self.path)!r})"

    def key(self, who: str) -> Path:
        """Private keys lie only in files named ``*.key``."""
        return self.path / f"{who}.key"

    def rank_log(self, rank: int) -> Path:
        """Give the file of what a rank prints outside of cells, and beyond a cell's limit."""
        return self.ranks / f"rank-{rank}.log"

    def last_words(self, rank: int) -> Path:
        """Give the file of what a rank has flushed and not sent yet."""
        return self.ranks / f"last-{rank}"

    def where(self, rank: int) -> Path:
        """Give the file that a rank writes its stack to when it gets a SIGURG."""
        return self.ranks / f"where-{rank}.txt"

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make the directory, or raise FileExistsError when another kernel was quicker."""
        with disk_errors(path):
            if path.parent.exists() and not path.parent.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent))
            path.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE_DIR)
            require_private(path.parent)
            path.mkdir(mode=PRIVATE_DIR)
            for folder in ("ranks", "cells"):
                (path / folder).mkdir(mode=PRIVATE_DIR)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Check that nobody else may look inside, and use it.

        Raises
        ------
        ProfileError
            The directory or a file in it is open to others.
        """
        require_private(path.parent)
        require_private(path)
        for entry in path.iterdir():
            with contextlib.suppress(FileNotFoundError):  # just replaced by whoever wrote it
                require_private(entry)
        return cls(path)

    def write(self, path: Path, text: str) -> None:
        """Replace a file in one step; a reader sees the old or the new, never a half."""
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        with disk_errors(path):
            try:
                with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE), "w") as out:
                    out.write(text)
                fresh.replace(path)
            except OSError:
                fresh.unlink(missing_ok=True)
                raise

    def write_record(self, path: Path, record: Any) -> None:
        """Write a dataclass as JSON."""
        self.write(path, json.dumps(asdict(record), indent=1))

    def rewrite_record(self, path: Path, record: Any) -> None:
        """Do so where it must be possible on a full disk too: into the room that the file has already.

        A reader may then see a half, and looks again.
        """
        try:
            self.write_record(path, record)
        except LaunchError as error:
            if getattr(error.__cause__, "errno", 0) not in FULL or not path.exists():
                raise
            with disk_errors(path), path.open("r+b", buffering=0) as file:
                data = json.dumps(asdict(record), indent=1).encode()
                file.write(data.ljust(os.fstat(file.fileno()).st_size))

    def read_record(self, path: Path, kind: type[T]) -> T | None:
        """Read what `write_record` wrote; None while it is not there.

        Raises
        ------
        LaunchError
            It is damaged.
        """
        for _ in range(LOOKS):
            os.scandir(path.parent).close()  # NFS: look the name up anew, an absence may be cached
            try:
                record: T = _record_of(path.read_text(), kind)  # type: ignore[arg-type]  # a class is hashable
            except FileNotFoundError:
                return None
            except (ValueError, TypeError, AttributeError):
                time.sleep(LOOK_AGAIN_S)
            else:
                return record
        raise LaunchError(
            f"{path} is damaged: it is no record of a session's.",
            f"`%hpc stop {path.parent.name}` clears the session away; its variables are lost.",
        )

    def age_s(self) -> float:
        """Give the seconds since the directory last changed."""
        return time.time() - self.path.stat().st_mtime

    def forget_keys(self) -> None:
        """Remove the private keys: an ended session has no use for them."""
        for path in self.path.glob("*.key"):
            path.unlink(missing_ok=True)

    @classmethod
    def latest_ended(cls, root: Path, name: str) -> Self | None:
        """Give the newest ended session of a name, for its cells and its log; modes are checked.

        Raises
        ------
        ProfileError
            It is open to others: what they may have written there is not read.
        """
        shelf = root / "ended"
        paths = shelf.glob(f"{name}~*") if shelf.is_dir() else ()
        found = {int(m[1]): p for p in paths if (m := re.fullmatch(rf"{re.escape(name)}~(\d+)", p.name))}
        return cls.open(found[max(found)]) if found else None

    def where_it_is(self, request: Request) -> Self:
        """Give it where it was put aside, if it was, and not another of its name: cells and log are read on."""
        aside = None if self.path.exists() else self.latest_ended(self.path.parent, self.path.name)
        told = None if aside is None else aside.read_record(aside.request, Request)
        return aside if aside is not None and told and told.server_public == request.server_public else self

    def is_aside(self) -> bool:
        """Whether this is an ended session's directory that was put aside."""
        return self.path.parent.name == "ended"

    def put_aside(self) -> None:
        """Move an ended session's directory away, so that its name is free and its log readable."""
        self.forget_keys()
        shelf = self.path.parent / "ended"
        with disk_errors(shelf):
            shelf.mkdir(mode=PRIVATE_DIR, exist_ok=True)
            numbered = {int(m[1]): p for p in shelf.iterdir() if (m := re.fullmatch(r".*~(\d+)", p.name))}
            self.path.rename(shelf / f"{self.path.name}~{max(numbered, default=0) + 1}")
        for number in sorted(numbered)[: -ENDED_KEPT + 1]:
            shutil.rmtree(numbered[number], ignore_errors=True)


def require_private(path: Path) -> None:
    """Refuse a path that another user owns or may read.

    Raises
    ------
    ProfileError
        With the modes found and the line that mends them.
    """
    info = path.lstat()
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid != os.getuid():
        raise ProfileError(
            f"{path} belongs to user {info.st_uid}, not to you ({os.getuid()}).",
            "Name a directory of your own as `session_dir` in your profile.",
        )
    if stat.S_ISLNK(info.st_mode):
        raise ProfileError(f"{path} is a symbolic link.", "Name the directory itself as `session_dir`.")
    if mode & 0o077:
        wanted = "700" if stat.S_ISDIR(info.st_mode) else "600"
        raise ProfileError(
            f"{path} has mode {mode:04o}: others on this system could read the session's keys.",
            f"Close it with `chmod {wanted} {path}`, or name another `session_dir` in your profile.",
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say a disk's errors in two lines."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise LaunchError(
            f"Cannot write the session's directory {path}: {error.strerror}.",
            "Free some space or quota there, or name another `session_dir` in your profile.",
        ) from error
