"""How a session stands: the keeper's word and the batch system's, put together."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, replace
from functools import partial

from hpcmagic.cost import Cost
from hpcmagic.launch.base import AT_ITS_PACE, FRESH_S, JobState, Launcher
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


def ran_here_s(directory: SessionDirectory, job: JobRecord) -> float:
    """Give how long a session ran on this machine that has ended: until its keeper's last word."""
    with contextlib.suppress(FileNotFoundError):
        return max(0.0, directory.state.stat().st_mtime - job.submitted)
    return 0.0


class JobSeen:
    """How a job stood when the batch system was asked last, and since when that is."""

    def __init__(self, launcher: Launcher, job: JobRecord, *, ended: bool = False) -> None:
        self.launcher = launcher
        self.job = job
        self.state, self._at_s = JobState("ended" if ended else "unknown"), time.monotonic()
        self._told_s = self._at_s  # when the batch system said so
        self._stale = False
        self._asking: threading.Thread | None = None
        self._asking_for_s = 0.0
        self._lock = threading.Lock()
        if not ended:
            self.look(FRESH_S)

    def look(self, max_age_s: float = 0.0) -> None:
        """Ask again; until an answer comes what was seen last stands, and nobody waits for it for long.

        Parameters
        ----------
        max_age_s
            So old an answer will do; 0 = ask now, for this job alone.
        """
        self._begin(max_age_s).join(ANSWER_S)

    def glance(self) -> None:
        """See to it that the state is as new as the shared poll's pace has it; never wait for that."""
        if self.state.decided:
            return
        seen = self.launcher.known(self.job.job_id)
        if seen is None:
            self._begin(AT_ITS_PACE)
        else:
            self._take(seen)

    def status(self, directory: SessionDirectory, request: Request, keeper: KeeperState | None) -> Status:
        """Give how the session stands, as it was seen last."""
        if keeper is not None and keeper.phase == "ended" and self.state.phase != "ended":
            self._begin(FRESH_S)  # it may know better why, and nobody wants to wait for that until it is due
        elapsed_s, left_s = self.elapsed_s(), self.left_s()
        if self.job.launcher == "local" and keeper is not None and keeper.phase == "ended":
            elapsed_s = ran_here_s(directory, self.job)
        return status_of(
            request, self.job, keeper, self.state, elapsed_s=elapsed_s, left_s=left_s, directory=directory
        )

    def elapsed_s(self) -> float:
        """Seconds since the job began, by SLURM's count."""
        return self._now().elapsed_s

    def left_s(self) -> float | None:
        """Seconds until the walltime; None where there is none."""
        return self._now().left_s

    def stale_s(self) -> float:
        """For how long the batch system has not said how the job stands, though it was asked; 0 = it answers."""
        return time.monotonic() - self._told_s if self._stale else 0.0

    def _now(self) -> JobState:
        return self.state.after(time.monotonic() - self._at_s)

    def _begin(self, max_age_s: float) -> threading.Thread:
        """Ask in a thread, unless one is at it that will bring an answer as young."""
        with self._lock:  # a handle's display looks in a thread of its own
            if self._asking is None or not self._asking.is_alive() or self._asking_for_s > max_age_s:
                ask, self._asking_for_s = partial(self._ask, max_age_s), max_age_s
                self._asking = threading.Thread(target=ask, name="hpcmagic-asks", daemon=True)
                self._asking.start()
            return self._asking

    def _ask(self, max_age_s: float) -> None:
        self._take(self.launcher.state(self.job.job_id, max_age_s=max_age_s))

    def _take(self, seen: JobState) -> None:
        """Keep what the batch system said, unless what is known is newer."""
        now = time.monotonic()
        told_s = now - seen.age_s
        if seen.phase != "unknown" and (told_s > self._told_s or self.state.phase == "unknown"):
            if seen.phase == "ended" and not seen.elapsed_s:  # nobody says how long it ran
                seen = replace(seen, elapsed_s=self.elapsed_s())
            self.state, self._at_s, self._told_s, self._stale = seen, now, told_s, seen.stale
        else:  # nothing newer than what is known: that stands
            self._stale = self._stale or seen.stale
