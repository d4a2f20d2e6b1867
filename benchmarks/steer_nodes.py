"""What hpcmagic takes of the processor in a simulation on four nodes, watched and not.

Claim
    Being watched ten times a second takes at most 1 % of a step, of the rank that it costs most.
Work
    A SLURM job over four nodes, one MPI world of four. A step is some sweeps over an array, then 10 ms of sleep; one
    parameter, ten numbers published, a field of 512 × 512 cut over the ranks. In every other block nobody is
    connected to the simulation; in the others a notebook fetches curves and pictures ten times a second.
Measured
    The processor's time of each rank, by thread: of the main one in the step boundary with its parameter, in
    `publish` and in `field`; of hpcmagic's other threads; of all others, which are Jupyter's and MPI's. Means of a
    step, in each block without its first quarter, in which the watcher comes or goes. A rank that waits for rank 0
    looks for its word again and again: that counts as the boundary's. "Busiest" is the rank with the greatest median.
    Of the claim, the differences of neighbouring blocks, hpcmagic's calls and threads together.
    The four nodes and the watcher share this machine's cores, so that ranks wait for each other more than elsewhere.
Run
    Where sbatch works, in a home that the nodes share; start_slurm.py says how on the tests' own SLURM.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import measure
import sides

import hpcmagic

BLOCK_S = 2.0
HZ = 10.0
LIMIT_PERCENT = 1.0
SIMULATION = """
import contextlib, os, threading, time
import numpy as np
from hpcmagic import steer

field = np.random.default_rng(rank).random((128, 512))
work = np.random.default_rng(0).random(20_000)
clocks = {}  # by thread: whether it is hpcmagic's, ns of the processor; one that has ended stays

def threads():
    ours = {thread.native_id for thread in threading.enumerate() if thread.name.startswith("hpcmagic")}
    for number in set(map(int, os.listdir("/proc/self/task"))) - {threading.get_native_id()}:
        with contextlib.suppress(OSError):  # it has ended just now
            clock = ~number << 3 | 6  # as pthread_getcpuclockid gives it, but safe for a thread that has ended
            clocks[number] = number in ours, time.clock_gettime_ns(clock)
    return [sum(ns for own, ns in clocks.values() if own == which) for which in (True, False)]

live, steps, looks = steer.live(comm), [], []
of = iter(live.steps(10**9))
while True:
    began = time.perf_counter_ns()
    at = [time.thread_time_ns()]
    step = next(of, None)
    if step is None:
        break
    block = live.param("block", -1)
    at.append(time.thread_time_ns())
    for _ in range(20):
        np.sqrt(work * 1.0001, out=work)
    time.sleep(0.01)
    field[step % 128] = step
    numbers = {f"n{i}": float(step + i) for i in range(10)}
    at.append(time.thread_time_ns())
    live.publish(**numbers)
    at.append(time.thread_time_ns())
    live.field("T", field, box=((128 * rank, 128 * rank + 128), (0, 512)))
    at.append(time.thread_time_ns())
    if step % 10 == 0:
        looks.append((len(steps), *threads()))
    steps.append((block, at[1] - at[0], at[3] - at[2], at[4] - at[3], time.perf_counter_ns() - began))
