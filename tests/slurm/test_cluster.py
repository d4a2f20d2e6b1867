"""The test bed itself: what the other tests here take for granted."""

import json
import subprocess
import time

import pytest

WORLD = """
import json, socket
from mpi4py import MPI
world = MPI.COMM_WORLD
hosts = world.gather(socket.gethostname())
total = world.allreduce(world.rank)
if world.rank == 0:
    print(json.dumps([world.size, total, sorted(hosts)]))
"""


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command that must have succeeded."""
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nodes_idle(cluster):
    """Every test starts from four idle nodes: what it waits for is never another test's job."""
    assert succeeded(cluster.hub("sinfo", "-h", "-p", "debug", "-o", "%D %t")) == "4 idle"


def test_four_hosts(cluster):
    """An ordinary user's job reaches four hosts that are told apart by name."""
    names = succeeded(cluster.as_user("alice", "srun", "-N4", "hostname"))
    assert sorted(names.split()) == list(cluster.nodes)


def test_private_tmp(cluster):
    """Nodes share no /tmp and no /dev/shm: code that counts on it fails here, as it does on a machine."""
    for place in ("/tmp", "/dev/shm"):
        command = f"test ! -e {place}/seen && touch {place}/seen && sleep 0.5 && rm {place}/seen"
        succeeded(cluster.as_user("alice", "srun", "-N4", "sh", "-c", command))


def test_mpi_world(cluster):
    """Ranks on four nodes are one MPI world, with the Python that an ordinary user has."""
    out = succeeded(cluster.as_user("alice", "srun", "--mpi=pmix", "-N4", cluster.python, "-c", WORLD))
    assert json.loads(out) == [4, 6, ["n1", "n2", "n3", "n4"]]


def test_package_importable(cluster):
    """Users run this checkout's package without being able to read the checkout."""
    code = "import hpcmagic; print(list(hpcmagic.__path__)[0])"
    assert succeeded(cluster.as_user("alice", cluster.python, "-c", code)).startswith("/opt/hpcmagic-site/")


def test_arguments_intact(cluster):
    """Arguments reach a user's command as given, whatever a shell would make of them."""
    words = ["a  b", "*", "$HOME", "`id`", "", "it's", "--", 'x"y']
    code = "import json, os, sys; print(json.dumps([sys.argv[1:], sys.stdin.read(), os.getcwd()]))"
    out = succeeded(cluster.as_user("bob", "/usr/bin/python3", "-c", code, *words, input="in"))
    assert json.loads(out) == [words, "in", "/home/bob"]


def test_login_environment(cluster, monkeypatch):
    """A user's command sees nothing of the environment of whoever runs the tests."""
    monkeypatch.setenv("HPCMAGIC_SECRET", "leaked")
    lines = succeeded(cluster.as_user("alice", "env")).splitlines()
    assert {"HOME=/home/alice", "USER=alice", "PATH=/usr/local/bin:/usr/bin:/bin"} <= set(lines)
    assert not [line for line in lines if "leaked" in line or line.startswith(("PIP_", "SLURM_", "VIRTUAL_ENV"))]


@pytest.mark.parametrize(("user", "account", "qos"), [("alice", "alice-lab", "normal"), ("bob", "bob-lab", "half")])
def test_accounting(cluster, user, account, qos):
    """A job is charged to its user's account: 2 nodes, 2 CPUs each and 4 GB in all bill 4 + 4 * 0.25."""
    wanted = ("-N2", "-n2", "-c2", "--mem=2G", f"--qos={qos}", "--wrap", "true")
    job = succeeded(cluster.as_user(user, "sbatch", "--parsable", "--output=/dev/null", *wanted))
    expected = f"COMPLETED|{account}|{qos}|billing=5,cpu=4,mem=4G,node=2"
    for _ in range(100):  # the database is told later, and of the end before the start: "Unknown" till then
        fields = "--format=state,account,qos,alloctres"
        row = succeeded(cluster.as_user(user, "sacct", "-X", "-n", "-P", "-j", job, fields))
        if row == expected:
            break
        time.sleep(0.1)
    assert row == expected


def test_usage_factors(cluster):
    """The qualities of service bill at 1, 0.5, 0 and 3 times the usage."""
    rows = succeeded(cluster.hub("sacctmgr", "-n", "-P", "show", "qos", "format=name,usagefactor")).split()
    factors = {name: float(factor) for name, factor in (row.split("|") for row in rows)}
    assert factors == {"normal": 1, "half": 0.5, "free": 0, "dear": 3}


def test_no_account_refused(cluster):
    """Who has no account cannot submit: limits are enforced."""
    done = cluster.as_user("carol", "sbatch", "--output=/dev/null", "--wrap", "true")
    assert done.returncode != 0
    assert "Invalid account" in done.stderr


def test_set_and_reset(cluster):
    """An option set for a test takes effect at once, and is gone after it."""
    endless = ("sbatch", "--parsable", "--output=/dev/null", "-p", "short", "-t", "30", "--wrap", "true")
    with cluster.configured(EnforcePartLimits="ALL"):
        done = cluster.as_user("alice", *endless)
        assert done.returncode != 0
        assert "time limit" in done.stderr
    job = succeeded(cluster.as_user("alice", *endless))  # the default: it is taken, and pends for ever
    succeeded(cluster.as_user("alice", "scancel", job))


def test_crash_repaired(cluster):
    """A node that crashed comes back with `up`, and the rest of the bed is left as it was."""

    def pids() -> dict[str, str]:
        return dict(line.split(": ") for line in cluster.verb("status").stdout.splitlines() if ": " in line)

    before = pids()
    cluster.verb("crash", "n3")
    cluster.verb("up")
    after = pids()
    assert {name for name in before if before[name] != after[name]} == {"slurmd.n3"}
    assert sorted(succeeded(cluster.as_user("alice", "srun", "-N4", "hostname")).split()) == list(cluster.nodes)


def test_up_twice(cluster):
    """`up` on a bed that is up changes nothing."""
    before = cluster.verb("status").stdout
    cluster.verb("up")
    assert cluster.verb("status").stdout == before
