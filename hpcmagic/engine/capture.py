"""What a running cell puts out: gathered in order, given away in pieces while it runs, the rest with the reply.

    print()           ─► CellStream ─┐
    display(figure)   ─► publisher ──┼─► Capture ─► take() ─┬─ by the agent, ten times a second, as it comes
    last expression   ─► displayhook ┘      ▲               └─ by the cell's end, into its Reply
    printf() of C code, child processes ─► the rank's log (read from there)

Outside of our cells (`s.client[:].execute(...)`) every part behaves as in a stock ipyparallel engine.
"""

from __future__ import annotations

import codecs
import io
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any, TextIO

from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.zmqshell import ZMQDisplayPublisher

from hpcmagic.wire.history import last_words
from hpcmagic.wire.messages import DISPLAY_LIMIT_NBYTES, OUTPUT_LIMIT_NBYTES, Output

if TYPE_CHECKING:
    from hpcmagic.engine.cells import RankShell

PLAIN: tuple[type[Any], ...] = (bool, int, float, bytes)


class Capture:
    """What one running cell has put out and nobody has taken yet.

    Parameters
    ----------
    log
        The rank's log, for what goes beyond the limits.
    cell
        The cell's id; without one nothing is given away before the end.
    """

    def __init__(self, log: RankLog, cell: str = "") -> None:
        self.log = log
        self.cell = cell
        self.streamed = 0  # pieces given away
        self.outputs: list[Output] = []
        self.nbytes = self.display_nbytes = 0
        self.overflowed = False
        self.lost = False
        self.value: Any = None
        self.has_value = False
        self._noted = 0  # of the outputs: how many the last flush has noted
        self._c_begins = log.size()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may end in half a character
        self._lock = threading.RLock()

    def write(self, kind: str, text: str) -> None:
        """Take printed text; beyond the limit it goes to the rank's log."""
        if not text.isascii():  # a file's name may hold what is no text: it could not travel
            text = text.encode(errors="backslashreplace").decode()
        nbytes = len(text) if text.isascii() else len(text.encode())
        with self._lock:
            if self.nbytes + nbytes > OUTPUT_LIMIT_NBYTES and not self.overflowed:
                self._take_c_output()
                self._overflow()
            if self.overflowed:
                self._into_log(text)
            else:
                self.nbytes += nbytes
                self.outputs.append(Output(kind, text))

    def _overflow(self) -> None:
        if not self.overflowed:
            self.overflowed = True
            self.outputs.append(Output("stderr", "[… more than 1 MB: the rest is in `%hpc log RANK`]\n"))

    def _into_log(self, text: str) -> None:
        if self.lost:
            return
        try:
            self.log.write(text)
        except OSError as error:  # a full disk is no fault of the cell's
            self.lost = True
            self.outputs.append(Output("stderr", f"[… and the rest is lost: {error.strerror}]\n"))

    def display(self, output: Output) -> None:
        """Take a display, unless the cell has shown too much already."""
        with self._lock:
            before, self.display_nbytes = self.display_nbytes, self.display_nbytes + _size(output.data)
            if self.display_nbytes <= DISPLAY_LIMIT_NBYTES:
                self.outputs.append(output)
            elif before <= DISPLAY_LIMIT_NBYTES:
                limit = f"{DISPLAY_LIMIT_NBYTES // 10**6} MB"
                self.outputs.append(Output("stderr", f"[… more than {limit} displayed: the rest is dropped]\n"))

    def clear(self, *, wait: bool) -> None:
        """Forget what has been put out; what was given away is cleared where it is shown."""
        with self._lock:
            self._take_c_output()
            self._noted = 0
            self.outputs[:] = [Output("clear", "wait" if wait else "")]
            self.nbytes, self.overflowed, self._c_begins = 0, False, self.log.size()  # a picture that moves goes on

    def take(self, *, at_end: bool = False) -> tuple[Output, ...]:
        """Give away what there is, neighbouring texts of one stream joined."""
        with self._lock:
            self._take_c_output(at_end=at_end)
            outputs, self.outputs = self.outputs, []
            if outputs and not at_end:
                self.streamed += 1
            self._noted = 0
        return _joined(outputs)

    def flush(self) -> None:
        """Note what nobody has taken yet: should the rank die before somebody does, the keeper finds it there."""
        with self._lock:
            if self.cell and len(self.outputs) > self._noted:
                self._noted = len(self.outputs)
                texts = [output for output in self.outputs if output.kind in ("stdout", "stderr")]
                self.log.note_last(self.cell, self.streamed, _joined(texts))

    def _take_c_output(self, *, at_end: bool = False) -> None:
        """Read back what C code and child processes have written into the rank's log."""
        if self.overflowed:  # that, too, is in the log already
            return
        begin, self._c_begins = self._c_begins, max(self._c_begins, self.log.size())
        grown, room = self._c_begins - begin, OUTPUT_LIMIT_NBYTES - self.nbytes
        text = self._decoder.decode(self.log.read_at(begin, min(grown, room)), at_end)
        if text:
            self.write("stdout", text)
        if grown > room:
            self._overflow()


