"""The one narrow seam to a batch system: submit, state, cancel.

Launcher            where the keeper runs
├── LocalLauncher   a detached process on this machine
├── SlurmLauncher   the batch step of one SLURM job
└── FakeLauncher    nowhere (hpcmagic.testing)
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from hpcmagic.profiles import Resources
from hpcmagic.rendezvous import SessionDirectory

Phase = Literal["pending", "running", "ended", "unknown"]


EXPORTED = (  # a job sees these variables of the notebook's environment and no others
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH",
    "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "MODULEPATH", "MODULESHOME", "LOADEDMODULES",
    "OPENBLAS_NUM_THREADS", "XDG_STATE_HOME", "XDG_CACHE_HOME", "MPI4PY_LIBMPI", "MPLCONFIGDIR",
)  # fmt: skip
EXPORTED_PREFIXES = ("LC_", "OMP_", "MKL_", "OMPI_", "PRTE_", "PMIX_MCA_", "UCX_", "FI_", "I_MPI_", "MPICH_", "NCCL_")
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|_KEY|APIKEY", re.IGNORECASE)

FRESH_S = 2.0  # so old may be what one is told who asks just to know
AT_ITS_PACE = math.inf  # as old as the shared poll lets an answer become


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
        What would help a job that waiting alone does not; empty when waiting is all there is to do.
    hopeless
        Whether it can never start as it stands.
    expected_start
        The batch system's estimate, local time as it prints it, or empty.
    elapsed_s, left_s
        As of now, also when the batch system was asked some time ago …
    age_s
        … namely so long ago.
    stale
        It has been asked since, and did not answer.
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
    hopeless: bool = False
    age_s: float = 0.0
    stale: bool = False

    @property
    def decided(self) -> bool:
        """Whether it is over, and nothing more will be said of how."""
        return self.phase == "ended" and self.word not in ("GONE", "COMPLETING")

    def after(self, seconds: float, *, stale: bool = False) -> JobState:
        """Give it as it is so much later if nothing but time has changed."""
        runs_s = seconds if self.phase == "running" else 0.0
        left_s = None if self.left_s is None else max(0.0, self.left_s - runs_s)
        elapsed_s, age_s = self.elapsed_s + runs_s, self.age_s + seconds
        return replace(self, elapsed_s=elapsed_s, left_s=left_s, age_s=age_s, stale=stale or self.stale)


def exported(resources: Resources) -> list[str]:
    """Give the names of the environment variables that a job sees: a list, never all of them."""
    names = [n for n in os.environ if n in EXPORTED or n.startswith(EXPORTED_PREFIXES)]
    names = [n for n in names if not SECRET.search(n)]
    return sorted({*names, *(n for n in resources.env if n in os.environ)})


class Launcher(Protocol):
    """A batch system, seen from the kernel. Every real one and the fake pass the same contract test."""

    name: str

    def completed(self, resources: Resources) -> Resources:
        """Fill what was left open from what this batch system's site says."""

    def script(self, spec: JobSpec) -> str:
        """Give the exact script, without submitting it."""

    def expected_start(self, spec: JobSpec) -> str:
        """Say when a job would start if it were submitted now, local time as it prints it; empty = nobody tells."""

    def submit(self, spec: JobSpec) -> str:
        """Submit; give the job's id.

        Raises
        ------
        LaunchError
            It was refused, in the batch system's words, with the mend.
        """

    def state(self, job_id: str, *, max_age_s: float = 0.0) -> JobState:
        """Say how a job stands. Never raises for a job that is gone: that is ``ended``.

        Parameters
        ----------
        max_age_s
            So old an answer will do, which somebody else may have asked for; 0 = ask now.
        """

    def known(self, job_id: str) -> JobState | None:
        """Say how a job stands if that can be told at once, and as young as `AT_ITS_PACE` has it; never waits."""

    def cancel(self, job_id: str) -> None:
        """End a job, whatever its state; without effect on one that has ended."""
