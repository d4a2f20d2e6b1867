"""From a cell to a session: what is bought and what is not, and how a session is found again."""

import errno
import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from two_lines import two_lines

from hpcmagic.errors import LaunchError, ProfileError, SessionEnded
from hpcmagic.launch import slurm
from hpcmagic.launch.base import JobState
from hpcmagic.notebook import frontend, start
from hpcmagic.notebook.found import all_found, find, sessions, stop_found
from hpcmagic.profiles import Resources, resolve, user_file
from hpcmagic.rendezvous import JobRecord, KeeperState, SessionDirectory

# ---- what the front end tells


def test_named_after_the_notebook(notebook):
    """The session is named after the notebook: the same each time, readable, without the path."""
    name, known = frontend.session_name()
    assert known
    assert name.startswith("analysis-")
    assert frontend.session_name() == (name, True)
    assert frontend.notebook_identity()["inode"] == notebook.stat().st_ino


def test_named_afresh_without_one(monkeypatch):
    """Where the front end tells no path, each session gets a fresh name that can be typed."""
    monkeypatch.setattr(frontend, "shell", lambda: None)
    first, known = frontend.session_name()
    assert not known
    assert first != frontend.session_name()[0]
    start.require_name(first)
    assert frontend.notebook_identity() == {}


def test_told_by_vs_code(monkeypatch):
    """VS Code tells the path in a variable of the notebook."""
    monkeypatch.setattr(frontend, "shell", lambda: SimpleNamespace(user_ns={"__vsc_ipynb_file__": "/w/a b.ipynb"}))
    assert frontend.session_name()[0].startswith("a-b-")


@pytest.mark.parametrize("told", ["", "console-1", "/w/script.py"])
def test_not_a_notebook(monkeypatch, told):
    """A console's name or a script's path is no notebook's."""
    monkeypatch.setattr(frontend, "shell", lambda: None)
    monkeypatch.setenv("JPY_SESSION_NAME", told)
    assert frontend.notebook_path() is None


@pytest.mark.parametrize(("allows", "alone"), [(True, False), (False, True)])
def test_unattended(monkeypatch, allows, alone):
    """A kernel that may ask nobody has nobody at it; one that may, and a plain terminal, have."""
    monkeypatch.setattr(frontend, "shell", lambda: SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=allows)))
    assert frontend.unattended() is alone
    monkeypatch.setattr(frontend, "shell", lambda: None)
    assert not frontend.unattended()


@pytest.mark.parametrize("name", ["a", "Run_2.b-3", "0", "_x", "a" * 64])
def test_good_names(name):
    """Plain names name sessions."""
    start.require_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "a b", "-a", ".a", "a\n", "ended", "ä", "a" * 65, "~", "$x"]
)
def test_bad_names(name):
    """A name that leads out of the directory of sessions, or is no plain word, is refused."""
    with pytest.raises(ProfileError) as error:
        start.require_name(name)
    two_lines(error)


# ---- starting, picking up, refusing


def test_first_cell_submits(desk, capsys):
    """The first cell with sizes submits one job, and says what was asked for, how long it may run, and from where."""
    held = desk.cell(nodes=4, time="1:00:00", account="lab")
    assert held.job.job_id == "1"
    assert desk.alive == ["1"]
    out = capsys.readouterr().out
    for words in ("job 1", "4 nodes", "1 h", "asked for", "account lab", "20 min"):
        assert words in out, out


def test_running_all_again_buys_nothing(desk):
    """Running the cell again, with or without its sizes, picks up the same job."""
    desk.cell(nodes=4, time="1:00:00")
    desk.cell(nodes=4, time="1:00:00")
    desk.cell()
    desk.cell(nodes="4")
    assert desk.alive == ["1"]
    assert [held.job.job_id for held in desk.waited] == ["1"] * 4


def test_bare_cell_buys_nothing(desk):
    """Where SLURM answers, a bare first cell submits nothing and shows the line to type."""
    with pytest.raises(ProfileError, match="no job was submitted") as error:
        desk.cell()
    assert "%%remote --nodes" in two_lines(error).mend
    assert not desk.launcher.jobs
    assert not desk.directory().exists()


