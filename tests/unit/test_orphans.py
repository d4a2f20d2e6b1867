"""What belongs to no session is found, and nothing else: it may be ended."""

import os
from types import SimpleNamespace

import psutil
import pytest

from hpcmagic.errors import LaunchError
from hpcmagic.notebook.orphans import orphans
from hpcmagic.rendezvous import KeeperState

KEEPER = ["/usr/bin/python3", "-m", "hpcmagic.keeper"]


class Process:
    """A process as psutil tells of it."""

    def __init__(self, argv, pid=4711, uid=None):
        self.argv, self.pid, self.uid = argv, pid, os.getuid() if uid is None else uid
        self.killed = False

    def uids(self):
        """Whose it is."""
        return SimpleNamespace(real=self.uid)

    def cmdline(self):
        """Its command, or why that cannot be told."""
        if isinstance(self.argv, Exception):
            raise self.argv
        return list(self.argv)

    def kill(self):
        """End it, once."""
        if self.killed:
            raise psutil.NoSuchProcess(self.pid)
        self.killed = True


@pytest.fixture
def processes(monkeypatch):
    """The processes of this machine; at first none."""
    there = []
    monkeypatch.setattr(psutil, "process_iter", lambda *_: iter(there))
    return there


@pytest.fixture
def queue(said, processes):
    """SLURM's queue, with the rows that the test puts in; nothing runs here."""
    rows = []

    def line(job, word, elapsed):
        return f"{job}|{word}|None|N/A|{elapsed}|1:00:00||x\n"

    said["squeue"] = lambda _: "".join(line(*row.split("|")) for row in rows)
    said["scontrol"] = "#!/bin/sh\nexec /usr/bin/python3 -m hpcmagic.keeper '/gone/a b'\n"
    return rows


@pytest.fixture
def no_slurm(said):
    """A machine without SLURM."""
    missing = LaunchError("SLURM's squeue is not on this machine.")
    missing.__cause__ = FileNotFoundError()
    said["sinfo"] = said["squeue"] = missing


# ---- processes here


@pytest.fixture
def directory(laptop):
    """The directory of a session on this machine."""
    return laptop.cell().directory


@pytest.mark.parametrize("module", ["hpcmagic.keeper", "hpcmagic.engine"])
def test_process_without_a_session(tmp_path, processes, no_slurm, module):
    """A keeper or a rank whose session's directory is gone is listed with its place, and ended when asked to."""
    process = Process(["/usr/bin/python3", "-m", module, str(tmp_path / "gone")])
    processes.append(process)
    (found,) = orphans()
    assert found.what == f"process 4711 here: {module} of {tmp_path / 'gone'}"
    assert not process.killed
    found.end()
    assert process.killed
    found.end()


def test_empty_directory(tmp_path, processes, no_slurm):
    """A directory that holds no request is no session's."""
    processes.append(Process([*KEEPER, str(tmp_path)]))
    assert len(orphans()) == 1


@pytest.mark.parametrize("phase", [None, "starting", "ready", "fallen"])
def test_process_of_a_session(directory, processes, no_slurm, phase):
    """A process whose session lives, is only starting, or is held without ranks, is no orphan."""
    if phase is not None:
        directory.write_record(directory.state, KeeperState(phase, keeper_pid=1))
    processes.append(Process([*KEEPER, str(directory.path)]))
    assert orphans() == []


def test_process_of_a_session_that_is_over(directory, processes, no_slurm):
    """Of a session that has ended its keeper may still be at work; all others are left over."""
    directory.write_record(directory.state, KeeperState("ended", keeper_pid=1))
    rank = ["python", "-m", "hpcmagic.engine", str(directory.path)]
    processes += [Process([*KEEPER, str(directory.path)], pid=1), Process(rank, pid=2)]
    assert [found.what.split()[1] for found in orphans()] == ["2"]


@pytest.mark.parametrize(
    "process",
    [
        Process([]),
        Process(["/sbin/init"]),
        Process(["python", "-m"]),
        Process(["python", "-m", "hpcmagic.keeper"]),
        Process(["python", "-m", "pytest", "/gone"]),
        Process(["vi", "hpcmagic.keeper", "-m", "/gone"]),
        Process([*KEEPER, "/gone"], uid=os.getuid() + 1),
        Process(psutil.NoSuchProcess(4711)),
        Process(psutil.ZombieProcess(4711)),
        Process(psutil.AccessDenied(4711)),
    ],
    ids=[
        "a kernel thread", "init", "no module", "no directory", "another module", "an editor", "another user's",
        "just gone", "a zombie", "not to be seen",
    ],
)  # fmt: skip
def test_not_ours(processes, no_slurm, process):
    """Whatever else runs here, or ceases to at this moment, is left alone."""
    processes.append(process)
    assert orphans() == []


