"""Data over four real nodes: that it arrives, what leaves the hub, what can be read on the wire, what a cut does to it.

One session serves all tests: a notebook of alice's does one thing after the other and tells how it went.
"""

import json
import queue
import secrets
import shutil
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import dedent

import pytest

CLUSTER = Path(__file__).with_name("cluster")
HOME = Path("/home/alice")
MB = 1 << 20
FOR_EVER_S = 12
SECRET, CLEAR, SMALL = (secrets.token_bytes(64) for _ in range(3))

HEAD = f"""
import hashlib, hpcmagic, json, os, signal, sys, threading, time
import numpy as np
from hpcmagic.notebook import data
from hpcmagic.wire import bulk, parcels
MB, SECRET, CLEAR, SMALL = {MB}, {SECRET!r}, {CLEAR!r}, {SMALL!r}
HASH = "import hashlib; hashlib.sha256(y).hexdigest()"

def told(what, *values):
    print("@" + json.dumps([what, *values], default=list), flush=True)

def refused(work):
    began = time.monotonic()
    try:
        return ["", "nothing was refused", work() and 0]
    except hpcmagic.HpcMagicError as error:
        return [type(error).__name__, str(error), time.monotonic() - began]

def crossed():
    "What has come to the hub and what has left it so far, in bytes."
    with open("/proc/net/dev") as counted:
        words = next(line for line in counted if line.strip().startswith("eth0:")).split(":")[1].split()
    return np.array([int(words[0]), int(words[8])])

def crossing(work):
    "What comes to the hub and leaves it meanwhile."
    before = crossed()
    work()
    return (crossed() - before).tolist()

def slowly(word):
    "Take time for each frame that is sent; say a word when some are gone."
    def slowed(parts):
        for number, block in enumerate(parcels.blocks(parts)):
            if number == 4:
                told(word)
            time.sleep(0.02)
            yield block
    data.blocks = slowed

def channels(s):
    return [channel for _, (_, channel) in sorted(s.data.channels._open.items())]

def shared(s):
    return [channel.shared is not None for channel in channels(s)]

def rows(pulled, whole, axis):
    "Whether each rank has its own part of the whole."
    return [bool((one == part).all()) for one, part in zip(pulled, np.array_split(whole, 4, axis), strict=True)]
"""

NOTEBOOK = f"""
s = hpcmagic.start(session="data", launcher="slurm", nodes=4, time="10")
x = np.random.default_rng(3).random((2 * MB // 8, 4))
s.scatter(x=x, axis=1)
told("parts", s.run("x.shape"), rows(s.pull("x"), x, 1), s.run("comm.size").same(), shared(s))
told("peers", [channel.sock.getpeername()[0] for channel in channels(s)])
told("hosts", s.run("import socket; socket.gethostbyname(socket.gethostname())"))
told("gathered", *crossing(lambda: s.gather("x")), bool((s.gather("x") == x).all()))

y = np.random.default_rng(4).integers(0, 255, 16 * MB, "u1")
told("pushed", *crossing(lambda: s.push(y=y)), s.run(HASH).same() == hashlib.sha256(y).hexdigest())
s.push({{"y": x}}, ranks=[1, 3])
told("pushed to two", s.run("y.ndim"), all((one == x).all() for one in s.pull("y", ranks="1,3")))

np.save("shared.npy", x)
told("from", *crossing(lambda: s.scatter(f=hpcmagic.File("shared.npy"))), rows(s.pull("f"), x, 0) == [True] * 4)
told("to", *crossing(lambda: s.gather("x", to="out.npy")), bool((np.load("out.npy") == x).all()))
told("left", [name for name in os.listdir() if "out.npy" in name])
s.run("import numpy, os\\nif rank != 2: numpy.save('/tmp/own.npy', numpy.ones((8 + rank, 2)))")
told("missing", *refused(lambda: s.scatter(f=hpcmagic.File("/tmp/own.npy"))))
s.run("if rank == 2: numpy.save('/tmp/own.npy', numpy.ones((8, 2)))")
told("different", *refused(lambda: s.scatter(f=hpcmagic.File("/tmp/own.npy"))))
told("not shared", *refused(lambda: s.gather("f", to="/tmp/there.npy")))
told("in /tmp", s.run("[name for name in os.listdir('/tmp') if name.endswith('.npy') or 'hpcmagic-part' in name]"))
s.run("os.remove('/tmp/own.npy')")
told("kept", s.run("f.shape"))

told("sniff")
sys.stdin.readline()
z = np.frombuffer(SECRET * (4 * MB // 64), "u1")
s.scatter(z=z)
s.gather("z")
s.push(z=z)
s.pull("z", ranks=2)
s.push(small=SMALL * 10)
s.pull("small")
told("moved")
sys.stdin.readline()
s.push(clear=CLEAR)
s.run("clear = comm.bcast(clear * 1000 if rank == 0 else None)")
told("broadcast")
sys.stdin.readline()

s.run("y = 'old'")
cell = s.run("import time; time.sleep(60)", ranks=[2], block=False)
threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
told("interrupted", *refused(lambda: s.push(y=y)))
told("unbound", s.run("y", ranks="0,1,3", timeout=10))
cell.cancel()
cell.wait(20)
s.push(y=y)
told("pushed again", s.run("int(y.sum())").same() == int(y.sum()))

told("attach")
sys.stdin.readline()

s.run("from hpcmagic.wire import bulk\\nbulk.GONE_S = {FOR_EVER_S}\\nx = 'old'")
bulk.GONE_S = {FOR_EVER_S}
s.data.channels.close()
slowly("scattering for ever")
told("cut", *refused(lambda: s.scatter(x=x)))
told("others", s.run("x", ranks="0,2-3", timeout=10))
sys.stdin.readline()
told("back", s.run("x", timeout=60))
s.scatter(x=x)
told("after", bool((s.gather("x") == x).all()))
s.stop()
"""

