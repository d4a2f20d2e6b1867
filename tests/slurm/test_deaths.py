"""What dies in a cluster, killed for real: who says so, how soon, in which words, and what survives it.

Each test starts a session from a notebook on the hub, causes one fault, and listens to what the notebook says.
"""

import json
import os
import queue
import re
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
                pytest.fail(f"no {kind} {containing!r} within {seconds} s; it said:\n{self.told()}", pytrace=False)
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

    def told(self):
        """Give what it said for a person to read: without its status lines, long ones cut."""
        return "".join(line[:300] + "\n" * (len(line) > 300) for line in self.lines[-60:] if '"line"' not in line)

    def kill(self):
        """End it as a crash would."""
        self.process.kill()
        self.process.wait(10)

    def over(self, seconds=20):
        """Wait for its end, which must be a good one; give all that it said."""
        self.process.stdin.close()
        assert self.process.wait(seconds) == 0, self.told()
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


@pytest.fixture
def busy_nodes(cluster):
    """All nodes are taken by another user: what comes now waits in the queue."""
    sleeps = ("sbatch", "--parsable", "-N4", "--exclusive", "-t5", "--wrap", "sleep 200")
    job = cluster.as_user("bob", *sleeps).stdout.strip()
    yield
    cluster.hub("scancel", job)


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

HELD = """
told("status", s.status().state, s.status().reason)
attempt(lambda: s.run("rank"))
attempt(lambda: hpcmagic.start(session="t", launcher="slurm", nodes=2, time="10"))
s.restart()
x = list(range(1001))
s.scatter(x=x)
told("again", s.job.job_id, s.run("import os; os.getpid()"), s.run("comm.allreduce(len(x))"), s.gather("x") == x)
told("kept", s.cells[0].result(), s.cells[-1].state)
s.stop()
"""


def require_held(cluster, kernel, job, ranks):
    """After the ranks' end: the job is held, no other is bought, and a restart gives it ranks that take data."""
    state, reason = kernel.hears("status", 10)
    assert state == "fallen"
    assert re.search(r"job held until \d\d:\d\d: `%hpc restart` or `%hpc stop`$", reason)
    said = kernel.error(15, "In session t the ranks ended", "`%hpc restart` starts new ranks in the same job")
    assert kernel.error(15) == said, "the same cause, whoever asks"
    same, fresh, rows, whole = kernel.hears("again", 40)
    assert (same, rows, whole) == (job, [1001, 1001], True)
    assert not set(fresh) & set(ranks)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert kernel.hears("kept", 10) == [[0, 10], "done"]
    kernel.over()
    eventually(lambda: not cluster.jobs())


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


@pytest.mark.parametrize("who", ["alice", pytest.param("root", marks=pytest.mark.minutes)])
def test_scancel_in_the_queue(cluster, notebook, who, busy_nodes):
    """A job that is cancelled while it waits ends the waiting, with who it was, and leaves no session."""
    kernel = notebook("attempt(start)\ntold('left', [s.session for s in hpcmagic.sessions()])")
    kernel.hears("line", 30, "waits in the queue")
    (job,) = [job for job, name, _ in cluster.jobs() if name.startswith("alice")]
    cancel = cluster.hub if who == "root" else lambda *command: cluster.as_user(who, *command)
    cancel("scancel", job)
    kernel.error(SOON, "did not start", "cancelled by you" if who == "alice" else "root, an administrator")
    assert kernel.hears("left", 10) == []
    kernel.over()


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
    "segfault": (
        "import ctypes\nif rank == 1: ctypes.string_at(0)\ncomm.Barrier()",
        ("rank 1", "Segmentation fault"),
    ),
    "exit": ("import os\nif rank == 1: os._exit(7)\ncomm.Barrier()", ("rank 1", "7")),
    "abort": ("from mpi4py import MPI\nif rank == 1: MPI.COMM_WORLD.Abort(5)\ncomm.Barrier()", ("rank 1",)),
    "memory": ("import time\nif rank == 1: x = bytearray(600_000_000)\ntime.sleep(200)", ("memory", "n2", "--mem")),
}


