"""ONE SLURM job a session: script and site's settings from dask-jobqueue, every command through one runner.

Resources ─► dask-jobqueue's SLURMJob ─► header, less what we say ourselves ─► script ─► sbatch --parsable
squeue, scontrol, sacct ─► JobState
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from hpcmagic.errors import LaunchError, ProfileError
from hpcmagic.launch.base import JobSpec, JobState, exported
from hpcmagic.launch.slurm_words import MEANINGS, refusal
from hpcmagic.profiles import Resources, walltime_s

COMMAND_TIMEOUT_S = 30.0
NO_SUCH_DIRECTORY = 66  # exit status of the job's script when the node does not see the session's directory

OURS = (  # options that the session decides: what SLURMJob or a site's yaml says of them is left out
    "-n", "--ntasks", "-N", "--nodes", "--ntasks-per-node", "-c", "--cpus-per-task", "-J", "--job-name",
    "-o", "--output", "-e", "--error", "--requeue", "--no-requeue", "--export",
)  # fmt: skip
OPTION_NAMES = {  # of what may come from the site or from the user
    "mem": ("--mem",),
    "time": ("-t", "--time"),
    "qos": ("-q", "--qos"),
    "constraint": ("-C", "--constraint"),
    "gpus_per_node": ("-G", "--gpus", "--gpus-per-node"),
}


def run(command: Sequence[str], *, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one SLURM command: the only place where that happens on the notebook's side.

    A notebook may itself run inside a job: what SLURM left in the environment is not for ours.

    Raises
    ------
    LaunchError
        The command is not here or does not answer.
    """
    environment = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not _slurms_own(k)}
    try:
        return subprocess.run(
            list(command), input=stdin, stdin=subprocess.DEVNULL if stdin is None else None, env=environment,
            capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise LaunchError(
            f"SLURM's {command[0]} is not on this machine.",
            "Use `--launcher local`, or a machine that submits jobs.",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            f"SLURM's {command[0]} did not answer within {COMMAND_TIMEOUT_S:g} s.", "Try again in a minute."
        ) from error


def _slurms_own(variable: str) -> bool:
    return variable.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_"))


def answers() -> bool:
    """Whether this machine submits to a SLURM.

    Raises
    ------
    LaunchError
        It does, but SLURM does not answer now.
    """
    try:
        answer = run(["sinfo", "--noheader", "--format=%P"])
    except LaunchError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise
    if answer.returncode == 0:
        return True
    if "configuration source" in answer.stderr:  # the commands are here, but no cluster
        return False
    raise LaunchError(
        f"SLURM does not answer: {_words(answer.stderr)}.",
        "Try again in a minute, or use `--launcher local`.",
    )


class SlurmLauncher:
    """Submits one job a session."""

    name = "slurm"

    def completed(self, resources: Resources) -> Resources:
        """Fill what was left open from the site's jobqueue.yaml, then from the partition's defaults."""
        site = site_section(resources.jobqueue)
        origin = f"jobqueue.yaml, section {resources.jobqueue}"
        wanted = {
            "partition": site.get("queue"),
            "account": site.get("account") or site.get("project"),
            "time": site.get("walltime"),
            "mem": _slurm_size(site.get("job-mem") or site.get("memory")),
            "ntasks_per_node": site.get("processes"),
            "interface": site.get("interface"),
            "python": site.get("python"),
        }
        for name, value in wanted.items():
            if value is not None and name not in resources.origins:
                resources = resources.with_origin(origin, **{name: type(getattr(resources, name))(value)})
        cores = site.get("job-cpu") or site.get("cores")
        if cores is not None and "cpus_per_task" not in resources.origins:
            resources = resources.with_origin(origin, cpus_per_task=max(1, int(cores) // resources.ntasks_per_node))
        if not resources.time:
            partition, default = default_time(resources.partition)
            resources = resources.with_origin(f"the default of partition {partition}", time=default)
        return resources

    def script(self, spec: JobSpec) -> str:
        """Give the exact script that `submit` pipes into sbatch."""
        resources, directory = spec.resources, str(spec.directory.path)
        job = _site_job(resources)
        lines = [
            job.shebang.strip(),
            *(f"#SBATCH {option}" for option in self._options(resources, job.job_header)),
            "unset SLURM_EXPORT_ENV  # with it srun would pass on nothing",
            f"[ -d {shlex.quote(directory)} ] || exit {NO_SUCH_DIRECTORY}",
            f"umask 077; exec >>{shlex.quote(str(spec.directory.log))} 2>&1",
            *(line for line in (job._job_script_prologue or [])),  # noqa: SLF001  # SLURMJob has no public name for it
            *resources.prologue,
            f"exec {shlex.join([resources.python or sys.executable, '-m', 'hpcmagic.keeper', directory])}",
        ]
        return "\n".join(lines) + "\n"

    def submit(self, spec: JobSpec) -> str:
        """Submit the script; give the job's id."""
        script = self.script(spec)
        spec.directory.write(spec.directory.script, script)
        answer = run(["sbatch", "--parsable"], stdin=script)
        if answer.returncode != 0:
            raise refusal(_words(answer.stderr), spec.resources)
        return answer.stdout.strip().split(";")[0]

    def state(self, job_id: str) -> JobState:
        """Ask squeue, then sacct for a job that has left the queue."""
        answer = run(["squeue", "--noheader", f"--jobs={job_id}", "--states=all", "--format=%T|%r|%S|%M|%L|%N|%V"])
        line = answer.stdout.strip()
        if answer.returncode == 0 and line:
            seen = _from_squeue(line.splitlines()[0])
            return self._from_scontrol(job_id, seen) if seen.phase == "ended" else seen
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
            return JobState("unknown", meaning=_words(answer.stderr))
        return self._from_sacct(job_id)

    def _from_scontrol(self, job_id: str, seen: JobState) -> JobState:
        """Add how a job ended that the controller still remembers: accounting may lag behind."""
        said = run(["scontrol", "-o", "show", "job", job_id]).stdout
        status = re.search(r"\bExitCode=(\d+):", said)
        code = int(status.group(1)) if status else None
        return replace(seen, reason=seen.word, meaning=_meaning(seen.word, code or 0), exit_status=code)

    def _from_sacct(self, job_id: str) -> JobState:
        answer = run(["sacct", "-X", "-n", "-P", f"--jobs={job_id}", "--format=State,ExitCode,ElapsedRaw,NodeList"])
        line = answer.stdout.strip()
        if answer.returncode != 0 or not line:
            return JobState("ended", "GONE", meaning="it has left the queue, and accounting does not know it (yet)")
        word, status, elapsed, nodes = line.splitlines()[-1].split("|")
        if word.split()[0] in ("PENDING", "RUNNING", "REQUEUED"):
            return JobState("unknown", word, meaning="left the queue a moment ago")
        code = int(status.partition(":")[0])
        word = word.split()[0]
        meaning = _meaning(word, code)
        return JobState("ended", word, word, meaning, nodes=nodes, elapsed_s=float(elapsed or 0), exit_status=code)

    def cancel(self, job_id: str) -> None:
        """Cancel the job; scancel is silent about one that has ended."""
        answer = run(["scancel", job_id])
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
            raise LaunchError(
                f"scancel {job_id} failed: {_words(answer.stderr)}.", f"Try `scancel {job_id}` in a terminal."
            )

    def _options(self, resources: Resources, header: str) -> list[str]:
        """Give sbatch's options: those of SLURMJob's header, and the sizes that the session decides."""
        kept = _kept(header, resources)
        decided = {
            "--job-name": "hpcmagic",
            "--nodes": resources.nodes,
            "--ntasks-per-node": resources.ntasks_per_node,
            "--cpus-per-task": resources.cpus_per_task,
            "--gpus-per-node": resources.gpus_per_node,
            "--qos": resources.qos,
            "--constraint": resources.constraint,
            "--output": "/dev/null",
            "--export": ",".join(exported(resources)) or "NIL",
        }
        return [*kept, *(f"{name}={value}" for name, value in decided.items() if value), "--no-requeue"]


def site_section(name: str) -> dict[str, Any]:
    """Give a section of the site's or user's own jobqueue.yaml, without dask-jobqueue's shipped defaults.

    Those set a walltime of 30 minutes that nobody asked for.
    """
    import dask.config

    sections = dask.config.collect().get("jobqueue", {})
    section = {str(k).replace("_", "-"): v for k, v in (sections.get(name) or {}).items()}
    if not section and name != "slurm":
        known = ", ".join(sections) or "none"
        raise ProfileError(f"jobqueue.yaml has no section {name!r}.", f"Sections there: {known}.")
    return section


def _site_job(resources: Resources) -> Any:
    """Make dask-jobqueue's SLURMJob with our sizes: header, prologue and shebang come out of it.

    It makes its log directory where there is none: hence the root, whose options are dropped with `OURS`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old names in a site's yaml are the site's affair
        with _signals_kept():
            from dask_jobqueue.slurm import SLURMJob
        cores = resources.cpus_per_task * resources.ntasks_per_node
        return SLURMJob(
            cores=cores, processes=1, memory=_dask_size(resources.mem), job_mem=resources.mem or None,
            queue=resources.partition or None, account=resources.account or None, walltime=resources.time or None,
            python=resources.python or sys.executable, config_name=resources.jobqueue, log_directory=os.sep,
            name="hpcmagic",
        )  # fmt: skip


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep Ctrl-C working: importing dask_jobqueue 0.9 (its runner.py) turns SIGINT into sys.exit()."""
    set_handler = signal.signal
    signal.signal = lambda *_: None
    try:
        yield
    finally:
        signal.signal = set_handler


def _kept(header: str, resources: Resources) -> list[str]:
    """Give the header's options less those that the session decides, by exact name.

    dask-jobqueue's own filter matches substrings (`-n 1` drops `-n 16`), and puts in a memory and a walltime
    where none was asked for.
    """
    dropped = set(OURS)
    for name, options in OPTION_NAMES.items():
        asked = name in resources.origins and "default of" not in resources.origins[name]
        if asked is (name in ("qos", "constraint", "gpus_per_node")):
            dropped.update(options)
    given = [line.removeprefix("#SBATCH").strip() for line in header.splitlines()]
    return [option for option in given if option and _name(option) not in dropped]


def _name(option: str) -> str:
    """Give an option's name: `--mem=1G`, `--mem 1G` → --mem; `-n1`, `-n 1` → -n."""
    name = re.split(r"[=\s]", option, maxsplit=1)[0]
    return name if name.startswith("--") else name[:2]


def _slurm_size(size: Any) -> str | None:
    """Turn Dask's "120GB" into sbatch's "112G": Dask counts in thousands, SLURM in 1024s."""
    if size is None:
        return None
    from dask.utils import parse_bytes

    return f"{max(1, int(parse_bytes(size)) >> 20)}M"


def _dask_size(size: str) -> str:
    return f"{size.upper().rstrip('B')}iB" if size and size[-1].isalpha() else f"{size or 1}MiB"


def default_time(partition: str) -> tuple[str, str]:
    """Give the partition that a job without a choice goes to, and its default walltime."""
    option = [f"--partition={partition}"] if partition else []
    answer = run(["sinfo", "--noheader", "--format=%P|%L|%l", *option])
    rows = [line.split("|") for line in answer.stdout.splitlines() if line.count("|") == 2]
    row = next((r for r in rows if r[0].endswith("*") or partition), rows[0] if rows else [partition, "", ""])
    name, default, limit = row
    return name.rstrip("*"), (limit if default in ("n/a", "NONE", "") else default)


def _from_squeue(line: str) -> JobState:
    word, reason, start, elapsed, left, nodes = line.split("|")[:6]
    phase = _phase(word)
    waits = phase == "pending" and reason not in ("None", "")
    meaning, mend = MEANINGS.get(reason, ("", "")) if waits else ("", "")
    state = JobState(phase, word, reason if waits else "", meaning, mend)  # type: ignore[arg-type]
    return replace(
        state,
        expected_start="" if start == "N/A" or phase != "pending" else start.replace("T", " "),
        nodes=nodes if phase == "running" else "",
        elapsed_s=seconds(elapsed) or 0.0,
        left_s=seconds(left),
    )


def _phase(word: str) -> str:
    if word in ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED"):
        return "pending"
    return "running" if word in ("RUNNING", "STOPPED", "RESIZING") else "ended"


def _meaning(word: str, code: int) -> str:
    if code == NO_SUCH_DIRECTORY:
        return "the nodes do not see the session's directory"
    return {
        "TIMEOUT": "its walltime was reached",
        "CANCELLED": "it was cancelled",
        "NODE_FAIL": "a node failed",
        "OUT_OF_MEMORY": "it used more memory than it asked for",
        "FAILED": f"it ended with exit status {code}",
    }.get(word, "")


def seconds(text: str) -> float | None:
    """Read squeue's elapsed or remaining time."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d)*", text):
        return None
    return walltime_s(text)


def _words(stderr: str) -> str:
    """Give SLURM's own words in one line."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line).strip() for line in stderr.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)).rstrip(".") or "no reason given"
