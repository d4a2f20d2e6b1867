"""Follow a cell while it runs: show its output, say how it goes, pass Ctrl-C on, notice what cannot go on.

every piece of output      ─► shown
every second               ─► does the session live? the status line; is the keeper heard?
some raised, others wait   ─► where do these stand? all in MPI, and not moving ─► RankError names them
Ctrl-C                     ─► interrupt; who does not stop is named, with the line; once more lets go
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcmagic.errors import CellError, RankError
from hpcmagic.notebook import frontend, output
from hpcmagic.notebook.handles import Cell
from hpcmagic.notebook.perrank import rank_set
from hpcmagic.notebook.streaming import Streamed
from hpcmagic.wire.messages import ABANDON, DUMP, Stand
from hpcmagic.wire.pending import Pending

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session

LOOK_S = 1.0  # how often a waiting cell looks whether its session still lives
ASK_S = 15.0  # … and asks the batch system
SHOW_S = 0.1  # how often output that waits for other ranks is looked at
ANSWER_S = 0.8  # how long ranks may take to say where they stand
STUCK_LOOKS = 3  # so often in the same MPI call, while another rank has raised: it waits for ever
STANDS_S = 5.0  # how often the status line says where slow ranks stand
FEW_RANKS = 64  # where ranks stand is asked of about so many
STOP_S = 3.0  # after an interrupt: ranks that have not stopped by then are named
SILENT_S = 10.0  # the keeper beats every two
LAST_PIECES_S = 3.0  # how long output that went ahead may come after the reply
DUMP_S = 1.0


class Following:
    """One cell, followed in the main thread until it is over or let go."""

    def __init__(self, session: Session, cell: Cell, pending: Pending, deadline_s: float | None) -> None:
        self.session = session
        self.cell = cell
        self.pending = pending
        self.deadline_s = deadline_s
        self.line = output.StatusLine()
        self.streamed = Streamed(cell.ranks, labels=session.size > 1)
        self.began_s = time.monotonic()
        self.hint = "Ctrl-C interrupts"
        self.stands: dict[int, Stand] = {}
        self.stuck_looks = 0
        self._written: set[int] = set()  # ranks whose replies the journal has
        self._journal_at_s = self.began_s + ASK_S
        self._longest_silence_s = 0.0
        self._look_at_s = self.began_s + LOOK_S
        self._stands_at_s = self.began_s + STANDS_S

    def to_the_end(self) -> None:
        """Follow until every rank has answered or gone.

        Raises
        ------
        RankError
            Some ranks raised, and all others wait for them in MPI.
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

    def _wait(self) -> None:
        while not self.pending.wait_for_news(SHOW_S if self._showing() else LOOK_S) or self.pending.missing():
            now = time.monotonic()
            self._show()
            if now >= self._look_at_s:
                self._look_at_s = now + LOOK_S
                self.session.look(now)
                self._require_progress(now)
                self._mind_the_journal(now)
                self.line.update(self._line(now))
            if self.deadline_s is not None and now >= self.deadline_s:
                self._late()

    def _showing(self) -> bool:
        left = None if self.deadline_s is None else self.deadline_s - time.monotonic()
        return self.streamed.waits() or (left is not None and left < LOOK_S)

    def _show(self) -> None:
        fresh = self.cell.drain()
        self.streamed.add(fresh)
        if fresh or self.streamed.waits():
            self.line.make_room()
            self.streamed.show_due(self.pending.missing())
        if any(piece.kind == "clear" for pieces in fresh.values() for piece in pieces):
            self.line.forget()

    def _last_output(self) -> None:
        """Show what is left; what went ahead of the reply and was lost on the way is in the journal."""
        # after a cut each connection tries again in a time of its own, no longer than the cut was
        deadline = time.monotonic() + LAST_PIECES_S + self._longest_silence_s
        while self.pending.lacks_pieces() and time.monotonic() < deadline:
            self._show()
            time.sleep(0.01)
        if self.pending.lacks_pieces():
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
        elif self.stands:
            control = self.session.control_path()
            behind = [s for s in self.stands.values() if s.request and not control.runs(self.pending, s)]
            earlier = "behind an earlier cell: " if behind else ""
            parts.append(earlier + standing(behind or self.stands.values()))
        return f"{' · '.join(parts)} ({self.hint})"

    def _require_progress(self, now: float) -> None:
        """Look where ranks stand: often when some have raised, now and then when it takes long.

        Raises
        ------
        RankError
            Some ranks raised, and all others wait for them in MPI.
        """
        missing = self.pending.missing()
        error = self._error()
        if not missing or not (error is not None or now >= self._stands_at_s):
            return
        self._stands_at_s = now + STANDS_S
        before, self.stands = self.stands, self._where(missing)
        if error is None or len(_sample(missing)) > len(self.stands):
            return
        same = [r for r, s in self.stands.items() if s.call and r in before and before[r].mark == s.mark]
        self.stuck_looks = self.stuck_looks + 1 if len(same) == len(self.stands) else 0
        if self.stuck_looks >= STUCK_LOOKS - 1:
            self.cell.drain()
            raise self._stuck_error(error, self.stands)

    def _mind_the_journal(self, now: float) -> None:
        """Take replies from the journal that should have come long ago: the wire was cut in between."""
        if now < self._journal_at_s:
            return
        self._journal_at_s = now + ASK_S
        before, self._written = self._written, self.cell.written_replies()
        if before & self._written & set(self.pending.missing()):
            self.cell.catch_up()

    def _where(self, ranks: Sequence[int]) -> dict[int, Stand]:
        return self.session.control_path().stands(_sample(ranks), ANSWER_S)

    def _error(self) -> RankError | None:
        """Give what ranks have raised so far."""
        return output.rank_error(
            list(self.pending.replies.values()), size=self.session.size, defined_here=frontend.defined_here
        )

    def _stuck_error(self, error: RankError, stands: Mapping[int, Stand]) -> RankError:
        self.session.behind[self.cell.id] = self.cell
        waiting = {rank: f"{stands[rank].call}, {stands[rank].where}" for rank in sorted(stands)}
        self.session.stuck[self.cell.id] = waiting
        self.session.control_path().ask_keeper(ABANDON, cell=self.cell.id)  # it keeps the session no more
        told = (
            f"{capital(standing(stands.values()))}: for ever.\n"
            "→ `%hpc restart` gives new ranks in the same job; their variables are lost."
        )
        return RankError(f"{error.text}\n{told}", error.ranks, f"{error.full}\n{told}", waiting)

    def _late(self) -> None:
        late = output.ranks_in_words(self.pending.missing())
        self.session.interrupt(self.cell)
        stopped = self.pending.wait(STOP_S)
        if not stopped:
            self.session.behind[self.cell.id] = self.cell
        said = "it was interrupted" if stopped else f"it was interrupted, but runs on: {self._not_stopped()}"
        raise CellError(
            f"The cell ran longer than its --timeout on {late}; {said}.",
            "Give it more with `--timeout`, or leave it out.",
        )

    def _interrupted(self) -> None:
        """Interrupt the ranks and wait for what they say to it; a second Ctrl-C lets go."""
        self.line.clear()
        self.session.interrupt(self.cell)
        try:
            print("Interrupting the ranks … (once more lets go of them: they run on)")
            if self.pending.wait(STOP_S):
                return
            print(f"Not stopped: {self._not_stopped()}.")
            print("→ Wait for them, or Ctrl-C once more and `%hpc restart`: new ranks, their variables are lost.")
            self.hint = "once more Ctrl-C lets go"
            self._wait()
        except KeyboardInterrupt:
            self.session.behind[self.cell.id] = self.cell
            left = self.pending.missing()
            error = self._error()
            if error is not None:
                print(error.text)
            place = self.session.place_of(self.cell)
            raise CellError(
                f"Let go of {self.cell.name}; {output.ranks_in_words(left)} run{'s' if len(left) == 1 else ''} on.",
                f"`hpcmagic.attach({self.session.name!r}).cells[{place}].result()` comes back to it "
                f"(`import hpcmagic` first); "
                f"`%hpc cancel {place}` interrupts it again, `%hpc restart` ends it.",
            ) from None

    def _not_stopped(self) -> str:
        """Say which ranks go on, and at which line each stands."""
        missing = self.pending.missing()
        stands = self._where(missing)
        deaf = [rank for rank in missing if rank not in stands][:FEW_RANKS]
        if deaf:
            stands |= dumped_stands(self.session, deaf)
        return standing(stands.values())


