"""One sealed copy comes in, and reaches every rank: each opens it with a key that it got over CURVE.

    mpi     notebook ═► rank 0 ═ Ibcast, frame by frame ═► all others
    chain   notebook ═► rank 0 ═► rank 1 ═► rank 2 …        without MPI: over bulk channels of their own

The frames stay as the notebook sealed them: MPI's traffic, which is clear text, shows nothing.

A broadcast that not all ranks take part in never ends, and spoils those that follow. So the notebook tells all ranks
when all have come; rank 0, once its first frame is there, gives the others its word that it begins (`Words`), or that
it never will. From there on every rank takes part in every broadcast, come what may: if the notebook is lost, rank 0
passes that on instead of a frame.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hpcmagic.errors import PeerLost
from hpcmagic.wire.bulk import HEADER, TO_ALL, Channel, Kind, bound_to
from hpcmagic.wire.crypto import TAG_NBYTES, Opener
from hpcmagic.wire.messages import FRAME_NBYTES, Spread
from hpcmagic.wire.moving import READ, run_one

GOES, ENDS = 1, 0  # the first byte of a broadcast: frames follow, or none ever will
BUNDLE = 4  # frames in one broadcast …
DEPTH = 3  # … of which so many are under way
EAGER_S = 0.01  # so long a wait only lets others have the processor; a longer one naps
NAP_S = 50e-6
SILENT_S = 600.0  # no broadcast for so long: whoever should send it is gone
WORD = struct.Struct("!Q?")  # a transfer, and whether it begins


class Words:
    """Rank 0's word to all others, by MPI: that a transfer begins, or never will.

    It comes for certain if all ranks have come to the transfer. Words for one that a rank has not come to, or has
    left, are dropped when it waits for another.
    """

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self._said = -1
        self._flying: deque[tuple[Any, bytes]] = deque()

    @contextmanager
    def promised(self, transfer: int) -> Iterator[None]:
        """Have rank 0 say, if it has not begun in here, that it never will."""
        try:
            yield
        finally:
            if self.comm.rank == 0 and self._said != transfer:
                self._say(transfer, begins=False)

    def begin(self, transfer: int, channel: Channel) -> None:
        """Wait until it begins: at rank 0 for the notebook, at the others for rank 0.

        Raises
        ------
        PeerLost
            It never will.
        """
        if self.comm.rank == 0:
            run_one(channel, _readable())
            begins = not channel.is_cut()
            if begins:
                self._say(transfer, begins=True)
        else:
            begins = self._hear(transfer)
        if not begins:
            raise PeerLost("The notebook has given up what it was about to send.", "Send it again.")

    def _say(self, transfer: int, *, begins: bool) -> None:
        self._said = transfer
        while self._flying and self._flying[0][0].Test():
            self._flying.popleft()
        word = WORD.pack(transfer, begins)
        for rank in range(1, self.comm.size):
            self._flying.append((self.comm.Isend(word, rank), word))

    def _hear(self, transfer: int) -> bool:
        word, wait = bytearray(WORD.size), _Wait()
        while True:
            while self.comm.Iprobe(0):
                self.comm.Recv(word, 0)
                about, begins = WORD.unpack(word)
                if about == transfer:
                    return bool(begins)
            wait.a_little()


def _readable() -> Generator[int, None, None]:
    yield READ


class _Wait:
    """Waits for rank 0 without blocking in MPI: at first only others have the processor, then it naps."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()

    def a_little(self) -> None:
        """Wait.

        Raises
        ------
        PeerLost
            It has been too long.
        """
        waited_s = time.monotonic() - self._since_s
        if waited_s < EAGER_S:
            os.sched_yield()
        elif waited_s < SILENT_S:
            time.sleep(NAP_S)
        else:
            raise PeerLost(f"Rank 0 has passed nothing on for {SILENT_S:g} s.", "`%hpc restart`, then try again.")


