"""Cells and replies: the ipyparallel client with the session's own keys, its encryption verified.

    Control.send(message, ranks) ─► one request a rank ─► controller ─► ranks ─► Reply ─► Pending

One background thread (ipyparallel's) owns the sockets; every method here may be called from any thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import ipyparallel
import zmq

from hpcmagic.errors import ChannelError, NotEncrypted, PeerLost
from hpcmagic.rendezvous import Connection, Request, SessionDirectory
from hpcmagic.wire.crypto import (
    KeyPair,
    be_careful_client,
    load_key_pair,
    load_signing_key,
    require_encrypted,
)
from hpcmagic.wire.envelope import Envelope
from hpcmagic.wire.messages import INTERRUPT, REPLY, REQUEST, Reply, from_frames, to_frames

SOCKETS = ("query", "mux", "task", "broadcast", "notification", "control", "iopub", "presence")


class SessionClient(ipyparallel.Client):
    """An ipyparallel client that connects with the session's keys only.

    It sends through the streams of ipyparallel, never through their bare sockets: a bare send takes the
    edge-triggered event of a reply that came meanwhile, and the stream would sleep over it.
    """

    def __init__(self, info: dict[str, Any], keys: KeyPair, **kwargs: Any) -> None:
        self._keys = keys
        self._pending: dict[str, tuple[Pending, int]] = {}
        context: zmq.Context[Any] = zmq.Context()  # of its own: the user's shared one stays as it is
        be_careful_client(context)
        try:
            super().__init__(info, context=context, **kwargs)
        except BaseException:
            context.destroy(linger=0)
            raise
        self._presence_socket = self._connected_to("presence")
        self._queue_handlers[REPLY] = self._on_reply
        self._notification_handlers["unregistration_notification"] = self._on_rank_gone

    def __repr__(self) -> str:
        return f"<SessionClient of {len(self._ids)} ranks>"

    def _connected_to(self, channel: str) -> Any:
        """Subscribe to a channel that is the keeper's own, beside ipyparallel's."""
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.curve_serverkey, socket.curve_publickey = self.curve_serverkey, self._keys.public
        socket.curve_secretkey = self._keys.secret
        socket.connect(f"{self._config['interface']}:{self._config[channel]}")
        return socket

    def activate(self, targets: str | Sequence[int] = "all", suffix: str = "") -> Any:
        """Register ipyparallel's `%px` magics, when the user asks for them; not at connect."""
        return super().activate(targets, suffix) if self._io_thread is not None and self._ready else None

    _ready = False
    log = logging.getLogger("hpcmagic")  # ipyparallel writes to it of a message with a wrong signature
    session: Any

    def _setup_profile_dir(self, *_: Any) -> None:
        """Look at no profile: addresses and keys come from the session's directory."""
        self._profile_dir = None
        self.curve_publickey, self.curve_secretkey = self._keys.public, self._keys.secret

    def _connect(self, *args: Any) -> None:
        """Cut long frames from the first message on."""
        stock = self.session
        names = ("session", "key", "packer", "unpacker", "signature_scheme")
        self.session = Envelope(**{name: getattr(stock, name) for name in names})
        super()._connect(*args)

    def submit(self, message: Any, pending: Pending) -> None:
        """Send one message to the ranks that `pending` waits for."""
        frames = to_frames(message)
        for rank in pending.ranks:
            future = self._send(
                self._mux_stream, REQUEST, {}, ident=self._engines[rank].encode(), buffers=frames,
                message_future_hook=lambda f, rank=rank: self._pending.update({f.msg_id: (pending, rank)}),
            )  # fmt: skip
            del future

    def interrupt(self, pending: Pending) -> None:
        """Ask the ranks that have not answered to give up this very request, and no other notebook's."""
        for msg_id, (waiting, rank) in list(self._pending.items()):
            if waiting is pending and rank in self._engines:
                content, ident = {"request": msg_id}, self._engines[rank].encode()
                self._send(self._control_stream, INTERRUPT, content, ident=ident)

    def _on_reply(self, message: Any) -> None:
        msg_id = message["parent_header"]["msg_id"]
        pending, _rank = self._pending.pop(msg_id, (None, 0))
        future = self._futures.get(msg_id)
        if future is not None:
            future.set_result(None)
        if pending is not None:
            pending.take(from_frames(message["buffers"]))

    def _on_rank_gone(self, message: Any) -> None:
        rank = int(message["content"]["id"])
        self._unregister_engine(message)
        for msg_id, (pending, waited) in list(self._pending.items()):
            if waited == rank:
                del self._pending[msg_id]
                pending.lose(rank)


