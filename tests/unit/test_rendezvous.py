"""A session's directory: closed to others, never half written, and what happens when the disk says no."""

import errno
import io
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from two_lines import two_lines

from hpcmagic.errors import HpcMagicError, LaunchError, ProfileError
from hpcmagic.rendezvous import (
    ENDED_KEPT,
    Connection,
    JobRecord,
    KeeperState,
    Request,
    SessionDirectory,
    require_private,
    slug,
)


@pytest.fixture
def session(tmp_path):
    """A session's directory."""
    return SessionDirectory.create(tmp_path / "sessions" / "demo")


def mode(path):
    """A path's permission bits."""
    return stat.S_IMODE(path.lstat().st_mode)


def disk_says(monkeypatch, number, *names):
    """Let system calls of these names in `os` fail like a disk's."""

    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    for name in names:
        monkeypatch.setattr(os, name, fail)


# ---- modes


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_created_private(tmp_path, umask):
    """Directories are made 0700 and files 0600, whatever the user's umask is."""
    before = os.umask(umask)
    try:
        session = SessionDirectory.create(tmp_path / "state" / "hpcmagic" / "demo")
        session.write(session.key("client"), "secret")
    finally:
        os.umask(before)
    assert mode(session.path) == mode(session.ranks) == mode(session.path.parent) == 0o700
    assert mode(session.key("client")) == 0o600
    assert SessionDirectory.open(session.path).path == session.path


def test_second_kernel_sees_the_first(session):
    """Of two kernels that start the same session at once, one gets to know that it was second."""
    with pytest.raises(FileExistsError):
        SessionDirectory.create(session.path)


@pytest.mark.parametrize("bits", [0o001, 0o010, 0o040, 0o004, 0o022, 0o755, 0o777])
def test_wide_directory_refused(session, bits):
    """A directory that others may enter, list or write is refused, with the line that mends it."""
    session.path.chmod(0o700 | bits)
    with pytest.raises(ProfileError, match=f"mode {0o700 | bits:04o}") as error:
        SessionDirectory.open(session.path)
    assert f"chmod 700 {session.path}" in two_lines(error).mend


@pytest.mark.parametrize("bits", [0o040, 0o004, 0o020, 0o002, 0o001])
def test_wide_file_refused(session, bits):
    """A file in it that others may read or write is refused, whichever it is."""
    for path in (session.request, session.key("engine")):
        session.write(path, "{}")
        path.chmod(0o600 | bits)
        with pytest.raises(ProfileError) as error:
            SessionDirectory.open(session.path)
        assert f"chmod 600 {path}" in two_lines(error).mend
        path.chmod(0o600)


