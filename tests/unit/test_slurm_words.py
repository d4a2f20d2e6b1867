"""SLURM's words: how a job stands, why it waits, why one was refused; and the one runner that asks."""

import os
import subprocess

import pytest
from two_lines import two_lines

from hpcmagic.errors import LaunchError
from hpcmagic.launch import slurm
from hpcmagic.launch.base import JobSpec
from hpcmagic.launch.slurm import SlurmLauncher, _from_squeue, answers, default_time, seconds
from hpcmagic.launch.slurm_words import MEANINGS, refusal
from hpcmagic.profiles import Resources, resolve
from hpcmagic.rendezvous import SessionDirectory

# ---- how a job stands


@pytest.mark.parametrize(
    ("line", "phase", "reason", "rest"),
    [
        ("PENDING|Resources|2026-01-02T03:04:05|0:00|1:00:00||x", "pending", "Resources",
         {"expected_start": "2026-01-02 03:04:05", "elapsed_s": 0, "left_s": 3600, "nodes": ""}),
        ("PENDING|Priority|N/A|0:00|2-00:00:00||x", "pending", "Priority", {"expected_start": "", "left_s": 172800}),
        ("PENDING|None|N/A|0:00|10:00||x", "pending", "", {"left_s": 600}),
        ("CONFIGURING|None|2026-01-02T03:04:05|0:02|9:58|n[1-4]|x", "pending", "", {"nodes": ""}),
        ("RUNNING|None|2026-01-02T03:04:05|5:03|54:57|n[1-4]|x", "running", "",
         {"expected_start": "", "elapsed_s": 303, "left_s": 54 * 60 + 57, "nodes": "n[1-4]"}),
        ("RUNNING|None|x|1-02:03:04|UNLIMITED|n1|x", "running", "", {"elapsed_s": 93784, "left_s": None}),
        ("RUNNING|None|x|INVALID|INVALID|n1|x", "running", "", {"elapsed_s": 0, "left_s": None}),
        ("RUNNING|None|x|0:01|NOT_SET|n1|x", "running", "", {"left_s": None}),
        ("SIGNALING|None|x|0:01|1:00|n1|x", "running", "", {"nodes": "n1"}),
        ("COMPLETING|None|x|0:01|1:00|n1|x", "ended", "", {"nodes": ""}),
        ("CANCELLED|None|x|0:01|1:00|n1|x", "ended", "", {}),
        ("TIMEOUT|TimeLimit|x|0:01|0:00|n1|x", "ended", "", {}),
        ("FAILED|NonZeroExitCode|x|0:01|1:00|n1|x", "ended", "", {}),
        ("NODE_FAIL|None|x|0:01|1:00||x", "ended", "", {}),
        ("PREEMPTED|None|x|0:01|1:00||x", "ended", "", {}),
        ("BOOT_FAIL|None|x|0:00|1:00||x", "ended", "", {}),
        ("DEADLINE|None|x|0:01|1:00||x", "ended", "", {}),
        ("OUT_OF_MEMORY|None|x|0:01|1:00||x", "ended", "", {}),
        ("REVOKED|None|x|0:01|1:00||x", "ended", "", {}),
        ("RESIZING|None|x|0:01|1:00|n1|x", "running", "", {"elapsed_s": 1}),
        ("SUSPENDED|None|x|5:03|54:57|n1|x", "pending", "SUSPENDED", {"elapsed_s": 303, "left_s": 54 * 60 + 57}),
        ("REQUEUE_HOLD|None|N/A|0:00|1:00||x", "pending", "", {}),
        ("RESV_DEL_HOLD|None|N/A|0:00|1:00||x", "pending", "", {}),
        ("SPECIAL_EXIT|None|N/A|0:00|1:00||x", "pending", "", {}),
    ],
)  # fmt: skip
def test_squeue(line, phase, reason, rest):
    """squeue's line becomes a state: phase, reason, estimate, nodes and times."""
    state = _from_squeue(line)
    assert (state.phase, state.reason, state.word) == (phase, reason, line.partition("|")[0])
    assert {name: getattr(state, name) for name in rest} == rest