class Pending:
    """Replies on their way, one a rank."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = tuple(ranks)
        self.replies: dict[int, Reply] = {}
        self.lost: set[int] = set()
        self._changed = threading.Condition()

    def take(self, reply: Reply) -> None:
        """Note a reply (called in the client's thread)."""
        with self._changed:
            self.replies[reply.rank] = reply
            self._changed.notify_all()

    def lose(self, rank: int) -> None:
        """Note that a rank will never answer (called in the client's thread)."""
        with self._changed:
            self.lost.add(rank)
            self._changed.notify_all()

    def missing(self) -> tuple[int, ...]:
        """Ranks that have neither answered nor gone."""
        return tuple(r for r in self.ranks if r not in self.replies and r not in self.lost)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is missing; False when the time is up first. Ctrl-C comes through."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while self.missing():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True


class Control:
    """The kernel's end of a session's control path."""

    def __init__(self, client: SessionClient) -> None:
        self.client = client

    @classmethod
    def connect(cls, directory: SessionDirectory, request: Request, timeout_s: float = 20.0) -> Control:
        """Connect to a session's keeper and verify the encryption.

        Raises
        ------
        NotEncrypted
            A socket does not speak CURVE with the session's key.
        ChannelError
            The keeper does not answer.
        """
        connection = directory.read_record(directory.connection, Connection)
        if connection is None:
            raise ChannelError("The session has no connection.json.", "See `%hpc log`.")
        if not request.server_public:
            raise NotEncrypted("The session's request.json names no key of its keeper.", "End it with `%hpc stop`.")
        info = {
            **connection.client,
            "interface": f"tcp://{connection.host}",
            "location": connection.host,
            "key": load_signing_key(directory).decode(),
            "curve_serverkey": request.server_public,
        }
        try:
            client = SessionClient(info, load_key_pair(directory, "client"), timeout=timeout_s)
        except TimeoutError as error:
            raise ChannelError(
                f"The keeper at {connection.host} does not answer (waited {timeout_s:g} s).",
                "Is a firewall between this host and the nodes? See `%hpc log`, then `%hpc stop`.",
            ) from error
        client._ready = True  # noqa: SLF001  # our own class
        for name in SOCKETS:
            require_encrypted(getattr(client, f"_{name}_socket"))
        return cls(client)

    def send(self, message: Any, ranks: Sequence[int]) -> Pending:
        """Send a message to ranks; their replies come into what is returned.

        Raises
        ------
        PeerLost
            A rank is not connected.
        """
        gone = [r for r in ranks if r not in self.client._engines]  # noqa: SLF001
        if gone:
            raise PeerLost(f"Ranks {gone} are gone.", "See `%hpc log`; `%hpc stop` ends the session.")
        pending = Pending(ranks)
        self.client.submit(message, pending)
        return pending

    def interrupt(self, pending: Pending) -> None:
        """Ask the ranks that have not answered to raise KeyboardInterrupt."""
        self.client.interrupt(pending)

    def close(self) -> None:
        """Close all sockets; the session lives on."""
        context = self.client._context  # noqa: SLF001
        self.client._presence_socket.close(linger=0)  # noqa: SLF001
        self.client.close(linger=0)
        context.term()
