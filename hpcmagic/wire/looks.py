"""What passes between a notebook that watches a simulation and the rank that answers for it, over a bulk channel.

    notebook                                    rank 0 of the simulation
    Look (what I have, what I want)  ────────►  waits until there is news, or the time is up
                                     ◄────────  News
    Command (set, pause, …)          ────────►  noted: it is done at the next step boundary; an Event among the
                                                news tells what became of it
    Poke                             ────────►  News, now

One message is a frame of eight bytes that tell its length, and the blocks of its pickle: only who knows the keys of
the session gets this far (docs/security.md).
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hpcmagic.errors import Tampered
from hpcmagic.ranges import Param
from hpcmagic.wire.bulk import Channel, Kind
from hpcmagic.wire.messages import FRAME_NBYTES

T = TypeVar("T", int, float)
VERBS = ("set", "pause", "step", "resume", "stop")
MESSAGE_LIMIT_NBYTES = 256 << 20
HALF = 4096  # values of a series, of which every second one goes when there are twice as many


@dataclass(frozen=True, slots=True)
class Command:
    """Do something at the next step boundary."""

    verb: str
    user: str
    values: dict[str, Any] = field(default_factory=dict)  # of set
    number: int = 0  # drawn by lot: no two commands have the same


@dataclass(frozen=True, slots=True)
class Poke:
    """Let whoever looks under this name have news at once: how things stand when this has come."""

    name: str


@dataclass(frozen=True, slots=True)
class Event:
    """What became of a command."""

    number: int  # of events, from 1
    command: int  # its number; 0 = the log that is applied again
    step: int
    verb: str
    user: str
    time: float  # seconds since the epoch
    run: int = 0  # of which simulation
    changes: tuple[tuple[str, Any, Any], ...] = ()  # name, old, new
    refused: str = ""  # why; nothing was changed then


@dataclass(frozen=True, slots=True)
class Look:
    """Ask for news."""

    events: int = 0  # the number of the last event that is here
    series: dict[str, tuple[int, int]] = field(default_factory=dict)  # by name: how it was thinned, how many are here
    run: int = 0  # the run that these are of
    params: int = -1  # the version of its parameters that is here
    field: str = ""  # the field to be shown; "" = none
    frame: int = 0  # the last of its pictures that is here
    pixels: int = 512  # its longer side, at most
    hz: float = 10.0  # news at most so often
    wait_s: float = 0.5  # without news this long
    name: str = ""  # of who looks, for pokes …
    pokes: int = 0  # … of which so many are answered


@dataclass(frozen=True, slots=True)
class Curve:
    """The end of a series of numbers; who has it thinned once less thins the own by `halved` first."""

    thinned: int
    begin: int  # which value is the first here; 0 = this is the whole
    steps: array[int]
    values: array[float]


@dataclass(frozen=True, slots=True)
class Picture:
    """A field at one step, thinned."""

    name: str
    frame: int
    step: int
    shape: tuple[int, ...]  # of the whole field
    stride: int
    rows: int
    columns: int
    low: float
    high: float
    pixels: bytes  # rows × columns, 0–254 from low to high; 255 = no number, or nobody's

    def as_array(self) -> Any:
        """Give the values, as far as the picture tells, as float64; NaN where there is none."""
        import numpy as np

        pixels = np.frombuffer(self.pixels, np.uint8).reshape(self.rows, self.columns)
        share = pixels / 254
        with np.errstate(over="ignore"):  # of what is near the greatest number
            values = self.low * (1 - share) + self.high * share
        values[pixels == 255] = np.nan  # as said above
        return values


@dataclass(frozen=True, slots=True)
class Pulse:
    """How a rank gets on."""

    step: int
    step_s: float  # seconds a step, of late
    wait_s: float  # of these, waited for rank 0 at the boundary
    ours_s: float  # of these, spent by hpcmagic: of the processor


@dataclass(frozen=True, slots=True)
class News:
    """How a simulation stands."""

    run: int  # of this engine, from 1; 0 = there was none yet
    cell: str  # in which it came alive
    over: str  # why it is over; "" = it is not
    step: int
    steps: int  # in all; 0 = nobody knows
    paused: bool
    params: dict[str, Param]  # empty, if the version is that of the look: as they were
    params_version: int
    events: tuple[Event, ...]
    missed_events: int
    series: dict[str, Curve]
    fields: tuple[str, ...]
    picture: Picture | None
    pulses: dict[int, Pulse]  # by rank; empty = as they were
    dropped: int  # pictures that were not made, or not whole, in time
    warnings: tuple[str, ...]
    log: str  # the file with the changes; "" = there was none yet
    pokes: int = 0


def halved(numbers: array[T]) -> array[T]:
    """Thin the older ones of a series."""
    return numbers[:HALF:2] + numbers[HALF:]


def send(channel: Channel, transfer: int, message: Any) -> Generator[int, None, None]:
    """Send a message."""
    body = memoryview(pickle.dumps(message, protocol=5))
    yield from channel.send(Kind.READY, transfer, data=body.nbytes.to_bytes(8, "big"))
    yield from channel.send_blocks(transfer, _blocks(body), -(-body.nbytes // FRAME_NBYTES))


def receive(channel: Channel, transfer: int, into: list[Any]) -> Generator[int, None, None]:
    """Receive a message, and append it to `into`."""
    length = bytearray(8)
    yield from channel.receive(Kind.READY, transfer, into=length)
    nbytes = int.from_bytes(length, "big")
    if nbytes > MESSAGE_LIMIT_NBYTES:
        raise Tampered("A message of the live channel is larger than any may be.", "See `%hpc log`.")
    body = memoryview(bytearray(nbytes))
    yield from channel.receive_blocks(transfer, _blocks(body), -(-nbytes // FRAME_NBYTES))
    into.append(pickle.loads(body))


def _blocks(body: memoryview) -> Generator[memoryview, None, None]:
    for begin in range(0, body.nbytes, FRAME_NBYTES):
        yield body[begin : begin + FRAME_NBYTES]
