"""The handle of a cell: how it goes, what it has put out, what it gave; while it runs and long after.

sent by this kernel    replies come over the wire    (wire/pending)
any other              read from the journal         (wire/history), also when its session has ended
"""

from __future__ import annotations

import contextlib
import html
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from hpcmagic.errors import CellError, HpcMagicError, SessionEnded, StillRunning
from hpcmagic.notebook import frontend, output
from hpcmagic.notebook.perrank import PerRank
from hpcmagic.rendezvous import SessionDirectory
from hpcmagic.wire.history import Record, cell_paths, read_records
from hpcmagic.wire.messages import Output, Reply, from_frames
from hpcmagic.wire.pending import Pending

if TYPE_CHECKING:
    from hpcmagic.notebook.view import View

LOOK_S = (0.2, 2.0)  # how often to look into the journal for a cell of another kernel: at first, and at most
TAIL_LINES = 12  # of its output, that a handle's display shows
TAIL_NBYTES = 4000  # of each rank's output
SOURCE_SHOWN = 60


class Holder(Protocol):
    """What a cell needs of its session."""

    name: str
    size: int
    ended: str
    directory: SessionDirectory

    def interrupt(self, cell: Cell) -> None:
        """Ask the ranks to give the cell up."""

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
        self._view: View | None = None

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
                pending.take_piece(rank, record.head["piece"], from_frames(record.frames))
            elif record.kind == "reply" and record.frames and rank in self._outputs:
                pending.take(from_frames(record.frames))

    def lose(self) -> None:
        """Note that the ranks that have not answered never will: whoever waits goes on, and callbacks are called."""
        if self.pending is not None:
            for rank in self.pending.missing():
                self.pending.lose(rank)

    def written_replies(self) -> set[int]:
        """Give the ranks whose replies the journal has."""
        return {record.head["rank"] for record in self._records(heads_only=True) if record.kind == "reply"}

    def _records(self, *, heads_only: bool = False) -> Iterator[Record]:
        _, path = cell_paths(self.session.directory.cells).get(self.id, (0, None))
        if path is not None:
            yield from (record for record, _ in read_records(path, heads_only=heads_only))

    def outputs(self) -> dict[int, list[Output]]:
        """Give what each rank has put out so far, in order."""
        if self.pending is not None:
            if self.pending.lacks_pieces():  # late, or lost on the wire
                self.catch_up()
            self.drain()
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
        return {record.head["rank"]: from_frames(record.frames) for record in found}

    def missing(self) -> tuple[int, ...]:
        """Give the ranks that have not answered, and still may."""
        return self._standing()[0]

    def _standing(self) -> tuple[tuple[int, ...], set[str], set[int], bool]:
        """Give who is missing, the names of what was raised, who is lost, and whether values gave way."""
        if self.pending is not None:
            raised = {reply.raised.name for reply in list(self.pending.replies.values()) if reply.raised is not None}
            lost = set(self.pending.lost)
            missing = set(self.pending.missing())
            dropped = False
        else:
            heads = [record.head for record in self._records(heads_only=True)]
            answered = {head["rank"]: head.get("raised", "") for head in heads if head["kind"] == "reply"}
            raised = {name for name in answered.values() if name}
            lost = {rank for head in heads if head["kind"] == "lost" for rank in head["ranks"]}
            missing = set(self.ranks) - set(answered) - lost
            dropped = any(head["kind"] == "dropped" for head in heads)
        if self.session.ended:
            lost, missing = lost | missing, set()
        return tuple(sorted(missing)), raised, lost, dropped

    @property
    def state(self) -> str:
        """``running`` (or waiting behind others), ``done``, ``failed``, ``interrupted``, or ``lost``."""
        missing, raised, lost, _ = self._standing()
        if missing:
            return "running"
        if lost and not raised:
            return "lost"
        return "done" if not raised else "interrupted" if raised == {"KeyboardInterrupt"} else "failed"

    def how_it_goes(self) -> str:
        """Say the state in a few words."""
        missing, raised, _, _ = self._standing()
        answered = len(self.ranks) - len(missing)
        if not missing:
            return f"{self.state}{' ' + ', '.join(sorted(raised)) if raised else ''}"
        elapsed = output.clock(int(max(0, time.time() - self.sent)))
        if answered:
            fault = f" ({', '.join(sorted(raised))})" if raised else ""
            waits = output.ranks_in_words(missing)
            return f"{answered} of {len(self.ranks)} done{fault}, waiting for {waits}, {elapsed}"
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
        """Interrupt it unless it is over by then."""
        timer = threading.Timer(seconds, self._cancel_quietly)
        timer.daemon = True
        timer.start()
        self.add_done_callback(lambda _: timer.cancel())

    def _cancel_quietly(self) -> None:
        with contextlib.suppress(HpcMagicError):
            self.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over; False when `timeout` seconds have passed first."""
        deadline = None if timeout is None else time.monotonic() + timeout
        look_s = LOOK_S[0]
        while not self.done():
            left = look_s if deadline is None else min(look_s, deadline - time.monotonic())
            if left <= 0:
                return False
            if self.pending is not None:
                self.pending.wait(left)
            else:
                time.sleep(left)
            with contextlib.suppress(SessionEnded):  # what came before the end counts
                self.session.look(time.monotonic())
            look_s = min(LOOK_S[1], look_s * 1.3)
        return True

    def result(self, timeout: float | None = None) -> PerRank | None:
        """Wait for the last value of each rank; None where no rank had one.

        Raises
        ------
        RankError
            A rank raised.
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
        try:
            return self._outcome()
        except HpcMagicError as error:
            self.session.note_error(error)
            raise

    def _outcome(self) -> PerRank | None:
        """Give the values of a cell that is over, or raise what it ended with."""
        replies = self.replies()
        error = output.rank_error(
            [replies[rank] for rank in sorted(replies)], size=self.session.size, defined_here=frontend.defined_here
        )
        if error is not None:
            raise error
        _, _, lost, dropped = self._standing()
        if lost:
            self.session.require_alive()
            raise SessionEnded(
                f"{self.name.capitalize()} never ended on {output.ranks_in_words(lost)}: the ranks are gone.",
                "What it had put out is in `.output`; run it again.",
            )
        if dropped:
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
            return error
        return None

    def add_done_callback(self, callback: Callable[[Cell], Any]) -> None:
        """Call ``callback(cell)`` once it is over: at once if it is, else later in a thread of hpcmagic's."""
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
        import asyncio

        async def waited() -> PerRank | None:
            loop, over = asyncio.get_running_loop(), asyncio.Event()
            self.add_done_callback(lambda _: loop.call_soon_threadsafe(over.set))
            while not self.done():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), LOOK_S[1])
                with contextlib.suppress(SessionEnded):
                    await asyncio.to_thread(self.session.look, time.monotonic())
            return self.result()

        return waited().__await__()

    def _ipython_display_(self) -> None:
        """Show how it goes, and go on showing it until it is over."""
        if not output.in_notebook():
            print(self.as_text())
            return
        from hpcmagic.notebook.view import View

        if self._view is None or not self._view.alive:
            self._view = View(self)

    def as_text(self) -> str:
        """Give how it goes, and the end of its output."""
        return "\n".join([f"{self.name}: {self.how_it_goes()}", *self._tail()])

    def as_html(self) -> str:
        """Give the same as a page."""
        colour = {"running": "#1976d2", "done": "#2e7d32", "failed": "#c62828"}.get(self.state, "#8d6e63")
        head = (
            f'<span style="color:{colour}">●</span> <b>{html.escape(self.name)}</b> {html.escape(self.how_it_goes())}'
        )
        tail = "\n".join(self._tail())
        body = f'<pre style="margin:0.3em 0 0 1.1em; font-size:90%">{html.escape(tail)}</pre>' if tail else ""
        return f"<div>{head}{body}</div>"

    def _tail(self) -> list[str]:
        """Give the last lines of the output, and how it ended."""
        ends = {rank: _end(pieces) for rank, pieces in self.outputs().items()}
        lines = output.text_of(ends, labels=self.session.size > 1).splitlines()
        lines = ["…", *lines[-TAIL_LINES:]] if len(lines) > TAIL_LINES else lines
        if not self.done():
            return lines
        try:
            value = self._outcome()
        except HpcMagicError as error:
            return [*lines, *str(error).splitlines()]
        ended = repr(value).splitlines() if value is not None else []
        return [*lines, *(["→"] if lines and ended else []), *ended[:TAIL_LINES]]


def _end(pieces: Sequence[Output]) -> list[Output]:
    """Give the last pieces of a rank's output, the first of them cut: a display is drawn twice a second."""
    kept: list[Output] = []
    nbytes = 0
    for piece in reversed(pieces):
        text = piece.text if len(piece.text) <= TAIL_NBYTES else piece.text[-TAIL_NBYTES:].partition("\n")[2]
        kept.append(replace(piece, text=text))
        nbytes += len(text)
        if nbytes >= TAIL_NBYTES:
            break
    return kept[::-1]


def in_thread(work: Callable[[], Any]) -> None:
    """Do something beside, in a thread that holds nobody up."""
    threading.Thread(target=work, name="hpcmagic-handle", daemon=True).start()
