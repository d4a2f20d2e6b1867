"""What dies in a cluster, killed for real: who says so, how soon, in which words, and what survives it.

Each test starts a session from a notebook on the hub, causes one fault, and listens to what the notebook says.
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import dedent

import pytest

BED = Path("/var/lib/hpcmagic-bed")
SESSION = Path("/home/alice/.local/state/hpcmagic/t")
SOON = 25.0  # seconds for a cause to arrive: the session looks each second, SLURM may take ten to be sure
SLEEPS = "import time; time.sleep(200)"

NOTEBOOK = """
import hpcmagic, json, os, signal, subprocess, sys, time
from hpcmagic.notebook import output

def told(kind, *what):
    print("@" + json.dumps([kind, *what], default=list), flush=True)

output.StatusLine.update = lambda self, text: told("line", text)
output.quiet = lambda text: told("quiet", text)
STATUS = output.StatusLine.update

def attempt(call):
    try:
        value = call()
    except hpcmagic.HpcMagicError as error:
        told("error", type(error).__name__, str(error))
    else:
        told("value", value)

def start(**options):
    s = hpcmagic.start(session="t", launcher="slurm", **{"nodes": 2, "time": "10", **options})
    s.run("rank * 10")
    told("ready", s.job.job_id, s.keeper_state().keeper_pid, s.run("import os; os.getpid()"))
    return s
"""

AFTER = """
late = hpcmagic.attach("t")
told("kept", late.cells[0].result(), late.cells[-1].state)
attempt(lambda: late.run("rank"))
attempt(lambda: hpcmagic.start(session="t", launcher="slurm", unasked=False))
told("why", late.why())
"""


class Notebook:
    """A kernel of alice's, on the hub: what it says is heard as it comes.

    It says lines ``@["kind", …]``; `hears` gives what stands behind the next of a kind.
    """

    def __init__(self, cluster, code, *, host="hub", variables=()):
        who = ("as", "alice") if host == "hub" else ("on", host, "setpriv", "--reuid=alice", "--regid=alice",
               "--init-groups", "--reset-env", "env", "--chdir=/home/alice", "LANG=C.UTF-8",
               "PATH=/usr/local/bin:/usr/bin:/bin")  # fmt: skip
        self.process = subprocess.Popen(
            [Path(__file__).with_name("cluster"), *who, *variables, cluster.python, "-u", "-c", NOTEBOOK + dedent(code)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines = []
        self._fresh = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with self.process.stdout as said:
            for line in said:
                self.lines.append(line)
                self._fresh.put(line)
        self._fresh.put(None)

    def hears(self, kind, seconds, containing=""):
        """Give what it says next of a kind, and fail when that does not come in time."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._fresh.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                pytest.fail(f"no {kind} {containing!r} within {seconds} s; it said:\n{''.join(self.lines)}", pytrace=False)
            if line.startswith("@"):
                what, *said = json.loads(line[1:])
                if what == kind and containing in str(said[0]):
                    return said[0] if len(said) == 1 else said

    def error(self, seconds, *words):
        """Give the text of the next error, whose words are all there, and whose second line is a mend."""
        name, text = self.hears("error", seconds)
        for word in words:
            assert word in text, text
        assert "\n→ " in text
        return name, text

    def go_on(self):
        """Let its `input()` return."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self):
        """End it as a crash would."""
        self.process.kill()
        self.process.wait(10)

    def over(self, seconds=20):
        """Wait for its end, which must be a good one; give all that it said."""
        self.process.stdin.close()
        assert self.process.wait(seconds) == 0, "".join(self.lines)
        self._reader.join(5)
        return "".join(self.lines)


@pytest.fixture
def notebook(cluster):
    """Open kernels of alice's; her sessions start from nothing."""
    for folder in (".local/state/hpcmagic", ".config/hpcmagic", ".config/dask"):
        shutil.rmtree(Path("/home/alice", folder), ignore_errors=True)
    opened = []

    def open_notebook(code, **kwargs):
        opened.append(Notebook(cluster, code, **kwargs))
        return opened[-1]

    yield open_notebook
    for kernel in opened:
        kernel.process.stdin.close()  # an `input()` ends with an error
        with suppress(subprocess.TimeoutExpired):
            kernel.process.wait(0.5)
        if kernel.process.poll() is None:
            kernel.kill()
        kernel._reader.join(5)


