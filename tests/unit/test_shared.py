"""Memory that two processes of one user share: nobody else's, nothing left of it behind, the wire where there is none."""

import errno
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from two_lines import two_lines

from hpcmagic.errors import PeerLost, Tampered
from hpcmagic.notebook import channels as notebook_channels
from hpcmagic.notebook.channels import Channels
from hpcmagic.rendezvous import KeeperState
from hpcmagic.wire import shared
from hpcmagic.wire.bulk import HEADER, Channel, Invitation, Kind
from hpcmagic.wire.crypto import TAG_NBYTES
from hpcmagic.wire.messages import FRAME_NBYTES
from hpcmagic.wire.moving import run_all
from hpcmagic.wire.shared import SHARED_NBYTES, SLOTS, Shared, remove_forgotten

SESSION = "a keeper's public key, in Z85"
PLACE = shared.FOLDER


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place of the test's own for the files, instead of the machine's."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(shared, "FOLDER", folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_left(folder):
    """Find memory that a test, or what it tests, has left open."""
    before = descriptors()
    yield
    assert descriptors() == before


def descriptors():
    """What this process has open."""
    return {path.name: str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.exists()}


def made():
    """A piece of memory, which must be there."""
    memory = Shared.create()
    assert memory is not None
    return memory


def file_of(name, nbytes=SHARED_NBYTES, mode=0o600):
    """A file as if another process had made it."""
    path = shared.FOLDER / name
    path.write_bytes(b"")
    os.truncate(path, nbytes)
    path.chmod(mode)
    return path


def own_name(text="0" * 32):
    """How a file of this user's is called."""
    return f"hpcmagic-{os.getuid()}-{text}"


def test_place():
    """The files lie where memory is, not on a disk."""
    assert Path("/dev/shm") == PLACE


def test_created(folder):
    """A new piece is this user's alone, all there, empty, and of a name that nobody guesses; two are two."""
    old_mask = os.umask(0)
    one, other = made(), made()
    os.umask(old_mask)
    assert sorted(path.name for path in folder.iterdir()) == sorted([one.name, other.name])
    for memory in (one, other):
        info = (folder / memory.name).stat()
        assert stat.S_IMODE(info.st_mode) == 0o600
        assert info.st_uid == os.getuid()
        assert info.st_size == SHARED_NBYTES
        assert info.st_blocks * 512 >= SHARED_NBYTES  # no write to it can fail later
        assert re.fullmatch(rf"hpcmagic-{os.getuid()}-[0-9a-f]{{32}}", memory.name)
        assert not any(memory.view)
        memory.unlink()
        memory.close()
    assert one.name != other.name


def test_both_see_it(folder):
    """What one side writes the other reads, also when the name is gone: the memory lives as long as one maps it."""
    ours = made()
    theirs = Shared.open(ours.name)
    ours.unlink()
    ours.unlink()
    assert list(folder.iterdir()) == []
    ours.slot(5, 3)[:] = b"abc"
    assert bytes(theirs.slot(5, 3)) == b"abc"
    ours.close()
    theirs.slot(5, 3)[:] = b"def"
    theirs.close()
    assert Shared.open(ours.name) is None


def test_not_inherited():
    """A child that a rank or the notebook starts gets nothing of it."""
    before = descriptors()
    ours = made()
    theirs = Shared.open(ours.name)
    held = descriptors().keys() - before.keys()
    assert len(held) == 2
    assert not any(os.get_inheritable(int(number)) for number in held)
    ours.close()
    theirs.close()


def test_slots():
    """Blocks that may be in it at the same time lie apart, inside of it; later ones take the places of earlier ones."""
    memory = made()
    for number in range(2 * SLOTS):
        memory.slot(number, FRAME_NBYTES)[:] = bytes([number + 1]) * FRAME_NBYTES
    assert [set(memory.slot(number, FRAME_NBYTES)) for number in range(2 * SLOTS)] == [
        {number + 1} for number in range(2 * SLOTS)
    ]
    assert memory.slot(2 * SLOTS + 1, 9) == memory.slot(1, 9)
    assert 2 * SLOTS * FRAME_NBYTES == SHARED_NBYTES
    memory.close()


@pytest.mark.parametrize(
    "name",
    [
        "", "x", "hpcmagic", own_name("d/x"), f"../shm/{own_name()}", f"/{own_name()}", f"./{own_name()}",
        f"hpcmagic-{os.getuid() + 1}-{'0' * 32}", f"hpcmagic-{os.getuid()}", own_name("is not there"),
    ],
)  # fmt: skip
def test_other_names(folder, name):
    """Nothing is opened but what is called like a piece of this user's, in its place."""
    (folder / own_name("d")).mkdir()
    for there in (own_name(), own_name("d/x"), "x", "hpcmagic", f"hpcmagic-{os.getuid() + 1}-{'0' * 32}", "../x"):
        file_of(there)
    assert Shared.open(name) is None


