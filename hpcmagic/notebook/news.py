"""What a notebook should hear of its session, once: who else is connected, and what the keeper warns of."""

from __future__ import annotations

from hpcmagic.notebook import output
from hpcmagic.rendezvous import KeeperState


class News:
    """Remembers what was said, and says what is new."""

    def __init__(self, session: str) -> None:
        self.session = session
        self._others: tuple[str, ...] = ()
        self._warning = ""
        self._restarts: int | None = None  # as this kernel knows it
        self._expected = 0  # restarts that this kernel itself has asked for

    @property
    def restarts(self) -> int:
        """How often the ranks that this kernel knows were started anew."""
        return self._restarts or 0

    def knows_restarts(self, keeper: KeeperState) -> bool:
        """Whether the ranks are those that this kernel knows; from now on it knows these."""
        known, self._restarts = self._restarts, keeper.restarts
        news = 0 if known is None else keeper.restarts - known
        own = min(news, self._expected)
        self._expected -= own
        return news == own

    def expect_restart(self) -> None:
        """Know that the next one is this kernel's own."""
        self._expected = 1

    def tell(self, keeper: KeeperState, own: str) -> None:
        """Say what has changed since the last time.

        Parameters
        ----------
        keeper
            The keeper's word.
        own
            The name of this very client.
        """
        people = dict.fromkeys(name.partition("#")[0] for name in keeper.clients)
        others = tuple(name for name in people if name != own.partition("#")[0])  # nor another hold in this process
        if others != self._others:
            here = f"also connected: {', '.join(others)}" if others else "nobody else is connected any more"
            self._others = others
            output.quiet(f"Session {self.session}: {here}")
        if not self.knows_restarts(keeper):
            output.quiet(f"Session {self.session}: the ranks were restarted elsewhere; their variables are gone.")
        if keeper.warning and keeper.warning != self._warning:
            output.quiet(f"Session {self.session}: {keeper.warning}.")
        self._warning = keeper.warning
