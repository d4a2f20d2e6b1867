"""What a notebook may use of its machine, and what it and all that it has started do use.

Told by /proc and by control groups, in both of their versions. The strictest limit on the way from the process's own
group to the root is the one that applies; in a container the path that /proc tells may lead nowhere, and the root is
the container's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Room:
    """How much memory there is.

    Attributes
    ----------
    group
        The control group that sets the limit; None = there is none below what the machine has.
    """

    nbytes: int
    group: Path | None = None

    def used_nbytes(self, proc: Path = PROC) -> int:
        """Give what is in use of it, by whomever; what is only cached files does not count."""
        if self.group is None:
            told = _table(proc / "meminfo")
            return (told.get("MemTotal:", 0) - told.get("MemAvailable:", 0)) * 1024
        used = _number(self.group / "memory.current") or _number(self.group / "memory.usage_in_bytes")
        told = _table(self.group / "memory.stat")
        return max(0, used - told.get("total_inactive_file", told.get("inactive_file", 0)))


def room(proc: Path = PROC, groups: Path = GROUPS) -> Room:
    """Give the memory that this process may use: the machine's, or what a control group allows of it."""
    found = Room(_table(proc / "meminfo").get("MemTotal:", 0) * 1024)
    for group in _groups("memory", proc, groups):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if 0 < limit < found.nbytes:
            found = Room(limit, group)
    return found


def cores(proc: Path = PROC, groups: Path = GROUPS) -> float:
    """Give how many cores this process may keep busy."""
    most = float(len(os.sched_getaffinity(0)))
    for group in _groups("cpu", proc, groups):
        quota, _, period = _text(group / "cpu.max").strip().partition(" ")
        quota, period = quota or _text(group / "cpu.cfs_quota_us"), period or _text(group / "cpu.cfs_period_us")
        with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", or no limit here
            allowed = int(quota) / int(period)
            most = min(most, allowed) if allowed > 0 else most
    return most


def _groups(controller: str, proc: Path, groups: Path) -> Iterator[Path]:
    """Give this process's control groups, each from its own up to the root."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        unified = groups / "unified"
        top = groups / controller if controllers else unified if unified.is_dir() else groups
        own = top if ".." in path else top / path.strip("/")
        yield from (group for group in (own, *own.parents) if group == top or top in group.parents)


def resident_nbytes(pid: int | str = "self", proc: Path = PROC) -> int:
    """Give the resident memory of a process; 0 if it is gone."""
    with contextlib.suppress(ValueError, IndexError):
        return int(_text(f"{proc}/{pid}/statm").split()[1]) * PAGE_NBYTES
    return 0


def started(pid: int | str = "self", proc: Path = PROC) -> list[int]:
    """Give the processes that a process has started, and those that they have."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in (proc / str(pid) / "task").iterdir():
            found += map(int, _text(thread / "children").split())
    return found + [below for child in found for below in started(child, proc)]


def cpu_of(pid: int, proc: Path = PROC) -> tuple[float, float]:
    """Give a process's own processor time so far, and when it began, in seconds since boot."""
    with contextlib.suppress(ValueError, IndexError):
        behind_name = _text(proc / str(pid) / "stat").rpartition(")")[2].split()
        return (int(behind_name[11]) + int(behind_name[12])) * TICK_S, int(behind_name[19]) * TICK_S
    return 0.0, 0.0


def queued_s(proc: Path = PROC) -> float:
    """Give how long this process's main thread has waited for a core so far: others had them all."""
    with contextlib.suppress(ValueError, IndexError):  # not every system counts that
        return int(_text(f"{proc}/self/schedstat").split()[1]) / 1e9
    return 0.0


def _text(path: Path | str) -> str:
    """Read a short file at once: a third of what Python's own files take."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(file, 1 << 16).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(file)


def _number(path: Path) -> int:
    """Read a number; 0 where there is none, or no limit."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _table(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}
