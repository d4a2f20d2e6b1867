"""Restart in the same job: from the call to new ranks with a verified MPI world.

Claim
    At most 3 s.
Work
    Four ranks of which one has raised while the others sit in `comm.Barrier()`: `session.restart()`, then an
    allreduce. On this machine, and as one SLURM job over four nodes where SLURM answers. Stock ipyparallel restarts
    no MPI world within a job.
Measured
    From the call until the allreduce has given the right sum.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time

import measure
import sides

import hpcmagic

LIMIT_S = 3.0


def restarted(session: hpcmagic.Session) -> float:
    """Let the ranks get stuck, and restart them; give the seconds that took."""
    with contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(hpcmagic.RankError):
            session.run("if rank == 0: 1 / 0\ncomm.Barrier()")
        began_s = time.monotonic()
        session.restart()
        assert session.run("comm.allreduce(rank)").same() == 6
        return time.monotonic() - began_s


def main() -> None:
    runs = measure.arguments(__doc__, runs=10).runs
    report = measure.Report("restart", __doc__)
    for launcher in ("local", "slurm") if measure.slurm_answers() else ("local",):
        with sides.scratch():
            side = sides.HpcMagic(launcher, "auto")
            side.start()
            try:
                figures = []
                for number in range(runs):
                    measure.progress(f"{launcher}: restart {number} of {runs}")
                    figures.append(restarted(side.session))
                measure.progress("")
            finally:
                side.stop()
        report.row(f"restart, {launcher}", "hpcmagic", "s", figures)
        report.claim(f"restart in the same job, {launcher}", statistics.median(figures), LIMIT_S, "s")
    report.finish()


if __name__ == "__main__":
    main()
