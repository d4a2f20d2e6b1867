"""What every Launcher must do, whatever the batch system: one class, run against the fake and each real one.

    tests/unit/test_fakes.py       FakeLauncher
    tests/local/test_launcher.py   LocalLauncher, with a real keeper
    tests/slurm/test_launcher.py   SlurmLauncher, as an ordinary user of the test bed

Each of them says what `launcher` and `make_spec` are. The users of the test bed have no pytest: hence nothing
but hpcmagic and the standard library here.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from hpcmagic.launch.base import AT_ITS_PACE, FRESH_S, JobSpec, JobState, Launcher
from hpcmagic.profiles import Resources
from hpcmagic.rendezvous import Request, SessionDirectory
from hpcmagic.wire.crypto import make_keys

SECRETS = {  # what a hub puts into a notebook's environment, and what looks like a secret of the user's
    "JUPYTERHUB_API_TOKEN": "0123456789abcdef-hub-token",
    "JPY_API_TOKEN": "0123456789abcdef-old-hub-token",
    "JPY_SESSION_NAME": "/home/somebody/secret-project/results.ipynb",
    "AWS_SECRET_ACCESS_KEY": "0123456789abcdef-cloud-key",
}

MakeSpec = Callable[[str], JobSpec]


def spec_in(folder: Path, resources: Resources, session: str, submit_host: str = "localhost") -> JobSpec:
    """Make a session's directory with all that its keeper needs, and say what to submit."""
    directory = SessionDirectory.create(folder / session)
    public = {who: key.decode() for who, key in make_keys(directory).items()}
    request = Request(
        session=session,
        launcher=resources.launcher,
        ntasks=resources.ntasks,
        nodes=resources.nodes,
        ntasks_per_node=resources.ntasks_per_node,
        cpus_per_task=resources.cpus_per_task,
        mpi=resources.mpi,
        interface=resources.interface,
        submit_host=submit_host,
        no_client_limit_s=60.0,
        start_timeout_s=60.0,
        server_public=public["server"],
        client_public=public["client"],
        engine_public=public["engine"],
    )
    directory.write_record(directory.request, request)
    return JobSpec(session, directory, resources)


