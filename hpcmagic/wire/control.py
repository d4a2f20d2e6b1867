"""Cells and replies: the ipyparallel client with the session's own keys, its encryption verified.

    Control.send(message, ranks) ─► one request a rank ─► controller ─► ranks ─┬─ pieces of output ─┐
                                                                               └─ Reply ────────────┴► Pending

One background thread (ipyparallel's) owns the sockets; every method here may be called from any thread.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import zmq
from ipyparallel.client.client import unpack_message
from zmq.eventloop.zmqstream import ZMQStream

from hpcmagic.errors import ChannelError, NotEncrypted, PeerLost
from hpcmagic.rendezvous import Connection, Request, SessionDirectory
from hpcmagic.wire.beats import Beat
from hpcmagic.wire.bulk import Invitation
from hpcmagic.wire.crypto import KeyPair, be_careful_client, load_key_pair, load_signing_key, require_encrypted
from hpcmagic.wire.descriptors import require_descriptors
from hpcmagic.wire.envelope import Envelope
from hpcmagic.wire.health import HEALTH
from hpcmagic.wire.holdings import VARS
from hpcmagic.wire.lent import LINGER_MS, Lent, client_name
from hpcmagic.wire.messages import (
    INTERRUPT,
    JOIN,
    OUTPUT,
    REPLY,
    REQUEST,
    STEER,
    WHERE,
    WITHDRAWN,
    Reply,
    Stand,
    outputs_from,
    reply_from,
    to_frames,
)
from hpcmagic.wire.pending import Pending

FLUSH_S = 2.0
SOCKETS = ("query", "mux", "task", "broadcast", "notification", "control", "iopub", "presence")


class SessionClient(Lent):
    """An ipyparallel client that connects with the session's keys only.

    It sends through the streams of ipyparallel, never through their bare sockets: a bare send takes the
    edge-triggered event of a reply that came meanwhile, and the stream would sleep over it.
    """

    _ready = False
    log = logging.getLogger("hpcmagic")  # ipyparallel writes to it of a message with a wrong signature
    session: Any

    def __init__(self, info: dict[str, Any], keys: KeyPair, **kwargs: Any) -> None:
        self._keys = keys
        self._pending: dict[str, tuple[Pending, int]] = {}
        self._cells: WeakValueDictionary[str, Pending] = WeakValueDictionary()  # a reply may overtake output
        self.name = client_name()
        self.heard_s = time.monotonic()  # when the keeper was last heard
        self.beat = Beat()  # what it said last
        context: zmq.Context[Any] = zmq.Context()  # of its own: the user's shared one stays as it is
        be_careful_client(context)
        context.setsockopt(zmq.LINGER, LINGER_MS)
        try:
            super().__init__(info, context=context, **kwargs)
        except BaseException:
            context.destroy(linger=0)
            raise
        self._presence_socket = self._connected_to("presence")
        self._io_loop.add_callback(self._listen)
        self._queue_handlers[REPLY] = self._on_reply
        self._notification_handlers["unregistration_notification"] = self._on_rank_gone
        self._notification_handlers["shutdown_notification"] = lambda _: None  # the keeper tells it otherwise

    def __repr__(self) -> str:
        return f"<SessionClient of {len(self._ids)} ranks>"

    def _connected_to(self, channel: str) -> Any:
        """Subscribe to a channel that is the keeper's own, beside ipyparallel's, and under a name of our own."""
        news = self._context.socket(zmq.SUB)
        for topic in ("", f"who:{self.name}"):
            news.setsockopt_string(zmq.SUBSCRIBE, topic)
        news.curve_serverkey, news.curve_publickey = self.curve_serverkey, self._keys.public
        news.curve_secretkey = self._keys.secret
        news.connect(f"{self._config['interface']}:{self._config[channel]}")
        return news

    def _listen(self) -> None:
        """Hear the keeper (in the client's thread)."""
        self._presence_stream = ZMQStream(self._presence_socket, self._io_loop)
        self._presence_stream.on_recv(self._on_beat)

    def flush(self) -> None:
        """Let what was sent leave this process: what its thread has not taken up yet would be lost at exit."""
        done = threading.Event()

        def flush() -> None:
            for stream in (self._mux_stream, self._control_stream, self._query_stream):
                stream.flush(zmq.POLLOUT)
            done.set()

        if threading.current_thread() is not self._io_thread:
            self._io_loop.add_callback(flush)
            done.wait(FLUSH_S)

    def close_presence(self) -> None:
        """Let the keeper know that we go."""
        closed = threading.Event()

        def close() -> None:
            self._presence_stream.close(linger=0)
            closed.set()

        if threading.current_thread() is self._io_thread:  # a cell's callback has found the session ended
            close()
            return
        self._io_loop.add_callback(close)
        closed.wait(5)

    def _on_beat(self, message: list[bytes]) -> None:
        self.heard_s = time.monotonic()
        self.beat = Beat.from_frame(message[0])

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
        """Send one message to the ranks that `pending` waits for, or to each its own."""
        by_rank = message if isinstance(message, Mapping) else {}
        frames = [] if by_rank else to_frames(message)
        content: dict[str, Any] = {}
        if pending.cell:
            self._cells[pending.cell] = pending
            content = {"cell": pending.cell, "name": message.name, "ranks": pending.ranks, "client": self.name}
        for rank in pending.ranks:
            frames = to_frames(by_rank[rank]) if by_rank else frames
            future = self._send(
                self._mux_stream, REQUEST, content, ident=self._engines[rank].encode(), buffers=frames,
                message_future_hook=lambda f, rank=rank: self._pending.update({f.msg_id: (pending, rank)}),
            )  # fmt: skip
            del future

    def interrupt(self, ranks: Sequence[int], what: dict[str, str], pending: Pending | None = None) -> None:
        """Ask ranks to give up one request, or one cell, and nothing else.

        Where it had not begun, that is the reply: it never will, and the rank's own word comes after what is before.
        """
        for rank in ranks:
            if rank in self._engines:
                answer = self._send(self._control_stream, INTERRUPT, what, ident=self._engines[rank].encode())
                if pending is not None:
                    answer.add_done_callback(lambda f, rank=rank: _take_withdrawal(pending, rank, f.result()))

    def unanswered(self, pending: Pending) -> dict[str, int]:
        """Give the requests, with their ranks, that were not answered yet."""
        held = list(self._pending.items())
        return {msg_id: rank for msg_id, (waiting, rank) in held if waiting is pending and rank in self._engines}

    def ask_each(self, kind: str, what: Mapping[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Ask ranks, each its own, what their control thread answers; the answers come into what is returned."""
        answers: dict[int, dict[str, Any]] = {}
        for rank, question in what.items():
            answer = self._send(self._control_stream, kind, question, ident=self._engines[rank].encode())
            answer.add_done_callback(lambda f, rank=rank: answers.update({rank: f.result()["content"]}))
        return answers

    def ask_keeper(self, verb: str, **what: Any) -> None:
        """Ask the keeper for something; it answers by doing it."""
        self._send(self._query_stream, verb, what)

    def _dispatch_iopub(self, frames: Any) -> None:
        if bytes(frames[0]) == OUTPUT.encode():  # the topic
            self._on_output(frames)
        else:
            super()._dispatch_iopub(frames)

    @unpack_message
    def _on_output(self, message: Any) -> None:
        told = message["content"]
        pending = self._cells.get(told["cell"])
        if pending is not None and message["header"]["msg_type"] == REPLY:  # of a cell that was withdrawn
            pending.take(reply_from(told["rank"], message["buffers"]))
        elif pending is not None:
            pending.take_piece(told["rank"], told["piece"], outputs_from(message["buffers"]))

    def _on_reply(self, message: Any) -> None:
        msg_id = message["parent_header"]["msg_id"]
        pending, rank = self._pending.pop(msg_id, (None, 0))
        future = self._futures.get(msg_id)
        if future is not None:
            future.set_result(None)
        if pending is not None:
            pending.take(reply_from(rank, message["buffers"]))

    def _on_rank_gone(self, message: Any) -> None:
        rank = int(message["content"]["id"])
        self._unregister_engine(message)
        for msg_id, (pending, waited) in list(self._pending.items()):
            if waited == rank:
                del self._pending[msg_id]
                pending.lose(rank)


def _take_withdrawal(pending: Pending, rank: int, message: Any) -> None:
    if message["content"].get("withdrawn"):
        pending.take(Reply(rank, raised=WITHDRAWN))


def connected(directory: SessionDirectory, request: Request, timeout_s: float) -> SessionClient:
    """Give a client that is connected to a session's keeper."""
    require_descriptors()
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
    return client


_open: WeakSet[Control] = WeakSet()


@atexit.register
def close_all() -> None:
    """Let what was sent at the last moment leave before the process ends."""
    for control in list(_open):
        control.close()


class Control:
    """The kernel's end of a session's control path."""

    def __init__(self, connect: Callable[[], SessionClient]) -> None:
        self._connect = connect
        self.client = connect()
        self._lent = self._closed = False
        _open.add(self)

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
        control = cls(lambda: connected(directory, request, timeout_s))
        control.require_encrypted()
        return control

    def revive(self) -> None:
        """Connect anew if the user has closed the client that he was lent."""
        if self.client._closed and not self._closed:  # noqa: SLF001  # ipyparallel tells it nowhere else
            self.client = self._connect()
            self.require_encrypted()

    def require_encrypted(self) -> None:
        """Refuse a socket that is not encrypted with the session's keys.

        Raises
        ------
        NotEncrypted
            One is not.
        """
        for name in SOCKETS:
            require_encrypted(getattr(self.client, f"_{name}_socket"))

    def invite(self, invitations: Mapping[int, Invitation]) -> dict[int, dict[str, Any]]:
        """Tell ranks of bulk connections that will come, with their keys; where to come into what is returned."""
        self._require(invitations)
        return self.client.ask_each(JOIN, {rank: asdict(invitation) for rank, invitation in invitations.items()})

    def simulations(self, ranks: Sequence[int], **what: Any) -> dict[int, dict[str, Any]]:
        """Ask ranks for the simulation that they answer for; the answers come into what is returned."""
        self._require(ranks)
        return self.client.ask_each(STEER, dict.fromkeys(ranks, what))

    def holdings(self, ranks: Sequence[int], **what: Any) -> dict[int, dict[str, Any]]:
        """Ask ranks for the variables that they hold; the answers come into what is returned."""
        self._require(ranks)
        return self.client.ask_each(VARS, dict.fromkeys(ranks, what))

    def health(self, ranks: Sequence[int], **what: Any) -> dict[int, dict[str, Any]]:
        """Ask ranks how they are; the answers come into what is returned."""
        self._require(ranks)
        return self.client.ask_each(HEALTH, dict.fromkeys(ranks, what))

    def engine(self, rank: int) -> str:
        """Give the identity of a rank's engine: another after a restart; nothing if there is none."""
        return str(self.client._engines.get(rank, ""))  # noqa: SLF001

    def send(self, message: Any, ranks: Sequence[int], cell: str = "") -> Pending:
        """Send a message to ranks, or of a mapping to each its own; their replies come into what is returned.

        Raises
        ------
        PeerLost
            A rank is not connected.
        """
        self._require(ranks)
        pending = Pending(ranks, cell)
        try:
            self.client.submit(message, pending)
        except BaseException:  # Ctrl-C: who has been asked already would work on what nobody waits for
            self.withdraw(pending)
            raise
        return pending

    def _require(self, ranks: Iterable[int]) -> None:
        gone = [r for r in ranks if r not in self.client._engines]  # noqa: SLF001
        if gone:
            named = ", ".join(map(str, gone))
            raise PeerLost(
                f"No longer connected: rank {named}.",
                "See `%hpc log`; `%hpc restart` starts them anew.",
            )

    def interrupt(self, cell: str, ranks: Sequence[int], pending: Pending | None) -> None:
        """Ask ranks to raise KeyboardInterrupt in a cell, or not to begin it."""
        self.client.interrupt(ranks, {"cell": cell}, pending)

    def withdraw(self, pending: Pending) -> None:
        """Ask the ranks that have not answered a request to give it up."""
        for request, rank in self.client.unanswered(pending).items():
            self.client.interrupt([rank], {"request": request}, pending)

    def stands(self, ranks: Sequence[int], timeout_s: float) -> dict[int, Stand]:
        """Ask ranks where they stand; give what was answered in time."""
        answers = self.client.ask_each(WHERE, {rank: {} for rank in ranks if self.engine(rank)})
        deadline = time.monotonic() + timeout_s
        while len(answers) < len(ranks) and time.monotonic() < deadline:
            time.sleep(0.02)
        return {rank: Stand(**answer) for rank, answer in dict(answers).items()}

    def runs(self, pending: Pending, stand: Stand) -> bool:
        """Whether a rank works on this very request."""
        return self.client.unanswered(pending).get(stand.request) == stand.rank

    def ask_keeper(self, verb: str, **what: Any) -> None:
        """Ask the keeper to restart the ranks, or to have them write down where they stand."""
        self.client.ask_keeper(verb, **what)

    def silent_s(self) -> float:
        """Give the seconds for which the keeper has not been heard."""
        return max(0.0, time.monotonic() - self.client.heard_s)

    @property
    def beat(self) -> Beat:
        """What the keeper said last, as it stands by now."""
        return self.client.beat.aged(self.silent_s())

    @property
    def name(self) -> str:
        """The name under which others see this client."""
        return str(self.client.name)

    def engines(self) -> tuple[str, ...]:
        """Give the identities of the engines that are connected, new ones after a restart."""
        return tuple(self.client._engines.values())  # noqa: SLF001  # a Pending asks it alike

    def lend(self) -> SessionClient:
        """Give the client to the user, who may keep it longer than anything else of ours."""
        self._lent = True
        return self.client

    def close_unused(self) -> None:
        """Close, since nobody holds the session here any more; in a thread: the garbage collector may call."""
        if not self._lent:
            threading.Thread(target=self.close, name="hpcmagic-close", daemon=True).start()

    def close(self) -> None:
        """Close all sockets; the session lives on."""
        if self._closed:
            return
        self._closed = True
        if not self.client._closed:  # noqa: SLF001  # as above
            self.client.hang_up()
