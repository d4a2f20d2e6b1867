"""Waiting for a session: what one is told, what ends the wait, and what Ctrl-C leaves behind."""

import time
from types import SimpleNamespace

import pytest
from two_lines import two_lines

from hpcmagic.errors import HpcMagicError, LaunchError
from hpcmagic.launch import slurm
from hpcmagic.launch.base import JobState
from hpcmagic.notebook import waiting
from hpcmagic.notebook.found import find, stop_found
from hpcmagic.profiles import resolve
from hpcmagic.rendezvous import KeeperState
from hpcmagic.testing import FakeClock


class Wait:
    """A session that is waited for, on a clock of its own; `after` says what happens when."""

    def __init__(self, desk, monkeypatch, **options):
        self.launcher = desk.launcher
        self.found = desk.cell(**{"nodes": 4, "time": "1:00:00", **options})
        self.directory = self.found.directory
        self.clock = FakeClock(1000.0)
        self.asked_at, self.ages = [], []
        self.events = []
        fake = SimpleNamespace(monotonic=self.clock, sleep=self.sleep, time=time.time)
        monkeypatch.setattr(waiting, "time", fake)
        ask = self.launcher.state

        def asked(job, *, max_age_s=0.0):
            self.asked_at.append(self.clock())
            self.ages.append(max_age_s)
            return ask(job)

        monkeypatch.setattr(self.launcher, "state", asked)

    def sleep(self, seconds):
        """Let time pass, and happen what is due."""
        self.clock.advance(seconds)
        while self.events and self.events[0][0] <= self.clock() - 1000:
            self.events.pop(0)[1]()

    def after(self, seconds, event):
        """Plan an event."""
        self.events.append((seconds, event))

    def job(self, *args, **kwargs):
        """An event: the batch system says this of the job."""
        return lambda: self.launcher.jobs.update({"1": JobState(*args, **kwargs)})

    def keeper(self, *args, **kwargs):
        """An event: the keeper says this."""
        return lambda: self.directory.write_record(self.directory.state, KeeperState(*args, **kwargs))

    def lines(self, limit_s=100_000.0):
        """The lines until the session is ready."""
        shown = []
        for line in waiting._progress(self.found, self.launcher):
            if not shown or shown[-1] != line:
                shown.append(line)
            assert self.clock() - 1000 < limit_s, shown[-3:]
        return shown


@pytest.fixture
def wait(desk, monkeypatch):
    """A job of four nodes that has just been submitted."""
    return Wait(desk, monkeypatch)


def test_waiting_in_words(wait):
    """While the job waits its reason is told in words, with SLURM's estimate; then which ranks are missing."""
    wait.launcher.jobs["1"] = JobState(
        "pending", "PENDING", "Priority", "other jobs come first", expected_start="2026-01-02 03:04:05"
    )
    nodes = ("n1", "n2", "n3", "n4")
    wait.after(60, wait.job("running", "RUNNING", nodes="n[1-4]"))
    wait.after(80, wait.keeper("starting", (), nodes))
    wait.after(85, wait.keeper("starting", (0, 1, 3), nodes))
    wait.after(90, wait.keeper("ready", (0, 1, 2, 3), nodes))
    shown = "\n".join(wait.lines())
    assert (
        "Job 1 waits in the queue: Priority – other jobs come first; expected to start 2026-01-02 03:04:05" in shown
    )
    assert "Ctrl-C leaves it there" in shown
    assert "Job 1: starting" in shown
    assert "0 of 4 ranks connected, waiting for ranks 0-3 on n1, n2, n3, n4" in shown
    assert "3 of 4 ranks connected, waiting for rank 2 on n3" in shown


def test_no_limit_in_the_queue(wait):
    """A job may wait for weeks: nobody gives up on it."""
    weeks_s = 3 * 7 * 86400
    wait.after(600, lambda: wait.clock.advance(weeks_s))
    wait.after(weeks_s + 1200, wait.keeper("ready", (0, 1, 2, 3)))
    wait.lines(limit_s=weeks_s + 2000)
    assert wait.launcher.jobs["1"].phase == "pending"


