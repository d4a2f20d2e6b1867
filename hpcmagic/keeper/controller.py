"""ipyparallel's controller inside the keeper's process: CURVE forced, peers known by key, one process.

    notebook ─CURVE─► registration, mux, control, task, broadcast, iopub, notification ─CURVE─► ranks
                                   │ inproc
                              hub's monitor

A stock controller is nine processes, some with ZeroMQ contexts of their own that no authenticator guards,
and a hub that a stranger who knows the server's public key may ask for everything. Here all sockets live in
one context with one authenticator (`wire.crypto.admit_only`), bound before the first of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ipyparallel.controller.app as ipp_controller
import zmq
from ipyparallel.controller.broadcast_scheduler import BroadcastScheduler
from ipyparallel.controller.heartmonitor import HeartMonitor
from ipyparallel.controller.task_scheduler import TaskScheduler
from tornado.ioloop import PeriodicCallback
from traitlets import HasTraits, default
from zmq.eventloop.zmqstream import ZMQStream

from hpcmagic.keeper.journal import Journal
from hpcmagic.rendezvous import Connection, Request, SessionDirectory
from hpcmagic.wire.beats import Beat
from hpcmagic.wire.crypto import (
    PEERS,
    admit_only,
    load_key_pair,
    load_signing_key,
)
from hpcmagic.wire.envelope import RelayEnvelope, give_memory_back, whole
from hpcmagic.wire.messages import ABANDON, DUMP, KEEP, OUTPUT, REPLY, REQUEST, RESTART

FAST_BEAT_MS = 50  # until all ranks are in: an engine counts only after a heartbeat
SLOW_BEAT_MS = 3000
MISSED_BEATS = 200  # ten minutes: that a rank is gone, srun and mpiexec say much sooner
REFUSED_QUERIES = ("shutdown_request", "become_dask_request", "stop_distributed_request")
GIVE_BACK_MS = 5000
BEAT_MS = 2000  # how often notebooks hear that the keeper is there


class InLoopHeartMonitor(HeartMonitor):
    """ipyparallel's heart monitor in the controller's own loop, process and context."""

    def start(self) -> None:
        """Begin to beat. The stock method waits for a subscription that this very loop would bring."""
        self.pong_stream.on_recv(self.handle_pong)
        self.tic = ipp_controller.time.monotonic()
        self.speed_up()

    def speed_up(self) -> None:
        """Beat fast, until all ranks are in."""
        self._pace(FAST_BEAT_MS)

    def slow_down(self) -> None:
        """Beat at the usual pace, once all ranks are in."""
        self._pace(SLOW_BEAT_MS)

    def _pace(self, period_ms: int) -> None:
        if self.caller is not None:
            self.caller.stop()
        self.max_heartmonitor_misses = MISSED_BEATS * SLOW_BEAT_MS // period_ms
        self.caller = PeriodicCallback(self.beat, period_ms)
        self.caller.start()

    caller: PeriodicCallback | None = None


class _Relay(HasTraits):
    """A queue in Python with the keeper's envelope."""

    @default("session")
    def _relay_envelope(self) -> RelayEnvelope:
        return RelayEnvelope(parent=self)


class RelayTaskScheduler(_Relay, TaskScheduler):
    """ipyparallel's queue of load-balanced tasks."""


class RelayBroadcastScheduler(_Relay, BroadcastScheduler):
    """ipyparallel's queue of broadcasts."""

    def send_to_targets(self, msg: Any, original_msg_id: Any, targets: Any, idents: Any, is_coalescing: Any) -> None:
        """Remember numbers beside names: a queue of no depth forgets them, and its client then waits for ever."""
        super().send_to_targets(msg, original_msg_id, targets, idents, is_coalescing)
        if is_coalescing:
            self.accumulated_targets[original_msg_id] = msg["metadata"]["targets"]


RELAYS = {TaskScheduler: RelayTaskScheduler, BroadcastScheduler: RelayBroadcastScheduler}


