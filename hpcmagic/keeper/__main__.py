"""python -m hpcmagic.keeper DIRECTORY: the job's batch step, which holds one session.

1  read the request; start the ranks at once: they load while the controller opens its ports
2  wait until all are registered; a way that gives a wrong MPI world is given up for the next
3  ready: hold the session until SIGTERM comes, or nobody has come for it;
   when a notebook asks, end the ranks and start others in the same job
4  fallen: the ranks have ended by themselves; hold the job a while longer, for a notebook that asks
5  write the cause into state.json, end the ranks, remove the keys
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcmagic.descendants import adopt_orphans, end_orphans, reap_orphans
from hpcmagic.errors import HpcMagicError, LaunchError
from hpcmagic.keeper.ranks import Ranks, Starter, expected_nodes, first_cause, job_runs_on, starters
from hpcmagic.keeper.watch import Allowance, Hold, Idle, Watch
from hpcmagic.rendezvous import (
    NO_MPI,
    TERMINATED,
    WRONG_WORLD,
    JobRecord,
    KeeperState,
    Limits,
    Request,
    SessionDirectory,
)
from hpcmagic.wire.addresses import listen_address
from hpcmagic.wire.beats import Beat
from hpcmagic.wire.history import read_last_words
from hpcmagic.wire.messages import DUMP, KEEP, RESTART

LOOK_MS = 250
LIMITS_S = 1.0  # how often limits.json is looked at
MISSED_LOOKS = 20  # a file system may be away for a moment
RETRIES = 1  # of a restart: MPI's start may hang on a loaded node
FIRST_WORDS = 240
OWN_LIMITS = ("(no_client_limit)", "(idle_limit)", "(%budget)")  # how causes end that are no failure
IPYTHON_FOLDERS = ("db", "log", "nbextensions", "pid", "security", "startup", "static")


class Keeper:
    """Holds one session from its first rank to its end."""

    def __init__(self, directory: SessionDirectory, request: Request) -> None:
        self.directory = directory
        self.request = request
        self.job_began_s = time.monotonic()
        self.idle = Idle(request.idle_limit_s, self.job_began_s)
        self.allowance, self._limits_at_s = Allowance(), 0.0
        self.works = False  # whether a cell ran since the last look
        here = socket.gethostname().partition(".")[0]
        self.state = KeeperState(
            "starting",
            nodes=expected_nodes(request, os.environ, here),
            keeper_pid=os.getpid(),
            keeper_host=here,
        )
        self.tell()
        self.log = os.open(directory.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.ways: list[Starter] = starters(request, directory)
        self.failed: list[str] = []
        self.stopping = ""
        self.untold = ""  # why the state is not written at the moment
        self.cause = ""
        self.missed = 0
        self.restart_asked = self.walltime_near = False
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGUSR1, self._on_walltime)

    def _on_term(self, *_: Any) -> None:
        self.stopping = TERMINATED

    def _on_walltime(self, *_: Any) -> None:
        self.walltime_near = True

    def _on_restart(self) -> None:
        self.restart_asked = True

    def _on_dump(self) -> None:
        self.ranks.dump()

    def _on_keep(self) -> None:
        self.idle.keep(time.monotonic())
        self.controller.presence.beat()

    def beat(self) -> Beat:
        """Say how things stand, for whoever is connected."""
        now = time.monotonic()
        ran_s = now - self.job_began_s
        warning = "; ".join(filter(None, (self.state.warning, self.untold)))
        idle_left_s = self.idle.left_s(now) if self.state.phase == "ready" else None
        return Beat(
            warning, ran_s, self.idle.total_s(now), self.controller.busy(), idle_left_s, self.allowance.left_s(ran_s)
        )

    def tell(self, **changes: Any) -> None:
        """Change the state and write it down."""
        self.state = replace(self.state, **changes)
        self.directory.rewrite_record(self.directory.state, self.state)

    def try_to_tell(self, **changes: Any) -> None:
        """Do so of what can wait: a disk that is full now does not end a session."""
        try:
            self.tell(**changes)
            self.untold = ""
        except LaunchError as error:
            self.untold = error.message.rstrip(".")

    def run(self) -> int:
        """Hold the session; give the keeper's exit status."""
        if not self.ways:
            return self.end(f"no way to start the ranks with mpi = {self.request.mpi!r} was found on this node")
        self.start_ranks()
        from hpcmagic.keeper.controller import Controller, controller_config  # the ranks load meanwhile

        host = listen_address(self.request)
        self.controller = Controller(
            self.directory, self.request, host, config=controller_config(self.directory, host)
        )
        self.controller.initialize([])
        signal.signal(signal.SIGTERM, self._on_term)
        self.controller.registered = self.look
        self.controller.verbs = {RESTART: self._on_restart, DUMP: self._on_dump, KEEP: self._on_keep}
        self.controller.presence.tell = self.beat
        self.controller.begin()
        from tornado.ioloop import PeriodicCallback

        PeriodicCallback(self.look, LOOK_MS).start()
        self.controller.loop.start()
        return self.end(self.cause)

    def start_ranks(self) -> None:
        """Start the ranks in the next way."""
        way = self.ways.pop(0)
        self.began_s = time.monotonic()
        self.log_begins = os.fstat(self.log).st_size
        self.ranks = Ranks(way, self.request, self.log)
        self.tell(starter=way.name, ranks=(), note="; ".join(self.failed))

    def restart(self) -> None:
        """Start other ranks in the same job, in the way that worked."""
        self.restart_asked = False
        self.controller.forget_ranks("the ranks were restarted")
        self.tell(phase="starting", ranks=(), stuck={}, restarts=self.state.restarts + 1, cause="", held_until=0.0)
        self.ranks.end(job_goes_on=True)
        end_orphans()
        self.ways, self.failed = [self.ranks.starter] * (1 + RETRIES), []
        self.start_ranks()

    def look(self) -> None:
        """See how things stand; stop the loop when the session must end."""
        try:
            cause = self.stopping or self._directory_gone() or self._overspent() or self._look()
        except HpcMagicError as error:
            cause = error.message
        if cause and not self.cause:
            self.cause = cause
            self.controller.loop.stop()

    def _directory_gone(self) -> str:
        """Say so when somebody has removed the session's directory: nobody could find the session again."""
        self.missed = 0 if self.directory.request.exists() else self.missed + 1
        return "its directory was removed" if self.missed > MISSED_LOOKS else ""

    def _overspent(self) -> str:
        """Give the cause of the end when the budget is spent, whatever the ranks do; note whether a cell runs."""
        now = time.monotonic()
        self.works = self.controller.has_worked()
        self.idle.note(now, busy=self.works)
        if now >= self._limits_at_s:
            self._limits_at_s = now + LIMITS_S
            with contextlib.suppress(HpcMagicError):  # it is damaged: what was known holds
                limits = self.directory.read_record(self.directory.limits, Limits) or Limits()
                self.allowance = Allowance(limits.run_s, limits.warn_s, limits.budget)
        return self.allowance.cause(now - self.job_began_s)

    def _look(self) -> str:
        if self.state.phase == "fallen":
            return self._look_fallen()
        status = self.ranks.ended()
        if self.state.phase == "starting":
            return self._look_starting(status)
        if status is not None:
            said = first_cause(self.log_text())
            return self._fall(said or self.ranks.who_ended() + status_words(status) + self.first_words())
        if self.restart_asked:
            self.restart()
            return ""
        self._tell_news()
        now, clients = time.monotonic(), len(self.controller.presence.names)
        return self.watch.decide(now, clients=clients, busy=self.works) or self.idle.cause(now)

    def _fall(self, how: str) -> str:
        """Hold the job without its ranks, for a restart; where that cannot be, give the cause of the end."""
        cause, hold_s = f"the ranks ended: {how}", self.request.hold_s
        if not hold_s or not job_runs_on(self.request, how) or self.stopping:
            return cause
        self.note_last_words()
        limits = filter(None, (self.request.hold_alone_s, self.request.no_client_limit_s))
        self.hold = Hold(hold_s, min(limits, default=hold_s), time.monotonic())
        self.tell(phase="fallen", ranks=(), stuck={}, cause=cause, held_until=time.time() + hold_s)
        self.controller.forget_ranks(cause)
        self.controller.heartmonitor_process.slow_down()
        return ""

    def _look_fallen(self) -> str:
        if not self.ranks.over:  # only now: notebooks should hear of it first
            self.ranks.end(job_goes_on=True)
            end_orphans()
        reap_orphans()
        if self.restart_asked:
            self.restart()
            return ""
        self._tell_news()
        clients = len(self.controller.presence.names)
        return self.state.cause if self.hold.is_over(time.monotonic(), clients=clients) else ""

    def _tell_news(self) -> None:
        """Write down who is connected and what notebooks should warn of, when that has changed."""
        near = "its walltime is nearly reached: SLURM ends the job in about a minute" if self.walltime_near else ""
        spent = self.allowance.warning(time.monotonic() - self.job_began_s)
        warning = "; ".join(filter(None, (near, spent, self.controller.journal.trouble)))
        clients, stuck = tuple(self.controller.presence.names), dict(self.controller.journal.stuck)
        if (clients, warning, stuck) != (self.state.clients, self.state.warning, self.state.stuck) or self.untold:
            self.try_to_tell(clients=clients, warning=warning, stuck=stuck)

    def _look_starting(self, status: int | None) -> str:
        late = time.monotonic() - self.began_s > self.request.start_timeout_s
        if status is not None or late:
            why = (
                status_words(status) if status is not None else f"not ready within {self.request.start_timeout_s:g} s"
            )
            self.ranks.end()
            self.failed.append(f"{self.ranks.starter.name}: {why}{self.first_words()}")
            if self.state.restarts and self.ways:
                self.controller.forget_ranks("the ranks were restarted")
            elif not self.ways or self.controller.ranks():  # half of them came: the way was right, and too slow
                return "the ranks did not start: " + "; ".join(self.failed)
            self.start_ranks()
            return ""
        ranks = self.controller.ranks()
        if ranks == tuple(range(self.request.ntasks)):
            way = self.ranks.starter
            self.controller.heartmonitor_process.slow_down()
            self.log_begins = os.fstat(self.log).st_size
            self.watch = Watch(self.request.no_client_limit_s, time.monotonic())
            self.idle.keep(time.monotonic())
            self.tell(phase="ready", ranks=ranks, world=self.request.ntasks if way.mpi else 0)
        elif ranks != self.state.ranks:
            self.tell(ranks=ranks)
        return ""

    def log_text(self) -> str:
        """Give the beginning of what the log said since the start, or since all was ready."""
        with self.directory.log.open(errors="replace") as log:
            log.seek(self.log_begins)
            return log.read(4096)

    def first_words(self) -> str:
        """Give what the log said first since the start, or since all was ready: the cause stands there."""
        lines = [line.strip() for line in self.log_text().splitlines()]
        noise = re.compile(r"show_help\.c|^\[warn\] Epoll")  # what Open MPI 4 stumbles over as it ends helps nobody
        said = " ".join(line for line in lines if line.strip("-=* ") and not noise.search(line))
        return f" – «{said[:FIRST_WORDS]}{'…' if len(said) > FIRST_WORDS else ''}»" if said else ""

    def end(self, cause: str) -> int:
        """Say why, end the ranks, forget the keys."""
        if self.state.phase == "fallen":
            own = cause.endswith(OWN_LIMITS)
            cause = f"{self.state.cause}; held for a restart, {cause}" if own else self.state.cause
        if hasattr(self, "controller"):
            self.note_last_words()
        with contextlib.suppress(HpcMagicError):  # whoever stopped us may have put the directory aside
            self.tell(phase="ended", cause=cause, clients=())
        if hasattr(self, "controller"):
            self.controller.journal.on_lost(range(self.request.ntasks), cause)
        if hasattr(self, "ranks"):
            self.ranks.end()
        end_orphans()
        self.directory.forget_keys()
        return 0 if self.stopping or cause.endswith(OWN_LIMITS) else 1

    def note_last_words(self) -> None:
        """Write down what ranks had put out at the last moment; who hears of the end reads it."""
        for rank in range(self.request.ntasks):
            words = read_last_words(self.directory.last_words(rank))
            if words is not None:
                self.controller.journal.on_last_words(rank, words)


