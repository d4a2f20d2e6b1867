"""Every error that hpcmagic raises, as one tree; each says what happened and how to mend it.

    HpcMagicError
    ├── ProfileError        what was asked for: options, profiles, resources, the session's directory
    ├── LaunchError         getting a job, or keeping it
    │   └── SessionEnded    the session is over, or its ranks are; its variables are gone
    ├── ChannelError        the wire between the notebook and the ranks
    │   ├── NotEncrypted    a peer would not speak CURVE with the session's keys
    │   ├── Tampered        a frame was changed on its way
    │   └── PeerLost        a rank or the keeper no longer answers
    ├── DataError           a value that cannot travel
    ├── SteerError          a simulation that cannot be steered so
    ├── BudgetSpent         a budget that would be overrun
    └── CellError           the cell's own code
        ├── RankError       what one or more ranks raised
        └── StillRunning    a cell that was waited for is not over yet

``str(error)`` has two lines: what happened with the actual values, then what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class HpcMagicError(Exception):
    """The root of all errors of hpcmagic.

    Parameters
    ----------
    message
        What happened, with the actual values; one line.
    mend
        What to do about it; one line, shown behind an arrow.
    """

    def __init__(self, message: str, mend: str = "") -> None:
        super().__init__(message, mend)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}\n→ {self.mend}" if self.mend else self.message

    def _render_traceback_(self) -> list[str]:
        """Show IPython the two lines instead of our own frames."""
        return f"{type(self).__name__}: {self}".splitlines()


class ProfileError(HpcMagicError):
    """What was asked for cannot be: an option, a profile, resources, the session's directory."""


class LaunchError(HpcMagicError):
    """The batch system gave no job, or the job did not become a session."""


class SessionEnded(LaunchError):
    """The session is over, or its ranks are, and its variables are gone."""


class ChannelError(HpcMagicError):
    """The wire between the notebook and the ranks failed."""


class NotEncrypted(ChannelError):
    """A peer would not speak CURVE with the session's own keys; nothing was sent to it."""


class Tampered(ChannelError):
    """A frame was changed, replayed, left out or put in another order on its way; nothing of it was used."""


class PeerLost(ChannelError):
    """A rank or the keeper no longer answers."""


class DataError(HpcMagicError):
    """A value cannot travel between the notebook and the ranks."""


class SteerError(HpcMagicError):
    """A simulation cannot be steered so: no such parameter, out of its range, nothing runs, a rank has left."""


class BudgetSpent(HpcMagicError):
    """A budget would be overrun, or is spent already: nothing was bought."""


class CellError(HpcMagicError):
    """The cell itself: its code, or how it goes on the ranks."""


class RankError(CellError):
    """One or more ranks raised.

    Attributes
    ----------
    ranks
        The ranks that raised, in order.
    text
        One short traceback per distinct error, with the ranks that raised it.
    full
        The whole traceback as the rank printed it, library frames included.
    waiting
        Ranks that sit in an MPI call for those that raised, each with where.
    """

    def __init__(
        self, text: str, ranks: Sequence[int], full: str = "", waiting: Mapping[int, str] | None = None
    ) -> None:
        super().__init__(text)
        self.text = text
        self.ranks = tuple(ranks)
        self.full = full
        self.waiting = dict(waiting or {})

    def _render_traceback_(self) -> list[str]:
        return self.text.splitlines()


class StillRunning(CellError, TimeoutError):
    """A cell that was waited for is not over yet; it runs on."""
