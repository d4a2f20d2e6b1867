"""An empty cell on four local ranks, until all replies are there.

Claim
    At most 0.9 × stock ipyparallel.
Work
    hpcmagic: `s.run("")`, the whole of it: the syntax check, four encrypted requests and replies, the output shown.
    Stock: `DirectView.execute("", block=True)`, unencrypted as it comes, and a second time with `enable_curve`.
Measured
    All sides are up at once and idle but for the one whose turn it is. 300 cells each in blocks of 30, by turns;
    a block of each warms up. The claim is judged on the median of the blocks' ratios of medians, against stock
    without encryption.
"""

from __future__ import annotations

import contextlib
import statistics
import time

import measure
import sides

BLOCK = 30
LIMIT = 0.9


def block(side: sides.Side) -> list[float]:
    """Give the times of a block of cells, in ms."""
    times = []
    for _ in range(BLOCK):
        began_s = time.perf_counter()
        side.cell()
        times.append(1e3 * (time.perf_counter() - began_s))
    return times


def main() -> None:
    runs = measure.arguments(__doc__, runs=10).runs
    report = measure.Report("empty_cell", __doc__)
    compared = {
        "stock": sides.Stock("local", curve=False),
        "stock, CURVE": sides.Stock("local", curve=True),
        "hpcmagic": sides.HpcMagic("local", "auto"),
    }
    with sides.scratch(), contextlib.ExitStack() as stack:
        for side in compared.values():
            side.start()
            stack.callback(side.stop)
        blocks = measure.alternate({name: lambda s=side: block(s) for name, side in compared.items()}, runs)
    for name in compared:
        report.row("empty cell", name, "ms", [ms for part in blocks[name] for ms in part])
    medians = {name: [statistics.median(part) for part in blocks[name]] for name in compared}
    report.claim("empty cell", measure.median_ratio(medians["hpcmagic"], medians["stock"]), LIMIT, "× stock")
    report.finish()


if __name__ == "__main__":
    main()
