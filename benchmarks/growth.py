"""What each side pays as ranks become more: processor seconds and bytes for 4, 8, 16 and 32 ranks.

Claim
    None: the slopes are stated.
Work
    hpcmagic alone, sessions of 4, 8, 16 and 32 local ranks without MPI, by the network: scatter and gather of
    256 MB, push of 16 MB to all. No wall time is given: all share one machine, where ranks beyond the
    cores only wait for each other.
Measured
    By side (kernel, keeper, all engines together), each operation alone. Processor time: the kernel's
    `process_time`; the scheduler's count of all threads (schedstat) of the others. Bytes: what TCP says (`ss`, of
    iproute2) that the open sockets of a side have sent and received, together. Slopes: least squares of the medians
    against the number of ranks.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import rivals
import sides

COUNTS = (4, 8, 16, 32)
CUT_MB, PUSH_MB = 256.0, 16.0
Figures = dict[tuple[str, str], float]  # by side and by what is counted


def cpu_ms(pid: int) -> float:
    """Give the processor time of all threads that a process has."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e6


def tcp_mb() -> dict[int, float]:
    """Give what each process's open sockets have sent and received so far, by process number."""
    said = subprocess.run(["ss", "-tinpHO"], capture_output=True, text=True, check=True).stdout
    found: dict[int, float] = {}
    for line in said.splitlines():
        moved = sum(int(count) for count in re.findall(r"\bbytes_(?:sent|received):(\d+)", line)) / 1e6
        for pid in {int(number) for number in re.findall(r"\bpid=(\d+)", line)}:
            found[pid] = found.get(pid, 0.0) + moved
    return found


def snapshot(processes: dict[str, list[int]]) -> Figures:
    """Give all counts so far, by side."""
    moved = tcp_mb()
    found: Figures = {}
    for side, pids in processes.items():
        found[side, "bytes, MB"] = sum(moved.get(pid, 0.0) for pid in pids)
        found[side, "CPU, ms"] = sum(cpu_ms(pid) for pid in pids)
    return found


def spent(processes: dict[str, list[int]], work: Callable[[], Any]) -> Figures:
    """Give what some work costs each side."""
    before = snapshot(processes)
    began_s = time.process_time()
    work()
    kernel_ms = 1e3 * (time.process_time() - began_s)
    after = snapshot(processes)
    return {key: after[key] - before[key] for key in after} | {("kernel", "CPU, ms"): kernel_ms}


def measured(ranks: int, runs: int) -> dict[str, list[Figures]]:
    """Give the figures of a session of so many ranks, by operation."""
    side = rivals.HpcMagic(rivals.network_only, ranks=ranks, mpi="none")
    side.start()
    try:
        keeper = side.session.keeper_state().keeper_pid
        processes = {
            "kernel": [os.getpid()],
            "keeper": [keeper],
            "engines": side.engines(),
        }
        array, value = rivals.numbers(CUT_MB), rivals.numbers(PUSH_MB)
        found: dict[str, list[Figures]] = {"scatter": [], "gather": [], "push": []}
        for number in range(runs + 1):
            measure.progress(f"{ranks} ranks: run {number} of {runs}")
            once = {
                "scatter": spent(processes, lambda: side.scatter(array)),
                "gather": spent(processes, side.gather),
                "push": spent(processes, lambda: side.push(value)),
            }
            side.drop()
            if number:
                for what, figures in once.items():
                    found[what].append(figures)
        return found
    finally:
        side.stop()


def main() -> None:
    runs = measure.arguments(__doc__, runs=3).runs
    report = measure.Report("growth", __doc__)
    with sides.scratch():
        by_count = {ranks: measured(ranks, runs) for ranks in COUNTS}
    measure.progress("")
    sizes = {"scatter": f"{CUT_MB:g} MB", "gather": f"{CUT_MB:g} MB", "push": f"{PUSH_MB:g} MB to all"}
    for what, size in sizes.items():
        for side, counted in by_count[COUNTS[0]][what][0]:
            name, unit = counted.split(", ")
            medians = []
            for ranks in COUNTS:
                figures = [once[side, counted] for once in by_count[ranks][what]]
                report.row(f"{what} {size}, {ranks} ranks: {name}", side, unit, figures)
                medians.append(statistics.median(figures))
            slope, base = np.polyfit(COUNTS, medians, 1)
            report.notes.append(f"{what} {size}: {side}, {name}: {base:.3g} {unit} and {slope:.3g} {unit} a rank")
    report.finish()


if __name__ == "__main__":
    main()
