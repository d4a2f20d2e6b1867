"""Twenty sessions in five notebooks, each with its meter: how often SLURM is asked, and what the meters take.

Claim
    At most 4 squeue a minute for all together. The meters take less than 0.5 % of a core of the notebooks' host.
Work
    Five Python processes of one user, each with hpcmagic and four sessions of one rank: sixteen run, and four, for
    want of nodes, wait in the queue with somebody waiting for them. Meters read each running session every two
    seconds. Against that the naive way: each session asks squeue for its own job every 15 s.
Measured
    Calls of squeue, by a script of that name that stands before the real one, in minutes one after the other; the
    first begins when all have waited for a while. Processor time of the five processes, all their threads, with
    meters and without, in as many minutes; that of the commands they ran beside it.
Run
    Where sbatch works and 16 CPUs are idle, in a home that the nodes share; start_slurm.py says how to run it on the
    tests' own SLURM.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import sides

KERNELS, RUNNING, WAITING = 5, 16, 4
MINUTE_S = 60.0
SETTLE_S = 75.0  # who waits for a job asks often in the first minute
NAIVE_S = 15.0
MOST_ASKED, MOST_CPU = 4, 0.5
KERNEL = "--kernel"
READY_S = 240.0


class Unshown:
    """A screen that nobody sees: what would be sent is written as JSON."""

    def send(self, message: dict[str, Any]) -> None:
        """Tell nobody."""
        json.dumps(message)

    def close(self) -> None:
        """Be gone."""


class Kernel:
    """The inside of a kernel's process: it does what comes as lines of JSON, and answers in kind."""

    def __init__(self) -> None:
        self.told, sys.stdout = sys.stdout, io.StringIO()  # what sessions say nobody reads
        self.sessions: list[Any] = []
        self.meters: list[Any] = []

    def start(self, name: str, folder: str) -> str:
        """Start a session; give its job."""
        import hpcmagic

        self.sessions.append(hpcmagic.start(
            name, launcher="slurm", nodes=1, ntasks_per_node=1, cpus_per_task=1, mem="300M", time="30", mpi="none",
            session_dir=folder,
        ))  # fmt: skip
        return str(self.sessions[-1].job.job_id)

    def wait(self, name: str, folder: str) -> None:
        """Wait for a session in the queue, in a thread: it is never ready."""
        from hpcmagic.notebook import output

        output.StatusLine.update = lambda _self, _text: None
        threading.Thread(target=self._wait, args=(name, folder), daemon=True).start()

    def _wait(self, name: str, folder: str) -> None:
        with contextlib.suppress(Exception):
            self.start(name, folder)

    def meter(self) -> None:
        """Show the meters of all sessions."""
        from hpcmagic.notebook import readings
        from hpcmagic.notebook.meter import Meter

        for session in self.sessions:
            one = Meter(lambda s=session: readings.reading(s), session, Unshown())
            one.begin()
            self.meters.append(one)

    def no_meter(self) -> None:
        """Take them away."""
        while self.meters:
            self.meters.pop().close()

    def naive(self, jobs: list[str], seconds: float) -> None:
        """Ask for each job every 15 s, as if there were no other."""
        from hpcmagic.launch.slurm import SlurmLauncher

        launcher, end_s, number = SlurmLauncher(), time.monotonic() + seconds, 0
        while time.monotonic() < end_s:
            launcher.state(jobs[number % len(jobs)])
            number += 1
            time.sleep(max(0.0, NAIVE_S / len(jobs) * number - (time.monotonic() - end_s + seconds)))

    def cpu_s(self) -> list[float]:
        """Give the processor time of this process so far, and that of the commands it ran."""
        used = os.times()
        return [used.user + used.system, used.children_user + used.children_system]

    def serve(self) -> None:
        """Do what is asked until there is nothing more."""
        for line in sys.stdin:
            verb, arguments = json.loads(line)
            print(json.dumps(getattr(self, verb)(*arguments)), file=self.told, flush=True)


