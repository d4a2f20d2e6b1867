"""The one narrow seam to a batch system: submit, state, cancel.

Launcher            where the keeper runs
├── LocalLauncher   a detached process on this machine
├── SlurmLauncher   the batch step of one SLURM job
└── FakeLauncher    nowhere (hpcmagic.testing)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from hpcmagic.profiles import Resources
from hpcmagic.rendezvous import SessionDirectory

Phase = Literal["pending", "running", "ended", "unknown"]


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What to submit: the keeper of one session."""

    session: str
    directory: SessionDirectory
    resources: Resources


@dataclass(frozen=True, slots=True)
class JobState:
    """How a job stands, in the batch system's words and in plain ones.

    Attributes
    ----------
    phase
        ``unknown``: the batch system did not answer; the job may well be there.
    word
        The batch system's own state, e.g. ``PENDING``.
    reason, meaning
        Why it waits or how it ended: the batch system's word, and what that means.
    mend
        What would let a job start that cannot as it stands; empty when waiting is all there is to do.
    expected_start
        The batch system's estimate, local time as it prints it, or empty.
    """

    phase: Phase
    word: str = ""
    reason: str = ""
    meaning: str = ""
    mend: str = ""
    expected_start: str = ""
    nodes: str = ""
    elapsed_s: float = 0.0
    left_s: float | None = None
    exit_status: int | None = None

    @property
    def hopeless(self) -> bool:
        """Whether it waits for something that waiting does not bring."""
        return self.phase == "pending" and bool(self.mend)


class Launcher(Protocol):
    """A batch system, seen from the kernel. Every real one and the fake pass the same contract test."""

    name: str

    def completed(self, resources: Resources) -> Resources:
        """Fill what was left open from what this batch system's site says."""

    def script(self, spec: JobSpec) -> str:
        """Give the exact script, without submitting it."""

    def submit(self, spec: JobSpec) -> str:
        """Submit; give the job's id.

        Raises
        ------
        LaunchError
            It was refused, in the batch system's words, with the mend.
        """

    def state(self, job_id: str) -> JobState:
        """Say how a job stands. Never raises for a job that is gone: that is ``ended``."""

    def cancel(self, job_id: str) -> None:
        """End a job, whatever its state; without effect on one that has ended."""
