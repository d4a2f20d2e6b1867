"""Start: from nothing to four local ranks that have answered an empty cell.

Claim
    At most 0.35 × stock ipyparallel without MPI, at most 0.5 × with MPI (stock has none in either case).
Work
    hpcmagic: `hpcmagic.start(nodes=4, launcher="local")`, then `s.run("")`; once with `mpi="none"`, once with
    `mpi="mpiexec"` (a verified MPI world of four). Stock: `ipyparallel.Cluster(n=4)`, `start_and_connect_sync()`,
    then an empty `execute` on all engines. hpcmagic encrypts and knows its clients by key, stock does neither.
Measured
    Each run is a new Python process that starts, asks and stops twice. "new interpreter": from the start of that
    process until the first cell is answered, so Python and all imports are counted. "warm": the second time, from
    the call to the answer, all that the client imports being in memory. The claim is judged on "warm", where the
    client's imports do not help the side that imports less. Sides take turns; one round warms up.
"""

from __future__ import annotations

import sys

import measure
import sides

SIDES = {
    "stock": lambda: sides.Stock("local", curve=False),
    "hpcmagic": lambda: sides.HpcMagic("local", "none"),
    "hpcmagic, MPI": lambda: sides.HpcMagic("local", "mpiexec"),
}
LIMITS = {"hpcmagic": 0.35, "hpcmagic, MPI": 0.5}


def main() -> None:
    if measure.SAMPLE in sys.argv:
        sides.start_twice(SIDES[sys.argv[-1]]())
    runs = measure.arguments(__doc__, runs=7).runs
    report = measure.Report("start_local", __doc__)
    names = [name for name in SIDES if "MPI" not in name or sides.mpi_is_here()]
    if len(names) < len(SIDES):
        report.notes.append("No MPI on this machine: that side was left out.")
    with sides.scratch():
        starts = measure.alternate({n: lambda n=n: measure.in_fresh_interpreter(__file__, n) for n in names}, runs)
    warm = {n: [second["answered_s"] - second["called_s"] for _, second in starts[n]] for n in names}
    for name in names:
        fresh = [first["answered_s"] - first["spawned_s"] for first, _ in starts[name]]
        report.row("new interpreter", name, "s", fresh)
    for name in names:
        report.row("warm", name, "s", warm[name])
    for name in names[1:]:
        ratio = measure.median_ratio(warm[name], warm["stock"])
        report.claim(f"start, {name}", ratio, LIMITS[name], "× stock")
    report.finish()


if __name__ == "__main__":
    main()