@pytest.mark.parametrize("death", DEATHS)
def test_rank_dies(cluster, notebook, death):
    """A rank's death ends all ranks: which it was, and of what, is the error's first line; the job has others soon."""
    code, words = DEATHS[death]
    kernel = notebook(f"s = start(mem='300M')\nattempt(lambda: s.run({code or SLEEPS!r}))\n{HELD}")
    job, _, ranks = kernel.hears("ready", 30)
    if code is None:
        kernel.hears("line", 10, "running on 2 ranks")
        os.kill(ranks[1], signal.SIGKILL)
    kernel.error(SOON, *words)
    require_held(cluster, kernel, job, ranks)


def test_held_job_is_given_back(cluster, notebook):
    """A job without ranks whose kernel is killed, or that nobody restarts in time, ends by itself: it costs money."""
    code = f"""
from hpcmagic.notebook import start as starting
starting.HOLD_S, starting.HOLD_ALONE_S = {{limits}}
s = start()
attempt(lambda: s.run({DEATHS["exit"][0]!r}))
input()
{AFTER}
"""
    kernel = notebook(code.format(limits="300, 3"))
    kernel.hears("ready", 30)
    kernel.error(SOON, "In session t the ranks ended: rank 1", "7")
    time.sleep(4)
    assert len(cluster.jobs()) == 1
    kernel.kill()
    eventually(lambda: not cluster.jobs())
    later = notebook(f"attempt(lambda: hpcmagic.start(session='t', launcher='slurm', unasked=False))\n{code}".format(
        limits="4, 60").replace("s = start()", "s = start(nodes=2)"))  # fmt: skip
    later.error(10, "Session t has ended: the ranks ended: rank 1")
    later.hears("ready", 30)
    later.error(SOON, "In session t the ranks ended")
    eventually(lambda: not cluster.jobs())
    assert "the ranks ended" in require_over(cluster, later)


def test_held_job_cancelled(cluster, notebook):
    """A job without ranks that is cancelled, or whose walltime is reached, is over, in those words."""
    kernel = notebook(f"s = start()\nattempt(lambda: s.run({DEATHS['exit'][0]!r}))\ninput()\n{AFTER}")
    job, _, _ = kernel.hears("ready", 30)
    kernel.error(SOON, "In session t the ranks ended")
    cluster.as_user("alice", "scancel", job)
    eventually(lambda: not cluster.jobs())
    assert "cancelled by you" in require_over(cluster, kernel)


@pytest.mark.parametrize("way", ["handle", pytest.param("followed", marks=pytest.mark.minutes)])
def test_keeper_killed(cluster, notebook, way):
    """A keeper that is killed takes the job with it; the batch system says so in its place, to handles as well."""
    kernel = notebook(RUNNING if way == "followed" else RUNNING.replace("200)')", "200)', block=False).result()"))
    _, keeper, _ = kernel.hears("ready", 30)
    time.sleep(2)
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
    """A srun that is killed is named, and leaves no rank behind: new ones have the nodes to themselves."""
    kernel = notebook(f"s = start()\nattempt(lambda: s.run({SLEEPS!r}))\n{HELD}")
    job, keeper, ranks = kernel.hears("ready", 30)
    kernel.hears("line", 10, "running on 2 ranks")
    os.kill(child(keeper, "srun"), signal.SIGKILL)
    kernel.error(SOON, "srun", "SIGKILL")
    require_held(cluster, kernel, job, ranks)


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


LOSSES = [("n2", "power"), *(pytest.param(*loss, marks=pytest.mark.minutes) for loss in
          (("n1", "power"), ("n2", "cable"), ("n1", "cable")))]  # fmt: skip


@pytest.mark.parametrize(("node", "how"), LOSSES)
def test_node_lost(cluster, notebook, node, how):
    """A node that dies, with or without the keeper on it, ends the session; the words say that a node failed."""
    with cluster.configured(SlurmdTimeout="6"), repaired(cluster):
        kernel = notebook(RUNNING)
        kernel.hears("ready", 30)
        kernel.hears("line", 10, "running on 2 ranks")
        if how == "cable":
            link(cluster, node, "down")
        cluster.verb("crash", node)
        kernel.error(75, "a node failed")
        require_over(cluster, kernel)
        cluster.on(node, "find", "/tmp", "-mindepth", "1", "-user", "alice", "-delete")  # as a reboot would


