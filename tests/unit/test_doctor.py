"""The doctor's findings: what is told of this machine, and of ranks that the test makes up."""

from types import SimpleNamespace

import pytest

from hpcmagic import profiles
from hpcmagic.notebook import doctor, quota
from hpcmagic.notebook.doctor import Check, Report, examine
from hpcmagic.profiles import Resources
from hpcmagic.rendezvous import KeeperState, SessionDirectory
from hpcmagic.wire.health import Health, health, leave_token, versions

SLURM = {
    "sinfo": lambda command: "slurm 24.05.1\n" if "--version" in command else "debug*\n",
    "scontrol": "Slurmctld(primary) at ctl is UP\n",
    "sacct": "",
}


def seen(tmp_path, ranks, *, size=None, world=None, text="word", note=""):
    """What ranks have told: `Health` by rank; each was asked at second 100, and had answered at 101."""
    keeper = KeeperState("ready", world=len(ranks) if world is None else world, starter="srun", note=note)
    session = SimpleNamespace(
        name="demo", size=len(ranks) if size is None else size, directory=SessionDirectory(tmp_path),
        keeper_state=lambda: keeper,
    )  # fmt: skip
    between = dict.fromkeys(ranks, (100.0, 101.0))
    made = object.__new__(doctor.Seen)
    vars(made).update(session=session, ranks=dict(ranks), text=text, took_s=0.01, between=between)
    return made


def told(number, **kwargs):
    """What a healthy rank tells."""
    return Health(**{"host": f"n{number}", "time_s": 100.5, "versions": versions(), "read": "word",
                     "free_nbytes": 10**12, **kwargs})  # fmt: skip


def by_name(report):
    """Checks by what they look at."""
    return {check.name: check for check in report}


def test_shown():
    """One line a check, its mend below it, and in the end how many there are to mend."""
    report = Report(
        [Check("a", "good", "fine"), Check("long", "bad", "broken", "mend it"), Check("c", "open", "dark")]
    )
    assert repr(report).splitlines() == [
        "✓ a     fine", "✗ long  broken", "        → mend it", "– c     dark", "",
        "1 thing to mend; 1 could not be looked at.",
    ]  # fmt: skip
    assert report.bad == (report[1],)
    assert repr(Report([report[0]])).endswith("\nNothing to mend.")


def test_here(said):
    """Where SLURM answers it is looked at; what needs a job is not, and it is said how it would be."""
    said.update(SLURM)
    found = by_name(examine())
    assert found["SLURM"] == Check("SLURM", "good", "slurm 24.05.1; Slurmctld(primary) at ctl is UP")
    assert found["accounting"].state == "good"
    assert found["the nodes"].state == "open"
    assert "--nodes 1" in found["the nodes"].mend
    assert not any(command[0] == "sbatch" for command, _ in said["asked"])


def test_without_accounting(said):
    """A site without slurmdbd is no fault, and said."""
    said.update(SLURM, sacct=(1, "", "Slurm accounting storage is disabled\n"))
    found = by_name(examine())["accounting"]
    assert (found.state, found.said) == ("open", "sacct does not answer: Slurm accounting storage is disabled")


def test_slurm_away(said):
    """A SLURM that does not answer is to mend, and the other checks are made."""
    said.update(SLURM, sinfo=(1, "", "slurm_load_partitions: Unable to contact slurm controller"))
    found = by_name(examine())
    assert found["SLURM"].state == "bad"
    assert "Unable to contact slurm controller" in found["SLURM"].said
    assert found["open files"].state == "good"


def test_without_slurm(said):
    """Without SLURM nothing is to mend: sessions run here."""
    said["sinfo"] = (1, "", "could not establish a configuration source")
    found = by_name(examine())
    assert found["SLURM"].state == "open"
    assert "sessions run here" in found["SLURM"].said
    assert not examine().bad


def test_profile_that_is_wrong(said):
    """A fault in a file of profiles is found, with its mend."""
    said.update(SLURM)
    path = profiles.user_file()
    path.parent.mkdir(parents=True)
    path.write_text("default = 'cpu'\n[profiles.cpu]\npartitoin = 'debug'\n")
    found = by_name(examine())["profiles"]
    assert found.state == "bad"
    assert "'partition'" in found.mend


