"""One poll of the real SLURM for several sessions in several kernels: how often it is asked, and told of its absence.

A `squeue` that counts stands before the real one. The pace is five times as quick as in life: fewer minutes to wait.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

BED = Path("/var/lib/hpcmagic-bed")
COUNTED = Path("/home/alice/counted")
QUICK, SLOW = 3.0, 12.0  # the pace
ASKED_IN_24_S = 5  # at 0, 3, 7.5, 14.3 and 24.4 s while nothing changes

SQUEUE = f"""\
#!/bin/sh
echo "$*" >>{COUNTED}/calls
exec {shutil.which("squeue")} "$@"
"""

KERNEL = f"""
import hpcmagic, json, sys, time
from hpcmagic.launch import poll
poll.PACE_S = ({QUICK}, {SLOW})

def told(what):
    print("@" + json.dumps(what), flush=True)

def look(sessions, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for s in sessions:
            before = time.monotonic()
            s.seen.glance()
            assert time.monotonic() - before < 0.5, "a glance waited"
        time.sleep(0.25)
    told([[s.seen.state.phase, s.seen.stale_s(), s.elapsed_s(), s.left_s()] for s in sessions])

for line in sys.stdin:
    exec(line)
"""


class Kernel:
    """A kernel of alice's on the hub that runs the lines it is given."""

    def __init__(self, cluster):
        self.process = subprocess.Popen(
            [Path(__file__).with_name("cluster"), "as", "alice", f"PATH={COUNTED}:/usr/local/bin:/usr/bin:/bin",
             cluster.python, "-u", "-c", dedent(KERNEL)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def does(self, line):
        """Let it run a line."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def says(self):
        """What it tells next; a kernel that is over fails."""
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise AssertionError("the kernel ended")


@pytest.fixture
def kernels(cluster):
    """Three kernels; whoever asks for the queue is counted."""
    for folder in (".local/state/hpcmagic", ".config/hpcmagic", ".cache/hpcmagic"):
        shutil.rmtree(Path("/home/alice", folder), ignore_errors=True)
    cluster.as_user("alice", "mkdir", "-p", str(COUNTED))
    (COUNTED / "squeue").write_text(SQUEUE)
    (COUNTED / "squeue").chmod(0o755)
    opened = [Kernel(cluster) for _ in range(3)]
    yield opened
    for kernel in opened:
        kernel.process.stdin.close()
        kernel.process.stdout.close()
        try:
            kernel.process.wait(15)
        except subprocess.TimeoutExpired:
            kernel.process.kill()
            kernel.process.wait(10)
    shutil.rmtree(COUNTED)


def looked(kernels, seconds):
    """Let all kernels look for some seconds; give what they saw at the end, and the questions asked meanwhile."""
    before = len(calls())
    for kernel in kernels:
        kernel.does(f"look(held, {seconds})")
    return [kernel.says() for kernel in kernels], calls()[before:]


def calls():
    """Every squeue so far."""
    return (COUNTED / "calls").read_text().splitlines()


@contextmanager
def away(cluster):
    """SLURM's controller is killed, and started again afterwards."""
    os.kill(int((BED / "run" / "slurmctld").read_text().split()[0]), signal.SIGKILL)
    try:
        yield
    finally:
        cluster.verb("raise")


def test_one_poll_for_all(cluster, kernels):
    """Six holds on two sessions in three kernels are one squeue at the pace; without SLURM all stand, as stale."""
    first, *others = kernels
    first.does("held = [hpcmagic.start(session=n, launcher='slurm', nodes=1, time='10', mpi='none') for n in 'ab']")
    first.does("told([s.job.job_id for s in held])")
    jobs = first.says()
    for kernel in others:
        kernel.does("held = [hpcmagic.attach(n) for n in 'ab']")
        kernel.does("told(len(held))")
    assert [kernel.says() for kernel in others] == [2, 2]

    seen, asked = looked(kernels, 24)
    assert 2 <= len(asked) <= ASKED_IN_24_S, asked
    assert all("--me" in one for one in asked)
    assert {phase for kernel in seen for phase, *_ in kernel} == {"running"}
    assert all(stale_s == 0 for kernel in seen for _, stale_s, *_ in kernel)
    for session in (0, 1):  # what all kernels say of a job's times is the same, whoever asked
        elapsed = [kernel[session][2] for kernel in seen]
        assert max(elapsed) - min(elapsed) < 3
        assert 595 <= sum(seen[0][session][2:]) <= 605

    with away(cluster):
        seen, asked = looked(kernels, 25)
        assert len(asked) <= ASKED_IN_24_S, asked
        assert {phase for kernel in seen for phase, *_ in kernel} == {"running"}
        assert all(stale_s > 1 for kernel in seen for _, stale_s, *_ in kernel), seen
    seen, _ = looked(kernels, SLOW + 6)
    assert [[stale_s for _, stale_s, *_ in kernel] for kernel in seen] == [[0, 0]] * 3

    cluster.as_user("alice", "scancel", jobs[1])
    deadline = time.monotonic() + SLOW + 20
    while [[phase for phase, *_ in kernel] for kernel in seen] != [["running", "ended"]] * 3:
        assert time.monotonic() < deadline, seen
        seen, _ = looked(kernels, 2)
    first.does("[s.stop() for s in held]")
    first.does("told('over')")
    assert first.says() == "over"