@pytest.mark.parametrize("variable", ["SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_TIMELIMIT"])
def test_bare_cell_buys_nothing_for_sbatchs_defaults(desk, monkeypatch, variable):
    """A default account or partition, which sites set for everybody, is no request for nodes."""
    monkeypatch.setenv(variable, "30")
    with pytest.raises(ProfileError, match="no job was submitted"):
        desk.cell()
    assert not desk.launcher.jobs


def test_bare_call_buys(desk):
    """`hpcmagic.start()` is a request in itself."""
    start.start("demo")
    assert desk.alive == ["1"]


def test_profile_is_a_request(desk):
    """Who has a default profile has said what to ask for."""
    user_file().parent.mkdir(parents=True)
    user_file().write_text('default = "cpu"\n[profiles.cpu]\npartition = "debug"\n')
    desk.cell()
    assert desk.alive == ["1"]


def test_bare_cell_starts_here(laptop, capsys):
    """Without SLURM a bare cell starts on this machine, where it is free, and says so."""
    laptop.cell()
    assert laptop.alive == ["1"]
    assert "this machine" in capsys.readouterr().out


def test_other_resources(desk):
    """Other resources than the session has are refused; the difference and the mend are named."""
    desk.cell(nodes=4, time="1:00:00", partition="debug")
    with pytest.raises(ProfileError, match="--nodes 4, not --nodes 8") as error:
        desk.cell(nodes=8)
    assert "%hpc stop" in two_lines(error).mend
    with pytest.raises(ProfileError, match="--partition debug, not --partition long"):
        desk.cell(partition="long")
    with pytest.raises(ProfileError, match="--ntasks 4, not --ntasks 8"):
        desk.cell(nodes=4, ntasks=8)
    assert desk.alive == ["1"]


def test_fewer_ranks(desk):
    """Who asks for less than the session has is shown how to use a part of it."""
    desk.cell(nodes=4)
    with pytest.raises(ProfileError) as error:
        desk.cell(nodes=2)
    assert "--ranks 0-1" in two_lines(error).mend


def test_same_in_other_words(desk):
    """The same resources in other words are the same."""
    desk.cell(nodes=4, ntasks_per_node=2, time="60", mem="2G", launcher="slurm")
    desk.cell(ntasks=8, nodes=4, time="1:00:00", mem="2048M")
    assert desk.alive == ["1"]


def test_ended_session_buys_nothing(desk):
    """After a session has ended a bare cell buys nothing: it tells the cause and the line that starts again."""
    held = desk.cell(nodes=2, ntasks_per_node=2, time="1:00:00")
    desk.launcher.jobs["1"] = JobState("ended", "TIMEOUT", meaning="its walltime was reached")
    with pytest.raises(SessionEnded, match="its walltime was reached") as error:
        desk.cell()
    assert "`%%remote --nodes 2 --ntasks-per-node 2 --time 1:00:00`" in two_lines(error).mend
    assert not desk.alive
    held.directory.write_record(held.directory.state, KeeperState("ended", cause="a node failed"))
    with pytest.raises(SessionEnded, match="a node failed"):
        desk.cell()
    desk.cell(nodes=2)
    assert desk.alive == ["2"]


@pytest.mark.parametrize("asked", [{}, {"nodes": 2}, {"nodes": 4, "time": "2:00:00"}])
def test_held_job_is_the_only_one(desk, asked):
    """While a job is held without ranks none of its name is bought, whatever is asked for: both ways on are told."""
    held = desk.cell(nodes=2, time="1:00:00")
    fallen = KeeperState("fallen", cause="the ranks ended: rank 1 Killed", held_until=time.time() + 300)
    held.directory.write_record(held.directory.state, fallen)
    desk.launcher.jobs["1"] = JobState("running", "RUNNING")
    with pytest.raises(SessionEnded, match="In session demo the ranks ended: rank 1 Killed") as error:
        desk.cell(**asked)
    mend = two_lines(error).mend
    assert "`%hpc restart`" in mend
    assert "`%hpc stop`" in mend
    assert list(desk.launcher.jobs) == desk.alive == ["1"]
    assert [(one.state, one.job_id) for one in sessions()] == [("fallen", "1")]