def test_slurmd_killed(cluster, notebook):
    """A slurmd that dies alone ends nothing: the ranks run on, and their cell gives what it should."""
    kernel = notebook("s = start()\nattempt(lambda: s.run('import time; time.sleep(3); rank'))\ns.stop()")
    kernel.hears("ready", 30)
    kernel.hears("line", 10, "running on 2 ranks")
    with repaired(cluster):
        os.kill(daemon("slurmd.n2"), signal.SIGKILL)
        assert kernel.hears("value", 20) == [0, 1]
    kernel.over()


def test_slurmctld_away(cluster, notebook):
    """While SLURM's controller is away cells go on, sessions are listed without hanging, and nothing ends."""
    kernel = notebook("""
        s = start()
        attempt(lambda: s.run("import time; time.sleep(12); rank"))
        input()
        s.stop()
    """)
    kernel.hears("ready", 30)
    kernel.hears("line", 10, "running on 2 ranks")
    with repaired(cluster):
        os.kill(daemon("slurmctld"), signal.SIGKILL)
        other = notebook("""
            began = time.monotonic()
            told("list", [(one.state, one.reason) for one in hpcmagic.sessions()])
            told("took", time.monotonic() - began)
            s = hpcmagic.attach("t")
            told("attached", s.status().state, s.run("rank"))
        """)
        assert other.hears("list", 40) == [["ready", ""]]
        assert other.hears("took", 5) < 15
        assert other.hears("attached", 40) == ["ready", [0, 1]]
        other.over()
        assert kernel.hears("value", 40) == [0, 1]
    kernel.go_on()
    kernel.over()
    eventually(lambda: not cluster.jobs())  # a controller that has just come back takes its time


@pytest.mark.minutes
def test_stop_without_slurmctld(cluster, notebook):
    """A session that cannot be cancelled is said to be there still; the same call ends it later."""
    kernel = notebook("s = start()\ninput()\nattempt(s.stop)\ninput()\ns.stop()")
    kernel.hears("ready", 30)
    with repaired(cluster):
        os.kill(daemon("slurmctld"), signal.SIGKILL)
        kernel.go_on()
        kernel.error(60, "scancel")
    assert len(cluster.jobs()) == 1
    kernel.go_on()
    kernel.over()


def test_slurmdbd_away(cluster, notebook):
    """Without accounting a session's cause is what the controller knows of it, soon."""
    kernel = notebook(RUNNING)
    job, _, _ = kernel.hears("ready", 30)
    kernel.hears("line", 10, "running on 2 ranks")
    with repaired(cluster):
        os.kill(daemon("slurmdbd"), signal.SIGKILL)
        cluster.as_user("alice", "scancel", job)
        kernel.error(SOON, "it was cancelled")
    require_over(cluster, kernel)


def test_cable_out_for_a_while(cluster, notebook):
    """A cell outlives a cut of the network: the status line tells of it, and what it gave meanwhile arrives."""
    kernel = notebook("""
        s = start()
        attempt(lambda: s.run("import time\\nfor i in range(6): time.sleep(1); print('step', i)\\nrank"))
        attempt(lambda: s.run("size"))
        s.stop()
    """)
    kernel.hears("ready", 30)
    kernel.hears("line", 10, "running on 2 ranks")
    with repaired(cluster):
        link(cluster, "n1", "down")
        kernel.hears("line", 20, "no word from the session's keeper")
        time.sleep(3)
        link(cluster, "n1", "up")
        assert kernel.hears("value", 40) == [0, 1]
        assert kernel.hears("value", 20) == [2, 2]
    said = kernel.over()
    for rank in (0, 1):  # those that came together are folded: [0-1]
        assert re.findall(rf"^\[(?:{rank}|0-1)\] step (\d)$", said, re.MULTILINE) == list("012345"), said


@pytest.mark.minutes
def test_cable_out_for_ever(cluster, notebook):
    """A notebook that gives up over a cut network loses nothing: the next one finds result and output."""
    kernel = notebook("s = start()\nattempt(lambda: s.run('import time; time.sleep(4); print(\"said\"); rank + 1'))")
    kernel.hears("ready", 30)
    kernel.hears("line", 10, "running on 2 ranks")
    with repaired(cluster):
        link(cluster, "n1", "down")
        kernel.hears("line", 20, "no word from the session's keeper")
        kernel.kill()
        link(cluster, "n1", "up")
        later = notebook("""
            s = hpcmagic.attach("t")
            told("found", s.cells[-1].result(30), s.cells[-1].output)
            s.stop()
        """)
        assert later.hears("found", 60) == [[1, 2], "[0-1] said\n"]
    later.over()


