"""A simulation over four real nodes is watched and steered from the hub; no other user can, and a lost rank is named.

What is done is done by a script of alice's, with one job; each test reads what it said.
"""

import hashlib
import json
import re
import time
from bisect import bisect
from pathlib import Path

import pytest
from scripts import Script

STATE = Path("/home/alice/.local/state/hpcmagic")
NAMED_S = 15.0  # within which a rank that was killed is named
PROVED_S = 5.0  # so long may a stranger say nothing

SCRIPT = """
import hpcmagic, json, os, subprocess, sys, time
import numpy as np
from hpcmagic.errors import HpcMagicError
from hpcmagic.wire.bulk import Invitation, connect

def told(kind, what=None):
    print("@" + json.dumps([kind, what]), flush=True)

def refused(work, *args, **kwargs):
    try:
        work(*args, **kwargs)
    except HpcMagicError as error:
        return [type(error).__name__, error.message]
    return ["", "nothing was refused"]

SIMULATION = '''
import hashlib, os, time
import numpy as np
from hpcmagic import steer

live, seen, began, moved = steer.live(comm), hashlib.sha256(), [], 0.0
place = np.add.outer(np.arange(32.0 * rank, 32 * rank + 32), 2 * np.arange(64))
u = place.copy()
for step in live.steps(10**9):
    began.append(time.monotonic())
    dt, kick = live.param("dt", 1e-3, min=0.0, max=1e-2), live.param("kick", 1)
    moved += dt * kick
    seen.update(repr((step, dt, kick, moved)).encode())
    np.add(place, moved, out=u)
    time.sleep(0.005)
    live.publish(moved=moved, twice=2 * step)
    live.field("u", u, box=((32 * rank, 32 * rank + 32), (0, 64)))
(step, seen.hexdigest(), os.uname().nodename, began)
'''

EVENTS = '''
def changes(s):
    return [[e.user, e.step, {name: new for name, _, new in e.changes}] for e in s.steer.events() if e.changes]
'''
exec(EVENTS)

OTHER = EVENTS + '''
import hpcmagic, json, sys
s = hpcmagic.attach("steer")
applied = s.steer.set(kick=3).step
steps, values = s.steer.series("twice")
print("@" + json.dumps([applied, int(steps[0]), bool((values == 2 * steps).all())]), flush=True)
sys.stdin.readline()
print("@" + json.dumps(changes(s)), flush=True)
'''

def hears(other):
    for line in other.stdout:
        if line.startswith("@"):
            return json.loads(line[1:])
        print("the other kernel:", line, end="")

s = hpcmagic.start(session="steer", launcher="slurm", nodes=4, time="10")
os.chdir(os.path.expanduser("~"))
job = s.job.job_id
h = s.run(SIMULATION, block=False)
told("params", {name: param.value for name, param in s.steer.params().items()})
applied = [s.steer.set(dt=2e-3).step, s.steer.set(dt=5e-3, kick=2).step]
told("refused", [refused(s.steer.set, dt=1.0), refused(s.steer.set, none=1)])
piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
with subprocess.Popen([sys.executable, "-c", OTHER], **piped) as other:
    saw = hears(other)
    told("saw", saw)
    applied += [saw[0], s.steer.set(kick=4).step]
    other.stdin.write("go on\\n")
    other.stdin.flush()
    told("theirs", hears(other))
told("ours", changes(s))
told("applied", applied)

def last():
    return int(s.steer.series("twice")[0][-1])

def picture():
    off = s.steer.field("u") - np.add.outer(np.arange(128), 2 * np.arange(64))
    return [off.shape, float(off.max() - off.min())]

paused = s.steer.pause().step
pictures = [picture()]  # it comes when all ranks have come there: rank 0 may be ahead of the others
since = time.monotonic()
time.sleep(0.3)
told("stood", [since, time.monotonic()])
stand = [paused, last(), s.steer.step().step]
time.sleep(0.1)
told("paused", [*stand, s.steer.pause().step, last(), s.steer.resume().step])
pictures.append(picture())
told("field", pictures)

announced = Invitation.fresh()
address = s.data.channels.invite({2: announced})[2]
told("port", [address.host, address.port, announced.channel, str(s.directory.path)])
while not os.path.exists("bob-was-there"):
    time.sleep(0.05)
known = Invitation.fresh()
again = s.data.channels.invite({2: known})[2]
connect(again.host, again.port, known, s.request.server_public).close()  # it opens to who is announced
told("same port", again.port == address.port)
told("stop", s.steer.stop().step)
steps, values = s.steer.series("twice")
told("series", [len(steps), int(steps[0]), int(steps[-1]), bool((values == 2 * steps).all())])
told("ends", list(h.result(timeout=30)))
logs = sorted(name for name in os.listdir() if name.startswith("steering-"))
told("log", [json.loads(line) for line in open(logs[-1])])

pid = s.run("os.getpid()")[2]
h = s.run(SIMULATION, block=False)
told("victim", [pid, s.steer.set(kick=7).step])

def steers_on():
    for number in range(10**6):
        s.steer.set(kick=number)

told("steered", refused(steers_on))
told("lost", refused(h.result, timeout=30))
s.restart()
h = s.run(SIMULATION, block=False)
s.steer.set(kick=9)
stop = s.steer.stop().step
told("again", [s.job.job_id == job, [one[0] == stop - 1 for one in h.result(timeout=30)]])
s.stop()
"""

