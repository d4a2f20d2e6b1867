"""What else moves arrays between one process and four ranks, and hpcmagic itself, all by the same verbs.

    start()          from nothing to ranks that answer
    scatter(array)   cut along axis 0; on return every rank holds its shard in memory, as a numpy array
    gather()         the shards joined in rank order: one contiguous array in the calling process
    push(value)      on return every rank holds the value
    checksums(name)  CRC-32 by rank of its shard "x" or of the pushed value "y"
    drop()           the ranks let go of "x" and "y"
    forget()         the caller's side lets go of what it keeps beyond the user's own references
    stop()           until nothing of it runs any more

Every rival moves the bytes in the fastest way that its documentation tells. Memory that bytes arrive in is new in
every round, for all alike: `drop` and `forget` come before it, outside of the clock.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sides

FRAME = 1_000_000
RANK = str(Path(__file__).with_name("mpi_rank.py"))
TOKEN_MB = 4.0  # what a first transfer moves, through which channels are opened
MPI_HERE = {  # Open MPI: more ranks than cores, also as root (a container), nothing bound
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}


class Mover(Protocol):
    """One of those that are compared."""

    inside_s: float | None  # of the last verb, where the side has its own clock

    def start(self) -> None:
        """Start four ranks; they are ready on return."""

    def scatter(self, array: np.ndarray) -> None:
        """Cut an array over the ranks, as "x"."""

    def gather(self) -> np.ndarray:
        """Join the shards."""

    def push(self, value: Any) -> None:
        """Bind "y" on all ranks."""

    def checksums(self, name: str) -> list[int]:
        """Give the checksum of "x" or "y", by rank."""

    def drop(self) -> None:
        """Let the ranks go of both."""

    def forget(self) -> None:
        """Let the caller's side go of what it keeps."""

    def stop(self) -> None:
        """End everything that was started."""


def network_only() -> None:
    """Let sessions whose channels are opened from now on use the network, as if every rank were elsewhere."""
    from hpcmagic.wire import shared

    shared.ALLOWED = False


def shared_memory() -> None:
    """Let sessions whose channels are opened from now on use shared memory with ranks on this host."""
    from hpcmagic.wire import shared

    shared.ALLOWED = True


class HpcMagic:
    """A local session whose data go by the given path: `network_only` or `shared_memory`.

    The path is chosen when a channel is opened, which happens again once its keys have served their time: so it is
    named before each transfer.

    Parameters
    ----------
    opened
        Whether a start moves a little, so that all channels are open.
    """

    inside_s = None

    def __init__(
        self, path: Callable[[], None], ranks: int = sides.RANKS, mpi: str = "auto", *, opened: bool = True
    ) -> None:
        self.path = path
        self.opened = opened
        self.options: dict[str, Any] = {"nodes": ranks, "launcher": "local", "mpi": mpi}
        self.name = f"bench-{path.__name__.replace('_', '-')}-{ranks}"

    def start(self) -> None:
        """Start the ranks."""
        import hpcmagic

        with contextlib.redirect_stdout(io.StringIO()):
            self.session = hpcmagic.start(self.name, session_dir=str(Path.cwd() / "sessions"), **self.options)
        if self.opened:
            self.scatter(numbers(TOKEN_MB))
            self.gather()
            self.push(numbers(TOKEN_MB))
            self.drop()

    def scatter(self, array: np.ndarray) -> None:
        """Cut an array over the ranks."""
        self.path()
        self.session.scatter(x=array)

    def gather(self) -> np.ndarray:
        """Join the shards."""
        self.path()
        return self.session.gather("x")

    def push(self, value: Any) -> None:
        """Bind a value on all ranks."""
        self.path()
        self.session.push(y=value)

    def ask(self, expression: str) -> list[Any]:
        """Give the value of an expression, by rank."""
        return list(self.session.run(expression) or [])

    def checksums(self, name: str) -> list[int]:
        """Give the checksum of a value, by rank."""
        return self.ask(f"__import__('zlib').crc32({name})")

    def drop(self) -> None:
        """Let the ranks go of both values."""
        self.session.run("x = y = None")

    def forget(self) -> None:
        """Nothing is kept."""

    def engines(self) -> list[int]:
        """Give the ranks' process numbers."""
        return self.ask("__import__('os').getpid()")

    def stop(self) -> None:
        """End the session."""
        self.session.stop()


