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
    control, line, began_s = session.control_path(), output.StatusLine(), time.monotonic()
    restarts, former = session.keeper_state().restarts, set(control.engines())
    asked_s = began_s
    control.ask_keeper(RESTART)
    try:
        while True:
            keeper = session.keeper_state()
            begun = keeper.restarts > restarts
            if begun and keeper.phase == "ready" and len(set(control.engines()) - former) == session.size:
                break
            now = time.monotonic()
            session.look(now)
            if not begun and now - asked_s > ASK_AGAIN_S:
                asked_s = now
                control.ask_keeper(RESTART)
            there = len(keeper.ranks) if begun else 0
            waited = output.clock(int(now - began_s))
            line.update(f"Restarting: {there} of {session.size} new ranks connected, {waited}")
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        line.clear()
        raise LaunchError(
            f"Stopped waiting; the ranks of session {session.name} go on restarting.", "`%hpc` shows how it stands."
        ) from None
    except HpcMagicError:
        line.clear()
        raise
    world = f"MPI world of {keeper.world}" if keeper.world else "no MPI"
    line.finish(
        f"Session {session.name}: {output.count(session.size, 'new rank')} in the same job in "
        f"{output.clock(time.monotonic() - began_s)}, {world} ({keeper.starter}); variables are gone."
    )
