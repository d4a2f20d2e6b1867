"""SlurmLauncher passes the contract of every launcher, as an ordinary user of a real SLURM.

The users of the bed have no pytest: each rule runs in their own Python, which gets the contract's text.
"""

import os
import pwd
import shutil
import tempfile
import time
from pathlib import Path

import launcher_contract
import pytest
from launcher_contract import LauncherContract

RULES = [name for name in vars(LauncherContract) if name.startswith("test_")]
RUN = """

from hpcmagic.launch.slurm import SlurmLauncher
import inspect, socket, sys


class SlurmContract(LauncherContract):
    unknown_id = "999999"
    may_take_s = 30.0


def make_spec(session):
    asked = Resources(launcher="slurm", mpi="none").with_origin("asked for", nodes=1, time="2")
    return spec_in(Path(sys.argv[2]), asked, session, submit_host=socket.gethostname())


rule = getattr(SlurmContract(), sys.argv[1])
there = {"launcher": SlurmLauncher(), "make_spec": make_spec}
rule(**{name: there[name] for name in inspect.signature(rule).parameters})
print("held")
"""


@pytest.fixture
def sessions(cluster):
    """A place for alice's sessions that all nodes see; emptied when her jobs are over."""
    alice = pwd.getpwnam("alice")
    path = Path(tempfile.mkdtemp(prefix="contract-", dir=alice.pw_dir))
    os.chown(path, alice.pw_uid, alice.pw_gid)
    yield path
    deadline = time.monotonic() + 30
    while cluster.jobs() and time.monotonic() < deadline:
        time.sleep(0.2)
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("rule", RULES)
def test_contract(cluster, sessions, rule):
    """Each rule of the contract holds for SlurmLauncher."""
    source = Path(launcher_contract.__file__).read_text() + RUN
    done = cluster.as_user("alice", cluster.python, "-", rule, str(sessions), input=source, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("held\n")
