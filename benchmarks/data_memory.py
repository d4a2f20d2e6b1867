"""Memory that a scatter and a gather take beyond the data: 512 MB, and a little more than 4 GiB.

Claim
    At its peak the kernel takes at most 64 MB beyond the array that it gathers, an engine at most 64 MB beyond its
    shard, for both sizes alike; after 20 rounds of 512 MB the kernel is at most 16 MB larger than after the first.
Work
    hpcmagic with four ranks, once by the network and once by shared memory: float64, scattered and gathered; for
    512 MB twenty rounds of it, what was gathered dropped. ipyparallel: 512 MB, three rounds, used as it comes.
Measured
    The kernel's own mark of the most a process was resident (VmHWM, set back through clear_refs before), less what
    it was resident before, less the size of the shard or array that it got. Resident: VmRSS after a round. Pages of
    shared memory count in full on both ends of it; their most is a row of its own, seen by looking every 5 ms.
    The first transfer of a session is the one that is watched: what it loads, and what channels hold from then on,
    counts; numpy is loaded before. Each part in a process of its own.
"""

from __future__ import annotations

import contextlib
import re
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import journal_memory
import measure
import rivals
import sides

SMALL_MB, LARGE_MB = 512.0, 4300.0  # 4300 MB: more than 4 GiB, so that no 32-bit count hides
ROUNDS, STOCK_ROUNDS = 20, 3
LOOK_S = 0.005
PEAK_LIMIT_MB, KEPT_LIMIT_MB = 64.0, 16.0


def status_mb(pid: int | str, field: str) -> float:
    """Give a field of a process's status, in MB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1.024e-3 if found else 0.0


class Peaks:
    """How far processes rose above what they were resident before; filled when `watched` ends."""

    def __init__(self, kernel: str, engines: list[int]) -> None:
        self.pids: tuple[int | str, ...] = (kernel, *engines)
        self.extra_mb: list[float] = []
        self.shared_mb = [0.0] * len(self.pids)

    def as_figures(self, what: str, *, kernel_got_mb: float, engine_got_mb: float) -> dict[str, float]:
        """Give the figures: the kernel's, and the largest engine's."""
        return {
            f"{what}: kernel's peak": self.extra_mb[0] - kernel_got_mb,
            f"{what}: engine's peak": max(self.extra_mb[1:]) - engine_got_mb,
            f"{what}: kernel's shared memory": self.shared_mb[0],
            f"{what}: engine's shared memory": max(self.shared_mb[1:]),
        }


@contextlib.contextmanager
def watched(side: Any) -> Iterator[Peaks]:
    """Watch the memory of this process and of the side's engines."""
    peaks, over = Peaks("self", side.engines()), threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            peaks.shared_mb = [
                max(most, status_mb(pid, "RssShmem")) for most, pid in zip(peaks.shared_mb, peaks.pids, strict=True)
            ]

    for pid in peaks.pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = [status_mb(pid, "VmRSS") for pid in peaks.pids]
    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield peaks
    finally:
        over.set()
        looking.join()
        peaks.extra_mb = [status_mb(pid, "VmHWM") - mb for pid, mb in zip(peaks.pids, before, strict=True)]


def figures(side: Any, megabytes: float, rounds: int, *, forget: bool) -> dict[str, float]:
    """Scatter and gather once under watch; then again and again, to see what stays."""
    side.start()
    try:
        side.ask("__import__('numpy').__version__")
        array = rivals.numbers(megabytes)
        before, shard_mb = zlib.crc32(array), megabytes / sides.RANKS
        with watched(side) as peaks:
            side.scatter(array)
        found = peaks.as_figures("scatter", kernel_got_mb=0.0, engine_got_mb=shard_mb)
        if rounds == 1:
            del array  # room for the large one
        with watched(side) as peaks:
            whole = side.gather()
        found |= peaks.as_figures("gather", kernel_got_mb=megabytes, engine_got_mb=0.0)
        if zlib.crc32(whole) != before:
            raise ValueError("What was gathered is not what was scattered.")
        del whole
        first_mb = status_mb("self", "VmRSS")
        for number in range(2, rounds + 1):
            measure.progress(f"round {number} of {rounds}")
            if forget:
                side.drop()
            side.scatter(array)
            side.gather()
        if rounds > 1:
            found[f"kernel after {rounds} rounds, beyond after the first"] = status_mb("self", "VmRSS") - first_mb
        return found
    finally:
        side.stop()


def main() -> None:
    measure.arguments(__doc__, runs=1)
    report = measure.Report("data_memory", __doc__)
    paths = {"hpcmagic, network": rivals.network_only, "hpcmagic, shared memory": rivals.shared_memory}
    with sides.scratch():
        for name, path in paths.items():
            for megabytes, rounds in ((SMALL_MB, ROUNDS), (LARGE_MB, 1)):
                measure.progress(f"{name}: {megabytes:g} MB")
                ours = rivals.HpcMagic(path, opened=False)
                found = journal_memory.in_child(lambda s=ours, m=megabytes, r=rounds: figures(s, m, r, forget=True))
                for what, mb in found.items():
                    report.row(f"{megabytes:g} MB, {what}", name, "MB", [mb])
                    if "shared memory" not in what:
                        limit = KEPT_LIMIT_MB if "rounds" in what else PEAK_LIMIT_MB
                        report.claim(f"{name}, {megabytes:g} MB, {what}", mb, limit, "MB")
        measure.progress(f"ipyparallel: {SMALL_MB:g} MB")
        stock = rivals.IpyParallel(curve=False)
        found = journal_memory.in_child(lambda: figures(stock, SMALL_MB, STOCK_ROUNDS, forget=False))
        for what, mb in found.items():
            report.row(f"{SMALL_MB:g} MB, {what}", "ipyparallel", "MB", [mb])
        measure.progress("")
    report.finish()


if __name__ == "__main__":
    main()
