"""Small values, 1 KB to 1 MB, pushed to all four ranks.

Claim
    No slower than ipyparallel's push at any size, and half its time at 64 KB: against ipyparallel without
    encryption, as it comes, and with CURVE.
Work
    `bytes` and float64 arrays of 1, 4, 16, 64, 256 KB and 1 MB. hpcmagic: `s.push(y=value)`, by the network,
    encrypted; by shared memory too, without a claim. ipyparallel: `DirectView.push({"y": value}, block=True)`.
Measured
    Until all four ranks have answered. All sides are up at once and idle but for the one whose turn it is.
    Blocks of 30 pushes, by turns; a block of each warms up. The claim of a size is judged on the worse of its two
    kinds of value: the median of the blocks' ratios of medians.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import compare
import measure
import rivals

BLOCK = 30
SIZES_KB = (1, 4, 16, 64, 256, 1000)
NETWORK = "hpcmagic, network"
LIMIT = 1.0
LIMITS = {64: 0.5}


def block(side: rivals.Mover, value: Any) -> list[float]:
    """Give the times of a block of pushes, in ms."""
    times = []
    for _ in range(BLOCK):
        began_s = time.perf_counter()
        side.push(value)
        times.append(1e3 * (time.perf_counter() - began_s))
    side.drop()
    return times


def values(kilobytes: int) -> dict[str, Any]:
    """Give a value of each kind."""
    return {"bytes": os.urandom(kilobytes * 1000), "array": rivals.numbers(kilobytes / 1000)}


def main() -> None:
    runs = measure.arguments(__doc__, runs=3).runs
    report = measure.Report("latency", __doc__)
    compared: dict[str, rivals.Mover] = {
        NETWORK: rivals.HpcMagic(rivals.network_only),
        "hpcmagic, shared memory": rivals.HpcMagic(rivals.shared_memory),
        "ipyparallel": rivals.IpyParallel(curve=False),
        "ipyparallel, CURVE": rivals.IpyParallel(curve=True),
    }
    worst: dict[tuple[str, int], float] = {}
    with compare.started(compared):
        for kilobytes in SIZES_KB:
            for kind, value in values(kilobytes).items():
                for name, side in compared.items():
                    compare.require_pushed(name, side, value)
                work = {name: lambda s=side, v=value: block(s, v) for name, side in compared.items()}
                blocks = measure.alternate(work, runs)
                for name in compared:
                    times = [ms for part in blocks[name] for ms in part]
                    report.row(f"push {kilobytes} KB, {kind}", name, "ms", times)
                medians = {name: [statistics.median(part) for part in blocks[name]] for name in compared}
                for rival in ("ipyparallel", "ipyparallel, CURVE"):
                    ratio = measure.median_ratio(medians[NETWORK], medians[rival])
                    worst[rival, kilobytes] = max(worst.get((rival, kilobytes), 0.0), ratio)
    for (rival, kilobytes), ratio in sorted(worst.items()):
        report.claim(f"push {kilobytes} KB", ratio, LIMITS.get(kilobytes, LIMIT), f"× {rival}")
    report.finish()


if __name__ == "__main__":
    main()
