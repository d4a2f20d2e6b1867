"""ipyparallel's engine and kernel as a rank runs them: no nanny, keys from files, interrupts that are safe.

What differs from a stock engine, and why:

- keys and addresses come from the session's directory, never from the environment or the command line;
- the engine asks for its rank as its id, opens no listening port and keeps no heartbeat monitor: the agent
  notices a dead keeper;
- SIGINT raises only while a cell's own code is on the stack, so that no reply is lost;
- a request of ours is answered without the 'busy' and 'idle' messages: its output travels in the reply.
"""

from __future__ import annotations

import builtins
import faulthandler
import os
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import asdict
from typing import Any

import ipyparallel.engine.app as ipp_engine
from ipykernel.iostream import OutStream
from ipyparallel.engine.kernel import IPythonParallelKernel
from traitlets import Any as AnyTrait
from traitlets import Type

from hpcmagic.engine.capture import CellStream, RankLog
from hpcmagic.engine.cells import CellRunner, RankShell, describe, no_input
from hpcmagic.engine.inventory import inventory
from hpcmagic.engine.patience import patience
from hpcmagic.engine.steering import Steering
from hpcmagic.engine.tracebacks import raised_by, stand, users_frame
from hpcmagic.engine.transfers import Transfers
from hpcmagic.errors import HpcMagicError
from hpcmagic.rendezvous import Connection, Request, SessionDirectory
from hpcmagic.wire.bulk import Invitation
from hpcmagic.wire.crypto import be_careful_client, load_key_pair, load_signing_key
from hpcmagic.wire.envelope import Envelope
from hpcmagic.wire.health import HEALTH, health
from hpcmagic.wire.holdings import VARS, to_rows
from hpcmagic.wire.messages import (
    INTERRUPT,
    JOIN,
    OUTPUT,
    REPLY,
    REQUEST,
    STEER,
    WHERE,
    WITHDRAWN,
    Output,
    Raised,
    Reply,
    from_frames,
    sendable,
    to_frames,
    unsaid_output,
)

AGAIN_S = 0.01


class _NoSubshells:
    """Tells ipykernel 7 that this kernel runs everything in the main thread.

    ipykernel reads `shell_channel_thread.parent_thread` for a top-level await; a stock engine has no such
    thread, and the await then never returns.
    """

    parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


