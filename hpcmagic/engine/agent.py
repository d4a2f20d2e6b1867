"""The thread beside a rank: notices that the keeper is gone, and leaves.

Under SLURM the end of the keeper is the end of the job, and SLURM ends the ranks. A detached keeper on
this machine may be killed alone: its ranks look for its process once a second and leave.
"""

from __future__ import annotations

import os
import threading
import time

from hpcmagic.rendezvous import KEEPER_GONE, Request, SessionDirectory

LOOK_S = 1.0


class Agent(threading.Thread):
    """Watches the keeper's process where it runs on this host."""

    def __init__(self, directory: SessionDirectory, request: Request) -> None:
        super().__init__(name="hpcmagic-agent", daemon=True)
        self.directory = directory
        self.request = request
        self._keeper_pid = int(os.environ.get("HPCMAGIC_KEEPER_PID", "0"))

    def run(self) -> None:
        """Leave as soon as the keeper is gone."""
        while True:
            time.sleep(LOOK_S)
            self.require_keeper()

    def require_keeper(self) -> None:
        """End this process at once if its keeper no longer runs."""
        if self.request.launcher == "local" and not is_running(self._keeper_pid):
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
