"""A local cell that has outgrown this machine: one quiet line below it says which `%%remote` line would fit.

pre_run_cell ─► begin: a few numbers noted ─► a thread, asleep but for long cells: children, memory, once a second
post_run_cell ─► over ─┬─ short and small, remote, failed, nobody there   ─► nothing
                       └─ long, or memory nearly full ─► Use ─► the site's nodes ─► one line, once a notebook

What it costs a cell that is neither: some microseconds.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmagic.errors import HpcMagicError, ProfileError
from hpcmagic.launch.offers import OFFERS, NodeKind, Offers
from hpcmagic.notebook import frontend, machine, output
from hpcmagic.profiles import Resources, resolve, user_file
from hpcmagic.wire.pending import Pending

if TYPE_CHECKING:
    from hpcmagic.notebook.magics import HpcMagics

SHORT_S = 3.0  # nobody looks at a cell before
EACH_S = 1.0
BUSY = 0.5  # cores: a cell that keeps fewer busy waits for something, and waits as long elsewhere
MANY = 1.5  # cores: from here on it is said to use several
ALL = 0.85  # of the cores here: it would have used more of them
GROWTH = 0.1  # of the memory here: a cell that adds less has not filled it
OTHERS = 0.2  # of the memory here: if others hold so much, it is said
HEADROOM = 2.0  # memory and time are asked for so much more than the cell took …
LEAST_S, LEAST_GB = 900, 2  # … and at least this
GB = 1 << 30


@dataclass
class _Begun:
    """What is noted of a cell while it runs; processor times of children by pid, at first and at last."""

    info: Any
    began_s: float
    booted_s: float
    resident: int
    highest: int  # the process's own high-water mark
    times: os.times_result
    queued_s: float
    requests: int
    peak: int = 0
    used: int = 0
    children: dict[int, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Use:
    """What a cell used of this machine.

    Attributes
    ----------
    cores
        Kept busy, on average, or waited for while others had them; `cores_here` there are.
    peak_nbytes
        Of this notebook with all that it has started; `used_nbytes` by whomever.
    full
        Whether it is its memory for which there is hardly room here.
    """

    took_s: float
    cores: float
    cores_here: float
    peak_nbytes: int
    used_nbytes: int
    room: machine.Room
    full: bool

    @property
    def all_cores(self) -> bool:
        """Whether it kept busy what cores there are."""
        return self.cores >= ALL * self.cores_here


class Watch:
    """Watches the local cells of one notebook; says its line once."""

    def __init__(
        self, magics: HpcMagics, clock: Callable[[], float] = time.monotonic, offers: Offers = OFFERS
    ) -> None:
        self.magics = magics
        self.said = False
        self._clock = clock
        self._offers = offers
        self._cell: _Begun | None = None
        self._room: machine.Room | None = None
        self._woken, self._closed = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, info: Any) -> None:
        """Note how things stand before a cell (IPython's pre_run_cell)."""
        if self.said or not self.magics.hint or not info.store_history or frontend.unattended():
            return
        if threading.current_thread() is not threading.main_thread():  # a subshell's cell runs beside another
            return
        self._cell = _Begun(
            info, self._clock(), time.clock_gettime(time.CLOCK_BOOTTIME), machine.resident_nbytes(), _highest(),
            os.times(), machine.queued_s(), Pending.made,
        )  # fmt: skip
        if not self._woken.is_set():
            self._woken.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._look_at_long_cells, name="hpcmagic-hint", daemon=True)
            self._thread.start()

    def over(self, result: Any) -> None:
        """Say the line below a cell, if it is time for it (IPython's post_run_cell)."""
        cell = self._cell
        if cell is None or (result is not None and result.info is not cell.info):  # one that a cell has run
            return
        self._cell = None
        if result is None or not result.success or Pending.made != cell.requests:
            return
        took_s = self._clock() - cell.began_s
        if took_s < self.magics.hint_after_s and self._grown(cell) < GROWTH * self._size().nbytes:
            return
        use = self._use(cell, took_s)
        if use.full or (took_s >= self.magics.hint_after_s and use.cores >= BUSY):
            self._tell(use)

    def look(self) -> None:
        """Note what the running cell and what it has started use just now."""
        if (cell := self._cell) is not None:
            self._look_at(cell)

    def _look_at(self, cell: _Begun) -> None:
        own, below = machine.resident_nbytes(), machine.started()
        cell.used = max(cell.used, used := self._size().used_nbytes())
        all_of_them = own + sum(map(machine.resident_nbytes, below))  # what forks share is counted twice …
        cell.peak = max(cell.peak, own, min(all_of_them, used))  # … but nobody uses more than is in use
        for pid in below:
            busy_s, began_s = machine.cpu_of(pid)
            first, last = cell.children.get(pid, (0.0 if began_s >= cell.booted_s else busy_s, 0.0))
            cell.children[pid] = first, max(last, busy_s)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def _look_at_long_cells(self) -> None:
        while not self._closed.is_set():
            self._woken.wait()
            self._woken.clear()
            if self._closed.wait(SHORT_S):
                return
            while (cell := self._cell) is not None and not self._closed.is_set():
                if self._clock() - cell.began_s >= SHORT_S:
                    self._look_at(cell)
                self._closed.wait(EACH_S)

    def _size(self) -> machine.Room:
        if self._room is None:
            self._room = machine.room()
        return self._room

    def _grown(self, cell: _Begun) -> int:
        """Give by how much the memory has grown since the cell began, at its peak."""
        highest = _highest()
        peak = highest if highest > cell.highest else machine.resident_nbytes()
        return max(peak, cell.peak) - cell.resident

    def _use(self, cell: _Begun, took_s: float) -> Use:
        now, before = os.times(), cell.times
        self._room = None  # a limit may have been changed since
        self._look_at(cell)
        alive = set(machine.started())
        busy_s = sum(now[:4]) - sum(before[:4])  # own, and of children that have ended …
        busy_s += sum(last - first for pid, (first, last) in list(cell.children.items()) if pid in alive)  # … or not
        busy_s += machine.queued_s() - cell.queued_s  # on a machine that many use it would have been busy
        size, grown = self._size(), self._grown(cell)
        peak = cell.resident + grown
        used = max(cell.used, peak)
        full = grown >= GROWTH * size.nbytes and used >= self.magics.hint_memory * size.nbytes > 0
        return Use(took_s, busy_s / max(took_s, 0.1), machine.cores(), peak, used, size, full)

    def _tell(self, use: Use) -> None:
        held = self.magics.held.values()
        if is_off() or any(not session.ended for session in held):
            return  # who has a session at hand knows the way
        if shutil.which("sbatch") is None:
            return
        try:
            line = fitting_line(use, self._offers.node_kinds(), resolve({}))
        except HpcMagicError:  # of a profile: it is told when somebody asks for it
            return
        if line:
            self.said = True
            output.quiet(line)


