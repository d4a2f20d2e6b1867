"""Why a session is over: by whoever knows best, with what is lost and how to start again."""

import time
from types import SimpleNamespace

import pytest
from two_lines import two_lines

from hpcmagic.errors import SessionEnded
from hpcmagic.launch.base import JobState
from hpcmagic.notebook import causes
from hpcmagic.notebook.causes import (
    SETTLE_S,
    cause_of_end,
    ended_error,
    fallen_error,
    held_until,
    job_cause,
    settled,
    whole_story,
)
from hpcmagic.rendezvous import TERMINATED, JobRecord, KeeperState, SessionDirectory
from hpcmagic.testing import FakeClock

LOCAL, SLURM = JobRecord("local", "4711", 0.0), JobRecord("slurm", "17", 0.0)
RANKS_ENDED = "the ranks ended with status 1"
TIMEOUT = JobState("ended", "TIMEOUT", meaning="its walltime was reached")


class Queue:
    """A batch system that says one thing after the other, then the last for ever."""

    def __init__(self, *says):
        self.says = list(says)
        self.asked = []

    def state(self, job_id):
        """Give what is to be said next."""
        self.asked.append(job_id)
        return self.says.pop(0) if len(self.says) > 1 else self.says[0]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that sleeping moves."""
    clock = FakeClock()
    monkeypatch.setattr(causes, "time", SimpleNamespace(monotonic=clock, sleep=clock.advance, time=time.time))
    return clock


def ended(cause):
    """The keeper's last word."""
    return KeeperState("ended", cause=cause)


@pytest.mark.parametrize("job", [LOCAL, None])
@pytest.mark.parametrize(
    ("said", "cause"),
    [(TERMINATED, "it was stopped"), (RANKS_ENDED, RANKS_ENDED), ("nobody came for 2 h", "nobody came for 2 h")],
)
def test_here(job, said, cause):
    """On this machine the keeper knows best, and nobody else is asked."""
    assert cause_of_end(ended(said), Queue(), job) == cause


@pytest.mark.parametrize("said", [TERMINATED, RANKS_ENDED])
@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (TIMEOUT, "its walltime was reached"),
        (JobState("ended", "CANCELLED", meaning="it was cancelled by you"), "it was cancelled by you"),
        (JobState("ended", "NODE_FAIL", meaning="a node failed"), "a node failed"),
        (JobState("ended", "OUT_OF_MEMORY", meaning="too much memory"), "too much memory"),
        (JobState("ended", "PREEMPTED"), "SLURM says PREEMPTED"),
        (JobState("ended", "FAILED", meaning="it ended with exit status 1"), None),
        (JobState("ended", "COMPLETED"), None),
        (JobState("ended", "GONE", meaning="accounting does not know it"), None),
        (JobState("running", "RUNNING"), None),
        (JobState("unknown", meaning="squeue did not answer"), None),
    ],
)
def test_what_slurm_did(said, seen, cause):
    """What SLURM did to the job, SLURM knows best; of any other end the keeper's word stands."""
    assert cause_of_end(ended(said), Queue(seen), SLURM) == (cause or said)


def test_slurm_is_not_asked():
    """A cause that only the keeper can know is believed at once."""
    queue = Queue(TIMEOUT)
    assert cause_of_end(ended("nobody came for 2 h"), queue, SLURM) == "nobody came for 2 h"
    assert queue.asked == []


def test_settled(clock):
    """SLURM is asked again until it knows how the job has ended, with pauses."""
    queue = Queue(JobState("running", "RUNNING"), JobState("unknown"), JobState("ended", "GONE"), TIMEOUT)
    assert settled(queue, SLURM) == TIMEOUT
    assert queue.asked == ["17"] * 4
    assert clock.now_s == pytest.approx(3 * causes.ASK_AGAIN_S)