def status_words(status: int) -> str:
    """Say an exit status in words."""
    if status == WRONG_WORLD:
        return "MPI's world had the wrong size"
    if status == NO_MPI:
        return "no MPI: mpi4py or its library cannot be loaded"
    if status < 0:
        known = -status in set(signal.Signals)
        return f"killed by {signal.Signals(-status).name if known else f'signal {-status}'}"
    return f"exit status {status}"


def others_job(directory: SessionDirectory, request: Request, environment: Mapping[str, str]) -> str:
    """Give the job that a session is, if it is not this one, or nothing.

    An sbatch that was not answered in time may have queued a job all the same, and its session was begun anew.
    """
    record, own = directory.read_record(directory.job, JobRecord), environment.get("SLURM_JOB_ID", "")
    if record is None or request.launcher != "slurm" or own in {"", record.job_id}:
        return ""
    return record.job_id


def main(path: str) -> None:
    """Run the keeper of one session."""
    os.umask(0o077)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65536), hard))
    adopt_orphans()
    directory = SessionDirectory(Path(path))
    for folder in IPYTHON_FOLDERS:
        (directory.path / "ipython" / folder).mkdir(parents=True, exist_ok=True)
    request = directory.read_record(directory.request, Request)
    if request is None:
        sys.exit(f"hpcmagic.keeper: {directory.request} is not there")
    if other := others_job(directory, request, os.environ):
        sys.exit(f"hpcmagic.keeper: session {request.session} is job {other}'s: this one has nothing to do")
    keeper = Keeper(directory, request)
    try:
        status = keeper.run()
    except HpcMagicError as error:
        status = keeper.end(error.message)
    os._exit(status)  # ZeroMQ's and ipyparallel's threads would linger


if __name__ == "__main__":
    main(sys.argv[1])
