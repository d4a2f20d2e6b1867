"""Start, verify and end the ranks: srun with PMIx or PMI2, mpiexec, or plain processes.

The ways are tried in order, until one gives a world of the size that was asked for:

    slurm   srun --mpi=pmix · srun --mpi=pmi2 · mpiexec · srun without MPI
    local   mpiexec · plain processes without MPI

A rank that finds itself in a wrong world ends with an exit status of its own (rendezvous.py names them);
srun and mpiexec pass it on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from hpcmagic.keeper.remains import remove_remains
from hpcmagic.rendezvous import Request, SessionDirectory

GRACE_S = 5.0
SLURM_S = 10.0  # how long a SLURM command may take


@dataclass(frozen=True, slots=True)
class Starter:
    """One way to start the ranks."""

    name: str
    command: tuple[str, ...]
    mpi: bool


def starters(request: Request, directory: SessionDirectory) -> list[Starter]:
    """Give the ways to start this session's ranks that can be tried here, best first."""
    engine = (sys.executable, "-m", "hpcmagic.engine", str(directory.path))
    plain = (*engine, "--no-mpi")
    n = str(request.ntasks)
    mpiexec = shutil.which("mpiexec")
    found: list[Starter] = []
    if request.launcher == "slurm":
        srun = ("srun", f"--nodes={request.nodes}", f"--ntasks={n}", f"--cpus-per-task={request.cpus_per_task}",
                "--kill-on-bad-exit=1", "--unbuffered", "--export=ALL")  # fmt: skip
        plugins = mpi_plugins()
        found += [
            Starter(f"srun --mpi={plugin}", (*srun, f"--mpi={plugin}", *engine), mpi=True)
            for plugin in ("pmix", "pmi2")
            if plugin in plugins
        ]
        last = Starter("srun", (*srun, "--mpi=none", *plain), mpi=False)
    else:
        last = Starter("processes", plain, mpi=False)
    if mpiexec:
        found.append(Starter("mpiexec", (mpiexec, "-n", n, *engine), mpi=True))
    return _chosen(request.mpi, found, last)


def _chosen(mpi: str, with_mpi: list[Starter], without: Starter) -> list[Starter]:
    """Narrow the ways to what the profile says."""
    if mpi == "none" or (mpi == "auto" and importlib.util.find_spec("mpi4py") is None):
        return [without]
    if mpi == "auto":
        return [*with_mpi, without]
    return [s for s in with_mpi if s.name in (mpi, f"srun --mpi={mpi}")]


