"""New ranks in the same job: the keeper ends the old ones and starts others; no second wait in the queue."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hpcmagic.errors import HpcMagicError, LaunchError
from hpcmagic.notebook import output
from hpcmagic.wire.messages import RESTART

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session

LOOK_S = 0.02
ASK_AGAIN_S = 10.0  # a keeper that was cut off for a moment has not heard


def restart(session: Session) -> None:
    """Ask the keeper for new ranks; return when all are connected and their MPI world is verified.

    Raises
    ------
    SessionEnded
        The session is over, or ended because new ranks could not be started.
    LaunchError
        The user stopped waiting; the restart goes on.
    """
    _wait(session, session.keeper_state().restarts, set(session.control_path().engines()))


def wait_if_restarting(session: Session) -> None:
    """Wait for new ranks where somebody has asked for them and did not wait, or has asked just now."""
    if len(session.control_path().engines()) < session.size:
        session.require_alive()
        _wait(session, None, set())


def _wait(session: Session, restarts: int | None, former: set[str]) -> None:
    """Wait for ranks that are not the former ones; with the number of `restarts` so far, ask for one more."""
    control, line, began_s = session.control_path(), output.StatusLine(), time.monotonic()
    asked_s = 0.0
    try:
        while True:
            keeper = session.keeper_state()
            begun = restarts is None or keeper.restarts > restarts
            if begun and keeper.phase == "ready" and len(set(control.engines()) - former) == session.size:
                break
            now = time.monotonic()
            if not begun and now - asked_s > ASK_AGAIN_S:
                asked_s = now
                control.ask_keeper(RESTART)
            session.look(now, fallen=not begun)
            there = len(keeper.ranks) if begun else 0
            waited = output.clock(int(now - began_s))
            line.update(f"Restarting: {there} of {session.size} new ranks connected, {waited}")
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        line.clear()
        raise LaunchError(
            f"Stopped waiting; the ranks of session {session.name} go on restarting.",
            "Your next cell waits for them; `%hpc` shows how it stands.",
        ) from None
    except HpcMagicError:
        line.clear()
        raise
    world = f"MPI world of {keeper.world}" if keeper.world else "no MPI"
    line.finish(
        f"Session {session.name}: {output.count(session.size, 'new rank')} in the same job in "
        f"{output.clock(time.monotonic() - began_s)}, {world} ({keeper.starter}); variables are gone."
    )