@pytest.mark.parametrize("error", [OSError(116, "Stale file handle"), LaunchError("state.json is damaged.", "…")])
def test_directory_that_cannot_be_read(directory, processes, no_slurm, monkeypatch, error):
    """A process whose session cannot be read at the moment, as a file system hiccups, is left alone."""

    def read_record(*_):
        raise error

    monkeypatch.setattr(type(directory), "read_record", read_record)
    processes.append(Process([*KEEPER, str(directory.path)]))
    assert orphans() == []


# ---- jobs


def test_job_without_a_session(queue, said):
    """A job of ours that no session is known of is listed, and cancelled when asked to."""
    queue.append("17|RUNNING|1:02:03")
    said["scancel"] = ""
    (found,) = orphans()
    assert found.what == "job 17, running, for 1 h 2 min"
    assert ["scancel", "17"] not in [command for command, _ in said["asked"]]
    found.end()
    assert ["scancel", "17"] in [command for command, _ in said["asked"]]


def test_jobs_of_sessions(desk, queue):
    """A job that a session is known of is no orphan; others beside it are, each cancelled by its own id."""
    held = desk.cell(nodes=1)
    queue += [f"{held.job.job_id}|PENDING|0:00", "18|PENDING|0:00", "19|RUNNING|0:01"]
    assert [found.what.split(",")[0] for found in orphans()] == ["job 18", "job 19"]


def test_session_that_no_profile_knows(desk, queue, said, tmp_path):
    """A session whose directory was only named when it was started lives: its job's script tells of it."""
    held = desk.cell(nodes=1, session_dir=str(tmp_path / "else where"))
    said["scontrol"] = f"exec python -m hpcmagic.keeper '{held.directory.path}'\n"
    queue += [f"{held.job.job_id}|RUNNING|0:10", "19|RUNNING|0:01"]  # of this one that directory is not
    assert [found.what.split(",")[0] for found in orphans()] == ["job 19"]


@pytest.mark.parametrize("answer", [(1, "", "job script retrieval failed"), "", LaunchError("it did not answer")])
def test_script_that_is_not_told(queue, said, answer):
    """Where SLURM does not tell a job's script, nobody knows whose it is: it is left alone."""
    queue.append("17|RUNNING|0:10")
    said["scontrol"] = answer
    assert orphans() == []


def test_job_that_has_just_ended(queue):
    """A job that is over is nobody's orphan, though the queue still tells of it."""
    queue += ["17|CANCELLED|0:05", "18|COMPLETING|0:05"]
    assert orphans() == []


def test_each_ends_its_own(queue, said):
    """Of several jobs each is cancelled for itself."""
    queue += ["18|PENDING|0:00", "19|RUNNING|0:01"]
    said["scancel"] = ""
    for found in orphans():
        found.end()
    assert [command for command, _ in said["asked"] if command[0] == "scancel"] == [
        ["scancel", "18"],
        ["scancel", "19"],
    ]


def test_only_our_jobs(queue, said):
    """SLURM is asked for the user's own jobs of our name only."""
    orphans()
    (asked,) = (command for command, _ in said["asked"] if command[0] == "squeue")
    assert {"--me", "--name=hpcmagic"} <= set(asked)


def test_session_being_made(desk, queue):
    """While a session is being made nobody can tell whose a new job is: none is listed."""
    held = desk.cell(nodes=1)
    held.directory.job.unlink()
    queue.append("17|PENDING|0:00")
    assert orphans() == []


@pytest.mark.parametrize(
    "answer",
    ["", "\n", "slurm_load_jobs error\n", (1, "", "slurm_load_jobs error: Unable to contact slurm controller"),
     LaunchError("squeue did not answer")],
)  # fmt: skip
def test_queue_that_says_nothing(said, processes, answer):
    """Where the queue does not answer, nothing is listed, and nothing fails."""
    said["squeue"] = answer
    assert orphans() == []


@pytest.mark.parametrize("answer", [(1, "", "Unable to contact slurm controller"), LaunchError("it did not answer")])
def test_slurm_that_does_not_answer(said, processes, answer):
    """Where SLURM as a whole does not answer, what is here is listed all the same."""
    said["sinfo"] = answer
    processes.append(Process([*KEEPER, "/gone"]))
    assert len(orphans()) == 1


def test_no_slurm(processes, no_slurm, said):
    """A machine without SLURM has no jobs; one command is enough to know."""
    assert orphans() == []
    assert [command[0] for command, _ in said["asked"]] == ["squeue"]