def test_kernel_killed_in_mid_cell(cluster, notebook):
    """A kernel killed in mid-cell stops nothing: on another host that sees the directory the cell is found running."""
    kernel = notebook("""
        s = start()
        s.run("import time; x = rank + 5; print('before'); time.sleep(6); print('after'); x")
    """)
    kernel.hears("ready", 30)
    kernel.hears("line", 10, "running on 2 ranks")
    kernel.kill()
    elsewhere = notebook("""
        s = hpcmagic.attach("t")
        cell = s.cells[-1]
        told("found", cell.state, cell.output)
        told("then", cell.result(30), cell.output, s.pull("x"))
        s.stop()
    """, host="n2")  # fmt: skip
    assert elsewhere.hears("found", 20) == ["running", "[0-1] before\n"]
    assert elsewhere.hears("then", 30) == [[5, 6], "[0-1] before\n[0-1] after\n", [5, 6]]
    elsewhere.over()


@pytest.mark.minutes
def test_nobody_comes_after_a_crash(cluster, notebook):
    """A session whose kernel was killed ends by itself `no_client_limit` after its last cell, and says so."""
    kernel = notebook("s = start(no_client_limit='0:04')\ns.run('import time; time.sleep(4); rank * 2')")
    kernel.hears("ready", 30)
    kernel.hears("line", 10, "running on 2 ranks")
    kernel.kill()
    eventually(lambda: not cluster.jobs(), 30)
    later = notebook(f"input()\n{AFTER}")
    assert "no_client_limit" in require_over(cluster, later, cell="done")


def test_two_kernels_at_once(cluster, notebook):
    """Two kernels that start a session of one name at once get one job; both use it."""
    code = """
        while True:
            try:
                s = hpcmagic.start(session="t", launcher="slurm", nodes=2, time="10")
                break
            except hpcmagic.LaunchError as error:
                told("refused", str(error))
                time.sleep(0.2)
        told("mine", s.job.job_id, s.run(f"rank + {os.getpid()}"), os.getpid())
        input()
        s.control.close()
    """
    pair = [notebook(code), notebook(code)]
    heard = [kernel.hears("mine", 40) for kernel in pair]
    assert len({job for job, _, _ in heard}) == 1
    assert all(values == [pid, pid + 1] for _, values, pid in heard)
    assert [job for job, _, _ in cluster.jobs()] == [heard[0][0]]
    assert all("is being started by another kernel" in line for k in pair for line in k.lines if '"refused"' in line)
    for kernel in pair:
        kernel.go_on()
        kernel.over()
    cluster.as_user("alice", "scancel", heard[0][0])


BUSY = {
    "idle": "pass",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "in MPI": "if rank == 0: comm.Barrier()",
    "in C": "import ctypes; ctypes.PyDLL(None).sleep(300)",
}


def test_restart_whatever_ranks_do(cluster, notebook):
    """Whatever its ranks are stuck in, a restart gives new ones in the same job, their MPI world verified."""
    kernel = notebook(f"""
        s = start()
        for busy in {list(BUSY.values())!r}:
            s.run("x = 1")
            cell = s.run(busy, block=False)
            time.sleep(1)
            s.restart()
            told("new", s.job.job_id, s.run("import os; os.getpid()"), s.run("'x' in globals(), comm.allreduce(1)"))
            told("cell", cell.state)
        input()
        s.stop()
    """)
    job, _, pids = kernel.hears("ready", 30)
    for ranks in BUSY:
        former = pids
        same, pids, known = kernel.hears("new", 40)
        assert same == job, ranks
        assert not set(pids) & set(former), ranks
        assert known == [[False, 2], [False, 2]], ranks
        assert kernel.hears("cell", 5) == ("done" if ranks == "idle" else "lost"), ranks
        assert not any(Path(f"/proc/{pid}").exists() for pid in former), ranks
    assert [one for one, _, _ in cluster.jobs()] == [job]
    kernel.go_on()
    kernel.over()