def test_squeue_that_says_more(said):
    """A site's squeue, or sacct, may put a word before or behind what it was asked: that is no state."""
    said["squeue"] = "Cached 10 s ago.\nRUNNING|None|x|5:03|54:57|n1|x\n\nSee our pages.\n"
    assert SlurmLauncher().state("7").elapsed_s == 303
    said["squeue"] = "Cached 10 s ago.\n"
    said["sacct"] = "Welcome.\nCOMPLETED|0:0|61|n1\n"
    assert SlurmLauncher().state("7").word == "COMPLETED"


def test_sbatch_that_gives_up(said, tmp_path):
    """Where sbatch got no answer the job may be in the queue all the same: how to find and end it is said."""
    spec = JobSpec(
        "a", SessionDirectory.create(tmp_path / "sessions" / "a"), resolve({"launcher": "slurm", "time": "5"})
    )
    slow = LaunchError("SLURM's sbatch did not answer within 30 s.", "Try again in a minute.")
    slow.__cause__ = subprocess.TimeoutExpired("sbatch", 30)
    for answer in (
        slow,
        (1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"),
    ):
        said["sbatch"] = answer
        with pytest.raises(LaunchError) as caught:
            SlurmLauncher().submit(spec)
        assert "`%hpc stop --orphans`" in two_lines(caught).mend


@pytest.mark.parametrize("reason", MEANINGS)
def test_every_reason_in_words(reason):
    """Each reason that is known is told in words; where waiting does not help, with what does."""
    state = _from_squeue(f"PENDING|{reason}|N/A|0:00|1:00||x")
    assert state.reason == reason
    assert state.meaning
    assert state.mend or not state.hopeless


@pytest.mark.parametrize(
    ("reason", "hopeless"),
    [
        ("AssocGrpBillingMinutes", True),
        ("PartitionTimeLimit", True),
        ("PartitionNodeLimit", True),
        ("BadConstraints", True),
        ("QOSMaxWallDurationPerJobLimit", True),
        ("Resources", False),
        ("Priority", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("AssocGrpNodeLimit", False),
        ("Dependency", False),
        ("JobHeldUser", False),
        ("JobHeldAdmin", False),
        ("PartitionDown", False),
        ("PartitionInactive", False),
        ("NewWordOfTheNextVersion", False),
    ],
)
def test_hopeless(reason, hopeless):
    """Only a job that would wait for ever as it stands is hopeless; one that is held, or whose partition is down
    for now, keeps its place in the queue: only its owner or time can tell."""
    assert _from_squeue(f"PENDING|{reason}|N/A|0:00|1:00||x").hopeless is hopeless


@pytest.mark.parametrize(
    "reason", ["ReqNodeNotAvail, UnavailableNodes:n[1-2]", "ReqNodeNotAvail, May be reserved for other job"]
)
def test_reason_with_details(reason):
    """A reason to which SLURM adds details is told in words as well."""
    state = _from_squeue(f"PENDING|{reason}|N/A|0:00|1:00||x")
    assert state.reason == reason
    assert "nodes it needs" in state.meaning
    assert not state.hopeless


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:00", 0),
        ("5:03", 303),
        ("1:00:00", 3600),
        ("1-00:00:00", 86400),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("", None),
    ],
)
def test_seconds(text, expected):
    """squeue's times are read; words are no times."""
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("line", "phase", "rest"),
    [
        ("COMPLETED|0:0|61|n[1-4]", "ended", {"exit_status": 0, "elapsed_s": 61, "nodes": "n[1-4]"}),
        ("TIMEOUT|0:0|3600|n1", "ended", {"meaning": "its walltime was reached"}),
        ("CANCELLED by 1001|0:0|0|None assigned", "ended", {"word": "CANCELLED"}),
        (f"CANCELLED by {os.getuid()}|0:0|0|n1", "ended", {"meaning": "it was cancelled by you, with `%hpc stop` or scancel"}),
        ("CANCELLED by 4000001|0:0|0|n1", "ended", {"meaning": "it was cancelled by user 4000001, an administrator"}),
        ("CANCELLED|0:0|0|n1", "ended", {"meaning": "it was cancelled"}),
        ("FAILED|3:0|1|n1", "ended", {"exit_status": 3, "meaning": "it ended with exit status 3"}),
        ("FAILED|0:9|1|n1", "ended", {"exit_status": 0, "meaning": "its keeper was killed by SIGKILL"}),
        ("FAILED|66:0|1|n1", "ended", {"exit_status": 66, "meaning": "the nodes do not see the session's directory"}),
        ("NODE_FAIL|0:0|1|n1", "ended", {"meaning": "a node failed"}),
        ("OUT_OF_MEMORY|0:125|1|n1", "ended", {"meaning": "it used more memory than it asked for"}),
        ("PREEMPTED|0:0||n1", "ended", {"elapsed_s": 0}),
        ("CANCELLED by 1001|0:0|5|n1\nCOMPLETED|0:0|61|n2", "ended", {"word": "COMPLETED", "nodes": "n2"}),
        ("RUNNING|0:0|5|n1", "unknown", {}),
        ("PENDING|0:0|0|None assigned", "unknown", {}),
        ("", "ended", {"word": "GONE"}),
    ],
)  # fmt: skip
def test_sacct(said, line, phase, rest):
    """Of a job that has left the queue accounting tells the end; where it knows nothing, the job is gone."""
    said["squeue"] = (1, "", "slurm_load_jobs error: Invalid job id specified")
    said["sacct"] = f"{line}\n" if line else ""
    state = SlurmLauncher().state("8123")
    assert state.phase == phase
    assert {name: getattr(state, name) for name in rest} == rest
    assert all("8123" in " ".join(command) for command, _ in said["asked"])


