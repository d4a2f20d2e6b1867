"""A simulation over four real nodes is watched and steered from the hub; no other user can, and a lost rank is named.

What is done is done by a script of alice's, with one job; each test reads what it said.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from scripts import Script

STATE = Path("/home/alice/.local/state/hpcmagic")

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

live, seen, dt, kick = steer.live(comm), hashlib.sha256(), 0.0, 0
u = np.zeros((32, 64)) + rank
for step in live.steps(10**9):
    dt, kick = live.param("dt", 1e-3, min=0.0, max=1e-2), live.param("kick", 1)
    seen.update(repr((step, dt, kick)).encode())
    u += dt * kick
    time.sleep(0.003)
    live.publish(mean=float(u.mean()), twice=2 * step)
    live.field("u", u, box=((32 * rank, 32 * rank + 32), (0, 64)))
(step, seen.hexdigest(), float(u[0, 0] - rank), os.uname().nodename, os.getpid())
'''

OTHER = '''
import hpcmagic
s = hpcmagic.attach("steer")
print("applied", s.steer.set(kick=3).step, flush=True)
print("events", [e.user for e in s.steer.events() if e.verb == "set"], flush=True)
print("series", s.steer.series("twice")[0][0], s.steer.field("u").shape, flush=True)
'''

s = hpcmagic.start(session="steer", launcher="slurm", nodes=4, time="10")
os.chdir(os.path.expanduser("~"))
h = s.run(SIMULATION, block=False)
told("alive", sorted(s.steer.params()))
changes = [s.steer.set(dt=2e-3).step, s.steer.set(dt=5e-3, kick=2).step]
told("refused", [refused(s.steer.set, dt=1.0), refused(s.steer.set, none=1)])
done = subprocess.run([sys.executable, "-c", OTHER], capture_output=True, text=True, timeout=60)
told("other", done.stdout + done.stderr[-1500:])
told("told", [[e.verb, e.step, e.changes] for e in s.steer.events()])
paused = s.steer.pause().step
time.sleep(0.3)
told("paused", [paused, s.steer.mirror().newest.step, s.steer.step().step, s.steer.resume().step])
field = s.steer.field("u")
told("field", [field.shape, [len(set(part.ravel().tolist())) for part in np.array_split(field, 4)],
               [float(part.mean()) for part in np.array_split(field, 4)]])
address = s.data.channels.invite({2: Invitation.fresh()})[2]
told("stranger", refused(connect, address.host, address.port, Invitation.fresh(), s.request.server_public))
told("directory", str(s.directory.path))
while not os.path.exists("bob-was-there"):
    time.sleep(0.05)
stop = s.steer.stop().step
steps, values = s.steer.series("twice")
told("series", [int(steps[0]), int(steps[-1]), bool((values == 2 * steps).all())])
told("ends", [stop, *h.result(timeout=30)])
logs = sorted(name for name in os.listdir() if name.startswith("steering-"))
told("log", [json.loads(line) for line in open(logs[-1])])

pid = s.run("os.getpid()")[2]
h = s.run(SIMULATION, block=False)
s.steer.set(kick=7)
told("victim", pid)
while not os.path.exists("rank-was-killed"):
    time.sleep(0.05)
told("lost", refused(h.result, timeout=30))
told("steered", refused(s.steer.set, kick=8))
s.restart()
h = s.run(SIMULATION, block=False)
told("again", [s.steer.set(kick=9).step >= 0, s.steer.stop().step >= 0, len(h.result(timeout=30))])
s.stop()
"""