def mpi_plugins() -> set[str]:
    """Ask srun which MPI plugins this SLURM has."""
    answer = subprocess.run(
        ["srun", "--mpi=list"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return set(re.findall(r"[a-z0-9_]+", answer.stdout + answer.stderr))


class Ranks:
    """The processes of one attempt."""

    def __init__(self, starter: Starter, request: Request, log: Any) -> None:
        self.starter = starter
        self.over = False
        self.under_slurm = request.launcher == "slurm"
        environment = rank_environment(os.environ, request)
        count = request.ntasks if starter.name == "processes" else 1
        self.processes = [
            subprocess.Popen(
                starter.command,
                env={**environment, "HPCMAGIC_RANK": str(rank)}
                if count > 1 or starter.name == "processes"
                else environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            for rank in range(count)
        ]

    def ended(self) -> int | None:
        """Give the exit status of the first process that has ended; None while all run."""
        return next((s for p in self.processes if (s := p.poll()) is not None), None)

    def who_ended(self) -> str:
        """Name the rank that ended first, where each rank is a process of ours, else what had started them."""
        ended = [rank for rank, process in enumerate(self.processes) if process.poll() is not None]
        return (
            f"rank {ended[0]} " if self.starter.name == "processes" and ended else f"{self.starter.name.split()[0]}: "
        )

    def end(self, *, job_goes_on: bool = False) -> None:
        """End all ranks, once: first kindly, then not; what a killed mpiexec, or srun, has left is removed."""
        if self.over:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if sign == signal.SIGKILL and self.starter.name.startswith("srun"):
                self._kill_step()  # a killed srun would leave its ranks behind
            if self._ended_by(sign):
                break
        for process in self.processes:
            remove_remains(process.pid)
        if job_goes_on:  # with the job SLURM ends them itself
            self._kill_step()
        self.over = True

    def _ended_by(self, sign: signal.Signals) -> bool:
        """Send a signal to all that run; whether none is left a while later."""
        for process in self.processes:
            if process.poll() is None:
                _signal_group(process, sign)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        return all(process.poll() is not None for process in self.processes)

    def dump(self) -> None:
        """Let every rank write where it stands into its file, also from C code that holds the GIL.

        SIGURG, since programs that ranks have started ignore it by default.
        """
        job = os.environ.get("SLURM_JOB_ID", "") if self.under_slurm else ""
        if job:
            slurm("scancel", "--signal=URG", job)  # the steps, not the batch step
            return
        for pid in _engines_below(process.pid for process in self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGURG)

    def _kill_step(self) -> None:
        job = os.environ.get("SLURM_JOB_ID", "") if self.under_slurm else ""
        if not job:
            return
        steps = slurm("squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i").split()
        numbered = [step for step in steps if step.rpartition(".")[2].isdigit()]
        if numbered:
            slurm("scancel", "--signal=KILL", *numbered)


def slurm(*command: str) -> str:
    """Ask SLURM about our own job; nothing when it does not answer."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=SLURM_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout


def _engines_below(pids: Iterable[int]) -> list[int]:
    import psutil

    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if process.cmdline()[1:3] == ["-m", "hpcmagic.engine"]:
                        found.append(process.pid)
    return found


def job_runs_on(request: Request, cause: str) -> bool:
    """Whether our job is there without its ranks: not when SLURM has ended them with it, or a node has failed."""
    if request.launcher != "slurm":
        return True
    job = os.environ.get("SLURM_JOB_ID", "")
    state = slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip()
    return state in ("RUNNING", "") and not re.fullmatch(NODE.format(node=r"\S+"), cause)  # "": no answer


def first_cause(said: str) -> str:
    """Find in what srun or mpiexec said which rank ended first, and how; nothing if they do not say."""
    for pattern, words in CAUSES:
        match = re.search(pattern, said)
        if match:
            return words.format_map({k: " ".join(v.split()) for k, v in match.groupdict().items()})
    return ""


RANK = "rank {rank} {how}"
NODE = "node {node} failed"
MEMORY = "{node} ran out of the memory that the job asked for (`--mem`)"
CAUSES = (  # the first that is found; memory before the ranks that SLURM kills for it
    (r"slurmstepd-(?P<node>\S+): error: .*(?:exceeded \S* ?memory limit|oom[-_]kill)", MEMORY),
    (r"srun: error: (?P<node>\S+): tasks? [\d,-]+: Out Of Memory", MEMORY),
    (r"srun: error: Node failure on (?P<node>\S+)", NODE),
    (r"srun: error: \S+: tasks? (?P<rank>[\d,-]+): (?P<how>(?!Killed|Terminated)[^\n]+)", RANK),  # not because of it
    (r"srun: error: \S+: tasks? (?P<rank>[\d,-]+): (?P<how>[^\n]+)", RANK),
    (r"process rank (?P<rank>\d+) with PID \d+ on\s+node\s+\S+ (?P<how>exited on signal \d+ \([^)]*\))", RANK),
    (r"Process name: \[\[\d+,\d+\],(?P<rank>\d+)\]\s+(?P<how>Exit code:\s+\d+)", RANK),
    (
        r"MPI_ABORT was invoked on rank (?P<rank>\d+)[\s\S]{0,200}?[Ee]rrorcode:? (?P<code>-?\d+)",
        "rank {rank} called Abort({code})",
    ),
)


def _signal_group(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sign)


def rank_environment(environment: Mapping[str, str], request: Request) -> dict[str, str]:
    """Give the ranks' environment: the job's, and what MPI must be told where it runs on one machine."""
    told = {**environment, "HPCMAGIC_KEEPER_PID": str(os.getpid())}
    told.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    if request.launcher != "slurm":
        for name, value in LOCAL_MPI.items():
            told.setdefault(name, value)
    return told


LOCAL_MPI = {  # Open MPI 4 and 5: more ranks than cores, also as root (a container), nothing bound, one host
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    "OMPI_MCA_plm_rsh_agent": "/bin/false",
    "OMPI_MCA_oob_tcp_if_include": "lo",
    "OMPI_MCA_btl": "self,vader",
    "OMPI_MCA_odls_base_sigkill_timeout": "0",  # told to end, mpiexec would sleep for a second
    "OMPI_MCA_pml": "ob1",  # on one host; looking for a fabric would take a while
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}


def hosts(nodelist: str) -> list[str]:
    """Expand SLURM's node list.

    >>> hosts("n[1-3,07],login")
    ['n1', 'n2', 'n3', 'n07', 'login']
    """
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        pieces = re.split(r"\[([^\]]*)\]", part)
        choices = [[piece] if i % 2 == 0 else _numbers(piece) for i, piece in enumerate(pieces)]
        names += ["".join(choice) for choice in product(*choices)]
    return names


def _numbers(ranges: str) -> list[str]:
    out: list[str] = []
    for item in ranges.split(","):
        low, _, high = item.partition("-")
        out += [f"{n:0{len(low)}d}" for n in range(int(low), int(high or low) + 1)]
    return out


def expected_nodes(request: Request, environment: Mapping[str, str], here: str) -> tuple[str, ...]:
    """Give the node that each rank should be on (SLURM's default distribution: block)."""
    names = hosts(environment.get("SLURM_JOB_NODELIST", "")) or [here]
    per_node = -(-request.ntasks // len(names))
    return tuple(names[min(rank // per_node, len(names) - 1)] for rank in range(request.ntasks))
