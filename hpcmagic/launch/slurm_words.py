"""SLURM's words in plain ones: why a job waits, why one was refused, and what mends it.

Reasons are those of squeue's manual page, section JOB REASON CODES.
"""

from __future__ import annotations

import re

from hpcmagic.errors import LaunchError
from hpcmagic.profiles import Resources

LESS_TIME = "Ask for less with `--time`, or take another `--account`, `--partition` or `--qos`."
FEWER = "Ask for fewer `--nodes` or `--cpus-per-task`, or take another `--partition` or `--qos`."

MEANINGS: dict[str, tuple[str, str]] = {  # reason → meaning, mend; a mend only where waiting does not help
    "Resources": ("the nodes are busy; yours is next as soon as some are free", ""),
    "Priority": ("other jobs come first", ""),
    "BeginTime": ("it may not start before a set time", ""),
    "Dependency": ("it waits for another job", ""),
    "JobHeldUser": ("it is held", "Release it with `scontrol release JOBID`."),
    "JobHeldAdmin": ("an administrator holds it", "Ask your site's support."),
    "ReqNodeNotAvail": ("nodes it needs are down or reserved", ""),
    "ReqNodeNotAvail, May be reserved for other job": ("nodes it needs are reserved for now", ""),
    "Reservation": ("it waits for its reservation", ""),
    "Licenses": ("it waits for a licence", ""),
    "SUSPENDED": ("SLURM has suspended it, and will have it go on: nothing of it is lost", ""),
    "Cleaning": ("the nodes are being cleaned up", ""),
    "PartitionDown": ("the partition is down", "Take another `--partition`, or ask your site's support."),
    "PartitionInactive": ("the partition takes no jobs now", "Take another `--partition`."),
    "PartitionNodeLimit": ("the partition does not have, or allow, that many nodes", FEWER),
    "PartitionTimeLimit": ("the partition does not allow that much time", "Ask for less with `--time`."),
    "PartitionConfig": ("the partition does not allow what it asks for", FEWER),
    "BadConstraints": (
        "no node can ever meet its constraints",
        "Check `--constraint`, `--mem` and `--gpus-per-node`.",
    ),
    "InvalidAccount": ("the account is not valid", "Choose another with `--account`."),
    "InvalidQOS": ("the QOS is not valid", "Choose another with `--qos`."),
    "AssocGrpBillingMinutes": ("it asks for more billing-minutes than the account has left", LESS_TIME),
    "AssocGrpCPUMinutesLimit": ("it asks for more CPU-minutes than the account has left", LESS_TIME),
    "QOSGrpBillingMinutes": ("it asks for more billing-minutes than the QOS has left", LESS_TIME),
    "QOSGrpCPUMinutesLimit": ("it asks for more CPU-minutes than the QOS has left", LESS_TIME),
    "AssocMaxWallDurationPerJobLimit": ("it asks for more time than a job of yours may have", LESS_TIME),
    "QOSMaxWallDurationPerJobLimit": ("it asks for more time than the QOS allows", LESS_TIME),
    "AssocMaxNodePerJobLimit": ("it asks for more nodes than a job of yours may have", FEWER),
    "QOSMaxNodePerJobLimit": ("it asks for more nodes than the QOS allows", FEWER),
    "AssocMaxCpuPerJobLimit": ("it asks for more CPUs than a job of yours may have", FEWER),
    "QOSMaxCpuPerJobLimit": ("it asks for more CPUs than the QOS allows", FEWER),
    "AssocGrpNodeLimit": ("your group's jobs use all the nodes it may have", ""),
    "AssocGrpCpuLimit": ("your group's jobs use all the CPUs it may have", ""),
    "QOSMaxJobsPerUserLimit": ("you have as many jobs as the QOS lets you", ""),
    "AssocMaxJobsLimit": ("you have as many jobs as you may", ""),
}

HELD = ("JobHeldUser", "JobHeldAdmin", "PartitionDown", "PartitionInactive")  # somebody may let it go on

MAY_BE_THERE = (  # sbatch gave up waiting: nobody knows whether SLURM has taken the job
    "It may have taken the job all the same: when it answers again, look with `squeue --me`, and "
    "`%hpc stop --orphans` ends what belongs to no session."
)
REFUSALS = (  # words of sbatch → mend
    (r"invalid partition", "Choose one of `sinfo -s` with `--partition`."),
    (r"invalid account", "Choose one of `sacctmgr show associations user=$USER` with `--account`."),
    (r"invalid qos", "Choose one of `sacctmgr show qos` with `--qos`."),
    (r"gres|generic resource", "Check `--gpus-per-node` against `sinfo -o '%P %G'`."),
    (r"not permitted to use this partition", "Choose another with `--partition`; `sinfo -s` lists them."),
    (r"accounting/qos policy", "`sacctmgr show associations user=$USER` shows your limits; ask for less."),
    (r"time limit", "Ask for less with `--time`; `sinfo -o '%P %l'` shows each partition's limit."),
    (r"node count|node configuration|more processors|memory specification",
     "Ask for less: `--nodes`, `--ntasks-per-node`, `--cpus-per-task`, `--gpus-per-node`, `--mem` (`sinfo -N -l`)."),
    (r"feature", "Check `--constraint` against `sinfo -o '%N %f'`."),
    (r"limit", "`sacctmgr show associations user=$USER` shows your limits; ask for less."),
    (r"timed out", MAY_BE_THERE),
    (r"unable to contact|connection refused", "SLURM's controller is away: try again in a minute."),
)  # fmt: skip


def refusal(words: str, resources: Resources) -> LaunchError:
    """Give the error for a submission that sbatch refused with these words."""
    words = words.replace("Batch job submission failed: ", "")
    by_reason = next(
        (mend for reason, (_, mend) in MEANINGS.items() if mend and re.search(rf"\b{reason}\b", words)), ""
    )
    mend = by_reason or next((m for pattern, m in REFUSALS if re.search(pattern, words, re.IGNORECASE)), "")
    asked = ", ".join(
        f"--{name.replace('_', '-')} {value}"
        for name in (
            "ntasks_per_node",
            "cpus_per_task",
            "mem",
            "gpus_per_node",
            "time",
            "partition",
            "account",
            "qos",
            "constraint",
        )
        if (value := getattr(resources, name)) and name in resources.origins
    )
    said = f" (asked: --nodes {resources.nodes}{', ' + asked if asked else ''})"
    return LaunchError(
        f"SLURM refused the job: {words}{said}.", mend or "See the words above; `--dry-run` shows the script."
    )
