"""Arrays on their way: sealed frames over a TCP connection of their own, straight between the notebook and a rank.

    notebook                                                       rank
    make two keys ── JOIN: channel, keys (over CURVE) ──────────►  remember them, listen
    connect ─────── magic · channel · sealed HELLO ─────────────►  the one whose channel it is, once
            ◄────── sealed HELLO ───────────────────────────────   both have shown that they know the keys
    frames either way, each  header (24 bytes) · sealed bytes · tag (16 bytes)

    version 1 · kind 1 · 0 (2) · length 4 · transfer 8 · number 8     the header, big-endian
    protocol · session · direction · header · count                  what a frame is bound to (GCM's additional data)

The nonce is a counter that both sides keep, so that a frame that is changed, replayed, left out or out of order does
not open. What a header says is never believed: the receiver knows which frame comes next and how long it is, and
refuses every other before it reads on. TCP's own windows bound what is on its way; a frame is sealed only when the
one before has left. A connection that fails once is closed; the next one has new keys. docs/security.md has more.

Both sides are generators that yield what they wait for, so that one thread moves many of them (moving.py).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from hpcmagic.errors import ChannelError, PeerLost, Tampered
from hpcmagic.wire.crypto import TAG_NBYTES, Opener, Sealer, make_frame_key
from hpcmagic.wire.messages import FRAME_NBYTES
from hpcmagic.wire.moving import GO_ON, READ, WRITE, Moving, lost, run_one
from hpcmagic.wire.shared import SLOTS, Shared

PROTOCOL = b"hpcmagic bulk 1"
VERSION = 1
MAGIC = b"hpcmb\0\0" + bytes([VERSION])
CHANNEL_NBYTES = 16
HEADER = struct.Struct("!BBHIQQ")
HELLO_NBYTES = len(MAGIC) + CHANNEL_NBYTES + HEADER.size + TAG_NBYTES
CONNECT_S = 20.0
GONE_S = 120  # after so long without a word from the other host a connection counts as cut
TO_RANK, FROM_RANK, TO_ALL = b"to rank", b"from rank", b"to all"

HALVES = 2  # of shared memory
TURN = 16  # frames that one connection may move before others have their turn


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    READY = 2  # the rank is at it: it may begin; of what goes to all, the notebook's word that all are
    DATA = 3
    DONE = 4  # all has arrived, and is whole
    COMMIT = 5  # it has so everywhere: let it count
    FILLED = 6  # half of the shared memory holds data …
    EMPTIED = 7  # … and may be written over


@dataclass(frozen=True, slots=True)
class Invitation:
    """What the notebook tells a rank, over CURVE, of a connection that will come."""

    channel: str  # hexadecimal; names the connection, and is no secret
    to_rank: str = field(repr=False)
    from_rank: str = field(repr=False)
    shared: str = ""  # the name of memory that both can map, if they are on one host

    @classmethod
    def fresh(cls, shared: str = "") -> Invitation:
        """Make one with keys of its own."""
        keys = make_frame_key().hex(), make_frame_key().hex()
        return cls(make_frame_key()[:CHANNEL_NBYTES].hex(), *keys, shared)


class Channel:
    """One end of a connection whose frames are sealed. For one thread at a time.

    Parameters
    ----------
    sock
        Connected; it is the channel's from then on.
    session
        What tells this session from all others: its keeper's public key.
    at_rank
        Whether this is the rank's end.
    """

    def __init__(self, sock: socket.socket, invitation: Invitation, session: str, *, at_rank: bool) -> None:
        self.sock = sock
        self.name = invitation.channel
        to_rank = bytes.fromhex(invitation.to_rank), bound_to(session, TO_RANK)
        from_rank = bytes.fromhex(invitation.from_rank), bound_to(session, FROM_RANK)
        self.sealer = Sealer(*(from_rank if at_rank else to_rank))
        self.opener = Opener(*(to_rank if at_rank else from_rank))
        self.moved_nbytes = 0
        self.closed = False
        self.shared: Shared | None = None  # memory that both sides map, being on one host
        self._out = self._in = memoryview(b"")
        sock.setblocking(False)
        with suppress(OSError):  # not TCP: a pair of sockets in a test
            be_patient(sock)

    def close(self) -> None:
        """Cut the connection; the other side notices at once."""
        if not self.closed:
            self.closed = True
            self.rest()
            self.hang_up()  # a process that was forked from this one may hold the socket too
            self.sock.close()
            if self.shared is not None:
                self.shared.close()

    def hang_up(self) -> None:
        """End the connection under a thread that waits for it, which then closes it."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def is_cut(self) -> bool:
        """Whether the other side has left while nothing moved."""
        try:
            return self.closed or not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def rest(self) -> None:
        """Let go of what is only needed while something moves."""
        self._out = self._in = memoryview(b"")

    def send(
        self,
        kind: Kind,
        transfer: int,
        number: int = 0,
        count: int = 0,
        data: Any = b"",
        *,
        sealer: Sealer | None = None,
    ) -> Moving:
        """Seal a frame and send it; another `sealer` is that of a transfer which is passed on to all ranks."""
        header = HEADER.pack(VERSION, kind, 0, len(data), transfer, number)
        end = HEADER.size + len(data) + TAG_NBYTES
        if len(self._out) < end:
            self._out = memoryview(bytearray(_room(len(data))))
        self._out[: HEADER.size] = header
        (sealer or self.sealer).seal_into(data, header + count.to_bytes(8, "big"), self._out[HEADER.size : end])
        yield from self.send_sealed(self._out[:end])

    def send_sealed(self, left: memoryview) -> Moving:
        """Send bytes that are sealed already."""
        while left:
            try:
                sent = self.sock.send(left)
            except BlockingIOError:
                yield WRITE
            except OSError as error:
                raise lost(error.strerror) from error
            else:
                self.moved_nbytes += sent
                left = left[sent:]

    def receive(self, kind: Kind, transfer: int, number: int = 0, count: int = 0, into: Any = b"") -> Moving:
        """Receive the frame that must come next, and open it into `into`, which it must fill.

        Raises
        ------
        Tampered
            Another frame came, or one that does not open.
        PeerLost
            The connection ended.
        """
        sealed = yield from self.receive_sealed(kind, transfer, number, len(into))
        header = bytes(sealed[: HEADER.size])
        opened = memoryview(into) if len(into) else memoryview(bytearray())
        self.opener.open_into(sealed[HEADER.size :], header + count.to_bytes(8, "big"), opened)

    def receive_sealed(
        self, kind: Kind, transfer: int, number: int, length: int, into: memoryview | None = None
    ) -> Generator[int, None, memoryview]:
        """Receive the frame that must come next, and leave it sealed; it is good until the next is received.

        With `into`, which it must fill, it is there, and good for longer.
        """
        end = HEADER.size + length + TAG_NBYTES
        if into is None and len(self._in) < end:
            self._in = memoryview(bytearray(_room(length)))
        frame = self._in[:end] if into is None else into
        yield from self._fill(frame[: HEADER.size])
        if bytes(frame[: HEADER.size]) != HEADER.pack(VERSION, kind, 0, length, transfer, number):
            raise Tampered(
                "On the bulk channel came another frame than the one that must come next.",
                "Nothing of it was used. Try again; if it happens again, tell your site's administrators.",
            )
        yield from self._fill(frame[HEADER.size :])
        return frame

    def _fill(self, left: memoryview) -> Moving:
        while left:
            try:
                got = self.sock.recv_into(left)
            except BlockingIOError:
                yield READ
                continue
            except OSError as error:
                raise lost(error.strerror) from error
            if got == 0:
                raise lost("it was closed")
            self.moved_nbytes += got
            left = left[got:]

    def send_blocks(self, transfer: int, blocks: Iterator[Any], count: int, sealer: Sealer | None = None) -> Moving:
        """Send `count` blocks, each of them a frame; through memory that is shared, if it is."""
        if self.shared is not None and sealer is None:
            yield from self._fill_slots(self.shared, transfer, blocks, count)
            return
        for number, block in enumerate(blocks):
            yield from self.send(Kind.DATA, transfer, number, count, block, sealer=sealer)
            if number % TURN == 0:
                yield GO_ON

    def receive_blocks(self, transfer: int, blocks: Iterator[memoryview], count: int) -> Moving:
        """Receive `count` blocks, each of them in its place."""
        if self.shared is not None:
            yield from self._empty_slots(self.shared, transfer, blocks, count)
            return
        for number, block in enumerate(blocks):
            yield from self.receive(Kind.DATA, transfer, number, count, block)
            if number % TURN == 0:
                yield GO_ON

    def _fill_slots(self, shared: Shared, transfer: int, blocks: Iterator[Any], count: int) -> Moving:
        """Copy blocks into slots; say so of each half, and fill it again when the other side has emptied it."""
        halves = -(-count // SLOTS)
        for number, block in enumerate(blocks):
            half, slot = divmod(number, SLOTS)
            if slot == 0 and half >= HALVES:
                yield from self.receive(Kind.EMPTIED, transfer, half - HALVES, count)
            shared.slot(number, len(block))[:] = block
            self.moved_nbytes += len(block)
            if slot == SLOTS - 1 or number == count - 1:
                yield from self.send(Kind.FILLED, transfer, half, count)
                yield GO_ON
        for half in range(max(0, halves - HALVES), halves):
            yield from self.receive(Kind.EMPTIED, transfer, half, count)

    def _empty_slots(self, shared: Shared, transfer: int, blocks: Iterator[memoryview], count: int) -> Moving:
        """Copy what the other side has put into slots to its place."""
        for number, block in enumerate(blocks):
            half, slot = divmod(number, SLOTS)
            if slot == 0:
                yield from self.receive(Kind.FILLED, transfer, half, count)
            block[:] = shared.slot(number, len(block))
            self.moved_nbytes += len(block)
            if slot == SLOTS - 1 or number == count - 1:
                yield from self.send(Kind.EMPTIED, transfer, half, count)
                yield GO_ON


def bound_to(session: str, direction: bytes) -> bytes:
    """Give what every frame of one direction is bound to."""
    return b"\0".join((PROTOCOL, session.encode(), direction, b""))


def _room(nbytes: int) -> int:
    """Give the size of a buffer for such frames: small, or once for all."""
    return HEADER.size + TAG_NBYTES + (4096 if nbytes <= 4096 else FRAME_NBYTES)


def be_patient(sock: socket.socket) -> None:
    """Send at once; notice a host that has vanished, but not too soon: a network may be cut for a while."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, GONE_S // 4),
        (socket.TCP_KEEPINTVL, GONE_S // 12),
        (socket.TCP_KEEPCNT, 9),
        (socket.TCP_USER_TIMEOUT, GONE_S * 1000),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def connect(host: str, port: int, invitation: Invitation, session: str) -> Channel:
    """Connect to a rank that has been told of it.

    Raises
    ------
    PeerLost
        Nobody answers there, or not as one who knows the keys.
    ChannelError
        This process can open no connection.
    """
    try:
        sock = _dialled(host, port)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise ChannelError(
                f"This process is out of file descriptors: {error.strerror}.",
                "Close some, or restart it; `ulimit -n` where it is started sets the limit.",
            ) from error
        raise PeerLost(
            f"The bulk port {host}:{port} of a rank cannot be reached: {error.strerror or error}.",
            "Is a firewall between this host and the nodes? Your site must let you connect to your own ports there.",
        ) from error
    channel = Channel(sock, invitation, session, at_rank=False)
    try:
        run_one(channel, _greet(channel), CONNECT_S)
    except BaseException:
        channel.close()
        raise
    return channel


def _dialled(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.settimeout(CONNECT_S)
        sock.connect((host, port))
    except BaseException:  # Ctrl-C too: socket.create_connection would leave it open then
        sock.close()
        raise
    return sock


def _greet(channel: Channel) -> Moving:
    yield from channel.send_sealed(memoryview(MAGIC + bytes.fromhex(channel.name)))
    yield from channel.send(Kind.HELLO, 0)
    yield from channel.receive(Kind.HELLO, 0)


def welcome(channel: Channel) -> Moving:
    """Answer a connection as the rank that was told of it; what names the channel has been read."""
    yield from channel.receive(Kind.HELLO, 0)
    yield from channel.send(Kind.HELLO, 0)