class IpyParallel(sides.Stock):
    """ipyparallel: `DirectView.scatter`, `gather` and `push`."""

    inside_s = None

    def __init__(self, *, curve: bool) -> None:
        super().__init__("local", curve=curve)

    def scatter(self, array: np.ndarray) -> None:
        """Cut an array over the engines."""
        self.view.scatter("x", array, block=True)

    def gather(self) -> np.ndarray:
        """Join the shards."""
        return self.view.gather("x", block=True)

    def push(self, value: Any) -> None:
        """Bind a value on all engines."""
        self.view.push({"y": value}, block=True)

    def checksums(self, name: str) -> list[int]:
        """Give the checksum of a value, by engine."""
        return self.ask(f"__import__('zlib').crc32({name})")

    def drop(self) -> None:
        """Let the engines go of both values."""
        self.view.execute("x = y = None", block=True)
        self.forget()

    def forget(self) -> None:
        """Let the client go of all results, which it would keep for ever; they hang in circles."""
        self.view.results.clear()
        self.view.history.clear()
        self.client.purge_everything()
        gc.collect()

    def engines(self) -> list[int]:
        """Give the engines' process numbers."""
        return self.ask("__import__('os').getpid()")


class Dask:
    """dask.distributed: four workers of one thread; with TLS, a certificate of its own for this cluster."""

    inside_s = None

    def __init__(self, *, tls: bool) -> None:
        self.tls = tls

    def start(self) -> None:
        """Start four workers."""
        import distributed

        security = distributed.Security.temporary() if self.tls else None
        self.cluster = distributed.LocalCluster(
            n_workers=sides.RANKS,
            threads_per_worker=1,
            processes=True,
            protocol="tls://" if self.tls else "tcp://",
            security=security,
            dashboard_address=":0",
            silence_logs=50,
        )
        self.client = distributed.Client(self.cluster, security=security)
        self.client.wait_for_workers(sides.RANKS)
        self.shards: list[Any] = []
        self.pushed: Any = None

    def scatter(self, array: np.ndarray) -> None:
        """Send a slice to each worker, straight from here."""
        self.shards = self.client.scatter(np.array_split(array, sides.RANKS), hash=False, direct=True)

    def gather(self) -> np.ndarray:
        """Fetch the slices straight from the workers, and join them."""
        return np.concatenate(self.client.gather(self.shards, direct=True))

    def push(self, value: Any) -> None:
        """Send a value to one worker, straight from here, and on from there to the others."""
        self.pushed = self.client.scatter(value, broadcast=True, hash=False, direct=True)

    def checksums(self, name: str) -> list[int]:
        """Give the checksum of a value, by worker."""
        if name == "x":
            return list(self.client.gather([self.client.submit(zlib.crc32, f, pure=False) for f in self.shards]))
        key = self.pushed.key
        return list(self.client.run(lambda dask_worker: zlib.crc32(dask_worker.data[key])).values())

    def drop(self) -> None:
        """Let go of the futures; wait until the workers hold nothing."""
        self.shards, self.pushed = [], None
        while any(self.client.run(lambda dask_worker: len(dask_worker.data)).values()):
            time.sleep(0.01)

    def forget(self) -> None:
        """Nothing is kept."""

    def stop(self) -> None:
        """End workers and scheduler."""
        self.client.close()
        self.cluster.close()


