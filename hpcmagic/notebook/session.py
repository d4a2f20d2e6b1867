"""The kernel's hold on a session: cells and values to the ranks, verbs to its keeper and its job, its state.

start(...), attach(...) ─► Session ─┬─ run, push, pull ─► wire/control ─► ranks
                                    ├─ cells            ─► the journal
                                    ├─ restart          ─► keeper
                                    ├─ status, stop     ─► launch
                                    └─ client           ─► ipyparallel itself
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self, overload

from hpcmagic.errors import CellError, HpcMagicError, SessionEnded
from hpcmagic.launch.base import AT_ITS_PACE, FRESH_S, Launcher
from hpcmagic.notebook import causes, frontend, output
from hpcmagic.notebook.cell_list import Cells, OwnCells
from hpcmagic.notebook.data import Data
from hpcmagic.notebook.data_verbs import DataVerbs
from hpcmagic.notebook.following import ASK_S, Following
from hpcmagic.notebook.found import stop
from hpcmagic.notebook.handles import Cell
from hpcmagic.notebook.lifespan import Lifespan
from hpcmagic.notebook.news import News
from hpcmagic.notebook.perrank import PerRank, choose_ranks
from hpcmagic.notebook.restarting import restart, wait_if_restarting
from hpcmagic.notebook.simulation import Steer
from hpcmagic.notebook.status import JobSeen, Status
from hpcmagic.notebook.stuck import require_not_stuck, stuck_error
from hpcmagic.notebook.syntax import check_syntax
from hpcmagic.notebook.timeout import require_time
from hpcmagic.rendezvous import JobRecord, KeeperState, Request, SessionDirectory
from hpcmagic.wire.control import Control
from hpcmagic.wire.messages import Reply, RunCell
from hpcmagic.wire.pending import Pending

LOOK_S = 1.0  # how often a waiting request looks whether its session still lives
SILENT_S = 6.0  # a keeper beats every two: is it gone, the batch system is asked more often …
SILENT_ASK_S = 5.0  # … namely so
SAID_S = 2.0  # how long a keeper's last word may take after its job has ended


class Session(DataVerbs, Lifespan):
    """A hold on running engines; made by `hpcmagic.start` and `hpcmagic.attach`.

    As a context manager it stops the session at the end.
    """

    def __init__(
        self,
        directory: SessionDirectory,
        request: Request,
        launcher: Launcher,
        job: JobRecord,
        control: Control | None,
        *,
        ended: str = "",
    ) -> None:
        self.directory = directory
        self.request = request
        self.launcher = launcher
        self.job = job
        self.control = control
        self.name = request.session
        self.size = request.ntasks
        self.ended = ended
        self.last_error: HpcMagicError | None = None
        self.told = KeeperState("starting")  # the keeper's word when it was last read
        self.given_up: list[Pending] = []  # of cells of this kernel whose ranks wait for ever
        self._own = OwnCells()
        self._cells = 0
        self._news = News(self.name)
        self.seen = JobSeen(launcher, job, ended=bool(ended))
        self._asked_s = float("-inf")
        self.data = Data(self)
        self.steer = Steer(self, self._own)

    def __repr__(self) -> str:
        nodes = len(set(self.keeper_state().nodes)) or self.request.nodes
        where = (
            "on this machine"
            if self.request.launcher == "local"
            else f"on {output.count(nodes, 'node')}, job {self.job.job_id}"
        )
        return f"<Session {self.name}: {output.count(self.size, 'rank')} {where}{', ended' if self.ended else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def client(self) -> Any:
        """The ipyparallel client of this session: everything that ipyparallel can do."""
        return self.control_path().lend()

    @property
    def node_seconds(self) -> float:
        """Nodes × seconds since the job began, whether a cell ran or not."""
        return self.elapsed_s() * max(1, len(set(self.keeper_state().nodes)))

    def elapsed_s(self) -> float:
        """Seconds since the job began, by SLURM's count."""
        return self.seen.elapsed_s()

    def left_s(self) -> float | None:
        """Seconds until the walltime; None where there is none."""
        return self.seen.left_s()

    @overload
    def run(self, source: str, ranks: Any = None, timeout: float | None = None) -> PerRank | None: ...
    @overload
    def run(self, source: str, ranks: Any = None, timeout: float | None = None, *, block: Literal[False]) -> Cell: ...
    def run(
        self, source: str, ranks: Any = None, timeout: float | None = None, *, block: bool = True
    ) -> PerRank | Cell | None:
        """Run source on the ranks; print what they print as it comes; give the last value of each.

        Parameters
        ----------
        source
            Python, with IPython's syntax and top-level await.
        ranks
            Ranks as a sequence of numbers, a number, or text like ``"0,2-3"``; None = all.
        timeout
            Seconds that it may run, not counting the wait for its turn; it is then interrupted. None = no limit.
        block
            False: do not wait; give the cell's handle.

        Raises
        ------
        CellError
            A syntax error, found before any rank is bothered; or it ran longer than `timeout`.
        RankError
            A rank raised.
        SessionEnded
            The session ended meanwhile.
        """
        require_time(timeout)
        self._cells += 1
        cell = RunCell(source, f"cell {self._cells}")
        if not block:
            return self.send_cell(cell, ranks, timeout)
        return output.values(self.run_cell(cell, ranks, timeout))

    def run_cell(self, cell: RunCell, ranks: Any = None, timeout: float | None = None) -> list[Reply]:
        """Run a cell and show its output as it comes; give the replies in rank order."""
        sent, pending = self._sent_cell(cell, ranks)
        with self.noted_errors():
            Following(self, sent, pending, timeout).to_the_end()
            self.require_all(pending)
            replies = [pending.replies[rank] for rank in sorted(pending.replies)]
            self.raise_errors(replies, pending.waiting())
        return replies

    def send_cell(self, cell: RunCell, ranks: Any = None, timeout: float | None = None) -> Cell:
        """Send a cell; give its handle at once."""
        sent, _ = self._sent_cell(cell, ranks)
        if timeout is not None:
            sent.cancel_after(timeout)
        return sent

    def _sent_cell(self, cell: RunCell, ranks: Any) -> tuple[Cell, Pending]:
        if not isinstance(cell.source, str):
            raise CellError(f"A cell is text, not {type(cell.source).__name__}.", "Pass its source.")
        check_syntax(cell)
        chosen, cell_id = self.chosen(ranks), secrets.token_hex(6)
        pending = self._send(cell, chosen, cell_id)
        own, line = self.control_path().name, cell.first_line
        sent = Cell(self, cell_id, cell.source, cell.name, chosen, client=own, pending=pending, first_line=line)
        self._own.add(sent, pending)
        return sent, pending

    @property
    def cells(self) -> Cells:
        """Every cell of the session, whoever sent it: source, state, output, result."""
        return self._own.among_all(self)

    def place_of(self, cell: Cell) -> int:
        """Give a cell's place in `cells`."""
        return [other.id for other in self.cells].index(cell.id)

    def interrupt(self, cell: Cell) -> None:
        """Ask the ranks to give a cell up; on those where it has not begun it is withdrawn."""
        self.require_alive()
        self.control_path().interrupt(cell.id, cell.missing(), cell.pending)

    def restart(self) -> None:
        """Start new engine processes in the same job: variables are lost, no second wait in the queue.

        Ranks that have ended by themselves are started anew as well, while their job is held for it.

        Raises
        ------
        SessionEnded
            The session is over, or ended because new ranks could not be started.
        """
        self.require_alive(fallen=True)
        self._news.expect_restart()
        with self.noted_errors():
            restart(self)
        self.given_up.clear()

    def status(self) -> Status:
        """Ask how the session stands; what the batch system said a moment ago will do."""
        self.seen.look(FRESH_S)
        return self.seen.status(self.directory, self.request, self.last_word())

    def last_word(self) -> KeeperState:
        """Give the keeper's word on how things stand, or what is known of its end."""
        try:
            keeper = self.keeper_state()
        except FileNotFoundError:
            return KeeperState("ended", cause=self.ended or "it was stopped")
        if self.ended and keeper.phase != "ended":  # it had no time to say so
            return replace(keeper, phase="ended", cause=self.ended)
        return keeper

    def stop(self) -> None:
        """End the session: cancel its job, lose its variables. Without effect on one that has ended."""
        if not self.ended:
            self.ended = "it was stopped"
        self._let_go()
        stop(self.directory, self.launcher, self.job)
        self.directory = self.directory.where_it_is(self.request)

    def log(self, rank: int | None = None, lines: int = 40) -> str:
        """Give the last lines of the job's log, or of one rank's."""
        path = self.directory.log if rank is None else self.directory.rank_log(self.chosen([rank])[0])
        return causes.tail(path, lines)

    def why(self) -> str:
        """Give the whole of the last error: the full tracebacks of the ranks, or all that is known of the end."""
        over = causes.story_of(self)
        if over or self.last_error is None:
            return over or "No error yet."
        return str(getattr(self.last_error, "full", "") or self.last_error)

    def keeper_state(self) -> KeeperState:
        """Read the keeper's word on how things stand."""
        return self.directory.read_record(self.directory.state, KeeperState) or KeeperState("starting")

    def chosen(self, ranks: Any) -> tuple[int, ...]:
        """Give the ranks that a user's words name."""
        return choose_ranks(ranks, self.size)

    def control_path(self) -> Control:
        """Give the way to the ranks.

        Raises
        ------
        SessionEnded
            There is none any more.
        """
        if self.control is None:
            raise self._ended(self.ended or "it was stopped")
        self.control.revive()
        return self.control

    def require_alive(self, *, fallen: bool = False) -> None:
        """Raise if the session has ended, or its ranks; with `fallen` a job that is held for others will do.

        Raises
        ------
        SessionEnded
            With when and why, as far as is known.
        """
        if self.ended:
            raise self._ended(self.ended)
        try:
            keeper = self.keeper_state()
        except FileNotFoundError:
            self.launcher.cancel(self.job.job_id)  # if the directory was only removed, the job would run on
            raise self._ended(causes.cause_aside(self.directory, self.request, self.launcher, self.job)) from None
        if keeper.phase == "ended":
            raise self._ended(causes.cause_of_end(keeper, self.launcher, self.job))
        if keeper.phase == "fallen" and not fallen:
            raise self._fallen(keeper)
        self.told = keeper
        own, warned = (self.control.name, self.control.beat.warning) if self.control is not None else ("", "")
        self._news.tell(replace(keeper, warning=warned or keeper.warning), own)

    def look(self, now_s: float, *, fallen: bool = False) -> None:
        """Look, while something is waited for, whether the session lives; ask the batch system now and then.

        Raises
        ------
        SessionEnded
            It does not.
        """
        self.require_alive(fallen=fallen)
        silent = self.control is not None and self.control.silent_s() > SILENT_S
        pause_s = 0.0 if self.request.launcher == "local" else SILENT_ASK_S if silent else ASK_S
        if now_s >= self._asked_s + pause_s:
            self._asked_s = now_s
            self.seen.look(0.0 if silent else AT_ITS_PACE)
            if self.seen.state.phase == "ended":
                time.sleep(SAID_S)  # the keeper may still be writing why
                self.require_alive(fallen=True)
                raise self._ended(causes.job_cause(causes.settled(self.launcher, self.job)))

    def note_error(self, error: HpcMagicError) -> None:
        """Keep an error for `why`."""
        self.last_error = error

    @contextlib.contextmanager
    def noted_errors(self) -> Iterator[None]:
        """Keep an error that passes through for `why`."""
        try:
            yield
        except HpcMagicError as error:
            self.note_error(error)
            raise

    def running_cells(self) -> str:
        """Name the cells of this notebook that are not over."""
        return ", ".join(cell.name for cell in self._own.live())

    def send_to(self, messages: Mapping[int, Any]) -> Pending:
        """Send to each rank its own request."""
        return self._send(messages, tuple(messages))

    def _send(self, message: Any, ranks: Sequence[int], cell_id: str = "") -> Pending:
        self.require_alive()
        require_not_stuck(self, ranks)
        wait_if_restarting(self)
        pending = self.control_path().send(message, ranks, cell_id)
        pending.restarts = self._news.restarts
        return pending

    def ask(self, messages: Mapping[int, Any]) -> list[Reply]:
        """Send requests that are no cells, and wait for all replies."""
        return self.answers(self.send_to(messages))

    def answers(self, pending: Pending) -> list[Reply]:
        """Wait for all replies, in rank order; Ctrl-C withdraws what was asked.

        Raises
        ------
        RankError
            A rank raised.
        """
        line, began_s = output.StatusLine(), time.monotonic()
        try:
            while not pending.wait(LOOK_S):
                self.look(time.monotonic())
                missing = output.ranks_in_words(pending.missing()) + output.fault_in_words(pending.replies)
                line.update(f"waiting for {missing}, {output.clock(int(time.monotonic() - began_s))}")
        except KeyboardInterrupt:
            self.control_path().withdraw(pending)
            self.raise_errors([*pending.replies.values()])  # who waits in MPI for one that raised waits for ever
            missing = output.ranks_in_words(pending.missing())
            raise CellError(f"Stopped waiting for {missing}; what was asked is withdrawn.", "Try again.") from None
        finally:
            line.clear()
        self.require_all(pending)
        replies = [pending.replies[rank] for rank in sorted(pending.replies)]
        self.raise_errors(replies)
        return replies

    def require_all(self, pending: Pending) -> None:
        """Raise if ranks are gone that were to answer."""
        if pending.lost:
            self._wait_for_word()
            if self.keeper_state().restarts != pending.restarts:
                raise SessionEnded(
                    f"The ranks of session {self.name} were restarted elsewhere: their variables are gone.",
                    "Run your cells again from where variables are made.",
                )
            raise SessionEnded(
                f"Of session {self.name} {output.ranks_in_words(pending.lost)} is gone, with all variables there.",
                "See `%hpc log`; `%hpc stop` ends the session.",
            )

    def _wait_for_word(self) -> None:
        """Give the keeper a moment to say why ranks are gone."""
        deadline = time.monotonic() + SAID_S
        while time.monotonic() < deadline:
            self.require_alive()
            time.sleep(0.1)

    def _ended(self, cause: str) -> SessionEnded:
        self.ended = self.ended or cause
        self._let_go()
        self.directory = self.directory.where_it_is(self.request)
        error = causes.ended_error(self.name, cause, self.request)
        self.note_error(error)
        return error

    def _fallen(self, keeper: KeeperState) -> SessionEnded:
        """Let go of the ranks that are gone, not of the keeper: it can start others."""
        self.data.channels.close()
        self.steer.close()
        self._own.lose()
        error = causes.fallen_error(self.name, keeper, self.left_s())
        self.note_error(error)
        return error

    def _let_go(self) -> None:
        """Close the way to ranks that are gone; whoever waits for them is told."""
        self.data.channels.close()
        control, self.control = self.control, None
        if control is not None:
            control.close()
        self._own.lose()

    def raise_errors(self, replies: Sequence[Reply], waiting: Mapping[int, str] | None = None) -> None:
        """Raise what the ranks have raised, if they have."""
        error = output.rank_error(replies, size=self.size, defined_here=frontend.defined_here)
        if error is not None:
            raise stuck_error(error, waiting or {})