class Controller(ipp_controller.IPController):
    """The controller of one session.

    Parameters
    ----------
    directory, request
        The session's files.
    host
        The address to listen on; never a wildcard.
    """

    def __init__(self, directory: SessionDirectory, request: Request, host: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.directory = directory
        self.request = request
        self.host = host
        self.write_connection_files = False  # they would hold the signing key
        self.registered: Callable[[], None] = lambda: None
        self.verbs: dict[str, Callable[[], None]] = {}  # what notebooks may ask of the keeper: RESTART, DUMP, KEEP
        self.requests: dict[str, set[str]] = {}  # by cell: those that are not answered
        self._worked = False  # whether anything was asked of a rank since somebody looked
        self.journal = Journal(directory.cells)

    def initialize(self, argv: Any = None) -> None:
        """Admit the session's own keys, then open the ports."""
        keys = [load_key_pair(self.directory, who).public for who in PEERS]
        self.authenticator = admit_only(self.context, keys)
        super().initialize(argv)
        self.log.setLevel(self.log_level)  # traitlets filters in the handler only: each record would be made
        self.log.addFilter(lambda record: not record.getMessage().startswith("Monitor message without topic"))
        presence = self.context.socket(zmq.XPUB)
        self.bind(presence, f"tcp://{self.host}:*")
        self.presence = Presence(presence, self.loop)
        port = int(presence.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        engine, client = (
            self._complete(self.engine_info),
            self._complete({**self.client_info, "presence": port}),
        )
        self.directory.write_record(self.directory.connection, Connection(self.host, engine, client))

    def _complete(self, channels: dict[str, Any]) -> dict[str, Any]:
        """Add what ipyparallel's peers read beside the ports; the key is not among it."""
        return {
            **channels,
            "location": self.host,
            "ssh": "",
            "pack": self.session.packer,
            "unpack": self.session.unpacker,
            "signature_scheme": self.session.signature_scheme,
        }

    @default("session")
    def _relay_envelope(self) -> RelayEnvelope:
        return RelayEnvelope(parent=self)

    def get_python_scheduler_args(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Let the queues that are in Python pass on buffers as they come."""
        told = super().get_python_scheduler_args(*args, **kwargs)
        return {**told, "scheduler_class": RELAYS[told["scheduler_class"]]}

    def init_hub(self) -> None:
        """Make the hub, with its heart monitor in this loop and without queries that end the session."""
        with _no_nap():
            super().init_hub()
        self._keep_no_books()
        self._answer_verbs()
        for query in REFUSED_QUERIES:
            del self.hub.query_handlers[query]
        self.heartmonitor_process = self._heart_monitor()
        notice = self.hub.finish_registration

        def finish_registration(heart: bytes) -> None:
            notice(heart)
            self.registered()

        self.hub.finish_registration = finish_registration

    def _keep_no_books(self) -> None:
        """Write our own requests and replies into the journal: the hub would keep them in memory for ever."""
        hub = self.hub
        stock = dict(hub.monitor_handlers)

        def on_request(idents: Any, message: Any) -> None:
            self._worked = True
            header = self.session.unpack(message[1])
            if header["msg_type"] != REQUEST:
                stock[b"in"](idents, message)
                return
            hub.pending.add(header["msg_id"])
            content = self.session.unpack(message[4])
            self.requests.setdefault(content.get("cell", ""), set()).add(header["msg_id"])
            if content.get("cell"):  # what is no cell may be large, and is not written down
                self.journal.on_request(content, whole(message[5:]))

        def on_reply(idents: Any, message: Any) -> None:
            parent = self.session.unpack(message[2])
            if parent.get("msg_type") != REQUEST:
                stock[b"out"](idents, message)
                return
            hub.pending.discard(parent["msg_id"])
            content = self.session.unpack(message[4])
            self._forget_request(content.get("cell", ""), parent["msg_id"])
            if content.get("cell"):
                self.journal.on_reply(content, whole(message[5:]))

        def on_output(_idents: Any, message: Any) -> None:
            kind = self.session.unpack(message[1])["msg_type"]
            note = {OUTPUT: self.journal.on_output, REPLY: self.journal.on_reply}.get(kind)
            if note is not None:
                note(self.session.unpack(message[4]), whole(message[5:]))

        hub.monitor_handlers.update({b"in": on_request, b"out": on_reply, b"iopub": on_output})

    def _forget_request(self, cell: str, request: str) -> None:
        left = self.requests.get(cell, set())
        left.discard(request)
        if not left:
            self.requests.pop(cell, None)

    def _answer_verbs(self) -> None:
        """Let notebooks ask the keeper for what only it can do."""

        def on_verb(idents: Any, message: Any) -> None:
            verb = message["header"]["msg_type"]
            if verb == ABANDON:
                told = message["content"]
                self.hub.pending.difference_update(self.requests.get(told["cell"], ()))
                self.journal.on_stuck(told["cell"], told["waiting"])
            else:
                self.verbs[verb]()
            self.session.send(
                self.hub.query, "hpcmagic_verb_reply", {"status": "ok"}, parent=message, ident=idents[0]
            )

        for verb in (RESTART, DUMP, KEEP, ABANDON):
            self.hub.query_handlers[verb] = on_verb

    def forget_ranks(self, cause: str) -> None:
        """Strike all ranks off: others will come under their numbers. Their cells are lost."""
        hub = self.hub
        self.journal.on_lost(range(self.request.ntasks), cause)
        for rank in list(hub.engines):
            hub.queues[rank] = []
            hub.unregister_engine(b"", {"content": {"id": rank}})
        hub.incoming_registrations.clear()
        hub.pending.clear()
        self.requests.clear()
        self.heartmonitor_process.speed_up()

    def _heart_monitor(self) -> InLoopHeartMonitor:
        ping, pong = self.context.socket(zmq.PUB), self.context.socket(zmq.ROUTER)
        self.bind(ping, self.engine_url("hb_ping"))
        self.bind(pong, self.engine_url("hb_pong"))
        news = self.context.socket(zmq.PUB)
        news.connect(self.monitor_url)
        return InLoopHeartMonitor(
            ping_stream=ZMQStream(ping, self.loop),
            pong_stream=ZMQStream(pong, self.loop),
            monitor_stream=ZMQStream(news, self.loop),
            session=self.session,
            log=self.log,
            loop=self.loop,
        )

    def begin(self) -> None:
        """Start the queues and the heartbeat; the caller runs the loop."""
        for child in self.children:
            child.start()
        self.heartmonitor_process.start()
        PeriodicCallback(give_memory_back, GIVE_BACK_MS).start()

    def ranks(self) -> tuple[int, ...]:
        """Ranks that are registered and alive, in order."""
        return tuple(sorted(self.hub.engines))

    def busy(self) -> bool:
        """Whether a cell runs or waits on any rank."""
        return bool(self.hub.pending)

    def has_worked(self) -> bool:
        """Whether a cell runs or waits, or one has since this was asked last, however short."""
        worked, self._worked = self._worked or self.busy(), False
        return worked


@contextlib.contextmanager
def _no_nap() -> Iterator[None]:
    """Spare the quarter of a second for which ipyparallel's `init_hub` sleeps, for a database that we do not have."""
    real = ipp_controller.time
    ipp_controller.time = SimpleNamespace(sleep=lambda _: None, monotonic=real.monotonic, time=real.time)
    try:
        yield
    finally:
        ipp_controller.time = real


class Presence:
    """Knows which notebooks are connected, and tells them that the keeper is there.

    Each subscribes to this socket, and besides to a name of its own, ``who:alice@login1:4711#…``. A stranger
    cannot: subscriptions come through only after the handshake. A notebook that vanishes is missed at once when
    its connection is closed, else by ZMTP's pings.
    """

    def __init__(self, socket: Any, loop: Any) -> None:
        self.names: list[str] = []
        self.tell: Callable[[], Beat] = Beat  # said every two seconds: no file can tell of a disk that is full
        socket.setsockopt(zmq.XPUB_VERBOSER, 1)  # every subscription comes through, not only the first of its kind
        self._stream = ZMQStream(socket, loop)
        self._stream.on_recv(self._on_change)
        self._beat = PeriodicCallback(self.beat, BEAT_MS)
        self._beat.start()

    def beat(self) -> None:
        """Tell all of them how things stand."""
        self._stream.send(self.tell().to_frame())

    def _on_change(self, message: list[bytes]) -> None:
        comes, topic = message[0][:1] == b"\x01", message[0][1:].decode(errors="replace")
        if topic.startswith("who:"):
            name = topic.removeprefix("who:")
            if comes:
                self.names.append(name)
            elif name in self.names:
                self.names.remove(name)


def controller_config(directory: SessionDirectory, host: str) -> Any:
    """Give the configuration of a session's controller."""
    keys = load_key_pair(directory, "server")
    config = ipp_controller.Config()
    config.ProfileDir.location = str(directory.path / "ipython")
    config.Session.key = load_signing_key(directory)
    config.IPController.enable_curve = True
    config.IPController.curve_publickey = keys.public
    config.IPController.curve_secretkey = keys.secret
    config.IPController.use_threads = True
    config.IPController.monitor_transport = "inproc"
    config.IPController.ip = host
    config.IPController.location = host
    config.IPController.db_class = "nodb"
    config.IPController.log_level = 30
    config.IPController.broadcast_scheduler_depth = 0
    config.HeartMonitor.period = SLOW_BEAT_MS
    config.Controller = config.IPController
    return config