def test_no_accounting(said):
    """A site without accounting can still tell that a job is gone."""
    said["squeue"] = (1, "", "slurm_load_jobs error: Invalid job id specified")
    said["sacct"] = (1, "", "Slurm accounting storage is disabled")
    assert SlurmLauncher().state("8123").phase == "ended"


@pytest.mark.parametrize(
    ("said_of_it", "status", "meaning"),
    [
        ("JobId=8123 ExitCode=66:0 Reason=x", 66, "the nodes do not see the session's directory"),
        ("JobId=8123 DerivedExitCode=9:0 ExitCode=1:0", 1, "it ended with exit status 1"),
        ("", None, ""),
    ],
)
def test_end_that_the_queue_remembers(said, said_of_it, status, meaning):
    """How a job ended that is still in the controller's memory is known at once, before accounting has it."""
    said["squeue"] = "FAILED|NonZeroExitCode|x|0:01|1:00|n1|x\n"
    said["scontrol"] = said_of_it
    state = SlurmLauncher().state("8123")
    assert (state.phase, state.exit_status) == ("ended", status)
    assert state.meaning == meaning


@pytest.mark.parametrize(
    ("accounted", "remembered", "word", "meaning"),
    [
        ("TIMEOUT|0:0|60|n1", "", "TIMEOUT", "its walltime was reached"),
        ("CANCELLED by 4000001|0:0|6|n1", "", "CANCELLED", "it was cancelled by user 4000001, an administrator"),
        ("", "JobState=COMPLETING Reason=TimeLimit ExitCode=0:0", "TIMEOUT", "its walltime was reached"),
        ("", "JobState=COMPLETING Reason=None ExitCode=0:0", "COMPLETING", ""),
    ],
)
def test_end_while_it_completes(said, accounted, remembered, word, meaning):
    """A job that is being cleaned up has ended: how, accounting knows already, or the controller's reason."""
    said["squeue"] = "COMPLETING|None|x|0:06|1:00|n1|x\n"
    said["scontrol"] = remembered
    said["sacct"] = accounted
    state = SlurmLauncher().state("8123")
    assert (state.phase, state.word, state.meaning) == ("ended", word, meaning)


