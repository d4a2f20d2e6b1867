"""The thread beside a rank: sends output ahead while a cell runs, notices that the keeper is gone, and leaves.

Under SLURM the end of the keeper is the end of the job, and SLURM ends the ranks. A detached keeper on
this machine may be killed alone: its ranks look for its process once a second and leave.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from time import monotonic, sleep  # as they are now: a cell may put others in their place

from hpcmagic.descendants import end_orphans
from hpcmagic.rendezvous import KEEPER_GONE, Request, SessionDirectory

LOOK_S = 1.0
STREAM_S = 0.1


class Agent(threading.Thread):
    """Watches the keeper's process where it runs on this host; sends the running cell's output ahead."""

    def __init__(self, directory: SessionDirectory, request: Request) -> None:
        super().__init__(name="hpcmagic-agent", daemon=True)
        self.directory = directory
        self.request = request
        self.stream: Callable[[], None] = lambda: None
        self._keeper_pid = int(os.environ.get("HPCMAGIC_KEEPER_PID", "0"))

    def run(self) -> None:
        """Go on until the keeper is gone."""
        look_at_s = monotonic() + LOOK_S
        while True:
            sleep(STREAM_S)
            try:
                self.stream()
            except Exception:  # else this thread would end, and with it the watch on the keeper
                logging.getLogger("hpcmagic").exception("Output could not be sent ahead")
            if monotonic() >= look_at_s:
                look_at_s = monotonic() + LOOK_S
                self.require_keeper()

    def require_keeper(self) -> None:
        """End this process, and what it has started, at once if its keeper no longer runs."""
        if self.request.launcher == "local" and not is_running(self._keeper_pid):
            end_orphans()
            os._exit(KEEPER_GONE)


def is_running(pid: int) -> bool:
    """Whether a process exists on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