@pytest.mark.parametrize("nbytes", [0, SHARED_NBYTES - 1, SHARED_NBYTES + 1])
def test_other_size(nbytes):
    """A file that is shorter would be a crash later, a longer one is none of ours."""
    file_of(own_name(), nbytes)
    assert Shared.open(own_name()) is None


@pytest.mark.parametrize("mode", [0o400, 0o640, 0o604, 0o620, 0o666, 0o700, 0o1600, 0o4600])
def test_other_mode(mode):
    """A file that others might read or write is not used, nor one of any other mode than it was given."""
    file_of(own_name(), mode=mode)
    assert Shared.open(own_name()) is None


def test_of_another_user(monkeypatch):
    """A file that another user has laid there under the right name is not used, whatever its mode."""
    file_of(own_name())
    real = os.fstat
    others = lambda fd: SimpleNamespace(  # noqa: E731
        st_uid=os.getuid() + 1, st_mode=real(fd).st_mode, st_size=real(fd).st_size
    )
    monkeypatch.setattr(shared.os, "fstat", others)
    assert Shared.open(own_name()) is None


def test_the_right_one():
    """The same file, of the right size, mode and owner, is used: what the tests above refuse is due to just that."""
    file_of(own_name())
    memory = Shared.open(own_name())
    assert len(memory.view) == SHARED_NBYTES
    memory.close()