def eventually(condition, seconds=20.0):
    """Wait until something is so; fail when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def daemon(name):
    """The PID of a daemon of the bed, or of a host, as recorded when it was started."""
    return int((BED / "run" / name).read_text().split()[0])


def require_over(cluster, kernel, cell="lost"):
    """After the end: no job, nothing is bought again by itself, and finished results can be read."""
    kernel.go_on()
    assert kernel.hears("kept", 20) == [[0, 10], cell]
    said = kernel.error(15, "has ended")
    assert kernel.error(15, "has ended", "%%remote --nodes") == said, "the same cause, whoever asks"
    whole = kernel.hears("why", 10)
    assert kernel.over()
    eventually(lambda: not cluster.jobs())
    return whole


RUNNING = f"""
s = start()
attempt(lambda: s.run({SLEEPS!r}))
input()
{AFTER}
"""


@pytest.mark.parametrize(("who", "words"), [("alice", "cancelled by you"), ("root", "root, an administrator")])
def test_scancel_in_mid_cell(cluster, notebook, who, words):
    """A job that somebody cancels ends its cell within seconds; who it was is named."""
    kernel = notebook(RUNNING)
    job, _, _ = kernel.hears("ready", 30)
    kernel.hears("line", 10, "running on 2 ranks")
    cancel = cluster.hub if who == "root" else lambda *command: cluster.as_user(who, *command)
    cancel("scancel", job)
    kernel.error(SOON, words, "variables are gone")
    assert "The last lines of its log" in require_over(cluster, kernel)


@pytest.mark.parametrize("who", ["alice", "root"])
def test_scancel_in_the_queue(cluster, notebook, who):
    """A job that is cancelled while it waits ends the waiting, with who it was, and leaves no session."""
    blocker = cluster.as_user("bob", "sbatch", "--parsable", "-N4", "--exclusive", "-t5", "--wrap", "sleep 200").stdout
    kernel = notebook("attempt(start)\ntold('left', [s.session for s in hpcmagic.sessions()])")
    kernel.hears("line", 30, "waits in the queue")
    (job,) = [job for job, name, _ in cluster.jobs() if name.startswith("alice")]
    cancel = cluster.hub if who == "root" else lambda *command: cluster.as_user(who, *command)
    cancel("scancel", job)
    kernel.error(SOON, "did not start", "cancelled by you" if who == "alice" else "root, an administrator")
    assert kernel.hears("left", 10) == []
    kernel.over()
    cluster.hub("scancel", blocker.strip())


def test_scancel_while_idle(cluster, notebook):
    """A session that is cancelled between two cells says so at the next one, and in the list of sessions."""
    kernel = notebook(f"""
        s = start()
        input()
        told("list", [(one.state, one.reason) for one in hpcmagic.sessions()])
        attempt(lambda: s.run("rank"))
        input()
        {AFTER}
    """.replace("\n        ", "\n"))  # fmt: skip
    job, _, _ = kernel.hears("ready", 30)
    cluster.as_user("alice", "scancel", job)
    eventually(lambda: not cluster.jobs())
    kernel.go_on()
    ((state, reason),) = kernel.hears("list", 15)
    assert state == "ended"
    assert "cancelled by you" in reason
    kernel.error(SOON, "cancelled by you")
    require_over(cluster, kernel, cell="done")


def end_time(cluster, job, seconds):
    """Let a job's walltime be reached in so many seconds."""
    at = time.strftime("%FT%T", time.localtime(time.time() + seconds))
    done = cluster.hub("scontrol", "update", f"jobid={job}", f"endtime={at}")
    assert done.returncode == 0, done.stderr


def test_walltime_in_mid_cell(cluster, notebook):
    """The keeper, told by SLURM's signal that the walltime is near, warns whoever is connected; then it is named."""
    kernel = notebook(RUNNING)
    job, _, _ = kernel.hears("ready", 30)
    cluster.hub("scancel", "--batch", "--signal=USR1", job)
    kernel.hears("quiet", 5, "walltime is nearly reached")
    assert "walltime" in json.loads((SESSION / "state.json").read_text())["warning"]
    end_time(cluster, job, 1)
    kernel.error(30 + SOON, "its walltime was reached")  # SLURM looks each half minute
    require_over(cluster, kernel)