@pytest.mark.parametrize("last", [JobState("running", "RUNNING"), JobState("ended", "GONE"), JobState("unknown")])
def test_never_settled(clock, last):
    """A batch system that does not know how the job ended is not asked for ever: its last word is given."""
    assert settled(Queue(last), SLURM) == last
    assert SETTLE_S <= clock.now_s < SETTLE_S + 2 * causes.ASK_AGAIN_S


def test_job_cause():
    """Of a job whose keeper said nothing the batch system's meaning is told, or its word where there is none."""
    assert job_cause(TIMEOUT) == "its walltime was reached"
    assert job_cause(JobState("ended", "BOOT_FAIL")) == "SLURM says BOOT_FAIL"


@pytest.mark.parametrize(
    ("machine", "options", "line"),
    [
        ("desk", {"nodes": 2}, "`%%remote --nodes 2`"),
        ("desk", {"nodes": 2, "ntasks_per_node": 3}, "`%%remote --nodes 2 --ntasks-per-node 3`"),
        ("desk", {"nodes": 1, "time": "0:30:00"}, "`%%remote --nodes 1 --time 0:30:00`"),
        ("laptop", {"nodes": 1, "time": "0:30:00"}, "`%%remote --nodes 1`"),
    ],
)
def test_ended_error(request, machine, options, line):
    """The error says why, what is lost, and the very line that asks for the same again."""
    held = request.getfixturevalue(machine).cell(**options)
    with pytest.raises(SessionEnded) as error:
        raise ended_error("demo", "a node failed", held.request)
    said = two_lines(error)
    assert said.message == "Session demo has ended: a node failed. Its variables are gone."
    assert f"Start again with {line};" in said.mend
    assert "hpcmagic.attach('demo').cells" in said.mend


def test_ended_error_names_the_profile(desk):
    """What was asked for by a profile is asked for by it again."""
    held = desk.cell(nodes=2)
    held.request.resources["profile"] = "big"
    assert "`%%remote --profile big --nodes 2`" in ended_error("demo", "x", held.request).mend


def test_fallen_error():
    """Of ranks that are gone it is said how they ended, what is lost, until when the job is held, and both ways on."""
    keeper = KeeperState("fallen", cause="the ranks ended: rank 1 Killed", held_until=time.time() + 300)
    with pytest.raises(SessionEnded) as error:
        raise fallen_error("demo", keeper, None)
    said = two_lines(error)
    assert said.message == "In session demo the ranks ended: rank 1 Killed. Their variables are gone."
    assert "`%hpc restart` starts new ranks in the same job, which is held until " in said.mend
    assert "`%hpc stop` ends it" in said.mend
    assert "hpcmagic.attach('demo').cells" in said.mend


def test_held_until_the_past():
    """A time that has passed is now; the two hosts' clocks may differ."""
    now = {time.strftime("%H:%M", time.localtime(time.time() + late_s)) for late_s in (0, 1)}
    assert held_until(KeeperState("fallen", held_until=time.time() - 3600), 60.0) in now


def test_whole_story_of_a_held_job(tmp_path):
    """Of ranks that are gone the story does not say that the session has ended."""
    directory = SessionDirectory(tmp_path)
    directory.log.write_text("said\n")
    first, _, last = whole_story("demo", "the ranks ended: x", directory, over=False).splitlines()
    assert (first, last) == ("In session demo the ranks ended: x.", "    said")


def test_whole_story(tmp_path):
    """The whole story is the cause and the end of the job's log; without a log, the cause."""
    directory = SessionDirectory(tmp_path)
    assert whole_story("demo", "a node failed", directory) == "Session demo has ended: a node failed."
    directory.log.write_text(" \n\n")
    assert whole_story("demo", "a node failed", directory) == "Session demo has ended: a node failed."
    directory.log.write_text("".join(f"line {n}\n" for n in range(100)))
    first, where, *lines = whole_story("demo", "a node failed", directory).splitlines()
    assert first == "Session demo has ended: a node failed."
    assert str(directory.log) in where
    assert lines == [f"    line {n}" for n in range(100 - causes.LOG_LINES, 100)]
