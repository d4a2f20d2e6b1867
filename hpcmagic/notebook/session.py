"""The kernel's hold on a session: cells and values to the ranks, verbs to its job, its state.

start(...) ─► find or submit (notebook/start.py) ─► Session ─┬─ run, push, pull ─► wire/control ─► ranks
                                                            ├─ status, stop    ─► launch
                                                            └─ client          ─► ipyparallel itself
"""

from __future__ import annotations

import ast
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from hpcmagic.errors import CellError, DataError, SessionEnded
from hpcmagic.launch.base import JobState, Launcher
from hpcmagic.notebook import output
from hpcmagic.notebook.perrank import PerRank, choose_ranks
from hpcmagic.notebook.pickling import pickle_for_ranks
from hpcmagic.rendezvous import TERMINATED, JobRecord, KeeperState, Request, SessionDirectory
from hpcmagic.wire.control import Control, Pending
from hpcmagic.wire.messages import Pull, Push, Reply, RunCell

LOOK_S = 1.0  # how often a waiting cell looks whether its session still lives
ASK_S = 15.0  # … and asks the batch system
INTERRUPT_S = 5.0


@dataclass(frozen=True, slots=True)
class Status:
    """How a session stands.

    Attributes
    ----------
    state
        ``pending``, ``starting``, ``ready`` or ``ended``.
    reason
        Why it waits or how it ended, in words.
    left_s
        Seconds until the walltime; None where there is none.
    cost
        None until sessions are metered.
    """

    session: str
    state: str
    launcher: str
    job_id: str
    reason: str
    nodes: tuple[str, ...]
    ranks: int
    elapsed_s: float
    left_s: float | None
    cost: None = None