def test_place(said):
    """A place for sessions that others may read is to mend, as is one that is nearly full."""
    said.update(SLURM)
    root = Resources().directory
    root.mkdir(parents=True, mode=0o755)
    root.chmod(0o755)
    found = by_name(examine())["session_dir"]
    assert found.state == "bad"
    assert f"chmod 700 {root}" in found.mend
    root.chmod(0o700)
    assert by_name(examine())["session_dir"].state == "good"
    assert list(root.iterdir()) == []


@pytest.fixture
def quotas(tmp_path, monkeypatch):
    """Let `quota` or `lfs` be there and say something: ``quotas(quota="…")``; the files lie on /dev/sda1."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "mounts").write_text(f"/dev/root / ext4 rw 0 0\n/dev/sda1 {tmp_path} ext4 rw 0 0\n")
    monkeypatch.setattr(quota, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setenv("PATH", str(folder))

    def say(**commands):
        for name, text in commands.items():
            (folder / f"{name}.txt").write_text(text)
            (folder / name).write_text(
                f'#!/bin/sh\nwhile IFS= read -r line; do echo "$line"; done <{folder}/{name}.txt\nexit 1\n'
            )
            (folder / name).chmod(0o755)

    return say


QUOTA = """\
Disk quotas for user ada (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
      /dev/root  999999       0       0             100       0       0
      /dev/sda1 {used}  900000 1000000   6days     100       0       0
"""


@pytest.mark.parametrize(
    ("commands", "left"),
    [
        ({}, -1),
        ({"quota": QUOTA.format(used="400000")}, 600_000 << 10),
        ({"quota": QUOTA.format(used="990000*")}, 10_000 << 10),
        ({"quota": QUOTA.format(used="2000000*")}, 0),
        ({"quota": "Disk quotas for user ada (uid 1000): none\n"}, -1),
        ({"quota": ""}, -1),
        ({"lfs": "     PATH  500  0  2048  -  5  0  0  -\n"}, 1548 << 10),
        ({"lfs": "     PATH\n    [500]*  1024  0  -  5  0  0  -\n"}, 524 << 10),
        ({"lfs": "     PATH  500  0  0  -  5  0  0  -\n"}, -1),
        ({"lfs": "PATH is not a Lustre file system\n", "quota": QUOTA.format(used="0")}, 1_000_000 << 10),
    ],
)
def test_quota(tmp_path, quotas, commands, left):
    """What is left of a quota is read from what `quota` or `lfs` says; without a limit, or a command, nothing is."""
    quotas(**{name: text.replace("PATH", str(tmp_path)) for name, text in commands.items()})
    assert quota.left_nbytes(tmp_path) == left


def test_place_and_quota(said, quotas, tmp_path, monkeypatch):
    """A quota that is nearly used up is to mend, be the disk as empty as it may; one with room is told of."""
    said.update(SLURM)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    quotas(quota=QUOTA.format(used="990000*"))
    found = by_name(examine())["session_dir"]
    assert (found.state, found.mend) == ("bad", doctor.MORE_ROOM)
    assert found.said.endswith(": only 10 MB left of your quota")
    quotas(quota=QUOTA.format(used="400000"))
    Resources().directory.mkdir(parents=True, mode=0o700)
    found = by_name(examine())["session_dir"]
    assert found.state == "good"
    assert "614 MB left of your quota" in found.said


def test_disk(monkeypatch, tmp_path):
    """The fullest disk counts."""
    ranks = {0: told(0), 1: told(1, free_nbytes=5 << 20), 2: told(2, free_nbytes=-1)}
    found = doctor.disk(seen(tmp_path, ranks))
    assert (found.state, found.said) == ("bad", "5.2 MB free, as n1 sees it")
    assert doctor.disk(seen(tmp_path, {0: told(0)})).state == "good"
    assert doctor.disk(seen(tmp_path, {0: told(0, free_nbytes=-1)})).state == "open"


def test_directory(tmp_path):
    """Nodes that do not see the session's directory are named, and why."""
    ranks = {0: told(0), 1: told(1, read="", why="No such file or directory"), 2: told(2, read="other")}
    found = doctor.directory_seen(seen(tmp_path, ranks))
    assert found.state == "bad"
    assert found.said == f"ranks 1-2 do not see {tmp_path} (n1: No such file or directory)"
    assert "session_dir" in found.mend
    assert doctor.directory_seen(seen(tmp_path, {0: told(0)})).state == "good"


def test_silent_ranks(tmp_path):
    """Ranks that do not answer are named."""
    found = seen(tmp_path, {0: told(0)}, size=3).answered()
    assert found.state == "bad"
    assert "1-2" in found.said
    assert seen(tmp_path, {0: told(0)}).answered().said == "1 rank of session demo on n0 answered in 10 ms"


def test_world(tmp_path):
    """A world of MPI is there, or it is said why not."""
    assert doctor.world(seen(tmp_path, {0: told(0)})).state == "good"
    found = doctor.world(seen(tmp_path, {0: told(0)}, world=0, note="mpiexec: no MPI"))
    assert (found.state, found.said) == ("open", "none, `comm` is None: mpiexec: no MPI")


@pytest.mark.parametrize(("name", "version", "state"), [
    ("hpcmagic", "9.9.9", "bad"), ("Python", "3.99.1", "bad"), ("cloudpickle", "0.1", "bad"), ("numpy", "0.9", "bad"),
    ("cryptography", "0.1", "open"), ("of-the-ranks-alone", "1", "good"),
])  # fmt: skip
def test_versions(tmp_path, name, version, state):
    """Versions that must agree and do not are to mend; others are told of."""
    other = told(1, versions={**versions(), name: version})
    found = doctor.same_versions(seen(tmp_path, {0: told(0), 1: other}))
    assert found.state == state
    assert (f"{name} {version} on ranks 1" in found.said) == (state != "good")


def test_python_that_differs_a_little(tmp_path):
    """Another patch of the same Python passes the same pickles: it is told of, and nothing is to mend."""
    little = f"{versions()['Python'].rpartition('.')[0]}.999"
    assert doctor.same_versions(seen(tmp_path, {0: told(0, versions={"Python": little})})).state == "open"


@pytest.mark.parametrize(("time_s", "said"), [
    (100.0, ""), (101.0, ""), (102.5, ""), (98.5, ""), (111.0, "n1's is 10 s ahead"), (40.0, "n1's is 60 s behind"),
])  # fmt: skip
def test_clocks(tmp_path, time_s, said):
    """A clock is off when what it says can be no moment between question and answer, give or take."""
    found = doctor.clocks(seen(tmp_path, {0: told(0), 1: told(1, time_s=time_s)}))
    assert found.state == ("bad" if said else "good")
    assert said in found.said


def test_private(tmp_path):
    """One file that others may read is found, wherever it lies."""
    for folder in (tmp_path, tmp_path.parent):
        folder.chmod(0o700)
    inner = tmp_path / "ranks"
    inner.mkdir(mode=0o700)
    (inner / "rank-0.log").touch(mode=0o600)
    assert doctor.private(seen(tmp_path, {})).state == "good"
    (inner / "rank-0.log").chmod(0o644)
    found = doctor._checked("private files", lambda: doctor.private(seen(tmp_path, {})))
    assert found.state == "bad"
    assert "chmod 600" in found.mend


def test_token(tmp_path):
    """What one side writes the other reads; a name that is no token's reads nothing."""
    directory = SessionDirectory(tmp_path)
    path, text = leave_token(directory)
    assert path.stat().st_mode & 0o777 == 0o600
    assert health(directory, path.name, within_s=0.0).read == text
    (tmp_path / "server.key").write_text("secret")
    for name in ("server.key", "../server.key", f"{path.name}/../server.key"):
        assert health(directory, name, within_s=0.0).read == ""
    path.unlink()
    gone = health(directory, path.name, within_s=0.0)
    assert (gone.read, gone.why) == ("", "No such file or directory")
