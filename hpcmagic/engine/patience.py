"""Ctrl-C while hpcmagic's own code runs in the main thread of a rank: it waits until nothing is half done.

with patience:                 the handler of SIGINT only notes that it came
    …
    patience.let_through()     where nothing is half done: raises it
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN_S = 0.01


class Patience:
    """Keeps back KeyboardInterrupt; there is one a process, as there is one handler."""

    def __init__(self) -> None:
        self._depth = 0
        self._came = False

    def holds(self) -> bool:
        """Take an interrupt, if it must wait (called by the handler)."""
        self._came = self._came or self._depth > 0
        return self._depth > 0

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self.let_through()

    def let_through(self) -> None:
        """Raise what came meanwhile.

        Raises
        ------
        KeyboardInterrupt
            It did.
        """
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Call code of the user's, which an interrupt shall end."""
        depth, self._depth = self._depth, 0
        try:
            self.let_through()
            yield
        finally:
            self._depth = depth

    @contextmanager
    def until_later(self) -> Iterator[None]:
        """Keep an interrupt back a moment longer: what is raised while a generator is closed would be lost."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._came and not self._depth:
                self._came = False
                threading.Timer(AGAIN_S, _interrupt_again).start()

    def forget(self) -> None:
        """Let nothing come of what came: the cell that it was meant for is over."""
        self._came = False


def _interrupt_again() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


patience = Patience()