class Session:
    """A hold on running engines; made by `hpcmagic.start`.

    As a context manager it stops the session at the end.
    """

    def __init__(
        self,
        directory: SessionDirectory,
        request: Request,
        launcher: Launcher,
        job: JobRecord,
        control: Control,
    ) -> None:
        self.directory = directory
        self.request = request
        self.launcher = launcher
        self.job = job
        self.control = control
        self.name = request.session
        self.size = request.ntasks
        self._cells = 0
        self._job_seen = launcher.state(job.job_id)
        self._seen_at_s = time.monotonic()
        self.ended = ""

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
        return self.control.client

    @property
    def node_seconds(self) -> float:
        """Nodes × seconds since the job began, whether a cell ran or not."""
        return self.elapsed_s() * max(1, len(set(self.keeper_state().nodes)))

    def elapsed_s(self) -> float:
        """Seconds since the job began, by SLURM's count."""
        if self.request.launcher == "local":
            return max(0.0, time.time() - self.job.submitted)
        return self._job_seen.elapsed_s + time.monotonic() - self._seen_at_s

    def left_s(self) -> float | None:
        """Seconds until the walltime; None where there is none."""
        left = self._job_seen.left_s
        return None if left is None else max(0.0, left - (time.monotonic() - self._seen_at_s))

    def run(self, source: str, ranks: Any = None, timeout: float | None = None) -> PerRank | None:
        """Run source on the ranks; print what they print; give the last value of each.

        Parameters
        ----------
        source
            Python, with IPython's syntax and top-level await.
        ranks
            Ranks as a sequence of numbers, a number, or text like ``"0,2-3"``; None = all.
        timeout
            Seconds after which to stop waiting; the cell is then interrupted. None = no limit.

        Raises
        ------
        CellError
            A syntax error, found before any rank is bothered.
        RankError
            A rank raised.
        SessionEnded
            The session ended meanwhile.
        """
        self._cells += 1
        replies = self.run_cell(RunCell(source, f"cell {self._cells}"), ranks, timeout)
        return output.values(replies)

    def run_cell(self, cell: RunCell, ranks: Any = None, timeout: float | None = None) -> list[Reply]:
        """Run a cell and show its output; give the replies in rank order."""
        if not isinstance(cell.source, str):
            raise CellError(f"A cell is text, not {type(cell.source).__name__}.", "Pass its source.")
        check_syntax(cell)
        replies = self._ask(cell, self.chosen(ranks), timeout)
        output.show(replies, labels=self.size > 1)
        self._raise(replies)
        return replies

    def push(self, ranks: Any = None, **values: Any) -> None:
        """Bind names on the ranks to values.

        Raises
        ------
        DataError
            A value that cannot be pickled; the path to the culprit inside it is named.
        """
        chosen = self.chosen(ranks)
        pickled = {name: pickle_for_ranks(name, value) for name, value in values.items()}
        self._raise(self._ask(Push(pickled), chosen, None))

    def pull(self, *names: str, ranks: Any = None) -> Any:
        """Fetch values of names from ranks: a PerRank, or for several names one each, in a tuple.

        Raises
        ------
        RankError
            A name that a rank does not have.
        """
        replies = self._ask(Pull(names), self.chosen(ranks), None)
        self._raise(replies)
        per_rank = tuple(PerRank({r.rank: _loaded(name, r) for r in replies}) for name in names)
        return per_rank[0] if len(names) == 1 else per_rank

    def status(self) -> Status:
        """Ask how the session stands."""
        self._look_at_job()
        try:
            keeper = self.keeper_state()
        except FileNotFoundError:
            keeper = KeeperState("ended", cause=self.ended or "stopped")
        return status_of(
            self.request, self.job, keeper, self._job_seen, elapsed_s=self.elapsed_s(), left_s=self.left_s()
        )

    def stop(self) -> None:
        """End the session: cancel its job, lose its variables. Without effect on one that has ended."""
        if not self.ended:
            self.ended = "stopped"
            self.control.close()
        stop(self.directory, self.launcher, self.job)

    def log(self, rank: int | None = None, lines: int = 40) -> str:
        """Give the last lines of the job's log, or of one rank's."""
        path = self.directory.log if rank is None else self.directory.rank_log(rank)
        return tail(path, lines)

    def keeper_state(self) -> KeeperState:
        """Read the keeper's word on how things stand."""
        return self.directory.read_record(self.directory.state, KeeperState) or KeeperState("starting")

    def chosen(self, ranks: Any) -> tuple[int, ...]:
        """Give the ranks that a user's words name."""
        return choose_ranks(ranks, self.size)

    def require_alive(self) -> None:
        """Raise if the session has ended.

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
            raise self._ended("its directory is gone: it was stopped elsewhere, or the directory removed") from None
        if keeper.phase == "ended":
            raise self._ended(cause_of_end(keeper, self.launcher, self.job))

    def _ask(self, message: Any, ranks: Sequence[int], timeout_s: float | None) -> list[Reply]:
        """Send a message and wait for all replies; Ctrl-C interrupts the ranks."""
        self.require_alive()
        pending = self.control.send(message, ranks)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        line = output.StatusLine()
        try:
            self._wait(pending, deadline, line)
        except KeyboardInterrupt:
            line.clear()
            self._interrupted(pending, line)
        finally:
            line.clear()
        if pending.lost:
            self.require_alive()
            raise SessionEnded(
                f"Of session {self.name} {output.ranks_in_words(pending.lost)} is gone, with all variables there.",
                "See `%hpc log`; `%hpc stop` ends the session.",
            )
        return [pending.replies[rank] for rank in sorted(pending.replies)]

    def _wait(
        self, pending: Pending, deadline: float | None, line: output.StatusLine, hint: str = "Ctrl-C interrupts"
    ) -> None:
        began_s = time.monotonic()
        ask_at = began_s + ASK_S
        while not pending.wait(LOOK_S if deadline is None else min(LOOK_S, max(0.0, deadline - time.monotonic()))):
            self.require_alive()
            now = time.monotonic()
            line.update(_running_line(pending, now - began_s, hint))
            if deadline is not None and now >= deadline:
                late = output.ranks_in_words(pending.missing())
                self.control.interrupt(pending)
                stopped = "it was interrupted" if pending.wait(INTERRUPT_S) else "it was interrupted, but runs on"
                raise CellError(
                    f"The cell ran longer than its --timeout on {late}; {stopped}.",
                    "Give it more with `--timeout`, or leave it out.",
                )
            if now >= ask_at or self.request.launcher == "local":
                ask_at = now + ASK_S
                self._look_at_job()
                if self._job_seen.phase == "ended":
                    time.sleep(LOOK_S)  # the keeper may still be writing why
                    self.require_alive()
                    raise self._ended(self._job_seen.meaning or self._job_seen.word)

    def _interrupted(self, pending: Pending, line: output.StatusLine) -> None:
        """Interrupt the ranks and wait for what they say to it; a second Ctrl-C lets go."""
        self.control.interrupt(pending)
        print("Interrupting the ranks … (once more lets go of them: they run on)")
        try:
            if pending.wait(INTERRUPT_S):
                return
            missing = pending.missing()
            pronoun = "it is" if len(missing) == 1 else "they are"
            print(f"Not stopped: {output.ranks_in_words(missing)}; {pronoun} inside MPI or C code.")
            self._wait(pending, None, line, "once more Ctrl-C lets go")
        except KeyboardInterrupt:
            left = output.ranks_in_words(pending.missing())
            error = output.rank_error(list(pending.replies.values()), size=self.size)
            if error is not None:
                print(error.text)
            raise CellError(
                f"Let go of the cell; {left} run on.",
                "Their next cell waits until this one ends; `%hpc stop` ends the session.",
            ) from None

    def _look_at_job(self) -> None:
        seen = self.launcher.state(self.job.job_id)
        if seen.phase != "unknown":
            self._job_seen, self._seen_at_s = seen, time.monotonic()

    def _ended(self, cause: str) -> SessionEnded:
        self.ended = self.ended or cause
        return ended_error(self.name, cause, self.request)

    def _raise(self, replies: Sequence[Reply]) -> None:
        error = output.rank_error(replies, size=self.size)
        if error is not None:
            raise error


def _running_line(pending: Pending, elapsed_s: float, hint: str) -> str:
    missing, total = pending.missing(), len(pending.ranks)
    raised = [reply for reply in pending.replies.values() if reply.raised is not None]
    names = " ".join(sorted({r.raised.name for r in raised if r.raised is not None}))
    fault = f" ({output.ranks_in_words(r.rank for r in raised)} raised {names})" if raised else ""
    waiting = f"{total - len(missing)} of {total} done{fault}, waiting for {output.ranks_in_words(missing)}"
    state = f"running on {output.count(total, 'rank')}" if len(missing) == total else waiting
    return f"{state}, {output.clock(int(elapsed_s))} ({hint})"


def check_syntax(cell: RunCell) -> None:
    """Find a syntax error before any rank is bothered.

    Raises
    ------
    CellError
        With the line as the notebook's cell counts it.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said where the cell runs
            compile(
                TransformerManager().transform_cell(cell.numbered()), "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            )
    except SyntaxError as error:
        text = (error.text or "").strip()
        raise CellError(
            f"{type(error).__name__} in line {error.lineno}: {error.msg}{f':  {text}' if text else ''}",
            "No rank was bothered; mend the cell and run it again.",
        ) from None
    except (ValueError, MemoryError, RecursionError, OverflowError) as error:
        why = str(error) or f"{type(error).__name__}, it may be nested too deeply"
        raise CellError(f"The cell cannot be compiled: {why}.", "Mend the cell and run it again.") from None


def _loaded(name: str, reply: Reply) -> Any:
    try:
        return reply.pulled[name].load()
    except Exception as error:  # a module that only the ranks have, a class of their own
        raise DataError(
            f"`{name}` of rank {reply.rank} cannot be loaded here: {type(error).__name__}: {error}.",
            "Install what it needs here too, or pull a plainer form of it.",
        ) from error


def tail(path: Any, lines: int) -> str:
    """Give a file's last lines."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 400 * lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def ended_error(name: str, cause: str, request: Request) -> SessionEnded:
    """Give the error for a session that is over: why, what is lost, and the line that starts again."""
    profile = request.resources.get("profile")
    line = f"%%remote {f'--profile {profile} ' if profile else ''}--nodes {request.nodes}"
    if request.ntasks_per_node > 1:
        line += f" --ntasks-per-node {request.ntasks_per_node}"
    if request.resources.get("time") and request.launcher == "slurm":
        line += f" --time {request.resources['time']}"
    return SessionEnded(f"Session {name} has ended: {cause}. Its variables are gone.", f"Start again with `{line}`.")


def cause_of_end(keeper: KeeperState, launcher: Launcher, job: JobRecord | None) -> str:
    """Give why a session ended; whoever sent the keeper a SIGTERM, only the batch system knows."""
    if keeper.cause == TERMINATED and job is not None:
        return launcher.state(job.job_id).meaning or keeper.cause
    return keeper.cause


def stop(directory: SessionDirectory, launcher: Launcher, job: JobRecord | None) -> None:
    """Cancel a session's job and put its directory aside."""
    if job is not None:
        launcher.cancel(job.job_id)
    if directory.path.exists():
        directory.put_aside()


def status_of(
    request: Request,
    job: JobRecord,
    keeper: KeeperState | None,
    seen: JobState,
    *,
    elapsed_s: float,
    left_s: float | None,
) -> Status:
    """Put the keeper's and the batch system's words together."""
    phase = keeper.phase if keeper is not None else "starting" if seen.phase == "running" else "pending"
    cause = keeper.cause if keeper is not None else ""
    if seen.phase == "ended" and phase != "ended":
        phase, cause = "ended", seen.meaning or seen.word
    elif seen.phase == "pending":
        phase, cause = "pending", " – ".join(filter(None, (seen.reason, seen.meaning)))
    nodes = tuple(dict.fromkeys(keeper.nodes)) if keeper is not None and phase != "pending" else ()
    if phase == "ended":
        left_s = None
    return Status(
        request.session, phase, request.launcher, job.job_id, cause, nodes, request.ntasks, elapsed_s, left_s
    )
