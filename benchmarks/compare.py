"""How the sides of rivals.py are measured: rounds by the clock; that what arrived is right; rows and claims."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
import rivals
import sides


def timed(side: rivals.Mover, verb: str, *arguments: Any) -> tuple[float, Any]:
    """Give the seconds that a verb takes, and what it returns."""
    began_s = time.perf_counter()
    answer = getattr(side, verb)(*arguments)
    took_s = time.perf_counter() - began_s
    return (took_s if side.inside_s is None else side.inside_s), answer


def round_trip(side: rivals.Mover, array: np.ndarray) -> dict[str, float]:
    """Scatter an array and gather it; give the seconds of each."""
    side.drop()
    scatter_s, _ = timed(side, "scatter", array)
    side.forget()
    gather_s, _ = timed(side, "gather")
    side.forget()
    return {"scatter": scatter_s, "gather": gather_s}


def pushed(side: rivals.Mover, value: Any) -> float:
    """Push a value to all ranks; give the seconds."""
    side.drop()
    push_s, _ = timed(side, "push", value)
    side.forget()
    return push_s


def require_round_trip(name: str, side: rivals.Mover, array: np.ndarray) -> None:
    """End this script unless every rank gets its shard and the whole comes back."""
    side.drop()
    side.scatter(array)
    if side.checksums("x") != [zlib.crc32(part) for part in np.array_split(array, sides.RANKS)]:
        sys.exit(f"{name}: the ranks hold other shards than were cut.")
    whole = side.gather()
    if not (whole.flags.c_contiguous and whole.dtype == array.dtype and np.array_equal(whole, array)):
        sys.exit(f"{name}: what was gathered is not what was scattered.")
    del whole
    side.drop()


def require_pushed(name: str, side: rivals.Mover, value: Any) -> None:
    """End this script unless every rank gets the value."""
    side.drop()
    side.push(value)
    if side.checksums("y") != [zlib.crc32(value)] * sides.RANKS:
        sys.exit(f"{name}: the ranks hold another value than was pushed.")
    side.drop()


def require_path(name: str, side: rivals.HpcMagic, array: np.ndarray) -> None:
    """End this script unless a scatter goes by the side's own path: bytes over the loopback device tell."""
    side.drop()
    before = loopback_bytes()
    side.scatter(array)
    moved = loopback_bytes() - before
    by_network = moved >= array.nbytes
    if by_network != (side.path is rivals.network_only):
        sys.exit(f"{name}: {moved / 1e6:.0f} MB crossed the loopback device for {array.nbytes / 1e6:.0f} MB.")
    side.drop()


def loopback_bytes() -> int:
    """Give the bytes that this machine has sent to itself over the network so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


@contextlib.contextmanager
def started(compared: dict[str, rivals.Mover]) -> Iterator[None]:
    """Have all sides up at once, in a scratch directory."""
    with sides.scratch(), contextlib.ExitStack() as stack:
        for name, side in compared.items():
            measure.progress(f"start: {name}")
            side.start()
            stack.callback(side.stop)
        yield


def rows(report: measure.Report, what: str, side: str, seconds: list[float], array: np.ndarray) -> None:
    """Note what one side took, as time and as a rate."""
    report.row(what, side, "s", seconds)
    report.row(what, side, "GB/s", [array.nbytes / 1e9 / taken_s for taken_s in seconds])


def claim_rates(
    report: measure.Report, what: str, figures: dict[str, list[float]], ours: str, limits: dict[str, float]
) -> None:
    """Claim that our rate is at least so many times each rival's; stated, as all claims, as a ratio of times."""
    for rival, factor in limits.items():
        ratio = measure.median_ratio(figures[ours], figures[rival])
        text = f"{what}, {ours.partition(', ')[2]}: time, for {factor:g} × the rate of {rival}"
        report.claim(text, ratio, 1 / factor, f"× {rival}")


def arguments(doc: str | None, runs: int, megabytes: float) -> argparse.Namespace:
    """Parse the command line that all benchmarks share, and the size."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, metavar="N", help=f"runs of each side (default {runs})")
    parser.add_argument("--mb", type=float, default=megabytes, help=f"megabytes of data (default {megabytes:g})")
    return parser.parse_args()
