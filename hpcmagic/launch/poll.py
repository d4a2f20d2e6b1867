"""One polite poll: all jobs of a user asked for at once, for all of that user's kernels on this host.

glance, status, %hpc ─► Poll.state ─ is the answer on the board young enough? ─► JobState, as of now
                                   └ no: claim ─► one squeue ─► the board

It is asked at most every 15 s, and ever less often while nothing changes or nobody answers. Only who asks to know now
may have a younger answer, and he is told what others have asked up to two seconds ago.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from hpcmagic.errors import LaunchError
from hpcmagic.launch.base import AT_ITS_PACE, FRESH_S, JobState
from hpcmagic.launch.board import Board, Note

PACE_S = (15.0, 60.0)  # how often the batch system is asked for all jobs: after a change, and at the least …
SLOWER = 1.5  # … and how much slower each time when nothing has changed
USELESS_S = 2 * PACE_S[1]  # an answer so old is not even taken while another kernel asks
LOOK_S = 0.1  # how often one looks for the answer to what another kernel asks


@dataclass(frozen=True, slots=True)
class Answer:
    """What the batch system said last.

    Attributes
    ----------
    asked_s, told_s
        When it was asked last, and when it was asked what it did answer; the same while it answers.
    pace_s
        How long to wait from `asked_s` until it is asked again.
    lines
        One for each job, the job's id first: ``8123|RUNNING|…``; None = it has never answered.
    words
        Why it did not answer the last time; empty = it did.
    """

    asked_s: float
    told_s: float
    pace_s: float = PACE_S[0]
    lines: tuple[str, ...] | None = None
    words: str = ""


class Poll:
    """How the jobs stand, as one answer tells for all kernels.

    Parameters
    ----------
    ask
        Gives a line for each of the user's jobs, or raises LaunchError.
    read
        Reads the part of a line that is behind the job's id.
    decide
        Says how a job stands that the answer does not have, or how it ended.
    name
        Of the answer on the board: one for each batch system.
    pause
        Waits so many seconds.
    """

    def __init__(
        self,
        ask: Callable[[], Iterable[str]],
        read: Callable[[str], JobState],
        decide: Callable[[str], JobState],
        *,
        name: str = "jobs",
        board: Board | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ask, self._read, self._decide, self._pause = ask, read, decide, pause
        self._name = name
        self._board = Board() if board is None else board
        self._clock = self._board.clock
        self._newest: Answer | None = None  # that this kernel knows of: there may be no board
        self._posted: Note | None = None  # as it was looked at last
        self._states: tuple[Answer | None, dict[str, JobState]] = None, {}  # read from which answer
        self._void_s = self._quick_s = float("-inf")  # answers asked before are of no use, or grow old quickly
        self._decisions: dict[str, tuple[JobState, float, float]] = {}  # and when; and which answer did not know
        self._lock = threading.Lock()  # of one kernel's threads one asks

    def state(self, job_id: str, max_age_s: float = AT_ITS_PACE) -> JobState:
        """Say how a job stands, as of now, by an answer that is no older; it waits for one if it must.

        With `AT_ITS_PACE` nothing is asked before it is due, and nobody waits for another kernel's question. While
        the batch system does not answer, the state that was seen last stands, as `stale`; it ends nothing.
        """
        decision = self._decisions.get(job_id)
        if decision is not None and decision[0].decided:
            return decision[0]
        answer = self._answer(max_age_s)
        return self._told(job_id, answer) or self._decided(job_id, answer)

    def known(self, job_id: str) -> JobState | None:
        """Say the same `AT_ITS_PACE` if that takes no question; it never waits, but for a look at a file."""
        if not self._lock.acquire(blocking=False):  # somebody asks
            return None
        try:
            answer = self._known()
            fresh = answer is not None and not self._due(answer, self._clock(), AT_ITS_PACE)
        finally:
            self._lock.release()
        return self._told(job_id, answer) if answer is not None and fresh else None

    def jobs(self, max_age_s: float = AT_ITS_PACE) -> dict[str, JobState]:
        """Give all of the user's jobs that the answer has, by id; those that have just ended among them."""
        answer = self._answer(max_age_s)
        age_s = self._since(answer.told_s)
        return {job: seen.after(age_s, stale=bool(answer.words)) for job, seen in self._read_from(answer).items()}

    def hurry(self) -> None:
        """Expect a change: what was asked before is no answer to who wants a young one, and grows old quickly."""
        self._void_s = self._quick_s = self._clock()

    def _told(self, job_id: str, answer: Answer) -> JobState | None:
        """Give how a job stands by an answer; None where that does not have it, or says only that it ended."""
        age_s = self._since(answer.told_s)
        seen = self._read_from(answer).get(job_id)
        if seen is not None and seen.phase != "ended":
            return seen.after(age_s, stale=bool(answer.words))
        return JobState("unknown", meaning=answer.words, age_s=age_s, stale=True) if answer.words else None

    def _read_from(self, answer: Answer) -> dict[str, JobState]:
        """Give how each job stood when an answer was given."""
        read, states = self._states
        if read is not answer:
            states = self._read_all(answer.lines)
            self._states = answer, states
        return states

    def _read_all(self, lines: Iterable[str] | None) -> dict[str, JobState]:
        found = {}
        for line in lines or ():
            job_id, _, rest = line.partition("|")
            with contextlib.suppress(ValueError):  # a site's squeue may say more than it was asked
                found[job_id] = self._read(rest)
        return found

    def _decided(self, job_id: str, answer: Answer) -> JobState:
        """Ask for one job alone that the answer does not have; once for each answer at most."""
        decision = self._decisions.get(job_id)
        if decision is None or decision[2] < answer.asked_s:
            state = self._decide(job_id)
            decision = self._decisions[job_id] = state, self._clock(), answer.asked_s
            if state.phase in ("pending", "running"):  # it was submitted since
                self._quick_s = self._clock()
        return decision[0].after(self._since(decision[1]))

    def _since(self, then_s: float) -> float:
        return max(0.0, self._clock() - then_s)

    def _answer(self, max_age_s: float) -> Answer:
        """Give an answer that is young enough, asked now if need be."""
        began_s = self._clock()
        with self._lock:
            while True:
                answer = self._known()
                if answer is not None and not self._due(answer, began_s, max_age_s):
                    return answer
                if self._board.claim(self._name):
                    try:
                        answer = self._known()  # another may have asked while this kernel looked
                        if answer is not None and not self._due(answer, began_s, max_age_s):
                            return answer
                        return self._asked(answer)
                    finally:
                        self._board.release(self._name)
                if answer is not None and max_age_s == AT_ITS_PACE and self._since(answer.asked_s) < USELESS_S:
                    return answer
                self._pause(LOOK_S)

    def _due(self, answer: Answer, began_s: float, max_age_s: float) -> bool:
        """Whether to ask again for someone who wants an answer no older than so, counted from when he came."""
        if answer.asked_s < self._void_s and max_age_s != AT_ITS_PACE:
            return True
        least_s = PACE_S[0] if answer.words else FRESH_S  # who does not answer is left alone
        if began_s - answer.asked_s > max(least_s, max_age_s):
            return True
        pace_s = PACE_S[0] if answer.asked_s < self._quick_s else answer.pace_s
        return self._clock() - answer.asked_s >= pace_s

    def _known(self) -> Answer | None:
        """Give the newest answer, this kernel's or the board's."""
        note = self._board.read(self._name)
        if note is not None and note is not self._posted:
            self._posted, posted = note, _answer_of(note.value)
            own_s = self._newest.asked_s if self._newest is not None else float("-inf")
            if posted is not None and own_s < posted.asked_s <= self._clock():
                self._newest = posted
        return self._newest

    def _asked(self, before: Answer | None) -> Answer:
        """Ask; remember and post the answer."""
        now = self._clock()
        slower_s = PACE_S[0] if before is None else min(PACE_S[1], before.pace_s * SLOWER)
        try:
            lines = tuple(self._ask())
        except LaunchError as error:
            last = before or Answer(now, now)
            answer = replace(last, asked_s=now, pace_s=slower_s, words=error.message)
        else:
            same = before is not None and not before.words and self._steady(before.lines) == self._steady(lines)
            answer = Answer(now, now, slower_s if same else PACE_S[0], lines)
        self._newest = answer
        self._board.post(self._name, asdict(answer), now)
        return answer

    def _steady(self, lines: Iterable[str] | None) -> dict[str, tuple[str, str, str]]:
        """Give what does not change by time alone."""
        return {job: (one.word, one.reason, one.nodes) for job, one in self._read_all(lines).items()}


def _answer_of(value: Any) -> Answer | None:
    """Read what was posted; None where it makes no sense."""
    try:
        told = dict(value)
        lines = None if told["lines"] is None else tuple(str(line) for line in told["lines"])
        asked_s, told_s, pace_s = (float(told[name]) for name in ("asked_s", "told_s", "pace_s"))
        answer = Answer(asked_s, told_s, pace_s, lines, str(told["words"]))
    except (TypeError, ValueError, LookupError):
        return None
    if not all(map(math.isfinite, (asked_s, told_s, pace_s))):
        return None
    return replace(answer, pace_s=min(PACE_S[1], max(PACE_S[0], answer.pace_s)))
