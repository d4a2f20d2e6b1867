"""Unit tests meet no network, no sleep, no batch system, and nothing of the user who runs them."""

import os
import socket
import subprocess
import sys
import time

import hypothesis
import pytest

from hpcmagic import profiles
from hpcmagic.launch import charges, slurm
from hpcmagic.notebook import found, frontend, start
from hpcmagic.profiles import Resources
from hpcmagic.testing import FakeLauncher

hypothesis.settings.register_profile("unit", database=None, deadline=None, derandomize=True)
hypothesis.settings.load_profile("unit")

OF_THE_USER = ("HPCMAGIC_", "SBATCH_", "SLURM_", "DASK_", "JPY_", "JUPYTERHUB_")


SAYS = {
    "scontrol -o show partition": (
        "PartitionName=debug Default=YES TotalNodes=4 TRES=cpu=16,mem=20000M,node=4,gres/gpu=8 "
        "TRESBillingWeights=CPU=1.0,GRES/gpu=8.0"
    ),
    "scontrol show config": "AccountingStorageType = accounting_storage/slurmdbd\nSelectType = select/cons_tres",
    "sacctmgr -n -P show qos": "normal|1.000000\nhalf|0.500000\nfree|0.000000",
    "sacctmgr -n -P show user": "lab|lab|normal|normal,half,free",
    "scontrol -o show assoc_mgr flags=assoc": (
        "Account=lab UserName= ParentAccount= GrpTRESMins=cpu=N(0),billing=5000(4000) GrpTRESRunMins=billing=N(100)"
    ),
}


@pytest.fixture(autouse=True)
def empty_house(tmp_path, monkeypatch):
    """Let every test begin without profiles, sessions or variables of the user's."""
    for name in os.environ:
        if name.startswith(OF_THE_USER):
            monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(profiles, "SITE_FILE", tmp_path / "site.toml")
    monkeypatch.setattr(charges, "BOOKS", charges.Books(lambda _command: None))  # SLURM tells nothing of prices
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(slurm, "POLL", slurm.shared_poll())  # what other tests have asked is not known here


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Fail a test whose code sleeps or connects anywhere: it should have been given a fake."""
    sleep, connect = time.sleep, socket.socket.connect

    def guarded_sleep(seconds):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        assert not caller.startswith("hpcmagic"), f"{caller} slept for {seconds} s"
        sleep(seconds)

    def guarded_connect(self, address):
        assert not isinstance(address, tuple), f"somebody connected to {address}"
        return connect(self, address)

    monkeypatch.setattr(time, "sleep", guarded_sleep)
    monkeypatch.setattr(socket.socket, "connect", guarded_connect)


SINFO = "debug*|30:00|1:00:00\nlong|n/a|7-00:00:00\nforever|NONE|infinite\n"


def sinfo(command):
    """Answer as sinfo does: of the partition that was asked for, or of all."""
    asked = next((word.partition("=")[2] for word in command if word.startswith("--partition=")), "")
    return "".join(row for row in SINFO.splitlines(keepends=True) if row.startswith(asked))


@pytest.fixture
def said(monkeypatch):
    """Answer SLURM's commands: by the command's name, text or (exit status, stdout, stderr). None is ever run."""
    answers_to = {"sinfo": sinfo}
    asked = []

    def run(command, *, stdin=None, timeout_s=0):
        asked.append((list(command), stdin))
        answer = answers_to.get(command[0], (127, "", f"{command[0]} was not expected"))
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(command)
        status, stdout, stderr = answer if isinstance(answer, tuple) else (0, answer, "")
        return subprocess.CompletedProcess(command, status, stdout, stderr)

    monkeypatch.setattr(slurm, "run", run)
    answers_to["asked"] = asked
    return answers_to


class Desk:
    """Starts sessions in a batch system of the test's, without waiting for ranks."""

    def __init__(self, monkeypatch, name):
        self.launcher = FakeLauncher(name=name)
        self.waited = []
        monkeypatch.setattr(slurm, "answers", lambda: name == "slurm")
        for kind in ("local", "slurm"):
            monkeypatch.setitem(found.LAUNCHERS, kind, lambda: self.launcher)
        monkeypatch.setattr(frontend, "shell", lambda: None)
        monkeypatch.setattr(start, "wait_until_ready", self.wait)

    def wait(self, held, **_kwargs):
        """Instead of waiting, give what would be waited for."""
        self.waited.append(held)
        return held

    def cell(self, session="demo", **options):
        """What a cell of `%%remote` does: it asks for nothing that is not on its line."""
        return start.start(session, unasked=False, **options)

    def directory(self, name="demo"):
        """A session's directory."""
        return Resources().directory / name

    @property
    def alive(self):
        """The jobs that are in the queue or run."""
        return [job for job, state in self.launcher.jobs.items() if state.phase != "ended"]


@pytest.fixture
def desk(monkeypatch):
    """A machine with SLURM."""
    return Desk(monkeypatch, "slurm")


@pytest.fixture
def laptop(monkeypatch):
    """A machine without."""
    return Desk(monkeypatch, "local")


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A notebook's file, as Jupyter Server tells of it."""
    path = tmp_path / "work" / "analysis.ipynb"
    path.parent.mkdir()
    path.write_text("{}")
    monkeypatch.setattr(frontend, "shell", lambda: None)
    monkeypatch.setenv("JPY_SESSION_NAME", str(path))
    return path


@pytest.fixture
def says(monkeypatch):
    """What SLURM says, by the beginning of a command."""
    answers = dict(SAYS)

    def ask(command):
        line = " ".join(command)
        said = next((said for begin, said in answers.items() if line.startswith(begin)), None)
        return None if said is None else said.splitlines()

    monkeypatch.setattr(charges, "BOOKS", charges.Books(ask, wait_s=10.0))
    return answers