def test_queue_is_asked_gently(wait):
    """The batch system is asked often at first and then four times a minute at most, for all; never between."""
    wait.after(3600, wait.keeper("ready", (0, 1, 2, 3)))
    wait.lines()
    gaps = [b - a for a, b in zip(wait.asked_at, wait.asked_at[1:], strict=False)]
    assert wait.asked_at[0] - 1000 < 1
    assert min(gaps) >= 0.5
    assert all(gap >= 14.9 for gap in gaps[-100:])
    assert len(wait.asked_at) < 300
    assert set(wait.ages[:8]) == {0.0}
    assert set(wait.ages[9:]) == {15.0}


def test_ready_at_once(wait):
    """A session that is ready needs no question to the queue."""
    wait.keeper("ready", (0, 1, 2, 3))()
    assert wait.lines() == []
    assert wait.asked_at == []


def test_ranks_gone(wait):
    """A session whose ranks are gone is not waited for: it can be restarted at once."""
    wait.keeper("fallen", cause="the ranks ended: rank 1 Killed")()
    assert wait.lines() == []


def test_queue_silent_for_a_while(wait):
    """When the queue does not answer for an hour one waits on: the job may well be there."""
    wait.launcher.jobs["1"] = JobState("unknown", meaning="Unable to contact slurm controller")
    wait.after(3600, wait.keeper("ready", (0, 1, 2, 3)))
    wait.lines()


def test_job_that_can_never_start(wait):
    """A job that can never start is taken out of the queue, with SLURM's reason and the mend."""
    wait.after(
        5,
        wait.job(
            "pending",
            "PENDING",
            "AssocGrpBillingMinutes",
            "it asks for too much",
            "Ask for less with `--time`.",
            hopeless=True,
        ),
    )
    with pytest.raises(LaunchError, match="AssocGrpBillingMinutes – it asks for too much") as error:
        wait.lines()
    error_text = two_lines(error)
    assert "`--time`" in error_text.mend
    assert "taken out of the queue" in error_text.message
    assert wait.launcher.jobs["1"].phase == "ended"
    assert not wait.directory.path.exists()


@pytest.mark.parametrize("reason", ["JobHeldUser", "JobHeldAdmin", "PartitionDown", "PartitionInactive"])
def test_held_job_stays(wait, reason):
    """A job that is held, or whose partition is down for now, stays; what could be done is told meanwhile."""
    held = slurm._from_squeue(f"PENDING|{reason}|N/A|0:00|1:00:00||x")
    wait.launcher.jobs["1"] = held
    wait.after(600, wait.keeper("ready", (0, 1, 2, 3)))
    shown = "\n".join(wait.lines())
    assert reason in shown
    assert held.meaning in shown
    if reason == "JobHeldUser":
        assert "scontrol release 1" in shown


def test_hopeless_only_as_long_as_slurm_says_so(wait):
    """An old word of a SLURM that does not answer any more takes no job out of the queue."""
    reason = ("pending", "PENDING", "PartitionTimeLimit", "the partition does not allow that much time")
    old = {"mend": "Ask for less.", "hopeless": True, "stale": True}
    wait.after(5, wait.job(*reason, **old))
    wait.after(120, wait.keeper("ready", (0, 1, 2, 3)))
    assert wait.lines()


def test_job_ends_before_it_is_a_session(wait):
    """A job that ended before its ranks were there is an error with the cause and the end of its log."""
    wait.after(5, wait.job("ended", "NODE_FAIL", meaning="a node failed"))
    wait.directory.log.write_text("first line\nslurmstepd: the last words\n")
    with pytest.raises(LaunchError, match=r"a node failed.*the last words") as error:
        wait.lines()
    two_lines(error)
    assert not wait.directory.path.exists()
    assert "the last words" in (wait.directory.path.parent / "ended" / "demo~1" / "job.log").read_text()


def test_keepers_last_word_counts(wait):
    """When the job has ended, its keeper's word on why may come a moment later, and is the one that is told."""
    wait.after(5, wait.job("ended", "FAILED", meaning="it ended with exit status 1"))
    wait.after(7, wait.keeper("ended", cause="the ranks did not start: srun: exit status 1"))
    with pytest.raises(LaunchError, match="the ranks did not start") as error:
        wait.lines()
    two_lines(error)