steps, looks
"""
PARTS = "step boundary", "publish", "field", "hpcmagic's other threads", "all other threads"  # and the whole step
OURS = slice(0, 4)  # of the parts: what hpcmagic does


def pictures(session: Any) -> int:
    """Watch for a block as the panel does; give how many pictures came."""
    mirror, until, frames = session.steer.mirror(), time.monotonic() + BLOCK_S, set[int]()
    mirror.watchers.append(lambda: frames.update(picture.frame for picture in mirror.pictures.values()))
    while time.monotonic() < until:
        mirror.want("T", 512, HZ)
        mirror.wait(lambda: False, 0.2)
    return len(frames)


def simulated(session: Any, pairs: int) -> tuple[list[Any], int]:
    """Let it run, unwatched and watched in turn; give what each rank has measured, and how many pictures came."""
    cell, came = session.run(SIMULATION, block=False), 0
    for block in range(2 * pairs + 2):
        measure.progress(f"block {block} of {2 * pairs + 2}")
        session.steer.set(block=block)
        if block % 2:
            came += pictures(session) * (block > 1)  # the first pair warms up
        else:
            session.steer.close()
            time.sleep(BLOCK_S)
    session.steer.stop()
    return list(cell.result(timeout=60)), came


def steady(steps: Sequence[Sequence[int]], looks: Sequence[Sequence[int]], block: int) -> list[float]:
    """Give the parts of a rank's mean step in ms, in one block without its first quarter."""
    own = [number for number, step in enumerate(steps) if step[0] == block]
    own = own[len(own) // 4 :]
    boundary, publish, field, clock = (statistics.fmean(steps[n][part] for n in own) for part in range(1, 5))
    first, *_, last = [look for look in looks if own[0] <= look[0] <= own[-1]]
    threads = [(last[which] - first[which]) / (last[0] - first[0]) for which in (1, 2)]
    return [ns / 1e6 for ns in (boundary, publish, field, *threads, clock)]


def main() -> None:
    pairs = measure.arguments(__doc__, runs=20).runs
    if not measure.slurm_answers():
        sys.exit("No SLURM answers here; see the end of this script's --help.")
    report = measure.Report("steer_nodes", __doc__)
    with sides.scratch() as place:
        options = {"launcher": "slurm", "nodes": 4, "time": sides.WALLTIME_MIN, "session_dir": str(place / "nodes")}
        with contextlib.redirect_stdout(io.StringIO()):
            session = hpcmagic.start("nodes", **options)
        with session:
            session.run(f"import os; os.chdir({str(place)!r})")
            ranks, came = simulated(session, pairs)
    blocks = range(2, 2 * pairs + 2)  # the first pair warms up
    told = [[steady(*rank, block) for block in blocks] for rank in ranks]
    unwatched, watched = ([own[side::2] for own in told] for side in (0, 1))
    for number, part in enumerate(PARTS):
        row(report, part, *([[mean[number] for mean in own] for own in side] for side in (unwatched, watched)))
    for side, own in (("unwatched", unwatched), ("watched", watched)):
        report.row("a step by the clock", side, "ms", [mean[-1] for mean in own[0]])
    in_all = [[[sum(mean[OURS]) for mean in own] for own in side] for side in (unwatched, watched)]
    row(report, "hpcmagic in all", *in_all)
    cost = [
        [100 * (sum(b[OURS]) - sum(a[OURS])) / a[-1] for a, b in zip(*own, strict=True)]
        for own in zip(unwatched, watched, strict=True)
    ]
    report.row("being watched, of a step, rank 0", "difference", "%", cost[0])
    report.row("being watched, of a step, busiest other", "difference", "%", busiest(cost[1:]))
    report.notes.append(f"{came / (pairs * BLOCK_S):.1f} pictures a second came.")
    report.claim(
        f"watched at {HZ:g} Hz, of the processor of the rank that it costs most, four nodes",
        statistics.median(busiest(cost)),
        LIMIT_PERCENT,
        "% of a step",
    )
    report.finish()


def row(report: measure.Report, part: str, *by_side: Sequence[Sequence[float]]) -> None:
    """Report a part of a step, of rank 0 and of the busiest of the others."""
    for side, ranks in zip(("unwatched", "watched"), by_side, strict=True):
        report.row(f"{part}, rank 0", side, "ms", ranks[0])
    for side, ranks in zip(("unwatched", "watched"), by_side, strict=True):
        report.row(f"{part}, busiest other", side, "ms", busiest(ranks[1:]))


def busiest(ranks: Sequence[Sequence[float]]) -> Sequence[float]:
    """Give the figures of the rank that has most."""
    return max(ranks, key=statistics.median)


if __name__ == "__main__":
    main()
