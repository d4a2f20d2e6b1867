"""What is compared: hpcmagic and stock ipyparallel, both started, asked and stopped by the same four verbs.

    start()    from nothing to ranks that answer
    cell()     an empty cell on all ranks, all replies waited for
    ask(text)  the value of a Python expression on every rank
    stop()     until nothing of it runs any more

Stock ipyparallel runs as it comes out of the box. Under SLURM it is told what it cannot know: to listen on the
network, to encrypt, and a job's script that spreads the engines over the nodes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

RANKS = 4
WALLTIME_MIN = "10"
SETTLE_S = 120.0
STOCK_SCRIPT = """#!/bin/sh
#SBATCH --export=ALL
#SBATCH --job-name=ipengine
#SBATCH --nodes={n}
#SBATCH --ntasks={n}
#SBATCH --time={minutes}
#SBATCH --output={output_file}
srun {program_and_args}
"""


class Side(Protocol):
    """One of the two."""

    def start(self) -> None:
        """Start four ranks; they are ready on return."""

    def cell(self) -> None:
        """Run an empty cell on all ranks."""

    def ask(self, expression: str) -> list[Any]:
        """Give the value of an expression, by rank."""

    def stop(self) -> None:
        """End everything that was started."""


class HpcMagic:
    """A session of hpcmagic: encrypted, clients known by key."""

    def __init__(self, launcher: str, mpi: str) -> None:
        self.options: dict[str, Any] = {"nodes": RANKS, "launcher": launcher, "mpi": mpi}
        if launcher == "slurm":
            self.options["time"] = WALLTIME_MIN

    def start(self) -> None:
        """Start four ranks; they are ready on return."""
        import hpcmagic

        with contextlib.redirect_stdout(io.StringIO()):
            self.session = hpcmagic.start("bench", session_dir=str(Path.cwd() / "sessions"), **self.options)

    def cell(self) -> None:
        """Run an empty cell on all ranks."""
        self.session.run("")

    def ask(self, expression: str) -> list[Any]:
        """Give the value of an expression, by rank."""
        return list(self.session.run(expression) or [])

    def stop(self) -> None:
        """End everything that was started."""
        self.session.stop()
        settle(self.options["launcher"])


class Stock:
    """A cluster of stock ipyparallel."""

    def __init__(self, launcher: str, *, curve: bool) -> None:
        self.launcher = launcher
        self.curve = curve

    def start(self) -> None:
        """Start four ranks; they are ready on return."""
        import ipyparallel
        from traitlets.config import Config

        options: dict[str, Any] = {}
        if self.curve:
            options["controller_args"] = ["--IPController.enable_curve=True"]
        if self.launcher == "slurm":
            config = Config()
            config.SlurmEngineSetLauncher.batch_template = STOCK_SCRIPT
            config.SlurmEngineSetLauncher.namespace = {"minutes": WALLTIME_MIN}
            options |= {"controller_ip": "*", "engines": "slurm", "config": config}
        self.cluster = ipyparallel.Cluster(n=RANKS, log_level=40, **options)
        self.client = self.cluster.start_and_connect_sync()
        self.view = self.client[:]

    def cell(self) -> None:
        """Run an empty cell on all ranks."""
        self.view.execute("", block=True)

    def ask(self, expression: str) -> list[Any]:
        """Give the value of an expression, by rank."""
        self.view.execute(f"_answer = {expression}", block=True)
        return list(self.view.pull("_answer", block=True))

    def stop(self) -> None:
        """End everything that was started."""
        self.client.close()
        self.cluster.stop_cluster_sync()
        settle(self.launcher)


def settle(launcher: str) -> None:
    """Wait until SLURM has ended this user's jobs and cleared their nodes."""
    if launcher != "slurm":
        return
    deadline_s = time.monotonic() + SETTLE_S
    while subprocess.run(["squeue", "--noheader", "--me"], capture_output=True, text=True).stdout.strip():
        if time.monotonic() > deadline_s:
            sys.exit("This user's queue does not become empty: these figures need one with no other jobs in it.")
        time.sleep(0.2)


def mpi_is_here() -> bool:
    """Whether ranks on this machine can form an MPI world."""
    return shutil.which("mpiexec") is not None and importlib.util.find_spec("mpi4py") is not None


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Be in a new directory in the home, which SLURM's nodes see too; IPython's own files go there meanwhile.

    Stock ipyparallel writes its job's script to the current directory.
    """
    with tempfile.TemporaryDirectory(dir=Path.home(), prefix=".hpcmagic-bench-") as path, contextlib.chdir(path):
        os.environ["IPYTHONDIR"] = f"{path}/ipython"
        yield Path(path)


def start_twice(side: Side) -> None:
    """Start and stop a side two times; print as JSON when each start was called and its first cell answered.

    Python's audit hook notes when sbatch was called, in the same way for both sides.
    """
    submitted: list[float] = []

    def note(event: str, args: Any) -> None:
        if event == "subprocess.Popen" and Path(str(args[0])).name == "sbatch":
            submitted.append(time.monotonic())

    sys.addaudithook(note)
    starts = []
    for _ in range(2):
        called_s = time.monotonic()
        side.start()
        side.cell()
        answered_s = time.monotonic()
        side.stop()
        starts.append({"called_s": called_s, "submitted_s": (submitted or [called_s])[-1], "answered_s": answered_s})
    print(json.dumps(starts), flush=True)
    os._exit(0)  # what either side would still do at exit is not asked for here
