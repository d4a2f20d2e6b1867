"""Strangers who connect to a rank's bulk port: what they say, and when they come.

What docs/security.md promises of them, tried on a live session.
"""

import contextlib
import secrets
import socket

import numpy as np
import pytest
from faults import soon

import hpcmagic
from hpcmagic.notebook import channels
from hpcmagic.wire import bulk, shared
from hpcmagic.wire.bulk import HELLO_NBYTES, MAGIC

HOST = "127.0.0.1"


@pytest.fixture
def ranks(session, monkeypatch):
    """A session whose bytes take the wire, over connections of this test's own."""
    monkeypatch.setattr(shared, "ALLOWED", False)
    session.data.channels.close()
    session.run("x = 'old'")
    yield session
    session.data.channels.close()


def opened(session):
    """The channels that are open, by rank."""
    return {rank: channel for rank, (_, channel) in sorted(session.data.channels._open.items())}


def bulk_ports(session):
    """The bulk ports of the ranks, in order, as the notebook was told of them."""
    return [channel.sock.getpeername()[1] for channel in opened(session).values()]


def works(session):
    """The next transfers do what they should."""
    x = np.arange(100_000.0)
    with soon(10):
        session.scatter(y=x)
        assert (session.gather("y") == x).all()


@pytest.fixture
def streams(monkeypatch):
    """What passes over each channel from now on, by its name: what was sent to the rank, and what came from it."""
    sent, came = {}, {}
    send, fill = bulk.Channel.send_sealed, bulk.Channel._fill

    def sending(self, left):
        sent[self.name] = sent.get(self.name, b"") + bytes(left)
        yield from send(self, left)

    def filling(self, left):
        yield from fill(self, left)
        came[self.name] = came.get(self.name, b"") + bytes(left)

    monkeypatch.setattr(bulk.Channel, "send_sealed", sending)
    monkeypatch.setattr(bulk.Channel, "_fill", filling)
    return sent, came


class Stranger:
    """Someone who connects to a port, says something, and hears what he gets for it."""

    def __init__(self, port, said):
        self.sock = socket.create_connection((HOST, port), timeout=10)
        with contextlib.suppress(OSError):  # it may have been closed by then
            self.sock.sendall(said)

    def hears(self):
        """Give all that comes until the other side closes, which it must."""
        heard = b""
        with self.sock, contextlib.suppress(ConnectionError):
            while came := self.sock.recv(1 << 16):
                heard += came
        return heard


def test_stranger_connects(ranks, streams):
    """Whoever comes without a key hears nothing and binds nothing, whatever he says, and stops nobody.

    Garbage, half a greeting, nothing at all, and what he has recorded of true transfers: of this connection, of
    another one, or of its other direction.
    """
    ranks.scatter(x=np.arange(200_000.0))
    ranks.push({"z": b"z" * 100_000}, ranks=1)
    sent, came = streams
    (first, second), (port, *_) = [channel.name for channel in opened(ranks).values()][:2], bulk_ports(ranks)
    assert len(sent[first]) > 400_000
    assert sent[first].startswith(MAGIC + bytes.fromhex(first))
    assert len(sent[first][:HELLO_NBYTES]) < len(came[first])
    ranks.run("x = z = 'old'")
    sayings = {
        "garbage": secrets.token_bytes(100_000),
        "another protocol": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "another version": MAGIC[:-1] + b"\2" + sent[first][len(MAGIC) :],
        "a name of his own": MAGIC + secrets.token_bytes(16) + sent[first][len(MAGIC) + 16 :],
        "recorded": sent[first],
        "recorded from another rank's": sent[second],
        "recorded, without its greeting": sent[first][HELLO_NBYTES:],
        "reflected": came[first],
        "the greeting reflected": sent[first][:24] + came[first],
        "recorded, then half of it": sent[first][:30],
        "nothing": b"",
    }
    sayings |= {f"nothing {n}": b"" for n in range(20)}
    callers = {what: Stranger(port, said) for what, said in sayings.items()}
    works(ranks)  # over the channels that there are
    ranks.data.channels.close()
    works(ranks)  # over new ones, while some of them still stand there
    with soon(8):
        heard = {what: caller.hears() for what, caller in callers.items()}
    assert heard == dict.fromkeys(sayings, b"")
    assert ranks.run("x, z").same() == ("old", "old")
    assert bulk_ports(ranks)[0] == port
    works(ranks)


def test_stranger_comes_first(ranks, streams, monkeypatch):
    """One who knows the name of a connection that is about to come, which is no secret, can spoil it, and no more."""
    ranks.scatter(x=np.arange(200_000.0))
    sent, _ = streams
    recorded = sent[opened(ranks)[0].name]
    ranks.run("x = 'old'")
    ranks.data.channels.close()
    heard = []

    def outrun(host, port, invitation, session):
        name = bytes.fromhex(invitation.channel)
        heard.append(Stranger(port, MAGIC + name + recorded[len(MAGIC) + len(name) :]).hears())
        return bulk.connect(host, port, invitation, session)

    with monkeypatch.context() as patch, soon(10):
        patch.setattr(channels, "connect", outrun)
        with pytest.raises(hpcmagic.HpcMagicError, match=r"Rank \d: the bulk channel is cut"):
            ranks.scatter(x=np.arange(200_000.0))
    assert heard == [b""]
    assert ranks.run("x").same() == "old"
    works(ranks)
