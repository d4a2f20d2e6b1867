"""What hpcmagic itself takes of the processor in a simulation on four nodes, watched and not.

Work
    A SLURM job over four nodes, one MPI world. A step is a few sweeps over an array, then 10 ms of sleep;
    one parameter, ten numbers published, a field of 512 × 512 cut over the ranks. In every other block nobody is
    connected to the simulation; in the others a notebook fetches curves and pictures ten times a second.
Measured
    The processor's time of each rank, mean of a step in each block without its first quarter. "calls": of the main
    thread, from the end of a step to the begin of the next one, and in `publish` and `field`; a rank that waits for
    rank 0 there counts with what it looks. "threads": of all other threads of the rank. The slowest rank counts.
    The four nodes share this machine's cores; it runs where `sbatch` answers.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import time
from typing import Any

import measure
import sides

import hpcmagic

BLOCK_S = 2.0
HZ = 10.0
SIMULATION = """
import time
import numpy as np
from hpcmagic import steer

field = np.random.default_rng(rank).random((128, 512))
work = np.random.default_rng(0).random(20_000)
live, blocks = steer.live(comm), {}
steps = iter(live.steps(10**9))
while True:
    main, whole = time.thread_time(), time.process_time()
    step = next(steps, None)
    if step is None:
        break
    block = live.param("block", -1)
    calls = time.thread_time() - main
    for _ in range(20):
        np.sqrt(work * 1.0001, out=work)
    time.sleep(0.01)
    field[step % 128] = step
    before = time.thread_time()
    live.publish(**{f"n{i}": float(step + i) for i in range(10)})
    live.field("T", field, box=((128 * rank, 128 * rank + 128), (0, 512)))
    calls += time.thread_time() - before
    threads = (time.process_time() - whole) - (time.thread_time() - main)
    blocks.setdefault(block, []).append((calls, threads))
blocks
"""


def blocks(session: Any, pairs: int) -> list[dict[int, list[tuple[float, float]]]]:
    """Let the simulation run, watched and not in turn; give what each rank has measured, by block."""
    cell = session.run(SIMULATION, block=False)
    for block in range(2 * pairs + 2):
        measure.progress(f"block {block} of {2 * pairs + 2}")
        session.steer.set(block=block)
        if block % 2:
            mirror, until = session.steer.mirror(), time.monotonic() + BLOCK_S
            while time.monotonic() < until:
                mirror.want("T", 512, HZ)
                mirror.wait(lambda: False, 0.5)
        else:
            session.steer.close()
            time.sleep(BLOCK_S)
    session.steer.stop()
    return list(cell.result(timeout=60))


def main() -> None:
    pairs = measure.arguments(__doc__, runs=10).runs
    if not measure.slurm_answers():
        sys.exit("No SLURM answers here.")
    report = measure.Report("steer_nodes", __doc__)
    with sides.scratch() as place:
        with contextlib.redirect_stdout(io.StringIO()):
            session = hpcmagic.start(
                "nodes", launcher="slurm", nodes=4, time=sides.WALLTIME_MIN, session_dir=str(place / "nodes")
            )
        with session:
            session.run(f"import os; os.chdir({str(place)!r})")
            ranks = blocks(session, pairs)
    for which, what in enumerate(("calls", "threads")):
        for watched, side in enumerate(("unwatched", "watched")):
            figures = []
            for block in range(2 + watched, 2 * pairs + 2, 2):  # the first pair warms up
                steady = [own[block][len(own[block]) // 4 :] for own in ranks]
                figures.append(max(1e3 * statistics.fmean(step[which] for step in steps) for steps in steady))
            report.row(f"{what}, a step of the slowest rank", side, "ms", figures)
    report.finish()


if __name__ == "__main__":
    main()
