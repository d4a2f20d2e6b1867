"""Memory and processes of an idle session of four ranks.

Claim
    The keeper takes at most 75 MB, a rank with MPI at most 75 MB; under SLURM no process stays on the hub beside
    the kernel.
Work
    Four ranks after ten empty cells, hpcmagic with MPI where it is here. Stock ipyparallel likewise, unencrypted
    as it comes; with CURVE under SLURM.
Measured
    RSS, on which the claims are judged, and PSS, which divides what processes share: both from smaps_rollup.
    Local: of all processes that the start has added below this one. SLURM (where sbatch answers): those that the
    start has added for this user on this host; the ranks' and the keeper's own sizes are asked for by a cell.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import psutil
import sides

LIMIT_MB = 75
CELLS = 10
KINDS = {  # python -m …
    "hpcmagic.keeper": "keeper",
    "hpcmagic.engine": "rank",
    "ipyparallel.controller": "controller",
    "ipyparallel.engine.nanny": "nanny",
    "ipyparallel.engine": "rank",
}
SIZES = "open('/proc/{}/smaps_rollup').read()"


def sizes(rollup: str) -> tuple[float, float]:
    """Give RSS and PSS in MB out of the text of smaps_rollup."""
    kb = {line.split()[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    return kb["Rss:"] * 1.024e-3, kb["Pss:"] * 1.024e-3


def kind(command: list[str]) -> str:
    """Name a process by its module, else (mpiexec, srun) by its program."""
    if command[1:2] == ["-m"]:
        return KINDS.get(command[2], command[2])
    return Path(command[0]).name if command else "?"


def on_this_host() -> set[int]:
    """Give this user's processes here; on the tests' SLURM, where hosts share /proc, those of this host's name."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.uids().real == os.getuid() and _host(process.pid) == _host(os.getpid()):
                found.add(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def _host(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/uts")


def below_this() -> set[int]:
    """Give all processes below this one."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


def added(side: sides.Side, seen: Callable[[], set[int]]) -> dict[str, list[tuple[float, float]]]:
    """Start a side; give the sizes of the processes that this has added, by kind."""
    before = seen()
    side.start()
    for _ in range(CELLS):
        side.cell()
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for pid in sorted(seen() - before):
        what = kind(psutil.Process(pid).cmdline())
        by_kind.setdefault(what, []).append(sizes(Path(f"/proc/{pid}/smaps_rollup").read_text()))
    return by_kind


def local(side: sides.Side) -> dict[str, list[tuple[float, float]]]:
    """Measure a side on this machine."""
    try:
        return added(side, below_this)
    finally:
        side.stop()


def slurm(side: Any) -> dict[str, Any]:
    """Measure a side under SLURM: what is on this host, and what the ranks say of themselves."""
    try:
        hub = [mb for parts in added(side, on_this_host).values() for mb in parts]
        found = {"hub": hub, "rank": [sizes(text) for text in side.ask(SIZES.format("self"))]}
        if isinstance(side, sides.HpcMagic):
            keeper = side.session.keeper_state()
            rank = keeper.nodes.index(keeper.keeper_host)
            text = side.session.run(SIZES.format(keeper.keeper_pid), ranks=[rank])[rank]
            found["keeper"] = [sizes(text)]
        return found
    finally:
        side.stop()


def report_local(report: measure.Report, runs: int) -> None:
    mpi = "mpiexec" if sides.mpi_is_here() else "none"
    compared = {
        "stock": lambda: local(sides.Stock("local", curve=False)),
        "hpcmagic": lambda: local(sides.HpcMagic("local", mpi)),
    }
    figures = measure.alternate(compared, runs)
    for name, samples in figures.items():
        everything = [[mb for parts in sample.values() for mb in parts] for sample in samples]
        for what in samples[0]:
            each_of = [mb for sample in samples for mb in sample.get(what, [])]
            _sizes(report, f"local: {what} × {len(samples[0][what])}", name, each_of)
        report.row("local: all processes", name, "", [len(parts) for parts in everything])
        report.row("local: all, RSS", name, "MB", [sum(rss for rss, _ in parts) for parts in everything])
        report.row("local: all, PSS", name, "MB", [sum(pss for _, pss in parts) for parts in everything])
    _claims(report, "local", figures["hpcmagic"], "with MPI" if mpi != "none" else "without MPI: none here")


def report_slurm(report: measure.Report, runs: int) -> None:
    compared = {
        "stock": lambda: slurm(sides.Stock("slurm", curve=True)),
        "hpcmagic": lambda: slurm(sides.HpcMagic("slurm", "auto")),
    }
    figures = measure.alternate(compared, runs)
    for name, samples in figures.items():
        report.row("SLURM: processes on the hub", name, "", [len(sample["hub"]) for sample in samples])
        report.row("SLURM: RSS on the hub", name, "MB", [sum(rss for rss, _ in sample["hub"]) for sample in samples])
        report.row("SLURM: PSS on the hub", name, "MB", [sum(pss for _, pss in sample["hub"]) for sample in samples])
        for what in ("keeper", "rank"):
            if what in samples[0]:
                _sizes(report, f"SLURM: {what}", name, [mb for sample in samples for mb in sample[what]])
    _claims(report, "SLURM", figures["hpcmagic"], "with MPI")
    most = max(len(sample["hub"]) for sample in figures["hpcmagic"])
    report.claim("SLURM: processes on the hub beside the kernel", most, 0, "")


def _sizes(report: measure.Report, what: str, side: str, figures: list[tuple[float, float]]) -> None:
    report.row(f"{what}, RSS each", side, "MB", [rss for rss, _ in figures])
    report.row(f"{what}, PSS each", side, "MB", [pss for _, pss in figures])


def _claims(report: measure.Report, where: str, samples: list[dict[str, Any]], mpi: str) -> None:
    for what, more in (("keeper", ""), ("rank", f" {mpi}")):
        largest = max(rss for sample in samples for rss, _ in sample[what])
        report.claim(f"{where}: the largest {what}{more}, RSS", largest, LIMIT_MB, "MB")


def main() -> None:
    runs = measure.arguments(__doc__, runs=3).runs
    report = measure.Report("resident", __doc__)
    with sides.scratch():
        report_local(report, runs)
        if measure.slurm_answers():
            sides.settle("slurm")
            report_slurm(report, runs)
        else:
            report.notes.append("SLURM: not measured, none answers here.")
    report.finish()


if __name__ == "__main__":
    main()