class LauncherContract:
    """The rules. `launcher` is the one under test; `make_spec(session)` gives something to submit to it."""

    unknown_id = "0"  # a job id of this launcher's form that no job has
    may_take_s = 0.0  # from `cancel` to the end of the job

    def test_named(self, launcher: Launcher) -> None:
        """A launcher has a name, which is kept with each job: whoever attaches later must find it again."""
        assert launcher.name
        assert launcher.name.isidentifier()

    def test_submit_gives_id(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        """Each submission gives an id of its own, one word that fits into a command and a message."""
        with self.submitted(launcher, make_spec("first")) as first:
            with self.submitted(launcher, make_spec("second")) as second:
                assert first != second
            for job_id in (first, second):
                assert isinstance(job_id, str)
                assert len(job_id.split()) == 1, job_id

    def test_expected_start(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        """To ask when a job would start submits none, and gives a time, or nothing where nobody tells."""
        expected = launcher.expected_start(make_spec("asked"))
        assert expected == "" or time.strptime(expected, "%Y-%m-%d %H:%M:%S")

    def test_fresh_job_lives(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        """A job that was just submitted waits or runs; nothing says that it ended."""
        with self.submitted(launcher, make_spec("fresh")) as job_id:
            state = launcher.state(job_id)
            assert isinstance(state, JobState)
            assert state.phase in ("pending", "running"), state
            assert state.exit_status is None
            assert not state.hopeless

    def test_cancel_ends(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        """A cancelled job ends, and stays ended."""
        with self.submitted(launcher, make_spec("cancelled")) as job_id:
            launcher.cancel(job_id)
            self.require_ended(launcher, job_id)
            assert launcher.state(job_id).phase == "ended"

    def test_cancel_twice(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        """Cancelling a job that has ended, or is just ending, does nothing."""
        with self.submitted(launcher, make_spec("twice")) as job_id:
            launcher.cancel(job_id)
            launcher.cancel(job_id)
            self.require_ended(launcher, job_id)
            launcher.cancel(job_id)
            assert launcher.state(job_id).phase == "ended"

    def test_cancel_spares_others(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        """Cancelling a job, or an id that no job has, leaves every other job alone."""
        with self.submitted(launcher, make_spec("kept")) as kept:
            with self.submitted(launcher, make_spec("other")) as other:
                launcher.cancel(other)
                self.require_ended(launcher, other)
            launcher.cancel(self.unknown_id)
            assert launcher.state(kept).phase in ("pending", "running")

    def test_unknown_id(self, launcher: Launcher) -> None:
        """A job that nobody knows has ended: asking for it, or cancelling it, raises nothing."""
        assert launcher.state(self.unknown_id).phase == "ended"
        launcher.cancel(self.unknown_id)
        assert launcher.state(self.unknown_id).phase == "ended"

    def test_old_answer_will_do(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        """Who takes an answer of some age is told of a job that was just submitted, too, and of one that nobody knows."""
        with self.submitted(launcher, make_spec("aged")) as job_id:
            for max_age_s in (AT_ITS_PACE, FRESH_S, 60.0):
                assert launcher.state(job_id, max_age_s=max_age_s).phase in ("pending", "running")
                assert launcher.state(self.unknown_id, max_age_s=max_age_s).phase == "ended"
            known = launcher.known(job_id)
            assert known is None or known.phase in ("pending", "running")

    def test_script_shown_only(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        """Showing the script submits nothing and touches no file; asked twice, it is the same."""
        spec = make_spec("shown")
        before = {path: path.stat().st_mtime_ns for path in spec.directory.path.parent.rglob("*")}
        script = launcher.script(spec)
        assert script.endswith("\n")
        assert launcher.script(spec) == script
        assert {path: path.stat().st_mtime_ns for path in spec.directory.path.parent.rglob("*")} == before
        spec = JobSpec("nowhere", SessionDirectory(spec.directory.path.with_name("nowhere")), spec.resources)
        launcher.script(spec)
        assert not spec.directory.path.exists()

    def test_script_without_secrets(self, launcher: Launcher, make_spec: MakeSpec) -> None:
        """A script holds no key of the session, no token of the notebook's environment and not its path."""
        spec = make_spec("secret")
        with mock.patch.dict(os.environ, SECRETS):
            script = launcher.script(spec)
        keys = [word for path in spec.directory.path.glob("*.key") for word in path.read_text().split()]
        assert len(keys) == 7  # three pairs and the signing key
        for secret in (*keys, *SECRETS, *SECRETS.values()):
            assert secret not in script

    def test_completed_keeps_what_was_asked(self, launcher: Launcher) -> None:
        """What the site says fills gaps; it never changes what was asked for."""
        values = {"nodes": 2, "ntasks_per_node": 1, "cpus_per_task": 1, "mem": "100M", "time": "2"}
        asked = Resources(launcher=launcher.name).with_origin("asked for", **values)
        completed = launcher.completed(asked)
        assert {name: getattr(completed, name) for name in values} == values
        assert {name: completed.origins[name] for name in values} == asked.origins

    @contextmanager
    def submitted(self, launcher: Launcher, spec: JobSpec) -> Iterator[str]:
        """Submit a job; whatever happens, it has ended after the block."""
        job_id = launcher.submit(spec)
        try:
            yield job_id
        finally:
            launcher.cancel(job_id)
            self.require_ended(launcher, job_id)

    def require_ended(self, launcher: Launcher, job_id: str) -> None:
        """Wait as long as the end of a job may take."""
        deadline = time.monotonic() + self.may_take_s
        while (state := launcher.state(job_id)).phase != "ended":
            assert time.monotonic() < deadline, f"{job_id} is not ended but {state}"
            time.sleep(0.1)
