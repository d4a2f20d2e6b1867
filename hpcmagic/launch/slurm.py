"""ONE SLURM job a session; every SLURM command of the notebook's side through one runner.

Resources ─► launch/jobqueue (the site's part) ─► script ─► sbatch --parsable
squeue, scontrol, sacct ─► JobState; all of a user's jobs at once through launch/poll
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from hpcmagic.errors import LaunchError
from hpcmagic.launch.base import JobSpec, JobState, Phase, exported
from hpcmagic.launch.board import Board
from hpcmagic.launch.jobqueue import passed_over, site_cores, site_script, site_values
from hpcmagic.launch.poll import Poll
from hpcmagic.launch.slurm_words import HELD, MAY_BE_THERE, MEANINGS, refusal
from hpcmagic.profiles import CHECKS, Resources, walltime_s

COMMAND_TIMEOUT_S = 30.0
QUERY_TIMEOUT_S = 8.0  # how a job stands can be asked again: nobody shall wait for it while SLURM is away
WARN_S = 90  # so long before the walltime SLURM tells the keeper; it may come a minute early
SHOWN = "%T|%r|%S|%M|%L|%N|%V"  # of a job: what `_from_squeue` reads
WAITING = (  # states of a job that is not charged for the moment, and may go on
    "PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT",
)  # fmt: skip
NO_SUCH_DIRECTORY = 66  # exit status of the job's script when the node does not see the session's directory


def run(
    command: Sequence[str], *, stdin: str | None = None, timeout_s: float = COMMAND_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
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
            capture_output=True, text=True, timeout=timeout_s, check=False, start_new_session=True,
        )  # fmt: skip
    except (FileNotFoundError, PermissionError) as error:
        raise LaunchError(
            f"SLURM's {command[0]} is not on this machine.",
            "Use `--launcher local`, or a machine that submits jobs.",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            f"SLURM's {command[0]} did not answer within {timeout_s:g} s.", "Try again in a minute."
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
        if isinstance(error.__cause__, FileNotFoundError | PermissionError):
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
        origin = f"jobqueue.yaml, section {resources.jobqueue}"
        for name, value in site_values(resources).items():
            if name not in resources.origins:
                resources = resources.with_origin(origin, **{name: CHECKS[name](name, value, origin)})
        cores = site_cores(resources)
        if cores is not None and "cpus_per_task" not in resources.origins:
            resources = resources.with_origin(origin, cpus_per_task=max(1, cores // resources.ntasks_per_node))
        if not resources.time:
            partition, default = default_time(resources.partition)
            resources = resources.with_origin(f"the default of partition {partition}", time=default)
        return resources

    def script(self, spec: JobSpec) -> str:
        """Give the exact script that `submit` pipes into sbatch."""
        resources, directory = spec.resources, str(spec.directory.path)
        site = site_script(resources)
        keeper = [resources.python or sys.executable, "-m", "hpcmagic.keeper", directory]
        lines = [
            site.shebang,
            *(f"#SBATCH {option}" for option in self._options(resources, site.options)),
            *(f"# {unused}" for unused in [passed_over(resources)] if unused),
            "unset SLURM_EXPORT_ENV  # with it srun would pass on nothing",
            f"[ -d {shlex.quote(directory)} ] || exit {NO_SUCH_DIRECTORY}",
            "trap '' USR1  # until the keeper listens: it would end this shell",
            f"umask 077; exec >>{shlex.quote(str(spec.directory.log))} 2>&1",
            *site.prologue,
            *resources.prologue,
            f"exec {shlex.join(keeper)}",
        ]
        return "\n".join(lines) + "\n"

    def expected_start(self, spec: JobSpec) -> str:
        """Ask sbatch when it would start: an estimate, by what is in the queue now."""
        try:
            answer = run(["sbatch", "--test-only"], stdin=self.script(spec), timeout_s=QUERY_TIMEOUT_S)
        except LaunchError:  # whoever submits next is told
            return ""
        found = re.search(r"\bto start at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", answer.stderr)
        return found[1].replace("T", " ") if found and answer.returncode == 0 else ""

    def submit(self, spec: JobSpec) -> str:
        """Submit the script; give the job's id."""
        script = self.script(spec)
        spec.directory.write(spec.directory.script, script)
        try:
            answer = run(["sbatch", "--parsable"], stdin=script)
        except LaunchError as error:
            if isinstance(error.__cause__, subprocess.TimeoutExpired):
                raise LaunchError(error.message, MAY_BE_THERE) from error
            raise
        if answer.returncode != 0:
            raise refusal(_words(answer.stderr), spec.resources)
        POLL.hurry()
        return answer.stdout.strip().split(";")[0]

    def state(self, job_id: str, *, max_age_s: float = 0.0) -> JobState:
        """Ask squeue, then sacct for a job that has left the queue; ``unknown`` while SLURM does not answer.

        With `max_age_s` squeue is asked for all of the user's jobs at once, or not at all (`Poll.state`).
        """
        if max_age_s > 0:
            return POLL.state(job_id, max_age_s)
        try:
            return self._state(job_id)
        except LaunchError as error:
            return JobState("unknown", meaning=error.message, stale=True)

    def known(self, job_id: str) -> JobState | None:
        """Say how a job stands by what this user's kernels have asked last, unless it is time to ask again."""
        return POLL.known(job_id)

    def _state(self, job_id: str) -> JobState:
        asked = ["squeue", "--noheader", f"--jobs={job_id}", "--states=all", f"--format={SHOWN}"]
        answer = run(asked, timeout_s=QUERY_TIMEOUT_S)
        lines = _with_columns(answer.stdout, SHOWN.count("|"))
        if answer.returncode == 0 and lines:
            seen = _from_squeue(lines[0])
            return self._from_scontrol(job_id, seen) if seen.phase == "ended" else seen
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
            return JobState("unknown", meaning=_words(answer.stderr), stale=True)
        return self._from_sacct(job_id)

    def _from_scontrol(self, job_id: str, seen: JobState) -> JobState:
        """Add how a job ended that the controller still remembers: accounting may lag behind."""
        said = run(["scontrol", "-o", "show", "job", job_id], timeout_s=QUERY_TIMEOUT_S).stdout
        status = re.search(r"\bExitCode=(\d+:\d+)", said)
        if seen.word in ("CANCELLED", "COMPLETING"):  # by whom, or how it ends, only accounting says
            accounted = self._from_sacct(job_id)
            if accounted.phase == "ended" and accounted.word != "GONE":
                return accounted
        word = "TIMEOUT" if seen.word == "COMPLETING" and "Reason=TimeLimit" in said else seen.word
        return _ended(replace(seen, word=word), status.group(1) if status else "")

    def _from_sacct(self, job_id: str) -> JobState:
        asked = ["sacct", "-X", "-n", "-P", f"--jobs={job_id}", "--format=State,ExitCode,ElapsedRaw,NodeList"]
        answer = run(asked, timeout_s=QUERY_TIMEOUT_S)
        lines = _with_columns(answer.stdout, 3)
        if answer.returncode != 0 or not lines:
            return JobState("ended", "GONE", meaning="it has left the queue, and accounting does not know it (yet)")
        word, status, elapsed, nodes = lines[-1].split("|")[:4]
        if word.partition(" ")[0] in (*WAITING, "RUNNING", "RESIZING"):
            return JobState("unknown", word, meaning="left the queue a moment ago")
        word, _, who = word.partition(" by ")
        seen = _ended(JobState("ended", word.partition(" ")[0], nodes=nodes, elapsed_s=float(elapsed or 0)), status)
        if seen.word == "CANCELLED" and who.isdigit():
            return replace(seen, meaning=f"it was cancelled by {_user(int(who))}")
        return seen

    def cancel(self, job_id: str) -> None:
        """Cancel the job; scancel is silent about one that has ended."""
        answer = run(["scancel", job_id])
        POLL.hurry()
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
            raise LaunchError(
                f"scancel {job_id} failed: {_words(answer.stderr)}.", f"Try `scancel {job_id}` in a terminal."
            )

    def _options(self, resources: Resources, site: Sequence[str]) -> list[str]:
        """Give sbatch's options: the site's, and what the session decides."""
        decided = {
            "--job-name": "hpcmagic",
            "--nodes": resources.nodes,
            "--ntasks-per-node": resources.ntasks_per_node,
            "--cpus-per-task": resources.cpus_per_task,
            "--gpus-per-node": resources.gpus_per_node,
            "--qos": resources.qos if "jobqueue.yaml" not in resources.origins.get("qos", "") else "",
            "--constraint": resources.constraint
            if "jobqueue.yaml" not in resources.origins.get("constraint", "")
            else "",
            "--output": "/dev/null",
            "--export": ",".join(exported(resources)) or "NIL",
        }
        ours = [f"{name}={value}" for name, value in decided.items() if value]
        named = {re.split("[ =]", option)[0] for option in site}
        if _is_own(resources.origins.get("time", "")) and not named & {"-t", "--time"}:
            ours.append(f"--time={resources.time}")  # a site may have that line left out; then it is not the site's
        if not any(option.partition("=")[0] == "--signal" for option in site):
            ours.append(f"--signal=B:USR1@{WARN_S}")  # the keeper warns whoever is connected
        return [*site, *ours, "--no-requeue"]


