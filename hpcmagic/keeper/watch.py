"""Nobody there, nothing to do, ranks gone, a budget spent: when a session ends. Pure decisions for the keeper."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Watch:
    """Decides from what it is shown whether the session should end.

    Parameters
    ----------
    no_client_limit_s
        With no notebook connected and no cell running for so long, the session ends; 0 = never.
    began_s
        When the watch began, on the monotonic clock of `decide`.
    """

    no_client_limit_s: float
    began_s: float
    _lonely_since_s: float | None = None

    def __post_init__(self) -> None:
        self._lonely_since_s = self.began_s

    def decide(self, now_s: float, *, clients: int, busy: bool) -> str:
        """Give the cause for which the session must end now, or nothing."""
        if clients or busy:
            self._lonely_since_s = None
        elif self._lonely_since_s is None:
            self._lonely_since_s = now_s
        elif self.no_client_limit_s and now_s - self._lonely_since_s >= self.no_client_limit_s:
            minutes = self.no_client_limit_s / 60
            return f"no notebook was connected and no cell ran for {minutes:g} min (no_client_limit)"
        return ""


@dataclass(slots=True)
class Hold:
    """Decides how long a job whose ranks have fallen waits for a restart.

    Parameters
    ----------
    hold_s
        So long at most.
    alone_s
        With no notebook connected for so long, no longer.
    began_s
        When the ranks fell, on the monotonic clock of `is_over`.
    """

    hold_s: float
    alone_s: float
    began_s: float
    _seen_s: float = 0.0

    def __post_init__(self) -> None:
        self._seen_s = self.began_s

    def is_over(self, now_s: float, *, clients: int) -> bool:
        """Whether nobody will restart the ranks any more."""
        if clients:
            self._seen_s = now_s
        return now_s - self.began_s >= self.hold_s or now_s - self._seen_s >= self.alone_s


@dataclass(slots=True)
class Idle:
    """Counts how long no cell has run, and decides when a session that nobody uses ends.

    Parameters
    ----------
    limit_s
        With no cell running or waiting for so long, the session ends; 0 = never.
    began_s
        When the count began, on the monotonic clock of all methods.
    """

    limit_s: float
    began_s: float
    _since_s: float | None = None  # no cell has run since; None = one runs
    _counts_from_s: float = 0.0  # … and for the limit that counts from here
    _before_s: float = 0.0  # what earlier pauses were together

    def __post_init__(self) -> None:
        self._since_s = self._counts_from_s = self.began_s

    def note(self, now_s: float, *, busy: bool) -> None:
        """Take note of whether a cell runs now."""
        if busy and self._since_s is not None:
            self._before_s, self._since_s = self.total_s(now_s), None
        elif not busy and self._since_s is None:
            self._since_s = self._counts_from_s = now_s

    def keep(self, now_s: float) -> None:
        """Begin the countdown anew: somebody wants to keep the session."""
        self._counts_from_s = now_s

    def total_s(self, now_s: float) -> float:
        """Give for how long no cell ran, in all."""
        return self._before_s + (0.0 if self._since_s is None else now_s - self._since_s)

    def left_s(self, now_s: float) -> float | None:
        """Give the seconds until the session ends; None while a cell runs, or without a limit."""
        if self._since_s is None or not self.limit_s:
            return None
        return max(0.0, self.limit_s - (now_s - self._counts_from_s))

    def cause(self, now_s: float) -> str:
        """Give the cause for which the session must end now, or nothing."""
        return f"no cell ran for {self.limit_s / 60:g} min (idle_limit)" if self.left_s(now_s) == 0 else ""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Decides by a budget how long a job may run.

    Parameters
    ----------
    run_s
        So long; None = as long as it likes.
    warn_s
        After so long it is warned.
    budget
        In words: ``20 core-hours``.
    """

    run_s: float | None = None
    warn_s: float = 0.0
    budget: str = ""

    def left_s(self, ran_s: float) -> float | None:
        """Give the seconds that are left; None without a budget."""
        return None if self.run_s is None else max(0.0, self.run_s - ran_s)

    def cause(self, ran_s: float) -> str:
        """Give the cause for which the session must end now, or nothing."""
        return f"its budget of {self.budget} is spent (%budget)" if self.left_s(ran_s) == 0 else ""

    def warning(self, ran_s: float) -> str:
        """Say when most of the budget is spent."""
        if self.run_s is None or ran_s < self.warn_s:
            return ""
        return f"four fifths of its budget of {self.budget} are spent: the session ends with the rest of it"
