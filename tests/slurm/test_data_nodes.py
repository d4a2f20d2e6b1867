"""Data over real nodes: that it arrives whole, by which way and in how many bytes, and what a cut or a kill does to it.

Most is done by one script of alice's for each world, so that two jobs serve many tests; each test reads what it said.
"""

import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from textwrap import dedent

import pytest

HOME = Path("/home/alice")
FILES = HOME / "data-nodes"
STATE = HOME / ".local/state/hpcmagic"
ALLOWED = 1.05  # of the payload: what may leave the hub for one push to all
LITTLE = 1_000_000  # bytes on the hub's interface where only words go to and fro
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


class Script:
    """A script of alice's on the hub; `hears` waits for the next thing of a kind that it says."""

    def __init__(self, cluster, code):
        words = (Path(__file__).with_name("cluster"), "as", "alice", cluster.python, "-u", "-c", HEAD + dedent(code))
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.cluster = cluster
        self.said = ""
        self.told = {}
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with self.process.stdout as lines:
            for line in lines:
                with self._changed:
                    self.said += line
                    if line.startswith("@["):
                        kind, what = json.loads(line[1:])
                        self.told[kind] = what
                    self._changed.notify_all()

    def hears(self, kind, seconds=30):
        """Give what it says of something, as soon as it does."""
        with self._changed:
            self._changed.wait_for(lambda: kind in self.told or self.process.poll() is not None, seconds)
        if kind not in self.told:
            self.process.poll() is None or self._reader.join(5)
        assert kind in self.told, self.said
        return self.told[kind]

    def over(self, seconds=60):
        """Wait for its end, which must be a good one; give all that it told."""
        try:
            assert self.process.wait(seconds) == 0, self.said
        finally:
            self.end()
        return self.told

    def end(self):
        """End it, if it goes on; the job of one that has failed would keep the nodes from all that follow."""
        self.process.kill()
        if self.process.wait(10):
            self.cluster.hub("scancel", "--user=alice")
        self._reader.join(10)


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
def files(cluster):
    """A folder below alice's home, which all nodes see; her sessions start from nothing."""
    made = cluster.as_user("alice", "sh", "-c", f"rm -rf {STATE} {FILES} && mkdir {FILES}")
    assert made.returncode == 0, made.stderr
    yield FILES
    cluster.hub("rm", "-rf", str(FILES))


@pytest.fixture(scope="module")
def scripts(cluster, files):
    """Run scripts of alice's, ``scripts(code)``; none outlives the module."""
    run = []

    def start(code):
        run.append(Script(cluster, code))
        return run[-1]

    yield start
    for one in run:
        one.end()


@pytest.fixture(scope="module")
def with_mpi(scripts, files):
    """What a session of four nodes in one MPI world has told."""
    return scripts(f"""
        s = start("mpi")
        x = np.random.default_rng(1).random((100_001, 9))
        s.scatter(x=x)
        told("parts", [list(shape) for shape in s.run("x.shape")])
        told("sums", [s.run("float(x.sum())")[rank] == float(part.sum()) for rank, part in enumerate(np.array_split(x, 4))])
        back = s.gather("x")
        told("back", [bool((back == x).all()), str(back.dtype), list(back.shape)])
        told("shared", [channel.shared is not None for channel in channels(s)])
        told("peers", sorted(channel.sock.getpeername()[0] for channel in channels(s)))
        told("hosts", list(s.run("import socket; socket.gethostbyname(socket.gethostname())")))
        told("push", [y.nbytes, *over_the_wire(s, lambda: s.push(y=y))])
        told("pushed", list(s.run(SUM)))
        import hashlib
        told("here", hashlib.sha256(y).hexdigest())
        told("gather", over_the_wire(s, lambda: s.gather("x")))

        s.push({{"some": y[:MB]}}, ranks=[1, 3])
        told("some", list(s.run("float(some.sum()) if 'some' in globals() else -1.0")))
        told("some here", float(y[:MB].sum()))
        told("some back", [bool((one == y[:MB]).all()) for one in s.pull("some", ranks=[1, 3])])

        f = np.random.default_rng(2).random((4 * MB // 8, 8))
        np.save("{files}/f.npy", f)
        told("file in", over_the_wire(s, lambda: s.scatter(f=hpcmagic.File("{files}/f.npy"))))
        told("file rows", [one == float(part.sum()) for one, part in zip(s.run("float(f.sum())"), np.array_split(f, 4))])
        s.run("f *= 2")
        told("file out", over_the_wire(s, lambda: s.gather("f", to="{files}/g.npy")))
        told("file same", bool((np.load("{files}/g.npy") == 2 * f).all()))
        told("file left", sorted(os.listdir("{files}")))

        s.run("f = 'old'")
        s.run("import numpy, os\\nif rank != 2: numpy.save('/tmp/private.npy', numpy.ones((8 + rank, 2)))")
        told("absent", refused(lambda: s.scatter(f=hpcmagic.File("/tmp/private.npy"))))
        s.run("if rank == 2: numpy.save('/tmp/private.npy', numpy.ones((8, 2)))")
        told("different", refused(lambda: s.scatter(f=hpcmagic.File("/tmp/private.npy"))))
        told("unwritable", refused(lambda: s.gather("y", to="/tmp/only-there.npy")))
        told("private", [list(one) for one in s.run("sorted(n for n in os.listdir('/tmp') if n.endswith('.npy'))")])
        s.run("os.remove('/tmp/private.npy')")
        told("f", s.run("f").same())
        s.stop()
    """).over()


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


