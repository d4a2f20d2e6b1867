"""What it costs a simulation to be watched, ten times a second.

Claim
    Less than 1 % of the step, with steps of 1, 10 and 100 ms.
Work
    Two ranks. A step is as many sweeps over an array as take that long on this machine, one parameter, two numbers
    published, and a field of 1024 × 1024 over both ranks. In every other block nobody is connected to the simulation;
    in the others a notebook fetches curves and pictures of 512 × 512 ten times a second, as the panel does.
Measured
    The mean step of each block, without its first quarter, in which the watcher comes or goes: by the clock on rank
    0, and the processor's time that a step takes of the two ranks together, all of their threads. 30 pairs of
    neighbouring blocks; of their differences, in % of the unwatched step, the mean and its 95 % interval (Student).
    The two ranks and the watcher share this machine's cores. By the clock, two cores have the watcher's own work to
    do as well, which in a job is another machine's; the processor's time is the ranks' alone.
"""

from __future__ import annotations

import statistics
import time

import measure
import sides

import hpcmagic

STEPS_MS = 1.0, 10.0, 100.0
BLOCK_S = 2.0
LIMIT_PERCENT = 1.0
HZ = 10.0
STUDENT_95 = {1: 12.7, 2: 4.30, 3: 3.18, 4: 2.78, 9: 2.26, 19: 2.09, 29: 2.05}
SIMULATION = """
import time
import numpy as np
from hpcmagic import steer

field = np.random.default_rng(rank).random((512, 1024))
work = np.random.default_rng(0).random(20_000)
def sweep(times):
    for _ in range(times):
        np.sqrt(work * 1.0001, out=work)
began = time.perf_counter()
sweep(2000)
times = comm.bcast(max(1, round({step_s} / ((time.perf_counter() - began) / 2000))))
live, blocks, before = steer.live(comm), {{}}, (time.perf_counter(), time.process_time())
for step in live.steps(10**9):
    block = live.param("block", -1)
    sweep(times)
    field[step % 512] = step
    live.publish(step=step, work=float(work[0]))
    live.field("T", field, box=((512 * rank, 512 * rank + 512), (0, 1024)))
    now = time.perf_counter(), time.process_time()
    blocks.setdefault(block, []).append((now[0] - before[0], now[1] - before[1]))
    before = now
blocks
"""


def watched(session, seconds: float) -> None:
    """Watch as the panel does."""
    until = time.monotonic() + seconds
    mirror = session.steer.mirror()
    while time.monotonic() < until:
        mirror.want("T", 512, HZ)
        mirror.wait(lambda: False, 0.5)


Pair = tuple[float, float]  # without and with a watcher


def blocks(step_ms: float, pairs: int, place) -> tuple[list[Pair], list[Pair]]:
    """Give the mean steps in ms of pairs of blocks: by the clock on rank 0, and the processor's on both."""
    options = {"launcher": "local", "session_dir": str(place / f"{step_ms:g}")}
    with hpcmagic.start("cost", nodes=2, **options) as session:
        session.run(f"import os; os.chdir({str(place)!r})")
        cell = session.run(SIMULATION.format(step_s=step_ms / 1e3), block=False)
        for pair in range(pairs + 1):
            for which in (0, 1) if pair % 2 else (1, 0):
                measure.progress(f"steps of {step_ms:g} ms: pair {pair} of {pairs}")
                session.steer.set(block=2 * pair + which)
                if which:
                    watched(session, BLOCK_S)
                else:
                    session.steer.close()
                    time.sleep(BLOCK_S)
        session.steer.stop()
        ranks = cell.result(timeout=60)
    clock = [steady(ranks[0], block, 0) for block in range(2 * pairs + 2)]
    processor = [sum(steady(rank, block, 1) for rank in ranks) for block in range(2 * pairs + 2)]
    own = range(2, 2 * pairs + 2, 2)  # the first pair warms up
    return [(clock[at], clock[at + 1]) for at in own], [(processor[at], processor[at + 1]) for at in own]


def steady(times, block: int, which: int) -> float:
    """Give the mean step of a block in ms, without its first quarter."""
    steps = times[block]
    return 1e3 * statistics.fmean(step[which] for step in steps[len(steps) // 4 :])


def main() -> None:
    pairs = measure.arguments(__doc__, runs=30).runs
    report = measure.Report("steer_cost", __doc__)
    with sides.scratch() as place:
        for step_ms in STEPS_MS:
            for kind, figures in zip(
                ("by the clock", "of the processor"), blocks(step_ms, pairs, place), strict=True
            ):
                add(report, f"{step_ms:g} ms {kind}", figures)
    report.finish()


def add(report: measure.Report, step: str, figures: list[Pair]) -> None:
    """Report steps without and with a watcher, and the difference with its 95 % interval."""
    for number, side in enumerate(("unwatched", "watched")):
        report.row(f"a step of {step}", side, "ms", [pair[number] for pair in figures])
    cost = [100 * (with_it - without) / without for without, with_it in figures]
    mean, runs = statistics.fmean(cost), len(cost)
    student = STUDENT_95[max(n for n in STUDENT_95 if n <= max(1, runs - 1))]
    half = student * statistics.stdev(cost) / runs**0.5 if runs > 1 else float("inf")
    report.row(f"cost of a step of {step}", "difference", "%", cost)
    report.notes.append(f"A step of {step}: {mean:+.2f} %, 95 % interval {mean - half:+.2f} to {mean + half:+.2f} %.")
    report.claim(
        f"watched at {HZ:g} Hz, a step of {step}: end of the interval", mean + half, LIMIT_PERCENT, "% of a step"
    )


if __name__ == "__main__":
    main()