class ZeroMQ:
    """Bare ZeroMQ over TCP, unencrypted: a DEALER pair a receiver, frames of 1 MB that are not copied in Python.

    Arrays only. A receiver copies each frame to its place in the destination, which it has allocated before.
    """

    inside_s = None

    def start(self) -> None:
        """Start four receivers."""
        import zmq

        self.context = zmq.Context()
        self.sockets, self.processes = [], []
        for _ in range(sides.RANKS):
            socket = self.context.socket(zmq.DEALER)
            socket.sndhwm = 0  # all frames of a transfer wait in place: none is copied
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            process = multiprocessing.get_context("spawn").Process(target=_receive, args=(port,), daemon=True)
            process.start()
            self.sockets.append(socket)
            self.processes.append(process)
        self._ask(do="drop")

    def scatter(self, array: np.ndarray) -> None:
        """Send each receiver its slice, the slices' frames by turns."""
        self._send("x", np.array_split(array, sides.RANKS))

    def gather(self) -> np.ndarray:
        """Have all slices sent; each frame goes to its place in the whole."""
        import zmq

        heads = self._ask(do="gather")
        ends = [sum(math.prod(head["shape"]) for head in heads[: rank + 1]) for rank in range(sides.RANKS)]
        whole = np.empty(ends[-1], heads[0]["dtype"])
        rows = sum(head["shape"][0] for head in heads)
        raw = memoryview(whole).cast("B")
        at = [end * whole.itemsize for end in (0, *ends[:-1])]
        left = [math.prod(head["shape"]) * whole.itemsize for head in heads]
        poller, rank_of = zmq.Poller(), {socket: rank for rank, socket in enumerate(self.sockets)}
        for socket in self.sockets:
            poller.register(socket, zmq.POLLIN)
        while any(left):
            for socket, _ in poller.poll():
                rank, frame = rank_of[socket], socket.recv(copy=False).buffer
                raw[at[rank] : at[rank] + len(frame)] = frame
                at[rank] += len(frame)
                left[rank] -= len(frame)
        return whole.reshape(rows, *heads[0]["shape"][1:])

    def push(self, value: np.ndarray) -> None:
        """Send the whole array to each receiver."""
        self._send("y", [value] * sides.RANKS)

    def checksums(self, name: str) -> list[int]:
        """Give the checksum of a value, by receiver."""
        return [answer["crc"] for answer in self._ask(do="crc", name=name)]

    def drop(self) -> None:
        """Let the receivers go of both values."""
        self._ask(do="drop")

    def forget(self) -> None:
        """Nothing is kept."""

    def stop(self) -> None:
        """End the receivers."""
        for socket in self.sockets:
            socket.send_json({"do": "stop"})
        for process in self.processes:
            process.join()
        self.context.destroy()

    def _ask(self, **message: Any) -> list[Any]:
        for socket in self.sockets:
            socket.send_json(message)
        return [socket.recv_json() for socket in self.sockets]

    def _send(self, name: str, parts: list[np.ndarray]) -> None:
        for socket, part in zip(self.sockets, parts, strict=True):
            socket.send_json({"do": "hold", "name": name, "shape": part.shape, "dtype": part.dtype.str})
        raws = [memoryview(part).cast("B") for part in parts]
        for low in range(0, max(map(len, raws)), FRAME):
            for socket, raw in zip(self.sockets, raws, strict=True):
                if low < len(raw):
                    socket.send(raw[low : low + FRAME], copy=False)
        for socket in self.sockets:
            socket.recv_json()


def _receive(port: int) -> None:
    """Be one of ZeroMQ's receivers, as long as whoever started it lives."""
    import zmq

    threading.Thread(target=_end_with_parent, daemon=True).start()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    held: dict[str, np.ndarray] = {}
    while (message := socket.recv_json())["do"] != "stop":
        if message["do"] == "hold":
            array = np.empty(message["shape"], message["dtype"])
            raw, at = memoryview(array).cast("B"), 0
            while at < len(raw):
                frame = socket.recv(copy=False).buffer
                raw[at : at + len(frame)] = frame
                at += len(frame)
            held[message["name"]] = array
            socket.send_json({})
        elif message["do"] == "gather":
            socket.send_json({"shape": held["x"].shape, "dtype": held["x"].dtype.str})
            raw = memoryview(held["x"]).cast("B")
            for low in range(0, len(raw), FRAME):
                socket.send(raw[low : low + FRAME], copy=False)
        elif message["do"] == "crc":
            socket.send_json({"crc": zlib.crc32(held[message["name"]])})
        else:
            held.clear()
            socket.send_json({})
    context.destroy()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