def _is_own(origin: str) -> bool:
    """Whether a value was asked for, or cut by a budget: not the site's, nor SLURM's own default."""
    return bool(origin) and "jobqueue.yaml" not in origin and "default of" not in origin


def set_time_limit(job_id: str, minutes: int, *, ends: str) -> None:
    """Change a job's walltime.

    Parameters
    ----------
    ends
        When it ends as things are, for whoever is refused.

    Raises
    ------
    LaunchError
        SLURM does not allow it.
    """
    answer = run(["scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes}"])
    POLL.hurry()
    if answer.returncode:
        raise LaunchError(
            f"SLURM does not give job {job_id} more time: {_words(answer.stderr)}. It ends at {ends}.",
            "Save what you need, e.g. `%gather x --to FILE`; once a job runs, an administrator can mostly extend it.",
        )


def shared_poll() -> Poll:
    """Make what all kernels of this user on this host ask SLURM by."""
    return Poll(_mine, _from_squeue, SlurmLauncher().state, name=note_name("jobs"), board=own_board())


def own_board() -> Board:
    """Give the board of this user's kernels on this host; where there is no SLURM no file is made."""
    return Board() if shutil.which("squeue") else Board(boot="")


def note_name(kind: str, *of: str) -> str:
    """Name a note on the board: kernels may mean different clusters, which have different answers."""
    what = "|".join((os.environ.get("SLURM_CONF", ""), shutil.which("squeue") or "", *of))
    return f"{kind}-{blake2b(what.encode(), digest_size=4).hexdigest()}"


