"""How a session stands: the keeper's word and the batch system's, put together."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from hpcmagic.cost import Cost
from hpcmagic.launch.base import JobState, Launcher
from hpcmagic.notebook.causes import as_seen, held_words
from hpcmagic.notebook.spending import cost_of
from hpcmagic.rendezvous import JobRecord, KeeperState, Request, SessionDirectory

ANSWER_S = 2.0  # how long to wait for the batch system's answer, while a cell's output waits to be shown


@dataclass(frozen=True, slots=True)
class Status:
    """How a session stands.

    Attributes
    ----------
    state
        ``pending``, ``starting``, ``ready``, ``fallen`` or ``ended``.
    reason
        Why it waits, or how it or its ranks ended, in words.
    left_s
        Seconds until the walltime; None where there is none.
    cost
        What it has cost so far, and may cost; None where SLURM does not tell what its job is charged.
    """

    session: str
    state: str
    launcher: str
    job_id: str
    reason: str
    nodes: tuple[str, ...]
    ranks: int
    elapsed_s: float
    left_s: float | None
    cost: Cost | None = None


def status_of(
    request: Request,
    job: JobRecord,
    keeper: KeeperState | None,
    seen: JobState,
    *,
    elapsed_s: float,
    left_s: float | None,
    directory: SessionDirectory | None = None,
) -> Status:
    """Put the keeper's and the batch system's words together."""
    phase = keeper.phase if keeper is not None else "starting" if seen.phase == "running" else "pending"
    cause = as_seen(keeper.cause, seen) if keeper is not None else ""
    if seen.phase == "ended" and phase != "ended":
        phase, cause = "ended", seen.meaning or seen.word
    elif seen.phase == "pending":
        phase, cause = "pending", " – ".join(filter(None, (seen.reason, seen.meaning)))
    elif keeper is not None and phase == "fallen":
        cause = held_words(keeper, left_s)
    nodes = tuple(dict.fromkeys(keeper.nodes)) if keeper is not None and phase != "pending" else ()
    if phase == "ended":
        left_s = None
    cost = cost_of(directory, request, job, phase, elapsed_s=elapsed_s, left_s=left_s)
    return Status(
        request.session, phase, request.launcher, job.job_id, cause, nodes, request.ntasks, elapsed_s, left_s, cost
    )


class JobSeen:
    """How a job stood when the batch system was asked last, and since when that is."""

    def __init__(self, launcher: Launcher, job: JobRecord, *, ended: bool = False) -> None:
        self.launcher = launcher
        self.job = job
        self.state, self._at_s = JobState("ended" if ended else "unknown"), time.monotonic()
        self._asking: threading.Thread | None = None
        self._lock = threading.Lock()
        if not ended:
            self.look()

    def look(self) -> None:
        """Ask again; until an answer comes what was seen last stands, and nobody waits for it for long."""
        with self._lock:  # a handle's display looks in a thread of its own
            if self._asking is None or not self._asking.is_alive():
                self._asking = threading.Thread(target=self._ask, name="hpcmagic-asks", daemon=True)
                self._asking.start()
            asking = self._asking
        asking.join(ANSWER_S)

    def status(self, directory: SessionDirectory, request: Request, keeper: KeeperState | None) -> Status:
        """Give how the session stands, as it was seen last."""
        elapsed_s, left_s = self.elapsed_s(), self.left_s()
        return status_of(
            request, self.job, keeper, self.state, elapsed_s=elapsed_s, left_s=left_s, directory=directory
        )

    def _ask(self) -> None:
        seen = self.launcher.state(self.job.job_id)
        if seen.phase != "unknown":
            self.state, self._at_s = seen, time.monotonic()

    def elapsed_s(self) -> float:
        """Seconds since the job began, by SLURM's count."""
        if self.job.launcher == "local":
            return max(0.0, time.time() - self.job.submitted)
        return self.state.elapsed_s + time.monotonic() - self._at_s

    def left_s(self) -> float | None:
        """Seconds until the walltime; None where there is none."""
        left = self.state.left_s
        return None if left is None else max(0.0, left - (time.monotonic() - self._at_s))