class RankKernel(IPythonParallelKernel):
    """A kernel that also answers hpcmagic's requests."""

    shell_class = Type(RankShell)
    shell_channel_thread = AnyTrait(_NoSubshells())
    _supports_kernel_subshells = False
    directory: SessionDirectory  # set once it is there

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shell_handlers[REQUEST] = self.answer_request
        self.control_handlers[INTERRUPT] = self.interrupt_main
        self.control_handlers[WHERE] = self.say_where
        self.control_handlers[JOIN] = self.expect_connection
        self.control_handlers[STEER] = self.show_simulation
        self.control_handlers[VARS] = self.say_variables
        self.control_handlers[HEALTH] = self.say_health
        self.log_file = RankLog(2)
        self.cells = CellRunner(self.shell, self.engine_id, self.log_file, self.publish_output)
        self._ours = False
        self._running = self._cell = ""  # the request that the main thread works on, and its cell
        self._began_s = time.monotonic()  # when it began with it
        self._answered: deque[str] = deque(maxlen=1000)
        self._given_up: deque[str] = deque(maxlen=1000)  # requests and cells to answer without doing them

    def _withdrawn(self) -> Reply | None:
        """Answer a request that was interrupted while it waited behind another one."""
        if not {self._running, self._cell} & set(self._given_up):
            return None
        return Reply(self.engine_id, raised=WITHDRAWN)

    async def answer_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Answer one message of the notebook's."""
        cell = parent["content"].get("cell", "")
        self._began_s = time.monotonic()
        self._running, self._cell = parent["header"]["msg_id"], cell or parent["header"]["msg_id"]
        try:
            reply = self._withdrawn() or await self._reply_to(parent["buffers"], cell)
        finally:
            self._answered.append(self._cell)
            self._running = self._cell = ""
        reply, frames = sendable(reply)
        content = {"status": "ok", "cell": cell, "rank": self.engine_id, "raised": _name_of(reply.raised)}
        self.session.send(stream, REPLY, content, parent=parent, ident=ident, buffers=frames)

    async def _reply_to(self, frames: Any, cell: str) -> Reply:
        try:
            message = from_frames(frames)
        except Exception as error:  # loading runs the user's imports and __setstate__: any error, told as the cell's
            return Reply(self.engine_id, raised=raised_by(error))
        return await self.cells.answer(message, cell)

    def publish_output(self, cell: str, piece: int, outputs: tuple[Output, ...]) -> None:
        """Send a piece of a running cell's output to whoever is connected, and to the journal."""
        content = {"cell": cell, "rank": self.engine_id, "piece": piece}
        try:
            frames = to_frames(outputs)
        except Exception as error:  # what a cell displays may refuse to pickle in its own way
            frames = to_frames(unsaid_output(error, "sent"))
        self.session.send(self.iopub_socket, OUTPUT, content, ident=OUTPUT.encode(), buffers=frames)

    def say_where(self, stream: Any, ident: Any, parent: Any) -> None:
        """Say where the main thread stands (called in the control thread: C code that holds the GIL delays it)."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001  # documented, for this
        found = asdict(stand(self.engine_id, self._running, frame))
        found["for_s"] = time.monotonic() - self._began_s
        self.session.send(stream, f"{WHERE}_reply", found, parent=parent, ident=ident)

    def say_variables(self, stream: Any, ident: Any, parent: Any) -> None:
        """Say what variables there are (called in the control thread, whether a cell runs or not)."""
        shell, everything = self.shell, bool(parent["content"].get("everything"))
        held = inventory(shell.user_ns, shell.user_ns_hidden, everything=everything)
        self.session.send(stream, f"{VARS}_reply", {"variables": to_rows(held)}, parent=parent, ident=ident)

    def say_health(self, stream: Any, ident: Any, parent: Any) -> None:
        """Say how this rank and its host are (in the control thread)."""
        found = asdict(health(self.directory, str(parent["content"].get("token", ""))))
        self.session.send(stream, f"{HEALTH}_reply", found, parent=parent, ident=ident)

    def expect_connection(self, stream: Any, ident: Any, parent: Any) -> None:
        """Note the keys of a connection that will come to the bulk port, say where (in the control thread)."""
        try:
            host, port, shares = self.cells.transfers.port.invite(Invitation(**parent["content"]))
            told = {"status": "ok", "host": host, "port": port, "shares": shares}
        except (OSError, HpcMagicError) as error:  # no descriptor, no address
            told = {"status": "error", "cause": getattr(error, "strerror", None) or str(error)}
        self.session.send(stream, f"{JOIN}_reply", told, parent=parent, ident=ident)

    def show_simulation(self, stream: Any, ident: Any, parent: Any) -> None:
        """Say whether this rank answers for a simulation; serve the connections that will come (control thread)."""
        told = self.cells.steering.watch(parent["content"])
        self.session.send(stream, f"{STEER}_reply", told, parent=parent, ident=ident)

    def interrupt_main(self, stream: Any, ident: Any, parent: Any) -> None:
        """Interrupt one request, if it runs, or keep it from running (called in the control thread)."""
        cell = parent["content"].get("cell", "")
        request = parent["content"].get("request") or cell
        if request in (self._running, self._cell):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        elif request not in self._answered and request not in self._given_up:
            self._given_up.append(request)
            if cell:
                self._publish_withdrawal(cell)
        told = {"status": "ok", "withdrawn": request in self._given_up}
        self.session.send(stream, f"{INTERRUPT}_reply", told, parent=parent, ident=ident)

    def _publish_withdrawal(self, cell: str) -> None:
        """Give every kernel and the journal the reply of a cell that will never begin: its turn may be far off."""
        content = {"status": "ok", "cell": cell, "rank": self.engine_id, "raised": WITHDRAWN.name}
        frames = to_frames(Reply(self.engine_id, raised=WITHDRAWN))
        self.session.send(self.iopub_socket, REPLY, content, ident=OUTPUT.encode(), buffers=frames)

    def on_sigint(self, _signal: int, frame: Any) -> None:
        """Raise KeyboardInterrupt if a cell's code is running, and nowhere else."""
        if patience.holds():  # our own code in a cell: it raises it as soon as nothing is half done
            return
        if users_frame(frame) or self.cells.transfers.interruptible:
            raise KeyboardInterrupt
        if self.cells.task is not None:
            self.cells.interrupted = True
            self.io_loop.asyncio_loop.call_soon_threadsafe(self.cells.task.cancel)
        elif self._running:  # IPython is between two of the cell's statements: the next one is not to be spared
            threading.Timer(AGAIN_S, self._interrupt_again, (self._running,)).start()

    def _interrupt_again(self, request: str) -> None:
        if request == self._running:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def pre_handler_hook(self) -> None:
        """Keep our SIGINT handler: the stock one may raise between cell and reply."""
        self.shell.serves_stock = not self._ours

    def post_handler_hook(self) -> None:
        """Let what is printed from now on go to the rank's log."""
        self.shell.serves_stock = False

    def set_parent(self, ident: Any, parent: Any, channel: str = "shell") -> None:
        """Note whether the request is one of ours."""
        if channel == "shell":
            self._ours = parent["header"]["msg_type"] == REQUEST
        super().set_parent(ident, parent, channel)

    def _publish_status(self, status: str, channel: str, parent: Any = None) -> None:
        if not (self._ours and channel == "shell"):
            super()._publish_status(status, channel, parent)


