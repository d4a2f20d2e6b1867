"""Start under SLURM: from sbatch to four ranks on four idle nodes that have answered an empty cell.

Claim
    At most 0.5 × stock ipyparallel under SLURM, encrypted.
Work
    hpcmagic: `hpcmagic.start(nodes=4, launcher="slurm", time="10")`, then `s.run("")`: one job, a verified MPI world
    of four. Stock: `ipyparallel.Cluster(n=4, engines="slurm", controller_ip="*")` with `enable_curve` and a job's
    script that spreads four engines over four nodes by srun; its controller runs where this script runs; no MPI.
Measured
    Each run is a new Python process that starts, asks and stops twice; before each start this user's queue is
    empty. "new interpreter": the first start, from that of the process until the first cell is answered. "call":
    the second, from the call to the answer. "sbatch": both, from the call of sbatch to the answer; the claim is
    judged on it. It favours stock, whose controller has been started by then. Sides take turns; one round warms up.
Run
    Where sbatch works, in a home that the nodes share. On the tests' own SLURM:

        tests/slurm/cluster up
        tar -c benchmarks/*.py | tests/slurm/cluster as alice tar -x
        tests/slurm/cluster as alice /opt/hpcmagic-site/venv/bin/python benchmarks/start_slurm.py
"""

from __future__ import annotations

import sys

import measure
import sides

SIDES = {
    "stock": lambda: sides.Stock("slurm", curve=True),
    "hpcmagic": lambda: sides.HpcMagic("slurm", "auto"),
}
LIMIT = 0.5


def main() -> None:
    if measure.SAMPLE in sys.argv:
        sides.start_twice(SIDES[sys.argv[-1]]())
    runs = measure.arguments(__doc__, runs=5).runs
    if not measure.slurm_answers():
        sys.exit("No SLURM answers here; see the end of this script's --help.")
    report = measure.Report("start_slurm", __doc__)
    with sides.scratch():
        sides.settle("slurm")
        starts = measure.alternate({n: lambda n=n: measure.in_fresh_interpreter(__file__, n) for n in SIDES}, runs)
    since = {
        "new interpreter": lambda first, _: [first["answered_s"] - first["spawned_s"]],
        "call": lambda _, second: [second["answered_s"] - second["called_s"]],
        "sbatch": lambda *both: [start["answered_s"] - start["submitted_s"] for start in both],
    }
    for what, seconds in since.items():
        figures = {name: [s for pair in starts[name] for s in seconds(*pair)] for name in SIDES}
        for name in SIDES:
            report.row(what, name, "s", figures[name])
    ratio = measure.median_ratio(figures["hpcmagic"], figures["stock"])
    report.claim("from sbatch to ready", ratio, LIMIT, "× stock")
    report.finish()


if __name__ == "__main__":
    main()