ON_A_NODE = """
s = hpcmagic.attach("data")
x = np.random.default_rng(5).random((2 * MB // 8, 4))
s.scatter(theirs=x)
told("shared", shared(s), s.run("theirs.shape"))
s.push(pushed=x)
told("whole", bool((s.gather("theirs") == x).all()), [bool((one == x).all()) for one in s.pull("pushed")])
s.control.close()
"""

SNIFFER = """
import json, socket, sys, threading
patterns = [bytes.fromhex(text) for text in sys.argv[1:]]
pieces = [[p[at : at + 16] for at in range(0, len(p), 16)] for p in patterns]
wires = []
for nic in ("n1", "n2", "n3", "n4"):
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    one.setsockopt(socket.SOL_SOCKET, 33, 128 << 20)  # SO_RCVBUFFORCE
    one.bind((nic, 3))
    one.settimeout(0.3)
    wires.append(one)
print("listening", flush=True)
over = threading.Event()
seen = {}

def listen(nic):
    nbytes, found = 0, set()
    while True:
        try:
            packet = wires[nic].recv(1 << 17)
        except TimeoutError:
            if over.is_set():
                break
            continue
        nbytes += len(packet)
        found |= {n for n, some in enumerate(pieces) if any(piece in packet for piece in some)}
    seen[nic] = [nbytes, sorted(found)]

threads = [threading.Thread(target=listen, args=(nic,)) for nic in range(4)]
for thread in threads:
    thread.start()
sys.stdin.readline()
over.set()
for thread in threads:
    thread.join()
print(json.dumps([seen[nic] for nic in range(4)]))
"""


class Told:
    """A process in the bed: what it tells, by what it is about."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [CLUSTER, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said, self.told, self._news = "", {}, queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with self.process.stdout as lines:
            for line in lines:
                self.said += line
                if line.startswith("@"):
                    what, *values = json.loads(line[1:])
                    self.told[what] = values
                self._news.put(line)
        self._news.put(None)

    def hears(self, what, seconds=60):
        """Wait until it has told something; give it."""
        while what not in self.told:
            try:
                line = self._news.get(timeout=seconds)
            except queue.Empty:
                line = None
            assert line is not None, f"it did not tell of {what}:\n{self.said}"
        return self.told[what]

    def go_on(self):
        """Let its `readline` return."""
        assert self.process.poll() is None, self.said
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def over(self, seconds=60):
        """Wait for its end, which must be a good one."""
        assert self.process.wait(seconds) == 0, self.said
        return self.told

    def end(self):
        """End it, however far it is."""
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(10)
        self._reader.join(10)


@contextmanager
def sniffing(opened):
    """Have every packet between the hosts looked at; gives what is found: bytes and patterns, by node."""
    patterns = [pattern.hex() for pattern in (SECRET, CLEAR, SMALL)]
    opened.append(sniffer := Told("hub", "/usr/bin/python3", "-u", "-c", SNIFFER, *patterns))
    while "listening" not in sniffer.said:
        assert sniffer._news.get(timeout=10) is not None, sniffer.said
    found = []
    yield found
    sniffer.go_on()
    sniffer.over()
    sniffer._reader.join(10)
    found.extend(json.loads(sniffer.said.splitlines()[-1]))


@contextmanager
def cut(cluster, node):
    """Pull a node's cable for the time of a block."""
    assert cluster.hub("ip", "link", "set", node, "down").returncode == 0
    try:
        yield
    finally:
        assert cluster.hub("ip", "link", "set", node, "up").returncode == 0


