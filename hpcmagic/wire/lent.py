"""The ipyparallel client as a user may have it in hand: what would end the ranks, or cut a cell off, it does not do.

`session.client` is the very client that cells go over. Closed by its user, it is made anew for the next cell.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
from collections.abc import Callable
from typing import Any, NoReturn

import ipyparallel

from hpcmagic.errors import ChannelError

LINGER_MS = 500  # what was just sent may still leave; to a node that is lost it never would
INSTEAD = {
    "shutdown": "`session.stop()` or `%hpc stop` ends the ranks with their job; `session.restart()` gives new ones.",
    "send_signal": "Ctrl-C or a handle's `.cancel()` interrupts a cell; `session.restart()` gives new ranks.",
    "become_dask": "Dask's own scheduler and workers talk without the session's keys: give it a job of its own.",
}


class Lent(ipyparallel.Client):
    """An ipyparallel client whose ranks are a session's."""

    _ready: bool
    _pending: dict[str, Any]  # the session's own requests that are not answered yet
    flush: Callable[[], None]
    close_presence: Callable[[], None]

    def __del__(self) -> None:
        super().close()

    def hang_up(self) -> None:
        """Close all sockets; what was just sent may still leave."""
        context = self._context
        try:
            self.flush()
            self.close_presence()
        finally:  # Ctrl-C too: nobody closes it a second time
            super().close(linger=LINGER_MS)
        context.term()

    def close(self, linger: Any = None) -> None:
        """Close all sockets; the session connects anew when it needs them.

        Raises
        ------
        ChannelError
            Cells of the session are under way over them.
        """
        if self._closed:
            return
        if not self._ready:  # it has not come to be connected
            super().close(linger)
            return
        number = len(self._pending)
        if number:
            raise ChannelError(
                f"The session's client was not closed: {number} request{'s' if number > 1 else ''} of its cells "
                f"{'are' if number > 1 else 'is'} under way over it.",
                "Wait for your cells, `session.cells` lists them; `%hpc stop` ends the session.",
            )
        self.hang_up()

    def shutdown(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to end the ranks: an MPI world without one of them is none."""
        raise _not_for_a_session("shutdown")

    def send_signal(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to send a signal: the ranks have no process beside them that would take it."""
        raise _not_for_a_session("send_signal")

    def become_dask(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to start what is not encrypted."""
        raise _not_for_a_session("become_dask")

    become_distributed = stop_dask = stop_distributed = become_dask


def _not_for_a_session(what: str) -> ChannelError:
    return ChannelError(f"`client.{what}` is not for the ranks of a session.", INSTEAD[what])


def client_name() -> str:
    """Name this client for others to see: user, host, process, and what tells two of one process apart."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may know no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname().partition('.')[0]}:{os.getpid()}#{secrets.token_hex(3)}"