class PlainOutStream(OutStream):
    """ipykernel's stream without its pipe on the file descriptor: C code writes to the rank's log."""

    def __init__(self, session: Any, pub_thread: Any, name: str) -> None:
        super().__init__(session, pub_thread, name, watchfd=False)


ipp_engine.Kernel = RankKernel  # the one way in: the app names the class as a module global


class RankEngine(ipp_engine.IPEngine):
    """The engine application of one rank.

    Parameters
    ----------
    directory, request, connection
        The session's files.
    rank
        This rank; the id to ask for.
    comm
        MPI's COMM_WORLD, or None.
    """

    def __init__(
        self,
        directory: SessionDirectory,
        request: Request,
        connection: Connection,
        rank: int,
        comm: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.directory = directory
        self.request = request
        self.connection = connection
        self.id = rank
        self.comm = comm

    def find_connection_file(self) -> None:
        """Everything is in the session's directory."""

    def load_connection_file(self) -> None:
        """Take keys and addresses from the session's files."""
        keys = load_key_pair(self.directory, "engine")
        self.curve_publickey, self.curve_secretkey = keys.public, keys.secret
        self.curve_serverkey = self.request.server_public.encode()
        self.config.Session.key = load_signing_key(self.directory)
        interface = f"tcp://{self.connection.host}"
        self.location = self.connection.host
        self.registration_url = f"{interface}:{self.connection.engine['registration']}"
        self.connection_info = {**self.connection.engine, "interface": interface}
        be_careful_client(self.context)
        ipp_engine.util._disable_session_extract_dates()  # noqa: SLF001  # load_connection_file, replaced here, does so
        self.session = Envelope(parent=self)

    def init_engine(self) -> None:
        """Skip the stock search for a connection file."""
        sys.path.insert(0, "")
        self.log.setLevel(self.log_level)  # traitlets filters in the handler only: each record would be made
        self.load_connection_file()
        self.config.IPKernelApp.exec_lines = []
        self.config.IPKernelApp.exec_files = []

    def init_signal(self) -> None:
        """Interrupts reach the kernel; SIGTERM ends the rank at once, inside MPI too; SIGURG asks where it stands."""
        signal.signal(signal.SIGINT, self.kernel.on_sigint)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        where = os.open(self.directory.where(self.id), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        faulthandler.register(signal.SIGURG, where, all_threads=False)  # from C: needs no GIL

    def stream_output(self) -> None:
        """Send what the running cell has put out so far ahead."""
        if self.kernel is not None:
            _open_pipe(self.kernel.iopub_socket)
            self.kernel.cells.stream()

    def redirect_output(self, iopub_socket: Any) -> None:
        """Let a running cell collect what is printed."""
        super().redirect_output(iopub_socket)
        self.kernel.control_thread.io_loop.add_callback(_open_pipe, iopub_socket)
        shell = self.kernel.shell
        log = self.kernel.log_file
        log.last = os.open(self.directory.last_words(self.id), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        sys.stdout = CellStream("stdout", shell, sys.stdout, log)
        sys.stderr = CellStream("stderr", shell, sys.stderr, log)
        self.kernel.cells.transfers = Transfers(self.request, self.id, self.comm, shell.user_ns, describe)
        self.kernel.directory = self.directory
        self.kernel.cells.steering = Steering(self.kernel.cells.transfers.port)
        vars(builtins).update(rank=self.id, size=self.request.ntasks, comm=self.comm, input=no_input)


def _open_pipe(iopub: Any) -> None:
    """Open this thread's pipe to the one that sends, as ipykernel does when the thread first sends.

    A rank that a cell has left without descriptors could not do so any more, and would never answer.
    """
    _ = iopub._event_pipe  # noqa: SLF001  # a property that opens it; there is no public way


def _name_of(raised: Raised | None) -> str:
    return "" if raised is None else raised.name


def engine_config(directory: SessionDirectory) -> Any:
    """Give the configuration of a rank's engine."""
    config = ipp_engine.Config()
    config.ProfileDir.location = str(directory.path / "ipython")
    config.IPEngine.enable_nanny = False
    config.IPEngine.auto_create = True
    config.IPEngine.max_heartbeat_misses = 0
    config.IPEngine.timeout = 60.0
    config.IPEngine.out_stream_factory = PlainOutStream
    config.IPEngine.log_level = 40
    config.RankEngine = config.IPEngine
    config.InteractiveShell.colors = "NoColor"
    config.InteractiveShell.display_page = True  # what `x?` tells: nobody sees a pager of the rank's
    config.HistoryManager.enabled = False
    return config