def fitting_line(use: Use, kinds: Sequence[NodeKind], resources: Resources) -> str:
    """Say what a cell used, and the line that fits it; nothing where no node of the site would do."""
    usual = resources.partition or next((kind.partition for kind in kinds if kind.default), "")
    cpus, mem_gb, time_s = _cpus(use), _mem_gb(use), _time_s(use)
    able = [
        kind for kind in kinds
        if kind.up and kind.mem_nbytes >= 1.1 * use.peak_nbytes and (use.full or kind.cpus >= math.floor(use.cores))
        and (kind.limit_s is None or kind.limit_s >= 1.2 * use.took_s)
    ]  # fmt: skip
    if not able:
        return ""
    kind = min(able, key=lambda k: (k.partition != usual, k.cpus < cpus or k.mem_nbytes < mem_gb * GB, k.cpus))
    mem = f"{mem_gb}G" if kind.mem_nbytes >= mem_gb * GB else f"{kind.mem_nbytes >> 20}M"
    time_s = min(time_s, int(kind.limit_s or time_s))
    beside = use.cores < MANY and not use.full  # one core is no faster there
    words = [
        "%%remote", "-a" if beside else "", "--nodes 1",
        "" if resources.ntasks_per_node == 1 else "--ntasks-per-node 1",
        f"--cpus-per-task {min(cpus, kind.cpus)}", f"--mem {mem}",
        f"--time {time_s // 3600}:{time_s // 60 % 60:02}:{time_s % 60:02}",
        "" if kind.partition == usual else f"--partition {kind.partition}",
        "--launcher slurm" if resources.launcher == "local" else "",
    ]  # fmt: skip
    there = "On the cluster, while you work on here" if beside else "On the cluster"
    return f"{_in_words(use)} {there}: {' '.join(filter(None, words))} · never again: %hpc hint off"


def _in_words(use: Use) -> str:
    took_s = use.took_s if use.took_s < 120 else round(use.took_s / 60) * 60
    many = f"{round(use.cores)} of {use.cores_here:g} cores"
    many = f"all {use.cores_here:g} cores" if use.all_cores else many
    on = "" if use.cores < BUSY else " on one core" if use.cores < MANY else f" on {many}"
    size = _in_gb(use.room.nbytes)
    of = f"this machine's {size}" if use.room.group is None else f"the {size} that you may use here"
    others = use.full and use.used_nbytes - use.peak_nbytes > OTHERS * use.room.nbytes
    in_use = f", {_in_gb(use.used_nbytes)} of which are in use" if others else ""
    return f"This cell took {output.clock(round(took_s))}{on} and {_in_gb(use.peak_nbytes)} of {of}{in_use}."


def _in_gb(nbytes: int) -> str:
    """Write memory as SLURM counts it: in powers of two."""
    if nbytes < GB:
        return f"{nbytes >> 20} MB"
    return f"{nbytes / GB:.0f} GB" if nbytes >= 9.95 * GB else f"{nbytes / GB:.1f} GB"


def _cpus(use: Use) -> int:
    """Give one core for one; else a power of two, and the next where it used all that there were."""
    if use.cores < MANY:
        return 1
    used = math.ceil(use.cores - 0.25)
    return 1 << (used.bit_length() if use.all_cores else (used - 1).bit_length())


def _mem_gb(use: Use) -> int:
    """Give memory with room to spare, in one of the sizes that people use."""
    wanted = max(LEAST_GB, use.peak_nbytes * HEADROOM / GB)
    power = 1 << math.ceil(math.log2(wanted))
    return power * 3 // 4 if wanted <= power * 0.75 else power


def _time_s(use: Use) -> int:
    """Give time with room to spare, in quarters of an hour, or hours from two on."""
    wanted = max(LEAST_S, use.took_s * HEADROOM)
    step = 900 if wanted <= 7200 else 3600
    return math.ceil(wanted / step) * step


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def off_file() -> Path:
    """Give the file that keeps the hint silent, in every notebook."""
    return user_file().with_name("hint-off")


def is_off() -> bool:
    """Whether the user wants no hint any more."""
    return off_file().exists()


def set_off(*, off: bool) -> None:
    """Silence the hint for good, or have it come again.

    Raises
    ------
    ProfileError
        The file cannot be written, or removed.
    """
    path = off_file()
    try:
        if off:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text("No hint after long cells. `%hpc hint on` brings it back.\n")
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ProfileError(
            f"Cannot change {path}: {error.strerror}.",
            f"For this notebook alone: `%config HpcMagics.hint = {not off}`.",
        ) from error
