"""Data over real nodes without MPI, and what a network that is cut for a while, or a kill, does to data on their way.

What is done is done by two scripts of alice's, each with a job of its own; each test reads what they said.
"""

import os
import re
import signal
import time
from pathlib import Path
from textwrap import dedent

import pytest
from scripts import Script

STATE = Path("/home/alice/.local/state/hpcmagic")
ALLOWED = 1.05  # of the payload: what may leave the hub for one push to all
CUT, CUT_S = ("n1", "n3"), 5.0

HEAD = """
import hpcmagic, json, os, time
import numpy as np
from pathlib import Path
from hpcmagic.wire import bulk
from hpcmagic.wire.bulk import Channel, Kind

MB = 1 << 20

def told(kind, what=None):
    print("@" + json.dumps([kind, what]), flush=True)

def start(name, **options):
    return hpcmagic.start(session=name, launcher="slurm", nodes=4, time="10", **options)

def channels(s):
    return [channel for _, channel in s.data.channels._open.values()]

def interface(s):
    "The hub's interface that leads to the nodes: received, sent."
    import psutil
    address = channels(s)[0].sock.getsockname()[0]
    name = next(nic for nic, held in psutil.net_if_addrs().items() if any(a.address == address for a in held))
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith(name + ":"):
            words = line.split(":")[1].split()
            return np.array([int(words[0]), int(words[8])])

def over_the_wire(s, work):
    before = interface(s)
    work()
    return [int(n) for n in interface(s) - before]

def refused(work):
    try:
        work()
    except hpcmagic.HpcMagicError as error:
        return [type(error).__name__, str(error)]
    return ["", "nothing was refused"]

SEND = Channel.send

def slowly(word):
    "Take some time for each frame of data from now on; say a word when some are gone."
    gone = 0
    def slowed(self, kind, *args, **kwargs):
        nonlocal gone
        if kind == Kind.DATA:
            gone += 1
            if gone == 10:
                told(word)
            time.sleep(0.02)
        yield from SEND(self, kind, *args, **kwargs)
    Channel.send = slowed

SUM = "import hashlib; hashlib.sha256(memoryview(y).cast('B')).hexdigest()"
y = np.random.default_rng(0).random(16 * MB // 8)
"""


def cut_for_a_while(cluster, script, begun, over):
    """Pull the cables of two nodes, the keeper's and another, once something has begun; it must not be over by then."""
    script.hears(begun, 40)
    try:
        for node in CUT:
            assert cluster.hub("ip", "link", "set", node, "down").returncode == 0
        time.sleep(CUT_S)
        assert over not in script.told, "it was over while the network was cut"
    finally:
        for node in CUT:
            assert cluster.hub("ip", "link", "set", node, "up").returncode == 0


@pytest.fixture(scope="module")
def scripts(cluster):
    """Run scripts of alice's, ``scripts(code)``, whose sessions start from nothing; none outlives the module."""
    assert cluster.as_user("alice", "rm", "-rf", str(STATE)).returncode == 0
    run = []

    def start(code):
        run.append(Script(cluster, HEAD + dedent(code)))
        return run[-1]

    yield start
    for one in run:
        one.end()


@pytest.fixture(scope="module")
def without_mpi(cluster, scripts):
    """What a session of four nodes without MPI has told, whose network was cut for a while."""
    script = scripts("""
        s = start("chain", mpi="none")
        x = np.random.default_rng(1).random(32 * MB // 8)
        s.push(y=y[:MB])  # opens the channels
        told("world", s.run("comm is None").same())
        told("push", [y.nbytes, *over_the_wire(s, lambda: s.push(y=y))])
        told("pushed", list(s.run(SUM)))
        import hashlib
        told("here", hashlib.sha256(y).hexdigest())
        slowly("moving")
        began = time.monotonic()
        s.scatter(x=x)
        told("took", time.monotonic() - began)
        told("parts", [one == float(part.sum()) for one, part in zip(s.run("float(x.sum())"), np.array_split(x, 4))])
        told("back", bool((s.gather("x") == x).all()))
        s.stop()
    """)
    cut_for_a_while(cluster, script, "moving", "took")
    return script.over()


def test_push_to_all(without_mpi):
    """Each rank gets all of it, and one copy leaves the hub, without MPI too: it goes on from node to node."""
    assert without_mpi["world"]
    assert without_mpi["pushed"] == [without_mpi["here"]] * 4
    payload, _, sent = without_mpi["push"]
    assert payload <= sent <= ALLOWED * payload


def test_network_cut_for_a_while(without_mpi):
    """A scatter outlives a network that is cut for seconds, and is right."""
    assert without_mpi["took"] > CUT_S
    assert without_mpi["parts"] == [True] * 4
    assert without_mpi["back"]


@pytest.fixture(scope="module")
def killed(cluster, scripts):
    """What a session of four nodes with MPI has told, whose network was cut for a while, and whose rank 2 was killed."""
    script = scripts("""
        s = start("killed")
        x = np.random.default_rng(1).random(32 * MB // 8)
        s.scatter(x=np.zeros(MB))
        told("pids", list(s.run("import os; os.getpid()")))
        slowly("pushing")
        began = time.monotonic()
        s.push(y=y)
        told("push took", time.monotonic() - began)
        import hashlib
        told("pushed", [one == hashlib.sha256(y).hexdigest() for one in s.run(SUM)])
        slowly("moving")
        began = time.monotonic()
        told("words", refused(lambda: s.scatter(x=x)))
        told("took", time.monotonic() - began)
        told("whole", bool((x == np.random.default_rng(1).random(32 * MB // 8)).all()))
        told("later", refused(lambda: s.run("rank")))
        job = s.job.job_id
        s.restart()
        s.scatter(x=x)
        told("again", [s.job.job_id == job, s.run("len(x)").same(), bool((s.gather("x") == x).all())])
        s.stop()
    """)
    cut_for_a_while(cluster, script, "pushing", "push took")
    script.hears("moving")
    os.kill(script.told["pids"][2], signal.SIGKILL)
    return script.over()


def test_network_cut_while_all_get_the_same(killed):
    """A push to all that MPI spreads outlives such a cut too, wherever its frames were."""
    assert killed["push took"] > CUT_S
    assert killed["pushed"] == [True] * 4


def test_rank_killed_in_mid_scatter(killed):
    """A rank that is killed while its rows are on their way ends the scatter soon, in words; then others take it all."""
    name, words = killed["words"]
    assert name == "SessionEnded", words
    assert "rank 2" in words
    assert re.search("SIGKILL|Killed", words)  # who says so first: the keeper, or srun
    assert "\n→ " in words
    assert killed["took"] < 30
    assert killed["whole"]
    assert killed["later"] == killed["words"]
    assert killed["again"] == [True, 1024 * 1024, True]
