"""A simulation that nobody can watch: what its calls cost a step.

Claim
    Less than 2 µs a step, in a process without a session: no port, no thread, nothing loaded.
Work
    200 000 steps, each with two parameters, two numbers published and one field; the same loop without any of it.
Measured
    The difference of the two, in ns a step; blocks by turns, a block of each warms up.
"""

from __future__ import annotations

import statistics
import sys
import time

import measure

from hpcmagic import steer

STEPS = 200_000
LIMIT_NS = 2000.0


def with_calls() -> float:
    """Give the seconds that all steps take."""
    live, field, box = steer.live(), [0.0], ((0, 1),)
    began_s = time.perf_counter()
    for step in live.steps(STEPS):
        live.param("dt", 1e-3, min=0.0, max=1e-2)
        live.param("kick", 1)
        live.publish(energy=1.0, step=step)
        live.field("T", field, box=box)
    return time.perf_counter() - began_s


def without() -> float:
    """Give the seconds that the bare loop takes."""
    began_s = time.perf_counter()
    for _ in range(STEPS):
        pass
    return time.perf_counter() - began_s


def main() -> None:
    runs = measure.arguments(__doc__, runs=10).runs
    report = measure.Report("steer_alone", __doc__)
    figures = measure.alternate({"with": with_calls, "without": without}, runs)
    if any(name.startswith(("hpcmagic.engine", "zmq", "mpi4py")) for name in sys.modules):
        sys.exit("A part of hpcmagic was loaded that an unwatched simulation needs not.")
    for name, seconds in figures.items():
        report.row("a step", name, "ns", [1e9 * one / STEPS for one in seconds])
    cost = [1e9 * (a - b) / STEPS for a, b in zip(figures["with"], figures["without"], strict=True)]
    report.row("the calls of a step", "difference", "ns", cost)
    report.claim("the calls of an unwatched step", statistics.median(cost), LIMIT_NS, "ns")
    report.finish()


if __name__ == "__main__":
    main()