def test_held_job_that_is_gone(desk):
    """A job that was held and is gone has ended, whatever its keeper said last."""
    held = desk.cell(nodes=2, time="1:00:00")
    held.directory.write_record(held.directory.state, KeeperState("fallen", cause="the ranks ended: rank 1 Killed"))
    desk.launcher.jobs["1"] = JobState("ended", "TIMEOUT", meaning="its walltime was reached")
    with pytest.raises(SessionEnded, match="has ended: its walltime was reached"):
        desk.cell()
    desk.cell(nodes=2)
    assert desk.alive == ["2"]


def test_ended_session_with_a_profile_buys_nothing(desk):
    """A default profile with sizes does not turn a bare cell after an end into a new job either."""
    user_file().parent.mkdir(parents=True)
    user_file().write_text('default = "cpu"\n[profiles.cpu]\nnodes = 2\ntime = "1:00:00"\n')
    desk.cell()
    desk.launcher.jobs["1"] = JobState("ended", "TIMEOUT", meaning="its walltime was reached")
    with pytest.raises(SessionEnded):
        desk.cell()
    assert not desk.alive


def test_refused_by_slurm(desk):
    """A submission that is refused leaves nothing behind that the next one would stumble over."""
    desk.launcher.refuse = "invalid partition"
    with pytest.raises(LaunchError, match="invalid partition"):
        desk.cell(nodes=2)
    assert not desk.directory().exists()
    desk.launcher.refuse = ""
    desk.cell(nodes=2)
    assert desk.alive == ["1"]


def test_disk_full_after_submitting(desk, monkeypatch):
    """A job of which no record can be written is cancelled: nobody would ever find it again."""
    written = SessionDirectory.write_record

    def full(self, path, record):
        if isinstance(record, JobRecord):
            raise LaunchError("No space left on device.", "Free some.")
        written(self, path, record)

    monkeypatch.setattr(SessionDirectory, "write_record", full)
    with pytest.raises(LaunchError):
        desk.cell(nodes=2)
    assert list(desk.launcher.jobs) == ["1"]
    assert not desk.alive


def test_disk_full_before_submitting(desk, monkeypatch):
    """Once there is room again the session can be started: a full disk leaves no half of it in the way."""
    mkdir = Path.mkdir

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(
            Path, "mkdir", lambda path, *args, **kw: full() if path.name == "ended" else mkdir(path, *args, **kw)
        )
        disk.setattr(Path, "replace", full)
        with pytest.raises(LaunchError, match="No space left"):
            desk.cell(nodes=2)
    assert not desk.alive
    desk.cell(nodes=2)
    assert desk.alive


def test_half_a_session_can_be_cleared(desk):
    """A directory that a dying kernel left without its request is in nobody's way for ever: `%hpc stop` clears it."""
    SessionDirectory.create(desk.directory())
    with pytest.raises(LaunchError, match="another kernel") as error:
        desk.cell(nodes=2)
    assert "%hpc stop" in two_lines(error).mend
    stop_found(find(resolve({}, {}), "demo"))
    desk.cell(nodes=2)
    assert desk.alive == ["1"]


def test_two_kernels_at_once(desk, monkeypatch):
    """Of two kernels that start one session at the same moment only one submits."""
    monkeypatch.setattr(start, "find", lambda *_: None)
    desk.cell(nodes=2)
    with pytest.raises(LaunchError, match="another kernel") as error:
        desk.cell(nodes=2)
    two_lines(error)
    assert desk.alive == ["1"]


def test_directory_is_private(desk):
    """What a start writes is open to nobody else, and no secret stands in a record."""
    desk.cell(nodes=2)
    paths = [desk.directory(), *desk.directory().rglob("*")]
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths)
    secrets = {word for path in desk.directory().glob("*.key") for word in path.read_text().split()[-1:]}
    assert len(secrets) == 4
    for path in paths:
        if path.is_file() and path.suffix != ".key":
            assert not any(secret in path.read_text() for secret in secrets), path