def _mine() -> list[str]:
    """Ask for all of the user's jobs of hpcmagic's, those that have just ended too: the id, then what is `SHOWN`."""
    asked = ["squeue", "--noheader", "--me", "--name=hpcmagic", "--states=all", f"--format=%i|{SHOWN}"]
    answer = run(asked, timeout_s=QUERY_TIMEOUT_S)
    if answer.returncode:
        raise LaunchError(f"SLURM does not answer: {_words(answer.stderr)}.", "Try again in a minute.")
    return answer.stdout.splitlines()


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
    if word == "SUSPENDED":  # squeue has no reason for it
        reason = word
    waits = phase == "pending" and reason not in ("None", "")
    known = MEANINGS.get(reason) or MEANINGS.get(reason.partition(",")[0]) or ("", "")
    meaning, mend = known if waits else ("", "")
    state = JobState(phase, word, reason if waits else "", meaning, mend)
    return replace(
        state,
        hopeless=bool(mend) and reason not in HELD,
        expected_start="" if start == "N/A" or phase != "pending" else start.replace("T", " "),
        nodes=nodes if phase == "running" else "",
        elapsed_s=seconds(elapsed) or 0.0,
        left_s=seconds(left),
    )


def _phase(word: str) -> Phase:
    if word in WAITING:
        return "pending"
    return "running" if word in ("RUNNING", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT") else "ended"


def _ended(seen: JobState, status: str) -> JobState:
    """Add what a job's end means; its status is SLURM's pair of exit code and signal."""
    code, _, sign = status.partition(":")
    exit_status = int(code) if code else None
    return replace(seen, reason=seen.word, meaning=_meaning(seen.word, exit_status, sign), exit_status=exit_status)


def _meaning(word: str, code: int | None, sign: str) -> str:
    if code == NO_SUCH_DIRECTORY:
        return "the nodes do not see the session's directory"
    if word == "FAILED" and sign.isdigit() and int(sign):
        known = int(sign) in set(signal.Signals)
        return f"its keeper was killed by {signal.Signals(int(sign)).name if known else f'signal {sign}'}"
    return {
        "TIMEOUT": "its walltime was reached",
        "CANCELLED": "it was cancelled",
        "NODE_FAIL": "a node failed",
        "OUT_OF_MEMORY": "it used more memory than it asked for",
        "FAILED": f"it ended with exit status {code}" if code is not None else "",
    }.get(word, "")


def _user(uid: int) -> str:
    """Name who cancelled a job, as its owner sees it."""
    if uid == os.getuid():
        return "you, with `%hpc stop` or scancel"
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"user {uid}"
    return f"{name}, an administrator"


def _with_columns(text: str, bars: int) -> list[str]:
    """Give the lines that are of a table; a site's squeue may say more than it was asked."""
    return [line.strip() for line in text.splitlines() if line.count("|") >= bars]


def seconds(text: str) -> float | None:
    """Read squeue's elapsed or remaining time."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d)*", text):
        return None
    return walltime_s(text)


def _words(stderr: str) -> str:
    """Give SLURM's own words in one line."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line).strip() for line in stderr.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)).rstrip(".") or "no reason given"


POLL = shared_poll()