KNOCK = """
import json, os, socket, sys, time
from hpcmagic.wire.bulk import HELLO_NBYTES, MAGIC
host, port, channel = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
junk = os.urandom(HELLO_NBYTES)
words = b"", junk, MAGIC + junk[len(MAGIC) :], (MAGIC + channel + junk)[:HELLO_NBYTES]
knocks = [socket.create_connection((host, port), timeout=10) for _ in words]
began = time.monotonic()
for knock, word in zip(knocks, words):
    knock.sendall(word)
for knock in reversed(knocks):
    try:
        heard = knock.recv(64).hex()
    except ConnectionResetError:
        heard = ""
    print(json.dumps([heard, time.monotonic() - began]))
"""


@pytest.fixture(scope="module")
def said(cluster):
    """All that the script has told, what bob has met with, and when the loss of a rank was told."""
    cluster.as_user("alice", "sh", "-c", f"rm -rf {STATE} ~/bob-was-there ~/steering-*.jsonl")
    script = Script(cluster, SCRIPT)
    try:
        *port, directory = script.hears("port", 60)
        attach = f"import hpcmagic; hpcmagic.attach('steer', session_dir={str(Path(directory).parent)!r})"
        bob = cluster.as_user("bob", cluster.python, "-c", attach)
        knock = cluster.as_user("bob", cluster.python, "-c", KNOCK, *map(str, port))
        cluster.as_user("alice", "touch", "/home/alice/bob-was-there")
        pid, _ = script.hears("victim", 60)
        assert cluster.on("n3", "kill", "-9", str(pid)).returncode == 0
        killed_s = time.monotonic()
        script.hears("lost", 60)
        took_s = time.monotonic() - killed_s
        return {**script.over(90), "bob": bob, "knock": knock, "took_s": took_s}
    finally:
        script.end()
        cluster.as_user("alice", "sh", "-c", "rm -f ~/bob-was-there ~/steering-*.jsonl")


def test_same_on_all_nodes(said):
    """Every rank, each on a node of its own, saw the same at the same steps, to the bit what the log says was set."""
    assert said["params"] == {"dt": 1e-3, "kick": 1}
    assert len({node for _, _, node, _ in said["ends"]}) == 4
    assert [step for step, *_ in said["ends"]] == [said["stop"] - 1] * 4
    changed = {}
    for line in said["log"]:
        if line["name"]:
            changed.setdefault(line["step"], {})[line["name"]] = line["new"]
    assert sorted(changed) == said["applied"]
    seen, values, moved = hashlib.sha256(), dict(said["params"]), 0.0
    for step in range(said["stop"]):
        values.update(changed.get(step, {}))
        moved += values["dt"] * values["kick"]
        seen.update(repr((step, values["dt"], values["kick"], moved)).encode())
    assert [digest for _, digest, *_ in said["ends"]] == [seen.hexdigest()] * 4


def test_refused(said):
    """What is out of range, or declared nowhere, is refused with its reason."""
    assert said["refused"] == [
        ["SteerError", "Refused: dt = 1.0 is above its greatest value, 0.01."],
        ["SteerError", "Refused: none is no parameter of this simulation: there is dt, kick."],
    ]


def test_another_notebook(said):
    """A second kernel of alice's steers it too and has its curves from the first step; both hear of all changes."""
    first, _, second, _ = (user for user, *_ in said["ours"])
    assert first != second
    changes = [{"dt": 2e-3}, {"dt": 5e-3, "kick": 2}, {"kick": 3}, {"kick": 4}]
    users = [first, first, second, first]
    assert said["ours"] == [list(one) for one in zip(users, said["applied"], changes, strict=True)]
    assert said["theirs"] == said["ours"]
    assert said["saw"] == [said["applied"][2], 0, True]


def test_pause(said):
    """Paused, all ranks stand before the same step; a single step is one; then it goes on."""
    paused = said["paused"][0]
    assert said["paused"] == [paused, paused - 1, paused, paused + 1, paused, paused + 1]
    for *_, began in said["ends"]:
        assert [bisect(began, moment) for moment in said["stood"]] == [paused, paused]
    assert said["stop"] > paused + 1


def test_field(said):
    """A picture, of a paused simulation or a running one, has each rank's part where it belongs, to a level of 254."""
    for shape, off in said["field"]:
        assert shape == [128, 64]
        assert off <= 2.0


def test_series(said):
    """The curve has every step from the first to the last."""
    assert said["series"] == [said["stop"], 0, said["stop"] - 1, True]


def test_another_user(said):
    """Another user cannot attach; at a rank's port he is given no byte and sent away, even with a connection's name."""
    assert said["bob"].returncode != 0
    assert "ProfileError: You may not look into" in said["bob"].stderr, said["bob"].stderr
    assert said["knock"].returncode == 0, said["knock"].stderr
    named, known, junk, silent = map(json.loads, said["knock"].stdout.splitlines())
    assert [heard for heard, _ in (named, known, junk, silent)] == [""] * 4
    assert max(took_s for _, took_s in (named, known, junk)) < PROVED_S - 1  # sent away at once
    assert PROVED_S - 1 < silent[1] < PROVED_S + 3
    assert said["same port"]  # the port that lets in who was announced


def test_lost_rank(said):
    """A rank killed on its node in mid-loop is named to who steers and who waits; after a restart it goes as before."""
    for kind, why in (said["steered"], said["lost"]):
        assert kind == "SessionEnded"
        assert "rank 2" in why
        assert re.search("SIGKILL|Killed", why)
    assert said["took_s"] < NAMED_S
    assert said["again"] == [True, [True] * 4]