@pytest.mark.minutes
def test_walltime_warned_by_slurm(cluster, notebook):
    """The script asks SLURM to warn the keeper before the walltime; SLURM does."""
    kernel = notebook(RUNNING.replace("start()", "start(time='1')"))
    kernel.hears("ready", 30)
    kernel.hears("quiet", 60, "walltime is nearly reached")
    kernel.error(120, "its walltime was reached")
    require_over(cluster, kernel)


DEATHS = {
    "kill": (None, ("rank 1", "Killed")),
    "segfault": ("import ctypes\nif rank == 1: ctypes.string_at(0)\ncomm.Barrier()", ("rank 1", "Segmentation fault")),
    "exit": ("import os\nif rank == 1: os._exit(7)\ncomm.Barrier()", ("rank 1", "7")),
    "abort": ("from mpi4py import MPI\nif rank == 1: MPI.COMM_WORLD.Abort(5)\ncomm.Barrier()", ("rank 1",)),
    "memory": ("import time\nif rank == 1: x = bytearray(600_000_000)\ntime.sleep(200)", ("memory", "n2", "--mem")),
}


@pytest.mark.parametrize("death", DEATHS)
def test_rank_dies(cluster, notebook, death):
    """A rank's death ends the session: which rank, and of what, is the error's first line."""
    code, words = DEATHS[death]
    kernel = notebook(f"s = start(mem='300M')\nattempt(lambda: s.run({code or SLEEPS!r}))\ninput()\n{AFTER}")
    _, _, ranks = kernel.hears("ready", 30)
    if code is None:
        kernel.hears("line", 10, "running on 2 ranks")
        os.kill(ranks[1], signal.SIGKILL)
    kernel.error(SOON, *words)
    require_over(cluster, kernel)


def test_keeper_killed(cluster, notebook):
    """A keeper that is killed takes the job with it; the batch system says so in its place."""
    kernel = notebook(RUNNING)
    _, keeper, _ = kernel.hears("ready", 30)
    kernel.hears("line", 10, "running on 2 ranks")
    os.kill(keeper, signal.SIGKILL)
    kernel.error(SOON, "keeper was killed by SIGKILL")
    require_over(cluster, kernel)


def child(pid, word):
    """The PID of a process's child, by its command's first word."""
    for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")[0].decode().endswith(word):
            return int(one)
    pytest.fail(f"no {word} under {pid}")


def test_srun_killed(cluster, notebook):
    """A srun that is killed is named, and leaves no rank behind."""
    kernel = notebook(RUNNING)
    _, keeper, ranks = kernel.hears("ready", 30)
    kernel.hears("line", 10, "running on 2 ranks")
    os.kill(child(keeper, "srun"), signal.SIGKILL)
    kernel.error(SOON, "srun", "SIGKILL")
    require_over(cluster, kernel)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks))


@contextmanager
def repaired(cluster):
    """Whatever a block breaks in the bed, it is whole again afterwards."""
    try:
        yield
    finally:
        for node in cluster.nodes:
            link(cluster, node, "up")
        cluster.verb("raise")


def link(cluster, node, state):
    """Plug a node's cable in or out: the hub's end of it, which all hosts hang on."""
    assert cluster.hub("ip", "link", "set", node, state).returncode == 0


@pytest.mark.parametrize("how", ["power", "cable"])
@pytest.mark.parametrize("node", ["n1", "n2"])
def test_node_lost(cluster, notebook, node, how):
    """A node that dies, with or without the keeper on it, ends the session; the words say that a node failed."""
    with cluster.configured(SlurmdTimeout="6"), repaired(cluster):
        kernel = notebook(RUNNING)
        kernel.hears("ready", 30)
        kernel.hears("line", 10, "running on 2 ranks")
        if how == "cable":
            link(cluster, node, "down")
        cluster.verb("crash", node)
        t0 = time.monotonic()
        kernel.error(60, "a node failed")
        print("TIMING", time.monotonic() - t0)
        require_over(cluster, kernel)
