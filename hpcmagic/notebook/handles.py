"""The handle of a cell: how it goes, what it has put out, what it gave; while it runs and long after.

sent by this kernel    replies come over the wire    (wire/pending)
any other              read from the journal         (wire/history), also when its session has ended
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from hpcmagic.errors import CellError, HpcMagicError, RankError, SessionEnded, StillRunning
from hpcmagic.notebook import frontend, glance, output
from hpcmagic.notebook.interrupting import interrupt, wait_for
from hpcmagic.notebook.perrank import PerRank
from hpcmagic.notebook.standing import Standing, written_standing
from hpcmagic.notebook.stuck import Whereabouts, stuck_error, waiting_in_words
from hpcmagic.notebook.timeout import Alarm, late_error, waited_s
from hpcmagic.rendezvous import SessionDirectory
from hpcmagic.wire.history import Record, cell_paths, read_records
from hpcmagic.wire.messages import Output, Reply, outputs_from, reply_from
from hpcmagic.wire.pending import Pending

if TYPE_CHECKING:
    from hpcmagic.notebook.view import View
    from hpcmagic.wire.control import Control

LOOK_S = (0.2, 2.0)  # how often to look into the journal for a cell of another kernel: at first, and at most
SOURCE_SHOWN = 60


class Holder(Protocol):
    """What a cell needs of its session."""

    name: str
    size: int
    ended: str
    directory: SessionDirectory
    given_up: list[Pending]

    def interrupt(self, cell: Cell) -> None:
        """Ask the ranks to give the cell up."""

    def control_path(self) -> Control:
        """Give the way to the ranks."""

    def place_of(self, cell: Cell) -> int:
        """Give the cell's place among all cells."""

    def require_alive(self) -> None:
        """Raise if the session has ended."""

    def look(self, now_s: float) -> None:
        """Raise so, asking the batch system too: a keeper that was killed cannot say it."""

    def note_error(self, error: HpcMagicError) -> None:
        """Keep an error for `%hpc why`."""


