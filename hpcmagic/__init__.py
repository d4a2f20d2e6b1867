"""hpcmagic: work on a supercomputer without leaving the notebook.

General layout
--------------
Folders say where the code runs: ``notebook`` in your kernel, ``launch`` beside it, talking to the batch
system; ``keeper`` in the job, one a session; ``engine`` as every rank; ``wire`` is what passes between them.
Below lie ``profiles`` (what you ask for), ``rendezvous`` (the session's directory) and ``errors``.
docs/how-it-works.md has the picture.

Importing this package is light: what is heavy is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpcmagic.cost import Cost
from hpcmagic.errors import (
    BudgetSpent,
    CellError,
    ChannelError,
    DataError,
    HpcMagicError,
    LaunchError,
    NotEncrypted,
    PeerLost,
    ProfileError,
    RankError,
    SessionEnded,
    SteerError,
    StillRunning,
    Tampered,
)

if TYPE_CHECKING:
    from hpcmagic.files import File
    from hpcmagic.notebook.bill import Bill
    from hpcmagic.notebook.found import sessions
    from hpcmagic.notebook.handles import Cell
    from hpcmagic.notebook.perrank import PerRank
    from hpcmagic.notebook.session import Session
    from hpcmagic.notebook.start import attach, dry_run, start
    from hpcmagic.notebook.status import Status

__version__ = "0.1.0"

_LAZY = {
    "Bill": "hpcmagic.notebook.bill",
    "Cell": "hpcmagic.notebook.handles",
    "File": "hpcmagic.files",
    "PerRank": "hpcmagic.notebook.perrank",
    "Session": "hpcmagic.notebook.session",
    "Status": "hpcmagic.notebook.status",
    "attach": "hpcmagic.notebook.start",
    "dry_run": "hpcmagic.notebook.start",
    "sessions": "hpcmagic.notebook.found",
    "start": "hpcmagic.notebook.start",
}

__all__ = [
    "Bill",
    "BudgetSpent",
    "Cell",
    "CellError",
    "ChannelError",
    "Cost",
    "DataError",
    "File",
    "HpcMagicError",
    "LaunchError",
    "NotEncrypted",
    "PeerLost",
    "PerRank",
    "ProfileError",
    "RankError",
    "Session",
    "SessionEnded",
    "Status",
    "SteerError",
    "StillRunning",
    "Tampered",
    "attach",
    "budget",
    "cost",
    "dry_run",
    "load_ipython_extension",
    "sessions",
    "start",
    "unload_ipython_extension",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'hpcmagic' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def cost(session: str | None = None, **options: object) -> Bill:
    """Give what your sessions have cost: a sequence of entries, with `rows()` and `to_frame()`.

    Parameters
    ----------
    session
        The one to call this notebook's; None = by the notebook's file.
    **options
        `session_dir` or `profile`, where the sessions' directories are not where your profiles say.
    """
    from hpcmagic.notebook.bill import bill

    return bill(session, **options)


def budget(
    limit: float | str | None = "", session: str | None = None, *, month: bool = False, **options: object
) -> str:
    """Bound what a session, or a month, may cost; say how it stands.

    Parameters
    ----------
    limit
        In the site's unit; on this machine in core-hours. None = no bound; left out, it stays as it is.
    session
        Its name, whether it runs or is still to be started; None = this notebook's.
    month
        All sessions in a month instead: those that run count with all they may still cost.
    **options
        `session_dir` or `profile`, where the session's directory is not where your profiles say.

    Raises
    ------
    ProfileError
        The limit is no number above 0.
    BudgetSpent
        The session has cost as much already.
    """
    from hpcmagic.notebook import lifespan

    if not month:
        return lifespan.budget_of(session, limit, **options)
    if session is not None:
        raise ProfileError("A month's budget is of all sessions.", "Leave `session` out, or `month`.")
    return lifespan.set_month(limit)


def load_ipython_extension(shell: Any) -> None:
    """Register the magics, what Tab offers on their lines, and a hint: ``%load_ext hpcmagic``."""
    from hpcmagic.notebook import extension

    extension.load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Take all of that away; sessions run on."""
    from hpcmagic.notebook import extension

    extension.unload(shell)
