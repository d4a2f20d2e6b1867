"""The public fakes: one that passes the contract of every launcher, and a clock that waits for the test."""

import pytest
from launcher_contract import LauncherContract, spec_in
from two_lines import two_lines

from hpcmagic.errors import LaunchError
from hpcmagic.launch.base import JobState
from hpcmagic.profiles import Resources
from hpcmagic.testing import FakeClock, FakeLauncher


@pytest.fixture
def launcher():
    return FakeLauncher()


@pytest.fixture
def make_spec(tmp_path):
    return lambda session: spec_in(tmp_path / "sessions", Resources(launcher="fake"), session)


class TestFakeLauncher(LauncherContract):
    """What holds for every real launcher holds for the fake: tests that use it prove something."""

    def test_refuses_in_words(self, launcher, make_spec):
        """A test can have it refuse, as a batch system does: two lines, and no job."""
        launcher.refuse = "invalid partition"
        with pytest.raises(LaunchError, match="invalid partition") as refused:
            launcher.submit(make_spec("refused"))
        two_lines(refused)
        assert launcher.jobs == {}

    def test_stands_as_the_test_says(self, launcher, make_spec):
        """Jobs run and end when the test says so."""
        job_id = launcher.submit(make_spec("told"))
        launcher.jobs[job_id] = JobState("running", "RUNNING", nodes="n1")
        assert launcher.state(job_id).phase == "running"


def test_clock_stands_still():
    """The clock moves only when told to, by as much as told."""
    clock = FakeClock()
    assert (clock(), clock()) == (0.0, 0.0)
    clock.advance(1200.5)
    assert clock() == 1200.5
