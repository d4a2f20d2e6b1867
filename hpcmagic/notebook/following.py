"""Follow a cell while it runs: show its output, say how it goes, pass Ctrl-C on, notice what cannot go on.

every piece of output      ─► shown
every second               ─► does the session live? the status line; is the keeper heard?
some raised, others wait   ─► do these wait for ever (stuck.py)? ─► RankError names them
Ctrl-C                     ─► interrupt; who does not stop is named, with the line; once more lets go
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpcmagic.notebook import output
from hpcmagic.notebook.fitting import Foresight, remember
from hpcmagic.notebook.handles import Cell
from hpcmagic.notebook.interrupting import STOP_S, interrupt
from hpcmagic.notebook.streaming import Streamed
from hpcmagic.notebook.stuck import FEW_RANKS, Whereabouts, standing, stands_of
from hpcmagic.notebook.timeout import late_error, left_s
from hpcmagic.wire.messages import Stand
from hpcmagic.wire.pending import Pending

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session

LOOK_S = 1.0  # how often a waiting cell looks whether its session still lives
ASK_S = 15.0  # … and asks the batch system
SHOW_S = 0.1  # how often output that waits for other ranks is looked at
STANDS_S = 5.0  # how often the status line says where slow ranks stand
SILENT_S = 10.0  # the keeper beats every two
LAST_PIECES_S = 3.0  # how long output that went ahead may come after the reply


class Following:
    """One cell, followed in the main thread until it is over or let go."""

    def __init__(self, session: Session, cell: Cell, pending: Pending, timeout_s: float | None) -> None:
        self.session = session
        self.cell = cell
        self.pending = pending
        self.timeout_s = timeout_s
        self.line = output.StatusLine()
        self.streamed = Streamed(cell.ranks, labels=session.size > 1)
        self.began_s = time.monotonic()
        self.deadline_s = None if timeout_s is None else self.began_s + timeout_s
        self.hint = "Ctrl-C interrupts"
        self.where = Whereabouts()
        self.foresight = Foresight(session, cell, self.began_s)
        self._written: set[int] = set()  # ranks whose replies the journal has
        self._journal_at_s = self.began_s + ASK_S
        self._longest_silence_s = 0.0
        self._look_at_s = self.began_s + LOOK_S
        self._stands_at_s = self.began_s + STANDS_S
        self._simulations: Mapping[int, Mapping[str, Any]] = {}  # that ranks answer for, as they were asked last

    def to_the_end(self) -> None:
        """Follow until every rank has answered or gone, or waits for ever.

        Raises
        ------
        CellError
            The time is up, or the user let go.
        SessionEnded
            The session is over.
        """
        try:
            try:
                self._wait()
            except KeyboardInterrupt:
                self._interrupted()
        finally:
            self._last_output()
            self.line.clear()
        if not self.pending.lost and not self.cell.raised():
            remember(self.cell.source, time.monotonic() - self.began_s)

    def _wait(self) -> None:
        while not self.pending.wait_for_news(SHOW_S if self._showing() else LOOK_S) or self.pending.missing():
            now = time.monotonic()
            self._show()
            if now >= self._look_at_s:
                self._look_at_s = now + LOOK_S
                self.session.look(now)
                self._look_where(now)
                self._mind_the_journal(now)
                self._mind_the_end(now)
                self.line.update(self._line(now))
            if self.timeout_s is not None and self.deadline_s is not None and now >= self.deadline_s:
                self._mind_the_timeout(self.timeout_s)

    def _showing(self) -> bool:
        left = None if self.deadline_s is None else self.deadline_s - time.monotonic()
        return self.streamed.waits() or (left is not None and left < LOOK_S)

    def _show(self) -> None:
        speaking = self.pending.speaking()  # before the look: who answers in between has said what is seen later
        fresh = self.cell.drain()
        self.streamed.add(fresh)
        if fresh or self.streamed.waits():
            self.line.make_room()
            self.streamed.show_due(speaking)
        if any(piece.kind == "clear" for pieces in fresh.values() for piece in pieces):
            self.line.forget()

    def _last_output(self) -> None:
        """Show what is left; what went ahead of the reply and was lost on the way is in the journal."""
        # after a cut each connection tries again in a time of its own, no longer than the cut was
        deadline = time.monotonic() + LAST_PIECES_S + self._longest_silence_s
        while self.pending.lacks_pieces() and time.monotonic() < deadline:
            self._show()
            time.sleep(0.01)
        if self.pending.lacks_pieces() or self.pending.lost:
            self.cell.catch_up()
        over = not self.pending.missing()
        self.streamed.add(self.cell.drain(give_up=over))
        self.line.clear()
        self.streamed.flush()

    def _line(self, now: float) -> str:
        """Say how it goes."""
        silent_s = self.session.control_path().silent_s()
        if silent_s > SILENT_S:
            self._longest_silence_s = max(self._longest_silence_s, silent_s)
            return (
                f"no word from the session's keeper for {output.clock(int(silent_s))}: the network or its node; "
                f"the ranks run on, what they put out is kept there ({self.hint})"
            )
        parts = [running_line(self.cell, now - self.began_s)]
        if self.streamed.partial():
            parts.append(self.streamed.partial())
        elif self.where.stands:
            control, stands = self.session.control_path(), self.where.stands.values()
            behind = [s for s in stands if s.request and not control.runs(self.pending, s)]
            earlier = "behind an earlier cell: " if behind else ""
            parts.append(paused_words(behind, self._simulations) or earlier + standing(behind or stands))
        return f"{' · '.join(parts)} ({self.hint})"

    def _look_where(self, now: float) -> None:
        """Look where ranks stand: often when some have raised, now and then when it takes long."""
        if not self.where.look(self.cell, now) and not self.cell.raised() and now >= self._stands_at_s:
            self._stands_at_s = now + STANDS_S
            control = self.session.control_path()
            there = [rank for rank in self.cell.missing()[:FEW_RANKS] if control.engine(rank)]
            self._simulations = control.simulations(there)
            self.where.ask(self.cell)

    def _mind_the_journal(self, now: float) -> None:
        """Take replies from the journal that should have come long ago: the wire was cut in between."""
        if now < self._journal_at_s:
            return
        self._journal_at_s = now + ASK_S
        before, self._written = self._written, self.cell.written_replies()
        if before & self._written & set(self.pending.missing()):
            self.cell.catch_up()

    def _mind_the_end(self, now: float) -> None:
        """Say when the job will end before the cell does, by walltime or budget."""
        if said := self.foresight.look(now, self.streamed.partial()):
            self.line.make_room()
            output.quiet(f"Session {self.session.name}: {said}.")

    def _mind_the_timeout(self, timeout_s: float) -> None:
        """Interrupt the cell, or look again when it can have run for so long: it may wait behind another one."""
        in_s = left_s(self.cell, timeout_s)
        if in_s > 0 or not self.pending.missing():
            self.deadline_s = time.monotonic() + in_s
            return
        late = output.ranks_in_words(self.pending.missing())
        self.session.interrupt(self.cell)
        if self.pending.wait(STOP_S):
            raise late_error(timeout_s, late)
        stands = standing(stands_of(self.cell).values())
        raise late_error(timeout_s, late, f"it was interrupted, but runs on: {stands}")

    def _interrupted(self) -> None:
        """Interrupt the ranks and follow on; a second Ctrl-C lets go."""
        self.line.clear()
        self.hint = "once more Ctrl-C lets go"
        interrupt(self.cell, self._wait)


def paused_words(behind: Sequence[Stand], simulations: Mapping[int, Mapping[str, Any]]) -> str:
    """Say that the cell which ranks work on holds a simulation that somebody has paused; nothing if it does not."""
    if not any(told.get("alive") and told.get("paused") for told in list(simulations.values())):
        return ""
    earlier = next((stand.where.partition(",")[0] for stand in behind if stand.where), "an earlier cell")
    return f"waits behind {earlier}, whose simulation is paused → `%steer resume`" if behind else ""


def running_line(cell: Cell, elapsed_s: float) -> str:
    """Say how a cell goes: who has answered, who raised, who is missing, for how long."""
    pending = cell.pending
    missing, total = cell.missing(), len(cell.ranks)
    fault = output.fault_in_words(pending.replies if pending is not None else {})
    waiting = f"{total - len(missing)} of {total} done{fault}, waiting for {output.ranks_in_words(missing)}"
    state = f"running on {output.count(total, 'rank')}" if len(missing) == total else waiting
    return f"{state}, {output.clock(int(elapsed_s))}"
