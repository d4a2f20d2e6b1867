"""python -m hpcmagic.engine DIRECTORY: one rank of a session.

1  stdout and stderr become the rank's own log (0600)
2  MPI starts; a world of the wrong size ends the rank with WRONG_WORLD, so that the keeper tries otherwise
3  wait for connection.json, register with the controller under the rank's number
4  answer requests until SIGTERM, or until the agent finds the keeper gone
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from hpcmagic.descendants import adopt_orphans
from hpcmagic.engine.agent import Agent
from hpcmagic.rendezvous import NO_MPI, WRONG_WORLD, Connection, Request, SessionDirectory

LINE_BUFFERED = 1  # _IOLBF
RANK_VARIABLES = ("HPCMAGIC_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


def main(path: str) -> None:
    """Run one rank."""
    os.umask(0o077)
    adopt_orphans()
    directory = SessionDirectory(Path(path))
    request = directory.read_record(directory.request, Request)
    if request is None:
        sys.exit(f"hpcmagic.engine: {directory.request} is not there")
    with_mpi = "--no-mpi" not in sys.argv
    comm = join_world(request) if with_mpi else None
    rank = comm.Get_rank() if comm is not None else rank_from_environment()
    own_log(directory, rank)
    # ipykernel would load debugpy, 7 MB a rank. None here is how the language says "not to be found" (its import
    # system's documentation); the type of sys.modules does not allow for it.
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    importlib.import_module("ipykernel.debugger")  # now, while debugpy is not there

    from hpcmagic.engine.kernel import RankEngine, engine_config

    del sys.modules["debugpy"]
    agent = Agent(directory, request)
    connection = wait_for_connection(directory, agent)
    engine = RankEngine(directory, request, connection, rank, comm, config=engine_config(directory))
    engine.initialize([])
    agent.stream = engine.stream_output
    agent.start()
    with contextlib.suppress(SystemExit):
        engine.start()
    leave(comm)


def join_world(request: Request) -> Any:
    """Start MPI and check its size; end the rank if it cannot be."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        print(f"hpcmagic.engine: no MPI: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(NO_MPI)
    size = MPI.COMM_WORLD.Get_size()
    if size != request.ntasks:
        print(f"hpcmagic.engine: MPI world of {size}, not {request.ntasks}", file=sys.stderr)
        sys.exit(WRONG_WORLD)
    # mpi4py's first pickled reduction doubles the communicator with the interpreter in its hands: a rank that waited
    # for others in there could not even say so
    MPI.COMM_WORLD.allreduce(0)
    return MPI.COMM_WORLD


def rank_from_environment() -> int:
    """Give the rank that whoever started this process put into its environment."""
    for name in RANK_VARIABLES:
        if name in os.environ:
            return int(os.environ[name])
    return 0


def own_log(directory: SessionDirectory, rank: int) -> None:
    """Let the process's standard streams write to the rank's own log."""
    log = os.open(directory.rank_log(rank), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    libc = ctypes.CDLL(None)
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, LINE_BUFFERED, 0)  # C code's lines come as they are


def wait_for_connection(directory: SessionDirectory, agent: Agent) -> Connection:
    """Wait until the keeper's controller listens."""
    while True:
        connection = directory.read_record(directory.connection, Connection)
        if connection is not None:
            return connection
        agent.require_keeper()
        time.sleep(0.02)


def leave(comm: Any) -> None:
    """End the process: MPI in order, ZeroMQ's threads not waited for."""
    if comm is not None:
        from mpi4py import MPI

        MPI.Finalize()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