@pytest.fixture(scope="module")
def said(cluster):
    """All that the script has told."""
    home = STATE.parents[2]
    cluster.as_user("alice", "sh", "-c", f"rm -rf {STATE} ~/bob-was-there ~/rank-was-killed ~/steering-*.jsonl")
    script = Script(cluster, SCRIPT)
    try:
        directory = script.hears("directory", 60)
        attach = f"import hpcmagic; hpcmagic.attach('steer', session_dir={str(Path(directory).parent)!r})"
        bob = cluster.as_user("bob", cluster.python, "-c", attach, timeout=60)
        cluster.as_user("alice", "touch", str(home / "bob-was-there"))
        victim = script.hears("victim", 60)
        assert cluster.on("n3", "kill", "-9", str(victim)).returncode == 0
        cluster.as_user("alice", "touch", str(home / "rank-was-killed"))
        return {**script.over(90), "bob": bob}
    finally:
        script.end()
        cluster.as_user("alice", "sh", "-c", "rm -f ~/bob-was-there ~/rank-was-killed ~/steering-*.jsonl")


def test_same_on_all_nodes(said):
    """Every rank, each on a node of its own, has seen the same values at the same steps, and stopped at the same one."""
    stop, *ranks = said["ends"]
    assert len({node for *_, node, _ in ranks}) == 4
    assert {step for step, *_ in ranks} == {stop - 1}
    changed = {}
    for line in said["log"]:
        if line["name"]:
            changed.setdefault(line["step"], {})[line["name"]] = line["new"]
    seen, values, moved = hashlib.sha256(), {"dt": 1e-3, "kick": 1}, 0.0
    for step in range(stop):
        values.update(changed.get(step, {}))
        seen.update(repr((step, values["dt"], values["kick"])).encode())
        moved += values["dt"] * values["kick"]
    assert {digest for _, digest, *_ in ranks} == {seen.hexdigest()}
    assert [float(u) for _, _, u, *_ in ranks] == pytest.approx([moved] * 4)


def test_refused(said):
    """What is out of range, or declared nowhere, is refused with its reason."""
    (kind, why), (_, unknown) = said["refused"]
    assert kind == "SteerError"
    assert "dt" in why
    assert "0.01" in why
    assert "none" in unknown


def test_another_notebook(said):
    """A second kernel of alice's steers the same simulation, sees it from its first step, and the first hears of it."""
    applied = re.search(r"^applied (\d+)$", said["other"], re.MULTILINE)
    assert applied, said["other"]
    assert re.search(r"^series 0 \(128, 64\)$", said["other"], re.MULTILINE)
    sets = [
        (step, {name: new for name, _, new in changes})
        for verb, step, changes in said["told"]
        if verb == "set" and changes
    ]
    assert [change for _, change in sets] == [{"dt": 2e-3}, {"dt": 5e-3, "kick": 2}, {"kick": 3}]
    assert sets[-1][0] == int(applied[1])


def test_pause(said):
    """Paused, nothing moves; a single step is one; then it goes on."""
    paused, seen, one, on = said["paused"]
    assert paused == seen
    assert paused <= one <= on <= paused + 1


def test_field(said):
    """The picture has each rank's part where it belongs."""
    shape, levels, means = said["field"]
    assert shape == [128, 64]
    assert levels == [1, 1, 1, 1]
    assert np.diff(means) == pytest.approx([1.0, 1.0, 1.0], abs=0.05)


def test_series(said):
    """The curve is there from the first step to the last."""
    first, last, right = said["series"]
    assert (first, right) == (0, True)
    assert last == said["ends"][0] - 1


def test_others_are_refused(said):
    """Another user cannot come to the session; who knows only a rank's port is sent away, and nothing is disturbed."""
    assert said["bob"].returncode != 0
    assert re.search("PermissionError|ProfileError|LaunchError", said["bob"].stderr)
    assert said["stranger"][0] == "PeerLost"


def test_lost_rank(said):
    """A rank that is killed on its node ends the simulation, and is named; a restart gives ranks that can be steered."""
    kind, why = said["lost"]
    assert kind in {"SessionEnded", "RankError", "PeerLost"}
    assert "rank 2 Killed" in why  # as srun says it
    assert said["steered"][0]
    assert said["again"] == [True, True, 4]