def test_there_and_back(with_mpi):
    """What is cut over four nodes is there in its parts, and comes back as it was."""
    assert with_mpi["parts"] == [[25_001, 9], *[[25_000, 9]] * 3]
    assert with_mpi["sums"] == [True] * 4
    assert with_mpi["back"] == [True, "float64", [100_001, 9]]
    assert with_mpi["gather"][0] > 100_001 * 9 * 8, "it did not come over this interface: the counting is wrong"


def test_straight_to_each_node(with_mpi):
    """Each rank is reached at its own node's address, over the wire: no memory is shared between hosts."""
    assert with_mpi["shared"] == [False] * 4
    assert len(set(with_mpi["peers"])) == 4
    assert with_mpi["peers"] == sorted(with_mpi["hosts"])


@pytest.mark.parametrize("way", ["with_mpi", "without_mpi"])
def test_push_to_all(request, way):
    """Each rank gets all of it, and one copy leaves the hub; with MPI, and without it from node to node."""
    told = request.getfixturevalue(way)
    assert told["pushed"] == [told["here"]] * 4
    payload, _, sent = told["push"]
    assert payload <= sent <= ALLOWED * payload


def test_push_to_some(with_mpi):
    """A value for some ranks reaches these, and no other."""
    value = with_mpi["some here"]
    assert with_mpi["some"] == [-1, value, -1, value]
    assert with_mpi["some back"] == [True, True]


def test_files(with_mpi, files):
    """A file in her home is read by the ranks and written by them: over the hub's interface go words only."""
    assert sum(with_mpi["file in"]) < LITTLE
    assert with_mpi["file rows"] == [True] * 4
    assert sum(with_mpi["file out"]) < LITTLE
    assert with_mpi["file same"]
    assert with_mpi["file left"] == ["f.npy", "g.npy"]


def test_file_that_some_nodes_lack(with_mpi):
    """A file on each node's own disk: who lacks it is named, rank and host, and who has another; nothing is bound."""
    name, words = with_mpi["absent"]
    assert name == "RankError"
    assert "rank 2" in words
    assert "n3" in words
    assert "/tmp/private.npy" in words
    name, words = with_mpi["different"]
    assert name == "DataError"
    assert "ranks 1-3 have another than rank 0 on host n1; rank 1 is on host n2" in words
    assert "\n→ " in words
    assert with_mpi["f"] == "old"


def test_file_that_nodes_do_not_share(with_mpi):
    """A file that is to be written where each node has a disk of its own is refused, and nothing of it stays."""
    name, words = with_mpi["unwritable"]
    assert name == "RankError"
    assert "`/tmp/only-there.npy`, begun by rank 0, is not there on host n2" in words
    assert with_mpi["private"] == [["private.npy"]] * 4


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
    """A rank that is killed while its rows are on their way ends the scatter soon, in words; the array is whole."""
    name, words = killed["words"]
    assert name == "SessionEnded", words
    assert "rank 2" in words
    assert re.search("SIGKILL|Killed", words)  # who says so first: the keeper, or srun
    assert "\n→ " in words
    assert killed["took"] < 30
    assert killed["whole"]
    assert killed["later"][0] == "SessionEnded"