class Notebook:
    """A kernel's process, from outside."""

    def __init__(self, path: str) -> None:
        command = [sys.executable, __file__, KERNEL]
        environment = {**os.environ, "PATH": path}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def begin(self, verb: str, *arguments: Any) -> None:
        """Ask it to do something."""
        self.process.stdin.write(json.dumps([verb, arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Wait until it is done; give what came of it."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit("A kernel ended.")
        return json.loads(line)


class Bench:
    """Five kernels and the queue."""

    def __init__(self, folder: Path) -> None:
        self.counted = folder / "asked"
        self.counted.write_text("")
        real = shutil.which("squeue")
        wrapper = folder / "bin" / "squeue"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\necho "$*" >>{self.counted}\nexec {real} "$@"\n')
        wrapper.chmod(0o755)
        self.notebooks = [Notebook(f"{wrapper.parent}:{os.environ['PATH']}") for _ in range(KERNELS)]
        self.jobs: list[str] = []
        self.folder = str(folder / "sessions")

    def all(self, verb: str, *arguments: Any) -> list[Any]:
        """Let all kernels do something at the same time."""
        for notebook in self.notebooks:
            notebook.begin(verb, *arguments)
        return [notebook.answer() for notebook in self.notebooks]

    def start(self) -> None:
        """Start the sessions that can run, then those that cannot."""
        for number in range(RUNNING):
            notebook = self.notebooks[number % KERNELS]
            measure.progress(f"session {number + 1} of {RUNNING}")
            notebook.begin("start", f"runs-{number}", self.folder)
            self.jobs.append(notebook.answer())
        for number in range(WAITING):
            notebook = self.notebooks[-1 - number % KERNELS]
            notebook.begin("wait", f"waits-{number}", self.folder)
            notebook.answer()
        end_s = time.monotonic() + READY_S
        while len(self.queue()) < RUNNING + WAITING and time.monotonic() < end_s:
            time.sleep(1)
        self.jobs = list(self.queue())
        waiting = list(self.queue().values()).count("PENDING")
        if (len(self.jobs), waiting) != (RUNNING + WAITING, WAITING):
            sys.exit(f"Of {len(self.jobs)} jobs {waiting} wait; {RUNNING} were to run, {WAITING} to wait.")

    def queue(self) -> dict[str, str]:
        """Give this user's jobs and how they stand, without being counted."""
        told = subprocess.run(["squeue", "--me", "-h", "-o", "%i %T"], capture_output=True, text=True, check=True)
        return dict(line.split() for line in told.stdout.splitlines())

    def asked(self) -> int:
        """Give how often squeue was called so far."""
        return len(self.counted.read_text().splitlines())

    def minute(self) -> tuple[int, float, float]:
        """Let a minute pass; give the calls of squeue, and what kernels and their commands took, in % of a core."""
        asked, before, began_s = self.asked(), self.all("cpu_s"), time.monotonic()
        time.sleep(MINUTE_S)
        took_s, after = time.monotonic() - began_s, self.all("cpu_s")
        own, commands = (sum(b[i] - a[i] for a, b in zip(before, after, strict=True)) / took_s * 100 for i in (0, 1))
        return self.asked() - asked, own, commands

    def naive(self) -> int:
        """Let each session ask for itself for a minute; give the calls."""
        asked = self.asked()
        for number, notebook in enumerate(self.notebooks):
            notebook.begin("naive", self.jobs[number::KERNELS], MINUTE_S)
        for notebook in self.notebooks:
            notebook.answer()
        return self.asked() - asked

    def end(self) -> None:
        """Cancel all jobs, and end the kernels."""
        subprocess.run(["scancel", "--me", "--name=hpcmagic"], check=False)
        for notebook in self.notebooks:
            notebook.process.stdin.close()
            notebook.process.wait(30)
        end_s = time.monotonic() + READY_S
        while self.queue() and time.monotonic() < end_s:
            time.sleep(1)


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """Have the sessions up."""
    with sides.scratch() as folder:
        five = Bench(folder)
        try:
            five.start()
            yield five
        finally:
            five.end()


def main() -> None:
    if KERNEL in sys.argv:
        Kernel().serve()
        return
    minutes = measure.arguments(__doc__, runs=3).runs
    if not measure.slurm_answers():
        sys.exit("No SLURM answers here; see the end of this script's --help.")
    report = measure.Report("polite_poll", __doc__)
    with bench() as five:
        measure.progress("settling")
        time.sleep(SETTLE_S)
        figures: dict[str, list[tuple[int, float, float]]] = {"without meters": [], "with meters": []}
        for number in range(minutes):
            measure.progress(f"without meters, minute {number + 1}")
            figures["without meters"].append(five.minute())
        five.all("meter")
        time.sleep(10)  # the first readings load what is loaded once
        for number in range(minutes):
            measure.progress(f"with meters, minute {number + 1}")
            figures["with meters"].append(five.minute())
        five.all("no_meter")
        measure.progress("the naive way, a minute")
        naive = five.naive()
    report.row("squeue a minute, 20 sessions", "naive", "", [naive])
    for side, minutes_of in figures.items():
        report.row("squeue a minute, 20 sessions", side, "", [asked for asked, _, _ in minutes_of])
    for side, minutes_of in figures.items():
        report.row("five kernels", side, "% of a core", [own for _, own, _ in minutes_of])
        report.row("… the commands they ran", side, "% of a core", [commands for *_, commands in minutes_of])
    off, on = (sum(own for _, own, _ in figures[side]) / minutes for side in figures)
    report.row("meters of all five kernels", "with − without", "% of a core", [on - off])
    report.claim(
        "squeue in a minute, 20 sessions in 5 notebooks", max(a for a, *_ in figures["with meters"]), MOST_ASKED, ""
    )
    report.claim("meters of one notebook: processor of its host", (on - off) / KERNELS, MOST_CPU, "% of a core")
    report.claim("meters of all five together", on - off, MOST_CPU, "% of a core")
    report.finish()


if __name__ == "__main__":
    main()