class Mpi4Py:
    """mpi4py: `Scatter`, `Gather` and `Bcast` of buffers among the ranks of one mpiexec; rank 0 is the caller.

    This process tells rank 0 what to do through a pipe, and gets back the seconds between two barriers. Arrays
    travel between the two through a file in memory, outside of that clock. Arrays only, of a number of rows that
    four divides.

    Parameters
    ----------
    fresh
        Whether the memory that bytes arrive in is new each time, as it is with all others; else it is kept and
        used again, as a simulation would.
    """

    inside_s: float | None = None

    def __init__(self, *, fresh: bool = True) -> None:
        self.fresh = fresh

    def start(self) -> None:
        """Start four ranks."""
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm", prefix="bench-")
        command = ["mpiexec", "-n", str(sides.RANKS), sys.executable, RANK, "fresh" if self.fresh else "kept"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**MPI_HERE, **os.environ}, text=True
        )
        self.sent: dict[str, np.ndarray] = {}
        self._ask(do="drop")

    def scatter(self, array: np.ndarray) -> None:
        """Have rank 0 call Scatter."""
        self._at_rank_0("x", array)
        self.inside_s = self._ask(do="scatter")["s"]

    def gather(self) -> np.ndarray:
        """Have rank 0 call Gather; fetch what it got."""
        path = f"{self.folder.name}/whole.npy"
        self.inside_s = self._ask(do="gather", file=path)["s"]
        whole = np.load(path)
        os.unlink(path)
        return whole

    def push(self, value: np.ndarray) -> None:
        """Have rank 0 call Bcast."""
        self._at_rank_0("y", value)
        self.inside_s = self._ask(do="push")["s"]

    def checksums(self, name: str) -> list[int]:
        """Give the checksum of a value, by rank."""
        return list(self._ask(do="crc", name=name)["crc"])

    def drop(self) -> None:
        """Let the ranks go of both values."""
        self._ask(do="drop")

    def forget(self) -> None:
        """Nothing is kept."""

    def stop(self) -> None:
        """End the ranks."""
        self.process.communicate(json.dumps({"do": "stop"}) + "\n")
        self.folder.cleanup()

    def _ask(self, **message: Any) -> Any:
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def _at_rank_0(self, name: str, array: np.ndarray) -> None:
        """Let rank 0 hold an array of ours as its own, once."""
        if self.sent.get(name) is not array:
            path = f"{self.folder.name}/{name}.npy"
            np.save(path, array)
            self._ask(do="load", name=name, file=path)
            os.unlink(path)
            self.sent[name] = array


def everyone() -> dict[str, Mover]:
    """Give all sides: hpcmagic's two paths and the rivals."""
    found: dict[str, Mover] = {
        "hpcmagic, network": HpcMagic(network_only),
        "hpcmagic, shared memory": HpcMagic(shared_memory),
        "ipyparallel": IpyParallel(curve=False),
        "ipyparallel, CURVE": IpyParallel(curve=True),
        "Dask, tcp": Dask(tls=False),
        "Dask, TLS": Dask(tls=True),
        "ZeroMQ, plain": ZeroMQ(),
    }
    if sides.mpi_is_here():
        found["mpi4py"] = Mpi4Py()
        found["mpi4py, memory kept"] = Mpi4Py(fresh=False)
    return found


def numbers(megabytes: float) -> np.ndarray:
    """Give random float64 of that size; four divides their number."""
    count = max(1, round(megabytes * 1e6 / 8 / sides.RANKS)) * sides.RANKS
    return np.random.default_rng(4).random(count)