def test_interrupt_in_c_code(cluster, notebook):
    """A rank that C code holds is named with its line, though it cannot answer; nothing else feels the asking."""
    cell = """
        import ctypes, os, subprocess
        child = subprocess.Popen(["sleep", "300"])
        pipe = os.pipe()
        if rank == 1:
            ctypes.PyDLL(None).read(pipe[0], ctypes.create_string_buffer(1), 1)
    """
    kernel = notebook(f"""
        import threading
        s = start()
        for seconds in (2, 9):
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
        attempt(lambda: s.run({dedent(cell)!r}))
        told("alive", s.run("child.poll() is None", ranks=0), s.keeper_state().keeper_pid)
        s.stop()
    """)
    _, keeper, _ = kernel.hears("ready", 30)
    kernel.error(30, "Let go of cell 3; rank 1 runs on", "%hpc restart")
    assert kernel.hears("alive", 10) == [[True], keeper]
    assert "Not stopped: rank 1 is at cell 3, line 6: in C code that holds the interpreter" in kernel.over()


def test_orphaned_job(cluster, notebook, busy_nodes):
    """A job whose session's directory was removed while it waited is listed as nobody's, and ended when asked to."""
    kernel = notebook("start()")
    kernel.hears("line", 30, "waits in the queue")
    kernel.kill()
    (job,) = [job for job, who, _ in cluster.jobs() if who.startswith("alice")]
    shutil.rmtree(SESSION)
    later = notebook("""
        from hpcmagic.notebook.orphans import orphans
        told("orphans", [one.what for one in orphans()])
        for one in orphans():
            one.end()
        told("left", [one.what for one in orphans()])
    """)
    (what,) = later.hears("orphans", 20)
    assert job in what
    assert later.hears("left", 20) == []
    later.over()


def test_directory_removed_while_waiting(cluster, notebook, busy_nodes):
    """A kernel that waits for a job whose directory is removed takes the job out of the queue, and says so."""
    kernel = notebook("attempt(start)")
    kernel.hears("line", 30, "waits in the queue")
    shutil.rmtree(SESSION)
    kernel.error(10, "stopped elsewhere")
    kernel.over()
    eventually(lambda: not any(who.startswith("alice") for _, who, _ in cluster.jobs()))


def test_never_requeued(cluster, notebook):
    """Not even an administrator can have a session's job run a second time: it would buy what nobody asked for."""
    kernel = notebook("s = start()\ninput()\nattempt(lambda: s.run('rank'))\ns.stop()")
    job, _, _ = kernel.hears("ready", 30)
    assert cluster.hub("scontrol", "requeue", job).returncode != 0
    kernel.go_on()
    assert kernel.hears("value", 10) == [0, 1]
    kernel.over()


@contextmanager
def small_disk(cluster, path):
    """A file system of a few megabytes that all hosts see."""
    image = path.with_suffix(".image")
    made = subprocess.run(
        f"truncate -s 3M {image} && mkfs.ext4 -q -m 0 -O ^has_journal {image} && mkdir -p {path} && losetup -f --show {image}",
        shell=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    device, hosts = made.stdout.strip(), ("hub", *cluster.nodes)
    try:
        for host in hosts:
            on = cluster.hub if host == "hub" else lambda *words, host=host: cluster.on(host, *words)
            assert on("mount", device, str(path)).returncode == 0
        cluster.hub("chown", "alice:alice", str(path))
        cluster.hub("chmod", "700", str(path))
        yield
    finally:
        for host in hosts:
            on = cluster.hub if host == "hub" else lambda *words, host=host: cluster.on(host, *words)
            on("umount", "-l", str(path))
        subprocess.run(["losetup", "-d", device], timeout=30)
        image.unlink()
        path.rmdir()


def test_disk_full_in_mid_session(cluster, notebook):
    """A disk that fills up under a running session stops no cell: the notebook is told what is not written."""
    path = Path("/home/alice/small")
    with small_disk(cluster, path):
        kernel = notebook(f"""
            s = start(session_dir="{path}/s")
            filler = open("{path}/filler", "wb", buffering=0)
            try:
                while True:
                    filler.write(b"x" * 4096)
            except OSError:
                pass
            for i in range(3):
                s.run("for i in range(4000): print('y' * 70, i)")
                time.sleep(1)
            attempt(lambda: s.run("rank"))
            os.remove("{path}/filler")
            attempt(lambda: s.run("rank + 1"))
            s.stop()
        """)
        kernel.hears("ready", 30)
        kernel.hears("quiet", 20, "No space left on device")
        assert kernel.hears("value", 20) == [0, 1]
        assert kernel.hears("value", 20) == [1, 2]
        kernel.over()
