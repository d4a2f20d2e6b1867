"""The rank's bulk port: lets in the connections that the notebook has announced over CURVE, each of them once.

    JOIN (control thread) ─► invite() ─► listening address
    stranger, notebook ─► accept ─► 64 bytes within 5 s that open under an announced key ─► channel() (main thread)

Whoever has not shown a key makes the rank hold 64 bytes and one descriptor; of such there are at most 32 at a time.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from hpcmagic.errors import HpcMagicError, PeerLost
from hpcmagic.rendezvous import Request
from hpcmagic.wire.addresses import listen_address
from hpcmagic.wire.bulk import CHANNEL_NBYTES, MAGIC, Channel, Invitation, welcome
from hpcmagic.wire.moving import Moving
from hpcmagic.wire.shared import Shared

STRANGERS = 32  # connections that have not shown a key yet, at most; the oldest give way
INVITATIONS = 64  # announced and not come yet
PROVE_S = 5.0
COMES_S = 30.0  # how long a request waits for its connection, which was announced before it


@dataclass(eq=False)
class _Stranger:
    """A connection whose first bytes are being read."""

    sock: socket.socket
    since_s: float = field(default_factory=time.monotonic)
    head: bytearray = field(default_factory=bytearray)
    channel: Channel | None = None
    moving: Moving | None = None

    def close(self) -> None:
        (self.channel or self.sock).close()


@dataclass
class _Door:
    """What listens, and what waits for all who have come."""

    listening: socket.socket
    waiting: selectors.BaseSelector


class BulkPort:
    """Listens once the first connection is announced; a thread of its own welcomes who comes."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._invited: OrderedDict[str, Invitation] = OrderedDict()
        self._shared: dict[str, Shared] = {}  # by channel that has not come yet
        self._greeted: set[str] = set()  # come, and about to show the key
        self._channels: dict[str, Channel] = {}
        self._changed = threading.Condition()
        self._door: _Door | None = None
        self._strangers: list[_Stranger] = []

    def invite(self, invitation: Invitation) -> tuple[str, int, bool]:
        """Announce a connection (called in the control thread).

        Gives the address that it shall come to, and whether the memory that it names is shared from now on.
        """
        shared = Shared.open(invitation.shared) if invitation.shared else None
        with self._changed:
            if shared is not None:
                self._shared[invitation.channel] = shared
            self._forget_cut()
            try:
                if self._door is None:
                    self._door = self._listen()
                    welcome_all = threading.Thread(
                        target=self._welcome_all, args=(self._door,), name="hpcmagic-bulk-port", daemon=True
                    )
                    welcome_all.start()
                os.close(os.dup(self._door.listening.fileno()))  # is there a descriptor for the connection?
            except OSError:
                self._let_go(invitation.channel)
                raise
            self._invited[invitation.channel] = invitation
            while len(self._invited) > INVITATIONS:
                forgotten, _ = self._invited.popitem(last=False)
                self._let_go(forgotten)
            host, port = self._door.listening.getsockname()[:2]
        return host, port, shared is not None

    def _listen(self) -> _Door:
        """Open all that the thread needs: were a descriptor lacking there, nobody would ever be let in."""
        listening = socket.create_server((listen_address(self.request), 0), backlog=128)
        listening.setblocking(False)
        try:
            return _Door(listening, selectors.DefaultSelector())
        except OSError:
            listening.close()
            raise

    def channel(self, name: str) -> Channel:
        """Give a connection that was announced, once it has come.

        Raises
        ------
        PeerLost
            It did not, or is gone: the notebook has given up.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._is_awaited(name), COMES_S):
                raise PeerLost("The notebook has announced a bulk connection that did not come.", "Try again.")
            channel = self._channels.get(name)
        if channel is None or channel.closed:
            raise PeerLost("The bulk connection of this request is gone: the notebook has given up.", "Try again.")
        return channel

    def _is_awaited(self, name: str) -> bool:
        return name in self._invited or name in self._greeted

    def drop(self, channel: Channel) -> None:
        """Close a connection that is of no use any more."""
        channel.close()
        with self._changed:
            self._channels.pop(channel.name, None)

    def _let_go(self, channel: str) -> None:
        shared = self._shared.pop(channel, None)
        if shared is not None:
            shared.close()

    def _forget_cut(self) -> None:
        for name, channel in list(self._channels.items()):
            if channel.is_cut():
                channel.close()
                del self._channels[name]

    def _welcome_all(self, door: _Door) -> None:
        with door.waiting as waiting:
            waiting.register(door.listening, selectors.EVENT_READ, None)
            while True:
                for key, _ in waiting.select(1.0 if self._strangers else None):
                    if key.data is None:
                        self._accept(door.listening, waiting)
                    elif key.data in self._strangers:  # it may have given way just now
                        self._hear(waiting, key.data)
                for stranger in [s for s in self._strangers if time.monotonic() - s.since_s > PROVE_S]:
                    self._part(waiting, stranger)

    def _accept(self, listening: socket.socket, waiting: selectors.BaseSelector) -> None:
        try:
            sock, _ = listening.accept()
        except OSError:  # gone again, or no descriptor left
            time.sleep(0.01)
            return
        sock.setblocking(False)
        stranger = _Stranger(sock)
        waiting.register(sock, selectors.EVENT_READ, stranger)
        self._strangers.append(stranger)
        if len(self._strangers) > STRANGERS:
            self._part(waiting, self._strangers[0])

    def _part(self, waiting: selectors.BaseSelector, stranger: _Stranger, *, known: bool = False) -> None:
        self._strangers.remove(stranger)
        waiting.unregister(stranger.sock)
        with self._changed:
            if stranger.channel is not None:
                self._greeted.discard(stranger.channel.name)
                if known:
                    stranger.channel.rest()
                    self._channels[stranger.channel.name] = stranger.channel
            self._changed.notify_all()
        if not known:
            stranger.close()

    def _hear(self, waiting: selectors.BaseSelector, stranger: _Stranger) -> None:
        """Read what has come of a connection's first bytes; let it in when they are right."""
        try:
            if stranger.moving is None:
                self._hear_name(stranger)
            if stranger.moving is not None:
                next(stranger.moving)
        except StopIteration:
            self._part(waiting, stranger, known=True)
        except (HpcMagicError, OSError):  # a stranger, or one who cannot show the key
            self._part(waiting, stranger)

    def _hear_name(self, stranger: _Stranger) -> None:
        wanted = len(MAGIC) + CHANNEL_NBYTES
        with contextlib.suppress(BlockingIOError):
            came = stranger.sock.recv(wanted - len(stranger.head))
            if not came:
                raise ConnectionResetError
            stranger.head += came
        if not MAGIC.startswith(bytes(stranger.head[: len(MAGIC)])):
            raise ConnectionRefusedError
        if len(stranger.head) == wanted:
            with self._changed:
                invitation = self._invited.pop(bytes(stranger.head[len(MAGIC) :]).hex(), None)
                if invitation is None:
                    raise ConnectionRefusedError
                self._greeted.add(invitation.channel)
            stranger.channel = Channel(stranger.sock, invitation, self.request.server_public, at_rank=True)
            stranger.channel.shared = self._shared.pop(invitation.channel, None)
            stranger.moving = welcome(stranger.channel)
