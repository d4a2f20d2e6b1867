"""Run one cell as a rank: what it prints, shows, gives and raises becomes one `Reply`.

    RunCell ─► RankShell.run_cell_async ─┬─ print()            ─► CellStream ──┐
                                         ├─ display(figure)    ─► publisher ───┤
                                         ├─ last expression    ─► displayhook ─┼─► Reply
                                         ├─ an exception       ─► short frames ┤
                                         └─ printf() of C code ─► rank's log ──┘  (read back at the end)

Outside of our cells (`s.client[:].execute(...)`) every part behaves as in a stock ipyparallel engine.
"""

from __future__ import annotations

import asyncio
import ctypes
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Any, TextIO

import cloudpickle
from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.zmqshell import ZMQDisplayPublisher, ZMQInteractiveShell
from traitlets import Type

from hpcmagic.engine.tracebacks import CELL, raised_by
from hpcmagic.wire.messages import (
    OUTPUT_LIMIT_NBYTES,
    VALUE_LIMIT_NBYTES,
    Output,
    Pickled,
    Pull,
    Push,
    Reply,
    RunCell,
)


class Capture:
    """What one running cell has put out so far."""

    def __init__(self, log: TextIO) -> None:
        self.log = log
        self.outputs: list[Output] = []
        self.nbytes = 0
        self.overflowed = False
        self.lost = False
        self.value: Any = None
        self.has_value = False

    def write(self, kind: str, text: str) -> None:
        """Take printed text; beyond the limit it goes to the rank's log."""
        if not text.isascii():  # a file's name may hold what is no text: it could not travel
            text = text.encode(errors="backslashreplace").decode()
        self.nbytes += len(text)
        if self.nbytes <= OUTPUT_LIMIT_NBYTES:
            self.outputs.append(Output(kind, text))
            return
        if not self.overflowed:
            self.overflowed = True
            self.outputs.append(Output("stderr", "[… more than 1 MB: the rest is in `%hpc log RANK`]\n"))
        if not self.lost:
            try:
                self.log.write(text)
            except OSError as error:  # a full disk is no fault of the cell's
                self.lost = True
                self.outputs.append(Output("stderr", f"[… and the rest is lost: {error.strerror}]\n"))

    def merged(self) -> tuple[Output, ...]:
        """Give the outputs with neighbouring texts of one stream joined."""
        joined: list[Output] = []
        for kind, run in groupby(self.outputs, key=lambda output: output.kind):
            pieces = list(run)
            joined += pieces if kind == "display" else [Output(kind, "".join(p.text for p in pieces))]
        return tuple(joined)


class CellStream(io.TextIOBase):
    """sys.stdout of a rank: into the running cell; to where a stock engine prints; else into the rank's log."""

    encoding = "utf-8"

    def __init__(self, kind: str, shell: RankShell, otherwise: TextIO, log: TextIO) -> None:
        self.kind = kind
        self.shell = shell
        self.log = log
        self.otherwise = otherwise
        self._unflushed = False

    def write(self, text: str) -> int:
        """Take text of whichever thread prints."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        capture = self.shell.capture
        if capture is None and self.shell.serves_stock:
            self._unflushed = True
            return self.otherwise.write(text)
        if capture is None:  # a thread that prints between cells
            with suppress(OSError):
                self.log.write(text)
                self.log.flush()
            return len(text)
        capture.write(self.kind, text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back inside a cell; ipykernel flushes after each, which costs a wait for its thread."""
        if self.shell.capture is None and self._unflushed:
            self._unflushed = False
            self.otherwise.flush()

    def __getattr__(self, name: str) -> Any:
        """Be what a stock engine's stream is beyond a file: ipykernel calls `set_parent`."""
        return getattr(self.otherwise, name)

    def writable(self) -> bool:
        """Like any standard stream."""
        return True

    def fileno(self) -> int:
        """Give the file descriptor that C code writes to: subprocesses inherit it."""
        return 1 if self.kind == "stdout" else 2


