"""What the kernels of one user on one host have found out: small private files, and a claim on who asks next.

kernel A ─ claim ─► asks SLURM ─ post ─► ~/.cache/hpcmagic/<host>/jobs-5e1f ─ read ─► kernels B, C, D

One directory a host, since times are those of its monotonic clock, which all its processes read; the boot's id stands
beside them, for that clock begins anew with each boot. No clock of the day is asked, and no file is locked.

Nothing here raises. Where nothing can be kept, or others could have written it, there are no notes, everybody may
claim, and each kernel keeps what it knows for itself.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmagic.errors import HpcMagicError
from hpcmagic.rendezvous import PRIVATE_DIR, PRIVATE_FILE, SessionDirectory, require_private, slug

CLAIM_S = 12.0  # who has claimed for longer is dead: SLURM is given up after eight
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Identity = tuple[int, int, int]  # of a file: inode, time of its last change in ns, size


@dataclass(frozen=True, slots=True)
class Note:
    """What was posted, and when by the host's monotonic clock."""

    value: Any  # of JSON
    at_s: float


def default_folder() -> Path | None:
    """Give this host's directory in the user's cache; None for a user without a home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(named) if named.startswith("/") else Path.home() / ".cache"
    except RuntimeError:
        return None
    return cache / "hpcmagic" / slug(os.uname().nodename)


class Board:
    """One directory of notes.

    Parameters
    ----------
    folder
        Made when it is needed, together with the one above it; both must be private.
    clock
        Gives monotonic seconds, the same for all processes of this host.
    boot
        Since which boot it runs; None = as Linux tells. Where nobody tells, nothing is kept.
    """

    def __init__(
        self, folder: Path | None = None, *, clock: Callable[[], float] = time.monotonic, boot: str | None = None
    ) -> None:
        place = folder or default_folder()
        self.folder = place or Path()
        self.clock = clock
        self._boot = "" if place is None else _boot_id() if boot is None else boot
        self._read: dict[str, tuple[Identity, Note | None]] = {}  # notes as read last
        self._claims: dict[str, Identity] = {}  # of this kernel
        self._others: dict[str, tuple[Identity, float]] = {}  # claims of others, and since when they are seen

    def read(self, name: str) -> Note | None:
        """Give a note; None where there is none, or none that can be trusted."""
        if not self._boot:
            return None
        try:
            identity = _identity(os.lstat(self.folder / name))
            if name not in self._read or self._read[name][0] != identity:
                self._read[name] = identity, self._note(self.folder / name)
        except OSError:
            return None
        note = self._read[name][1]
        return note if note is not None and note.at_s <= self.clock() else None

    def post(self, name: str, value: Any, at_s: float) -> None:
        """Replace a note in one step."""
        if not self._boot:
            return
        try:
            self._make_folder()
            told = {"boot": self._boot, "at_s": at_s, "value": value}
            SessionDirectory(self.folder).write(self.folder / name, json.dumps(told))
        except (OSError, HpcMagicError):
            return

    def claim(self, name: str) -> bool:
        """Take it upon this kernel to find something out; False while another does."""
        if not self._boot:
            return True
        path = self.folder / f"{name}.claim"
        try:
            self._make_folder()
            self._remove_stale(path)
            return self._created(name, path)
        except (OSError, HpcMagicError):  # nothing can be kept here: each asks for himself
            return True

    def release(self, name: str) -> None:
        """Give a claim up, unless others thought it stale and it is not this kernel's any more."""
        path, own = self.folder / f"{name}.claim", self._claims.pop(name, None)
        try:
            if own is not None and _identity(os.lstat(path)) == own:
                path.unlink()
        except OSError:
            return

    def _created(self, name: str, path: Path) -> bool:
        try:
            claim = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE_FILE)
        except FileExistsError:
            return False
        self._claims[name] = _identity(os.fstat(claim))
        os.close(claim)
        return True

    def _make_folder(self) -> None:
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE_DIR)
            require_private(folder)

    def _note(self, path: Path) -> Note | None:
        """Read a note; None where it is damaged, others could have written it, or it is of another boot."""
        try:
            for private in (self.folder.parent, self.folder, path):
                require_private(private)
            told = json.loads(path.read_text())
            note = Note(told["value"], float(told["at_s"]))
            known = told["boot"] == self._boot
        except (HpcMagicError, ValueError, LookupError, TypeError):
            return None
        return note if known else None

    def _remove_stale(self, path: Path) -> None:
        """Remove a claim that this kernel has seen for too long.

        Two that do so at the same moment may both ask: it is once too often, and does no other harm.
        """
        try:
            identity = _identity(os.lstat(path))
        except FileNotFoundError:
            return
        seen, since_s = self._others.get(path.name, (None, 0.0))
        if seen != identity:
            self._others[path.name] = identity, self.clock()
        elif self.clock() - since_s >= CLAIM_S:
            path.unlink(missing_ok=True)


def _identity(info: os.stat_result) -> Identity:
    return info.st_ino, info.st_mtime_ns, info.st_size


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