def test_dry_run(desk, capsys):
    """A dry run shows the script; it submits nothing, writes nothing, and names the session that it would be."""
    assert "demo" in start.dry_run("demo", nodes=4)
    with pytest.raises(ProfileError, match="is not a name for a session"):
        start.dry_run("../demo", nodes=4)
    assert not desk.launcher.jobs
    assert not Resources().directory.exists()


def test_fresh_name_is_printed(desk, capsys):
    """A session that no notebook names prints its name: it is needed to come back."""
    held = start.start(nodes=2)
    assert held.request.session in capsys.readouterr().out.partition("Session ")[2]


@pytest.mark.parametrize(("asked", "answers", "launcher"), [
    (None, True, "slurm"), (None, False, "local"), ("local", True, "local"), ("slurm", False, "slurm"),
])  # fmt: skip
def test_plan(monkeypatch, asked, answers, launcher):
    """Where to run is what was asked, else what is there; it says which."""
    monkeypatch.setattr(slurm, "answers", lambda: answers)
    resources, made = start.plan({"launcher": asked})
    assert resources.launcher == made.name == launcher
    assert resources.origins["launcher"] == ("asked for" if asked else "what is there")


def test_plan_asks_slurm_only_if_need_be(monkeypatch):
    """Who says where to run does not wait for sinfo."""
    monkeypatch.setattr(slurm, "answers", lambda: pytest.fail("asked"))
    start.plan({"launcher": "local"})


# ---- finding


def test_found_by_name(desk):
    """A session is found by its name, from any kernel."""
    desk.cell(nodes=2)
    assert find(resolve({}, {}), "demo").job.job_id == "1"
    assert find(resolve({}, {}), "other") is None
    assert [f.request.session for f in all_found(resolve({}, {}))] == ["demo"]


def test_found_after_a_rename(desk, notebook, monkeypatch):
    """A notebook that was renamed or moved finds its session, by its file."""
    start.start(nodes=2)
    moved = notebook.with_name("final version.ipynb")
    notebook.rename(moved)
    monkeypatch.setenv("JPY_SESSION_NAME", str(moved))
    held = start.start(nodes=2)
    assert held.job.job_id == "1"
    assert desk.alive == ["1"]


def test_copy_is_another_notebook(desk, notebook, monkeypatch):
    """A copy of a notebook has a session of its own."""
    start.start(nodes=2)
    copy = notebook.with_name("copy.ipynb")
    copy.write_bytes(notebook.read_bytes())
    monkeypatch.setenv("JPY_SESSION_NAME", str(copy))
    start.start(nodes=2)
    assert desk.alive == ["1", "2"]


def test_rename_finds_nothing_by_another_name(desk, notebook):
    """Who names a session gets that one, and not the notebook's."""
    start.start(nodes=2)
    assert find(resolve({}, {}), "other") is None


def test_no_sessions(desk):
    """Before the first session there are none, and asking makes no directory."""
    assert sessions() == []
    assert not Resources().directory.exists()


def test_wide_directory_refused(desk):
    """A session's directory that was opened to others is used by nobody."""
    desk.cell(nodes=2)
    desk.directory().chmod(0o755)
    for look in (desk.cell, sessions):
        with pytest.raises(ProfileError, match="mode 0755") as error:
            look()
        two_lines(error)


def test_stop_found(desk):
    """Stopping ends the job, frees the name and removes the keys."""
    stop_found(desk.cell(nodes=2))
    assert not desk.alive
    assert not desk.directory().exists()
    assert not list(desk.directory().parent.rglob("*.key"))


def test_sessions_listed(desk):
    """All sessions are listed by name, each with how it stands."""
    for name in ("b", "a"):
        desk.cell(name, nodes=1)
    desk.launcher.jobs["1"] = JobState("ended", "TIMEOUT", meaning="its walltime was reached")
    listed = [(status.session, status.state) for status in sessions()]
    assert listed == [("a", "pending"), ("b", "ended")]