class Fanout:
    """Receives the frames of one transfer that all ranks get, and passes them on.

    Parameters
    ----------
    spread
        The transfer's key, and the way.
    session
        What tells this session from all others.
    blocks
        Room for the frames, in order.
    """

    def __init__(self, spread: Spread, session: str, transfer: int, blocks: Sequence[memoryview]) -> None:
        self.spread = spread
        self.blocks = blocks
        self.transfer = transfer
        self.opener = Opener(bytes.fromhex(spread.key), bound_to(session, TO_ALL))
        self.failed: Exception | None = None
        room = 1 + BUNDLE * (HEADER.size + FRAME_NBYTES + TAG_NBYTES)
        self._buffers = deque(memoryview(bytearray(room)) for _ in range(DEPTH if spread.by_mpi else 0))

    def open(self, number: int, frame: memoryview) -> None:
        """Open a frame in its place; a fault is kept for the end, since others count on our taking part."""
        header = bytes(frame[: HEADER.size]) + len(self.blocks).to_bytes(8, "big")
        try:
            self.opener.open_into(frame[HEADER.size :], header, self.blocks[number])
        except Exception as error:  # kept till the end: others count on our part in each broadcast
            self.failed = self.failed or error

    def by_mpi(self, comm: Any, source: Channel | None) -> None:
        """Take part in one broadcast a bundle of frames; `source` leads to the notebook, at rank 0.

        Raises
        ------
        PeerLost
            The notebook is lost.
        Tampered
            A frame did not open.
        """
        buffers = self._buffers
        flying: deque[tuple[dict[int, memoryview], memoryview, Any]] = deque()
        for first in range(0, len(self.blocks), BUNDLE):
            if len(flying) == DEPTH:
                self._land(flying)
            frames, end = self._places(buffers[0], first)
            if source is not None:
                self._fetch(source, frames, buffers[0])
            flying.append((frames, buffers[0], comm.Ibcast(buffers[0][:end], root=0)))
            buffers.rotate(-1)
        while flying:
            self._land(flying)
        self._raise_failed()

    def _places(self, buffer: memoryview, first: int) -> tuple[dict[int, memoryview], int]:
        """Give the places of a bundle's frames in its buffer, by number, and where they end."""
        frames, begin = {}, 1
        for number in range(first, min(first + BUNDLE, len(self.blocks))):
            end = begin + HEADER.size + len(self.blocks[number]) + TAG_NBYTES
            frames[number], begin = buffer[begin:end], end
        return frames, begin

    def _fetch(self, source: Channel, frames: dict[int, memoryview], buffer: memoryview) -> None:
        """Receive a bundle from the notebook; once it is lost, pass on that it is."""
        buffer[0] = ENDS if self.failed is not None else GOES
        try:
            for number, place in frames.items() if buffer[0] == GOES else ():
                _received(source, self.transfer, number, len(self.blocks[number]), place)
        except Exception as error:  # whatever it is, the other ranks must hear that no frame follows
            self.failed, buffer[0] = error, ENDS

    def _land(self, flying: deque[tuple[dict[int, memoryview], memoryview, Any]]) -> None:
        """Wait for the oldest broadcast, and open its frames.

        If it is the last one, all that were begun are waited for: each rank has begun the same ones.
        """
        frames, buffer, request = flying.popleft()
        _wait(request)
        if buffer[0] == ENDS:
            for _, _, behind in flying:
                _wait(behind)
            self._raise_failed()
            raise PeerLost("The notebook was lost while it sent.", "Send it again.")
        for number, frame in frames.items():
            self.open(number, frame)

    def by_chain(self, source: Channel, onward: Channel | None) -> None:
        """Receive each frame from the rank before, and pass it on to the one behind."""
        for number, block in enumerate(self.blocks):
            frame = _received(source, self.transfer, number, len(block))
            if onward is not None:
                run_one(onward, onward.send_sealed(frame))
            self.open(number, frame)
        self._raise_failed()

    def _raise_failed(self) -> None:
        """Raise what went wrong, and keep no hold on it: a cycle would keep the room for the frames."""
        failed, self.failed = self.failed, None
        try:
            if failed is not None:
                raise failed
        finally:
            del failed


def _received(source: Channel, transfer: int, number: int, nbytes: int, into: memoryview | None = None) -> memoryview:
    got: list[memoryview] = []

    def receiving() -> Generator[int, None, None]:
        got.append((yield from source.receive_sealed(Kind.DATA, transfer, number, nbytes, into)))

    run_one(source, receiving())
    return got[0]


def _wait(request: Any) -> None:
    wait = _Wait()
    while not request.Test():
        wait.a_little()