class RankDisplayHook(ZMQShellDisplayHook):
    """Keeps a cell's last value instead of publishing its repr."""

    def __call__(self, result: Any = None) -> None:
        """Take the value of an expression statement."""
        capture = self.shell.capture
        if capture is None:
            super().__call__(result)
        elif result is not None:
            capture.value, capture.has_value = result, True
            self.shell.user_ns["_"] = result


class RankDisplayPublisher(ZMQDisplayPublisher):
    """Puts displays among the running cell's outputs."""

    def publish(self, data: Any, metadata: Any = None, **kwargs: Any) -> None:
        """Take one display's MIME bundle."""
        capture = self.shell.capture
        if capture is None:
            super().publish(data, metadata, **kwargs)
        else:
            capture.outputs.append(Output("display", data=dict(data), metadata=dict(metadata or {})))

    def clear_output(self, wait: bool = False) -> None:  # IPython's signature
        """Forget what the running cell has put out."""
        if self.shell.capture is None:
            super().clear_output(wait)
        else:
            self.shell.capture.outputs.clear()


class RankShell(ZMQInteractiveShell):
    """IPython's shell as a rank has it."""

    displayhook_class = Type(RankDisplayHook)
    display_pub_class = Type(RankDisplayPublisher)
    capture: Capture | None = None
    serves_stock = False  # a request of ipyparallel's own is being served

    def ask_exit(self) -> None:
        """Leave exit() and quit() without effect: the other ranks would go too."""
        print("exit() has no effect on a rank; `%hpc stop` ends the session.", file=sys.stderr)

    def enable_gui(self, gui: Any = None) -> None:
        """No windows on a rank; `%matplotlib inline` asks for none."""

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        if self.capture is None:
            super()._showtraceback(etype, evalue, stb)

    def showtraceback(self, *args: Any, **kwargs: Any) -> None:
        """Leave a cell's error to `raised`; IPython's rendering would cost 30 ms."""
        if self.capture is None:
            super().showtraceback(*args, **kwargs)


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
    """

    def __init__(self, shell: RankShell, rank: int, log: TextIO) -> None:
        self.shell = shell
        self.rank = rank
        self.log = log
        self.task: asyncio.Task[Any] | None = None  # of a cell with a top-level await
        self.interrupted = False
        self._libc = ctypes.CDLL(None)
        shell.compile.get_code_name = self._code_name
        self._name = "cell"

    async def answer(self, message: RunCell | Push | Pull) -> Reply:
        """Do what a message asks; whatever goes wrong becomes part of the reply."""
        begun = time.monotonic()
        warnings.filterwarnings("ignore", "To exit: use 'exit'")
        match message:
            case RunCell():
                reply = await self._run_cell(message)
            case Push(values=values):
                reply = self._guarded(lambda: self._push(values))
            case Pull(names=names):
                reply = self._guarded(lambda: self._pull(names))
        object.__setattr__(reply, "elapsed_s", time.monotonic() - begun)
        return reply

    def _code_name(self, _raw: str, _transformed: str, _number: int) -> str:
        return f"{CELL}{self._name.removeprefix('cell ')}>"

    async def _run_cell(self, cell: RunCell) -> Reply:
        self._name = cell.name
        capture = Capture(self.log)
        with self._captured(capture):
            error = await self._execute(cell.numbered())
            raised = raised_by(error) if error is not None else None
        value: Pickled | None = None
        described = ""
        has_value = capture.has_value and raised is None and (cell.keep_value or not _silenced(cell.source))
        if has_value:
            value, described = pickled_value(capture.value)
        return Reply(self.rank, capture.merged(), has_value, value, described, raised=raised)

    async def _execute(self, source: str) -> BaseException | None:
        """Run source in the user's namespace; give what it raised."""
        shell, self.interrupted = self.shell, False
        try:
            transformed = shell.transform_cell(source)
        except Exception as error:  # an IPython input transformer may raise anything
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
        ended: BaseException | None = result.error_before_exec or result.error_in_exec
        if isinstance(ended, asyncio.CancelledError) and self.interrupted:
            return KeyboardInterrupt().with_traceback(ended.__traceback__)
        return ended

    @contextmanager
    def _captured(self, capture: Capture) -> Iterator[None]:
        """Send all output to `capture`, C code's too, which is read back from the rank's log."""
        self._flush_c()
        size = os.fstat(1).st_size
        self.shell.capture = capture
        self.shell._last_traceback = None  # noqa: SLF001  # IPython keeps frames alive with it
        try:
            yield
        finally:
            self.shell.capture = None
            self._flush_c()
            with suppress(OSError):
                self.log.flush()
            grown = os.fstat(1).st_size - size
            if grown > 0 and not capture.overflowed:  # else that, too, is in the log already
                text = os.pread(1, min(grown, OUTPUT_LIMIT_NBYTES), size).decode(errors="replace")
                capture.write("stdout", text)

    def _flush_c(self) -> None:
        self._libc.fflush(None)

    def _push(self, values: dict[str, Pickled]) -> Reply:
        loaded = {name: value.load() for name, value in values.items()}
        self.shell.user_ns.update(loaded)
        return Reply(self.rank)

    def _pull(self, names: tuple[str, ...]) -> Reply:
        namespace = self.shell.user_ns
        for name in names:
            if name not in namespace:
                raise NameError(f"name {name!r} is not defined")
        return Reply(self.rank, pulled={name: self._pulled(name) for name in names})

    def _pulled(self, name: str) -> Pickled:
        value = self.shell.user_ns[name]
        try:
            return pickle_value(value)
        except Exception as error:  # a user's __reduce__ may raise anything
            raise TypeError(f"`{name}` is a {describe(value)}, which cannot be pickled ({error})") from None

    def _guarded(self, work: Callable[[], Reply]) -> Reply:
        try:
            return work()
        except (Exception, KeyboardInterrupt) as error:
            return Reply(self.rank, raised=raised_by(error))


