"""Nobody there, ranks gone: when a session ends. Pure decisions; the keeper carries them out."""

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