def test_wide_parent_refused(tmp_path):
    """No session is made where others could put another in its place."""
    tmp_path.chmod(0o777)
    with pytest.raises(ProfileError, match="mode 0777"):
        SessionDirectory.create(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_symbolic_links_refused(session, tmp_path):
    """A symbolic link is refused, be it the directory, its parent or a file in it: it can be turned elsewhere."""
    for link, target in (
        (tmp_path / "link", session.path),
        (session.path / "request.json", tmp_path / "elsewhere"),
        (session.path / "dangling", tmp_path / "nowhere"),
    ):
        link.symlink_to(target)
        with pytest.raises(ProfileError, match="symbolic link") as error:
            SessionDirectory.open(link if link.name == "link" else session.path)
        two_lines(error)
        link.unlink()
    (tmp_path / "parent").symlink_to(session.path.parent)
    with pytest.raises(ProfileError, match="symbolic link"):
        SessionDirectory.create(tmp_path / "parent" / "new")


def test_foreign_owner_refused(session, monkeypatch):
    """What belongs to another user is refused, whatever its mode."""
    monkeypatch.setattr(os, "getuid", lambda: 12345678)
    with pytest.raises(ProfileError, match="belongs to user") as error:
        require_private(session.path)
    assert "session_dir" in two_lines(error).mend


def test_file_vanishes_meanwhile(session, monkeypatch):
    """The keeper may be just replacing a file while we look at the modes: that is no error."""
    listed = Path.iterdir

    def with_a_ghost(path):
        yield from listed(path)
        yield path / ".state.json.4711"

    monkeypatch.setattr(Path, "iterdir", with_a_ghost)
    assert SessionDirectory.open(session.path).path == session.path


# ---- writing


def test_write_replaces(session):
    """A file is replaced as a whole, and nothing else stays behind."""
    session.write(session.state, "a long first text\n")
    session.write(session.state, "second\n")
    assert session.state.read_text() == "second\n"
    assert sorted(p.name for p in session.path.iterdir()) == ["cells", "ranks", "state.json"]


def test_reader_never_sees_a_half(session, monkeypatch):
    """Until the new text is complete on the disk, a reader finds the old one."""
    session.write(session.state, "old")
    seen = []
    replace = Path.replace

    def look_first(path, target):
        seen.append((path.read_text(), Path(target).read_text()))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", look_first)
    session.write(session.state, "new")
    assert seen == [("new", "old")]


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_secret_is_never_wider(session, monkeypatch, umask):
    """Also before it has its name, a file is open to nobody else."""
    opened = os.open
    modes = []

    def look(path, flags, wanted=0o777, **kwargs):
        handle = opened(path, flags, wanted, **kwargs)
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return handle

    monkeypatch.setattr(os, "open", look)
    before = os.umask(umask)
    try:
        session.write(session.key("client"), "secret")
    finally:
        os.umask(before)
    assert modes
    assert not any(bits & 0o177 for bits in modes)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_disk_refuses_to_open(session, monkeypatch, number):
    """A full or read-only disk is said in two lines, with the directory and where to turn."""
    session.write(session.state, "old")
    with monkeypatch.context() as disk:
        disk_says(disk, number, "open")
        with pytest.raises(LaunchError) as error:
            session.write(session.state, "new")
    assert str(session.path) in two_lines(error).message
    assert os.strerror(number) in error.value.message
    assert "session_dir" in error.value.mend
    assert session.state.read_text() == "old"


def test_disk_full_while_writing(session, monkeypatch):
    """A disk that is full in the middle of a file leaves the old one, and no piece of the new."""
    session.write(session.state, "old")

    class Full(io.StringIO):
        def write(self, _text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(descriptor, _mode):
        os.close(descriptor)
        return Full()

    with monkeypatch.context() as disk:
        disk.setattr(os, "fdopen", full)
        with pytest.raises(LaunchError, match="No space left"):
            session.write(session.state, "new" * 10_000)
    assert session.state.read_text() == "old"
    assert sorted(p.name for p in session.path.iterdir()) == ["cells", "ranks", "state.json"]


def test_disk_full_while_renaming(session, monkeypatch):
    """A directory that cannot take the new name leaves no temporary file either."""

    def fail(path, target):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(LaunchError):
        session.write(session.key("client"), "secret")
    assert sorted(p.name for p in session.path.iterdir()) == ["cells", "ranks"]


def test_disk_full_at_create(tmp_path, monkeypatch):
    """Where not even a directory can be made, that is said in two lines."""
    disk_says(monkeypatch, errno.ENOSPC, "mkdir")
    with pytest.raises(LaunchError, match="No space left") as error:
        SessionDirectory.create(tmp_path / "sessions" / "demo")
    two_lines(error)


@pytest.mark.parametrize("where", ["sessions", "sessions/below"])
def test_session_dir_is_a_file(tmp_path, where):
    """A file where the directory of all sessions should be is said to be that, and not another kernel at work."""
    (tmp_path / "sessions").touch(mode=0o600)
    with pytest.raises(HpcMagicError, match="sessions") as error:
        SessionDirectory.create(tmp_path / where / "demo")
    two_lines(error)


def test_disk_errors_of_put_aside(session, monkeypatch):
    """When there is no room even to put a session aside, that is said in two lines."""
    disk_says(monkeypatch, errno.ENOSPC, "mkdir")
    with pytest.raises(LaunchError) as error:
        session.put_aside()
    two_lines(error)


# ---- records


REQUEST = Request(
    session="demo", launcher="slurm", ntasks=4, nodes=2, ntasks_per_node=2, cpus_per_task=1, mpi="auto", interface="",
    submit_host="hub", no_client_limit_s=1200.0, start_timeout_s=300.0, server_public="s", client_public="c",
    engine_public="e", resources={"nodes": 2, "time": "1:00:00", "mem": ""}, notebook={"device": 1, "inode": 2},
)  # fmt: skip
RECORDS = [
    REQUEST,
    JobRecord("slurm", "8123", 1.5),
    KeeperState("starting"),
    KeeperState("ready", (0, 1), ("n1", "n2"), 2, "srun --mpi=pmix", "", "", 4711, "n1"),
    Connection("10.0.0.1", {"mux": 1, "broadcast": [2, 3], "pack": "json"}, {"control": 4}),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_come_back(session, record):
    """What one side wrote the other reads as the same: numbers, tuples and dictionaries."""
    session.write_record(session.state, record)
    again = session.read_record(session.state, type(record))
    assert again == record
    assert [type(getattr(again, name)) for name in record.__slots__] == [
        type(getattr(record, name)) for name in record.__slots__
    ]


def test_record_not_there(session):
    """A record that nobody has written yet is None."""
    assert session.read_record(session.state, KeeperState) is None


def test_directory_gone(session):
    """Where the directory itself is gone, the reader gets to know: the session was stopped elsewhere."""
    session.put_aside()
    with pytest.raises(FileNotFoundError):
        session.read_record(session.state, KeeperState)


@dataclass(frozen=True)
class Newer:
    """KeeperState as a later version may write it."""

    phase: str = "ready"
    ranks: tuple[int, ...] = (0,)
    mood: str = "good"
    details: dict = field(default_factory=lambda: {"a": 1})


def test_unknown_keys_ignored(session):
    """A session that a newer version made can still be looked at."""
    session.write_record(session.state, Newer())
    assert session.read_record(session.state, KeeperState) == KeeperState("ready", ranks=(0,))


# ---- names


@pytest.mark.parametrize("name", ["demo", "a", "Run_2.b-3", "0", "_x"])
def test_plain_names_stay(name):
    """A name that is fit for a directory is the directory's."""
    assert slug(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "/home/me/My thesis (final)", "/home/me/Größe", "/a/b", "../x", "..", ".", "/", "", "a b", "~", "-rf", "x\ny",
        "日本語", "a" * 300, ".hidden", "a/", "$(id)", "a;b", "x\0y", "ended/../..", "–",
    ],
)  # fmt: skip
def test_slug_is_a_plain_name(name):
    """Any other name becomes one plain word that starts with a letter or digit and leaves the directory never."""
    made = slug(name)
    assert made == "".join(c for c in made if c.isascii() and (c.isalnum() or c in "_.-"))
    assert made[0].isalnum() or made[0] == "_"
    assert len(made) <= 64
    assert Path("/sessions", made).parent == Path("/sessions")
    assert slug(name) == made


def test_slugs_differ():
    """Notebooks of one name in different folders have sessions of their own."""
    names = ["/a/run", "/b/run", "/a/run ", "/a/Run", "run", "/a/ru n", "/a/ru-n"]
    assert len({slug(name) for name in names}) == len(names)


def test_slug_shows_the_name():
    """The user recognises the notebook in the name, and sees none of the path."""
    assert slug("/home/me/secret/analysis v2").startswith("analysis-v2-")
    assert "secret" not in slug("/home/me/secret/analysis v2")


# ---- the end


def test_forget_keys(session):
    """The keys of an ended session are removed; what tells its story stays."""
    for who in ("server", "client", "engine", "signing"):
        session.write(session.key(who), "secret")
    session.log.write_text("the story")
    session.forget_keys()
    session.forget_keys()
    assert not list(session.path.rglob("*.key"))
    assert session.log.read_text() == "the story"


def test_put_aside(session):
    """An ended session leaves its name free and its log readable, and none of its keys."""
    session.write(session.key("server"), "secret")
    session.log.write_text("the story")
    session.put_aside()
    aside = session.path.parent / "ended" / "demo~1"
    assert not session.path.exists()
    assert (aside / "job.log").read_text() == "the story"
    assert not list(aside.rglob("*.key"))
    assert mode(aside.parent) == mode(aside) == 0o700
    SessionDirectory.create(session.path)


def test_put_aside_numbers(session):
    """Each ended session has a number of its own, across all names; nothing is overwritten."""
    for name in ("demo", "other", "demo", "demo~odd"):
        path = session.path.with_name(name)
        (SessionDirectory(path) if path.exists() else SessionDirectory.create(path)).put_aside()
    names = sorted(p.name for p in (session.path.parent / "ended").iterdir())
    assert names == ["demo~1", "demo~3", "demo~odd~4", "other~2"]


def test_put_aside_beside_strangers(session):
    """Whatever else a user keeps beside the ended sessions stays, and disturbs nothing."""
    shelf = session.path.parent / "ended"
    shelf.mkdir(mode=0o700)
    for name in ("notes~2020-paper", "a~1b", "plain"):
        (shelf / name).mkdir()
    session.put_aside()
    assert {"notes~2020-paper", "a~1b", "plain"} < {p.name for p in shelf.iterdir()}


def test_only_the_newest_are_kept(session):
    """Ended sessions do not fill the disk: the oldest go, by number and not by name."""
    for number in range(ENDED_KEPT + 3):
        (session if number == 0 else SessionDirectory.create(session.path)).put_aside()
    numbers = sorted(int(p.name.partition("~")[2]) for p in (session.path.parent / "ended").iterdir())
    assert numbers == list(range(4, ENDED_KEPT + 4))


def test_repr_shows_the_path_only(session):
    """A directory shows where it is, and no secret."""
    session.write(session.key("client"), "very secret")
    assert repr(session) == f"SessionDirectory({str(session.path)!r})"