def test_keeper_gives_up(wait):
    """When the keeper gives up, the cause is told at once; where it is MPI, how to do without."""
    wait.after(5, wait.keeper("ended", cause="the ranks did not start: mpiexec: no MPI: mpi4py cannot be loaded"))
    with pytest.raises(LaunchError, match="no MPI") as error:
        wait.lines(limit_s=10)
    assert "mpi4py" in two_lines(error).mend


def test_nodes_see_nothing(wait):
    """Where the nodes do not see the session's directory, that is said, and what to set."""
    path = wait.directory.path
    wait.after(5, wait.job("ended", "FAILED", "x", "y", exit_status=slurm.NO_SUCH_DIRECTORY))
    with pytest.raises(LaunchError, match="nodes do not see") as error:
        wait.lines()
    assert str(path) in two_lines(error).message
    assert "session_dir" in error.value.mend


def test_job_vanishes_for_a_moment(wait):
    """A job that the queue has lost for a moment, as between two daemons, is not given up for that."""
    wait.after(5, wait.job("ended", "GONE", meaning="accounting does not know it"))
    wait.after(6, wait.job("running", "RUNNING"))
    wait.after(60, wait.job("ended", "GONE", meaning="accounting does not know it"))
    wait.after(61, wait.job("running", "RUNNING"))
    wait.after(90, wait.keeper("ready", (0, 1, 2, 3)))
    wait.lines()


def test_session_stopped_elsewhere(wait):
    """When somebody stops the session while we wait, that is an error in words."""
    wait.after(5, lambda: stop_found(wait.found))
    with pytest.raises(HpcMagicError) as error:
        wait.lines(limit_s=60)
    two_lines(error)


def test_many_missing_nodes(desk, monkeypatch):
    """Of a thousand missing ranks the line names the set, and a few nodes."""
    wait = Wait(desk, monkeypatch, nodes=1000)
    wait.after(1, wait.keeper("starting", (0,), tuple(f"n{i}" for i in range(1000))))
    wait.after(2, wait.keeper("ready", tuple(range(1000))))
    assert max(len(line) for line in wait.lines()) < 160


def interrupted_after(wait, seconds):
    """Wait, press Ctrl-C after so many seconds; give the error."""

    def press():
        raise KeyboardInterrupt

    wait.after(seconds, press)
    with pytest.raises(LaunchError, match="Stopped waiting") as error:
        waiting.wait_until_ready(wait.found, submitted=True)
    return two_lines(error)


def test_interrupted_in_the_queue(wait, desk):
    """Ctrl-C in the queue leaves the job there, says how to come back and how to cancel; the next cell waits on."""
    error = interrupted_after(wait, 5)
    assert "job 1 of session demo stays in the queue" in error.message
    assert "again" in error.mend
    assert "%hpc stop" in error.mend
    assert desk.alive == ["1"]
    assert wait.directory.path.exists()
    assert desk.cell().job.job_id == "1"


def test_interrupted_while_starting(wait, desk):
    """Ctrl-C while ranks start leaves them starting."""
    wait.keeper("starting", (0,), ("n1",))()
    assert "goes on starting" in interrupted_after(wait, 5).message
    assert desk.alive == ["1"]


def test_interrupted_while_the_job_runs(wait, desk):
    """A job that has left the queue is not said to be still in it, though its keeper has not spoken yet."""
    wait.launcher.jobs["1"] = JobState("running", "RUNNING")
    assert "queue" not in interrupted_after(wait, 5).message


def test_never_submitted(desk):
    """A session whose kernel died before it submitted says so, and how to clear it away."""
    held = desk.cell(nodes=2)
    held.directory.job.unlink()
    with pytest.raises(LaunchError, match="never submitted") as error:
        waiting.wait_until_ready(find(resolve({}, {}), "demo"), submitted=False)
    assert "%hpc stop" in two_lines(error).mend
