"""What keeper and kernel have grown by after 300 cells with results of 1 MB each.

Claim
    Less than 50 MB each.
Work
    Two local ranks; 300 cells whose last value is an array of 1 MB on each rank. hpcmagic journals them all; its
    kernel drops each result. Stock: the same with `DirectView.apply_sync` in its default configuration, results
    dropped likewise; controller processes and client are summed up.
Measured
    Resident memory before the first and after the last cell, once it has settled (10 s later).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time

import measure
import psutil
import sides

CELLS = 300
SETTLE_S = 12.0
LIMIT_MB = 50.0
SOURCE = "bytes(1_000_000)"


def resident_mb(processes: list[psutil.Process]) -> float:
    """Give the resident memory of processes together."""
    return sum(process.memory_info().rss for process in processes) / 1e6


def grown(processes: dict[str, list[psutil.Process]], cell) -> dict[str, float]:
    """Run all cells; give what each group of processes has grown by, in MB."""
    for _ in range(3):
        cell()
    time.sleep(2)
    before = {name: resident_mb(group) for name, group in processes.items()}
    for _ in range(CELLS):
        cell()
    time.sleep(SETTLE_S)
    return {name: resident_mb(group) - before[name] for name, group in processes.items()}


def ours() -> dict[str, float]:
    side = sides.HpcMagic("local", "auto")
    side.start()
    try:
        keeper = psutil.Process(side.session.keeper_state().keeper_pid)
        with contextlib.redirect_stdout(io.StringIO()):
            return grown({"keeper": [keeper], "kernel": [psutil.Process()]}, lambda: side.session.run(SOURCE))
    finally:
        side.stop()


def stock() -> dict[str, float]:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    side = sides.Stock("local", curve=False)
    side.start()
    try:
        children = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        control = [p for p in children if "controller" in " ".join(p.cmdline())]
        groups = {"controller": control, "client": [psutil.Process()]}
        return grown(groups, lambda: side.view.apply_sync(eval, SOURCE))
    finally:
        side.stop()


def in_child(measured) -> dict[str, float]:
    """Measure in a process of its own, so that one side's leavings are not the other's."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(measured()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return dict(json.loads(answer.read()))


def main() -> None:
    measure.arguments(__doc__, runs=1)
    report = measure.Report("journal_memory", __doc__)
    with sides.scratch():
        for side, measured in (("hpcmagic", ours), ("stock", stock)):
            for what, megabytes in in_child(measured).items():
                report.row(f"{what} has grown by", side, "MB", [megabytes])
                if side == "hpcmagic":
                    report.claim(f"growth of the {what}", megabytes, LIMIT_MB, "MB")
    report.finish()


if __name__ == "__main__":
    main()
