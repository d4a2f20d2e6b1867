"""10 000 random changes of a running simulation, from two notebooks at once.

Claim
    No rank ever differs from another at any step, no change is left without an answer, and from the call to its
    answer a change takes one step and 20 ms, at the median.
Work
    Four ranks, steps of 5 ms. Two kernels, each a process, set one of three parameters at a time to a random value,
    one in ten out of its range; each waits for the answer before the next. Every rank hashes what it sees at every
    step. A run is 1000 changes.
Measured
    In the kernels, from before `steer.set` until it returns or refuses. The script fails if two ranks' hashes differ,
    an answer is missing, or the parameters at the end are not those that were set last.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import measure
import sides

import hpcmagic

STEP_MS = 5.0
LIMIT_MS = STEP_MS + 20.0
EVERY = 1000  # changes a run
KERNELS = 2
SIMULATION = f"""
import hashlib, time
from hpcmagic import steer
live, seen = steer.live(comm), hashlib.sha256()
for step in live.steps(10**9):
    values = [live.param(name, 0, min=0, max=89) for name in "abc"]
    seen.update(repr((step, values)).encode())
    time.sleep({STEP_MS / 1e3})
(step, values, seen.hexdigest())
"""
KERNEL = """
import json, random, sys, time
import hpcmagic
folder, seed, changes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
session, chance, times, refused = hpcmagic.attach("changes", session_dir=folder), random.Random(seed), [], 0
session.steer.params()
for _ in range(changes):
    values = {chance.choice("abc"): chance.randrange(100)}
    began_s = time.perf_counter()
    try:
        session.steer.set(**values)
    except hpcmagic.errors.SteerError:
        refused += 1
    times.append(1e3 * (time.perf_counter() - began_s))
print(json.dumps([times, refused]))
"""


def changed(folder: str, changes: int) -> list[tuple[list[float], int]]:
    """Let all kernels make their changes at once; give the times in ms, and how many were refused, of each."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", KERNEL, folder, str(seed), str(changes)], stdout=subprocess.PIPE, text=True
        )
        for seed in range(KERNELS)
    ]
    return [tuple(json.loads(kernel.communicate()[0].splitlines()[-1])) for kernel in started]


def main() -> None:
    runs = measure.arguments(__doc__, runs=10).runs
    report = measure.Report("steer_changes", __doc__)
    with sides.scratch() as place:
        folder = str(place / "d")
        with hpcmagic.start("changes", nodes=4, launcher="local", session_dir=folder) as session:
            session.run(f"import os; os.chdir({str(place)!r})")
            cell = session.run(SIMULATION, block=False)
            session.steer.params()
            answers = changed(folder, runs * EVERY // KERNELS)
            events = [event for event in session.steer.events() if event.verb == "set"]
            last = {name: new for event in events for name, _, new in event.changes}
            session.steer.stop()
            steps, values, _ = cell.result(timeout=60).same()  # raises if ranks differ
    times = [ms for own, _ in answers for ms in own]
    refused = sum(number for _, number in answers)
    if len(times) != runs * EVERY // KERNELS * KERNELS:
        sys.exit("Answers are missing.")
    if values != [last.get(name, value) for name, value in zip("abc", values, strict=True)]:
        sys.exit("The parameters at the end are not those that were set last.")
    report.row("from a change to its answer", f"{KERNELS} kernels", "ms", times)
    report.notes.append(f"{len(times)} changes, {refused} refused, over {steps + 1} steps; ranks alike at each.")
    report.claim("from a change to its answer", statistics.median(times), LIMIT_MS, "ms")
    report.finish()


if __name__ == "__main__":
    main()
