"""One rank of `rivals.Mpi4Py`: does what lines of JSON tell rank 0, and answers each with one.

Ranks that wait for rank 0 sleep, so as not to take the processor time of whoever is measured meanwhile.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

NAP_S = 0.005
STOP = '{"do": "stop"}'


class Rank:
    """The arrays of one rank, and what it is told to do with them.

    Parameters
    ----------
    fresh
        Whether the memory that bytes arrive in is new each time.
    """

    def __init__(self, *, fresh: bool) -> None:
        self.comm = MPI.COMM_WORLD
        self.fresh = fresh
        self.sources: dict[str, np.ndarray] = {}  # on rank 0
        self.held: dict[str, np.ndarray] = {}
        self.whole: np.ndarray | None = None

    def run(self) -> None:
        """Do as told, until told to stop."""
        verbs: dict[str, Callable[..., Any]] = {
            "load": self.load,
            "scatter": self.scatter,
            "gather": self.gather,
            "push": self.push,
            "crc": self.crc,
            "drop": self.drop,
        }
        while (message := self._told()).get("do") != "stop":
            answer = verbs[message.pop("do")](**message)
            if self.comm.rank == 0:
                print(json.dumps(answer), flush=True)

    def load(self, name: str, file: str) -> None:
        """Let rank 0 read an array."""
        if self.comm.rank == 0:
            self.sources[name] = np.load(file)
        self.comm.Barrier()

    def scatter(self) -> dict[str, float]:
        """Cut rank 0's array over all."""
        source = self.sources.get("x")
        rows, rest, dtype = self.comm.bcast(None if source is None else (len(source), source.shape[1:], source.dtype))
        shard = self._room("x", (rows // self.comm.size, *rest), dtype)
        return self._timed(lambda: self.comm.Scatter(source, shard))

    def gather(self, file: str) -> dict[str, float]:
        """Join the shards on rank 0, and write what came."""
        shard = self.held["x"]
        if self.comm.rank == 0 and self.whole is None:
            self.whole = np.empty((len(shard) * self.comm.size, *shard.shape[1:]), shard.dtype)
        answer = self._timed(lambda: self.comm.Gather(shard, self.whole))
        if self.comm.rank == 0:
            np.save(file, self.whole)
        if self.fresh:
            self.whole = None
        return answer

    def push(self) -> dict[str, float]:
        """Send rank 0's value to all."""
        source = self.sources.get("y")
        shape, dtype = self.comm.bcast(None if source is None else (source.shape, source.dtype))
        if source is not None:
            self.held["y"] = source
        room = self._room("y", shape, dtype)
        return self._timed(lambda: self.comm.Bcast(room))

    def crc(self, name: str) -> dict[str, Any]:
        """Give the checksums of a value, by rank."""
        return {"crc": self.comm.gather(zlib.crc32(self.held[name]))}

    def drop(self) -> None:
        """Let go of what arrived, where its memory is not to be used again."""
        if self.fresh:
            self.held.clear()
        self.comm.Barrier()

    def _told(self) -> dict[str, Any]:
        if self.comm.rank > 0:
            while not self.comm.iprobe(source=0):
                time.sleep(NAP_S)
            return dict(self.comm.recv(source=0))
        message = json.loads(sys.stdin.readline() or STOP)  # whoever told us has gone
        for rank in range(1, self.comm.size):
            self.comm.send(message, rank)
        return dict(message)

    def _room(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if name not in self.held or self.held[name].shape != shape:
            self.held[name] = np.empty(shape, dtype)
        return self.held[name]

    def _timed(self, work: Callable[[], None]) -> dict[str, float]:
        self.comm.Barrier()
        began_s = time.perf_counter()
        work()
        self.comm.Barrier()
        return {"s": time.perf_counter() - began_s}


if __name__ == "__main__":
    Rank(fresh=sys.argv[1] == "fresh").run()
