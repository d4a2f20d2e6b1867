"""Memory that the notebook and a rank on the same host share: bytes go through it instead of over the wire.

    notebook   create(): a file in /dev/shm, 0600, of a random name ── name, over CURVE ──► rank   open_shared()
    notebook   as soon as the rank has answered, the file is removed: the memory lives as long as either maps it
    both       two halves of four slots each: one is filled while the other is emptied (wire/bulk.py)

A process that is killed before the file is removed leaves it behind; the lock that it held on it is gone with it, and
the next one to create such a file removes those that nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import stat
from pathlib import Path

from hpcmagic.wire.messages import FRAME_NBYTES

ALLOWED = True  # benchmarks measure the wire without it
FOLDER = Path("/dev/shm")  # noqa: S108  # shm_overview(7) fixes the place
PREFIX = "hpcmagic-"
SLOTS = 4  # in each half
SHARED_NBYTES = 2 * SLOTS * FRAME_NBYTES


class Shared:
    """A piece of memory that two processes map.

    The mapping has a descriptor of its own, and with it the file's lock: both go when nobody holds it any more.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.view = memoryview(mmap.mmap(descriptor, SHARED_NBYTES))

    @classmethod
    def create(cls) -> Shared | None:
        """Make one; None where there is no such memory, or no room in it."""
        if not ALLOWED:
            return None
        name = f"{PREFIX}{os.getuid()}-{secrets.token_hex(16)}"
        try:
            remove_forgotten()
            descriptor = os.open(FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.posix_fallocate(descriptor, 0, SHARED_NBYTES)  # all of it now: a full one would be SIGBUS later
            return cls(name, descriptor)
        except BaseException as error:  # Ctrl-C too
            _unlink(name)
            if isinstance(error, OSError):
                return None
            raise
        finally:
            os.close(descriptor)

    @classmethod
    def open(cls, name: str) -> Shared | None:
        """Map what another process of the same user on this host has made; None if it is not here."""
        if not name.startswith(f"{PREFIX}{os.getuid()}-") or "/" in name:
            return None
        try:
            descriptor = os.open(FOLDER / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return cls(name, descriptor) if _is_ours(descriptor) else None
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def slot(self, number: int, nbytes: int) -> memoryview:
        """Give the room of the block with this number."""
        begin = number % (2 * SLOTS) * FRAME_NBYTES
        return self.view[begin : begin + nbytes]

    def unlink(self) -> None:
        """Remove the name; whoever maps it keeps the memory."""
        _unlink(self.name)

    def close(self) -> None:
        """Let go of it."""
        self.view = memoryview(b"")


def _is_ours(descriptor: int) -> bool:
    info = os.fstat(descriptor)
    right = info.st_uid == os.getuid() and stat.S_IMODE(info.st_mode) == 0o600
    return right and info.st_size == SHARED_NBYTES


def _unlink(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        (FOLDER / name).unlink()


def remove_forgotten() -> None:
    """Remove what killed processes of this user have left: nobody holds a lock on it any more."""
    for path in FOLDER.glob(f"{PREFIX}{os.getuid()}-*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)
