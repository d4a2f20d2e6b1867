"""What a process has started, and what that has left behind on this host: adopt it, and end it."""

from __future__ import annotations

import contextlib
import ctypes
import os


def adopt_orphans() -> None:
    """Become the parent of whatever our children leave behind (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def end_orphans() -> None:
    """End everything below this process: children that they forked, sessions of their own."""
    import psutil

    for orphan in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()


def reap_orphans() -> None:
    """Let go of adopted children that have ended; only where no child's exit status is of interest any more."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
