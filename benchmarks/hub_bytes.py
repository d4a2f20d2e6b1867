"""64 MB pushed to four ranks on four nodes: bytes that leave the notebook's host.

Claim
    One sealed copy leaves the host, whatever the number of ranks: at most 1.05 × the payload.
Work
    A SLURM job over four nodes, one MPI world; the same without MPI, where ranks pass frames on to their neighbours.
    Beside it a scatter and a gather of as many bytes, and the time that each takes.
Measured
    What the network interface that leads to the nodes has sent, before and after, from the kernel's own counters.
    It runs where `sbatch` answers; the counters are those of the network namespace that it runs in.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
import psutil
import sides

import hpcmagic

NBYTES = 64 << 20
LIMIT = 1.05
WAYS = {"MPI": "auto", "chain": "none"}


def sent_bytes(session: Any) -> int:
    """Give what the interface of the bulk channels has sent so far, by this network namespace's own counters."""
    _, channel = next(iter(session.data.channels._open.values()))
    address = channel.sock.getsockname()[0]
    name = next(nic for nic, held in psutil.net_if_addrs().items() if any(a.address == address for a in held))
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith(f"{name}:"))


def counted(session: Any, work: Any) -> tuple[float, float]:
    """Give the seconds that a transfer takes, and the bytes that left meanwhile, as a multiple of the payload."""
    before, began_s = sent_bytes(session), time.perf_counter()
    work()
    return time.perf_counter() - began_s, (sent_bytes(session) - before) / NBYTES


def main() -> None:
    runs = measure.arguments(__doc__, runs=5).runs
    if not measure.slurm_answers():
        sys.exit("No SLURM answers here.")
    report = measure.Report("hub_bytes", __doc__)
    array = np.random.default_rng(0).random(NBYTES // 8)
    with sides.scratch() as place:
        for way, mpi in WAYS.items():
            with contextlib.redirect_stdout(io.StringIO()):
                session = hpcmagic.start(
                    "bytes", launcher="slurm", nodes=4, time=sides.WALLTIME_MIN, mpi=mpi, session_dir=str(place / way)
                )
            with session:
                session.push(y=array)  # opens the channels
                work = {
                    "push": lambda s=session: s.push(y=array),
                    "scatter": lambda s=session: s.scatter(x=array),
                    "gather": lambda s=session: s.gather("x"),
                }
                figures = measure.alternate(
                    {name: lambda w=one, s=session: counted(s, w) for name, one in work.items()}, runs
                )
            for name, pairs in figures.items():
                report.row(f"{name} 64 MB, four nodes", way, "s", [seconds for seconds, _ in pairs])
                report.row(f"{name} 64 MB: left the host", way, "× payload", [share for _, share in pairs])
            left = max(share for _, share in figures["push"])
            report.claim(f"push to four nodes, {way}: bytes that leave the host", left, LIMIT, "× payload")
    report.finish()


if __name__ == "__main__":
    main()
