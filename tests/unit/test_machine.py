"""What there is of memory and cores for a notebook: the machine's, or what control groups of either version allow."""

import os
import subprocess
import sys
import time

import pytest

from hpcmagic.notebook import machine

MEMINFO = "MemTotal: 32768 kB\nMemFree: 1 kB\nMemAvailable: 8192 kB\nHugePages_Total: 0\n"
KB = 1024


@pytest.fixture
def roots(tmp_path):
    """A /proc and a /sys/fs/cgroup of the test's own: a machine of 32 MB, of which 24 are in use."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    write(proc / "meminfo", MEMINFO)
    groups.mkdir()
    return proc, groups


def write(path, text):
    """Write a file, its directories first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_machine_alone(roots):
    """Without control groups the machine's own memory counts."""
    room = machine.room(*roots)
    assert (room.nbytes, room.group) == (32768 * KB, None)
    assert room.used_nbytes(roots[0]) == 24576 * KB
    assert machine.cores(*roots) == len(os.sched_getaffinity(0))


def test_second_version(roots):
    """Of version 2 the strictest limit on the way up applies; files that are only cached are not in use."""
    proc, groups = roots
    write(proc / "self" / "cgroup", "0::/user/kernel\n")
    write(groups / "user" / "kernel" / "memory.max", "max\n")
    write(groups / "user" / "kernel" / "cpu.max", "max 100000\n")
    write(groups / "user" / "memory.max", f"{8 << 20}\n")
    write(groups / "user" / "memory.current", f"{7 << 20}\n")
    write(groups / "user" / "memory.stat", f"anon 5\ninactive_file {2 << 20}\n")
    write(groups / "user" / "cpu.max", "50000 100000\n")
    room = machine.room(*roots)
    assert (room.nbytes, room.group) == (8 << 20, groups / "user")
    assert room.used_nbytes(proc) == 5 << 20
    assert machine.cores(*roots) == 0.5


def test_first_version(roots):
    """Of version 1 each controller has a tree of its own, and `no limit` is a number beyond any machine."""
    proc, groups = roots
    write(proc / "self" / "cgroup", "9:name=systemd:/\n4:memory:/job/step\n2:cpu,cpuacct:/job\n0::/\n")
    write(groups / "memory" / "job" / "step" / "memory.limit_in_bytes", "9223372036854771712\n")
    write(groups / "memory" / "job" / "memory.limit_in_bytes", f"{16 << 20}\n")
    write(groups / "memory" / "job" / "memory.usage_in_bytes", f"{3 << 20}\n")
    write(groups / "memory" / "job" / "memory.stat", f"cache 1\ntotal_inactive_file {1 << 20}\n")
    write(groups / "cpu" / "job" / "cpu.cfs_quota_us", "25000\n")
    write(groups / "cpu" / "job" / "cpu.cfs_period_us", "100000\n")
    room = machine.room(*roots)
    assert (room.nbytes, room.group) == (16 << 20, groups / "memory" / "job")
    assert room.used_nbytes(proc) == 2 << 20
    assert machine.cores(*roots) == 0.25


@pytest.mark.parametrize("path", ["/docker/abc", "/../abc", "/"])
def test_in_a_container(roots, path):
    """Where the path that /proc tells is not there, the root is the container's own group."""
    proc, groups = roots
    write(proc / "self" / "cgroup", f"0::{path}\n")
    write(groups / "memory.max", f"{4 << 20}\n")
    write(groups.parent / "abc" / "memory.max", f"{1 << 20}\n")  # which is not this process's
    assert machine.room(*roots) == machine.Room(4 << 20, groups)


def test_limit_beyond_the_machine(roots):
    """A limit that is larger than the machine is none."""
    write(roots[0] / "self" / "cgroup", "0::/\n")
    write(roots[1] / "memory.max", f"{1 << 40}\n")
    assert machine.room(*roots).group is None


def test_no_limit_of_cores(roots):
    """A quota of -1 is none."""
    write(roots[0] / "self" / "cgroup", "1:cpu:/\n")
    write(roots[1] / "cpu" / "cpu.cfs_quota_us", "-1\n")
    write(roots[1] / "cpu" / "cpu.cfs_period_us", "100000\n")
    assert machine.cores(*roots) == len(os.sched_getaffinity(0))


def test_here():
    """On this machine the numbers are there, and agree with each other."""
    room = machine.room()
    assert 0 < machine.resident_nbytes() < room.nbytes
    assert 0 < room.used_nbytes() <= room.nbytes * 1.1
    assert machine.cores() > 0


def test_queued(roots):
    """The time in which others had the cores is read in seconds; where it is not counted it is none."""
    assert machine.queued_s(roots[0]) == 0.0
    write(roots[0] / "self" / "schedstat", "508701708 1500000000 6\n")
    assert machine.queued_s(roots[0]) == 1.5


def test_children():
    """What a process has started is found, with its children; of who is gone nothing is told."""
    busy = "import time\nwhile time.process_time() < 0.1: pass\nprint(1, flush=True)\ninput()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        below = machine.started(child.pid)
        assert len(below) == 1
        assert {child.pid, *below} <= set(machine.started())
        assert machine.resident_nbytes(below[0]) > 1 << 20
        busy_s, began_s = machine.cpu_of(below[0])
        assert 0.05 < busy_s < 60
        assert -1 < time.clock_gettime(time.CLOCK_BOOTTIME) - began_s < 60
        child.communicate(b"\n")
    assert child.pid not in machine.started()
    assert machine.resident_nbytes(child.pid) == 0
    assert machine.cpu_of(child.pid) == (0.0, 0.0)
