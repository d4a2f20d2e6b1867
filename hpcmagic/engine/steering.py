"""The rank's side of `hpcmagic.steer`: makes simulations, lets notebooks come to the one that runs.

steer.live(comm) ─► here().live() ─► Live        (main thread)
notebook ─ STEER ─► watch() ─► Desk.serve()      (control thread ─► a thread a reader)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from hpcmagic.engine.communicators import words_for
from hpcmagic.engine.desk import Desk
from hpcmagic.engine.live import Live
from hpcmagic.engine.patience import patience
from hpcmagic.engine.port import BulkPort
from hpcmagic.errors import HpcMagicError, SteerError
from hpcmagic.ranges import Schedule

READERS = 64  # two a notebook

_here: Steering | None = None


def here() -> Steering | None:
    """Give what steers simulations in this process; None where it is no rank of a session, or a child of one."""
    return _here if _here is not None and _here.pid == os.getpid() else None


class Steering:
    """What one rank keeps between simulations."""

    def __init__(self, port: BulkPort) -> None:
        global _here  # noqa: PLW0603  # one a process, and `steer.live(comm)` is handed nothing to find it by
        self.port = port
        self.desk = Desk()
        self.pid = os.getpid()
        self.cell = ""  # that runs
        self._live: Live | None = None
        self._readers: list[threading.Thread] = []
        _here = self

    def live(self, comm: Any, schedule: Schedule, share: float) -> Live:
        """Make a simulation; all ranks of `comm` do so together.

        Raises
        ------
        SteerError
            One is going on.
        """
        former = self._live
        if former is not None and former.in_loop:
            raise SteerError("A simulation is live already in this cell.", "Leave its loop before you begin another.")
        if former is not None:
            former.leave("another was begun")  # if it has not
        words = words_for(comm)
        if former is not None:
            self.desk.end("another was begun")
        with patience:
            self._live = Live(words, self.desk, schedule, share, self.cell)
        return self._live

    def cell_over(self, *, failed: bool) -> None:
        """Leave the loop of a simulation that its cell has not left in order; one that has not begun may be later."""
        if self._live is not None and (self._live.in_loop or failed):
            self._live.leave("")
        patience.forget()

    def watch(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Tell a notebook whether this rank answers for a simulation; serve the channels that it names."""
        self._readers = [thread for thread in self._readers if thread.is_alive()]
        for name in content.get("channels", ()):
            if len(self._readers) >= READERS:
                return {"status": "error", "cause": f"{READERS // 2} notebooks watch this simulation already"}
            thread = threading.Thread(target=self._serve, args=(name,), name="hpcmagic-desk", daemon=True)
            thread.start()
            self._readers.append(thread)
        live, run = self._live, self.desk.run
        alive = live is not None and live.rank == 0 and not live.left
        size = live.size if live is not None else 0
        about = {"run": run.number, "size": size, "alive": alive, "cell": run.cell, "began": run.began_s}
        return {"status": "ok", **about, "step": run.step, "steps": run.steps, "paused": self.desk.paused}

    def _serve(self, name: str) -> None:
        try:
            channel = self.port.channel(name)
            self.desk.serve(channel, self.port.drop)
        except HpcMagicError:  # it did not come
            pass
