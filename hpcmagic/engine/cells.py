"""Run one cell as a rank: what it prints, shows, gives and raises becomes output on its way and one `Reply`.

RunCell ─► RankShell.run_cell_async ─┬─ what it puts out    ─► Capture ─► pieces, the rest with the Reply
                                     ├─ last expression     ─► value ───► Reply
                                     └─ an exception        ─► short frames
"""

from __future__ import annotations

import asyncio
import builtins
import ctypes
import operator
import os
import pickle
import sys
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets import Type

from hpcmagic.engine.capture import Capture, RankDisplayHook, RankDisplayPublisher, RankLog
from hpcmagic.engine.steering import Steering
from hpcmagic.engine.tracebacks import AGAIN, CELL, in_short, know, raised_by
from hpcmagic.engine.transfers import Transfers
from hpcmagic.wire.messages import VALUE_LIMIT_NBYTES, Apply, Call, Output, Pickled, Reply, RunCell

GIVEN = ("rank", "size", "comm")  # builtins of every rank


class RankShell(ZMQInteractiveShell):
    """IPython's shell as a rank has it."""

    displayhook_class = Type(RankDisplayHook)
    display_pub_class = Type(RankDisplayPublisher)
    capture: Capture | None = None
    serves_stock = False  # a request of ipyparallel's own is being served
    fault: BaseException | None = None  # what IPython only shows in a cell that goes on: of a file of `%run`, say

    def ask_exit(self) -> None:
        """Leave exit() and quit() without effect: the other ranks would go too."""
        print("exit() has no effect on a rank; `%hpc stop` ends the session.", file=sys.stderr)

    def enable_gui(self, gui: Any = None) -> None:
        """No windows on a rank; `%matplotlib inline` asks for none."""

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        if self.capture is None:
            super()._showtraceback(etype, evalue, stb)

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        """Leave a cell's error to `raised`; IPython's rendering would cost 30 ms."""
        if self.capture is None:
            super().showtraceback(exc_tuple, *args, **kwargs)
        elif exc_tuple is not None:  # a value that cannot display itself
            print(in_short(exc_tuple[1]), file=sys.stderr)
        elif not kwargs.get("running_compiled_code"):
            self.fault = self.fault or sys.exc_info()[1]


