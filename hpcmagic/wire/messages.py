"""Every message between the notebook and the ranks, as a frozen dataclass; to frames and back.

A message travels as one ZeroMQ multipart message through ipyparallel's controller:

    ipyparallel's envelope (signed, CURVE)  ·  pickle of the dataclass  ·  its buffers …

Values of the user's are pickled apart (`Pickled`), so that one that cannot be loaded spoils no message.
Loading a pickle runs code: only peers that the session's keys admit get this far (docs/security.md).
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

REQUEST = "hpcmagic_request"  # message types in ipyparallel's envelope
REPLY = "hpcmagic_reply"
OUTPUT = "hpcmagic_output"
INTERRUPT = "hpcmagic_interrupt"
WHERE = "hpcmagic_where"
RESTART = "hpcmagic_restart"  # these the keeper answers
DUMP = "hpcmagic_dump"
ABANDON = "hpcmagic_abandon"  # a cell whose ranks wait for ever: it does not keep the session any more

VALUE_LIMIT_NBYTES = 10_000_000  # a larger value stays on its rank and is described
OUTPUT_LIMIT_NBYTES = 1_000_000  # a cell's output beyond this goes to the rank's log only
DISPLAY_LIMIT_NBYTES = 50_000_000  # what a rank displays in one cell beyond this is dropped


@dataclass(frozen=True, slots=True)
class Pickled:
    """A user's value, pickled with protocol 5; `buffers` are its large parts, not copied."""

    body: bytes
    buffers: tuple[Any, ...] = ()

    @property
    def nbytes(self) -> int:
        """Size of the value on the wire."""
        return len(self.body) + sum(memoryview(b).nbytes for b in self.buffers)

    @classmethod
    def of(cls, value: Any) -> Pickled:
        """Pickle a value; its large buffers are not copied.

        Raises
        ------
        pickle.PicklingError
            It cannot be pickled.
        """
        buffers: list[Any] = []
        try:
            body = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
            return cls(body, tuple(b.raw() for b in buffers))
        except Exception as error:  # pickling runs the `__reduce__` of the user's classes: any error may come out
            raise pickle.PicklingError(str(error)) from error

    def load(self) -> Any:
        """Unpickle into memory of the value's own, so that its arrays can be written to.

        Raises
        ------
        pickle.UnpicklingError
            It cannot be loaded here: a module or a class that only the other side has, for one.
        """
        try:
            return pickle.loads(self.body, buffers=[bytearray(b) for b in self.buffers])
        except Exception as error:  # loading runs imports and code of the user's: any error may come out
            raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let a message's pickle leave the parts out: each becomes a frame of its own."""
        parts = [pickle.PickleBuffer(part) for part in (self.body, *self.buffers)]
        return Pickled, (parts[0], tuple(parts[1:]))


@dataclass(frozen=True, slots=True)
class RunCell:
    """Run a cell's source; `first_line` is the line of the notebook's cell it starts at."""

    source: str
    name: str  # shown in tracebacks, e.g. "cell 3"
    first_line: int = 1
    keep_value: bool = False  # send the value though the cell ends in a semicolon

    def numbered(self) -> str:
        """Give the source with its lines where the notebook's cell has them.

        IPython drops leading empty lines, hence comments; a cell magic must stay first.
        """
        code = self.source.lstrip("\n")
        above = self.first_line - 1 + len(self.source) - len(code)
        if code.startswith("%%"):
            return code
        indent = code[: len(code) - len(code.lstrip(" \t"))]
        return f"{indent}#\n" * above + code


@dataclass(frozen=True, slots=True)
class Push:
    """Bind names to values on the rank."""

    values: dict[str, Pickled]


@dataclass(frozen=True, slots=True)
class Pull:
    """Send the values of names back, whatever their size."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """One piece of what a cell printed or displayed, in order."""

    kind: str  # stdout | stderr | display | clear
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)  # a display's MIME bundle
    metadata: dict[str, Any] = field(default_factory=dict)
    display_id: str = ""
    update: bool = False  # of the display with that id


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a short traceback."""

    where: str  # "cell 3, line 2" or "file.py:12"
    function: str
    source: str


@dataclass(frozen=True, slots=True)
class Raised:
    """What a rank raised."""

    name: str
    text: str
    frames: tuple[Frame, ...]
    full: str  # the whole traceback


WITHDRAWN = Raised("KeyboardInterrupt", "before the cell began", (), "")  # of a request that never will


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a rank's main thread stands at this moment."""

    rank: int
    request: str = ""  # the request that it works on; "" = it is idle
    where: str = ""  # "cell 3, line 2"; "" = not in a cell's code
    source: str = ""  # that line
    call: str = ""  # the MPI call that it is in, e.g. "comm.Barrier()"
    mark: str = ""  # two stands with one mark: it has not moved


@dataclass(frozen=True, slots=True)
class Reply:
    """A rank's answer to any request.

    `streamed` pieces of its output went ahead as messages of their own; `outputs` are the rest.
    """

    rank: int
    outputs: tuple[Output, ...] = ()
    streamed: int = 0
    has_value: bool = False  # the last statement was an expression that gave something
    value: Pickled | None = None
    described: str = ""  # of a value that stays on its rank: type, shape, size
    pulled: dict[str, Pickled] = field(default_factory=dict)
    raised: Raised | None = None
    elapsed_s: float = 0.0


def to_frames(message: Any) -> list[Any]:
    """Give the frames of a message; a value's buffers are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    return [body, *(b.raw() for b in buffers)]


def from_frames(frames: Sequence[Any]) -> Any:
    """Give the message back. Its buffers are views of the frames."""
    return pickle.loads(frames[0], buffers=frames[1:])


def sendable(reply: Reply) -> tuple[Reply, list[Any]]:
    """Give a reply with its frames; where it cannot be pickled, one that says so: who asked must hear something."""
    try:
        return reply, to_frames(reply)
    except Exception as error:  # what a cell puts out may hold anything
        printed = tuple(output for output in reply.outputs if output.kind != "display")
        said = unsaid(reply.rank, error, "sent", outputs=printed, streamed=reply.streamed)
        return said, to_frames(said)


def reply_from(rank: int, frames: Sequence[Any]) -> Reply:
    """Give a rank's reply; one that cannot be loaded here becomes one that says so."""
    try:
        reply = from_frames(frames)
    except Exception as error:  # it may hold what only the rank has; loading runs the user's code
        return unsaid(rank, error, "loaded here")
    return reply if isinstance(reply, Reply) else unsaid(rank, TypeError(type(reply).__name__), "understood here")


def outputs_from(frames: Sequence[Any]) -> tuple[Output, ...]:
    """Give a piece of output; one that cannot be loaded here becomes one that says so."""
    try:
        return tuple(from_frames(frames))
    except Exception as error:
        return unsaid_output(error, "loaded here")


def unsaid(rank: int, error: BaseException, what: str, **rest: Any) -> Reply:
    """Give the reply that stands for one that could not be sent or loaded."""
    text = f"what the rank answered cannot be {what} ({type(error).__name__}: {error})"
    return Reply(rank, raised=Raised("CannotSay", text, (), text), **rest)


def unsaid_output(error: BaseException, what: str) -> tuple[Output, ...]:
    """Give the output that stands for one that could not be sent or loaded."""
    return (Output("stderr", f"[… output that cannot be {what}: {type(error).__name__}: {error}]\n"),)
