"""What the notebook and each rank tell of themselves for `%hpc doctor`: versions, clock, and the disk between them.

notebook ── HEALTH: a file's name ──► rank (control thread, cells or no cells)
notebook ◄── Health ─────────────────
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from hpcmagic.rendezvous import SessionDirectory

HEALTH = "hpcmagic_health"  # the message's type in ipyparallel's envelope
PACKAGES = (
    "hpcmagic", "ipyparallel", "ipykernel", "ipython", "pyzmq", "cryptography", "cloudpickle", "numpy", "pandas",
    "polars", "pyarrow", "scipy", "mpi4py",
)  # fmt: skip
NAMED = r"doctor-[0-9a-f]{16}"
FRESH_S = 3.0  # how long a network's file system may take to show a file of another host's
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Health:
    """One process's word on itself.

    Attributes
    ----------
    time_s
        Its host's clock, seconds since the epoch.
    read
        What stands in the file that it was asked to read; empty = it does not see it, `why` says why.
    free_nbytes
        Room for this user on the session's file system, as its host sees it; -1 = unknown.
    """

    host: str
    time_s: float
    versions: dict[str, str]
    read: str = ""
    why: str = ""
    free_nbytes: int = -1


def leave_token(directory: SessionDirectory) -> tuple[Path, str]:
    """Write a file of random text into a session's directory; give its path and the text."""
    text = secrets.token_hex(16)
    path = directory.path / f"doctor-{secrets.token_hex(8)}"
    directory.write(path, text)
    return path, text


def health(directory: SessionDirectory, token: str = "", *, within_s: float = FRESH_S) -> Health:
    """Look at this process and its host; read the token if one is named."""
    time_s = time.time()
    read, why = _read(directory, token, within_s) if token else ("", "")
    return Health(socket.gethostname(), time_s, versions(), read, why, free_nbytes(directory.path))


def versions() -> dict[str, str]:
    """Give the versions of Python and of what must be alike on both sides, as far as it is installed."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _read(directory: SessionDirectory, token: str, within_s: float) -> tuple[str, str]:
    if not re.fullmatch(NAMED, token):
        return "", "no such file"
    deadline = time.monotonic() + within_s
    while True:
        try:
            return (directory.path / token).read_text(), ""
        except OSError as error:
            if time.monotonic() > deadline:
                return "", error.strerror or type(error).__name__
        time.sleep(LOOK_S)


def free_nbytes(path: Path) -> int:
    """Give the room that this user has on a path's file system; -1 = it cannot be told."""
    try:
        found = os.statvfs(path)
    except OSError:
        return -1
    return found.f_bavail * found.f_frsize
