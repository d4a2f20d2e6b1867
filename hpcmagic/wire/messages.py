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

from hpcmagic.files import Contents, File, Whole

REQUEST = "hpcmagic_request"  # message types in ipyparallel's envelope
REPLY = "hpcmagic_reply"
OUTPUT = "hpcmagic_output"
INTERRUPT = "hpcmagic_interrupt"
WHERE = "hpcmagic_where"
JOIN = "hpcmagic_join"  # a connection to a rank's bulk port will come
STEER = "hpcmagic_steer"  # is a simulation alive here? connections to its desk will come
RESTART = "hpcmagic_restart"  # these the keeper answers
DUMP = "hpcmagic_dump"
KEEP = "hpcmagic_keep"  # the countdown of a session that is idle begins anew
ABANDON = "hpcmagic_abandon"  # a cell whose ranks wait for ever: it does not keep the session any more

VALUE_LIMIT_NBYTES = 10_000_000  # a larger value stays on its rank and is described
SMALL_NBYTES = 128 << 10  # values up to this size travel with a rank's reply
OUTPUT_LIMIT_NBYTES = 1_000_000  # a cell's output beyond this goes to the rank's log only
FRAME_NBYTES = 256 << 10  # of data in one frame of the bulk channel, at most
Sources = dict[tuple[str, int], tuple[str, str]]  # of a notebook's functions, by name and line: cell and line, text
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
    def of(cls, value: Any, small_nbytes: int = 0) -> Pickled:
        """Pickle a value; its large buffers, those above `small_nbytes`, are not copied.

        Raises
        ------
        pickle.PicklingError
            It cannot be pickled.
        """
        buffers: list[Any] = []

        def is_small(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()
            if view.nbytes > small_nbytes:
                buffers.append(view)
            return view.nbytes <= small_nbytes

        try:
            body = cloudpickle.dumps(value, protocol=5, buffer_callback=is_small)
            return cls(body, tuple(buffers))
        except Exception as error:  # pickling runs the `__reduce__` of the user's classes: any error may come out
            raise pickle.PicklingError(str(error)) from error

    def load(self) -> Any:
        """Unpickle into memory of the value's own, so that its arrays can be written to.

        Raises
        ------
        pickle.UnpicklingError
            It cannot be loaded here: a module or a class that only the other side has, for one.
        """
        return Pickled(self.body, tuple(bytearray(b) for b in self.buffers)).load_in_place()

    def load_in_place(self) -> Any:
        """Do so where the buffers are the value's own already."""
        try:
            return pickle.loads(self.body, buffers=self.buffers)
        except Exception as error:  # loading runs imports and code of the user's: any error may come out
            raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let a message's pickle leave the parts out: each becomes a frame of its own."""
        parts = [pickle.PickleBuffer(part) for part in (self.body, *self.buffers)]
        return Pickled, (parts[0], tuple(parts[1:]))


@dataclass(frozen=True, slots=True)
class ArrayHead:
    """What an array is besides its bytes, which come in this order."""

    shape: tuple[int, ...]
    pickled_dtype: bytes  # loaded where the array is made: not every side has NumPy
    order: str  # C | F

    @property
    def dtype(self) -> Any:
        """NumPy's dtype.

        Raises
        ------
        pickle.UnpicklingError
            NumPy is not here.
        """
        return Pickled(self.pickled_dtype).load()


@dataclass(frozen=True, slots=True)
class Parcel:
    """What the receiver must know before the bytes come."""

    sizes: tuple[int, ...]  # bytes of each part, in order
    array: ArrayHead | None = None

    @property
    def nbytes(self) -> int:
        """Size of the value on the wire."""
        return sum(self.sizes)

    @property
    def frames(self) -> int:
        """Number of frames that it takes."""
        return sum(-(-size // FRAME_NBYTES) for size in self.sizes)


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
class Cut:
    """How a value was cut that a rank holds a shard of."""

    axis: int
    order: str = ""  # of an array: C | F; an array of one row does not tell


@dataclass(frozen=True, slots=True)
class Push:
    """Bind names to values on the rank: small ones, that travel with the request."""

    values: dict[str, Pickled]
    cuts: dict[str, Cut] = field(default_factory=dict)  # of those that are shards


@dataclass(frozen=True, slots=True)
class Link:
    """The way from one rank to the next, where they pass frames on without MPI."""

    host: str
    port: int
    channel: str
    to_rank: str = field(repr=False)  # keys, hexadecimal
    from_rank: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Spread:
    """How values that all ranks get reach them, though the notebook sends them to rank 0 only."""

    key: str = field(repr=False)  # of this transfer's frames, hexadecimal
    source: str = ""  # the channel that they come over; "" = MPI's broadcast
    onward: Link | None = None  # to the next rank; None = to nobody, or by MPI
    by_mpi: bool = True


@dataclass(frozen=True, slots=True)
class Take:
    """Receive values over the bulk channel, and bind names to them once all ranks have theirs."""

    channel: str
    transfer: int
    parcels: dict[str, Parcel]
    cuts: dict[str, Cut] = field(default_factory=dict)
    spread: Spread | None = None
    eager: bool = False  # the bytes are on their way already, and no rank waits for others


@dataclass(frozen=True, slots=True)
class Offer:
    """Say what names are bound to, and send what is small at once; the rest is kept ready for a `Give`."""

    transfer: int
    names: tuple[str, ...]
    whole: bool = False  # keep what is small too: it is to be written into a file


@dataclass(frozen=True, slots=True)
class Give:
    """Send what was offered over the bulk channel; arrays in this order (C or F), "" = as they lie."""

    channel: str
    transfer: int
    orders: dict[str, str]


@dataclass(frozen=True, slots=True)
class LookAt:
    """Say what a rank sees of a file."""

    file: File


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Read a rank's own rows of a file, and keep them for a `Bind`."""

    transfer: int
    file: File
    begin: int
    end: int
    axis: int
    expected: Contents  # what all ranks see of it


@dataclass(frozen=True, slots=True)
class Forget:
    """Let go of what was offered: nobody will come for it."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Bind:
    """Bind names to what was read, now that all ranks have theirs."""

    transfer: int
    names: tuple[str, ...]
    axis: int


@dataclass(frozen=True, slots=True)
class Write:
    """Begin a file, write what was offered into it from this row on, finish it, or give it up."""

    step: str  # begin | rows, chunks, edges: what of its rows | finish | give up
    file: File
    whole: Whole | None = None  # to begin
    transfer: int = 0  # of the offer
    name: str = ""
    begin: int = 0
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Apply:
    """Call a function with each of some items; it comes with a rank's first request, or when the rank lacks it."""

    key: int
    function: Pickled | None
    items: Pickled
    first: int  # the number of the first item
    sources: Sources = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """Call a function; `arguments` are those by place, and those by name."""

    function: Pickled
    arguments: Pickled
    sources: Sources = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offered:
    """What a rank has under a name."""

    parcel: Parcel
    kind: str  # of value, as `hpcmagic.shards` calls them
    described: str  # type, shape, size, in words
    cut: Cut | None = None  # None = it was not scattered
    small: Pickled | None = None  # the value itself


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
    for_s: float = 0.0  # seconds since it began with the request


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
    offered: dict[str, Offered] = field(default_factory=dict)
    seen: Contents | None = None  # of a file
    lacks_function: bool = False  # of an `Apply`, which is to be sent again with it
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
