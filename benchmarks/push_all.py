"""64 MB of float64 pushed to all four ranks.

Claim
    By the network, encrypted: at least 20 × the rate of ipyparallel with CURVE and 4 × Dask's with TLS.
Work
    One array; in turn each side sends it whole to each of its four ranks. The sides are those of
    scatter_gather.py: hpcmagic by the network and by shared memory, ipyparallel, Dask, bare ZeroMQ, mpi4py's Bcast.
Measured
    Seconds until all ranks hold it; the rate counts its bytes once. What the ranks held before is gone. Outside of
    the clock every rank's copy is compared with the array.
"""

from __future__ import annotations

import compare
import measure
import rivals

NETWORK = "hpcmagic, network"
LIMITS = {"ipyparallel, CURVE": 20, "Dask, TLS": 4}


def main() -> None:
    options = compare.arguments(__doc__, runs=5, megabytes=64)
    report = measure.Report("push_all", __doc__)
    compared, array = rivals.everyone(), rivals.numbers(options.mb)
    with compare.started(compared):
        for name, side in compared.items():
            measure.progress(f"compare: {name}")
            compare.require_pushed(name, side, array)
        pushes = {name: lambda s=side: compare.pushed(s, array) for name, side in compared.items()}
        figures = measure.alternate(pushes, options.runs)
    for name in compared:
        compare.rows(report, f"push {options.mb:g} MB to all", name, figures[name], array)
    compare.claim_rates(report, f"push {options.mb:g} MB to all", figures, NETWORK, LIMITS)
    report.finish()


if __name__ == "__main__":
    main()
