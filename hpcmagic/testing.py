"""Public fakes, for tests of code that uses hpcmagic: a batch system that runs nothing, a clock that waits."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcmagic.errors import LaunchError
from hpcmagic.launch.base import JobSpec, JobState
from hpcmagic.profiles import Resources


@dataclass
class FakeLauncher:
    """A batch system in memory: jobs stand as the test says.

    Attributes
    ----------
    refuse
        If set, `submit` raises a LaunchError with these words.
    jobs
        State by job id; change it to let a job run or end.
    """

    name: str = "fake"
    refuse: str = ""
    jobs: dict[str, JobState] = field(default_factory=dict)

    def completed(self, resources: Resources) -> Resources:
        """Nothing is left open."""
        return resources

    def script(self, spec: JobSpec) -> str:
        """Give a script that names the session."""
        return f"# fake job of session {spec.session}\n"

    def expected_start(self, spec: JobSpec) -> str:  # noqa: ARG002  # of a batch system that knows nothing
        """Nobody tells."""
        return ""

    def submit(self, spec: JobSpec) -> str:
        """Queue a job that waits until the test lets it run."""
        if self.refuse:
            raise LaunchError(f"The fake batch system refused {spec.session}: {self.refuse}.", "Ask it otherwise.")
        job_id = str(len(self.jobs) + 1)
        self.jobs[job_id] = JobState("pending", "PENDING", "Resources", "the nodes are busy")
        return job_id

    def state(self, job_id: str, *, max_age_s: float = 0.0) -> JobState:  # noqa: ARG002  # it always knows
        """Say how a job stands."""
        return self.jobs.get(job_id, JobState("ended", "GONE"))

    def known(self, job_id: str) -> JobState:
        """Say how a job stands."""
        return self.state(job_id)

    def cancel(self, job_id: str) -> None:
        """End a job."""
        if job_id in self.jobs:
            self.jobs[job_id] = JobState("ended", "CANCELLED")


@dataclass
class FakeClock:
    """A monotonic clock that moves only when told to."""

    now_s: float = 0.0

    def __call__(self) -> float:
        """Give the time in seconds."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