def _joined(outputs: Sequence[Output]) -> tuple[Output, ...]:
    """Join neighbouring texts of one stream."""
    joined: list[Output] = []
    for kind, run in groupby(outputs, key=lambda output: output.kind):
        pieces = list(run)
        joined += [Output(kind, "".join(p.text for p in pieces))] if kind in ("stdout", "stderr") else pieces
    return tuple(joined)


def _size(data: dict[str, Any]) -> int:
    return sum(len(value) if isinstance(value, (str, bytes)) else 100 for value in data.values())


class RankLog:
    """The rank's own log, by a file descriptor of its own: a cell may close 1 and 2."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = os.dup(descriptor)
        self.last = -1  # file descriptor of the rank's last words

    def note_last(self, cell: str, piece: int, outputs: tuple[Output, ...]) -> None:
        """Write what was put out and is not on its way yet over what was noted before."""
        with suppress(OSError):  # a full disk: most often it is sent all the same
            if self.last >= 0:
                os.pwrite(self.last, last_words(cell, piece, outputs), 0)

    def write(self, text: str) -> int:
        """Append text."""
        return _write(self.descriptor, text)

    def size(self) -> int:
        """Give the log's length in bytes."""
        return os.fstat(self.descriptor).st_size

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Give bytes of it."""
        return os.pread(self.descriptor, nbytes, offset)

    def put_back(self) -> None:
        """Open 1 and 2 again where a cell has closed them."""
        for descriptor in (1, 2):
            try:
                os.fstat(descriptor)
            except OSError:
                os.dup2(self.descriptor, descriptor)


def _write(descriptor: int, text: str) -> int:
    view = memoryview(text.encode(errors="backslashreplace"))
    while view:
        view = view[os.write(descriptor, view) :]
    return len(text)


class CellStream(io.TextIOBase):
    """sys.stdout of a rank: into the running cell; to where a stock engine prints; else into the rank's log."""

    encoding = "utf-8"

    def __init__(self, kind: str, shell: RankShell, otherwise: TextIO, log: RankLog) -> None:
        self.kind = kind
        self.shell = shell
        self.log = log
        self.otherwise = otherwise
        self._pid = os.getpid()
        self._unflushed = False

    def write(self, text: str) -> int:
        """Take text of whichever thread prints."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        text = str.__str__(text)  # print() passes an instance of the cell's own class on
        if os.getpid() != self._pid:  # a child that was forked: the cell gathers what children write to 1 and 2
            return _write(self.fileno(), text)
        capture = self.shell.capture
        if capture is None and self.shell.serves_stock:
            self._unflushed = True
            return self.otherwise.write(text)
        if capture is None:  # a thread that prints between cells
            with suppress(OSError):
                self.log.write(text)
            return len(text)
        capture.write(self.kind, text)
        return len(text)

    def flush(self) -> None:
        """Let nothing be lost; between cells ipykernel flushes after each, which costs a wait for its thread."""
        capture = self.shell.capture
        if os.getpid() != self._pid:
            return
        if capture is not None:
            capture.flush()
        elif self._unflushed:
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
            told = kwargs.get("transient") or {}
            name, update = str(told.get("display_id") or ""), bool(kwargs.get("update"))
            bundle, about = plain(dict(data)), plain(dict(metadata or {}))
            capture.display(Output("display", "", bundle, about, plain(name), update))

    def clear_output(self, wait: bool = False) -> None:  # IPython's signature
        """Forget what the running cell has put out."""
        if self.shell.capture is None:
            super().clear_output(wait)
        else:
            self.shell.capture.clear(wait=wait)


def plain(value: Any) -> Any:
    """Give what is displayed as it loads anywhere: texts, bytes, numbers, lists and dicts, of all else the repr."""
    if isinstance(value, str):
        return str.__str__(value)
    for kind in PLAIN:
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, dict):
        return {str.__str__(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if value is None else str.__str__(repr(value))
