"""Runs both sides in turn, keeps every figure, prints one table, writes one JSON file.

    alternate(sides) ─► figures by side ─► Report.row ─► table on the screen
                                         └ Report.claim ─► "met" or "missed", never an exit status

Every claim is a ratio to stock ipyparallel measured in the same run, or a size. Absolute times depend on the
machine and on what else it does; a median of ratios, each of two neighbouring runs, hardly does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("hpcmagic", "ipyparallel", "ipykernel", "ipython", "pyzmq", "tornado", "mpi4py")
SAMPLE = "--sample"  # how a script calls itself for one run in an interpreter of its own


def arguments(doc: str | None, runs: int) -> argparse.Namespace:
    """Parse the command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, metavar="N", help=f"runs of each side (default {runs})")
    return parser.parse_args()


def alternate(sides: dict[str, Callable[[], T]], runs: int) -> dict[str, list[T]]:
    """Run each side once to warm up, then `runs` times in turn; every other round backwards."""
    figures: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            progress(f"run {number} of {runs}: {name}" if number else f"warm-up: {name}")
            figure = sides[name]()
            if number:
                figures[name].append(figure)
    progress("")
    return figures


def in_fresh_interpreter(script: str, side: str) -> list[dict[str, float]]:
    """Let a script time starts of one side in a new process (`sides.start_twice`).

    The first start is given the moment at which the process itself was started. Both processes read the same
    clock: Linux counts it from the machine's start.
    """
    spawned_s = time.monotonic()
    answer = subprocess.run([sys.executable, script, SAMPLE, side], capture_output=True, text=True)
    if answer.returncode != 0:
        sys.exit(f"{side} failed:\n{answer.stdout[-2000:]}\n{answer.stderr[-4000:]}")
    starts: list[dict[str, float]] = json.loads(answer.stdout.splitlines()[-1])
    starts[0]["spawned_s"] = spawned_s
    return starts


def slurm_answers() -> bool:
    """Whether this machine submits to a SLURM that answers."""
    if not shutil.which("sbatch"):
        return False
    return subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=60).returncode == 0


def median_ratio(figures: Sequence[float], stock: Sequence[float]) -> float:
    """Give the median of the ratios, each of two neighbouring runs."""
    return statistics.median(ours / theirs for ours, theirs in zip(figures, stock, strict=True))


class Report:
    """Collects what one benchmark measured.

    Parameters
    ----------
    name
        Of the results' file.
    doc
        The script's docstring: its first line heads the table.
    """

    def __init__(self, name: str, doc: str | None) -> None:
        self.name = name
        self.title = (doc or name).splitlines()[0]
        self.rows: list[dict[str, Any]] = []
        self.claims: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.load_before = os.getloadavg()[0]

    def row(self, what: str, side: str, unit: str, figures: Iterable[float]) -> None:
        """Note the figures of one side."""
        self.rows.append({"what": what, "side": side, "unit": unit, "figures": list(figures)})

    def claim(self, text: str, measured: float, limit: float, unit: str) -> None:
        """Note a claim: the measured figure is at most the limit."""
        met = measured <= limit
        self.claims.append({"text": text, "measured": measured, "limit": limit, "unit": unit, "met": met})

    def finish(self) -> None:
        """Print the table and the claims, write the JSON file."""
        print(f"\n{self.title}\n{describe(machine())}\n")
        print(table(["", "side", "median", "p95", "min to max", "n"], [_cells(row) for row in self.rows]))
        for note in self.notes:
            print(note)
        if self.claims:
            print(f"\n{claims_table(self.claims)}")
        RESULTS.mkdir(exist_ok=True)
        content = {
            "benchmark": self.name,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": {**machine(), "load_before": self.load_before, "load_after": os.getloadavg()[0]},
            "rows": self.rows,
            "claims": self.claims,
            "notes": self.notes,
        }
        (RESULTS / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n")


def _cells(row: dict[str, Any]) -> list[str]:
    figures, unit = row["figures"], row["unit"]
    p95 = f"{statistics.quantiles(figures, n=20)[-1]:.3g}" if len(figures) >= 20 else "–"
    low_high = f"{min(figures):.3g} to {max(figures):.3g}"
    return [row["what"], row["side"], f"{statistics.median(figures):.3g} {unit}", p95, low_high, str(len(figures))]


def claims_table(claims: Sequence[dict[str, Any]]) -> str:
    """Say of each claim whether it was met."""
    rows = [
        [c["text"], f"{c['measured']:.3g} {c['unit']}", f"≤ {c['limit']:g}", "met" if c["met"] else "MISSED"]
        for c in claims
    ]
    return table(["claim", "measured", "limit", ""], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Lay out cells in columns."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join([lines[0].rstrip(), "─" * (sum(widths) + 2 * len(widths) - 2), *(x.rstrip() for x in lines[1:])])


def machine() -> dict[str, Any]:
    """Give what the figures depend on: processor, memory, versions."""
    about = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line for line in about if line.startswith("model name")), ": unknown")
    return {
        "processor": model.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def describe(about: dict[str, Any]) -> str:
    """Put the machine into two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['cores']} cores ({about['processor']}), {about['memory_GB']} GB, load {os.getloadavg()[0]:.1f}\n"
        f"Python {about['python']}, {versions}"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def progress(text: str) -> None:
    """Say what runs, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