@pytest.fixture(scope="module")
def told(cluster):
    """What the notebook has told, the sniffer has seen, and a notebook on a node has told."""
    for folder in (".local/state/hpcmagic", ".config/hpcmagic", ".config/dask"):
        shutil.rmtree(HOME / folder, ignore_errors=True)
    opened = [Told("as", "alice", cluster.python, "-u", "-c", HEAD + dedent(NOTEBOOK))]
    notebook = opened[0]
    try:
        notebook.hears("sniff")
        with sniffing(opened) as sealed:
            notebook.go_on()
            notebook.hears("moved")
        with sniffing(opened) as clear:
            notebook.go_on()
            notebook.hears("broadcast")
        notebook.go_on()
        notebook.hears("attach")
        alice = (
            "setpriv",
            "--reuid=alice",
            "--regid=alice",
            "--init-groups",
            "--reset-env",
            "env",
            "--chdir=/home/alice",
        )
        opened.append(Told("on", "n2", *alice, cluster.python, "-u", "-c", HEAD + dedent(ON_A_NODE)))
        on_a_node = opened[-1].over()
        notebook.go_on()
        notebook.hears("scattering for ever")
        with cut(cluster, "n2"):
            notebook.hears("others")
        notebook.go_on()
        yield notebook.over() | {"sealed": sealed, "clear": clear, "on a node": on_a_node}
    finally:
        for one in opened:
            one.end()
        cluster.hub("scancel", "--user=alice")
        for name in ("shared.npy", "out.npy"):
            (HOME / name).unlink(missing_ok=True)


def test_there_and_back(told):
    """What is cut over four nodes is there in its parts, and comes back as it was."""
    rows = 2 * MB // 8
    assert told["parts"][:3] == [[[rows, 1]] * 4, [True] * 4, 4]
    came, left, right = told["gathered"]
    assert right
    assert 8 * MB < came < 1.05 * 8 * MB
    assert left < MB


def test_no_memory_is_shared_between_hosts(told):
    """Ranks on other hosts are reached over the wire; from a node, the rank on it shares memory, and all still works."""
    assert told["parts"][3] == [False] * 4
    assert len(set(told["peers"][0])) == 4
    assert told["peers"] == told["hosts"], "each is reached at its own node's address"
    assert told["on a node"]["shared"] == [[False, True, False, False], [[MB // 16, 4]] * 4]
    assert told["on a node"]["whole"] == [True, [True] * 4]


def test_push(told):
    """Of what all ranks get one copy leaves the hub; what some get reaches these alone."""
    came, left, right = told["pushed"]
    assert right
    assert 16 * MB < left <= 1.05 * 16 * MB
    assert came < MB
    assert told["pushed to two"] == [[1, 2, 1, 2], True]


def test_files(told):
    """Rows that lie in a file that all nodes see are read and written there: over the hub's interface go words only."""
    for way in ("from", "to"):
        came, left, right = told[way]
        assert right
        assert came + left < MB // 2
    assert told["left"] == [["out.npy"]]


def test_file_that_nodes_do_not_share(told):
    """A file on each node's own disk: who lacks it is named, rank and host, or has another; nothing is bound, or left."""
    name, text, _ = told["missing"]
    assert name == "RankError"
    assert "rank 2" in text
    assert "`/tmp/own.npy` is not there on host n3" in text
    name, text, _ = told["different"]
    assert name == "DataError"
    assert "ranks 1-3 have another than rank 0 on host n1; rank 1 is on host n2" in text
    assert "\n→ " in text
    assert told["kept"] == [[[MB // 16, 4]] * 4]
    name, text, _ = told["not shared"]
    assert name == "RankError"
    assert "`/tmp/there.npy`, begun by rank 0, is not there on host n2" in text
    assert told["in /tmp"] == [[["own.npy"]] * 4]


def test_nothing_to_read_on_the_wire(told):
    """Of what moves, small or large, to one rank or by MPI to all, no packet shows a trace; of the user's own MPI each does."""
    assert sum(nbytes for nbytes, _ in told["sealed"]) > 4 * 4 * MB
    assert [found for _, found in told["sealed"]] == [[]] * 4
    assert {pattern for _, found in told["clear"] for pattern in found} == {1}


def test_interrupt(told):
    """Ctrl-C while a rank is busy lets all others go; the next push to all works, by MPI as well."""
    name, text, took = told["interrupted"]
    assert (name, text.splitlines()[0]) == ("CellError", "Stopped: push y. Nothing was bound.")
    assert took < 6
    assert told["unbound"] == [["old"] * 3]
    assert told["pushed again"] == [True]


def test_network_cut_for_ever(told):
    """A scatter to a node that is not heard of again ends by naming the rank; no rank is bound, and later all work on."""
    name, text, took = told["cut"]
    assert name == "PeerLost"
    assert text.startswith("Rank 1: the bulk channel is cut: ")
    assert "\n→ " in text
    assert FOR_EVER_S - 2 < took < FOR_EVER_S + 12
    assert told["others"] == [["old"] * 3]
    assert told["back"] == [["old"] * 4]
    assert told["after"] == [True]
