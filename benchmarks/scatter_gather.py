"""512 MB of float64 cut over four ranks and joined again.

Claim
    By the network, encrypted: scatter and gather each at least 13 × the rate of ipyparallel with CURVE, 1.9 × Dask's
    with TLS, 0.85 × plain unencrypted ZeroMQ's. By shared memory: scatter at least 0.4 × mpi4py's Scatter.
Work
    One array; in turn each side scatters it and gathers it. hpcmagic twice, in two sessions: one whose ranks it
    treats as if they were on other hosts, one that uses shared memory. rivals.py has the other sides: ipyparallel
    (plain, CURVE), Dask (tcp, TLS), bare ZeroMQ, mpi4py.
Measured
    Seconds until all ranks hold their shard, and until the whole is one array here; mpi4py between two barriers.
    Memory that bytes arrive in is new each time, for all alike, and so it is for mpi4py in the row that the claim is
    judged on; a second row of it uses the same memory again. All sides are up at once and idle but for the one
    whose turn it is. Before that, outside of the clock: every side's shards and whole are compared with the array,
    and the bytes over the loopback device tell that each of hpcmagic's sessions goes its own way.
"""

from __future__ import annotations

import compare
import measure
import rivals

NETWORK, SHARED = "hpcmagic, network", "hpcmagic, shared memory"
LIMITS = {
    ("scatter", NETWORK): {"ipyparallel, CURVE": 13, "Dask, TLS": 1.9, "ZeroMQ, plain": 0.85},
    ("gather", NETWORK): {"ipyparallel, CURVE": 13, "Dask, TLS": 1.9, "ZeroMQ, plain": 0.85},
    ("scatter", SHARED): {"mpi4py": 0.4},
}


def main() -> None:
    options = compare.arguments(__doc__, runs=3, megabytes=512)
    report = measure.Report("scatter_gather", __doc__)
    compared, array = rivals.everyone(), rivals.numbers(options.mb)
    with compare.started(compared):
        for name, side in compared.items():
            measure.progress(f"compare: {name}")
            compare.require_round_trip(name, side, array)
        for name in (NETWORK, SHARED):
            compare.require_path(name, compared[name], array)
        trips = {name: lambda s=side: compare.round_trip(s, array) for name, side in compared.items()}
        figures = measure.alternate(trips, options.runs)
    for what in ("scatter", "gather"):
        for name in compared:
            compare.rows(report, f"{what} {options.mb:g} MB", name, [trip[what] for trip in figures[name]], array)
    for (what, ours), limits in LIMITS.items():
        seconds = {name: [trip[what] for trip in trips] for name, trips in figures.items()}
        compare.claim_rates(report, f"{what} {options.mb:g} MB", seconds, ours, limits)
    report.finish()


if __name__ == "__main__":
    main()