class CellRunner:
    """Answers the notebook's requests, one at a time, in the main thread.

    Parameters
    ----------
    shell
        The rank's shell, with the user's namespace.
    rank
        This rank.
    log
        Where output beyond a cell's limit goes.
    publish
        Sends a piece of output ahead: takes the cell's id, the piece's number, and the outputs.
    """

    def __init__(
        self, shell: RankShell, rank: int, log: RankLog, publish: Callable[[str, int, tuple[Output, ...]], None]
    ) -> None:
        self.shell = shell
        self.rank = rank
        self.log = log
        self.publish = publish
        self.transfers: Transfers  # set once the session's files are read
        self.steering: Steering  # likewise
        self.pid = os.getpid()
        self.task: asyncio.Task[Any] | None = None  # of a cell with a top-level await
        self.interrupted = False
        self._libc = ctypes.CDLL(None)
        shell.compile.get_code_name = self._code_name
        self._name = "cell"
        self._times: Counter[str] = Counter()  # how often a name was used: each kernel counts its cells from 1

    def stream(self) -> None:
        """Send what the running cell has put out so far ahead (called in the agent's thread)."""
        capture = self.shell.capture
        if capture is not None and capture.cell:
            outputs = capture.take()
            if outputs:
                self.publish(capture.cell, capture.streamed - 1, outputs)

    async def answer(self, message: Any, cell: str = "") -> Reply:
        """Do what a message asks; whatever goes wrong becomes part of the reply."""
        begun = time.monotonic()
        warnings.filterwarnings("ignore", "To exit: use 'exit'")
        try:
            reply = await self._answer(message, cell)
        except BaseException as error:  # a value's __reduce__ may raise SystemExit: the rank would be gone with it
            reply = Reply(self.rank, raised=raised_by(error))
        object.__setattr__(reply, "elapsed_s", time.monotonic() - begun)
        return reply

    async def _answer(self, message: Any, cell: str) -> Reply:
        match message:
            case RunCell():
                return await self._run_cell(message, cell)
            case Apply():
                return self._apply(message)
            case Call():
                know(message.sources)
                return self._called(lambda: pickled_value(self.transfers.call(message)))
        return self.transfers.answer(message, self._names())

    def _apply(self, message: Apply) -> Reply:
        """Call a function with items; what it prints comes with the reply."""
        if self.transfers.lacks(message):
            return Reply(self.rank, lacks_function=True)
        know(message.sources)
        return self._called(lambda: (Pickled.of(self.transfers.apply(message)), ""))

    def _called(self, work: Callable[[], tuple[Pickled | None, str]]) -> Reply:
        """Do what calls the user's functions; what they give, print and raise becomes the reply."""
        with self._captured("") as capture:
            raised, value, described = None, None, ""
            try:
                value, described = work()
            except BaseException as error:  # as of a cell
                raised = raised_by(error)
        outputs = capture.take(at_end=True)
        return Reply(self.rank, outputs, has_value=True, value=value, described=described, raised=raised)

    def _code_name(self, _raw: str, _transformed: str, _number: int) -> str:
        name = self._name.removeprefix("cell ")
        self._times[name] += 1
        again = f"{AGAIN}{self._times[name]}" if self._times[name] > 1 else ""  # each has its own lines
        return f"{CELL}{name}{again}>"

    async def _run_cell(self, cell: RunCell, cell_id: str) -> Reply:
        self._name = cell.name
        self.steering.cell = cell_id
        with self._captured(cell_id) as capture:
            error = await self._execute(cell.numbered())
            if os.getpid() != self.pid:
                os._exit(0)  # a child that the cell forked and that ran to its end: there is one rank, not two
            self.steering.cell_over(failed=error is not None)
        raised, has_value, value, described = None, False, None, ""
        try:
            raised = raised_by(error) if error is not None else None
            if capture.has_value and raised is None and (cell.keep_value or not self._silenced(cell.source)):
                value, described = pickled_value(capture.value)
                has_value = True
        except BaseException as broken:  # a value may raise anything when it is asked; what was printed is kept
            raised = raised_by(broken)
        rest = capture.take(at_end=True)
        return Reply(self.rank, rest, capture.streamed, has_value, value, described, raised=raised)

    def _silenced(self, source: str) -> bool:
        """Whether the cell ends in a semicolon; a comment behind it does not count, nor one within a comment."""
        try:
            return bool(self.shell.displayhook.semicolon_at_end_of_expression(source))
        except (SyntaxError, tokenize.TokenError):  # IPython's own syntax need not be Python's
            return source.rstrip().endswith(";")

    async def _execute(self, source: str) -> BaseException | None:
        """Run source in the user's namespace; give what it raised."""
        shell, self.interrupted = self.shell, False
        shell.fault = None
        try:
            transformed = shell.transform_cell(source)
        except Exception as error:  # runs input transformers that users register: theirs is the cell's error
            return error
        coroutine = shell.run_cell_async(source, store_history=False, transformed_cell=transformed)
        try:
            if shell.should_run_async(source, transformed_cell=transformed):
                self.task = asyncio.ensure_future(coroutine)
                result = await self.task
            else:
                result = _run_to_end(coroutine)
        except (KeyboardInterrupt, asyncio.CancelledError) as error:
            return KeyboardInterrupt(*error.args)
        finally:
            self.task = None
            shell.events.trigger("post_execute")
        ended: BaseException | None = result.error_before_exec or result.error_in_exec or shell.fault
        shell.fault = None
        if isinstance(ended, asyncio.CancelledError) and self.interrupted:
            return KeyboardInterrupt().with_traceback(ended.__traceback__)
        return ended

    @contextmanager
    def _captured(self, cell_id: str) -> Iterator[Capture]:
        """Gather all output; what the cell does to the standard streams ends with it."""
        self._flush_c()
        streams = sys.stdout, sys.stderr
        self.shell._last_traceback = None  # noqa: SLF001  # IPython would keep a failed cell's arrays alive with it
        capture = self.shell.capture = Capture(self.log, cell_id)
        try:
            yield capture
        finally:
            self._flush_c()
            self.shell.capture = None
            sys.stdout, sys.stderr = streams
            self.log.put_back()

    def _flush_c(self) -> None:
        self._libc.fflush(None)

    def _names(self) -> dict[str, Any]:
        """Give what the user's names are bound to, builtins of every rank among them."""
        given = {name: vars(builtins)[name] for name in GIVEN if name in vars(builtins)}
        return {**given, **self.shell.user_ns}


def _run_to_end(coroutine: Any) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("the cell waits, but has no top-level await")


def pickled_value(value: Any) -> tuple[Pickled | None, str]:
    """Give a cell's value for the way home, or None and a description when it stays here."""
    if nbytes_of(value) > VALUE_LIMIT_NBYTES:
        return None, describe(value)
    try:
        pickled = Pickled.of(value)
    except pickle.PicklingError as error:
        return None, f"{describe(value)}, cannot be pickled: {error}"
    if pickled.nbytes > VALUE_LIMIT_NBYTES:
        return None, f"{describe(value)}, {pickled.nbytes / 1e6:.0f} MB"
    return pickled, ""


def describe(value: Any) -> str:
    """Say a value's type, shape and size in a few words."""
    words = [f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")]
    with suppress(Exception):  # what a value says of itself may be anything, or raise it
        shape = getattr(value, "shape", None)
        words.append(f"shape {shape}" if isinstance(shape, tuple) else f"length {len(value)}")
    if nbytes_of(value):
        words.append(f"{nbytes_of(value) / 1e6:.0f} MB")
    return ", ".join(words)


def nbytes_of(value: Any) -> int:
    """Give the size that a value tells; 0 if it tells none, or what is no number."""
    try:
        return operator.index(value.nbytes)
    except Exception:  # a property of the user's class may raise anything: then it tells no size
        return 0


def no_input(prompt: str = "") -> str:
    """Replace input() on a rank: nobody sits there."""
    raise RuntimeError(f"input({prompt!r}) on a rank: nobody can answer there. Use `--push` to send a value.")
