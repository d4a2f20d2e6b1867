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

from hpcmagic.rendezvous import Connection, Request, SessionDirectory
from hpcmagic.wire.crypto import (
    PEERS,
    admit_only,
    load_key_pair,
    load_signing_key,
)
from hpcmagic.wire.envelope import RelayEnvelope, give_memory_back
from hpcmagic.wire.messages import REQUEST

FAST_BEAT_MS = 50  # until all ranks are in: an engine counts only after a heartbeat
SLOW_BEAT_MS = 3000
MISSED_BEATS = 200  # ten minutes: that a rank is gone, srun and mpiexec say much sooner
REFUSED_QUERIES = ("shutdown_request", "become_dask_request", "stop_distributed_request")
GIVE_BACK_MS = 5000


class InLoopHeartMonitor(HeartMonitor):
    """ipyparallel's heart monitor in the controller's own loop, process and context."""

    def start(self) -> None:
        """Begin to beat. The stock method waits for a subscription that this very loop would bring."""
        self.max_heartmonitor_misses = MISSED_BEATS * SLOW_BEAT_MS // FAST_BEAT_MS
        self.pong_stream.on_recv(self.handle_pong)
        self.tic = ipp_controller.time.monotonic()
        self.caller = PeriodicCallback(self.beat, FAST_BEAT_MS)
        self.caller.start()

    def slow_down(self) -> None:
        """Beat at the usual pace, once all ranks are in."""
        self.caller.stop()
        self.max_heartmonitor_misses = MISSED_BEATS
        self.caller = PeriodicCallback(self.beat, SLOW_BEAT_MS)
        self.caller.start()


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
        for query in REFUSED_QUERIES:
            del self.hub.query_handlers[query]
        self.heartmonitor_process = self._heart_monitor()
        notice = self.hub.finish_registration

        def finish_registration(heart: bytes) -> None:
            notice(heart)
            self.registered()

        self.hub.finish_registration = finish_registration

    def _keep_no_books(self) -> None:
        """Note of our own requests only that they are under way: the hub would keep their ids for ever."""
        hub = self.hub
        stock_request, stock_reply = hub.monitor_handlers[b"in"], hub.monitor_handlers[b"out"]

        def on_request(idents: Any, message: Any) -> None:
            header = self.session.unpack(message[1])
            if header["msg_type"] == REQUEST:
                hub.pending.add(header["msg_id"])
            else:
                stock_request(idents, message)

        def on_reply(idents: Any, message: Any) -> None:
            parent = self.session.unpack(message[2])
            if parent.get("msg_type") == REQUEST:
                hub.pending.discard(parent["msg_id"])
            else:
                stock_reply(idents, message)

        hub.monitor_handlers.update({b"in": on_request, b"out": on_reply})

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
        return tuple(sorted(self.hub.ids))

    def busy(self) -> bool:
        """Whether a cell runs or waits on any rank."""
        return bool(self.hub.pending)


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
    """Counts the notebooks that are connected.

    Each holds one subscription to this socket. A stranger cannot: subscriptions come through only after the
    handshake. A notebook that vanishes is missed at once when its connection is closed, else by ZMTP's pings.
    """

    def __init__(self, socket: Any, loop: Any) -> None:
        self.count = 0
        socket.setsockopt(zmq.XPUB_VERBOSER, 1)  # every subscription counts, not only the first of its kind
        self._stream = ZMQStream(socket, loop)
        self._stream.on_recv(self._on_change)

    def _on_change(self, message: list[bytes]) -> None:
        self.count += 1 if message[0][:1] == b"\x01" else -1


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
