"""A cell's time limit (`--timeout`): it counts from where a rank begins the cell, not while it waits for its turn.

sent ─► the limit passes ─► since when are its ranks at it? ─┬─ for so long  ─► it is interrupted
                                                             └─ not so long  ─► looked at again when it can be
"""

from __future__ import annotations

import contextlib
import math
import threading
from typing import TYPE_CHECKING, Any

from hpcmagic.errors import CellError, HpcMagicError, ProfileError
from hpcmagic.notebook import output
from hpcmagic.notebook.stuck import stands_of

if TYPE_CHECKING:
    from hpcmagic.notebook.handles import Cell

LOOK_S = 0.25  # no cell is looked at more often


def require_time(limit_s: Any) -> None:
    """Refuse what is no time limit.

    Raises
    ------
    ProfileError
        It is no number above 0.
    """
    if limit_s is not None and not (isinstance(limit_s, (int, float)) and limit_s > 0):
        raise ProfileError(f"--timeout {limit_s!r} is not a time.", "Write seconds above 0, e.g. `--timeout 60`.")


def waited_s(timeout_s: Any) -> float:
    """Give for how many seconds somebody waits; for None without end.

    Raises
    ------
    ProfileError
        It is no number.
    """
    if timeout_s is not None and not isinstance(timeout_s, (int, float)):
        raise ProfileError(f"timeout={timeout_s!r} is not a time.", "Give seconds, e.g. `timeout=60`.")
    return math.inf if timeout_s is None else float(timeout_s)


def left_s(cell: Cell, limit_s: float) -> float:
    """Give the seconds until a cell can have run for so long on a rank; 0 = it has.

    Ranks that do not say what they work on, since C code holds their interpreter, count from when it was sent.
    """
    if cell.pending is None:
        return 0.0
    stands, control = stands_of(cell, dump=False).values(), cell.session.control_path()
    at_it = [stand.for_s for stand in stands if control.runs(cell.pending, stand)]
    if at_it:
        return max(0.0, limit_s - max(at_it))
    return limit_s if any(stand.request for stand in stands) else 0.0


def late_error(limit_s: float, ranks: str, said: str = "it was interrupted") -> CellError:
    """Give the error of a cell that took too long."""
    return CellError(
        f"The cell ran longer than its --timeout of {limit_s:g} s on {ranks}; {said}.",
        "Give it more with `--timeout`, or leave it out.",
    )


class Alarm:
    """Interrupts a cell that nobody waits for when its time is over."""

    def __init__(self, cell: Cell, limit_s: float) -> None:
        self.limit_s = limit_s
        self.late = ""  # the ranks that it was interrupted on, in words
        self._cell = cell
        self._set(limit_s)
        cell.add_done_callback(lambda _: self._timer.cancel())

    def _set(self, in_s: float) -> None:
        self._timer = threading.Timer(min(in_s, threading.TIMEOUT_MAX), self.ring)
        self._timer.daemon = True
        self._timer.start()

    def ring(self) -> None:
        """Interrupt the cell, or look again later."""
        with contextlib.suppress(HpcMagicError):  # its session has ended
            in_s = left_s(self._cell, self.limit_s)
            if self._cell.done():
                return
            if in_s > 0:
                self._set(max(LOOK_S, in_s))
                return
            self.late = output.ranks_in_words(self._cell.missing())
            self._cell.cancel()