def test_symbolic_link(folder):
    """A link is not followed, not even to a file that would do."""
    target = file_of("target")
    (folder / own_name()).symlink_to(target)
    assert Shared.open(own_name()) is None
    remove_forgotten()
    assert target.exists()


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo], ids=["directory", "pipe"])
def test_no_file(folder, make):
    """What is no file at all is not used, and nobody waits for it."""
    make(folder / own_name())
    assert Shared.open(own_name()) is None


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EOPNOTSUPP])
def test_full(folder, monkeypatch, error):
    """Where there is no room there is none, and nothing is left of the attempt."""

    def full(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(shared.os, "posix_fallocate", full)
    assert Shared.create() is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("moment", ["flock", "posix_fallocate", "mmap"])
def test_interrupted(folder, monkeypatch, moment):
    """Ctrl-C while it is made leaves neither a file nor a descriptor behind."""

    def interrupted(*_):
        raise KeyboardInterrupt

    where = {"flock": shared.fcntl, "posix_fallocate": shared.os, "mmap": shared.mmap}[moment]
    monkeypatch.setattr(where, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        Shared.create()
    assert list(folder.iterdir()) == []


def test_lock_outlives_its_descriptor(folder):
    """Whoever holds it holds its lock; let go of without a word, it is removed by the next one."""
    first = made()
    remove_forgotten()
    assert (folder / first.name).exists()
    del first
    remove_forgotten()
    assert list(folder.iterdir()) == []


def test_cannot_be_mapped(folder, monkeypatch):
    """Nor is there any where it cannot be mapped; in neither case does a descriptor stay open."""
    ours = file_of(own_name())

    def refuse(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(shared.mmap, "mmap", refuse)
    assert Shared.create() is None
    assert list(folder.iterdir()) == []  # what was forgotten is gone, too
    file_of(ours.name)
    assert Shared.open(own_name()) is None


def test_no_such_place(monkeypatch, tmp_path):
    """A machine without such memory does without."""
    monkeypatch.setattr(shared, "FOLDER", tmp_path / "nowhere")
    assert Shared.create() is None
    assert Shared.open(own_name()) is None
    remove_forgotten()


def test_not_allowed(monkeypatch, folder):
    """Who measures the wire gets the wire."""
    monkeypatch.setattr(shared, "ALLOWED", False)
    assert Shared.create() is None
    assert list(folder.iterdir()) == []


# ---- processes that are killed


MAKER = """
import sys
from pathlib import Path
from hpcmagic.wire import shared

shared.FOLDER = Path(sys.argv[1])
memory = shared.Shared.create()
print(memory.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def maker(folder):
    """A process that has made a piece, and not removed its name yet."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.name = process.stdout.readline().strip()
    yield process
    process.kill()
    process.communicate()


def test_forgotten(folder, maker):
    """What a killed process leaves is removed by the next one that makes a piece; what a living one holds stays."""
    assert (folder / maker.name).exists()
    first = made()
    assert (folder / maker.name).exists()
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    assert (folder / maker.name).exists()
    second = made()
    assert {path.name for path in folder.iterdir()} == {first.name, second.name}
    for memory in (first, second):
        memory.close()
    remove_forgotten()
    assert list(folder.iterdir()) == []


def test_only_forgotten_ones_of_this_user(folder):
    """Nobody else's files are touched, and none of another kind."""
    others = {
        file_of(f"hpcmagic-{os.getuid() + 1}-{'0' * 32}"),
        file_of("hpcmagic-"),
        file_of("pulse-shm-1"),
        file_of(f"x{own_name()}"),
    }
    forgotten = file_of(own_name())
    (folder / own_name("1")).symlink_to(folder / "pulse-shm-1")
    remove_forgotten()
    assert not forgotten.exists()
    assert others <= set(folder.iterdir())


def test_memory_outlives_its_maker(folder, maker):
    """Who has mapped it keeps it when the other one is killed, and the name is removed."""
    memory = Shared.open(maker.name)
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    remove_forgotten()
    assert list(folder.iterdir()) == []
    memory.slot(0, 1)[:] = b"x"
    memory.close()


# ---- values through it


@pytest.fixture
def pair():
    """Both ends of a channel whose sides share memory."""
    invitation = Invitation.fresh()
    ends = socket.socketpair()
    channels = [Channel(end, invitation, SESSION, at_rank=bool(i)) for i, end in enumerate(ends)]
    channels[0].shared = made()
    channels[1].shared = Shared.open(channels[0].shared.name)
    channels[0].shared.unlink()
    yield channels
    for channel in channels:
        channel.close()


def nothing():
    """Do nothing, now and then."""


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 7, 8, 9, 11, 12, 13, 100])
def test_through_slots(pair, count):
    """Values of any number of blocks pass, either way, one behind the other; none of their bytes goes over the wire."""
    rng = np.random.default_rng(count)
    for transfer in range(3):
        sender, receiver = pair if transfer % 2 == 0 else reversed(pair)
        sizes = [FRAME_NBYTES] * (count - 1) + [int(rng.integers(1, FRAME_NBYTES))] * bool(count)
        sent = [rng.bytes(size) for size in sizes]
        into = [memoryview(bytearray(size)) for size in sizes]
        parts = {
            0: sender.send_blocks(transfer, iter(sent), count),
            1: receiver.receive_blocks(transfer, iter(into), count),
        }
        assert run_all({0: sender, 1: receiver}, parts, nothing) == {}
        assert [bytes(block) for block in into] == sent
        assert sender.is_cut() is False
        words = -(-count // SLOTS) * 2 * (HEADER.size + TAG_NBYTES)
        assert sender.moved_nbytes == receiver.moved_nbytes == sum(sizes) + words
        sender.moved_nbytes = receiver.moved_nbytes = 0


def test_one_buffer_for_all_blocks(pair):
    """A sender that makes each block in the place of the last one, and a receiver that copies on, lose nothing."""
    count, came, block, place = 50, [], bytearray(1000), bytearray(1000)

    def made_one_by_one():
        for number in range(count):
            block[:] = bytes([number]) * 1000
            yield block

    def taken_one_by_one():
        for _ in range(count):
            yield memoryview(place)
            came.append(bytes(place))

    parts = {
        0: pair[0].send_blocks(1, made_one_by_one(), count),
        1: pair[1].receive_blocks(1, taken_one_by_one(), count),
    }
    assert run_all(dict(enumerate(pair)), parts, nothing) == {}
    assert came == [bytes([number]) * 1000 for number in range(count)]


def test_never_ahead(pair):
    """A sender never writes over what has not been read: it stops when both halves are full."""
    count = 20
    sending = pair[0].send_blocks(1, (bytes([number]) * 10 for number in range(count)), count)
    waits = [next(sending) for _ in range(3)]
    assert waits[-1] == 1  # it waits for a word
    assert [pair[0].shared.slot(number, 1)[0] for number in range(2 * SLOTS)] == list(range(2 * SLOTS))
    into = [memoryview(bytearray(10)) for _ in range(count)]
    parts = {0: sending, 1: pair[1].receive_blocks(1, iter(into), count)}
    assert run_all(dict(enumerate(pair)), parts, nothing) == {}
    assert [block[0] for block in into] == list(range(count))


@pytest.mark.parametrize("number", [1, 7])
def test_word_of_another_half(pair, number):
    """What is said of it is sealed and counted like all else: a word of another half, or transfer, is refused."""
    list(pair[0].send(Kind.FILLED, 1 if number == 7 else 2, number if number == 7 else 0, 5))
    into = [memoryview(bytearray(10)) for _ in range(5)]
    failed = run_all(dict(enumerate(pair)), {1: pair[1].receive_blocks(1, iter(into), 5)}, nothing)
    assert [type(error) for error in failed.values()] == [Tampered]


def test_other_side_is_lost(pair):
    """A side that is gone leaves nobody waiting for a half."""
    sending = pair[0].send_blocks(1, (b"x" for _ in range(20)), 20)
    for _ in range(3):
        next(sending)
    pair[1].close()
    failed = run_all(dict(enumerate(pair)), {0: sending}, nothing)
    assert [type(error) for error in failed.values()] == [PeerLost]
    two_lines(SimpleNamespace(value=failed[0]))


# ---- the notebook's side


class Held:
    """A session with one rank, which finds the memory that it is told of, or does not."""

    size = 1
    request = SimpleNamespace(server_public=SESSION)

    def __init__(self, *, finds=True, node=None):
        self.finds = finds
        self.node = socket.gethostname().partition(".")[0] if node is None else node
        self.invited = []
        self.ranks_ends = []

    def control_path(self):
        """The way to the ranks."""
        return self

    def engine(self, _rank):
        """One that has never been restarted."""
        return "engine"

    def keeper_state(self):
        """Where the rank runs."""
        return KeeperState("ready", (0,), (self.node,))

    def invite(self, invitations):
        """Note what the rank is told."""
        if not invitations:
            return {}
        (invitation,) = invitations.values()
        found = bool(invitation.shared) and self.finds
        self.invited.append((invitation, [path.name for path in shared.FOLDER.iterdir()]))
        return {0: {"host": "127.0.0.1", "port": 1, "shares": found}}

    def connect(self, _host, _port, invitation, _session):
        """The notebook's end of a connection, without a greeting."""
        ours, theirs = socket.socketpair()
        self.ranks_ends.append(theirs)
        return Channel(ours, invitation, SESSION, at_rank=False)


@pytest.fixture
def held(monkeypatch):
    """Make a session and the notebook's end of its channels."""
    opened = []

    def make(**kwargs):
        session = Held(**kwargs)
        monkeypatch.setattr(notebook_channels, "connect", session.connect)
        channels = Channels(session)
        opened.append((session, channels))
        return session, channels

    yield make
    for session, channels in opened:
        channels.close()
        for end in session.ranks_ends:
            end.close()


def test_shared_with_a_rank(held, folder):
    """A rank on this host that finds the memory shares it; its name is gone as soon as the rank has answered."""
    session, channels = held()
    channel = channels.to([0], 1)[0]
    ((invitation, there),) = session.invited
    assert there == [invitation.shared]
    assert channel.shared.name == invitation.shared
    assert list(folder.iterdir()) == []
    assert channels.to([0], 1)[0] is channel
    assert len(session.invited) == 1


@pytest.mark.parametrize("elsewhere", [{"finds": False}, {"node": "another-host"}])
def test_not_shared(held, folder, elsewhere):
    """With a rank that runs elsewhere, or on another host of the same name, nothing is shared, and nothing kept."""
    session, channels = held(**elsewhere)
    assert channels.to([0], 1)[0].shared is None
    assert bool(session.invited[0][0].shared) == ("finds" in elsewhere)
    assert list(folder.iterdir()) == []


def test_wire_where_there_is_no_room(held, monkeypatch):
    """Where /dev/shm is full a value goes over the wire."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared.os, "posix_fallocate", full)
    session, channels = held()
    channel = channels.to([0], 1)[0]
    assert channel.shared is None
    assert session.invited[0][0].shared == ""
    into = memoryview(bytearray(5))
    rank = Channel(session.ranks_ends[0].dup(), session.invited[0][0], SESSION, at_rank=True)
    parts = {0: channel.send_blocks(1, iter([b"hello"]), 1), 1: rank.receive_blocks(1, iter([into]), 1)}
    assert run_all({0: channel, 1: rank}, parts, nothing) == {}
    assert bytes(into) == b"hello"
    rank.close()


def test_interrupted_as_it_is_noted(held):
    """Ctrl-C once a connection is there leaves none that the rank takes for one with memory, and the notebook not."""
    session, channels = held()

    class Interrupted(dict):
        def __setitem__(self, rank, opened):
            super().__setitem__(rank, opened)
            raise KeyboardInterrupt

    channels._open = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        channels.to([0], 1)
    assert session.invited[0][0].shared
    assert channels.to([0], 1)[0].shared is not None


@pytest.mark.parametrize("fails", ["invite", "connect"])
def test_nothing_left_of_a_connection_that_fails(held, folder, monkeypatch, fails):
    """A rank that cannot be reached, or that opens no port, leaves neither a file nor memory behind."""
    _, channels = held()

    def lost(*_args):
        raise PeerLost("The port cannot be reached.", "See `%hpc log`.")

    target = channels if fails == "invite" else notebook_channels
    monkeypatch.setattr(target, fails, lost)
    with pytest.raises(PeerLost):
        channels.to([0], 1)
    assert list(folder.iterdir()) == []