@pytest.mark.parametrize(
    "answer",
    [
        (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
        (1, "", "slurm_load_jobs error: Socket timed out on send/recv operation"),
        LaunchError("SLURM's squeue did not answer within 30 s.", "Try again in a minute."),
    ],
    ids=["no controller", "socket", "no answer"],
)
def test_queue_does_not_answer(said, answer):
    """When the queue does not answer, the job's state is unknown: nobody takes it for ended, nobody stops waiting."""
    said["squeue"] = answer
    assert SlurmLauncher().state("8123").phase == "unknown"


# ---- why one was refused


FAILED = "sbatch: error: Batch job submission failed: "
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
NO_NODES = "Requested node configuration is not available"
REFUSED = [  # a line before the last, the last one's words, what the mend must name
    ("invalid partition specified: nope", "Invalid partition name specified", "--partition"),
    ("", "Invalid account or account/partition combination specified", "--account"),
    ("", "Invalid qos specification", "--qos"),
    ("", "Requested time limit is invalid (missing or exceeds some limit)", "--time"),
    ("", NO_NODES, "--nodes"),
    ("", "Node count specification invalid", "--nodes"),
    ("", "More processors requested than permitted", "--cpus-per-task"),
    ("Memory specification can not be satisfied", NO_NODES, "--mem"),
    ("", "Invalid feature specification", "--constraint"),
    ("", "Invalid generic resource (gres) specification", "--gpus-per-node"),
    ("", POLICY, "sacctmgr show associations"),
    ("QOSMaxWallDurationPerJobLimit", POLICY, "--time"),
    ("AssocGrpBillingMinutes", POLICY, "--time"),
    ("QOSMaxNodePerJobLimit", POLICY, "--nodes"),
    ("", "User's group not permitted to use this partition", "--partition"),
    ("", "Unable to contact slurm controller (connect failure)", "again"),
    ("", "Socket timed out on send/recv operation", "again"),
    ("", "Some words of the next version", "--dry-run"),
]


@pytest.mark.parametrize(("before", "words", "mend"), REFUSED)
def test_refusals(before, words, mend):
    """Whatever sbatch says is passed on in its words, in two lines, with what mends it."""
    stderr = f"sbatch: error: {before}\n{FAILED}{words}\n" if before else f"{FAILED}{words}\n"
    with pytest.raises(LaunchError) as refused:
        raise refusal(slurm._words(stderr), Resources())
    error = two_lines(refused)
    assert mend in error.mend
    assert words in error.message
    assert before in error.message
    assert "Batch job submission failed" not in error.message
    assert "sbatch: error" not in error.message


@pytest.mark.parametrize("stderr", ["", "\n\n", "sbatch: error: cli_filter plugin terminated with error\n"])
def test_refusal_in_other_words(stderr):
    """A refusal without words, or by something before SLURM, is told as well, and how to see the script."""
    with pytest.raises(LaunchError) as refused:
        raise refusal(slurm._words(stderr), Resources())
    assert "--dry-run" in two_lines(refused).mend


def test_refusal_says_what_was_asked():
    """A refusal repeats what was asked for, and not what was left to the site."""
    resources = resolve({"nodes": 4, "partition": "nope", "time": "5"}, {})
    message = refusal("Invalid partition name specified", resources).message
    assert "--nodes 4" in message
    assert "--partition nope" in message
    assert "--account" not in message


@pytest.mark.parametrize(
    ("partition", "rows", "found"),
    [
        ("", None, ("debug", "30:00")),
        ("long", "long|n/a|7-00:00:00\n", ("long", "7-00:00:00")),
        ("forever", "forever|NONE|infinite\n", ("forever", "infinite")),
        ("debug", "debug*|1:00|1:00:00\n", ("debug", "1:00")),
        ("", "a|1|2\nb*|3|4\n", ("b", "3")),
        ("nowhere", "", ("nowhere", "")),
        ("", "", ("", "")),
    ],
)
def test_default_time(said, partition, rows, found):
    """The default walltime is what sinfo says of the partition: its default, else its limit, else nothing."""
    if rows is not None:
        said["sinfo"] = rows
    assert default_time(partition) == found


# ---- cancelling


def test_cancel(said):
    """Cancelling says nothing where it succeeds, or where there is nothing to cancel."""
    for answer in ("", (1, "", "scancel: error: Kill job error on job id 8123: Invalid job id specified")):
        said["scancel"] = answer
        SlurmLauncher().cancel("8123")
    assert said["asked"][-1][0] == ["scancel", "8123"]


def test_cancel_fails(said):
    """A job that could not be cancelled goes on costing: that is an error, and shows how to do it by hand."""
    said["scancel"] = (1, "", "scancel: error: Kill job error on job id 8123: Access/permission denied")
    with pytest.raises(LaunchError, match="permission denied") as error:
        SlurmLauncher().cancel("8123")
    assert "scancel 8123" in error.value.mend


# ---- is there a SLURM?


NO_CLUSTER = (
    "sinfo: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
    "sinfo: error: fetch_config: DNS SRV lookup failed\n"
    "sinfo: error: _establish_config_source: failed to fetch config\n"
    "sinfo: fatal: Could not establish a configuration source\n"
)


def not_here():
    """What the runner raises where a command is not installed."""
    error = LaunchError("SLURM's sinfo is not on this machine.", "")
    error.__cause__ = FileNotFoundError()
    return error


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("debug*\n", True), ("", True), ((1, "", NO_CLUSTER), False), (not_here(), False)],
    ids=["partitions", "no partition", "no cluster", "no commands"],
)
def test_answers(said, answer, expected):
    """SLURM is here where sinfo answers; commands without a cluster are none."""
    said["sinfo"] = answer
    assert answers() is expected