class Cell:
    """One cell of a session, and the handle of it while it runs.

    Attributes
    ----------
    source
        Its text.
    name
        As tracebacks call it, e.g. ``cell 3``.
    ranks
        The ranks it was sent to.
    client
        Who sent it: ``user@host:pid``.
    """

    def __init__(
        self,
        session: Holder,
        cell_id: str,
        source: str,
        name: str,
        ranks: Sequence[int],
        *,
        client: str = "",
        pending: Pending | None = None,
        sent: float = 0.0,
        first_line: int = 1,
        file: str = "",
    ) -> None:
        self.session = session
        self.id = cell_id
        self.source = source
        self.name = name
        self.ranks = tuple(ranks)
        self.client = client.partition("#")[0]
        self.sent = sent or time.time()
        self.pending = pending
        self._outputs: dict[int, list[Output]] = {rank: [] for rank in self.ranks}
        self._draining = threading.Lock()
        self._first_line = first_line
        self._file = file  # its name in the journal, once it is known: to look it up takes longer with every cell
        self._where = Whereabouts()
        self._view: View | None = None
        self._alarm: Alarm | None = None

    def __repr__(self) -> str:
        line = self.source.strip().partition("\n")[0]
        shown = line if len(line) <= SOURCE_SHOWN else f"{line[:SOURCE_SHOWN]}…"
        return f"<{self.name}: {self.how_it_goes()}: {shown!r}>"

    def drain(self, *, give_up: bool = False) -> dict[int, tuple[Output, ...]]:
        """Give what has come over the wire since the last call; `output` keeps it."""
        with self._draining:  # a handle's display does so in a thread of its own
            fresh = self.pending.new_output(give_up=give_up) if self.pending is not None else {}
            for rank, pieces in fresh.items():
                self._outputs[rank] += pieces
        return fresh

    def catch_up(self) -> None:
        """Take from the journal what was lost on the wire."""
        if self.pending is not None:
            self._replay(self.pending)

    def _replay(self, pending: Pending) -> None:
        for record in self._records():
            rank = record.head.get("rank")
            if record.kind == "output" and rank in self._outputs:
                pending.take_piece(rank, record.head["piece"], outputs_from(record.frames))
            elif record.kind == "reply" and record.frames and rank in self._outputs:
                pending.take(reply_from(record.head["rank"], record.frames))

    def lose(self) -> None:
        """Note that the ranks that have not answered never will: whoever waits goes on, and callbacks are called."""
        if self.pending is not None:
            for rank in self.pending.missing():
                self.pending.lose(rank)

    def written_replies(self) -> set[int]:
        """Give the ranks whose replies the journal has."""
        return {record.head["rank"] for record in self._records(heads_only=True) if record.kind == "reply"}

    def _records(self, *, heads_only: bool = False) -> Iterator[Record]:
        folder = self.session.directory.cells
        if not self._file:
            _, path = cell_paths(folder).get(self.id, (0, None))
            self._file = path.name if path is not None else ""
        if self._file:
            yield from (record for record, _ in read_records(folder / self._file, heads_only=heads_only))

    def outputs(self) -> dict[int, list[Output]]:
        """Give what each rank has put out so far, in order."""
        if self.pending is not None:
            gone = bool(self.pending.lost)
            if gone or self.pending.lacks_pieces():  # late, or lost on the wire, or a rank's last words
                self.catch_up()
            self.drain(give_up=gone and not self.pending.missing())
            return self._outputs
        written = Pending(self.ranks)  # a reply may have been written down before the last pieces
        self._replay(written)
        there = written.new_output(give_up=True)
        return {rank: list(there.get(rank, ())) for rank in self.ranks}

    @property
    def output(self) -> str:
        """What the ranks have printed so far, folded; figures by their plain text."""
        return output.text_of(self.outputs(), labels=self.session.size > 1)

    def show(self) -> None:
        """Print and display here what the ranks have put out so far, figures and all."""
        output.show(self.outputs(), labels=self.session.size > 1)

    def replies(self) -> dict[int, Reply]:
        """Give the replies that are there, by rank."""
        if self.pending is not None:
            return dict(self.pending.replies)
        found = (record for record in self._records() if record.kind == "reply" and record.frames)
        return {record.head["rank"]: reply_from(record.head["rank"], record.frames) for record in found}

    def missing(self) -> tuple[int, ...]:
        """Give the ranks that have not answered, and still may."""
        return self._standing().missing

    def raised(self) -> frozenset[str]:
        """Give the names of what ranks have raised so far."""
        return self._standing().raised

    def line(self, number: int) -> str:
        """Give a line of its text, by the number that tracebacks give it."""
        lines = self.source.splitlines()
        return lines[number - self._first_line] if 0 <= number - self._first_line < len(lines) else ""

    def _standing(self) -> Standing:
        pending = self.pending
        if pending is None:
            standing = written_standing(self.ranks, [record.head for record in self._records(heads_only=True)])
        else:
            names = frozenset(r.raised.name for r in list(pending.replies.values()) if r.raised is not None)
            standing = Standing(pending.missing(), names, frozenset(pending.lost), pending.waiting())
        if self.session.ended:
            gone = {*standing.lost, *standing.missing, *standing.waiting}
            standing = replace(standing, missing=(), lost=frozenset(gone), waiting={})
        return standing

    @property
    def state(self) -> str:
        """``running`` (or waiting behind others), ``done``, ``failed``, ``interrupted``, or ``lost``."""
        standing = self._standing()
        if standing.missing:
            return "running"
        if standing.lost and not standing.raised:
            return "lost"
        interrupted = standing.raised == {"KeyboardInterrupt"} and not standing.waiting
        return "done" if not standing.raised else "interrupted" if interrupted else "failed"

    def how_it_goes(self) -> str:
        """Say the state in a few words."""
        standing = self._standing()
        missing, names = standing.missing, ", ".join(sorted(standing.raised))
        answered = len(self.ranks) - len(missing)
        if not missing and (alarm := self._late(standing)) is not None:
            return f"interrupted by its --timeout of {alarm.limit_s:g} s"
        if not missing:
            waits = f", {waiting_in_words(standing.waiting)}" if standing.waiting else ""
            return f"{self.state}{' ' + names if names else ''}{waits}"
        elapsed = output.clock(int(max(0, time.time() - self.sent)))
        if answered:
            fault = f" ({names})" if names else ""
            left = output.ranks_in_words(missing)
            return f"{answered} of {len(self.ranks)} done{fault}, waiting for {left}, {elapsed}"
        return f"running on {output.count(len(self.ranks), 'rank')}, {elapsed}"

    def done(self) -> bool:
        """Whether no rank works on it any more, however it ended."""
        return not self.missing()

    def cancel(self) -> bool:
        """Interrupt it, or withdraw it where it has not begun; False when it was over already."""
        if self.done():
            return False
        self.session.interrupt(self)
        return True

    def cancel_after(self, seconds: float) -> None:
        """Interrupt it when it has run for so long on a rank."""
        self._alarm = Alarm(self, seconds)

    def _late(self, standing: Standing) -> Alarm | None:
        """Give the alarm if that is why the cell was interrupted."""
        alarm = self._alarm
        return alarm if alarm is not None and alarm.late and standing.raised == {"KeyboardInterrupt"} else None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over; False when `timeout` seconds have passed first.

        Ctrl-C interrupts its ranks, and raises what the cell then ends with.
        """
        try:
            return self.over_within(timeout)
        except KeyboardInterrupt:
            interrupt(self, lambda: self.over_within(None))
        self._noted_outcome()
        return True

    def over_within(self, timeout: float | None) -> bool:
        """Wait likewise; Ctrl-C comes through."""
        deadline, look_s = time.monotonic() + waited_s(timeout), LOOK_S[0]
        while not self.done():
            left = min(look_s, deadline - time.monotonic())
            if left <= 0:
                return False
            if self.pending is not None:
                self.pending.wait(left)
            else:
                time.sleep(left)
            self.look()
            look_s = min(LOOK_S[1], look_s * 1.3)
        return True

    def look(self) -> None:
        """Look, while it is waited for, whether its session lives, and whether its ranks wait for ever."""
        with contextlib.suppress(SessionEnded):  # what came before the end counts
            self.session.look(time.monotonic())
            self._where.look(self, time.monotonic())

    def result(self, timeout: float | None = None) -> PerRank | None:
        """Wait for the last value of each rank; None where no rank had one.

        Raises
        ------
        RankError
            A rank raised.
        CellError
            It was interrupted by its `--timeout`.
        SessionEnded
            The session ended, or its ranks were restarted, before all had answered.
        StillRunning
            It was not over within `timeout` seconds; it is a TimeoutError too.
        """
        if not self.wait(timeout):
            raise StillRunning(
                f"{self.name.capitalize()} is not over after {output.clock(timeout or 0)}: {self.how_it_goes()}.",
                "Wait longer, or `.cancel()` it.",
            )
        return self._noted_outcome()

    def _noted_outcome(self) -> PerRank | None:
        try:
            return self.outcome()
        except HpcMagicError as error:
            self.session.note_error(error)
            raise

    def error(self) -> RankError | None:
        """Give what ranks have raised so far."""
        return self._error_of(self.replies())

    def _error_of(self, replies: Mapping[int, Reply]) -> RankError | None:
        told = [replies[rank] for rank in sorted(replies)]
        return output.rank_error(told, size=self.session.size, defined_here=frontend.defined_here)

    def outcome(self) -> PerRank | None:
        """Give the values of a cell that is over, or raise what it ended with."""
        replies, standing = self.replies(), self._standing()
        error = self._error_of(replies)
        if (alarm := self._late(standing)) is not None:
            raise late_error(alarm.limit_s, alarm.late)
        if error is not None:
            raise stuck_error(error, standing.waiting)
        if standing.lost:
            self.session.require_alive()
            gone = output.ranks_in_words(sorted(standing.lost))
            raise SessionEnded(
                f"{self.name.capitalize()} never ended on {gone}: the ranks are gone.",
                "What it had put out is in `.output`; run it again.",
            )
        if standing.dropped:
            raise CellError(
                f"The values of {self.name} are not kept any more: younger cells needed the room.",
                "Keep what you need in a variable.",
            )
        return output.values([replies[rank] for rank in sorted(replies)])

    def exception(self, timeout: float | None = None) -> HpcMagicError | None:
        """Wait for the error it ended with; None when it ended well."""
        try:
            self.result(timeout)
        except StillRunning:
            raise
        except HpcMagicError as error:
            if not self.done():  # the user has let go of it
                raise
            return error
        return None

    def add_done_callback(self, callback: Callable[[Cell], Any]) -> None:
        """Call ``callback(cell)`` once it is over: at once if it is, else later in a thread of hpcmagic's."""
        if not callable(callback):
            raise CellError(f"{callback!r} cannot be called.", "Give a function that takes the cell.")
        if self.pending is not None:
            self.pending.at_end(lambda: self._call(callback))
        else:
            in_thread(lambda: (self.wait(), callback(self)))

    def _call(self, callback: Callable[[Cell], Any]) -> None:
        """Call at once, but never in the thread that owns the sockets: the callback may want to run cells."""
        if threading.current_thread() is threading.main_thread():
            callback(self)
        else:
            in_thread(lambda: callback(self))

    def __await__(self) -> Generator[Any, None, PerRank | None]:
        """Wait without blocking the notebook's loop; gives what `result` gives."""

        async def waited() -> PerRank | None:
            await wait_for(self)
            return self.result()

        return waited().__await__()

    def _ipython_display_(self) -> None:
        """Show how it goes, and go on showing it until it is over."""
        if not output.in_notebook():
            print(self.as_text())
            return
        from hpcmagic.notebook.view import View

        if self._view is not None and self._view.alive:
            self._view.show_again()
        else:
            self._view = View(self)

    def as_text(self) -> str:
        """Give how it goes, and the end of its output."""
        return glance.as_text(self)

    def as_html(self) -> str:
        """Give the same as a page."""
        return glance.as_html(self)


def in_thread(work: Callable[[], Any]) -> None:
    """Do something beside, in a thread that holds nobody up."""
    threading.Thread(target=work, name="hpcmagic-handle", daemon=True).start()