def _run_to_end(coroutine: Any) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("the cell waits, but has no top-level await")


def _silenced(source: str) -> bool:
    """Whether the cell's last line ends in a semicolon."""
    return source.rstrip().endswith(";")


def pickle_value(value: Any) -> Pickled:
    """Pickle a user's value; its large buffers are not copied."""
    buffers: list[Any] = []
    body = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return Pickled(body, tuple(b.raw() for b in buffers))


def pickled_value(value: Any) -> tuple[Pickled | None, str]:
    """Give a cell's value for the way home, or None and a description when it stays here."""
    if getattr(value, "nbytes", 0) > VALUE_LIMIT_NBYTES:
        return None, describe(value)
    try:
        pickled = pickle_value(value)
    except Exception as error:  # a user's __reduce__ may raise anything
        return None, f"{describe(value)}, cannot be pickled: {error}"
    if pickled.nbytes > VALUE_LIMIT_NBYTES:
        return None, f"{describe(value)}, {pickled.nbytes / 1e6:.0f} MB"
    return pickled, ""


def describe(value: Any) -> str:
    """Say a value's type, shape and size in a few words."""
    words = [f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")]
    shape = getattr(value, "shape", None)
    if shape is not None:
        words.append(f"shape {shape}")
    elif hasattr(value, "__len__"):
        words.append(f"length {len(value)}")
    if getattr(value, "nbytes", 0):
        words.append(f"{value.nbytes / 1e6:.0f} MB")
    return ", ".join(words)


def no_input(prompt: str = "") -> str:
    """Replace input() on a rank: nobody sits there."""
    raise RuntimeError(f"input({prompt!r}) on a rank: nobody can answer there. Use `--push` to send a value.")