def _sample(ranks: Sequence[int]) -> list[int]:
    """Give some of many ranks, spread evenly: what all of them do, the others do too."""
    return list(ranks[:: 1 + len(ranks) // FEW_RANKS])


def running_line(cell: Cell, elapsed_s: float) -> str:
    """Say how a cell goes: who has answered, who raised, who is missing, for how long."""
    pending = cell.pending
    missing, total = cell.missing(), len(cell.ranks)
    replies = list(pending.replies.values()) if pending is not None else []
    raised = [reply for reply in replies if reply.raised is not None]
    names = " ".join(sorted({r.raised.name for r in raised if r.raised is not None}))
    fault = f" ({output.ranks_in_words(r.rank for r in raised)} raised {names})" if raised else ""
    waiting = f"{total - len(missing)} of {total} done{fault}, waiting for {output.ranks_in_words(missing)}"
    state = f"running on {output.count(total, 'rank')}" if len(missing) == total else waiting
    return f"{state}, {output.clock(int(elapsed_s))}"


def standing(stands: Iterable[Stand]) -> str:
    """Say where ranks stand, those at one place together."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for stand in stands:
        groups.setdefault((stand.where, stand.source, stand.call), []).append(stand.rank)
    said = []
    for (where, source, call), ranks in groups.items():
        who = output.ranks_in_words(ranks)
        verb = "waits" if len(ranks) == 1 else "wait"
        if call:
            said.append(f"{who} {verb} in {call}, {where}")
        elif where:
            said.append(f"{who} {'is' if len(ranks) == 1 else 'are'} at {where}: {source}")
        else:
            said.append(f"{who} {'does' if len(ranks) == 1 else 'do'} not say where")
    return "; ".join(said)


def dumped_stands(session: Session, ranks: Sequence[int]) -> dict[int, Stand]:
    """Ask by a signal where ranks stand that do not answer: C code holds their interpreter."""
    directory = session.directory
    sizes = {rank: _size(directory.where(rank)) for rank in ranks}
    session.control_path().ask_keeper(DUMP)
    deadline = time.monotonic() + DUMP_S
    while True:  # it is written in pieces
        stands = {rank: _dumped(session, rank, sizes[rank]) for rank in ranks}
        if all(stand.where for stand in stands.values()) or time.monotonic() >= deadline:
            return stands
        time.sleep(0.05)


def _dumped(session: Session, rank: int, begin: int) -> Stand:
    try:
        with session.directory.where(rank).open(errors="replace") as file:
            file.seek(begin)
            text = file.read()
    except OSError:
        return Stand(rank)
    match = re.search(r'File "<(cell [^"]*)>", line (\d+)', text)
    return (
        Stand(rank, "", f"{match[1]}, line {match[2]}", "in C code that holds the interpreter")
        if match
        else Stand(rank)
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def capital(text: str) -> str:
    """Begin with a capital letter, and leave the rest as it is."""
    return text[:1].upper() + text[1:]


def require_not_stuck(session: Session, ranks: Sequence[int]) -> None:
    """Refuse to send a cell to ranks that wait for ever in an earlier one.

    Raises
    ------
    CellError
        Names them, and the cell they wait in.
    """
    for cell_id, cell in list(session.behind.items()):
        missing = set(cell.missing())
        if not missing:
            del session.behind[cell_id]
            continue
        waiting = session.stuck.get(cell_id, {})
        stuck = sorted(missing & set(ranks) & set(waiting))
        if stuck:
            free = [rank for rank in range(session.size) if rank not in missing]
            instead = f", or run this with `--ranks {rank_set(free)}`" if free else ""
            raise CellError(
                f"{capital(output.ranks_in_words(stuck))} still wait{'s' if len(stuck) == 1 else ''} in "
                f"{waiting[stuck[0]]}, and would never come to this cell.",
                f"`%hpc restart` gives new ranks in the same job (their variables are lost){instead}.",
            )
