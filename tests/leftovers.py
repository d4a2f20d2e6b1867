"""What a test leaves behind: processes, shared memory, temporary files, and threads and descriptors of pytest's own.

A watch looks before a test and after it. What has come meanwhile, and does not go within a few seconds, is left
behind. A session of a whole module is there before its tests, and may change: what belongs to it is excused.
"""

import gc
import os
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from hpcmagic.wire.envelope import give_memory_back
from hpcmagic.wire.shared import PREFIX

OURS = ("hpcmagic.keeper", "hpcmagic.engine")
MAY_TAKE_S = 8.0  # for the last processes to end: a rank looks for its keeper once a second
SHARED_MEMORY = Path("/dev/shm")
OPEN_MPI = "ompi."  # its folder for all runs of a user stays, what a run makes in it must not


class Watch:
    """One kind of thing; what it is called, what there is, what may stay, and how to clear it away."""

    what = ""

    def look(self):
        """Give a text by what tells one from another."""
        raise NotImplementedError

    def excused(self, *_):
        """Whether a thing may stay, given what was there before."""
        return False

    def clear(self, left):
        """Take away what would disturb the tests that follow."""


class Processes(Watch):
    """Keepers, engines and what starts engines: children of this process, or told of a directory of its tests."""

    what = "processes"

    def __init__(self, below):
        self.below = str(below)

    def look(self):
        """Give them by number and time of birth."""
        me = psutil.Process()
        children = {child.pid for child in me.children(recursive=True)}
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                argv = process.cmdline()
                named = any(word in OURS for word in argv)
                told = any(word.startswith(f"{self.below}{os.sep}") for word in argv)
                if named and (told or process.pid in children) and process.status() != psutil.STATUS_ZOMBIE:
                    found[process] = f"{process.pid} {' '.join(argv)}"
        return found

    def excused(self, process, before):
        """Whether it belongs to a keeper that was there before: a restart gives new ranks."""
        with suppress(psutil.NoSuchProcess):
            return any(parent in before for parent in process.parents())
        return True

    def clear(self, left):
        """Kill them."""
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)


class SharedMemory(Watch):
    """Files of this user in /dev/shm that no process has mapped any more: Open MPI's segments, semaphores; and ours."""

    what = "shared memory"

    def look(self):
        """Give their names."""
        found = {}
        for path in SHARED_MEMORY.iterdir() if SHARED_MEMORY.is_dir() else ():
            with suppress(OSError):
                if path.lstat().st_uid == os.getuid():
                    found[path] = f"{path}, {path.lstat().st_size} bytes"
        return found

    def excused(self, path, _before):
        """Whether it is in use, or another test run's.

        What a notebook shares with a rank loses its name as soon as both have mapped it: ours is none that may stay.
        """
        if path.name.startswith(PREFIX):
            return _locked_by_others(path)
        return any(str(path) in text for text in _maps())

    def clear(self, left):
        """Remove them."""
        for path in left:
            with suppress(OSError):
                path.unlink()


class TemporaryFiles(Watch):
    """What processes of the tests put into the system's folder for such, which is one of the tests' own."""

    what = "temporary files"

    def __init__(self, folder):
        self.folder = folder

    def look(self):
        """Give their paths."""
        top = list(self.folder.iterdir())
        below = [path for one in top if one.name.startswith(OPEN_MPI) for path in one.iterdir()]
        return {path: str(path) for path in (*top, *below) if not path.name.startswith(OPEN_MPI)}

    def excused(self, path, _before):
        """Whether the process whose number it bears still runs."""
        owner = path.name.removeprefix("pid.")
        return owner.isdigit() and psutil.pid_exists(int(owner))


class Threads(Watch):
    """Threads of this process: Python's, and those that ZeroMQ makes for each context."""

    what = "threads"

    def look(self):
        """Give their names by what tells them apart."""
        python = {
            thread: thread.name
            for thread in threading.enumerate()
            if getattr(thread, "function", None) is not give_memory_back  # ten seconds, and gone
        }
        native = {}
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):
                name = (task / "comm").read_text().strip()
                if name.startswith("ZMQ"):
                    native[int(task.name)] = name
        return {**python, **native}


class Descriptors(Watch):
    """Open files, pipes and sockets of this process."""

    what = "descriptors"

    def look(self):
        """Give what each number stands for."""
        ends = {c.fd: f" {c.laddr} → {c.raddr or 'listens'}" for c in psutil.Process().net_connections("all")}
        found = {}
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                target = str(entry.readlink())
                number = int(entry.name)
                found[number, target] = f"{number}: {target}{ends.get(number, '')}"
        return {key: text for key, text in found.items() if "/proc/" not in text}  # those of looking


def _locked_by_others(path):
    """Whether a process holds a lock on a file that is neither this one nor below it."""
    with suppress(OSError):
        inode = path.stat().st_ino
        own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return any(
            words[5].endswith(f":{inode}") and int(words[4]) not in own for words in locks if words[1] == "FLOCK"
        )
    return True


def _maps():
    for path in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            yield path.read_text()


@contextmanager
def nothing_left(*watches, may_take_s=MAY_TAKE_S):
    """Fail with a list of what has come meanwhile and stays."""
    before = [watch.look() for watch in watches]
    yield
    complaints = [_complaint(watch, seen, may_take_s) for watch, seen in zip(watches, before, strict=True)]
    if any(complaints):
        pytest.fail("\n".join(filter(None, complaints)), pytrace=False)


def _complaint(watch, before, may_take_s):
    deadline = time.monotonic() + may_take_s
    while left := {k: text for k, text in watch.look().items() if k not in before and not watch.excused(k, before)}:
        if time.monotonic() > deadline:
            watch.clear(list(left))
            return f"{watch.what} left behind by the test:\n" + "\n".join(f"    {text}" for text in left.values())
        gc.collect()  # what only a cycle holds is no leak
        time.sleep(0.05)
    return ""
