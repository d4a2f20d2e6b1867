"""What fault tests share: other kernels, the processes of a session, Ctrl-C, and waiting that ends."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from textwrap import dedent

import psutil
import pytest

import hpcmagic

SOON_S = 20.0  # within which a fault must be told of: generous, since the machine may be busy
HEAD = "import hpcmagic, os, signal, sys, threading, time\n"


class Kernel:
    """Another notebook's kernel: a process with hpcmagic, which says on its standard output how it goes."""

    def __init__(self, code):
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", HEAD + dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self.process.pid
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.said += line

    def wait_for(self, words):
        """Wait until it has said something."""
        eventually(lambda: words in self.said or (self.process.poll() is not None and not self._reader.is_alive()))
        assert words in self.said, self.said

    def go_on(self):
        """Let its `sys.stdin.readline()` return."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self):
        """End it as `kill -9` does."""
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def end(self):
        """Wait for its end; give what it has said."""
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self._reader.join()
            self.process.stdout.close()
            self.process.stdin.close()
        return self.said


def eventually(condition, seconds=30.0):
    """Wait until something holds; give it."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)
    return result


@contextmanager
def soon(seconds=SOON_S):
    """Whatever is done in here must not take long."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


def keeper_of(session):
    """The keeper's process."""
    return psutil.Process(session.keeper_state().keeper_pid)


def engines_below(keeper):
    """The processes of the ranks, in no order."""
    return [p for p in keeper.children(recursive=True) if p.cmdline()[1:3] == ["-m", "hpcmagic.engine"]]


def everyone(session):
    """The keeper, and all below it."""
    keeper = keeper_of(session)
    return [keeper, *keeper.children(recursive=True)]


def held_without_ranks(session, processes):
    """Whether of a session's processes only the keeper is left, which holds the job."""
    keeper = keeper_of(session)
    assert session.keeper_state().phase == "fallen"
    assert all_gone([p for p in processes if p != keeper])
    return keeper.is_running() and bool(eventually(lambda: not keeper.children()))


def all_gone(processes, seconds=SOON_S):
    """Whether all end in time."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def interrupt_after(*seconds):
    """Press Ctrl-C after so many seconds, once or more."""
    for after in seconds:
        timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()


def raised(session, source, kind=hpcmagic.RankError, **kwargs):
    """Give the error of a cell, of the kind that it must be."""
    with pytest.raises(kind) as caught:
        session.run(source, **kwargs)
    return caught.value


def in_thread(work):
    """Do something meanwhile; give a function that waits for what came of it, an error too."""
    outcome = []

    def do():
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=do)
    thread.start()

    def result(seconds=60):
        thread.join(seconds)
        stack = sys._current_frames().get(thread.ident)
        assert outcome, f"it never ended:\n{''.join(traceback.format_stack(stack))}"
        return outcome[0]

    return result


def lines_by_rank(shown):
    """What each rank has printed, line by line, whether the lines of ranks were folded or not."""
    lines = {}
    for ranks, text in re.findall(r"^\[([\d,-]+)\] (.*)$", shown, re.MULTILINE):
        for low, high in re.findall(r"(\d+)(?:-(\d+))?", ranks):
            for rank in range(int(low), int(high or low) + 1):
                lines.setdefault(rank, []).append(text)
    return lines
