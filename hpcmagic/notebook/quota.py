"""What a user's quota leaves on a file system, where `quota` or Lustre's `lfs` tells it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
ANSWER_S = 10.0
# used, soft and hard limit, in KiB; a star is behind what is over its limit, brackets around what is not exact
NUMBERS = re.compile(r"\s\[?(\d+)\]?\*?\s+(\d+)\s+(\d+)(?=\s|$)")


def left_nbytes(path: Path) -> int:
    """Give what this user may still write on a path's file system; -1 = there is no limit, or nobody tells."""
    if shutil.which("lfs"):
        said = _asked("lfs", "quota", "-q", "-u", str(os.getuid()), str(path))
        if (left := _left(said.replace(str(path), "", 1))) >= 0:
            return left
    if shutil.which("quota"):
        device = _device(path)
        rows = [row.strip().split(None, 1) for row in _asked("quota", "-w").splitlines()]
        return next((_left(f" {row[1]}") for row in rows if len(row) > 1 and row[0] == device), -1)
    return -1


def _left(row: str) -> int:
    """Read a row of numbers; the hard limit counts, the soft one where there is no hard one."""
    found = NUMBERS.search(row)
    if found is None:
        return -1
    used, soft, hard = map(int, found.groups())
    limit = hard or soft
    return max(0, limit - used) << 10 if limit else -1


def _device(path: Path) -> str:
    """Give the device, or the server's directory, that a path's file system is mounted from."""
    try:
        mounts = [line.split() for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return ""
    resolved = path.resolve()
    over = [(len(where), what) for what, where, *_ in mounts if resolved.is_relative_to(where)]
    return max(over, default=(0, ""))[1]


def _asked(*command: str) -> str:
    """Run a command; its exit status says only whether some limit is passed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
