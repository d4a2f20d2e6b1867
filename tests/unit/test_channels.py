"""The notebook's end of the bulk channels when something comes in between: no rank is left waiting for what never comes."""

import socket
from types import SimpleNamespace

import pytest
from two_lines import two_lines

from hpcmagic.errors import CellError, PeerLost
from hpcmagic.notebook import channels as notebook_channels
from hpcmagic.notebook.channels import Channels
from hpcmagic.rendezvous import KeeperState
from hpcmagic.testing import FakeClock
from hpcmagic.wire.bulk import Channel

SESSION = "a keeper's public key, in Z85"


class Held:
    """A session whose ranks say where they listen, and are asked for no more than `send_to` lets through."""

    size = 3
    ended = ""
    request = SimpleNamespace(server_public=SESSION)

    def __init__(self):
        self.ranks_ends = []
        self.engines = {rank: f"engine {rank}" for rank in range(self.size)}
        self.silent = set()
        self.nodes = ("elsewhere",) * self.size
        self.shares = set()

    def control_path(self):
        """The way to the ranks."""
        return self

    def engine(self, rank):
        """Which engine is a rank's."""
        return self.engines[rank]

    def keeper_state(self):
        """Where ranks run."""
        return KeeperState("ready", tuple(range(self.size)), self.nodes)

    def look(self, _now_s):
        """Whether it lives: it does."""

    def invite(self, invitations):
        """Let ranks answer, those that are not silent."""
        return {
            rank: {"host": "", "port": 1, "shares": rank in self.shares}
            for rank in invitations
            if rank not in self.silent
        }

    def connect(self, _host, _port, invitation, _session):
        """The notebook's end of a connection, without a greeting."""
        ours, theirs = socket.socketpair()
        self.ranks_ends.append(theirs)
        return Channel(ours, invitation, SESSION, at_rank=False)


@pytest.fixture
def held(monkeypatch):
    """A session, and the notebook's end of its channels."""
    session = Held()
    monkeypatch.setattr(notebook_channels, "connect", session.connect)
    channels = Channels(session)
    yield session, channels
    channels.close()
    for end in session.ranks_ends:
        end.close()


@pytest.mark.parametrize("ahead", [False, True])
def test_interrupted_while_ranks_are_asked(held, ahead):
    """Ctrl-C when some ranks have been asked, and others not: the connections of those that wait are cut."""
    session, channels = held

    def send_to(_messages):
        raise KeyboardInterrupt

    session.send_to = send_to
    with pytest.raises(CellError, match=r"Stopped: scatter x\. Nothing was bound") as error:
        channels.move("scatter x", 9, (0, 1, 2), dict, lambda *_: iter(()), together=not ahead, ahead=ahead)
    two_lines(error)
    assert channels.open_to() == ()
    assert [end.recv(1) for end in session.ranks_ends] == [b""] * 3


def test_rank_started_anew_before_it_answers(held, monkeypatch):
    """Who waits for the word of a rank that is gone, another in its place, is told so: it never comes."""
    session, channels = held
    clock = FakeClock()

    def sleep(seconds):
        clock.advance(seconds)
        if clock.now_s > 5:
            session.engines[1] = "another engine"
        assert clock.now_s < 10

    session.silent = {1, 2}
    monkeypatch.setattr(notebook_channels, "time", SimpleNamespace(monotonic=clock, sleep=sleep))
    with pytest.raises(PeerLost, match="The engine of rank 1 is gone, with all variables there") as error:
        channels.to([0, 1, 2], 9)
    two_lines(error)
    assert channels.open_to() == ()


@pytest.mark.parametrize(
    ("nodes", "shares", "opened", "here"),
    [
        ("hhh", {0, 1, 2}, (), True),
        ("hhh", {0, 1, 2}, (0,), True),
        ("hhh", {0, 1, 2}, (0, 1, 2), True),
        ("hhh", {1, 2}, (0,), False),  # another host of that name
        ("hee", {0}, (), False),
        ("hee", {0}, (0,), False),
        ("hee", {0}, (0, 1, 2), False),
        ("", set(), (), False),
    ],
)
def test_all_here(held, nodes, shares, opened, here):
    """Only where every rank shares memory does each get a copy of its own, whichever ranks are connected so far."""
    session, channels = held
    session.nodes = tuple(socket.gethostname().partition(".")[0] if node == "h" else "elsewhere" for node in nodes)
    session.shares = shares
    channels.to(opened, 9)
    assert channels.all_here() is here