@pytest.mark.parametrize(
    "answer",
    [
        (1, "", "slurm_load_partitions: Unable to contact slurm controller (connect failure)\n"),
        LaunchError("SLURM's sinfo did not answer within 30 s.", "Try again in a minute."),
    ],
    ids=["no controller", "no answer"],
)
def test_away_for_now(said, answer):
    """A SLURM that is away for now is an error: nobody is silently given a session on the login node instead."""
    said["sinfo"] = answer
    with pytest.raises(LaunchError) as error:
        answers()
    two_lines(error)


# ---- the one runner


@pytest.fixture
def executed(monkeypatch):
    """What the runner would have executed."""
    calls = []

    def run(command, **kwargs):
        calls.append((command, kwargs))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(slurm.subprocess, "run", run)
    return calls


def test_runner_environment(executed, monkeypatch):
    """A notebook that itself runs in a job, or whose user set sbatch's variables, asks SLURM as if it did not."""
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SBATCH_EXPORT", "SQUEUE_FORMAT", "SACCT_FORMAT", "SINFO_FORMAT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/other.conf")
    slurm.run(["sinfo"])
    environment = executed[0][1]["env"]
    assert [name for name in environment if name.startswith(("SLURM", "SBATCH", "SQUEUE", "SACCT", "SINFO"))] == [
        "SLURM_CONF"
    ]
    assert "PATH" in environment


def test_runner_is_careful(executed):
    """No command waits for ever, reads the notebook's input, or is hit by its Ctrl-C."""
    slurm.run(["squeue"])
    kwargs = executed[0][1]
    assert kwargs["timeout"] == slurm.COMMAND_TIMEOUT_S
    assert kwargs["stdin"] == subprocess.DEVNULL
    assert kwargs["start_new_session"]
    assert not kwargs.get("shell")


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (FileNotFoundError(), "not on this machine"),
        (subprocess.TimeoutExpired("sbatch", 30), "did not answer"),
        (PermissionError(13, "Permission denied"), "sbatch"),
    ],
)
def test_runner_translates(monkeypatch, raised, words):
    """A command that cannot be run is told in two lines."""

    def run(*_args, **_kwargs):
        raise raised

    monkeypatch.setattr(slurm.subprocess, "run", run)
    with pytest.raises(LaunchError, match=words) as error:
        slurm.run(["sbatch"])
    two_lines(error)
    assert error.value.__cause__ is raised
