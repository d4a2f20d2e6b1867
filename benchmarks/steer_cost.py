"""What it costs a simulation to be watched, ten times a second.

Claim
    Less than 1 % of the step, with steps of 1, 10 and 100 ms.
Work
    Two ranks. A step is as many sweeps over an array as take that long on this machine, one parameter, two numbers
    published, and a field of 1024 × 1024 over both ranks. In every other block nobody is connected to the simulation;
    in the others a notebook fetches curves and pictures of 512 × 512 ten times a second, as the panel does.
Measured
    The mean step of each block on rank 0, without its first quarter, in which the watcher comes or goes. 30 pairs of
    neighbouring blocks; of their differences, in % of the unwatched step, the mean and its 95 % interval (Student).
    The two ranks and the watcher share this machine's cores: on two cores the watcher's own work counts as well.
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
live, blocks, before = steer.live(comm), {{}}, time.perf_counter()
for step in live.steps(10**9):
    block = live.param("block", -1)
    sweep(times)
    field[step % 512] = step
    live.publish(step=step, work=float(work[0]))
    live.field("T", field, box=((512 * rank, 512 * rank + 512), (0, 1024)))
    now = time.perf_counter()
    blocks.setdefault(block, []).append(now - before)
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


def blocks(step_ms: float, pairs: int, place) -> list[tuple[float, float]]:
    """Give the mean steps in ms of pairs of blocks, without and with a watcher."""
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
        times = cell.result(timeout=60)[0]
    means = {block: 1e3 * statistics.fmean(own[len(own) // 4 :]) for block, own in times.items()}
    return [(means[2 * pair], means[2 * pair + 1]) for pair in range(1, pairs + 1)]  # the first warms up


def main() -> None:
    pairs = measure.arguments(__doc__, runs=30).runs
    report = measure.Report("steer_cost", __doc__)
    with sides.scratch() as place:
        for step_ms in STEPS_MS:
            figures = blocks(step_ms, pairs, place)
            for number, side in enumerate(("unwatched", "watched")):
                report.row(f"a step of {step_ms:g} ms", side, "ms", [pair[number] for pair in figures])
            cost = [100 * (with_it - without) / without for without, with_it in figures]
            mean = statistics.fmean(cost)
            student = STUDENT_95[max(n for n in STUDENT_95 if n <= max(1, pairs - 1))]
            half = student * statistics.stdev(cost) / len(cost) ** 0.5 if len(cost) > 1 else float("inf")
            report.row(f"cost of {step_ms:g} ms", "difference", "%", cost)
            report.notes.append(
                f"Steps of {step_ms:g} ms: {mean:+.2f} %, 95 % interval {mean - half:+.2f} to {mean + half:+.2f} %."
            )
            report.claim(f"watched at {HZ:g} Hz, steps of {step_ms:g} ms", mean, LIMIT_PERCENT, "% of a step")
    report.finish()


if __name__ == "__main__":
    main()
