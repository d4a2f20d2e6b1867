"""What a SLURM site offers: its partitions, and your accounts and QOS; asked seldom, waited for shortly.

Somebody who presses Tab, or whose cell has just ended, shall not wait for SLURM: an answer that takes longer than two
seconds serves the next one who asks, and nothing is asked twice within ten minutes.
"""

from __future__ import annotations

import os
import pwd
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hpcmagic.errors import HpcMagicError
from hpcmagic.launch import slurm

ASK_AGAIN_S = 600.0
WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes of one kind in one partition.

    Attributes
    ----------
    default
        Whether a job without a choice goes to this partition.
    up
        Whether the partition takes jobs.
    limit_s
        The longest walltime; None = there is no limit.
    """

    partition: str
    default: bool
    up: bool
    cpus: int
    mem_nbytes: int
    limit_s: float | None
    features: tuple[str, ...] = ()


class Offers:
    """The site's answers, each kept for ten minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked_s: dict[str, float] = {}
        self._answers: dict[str, tuple[Any, ...]] = {}
        self._lock = threading.Lock()

    def node_kinds(self) -> tuple[NodeKind, ...]:
        """Give the kinds of nodes that there are; none where SLURM does not answer."""
        return self._answer("nodes", _node_kinds)

    def names(self, what: str) -> tuple[str, ...]:
        """Give the names that an option takes: `partition`, `constraint`, `account` or `qos`."""
        if what == "partition":
            return tuple(dict.fromkeys(kind.partition for kind in self.node_kinds()))
        if what == "constraint":
            return tuple(sorted({feature for kind in self.node_kinds() for feature in kind.features}))
        return self._answer(what, lambda: _of_association(what))

    def _answer(self, what: str, ask: Callable[[], Sequence[Any]]) -> tuple[Any, ...]:
        with self._lock:
            asking = None
            if self._clock() - self._asked_s.get(what, float("-inf")) >= ASK_AGAIN_S:
                self._asked_s[what] = self._clock()
                asking = threading.Thread(target=self._ask, args=(what, ask), name="hpcmagic-offers", daemon=True)
                asking.start()
        if asking is not None:
            asking.join(WAIT_S)
        return self._answers.get(what, ())

    def _ask(self, what: str, ask: Callable[[], Sequence[Any]]) -> None:
        try:
            self._answers[what] = tuple(ask())
        except (HpcMagicError, OSError, ValueError):  # what was known stays
            return


OFFERS = Offers()


def _lines(*command: str) -> list[str]:
    """Give what a command of SLURM's says; nothing where it fails."""
    answer = slurm.run(command, timeout_s=slurm.QUERY_TIMEOUT_S)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def _node_kinds() -> list[NodeKind]:
    """Ask sinfo for partition, state, CPUs, memory in MB, walltime and features."""
    rows = [line.split("|") for line in _lines("sinfo", "--noheader", "--exact", "--format=%P|%a|%c|%m|%l|%f")]
    return [_node_kind(row) for row in rows if len(row) == 6]


def _node_kind(row: Sequence[str]) -> NodeKind:
    name, state, cpus, mem, limit, features = row
    return NodeKind(
        name.rstrip("*"), name.endswith("*"), state.strip() == "up", int(cpus.rstrip("+")),
        int(mem.rstrip("+")) << 20, slurm.seconds(limit),
        () if features in ("(null)", "") else tuple(features.split(",")),
    )  # fmt: skip


def _of_association(what: str) -> list[str]:
    """Ask accounting for this user's accounts or QOS; where it is away, sshare for the accounts."""
    user = pwd.getpwuid(os.getuid()).pw_name if _has_name() else str(os.getuid())
    shown = ("--noheader", "--parsable2")
    lines = _lines("sacctmgr", *shown, "show", "associations", f"user={user}", f"format={what}")
    if not any(lines) and what == "account":
        lines = _lines("sshare", *shown, f"--users={user}", "--format=Account,User")
        lines = [line.partition("|")[0] for line in lines if line.partition("|")[2].strip() == user]
    return sorted({name.strip() for line in lines for name in line.split(",") if name.strip()})


def _has_name() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:  # a container may know none
        return False
    return True
