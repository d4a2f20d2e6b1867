"""Ctrl-C while a cell is waited for, in a cell of the notebook, by `result()` or by `await` alike.

once  ─► its ranks are interrupted ─► who has not stopped in time is named, with the line; the waiting goes on
twice ─► the cell is let go of: its ranks run on, and the error says how to come back
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hpcmagic.errors import CellError
from hpcmagic.notebook import output
from hpcmagic.notebook.stuck import standing, stands_of

if TYPE_CHECKING:
    from hpcmagic.notebook.handles import Cell

STOP_S = 3.0  # after an interrupt: ranks that have not stopped by then are named
LOOK_S = (0.2, 2.0)  # how often an awaited cell is looked at: at first, and at most
INTERRUPTING = "Interrupting the ranks … (once more lets go of them: they run on)"


def interrupt(cell: Cell, go_on: Callable[[], Any]) -> None:
    """Interrupt the ranks and wait for what they say to it, in the end by `go_on`; a second Ctrl-C lets go.

    Raises
    ------
    CellError
        The user let go.
    """
    cell.session.interrupt(cell)
    try:
        print(INTERRUPTING)
        if not cell.over_within(STOP_S):
            print(not_stopped(cell))
            go_on()
    except KeyboardInterrupt:
        raise let_go(cell) from None


def not_stopped(cell: Cell) -> str:
    """Say which ranks go on, at which line each stands, and what can be done."""
    return (
        f"Not stopped: {standing(stands_of(cell).values())}.\n"
        "→ Wait for them, or Ctrl-C once more and `%hpc restart`: new ranks, their variables are lost."
    )


def let_go(cell: Cell) -> CellError:
    """Give the error that says how to come back to a cell; what ranks have raised so far is printed."""
    left, error = cell.missing(), cell.error()
    if error is not None:
        print(error.text)
    place = cell.session.place_of(cell)
    return CellError(
        f"Let go of {cell.name}; {output.ranks_in_words(left)} run{'s' if len(left) == 1 else ''} on.",
        f"`hpcmagic.attach({cell.session.name!r}).cells[{place}].result()` comes back to it "
        f"(`import hpcmagic` first); "
        f"`%hpc cancel {place}` interrupts it again, `%hpc restart` ends it.",
    )


async def wait_for(cell: Cell) -> None:
    """Wait until a cell is over without blocking the loop; Ctrl-C does what it does elsewhere.

    Raises
    ------
    CellError
        The user let go.
    """
    awaited = _Awaited(cell)
    with _ctrl_c(awaited.press):
        if await awaited.over(presses=0):
            return
        cell.session.interrupt(cell)
        print(INTERRUPTING)
        if await awaited.over(presses=1, within_s=STOP_S):
            return
        if awaited.presses == 1:
            print(await asyncio.to_thread(not_stopped, cell))
            if await awaited.over(presses=1):
                return
        raise let_go(cell)


class _Awaited:
    """A cell that a loop awaits, and how often Ctrl-C was pressed meanwhile."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.presses = 0
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        if cell.pending is not None:
            cell.pending.at_end(self._tell)

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody awaits the cell any more
            self._loop.call_soon_threadsafe(self._news.set)

    def press(self) -> None:
        """Note that Ctrl-C was pressed."""
        self.presses += 1
        self._tell()

    async def over(self, presses: int, within_s: float = float("inf")) -> bool:
        """Wait until the cell is over, the time is up, or Ctrl-C was pressed more often; whether it is over."""
        deadline, look_s = time.monotonic() + within_s, LOOK_S[0]
        while not self.cell.done() and self.presses <= presses and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), min(look_s, deadline - time.monotonic()))
            self._news.clear()
            await asyncio.to_thread(self.cell.look)
            look_s = min(LOOK_S[1], look_s * 1.3)
        return self.cell.done()


_listening: list[Callable[[], None]] = []  # of all cells that are awaited at this moment
_former: list[Any] = []  # whom SIGINT belonged to before


@contextlib.contextmanager
def _ctrl_c(press: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C call `press` instead of breaking into the loop; it arrives in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGINT) is not _on_sigint:
        _former[:] = [signal.signal(signal.SIGINT, _on_sigint)]
    _listening.append(press)
    try:
        yield
    finally:
        _listening.remove(press)
        if not _listening and signal.getsignal(signal.SIGINT) is _on_sigint:
            signal.signal(signal.SIGINT, _former[0])


def _on_sigint(number: int, frame: Any) -> None:
    for press in _listening:
        press()
    if not _listening:  # somebody has put us back after the last await was over
        former = _former[0] if callable(_former[0]) else signal.default_int_handler
        former(number, frame)
