"""A rank's bulk port: who was announced gets in, once; strangers cost it little, and keep nobody out."""

import contextlib
import errno
import select
import selectors
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from two_lines import two_lines

from hpcmagic.engine import port as port_module
from hpcmagic.engine.port import COMES_S, INVITATIONS, PROVE_S, STRANGERS, BulkPort
from hpcmagic.errors import PeerLost, Tampered
from hpcmagic.rendezvous import Request
from hpcmagic.wire import bulk, shared
from hpcmagic.wire.bulk import HELLO_NBYTES, MAGIC, Channel, Invitation, Kind, connect
from hpcmagic.wire.moving import run_one
from hpcmagic.wire.shared import Shared

SESSION = "a keeper's public key, in Z85"
REQUEST = Request(
    session="demo", launcher="local", ntasks=1, nodes=1, ntasks_per_node=1, cpus_per_task=1, mpi="none", interface="",
    submit_host="", no_client_limit_s=0.0, start_timeout_s=60.0, server_public=SESSION, client_public="",
    engine_public="",
)  # fmt: skip
WAITS_S = 20.0  # for what comes at once, unless it never does


class Over(Exception):  # no error: the test's end
    """Ends the port's thread."""


class Watched(selectors.DefaultSelector):
    """A selector whose thread the test can hold and end; its timeouts are 50 times as short."""

    def __init__(self):
        super().__init__()
        self.ours, self.wake = socket.socketpair()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.held = threading.Event()
        super().register(self.ours, selectors.EVENT_READ, "wake")

    def select(self, timeout=None):
        """Wait for news; the newest connection is heard of first, as it may be with any selector."""
        while True:
            events = super().select(None if timeout is None else timeout / 50)
            if any(key.data == "wake" for key, _ in events):
                if not self.goes_on.is_set():
                    self.ours.recv(1)
                    self.held.set()
                    self.goes_on.wait(WAITS_S)
                    continue
                raise Over
            return sorted(events, key=lambda event: event[0].data is not None)

    def hold(self):
        """Keep the thread from hearing of anything until `go_on`."""
        self.goes_on.clear()
        self.wake.send(b"x")
        assert self.held.wait(WAITS_S)

    def go_on(self):
        """Let it hear all that has come meanwhile at once."""
        self.held.clear()
        self.goes_on.set()

    def end(self):
        """End the thread."""
        self.goes_on.set()
        self.wake.send(b"x")

    def close(self):
        """With its own sockets."""
        super().close()
        self.ours.close()
        self.wake.close()


@pytest.fixture
def clock(monkeypatch):
    """The port's clock, which stands still until the test sets it forward."""
    clock, began_s = SimpleNamespace(ahead_s=0.0), time.monotonic()
    fake = SimpleNamespace(monotonic=lambda: began_s + clock.ahead_s, sleep=time.sleep)
    monkeypatch.setattr(port_module, "time", fake)
    return clock


@pytest.fixture
def loopback(monkeypatch):
    """Allow connections to this machine itself: to ports that the test has opened."""
    plain = socket.socket.__base__.connect

    def loopback_only(self, address):
        assert not isinstance(address, tuple) or address[0] == "127.0.0.1"
        return plain(self, address)

    monkeypatch.setattr(socket.socket, "connect", loopback_only)


@pytest.fixture
def watched():
    """The port's selector."""
    watched = Watched()
    yield watched
    watched.close()


@pytest.fixture
def port(monkeypatch, loopback, clock, watched):
    """A rank's port, whose thread ends with the test."""
    monkeypatch.setattr(port_module.selectors, "DefaultSelector", lambda: contextlib.nullcontext(watched))
    welcome_all = BulkPort._welcome_all

    def until_over(self, door):
        with contextlib.suppress(Over):
            welcome_all(self, door)

    monkeypatch.setattr(BulkPort, "_welcome_all", until_over)
    port = BulkPort(REQUEST)
    yield port
    for thread in threading.enumerate():
        if thread.name == "hpcmagic-bulk-port":
            watched.end()
            thread.join(WAITS_S)
            assert not thread.is_alive()
    for closed in [
        *port._strangers,
        *port._channels.values(),
        *port._shared.values(),
        port._door and port._door.listening,
    ]:
        if closed is not None:
            closed.close()


@pytest.fixture
def knock(port):
    """Connect, and send these bytes; closed behind the test."""
    opened = []

    def knock(data=b""):
        sock = socket.create_connection(port._door.listening.getsockname(), timeout=WAITS_S)
        opened.append(sock)
        sock.sendall(data)
        return sock

    yield knock
    for sock in opened:
        sock.close()


@pytest.fixture
def join(port):
    """Announce a connection and make it, as a notebook does; closed behind the test."""
    opened = []

    def join(invitation=None, **kwargs):
        invitation = invitation or Invitation.fresh(**kwargs)
        host, number, _ = port.invite(invitation)
        channel = connect(host, number, invitation, SESSION)
        opened.append(channel)
        return channel

    yield join
    for channel in opened:
        channel.close()


def invited(port):
    """Announce a connection."""
    invitation = Invitation.fresh()
    port.invite(invitation)
    return invitation


def greeting(invitation, session=SESSION):
    """The bytes by which a notebook shows that it knows the keys."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, invitation, session, at_rank=False)
    for _ in bulk._greet(channel):
        break  # it waits for an answer
    sent = theirs.recv(1000)
    channel.close()
    theirs.close()
    assert len(sent) == HELLO_NBYTES
    return sent


def is_closed(sock):
    """Whether the port has hung up, without a word; waits for it."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def is_open(sock):
    """Whether the port still listens to a connection, and has not answered."""
    return not select.select([sock], [], [], 0)[0]


# ---- who was announced


def test_frames_pass(port, join):
    """A connection that was announced is the rank's once it is made: frames pass, both ways."""
    channel = join()
    own = port.channel(channel.name)
    got = bytearray(5)
    for sender, receiver in ((channel, own), (own, channel)):
        run_one(sender, sender.send(Kind.DATA, 1, 0, 1, b"hello"))
        run_one(receiver, receiver.receive(Kind.DATA, 1, 0, 1, got), WAITS_S)
        assert got == b"hello"
        got[:] = bytes(5)
    assert port.channel(channel.name) is own


def test_where_it_listens(port):
    """Nothing listens before the first connection is announced; then one port does, on one address."""
    assert port._door is None
    hosts = {port.invite(Invitation.fresh())[:2] for _ in range(3)}
    assert len(hosts) == 1
    assert hosts == {port._door.listening.getsockname()}
    assert next(iter(hosts))[0] == "127.0.0.1"


def test_several(port, join):
    """Each of several connections is the one that it was announced as."""
    channels = [join() for _ in range(5)]
    for number, channel in enumerate(channels):
        run_one(channel, channel.send(Kind.READY, number))
    for number, channel in reversed(list(enumerate(channels))):
        own = port.channel(channel.name)
        run_one(own, own.receive(Kind.READY, number), WAITS_S)


def test_in_pieces(port, knock):
    """A greeting may come byte by byte."""
    invitation = invited(port)
    sock = knock()
    for byte in greeting(invitation):
        sock.sendall(bytes([byte]))
    assert port.channel(invitation.channel).name == invitation.channel


def test_waits_for_it(port, knock):
    """A request that is there before its connection waits for that."""
    invitation, got = invited(port), []
    waits = threading.Thread(target=lambda: got.append(port.channel(invitation.channel)))
    waits.start()
    knock(greeting(invitation))
    waits.join(WAITS_S)
    assert got[0].name == invitation.channel


def test_does_not_come(port, monkeypatch):
    """Nobody waits for ever for a connection that does not come."""
    invitation = invited(port)
    assert 10 < COMES_S < 120
    monkeypatch.setattr(port_module, "COMES_S", 0.0)
    with pytest.raises(PeerLost, match="did not come") as error:
        port.channel(invitation.channel)
    two_lines(error)


def test_unknown(port):
    """A connection that was never announced is gone."""
    with pytest.raises(PeerLost, match="gone") as error:
        port.channel("00" * 16)
    two_lines(error)


def test_dropped(port, join):
    """A connection that the rank has dropped is closed, and gone."""
    channel = join()
    own = port.channel(channel.name)
    port.drop(own)
    with pytest.raises(PeerLost, match="gone"):
        port.channel(channel.name)
    with pytest.raises(PeerLost):
        run_one(channel, channel.receive(Kind.READY, 1), WAITS_S)
    port.drop(own)
    other = port.channel(join().name)
    other.close()
    with pytest.raises(PeerLost, match="gone"):
        port.channel(other.name)


def test_cut(port, join):
    """One that the notebook has closed is gone: at the latest when something is asked of it."""
    channel = join()
    own = port.channel(channel.name)
    channel.close()
    with pytest.raises(PeerLost):
        run_one(own, own.receive(Kind.READY, 1), WAITS_S)
    other = invited(port)
    with pytest.raises(PeerLost, match="gone"):
        port.channel(channel.name)
    assert own.closed
    assert list(port._invited) == [other.channel]


def test_no_memory_kept(port, join):
    """Connections that have gone leave nothing behind at the rank, however many there were."""
    for _ in range(10):
        channel = join()
        port.channel(channel.name)
        channel.close()
    invited(port)
    assert port._channels == {}
    assert (port._shared, port._greeted, port._strangers) == ({}, set(), [])


def test_rests(port, join):
    """A connection that waits for its first use holds no frame's memory."""
    own = port.channel(join().name)
    assert len(own._in) == len(own._out) == 0


def test_announced_too_often(port, knock, join):
    """Of more announcements than anybody needs the oldest are forgotten, with what came with them."""
    first, second = invited(port), invited(port)
    for _ in range(INVITATIONS - 1):
        last = invited(port)
    assert is_closed(knock(greeting(first)))
    knock(greeting(second))
    knock(greeting(last))
    assert port.channel(second.channel)
    assert port.channel(last.channel)
    with pytest.raises(PeerLost):
        port.channel(first.channel)


def test_no_port(port, monkeypatch):
    """A rank that cannot listen, or could take no connection, says why; the next announcement tries again."""

    def refuse(*_args, **_kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    for module, lacking in ((port_module.socket, "create_server"), (port_module.os, "dup")):
        with monkeypatch.context() as patch:
            patch.setattr(module, lacking, refuse)
            with pytest.raises(OSError, match="Too many"):
                port.invite(Invitation.fresh())
        assert port._invited == {}
    assert port.invite(Invitation.fresh())[0] == "127.0.0.1"


# ---- memory that is shared


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """Memory that the notebook has made."""
    monkeypatch.setattr(shared, "FOLDER", tmp_path)
    memory = Shared.create()
    yield memory
    memory.close()


def test_shared(port, join, memory):
    """The rank maps the memory that a connection was announced with, and says that it does; it is that connection's."""
    invitation = Invitation.fresh(memory.name)
    assert port.invite(invitation)[2] is True
    host, number = port._door.listening.getsockname()
    memory.unlink()
    channel = connect(host, number, invitation, SESSION)
    own = port.channel(invitation.channel)
    memory.slot(0, 5)[:] = b"hello"
    assert bytes(own.shared.slot(0, 5)) == b"hello"
    assert port._shared == {}
    channel.close()


@pytest.mark.parametrize("name", ["", "hpcmagic-0-none", "../../etc/passwd"])
def test_not_shared(port, name):
    """Where the memory is not found the rank says so."""
    assert port.invite(Invitation.fresh(name))[2] is False


def test_shared_memory_let_go(port, memory, knock):
    """Memory of a connection that never comes, or that cannot show its key, is let go."""
    never, wrong = Invitation.fresh(memory.name), Invitation.fresh(memory.name)
    assert port.invite(wrong)[2]
    impostor = Invitation(wrong.channel, Invitation.fresh().to_rank, wrong.from_rank)
    assert is_closed(knock(greeting(impostor)))
    port.invite(never)
    (held,) = port._shared.values()
    for _ in range(INVITATIONS):
        invited(port)
    assert port._shared == {}
    assert len(held.view) == 0


# ---- strangers


WRONG = {
    "nothing at all, and goes": b"",
    "HTTP": b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n",
    "ZeroMQ": b"\xff\0\0\0\0\0\0\0\1\x7f".ljust(64, b"\0"),
    "zeros": bytes(HELLO_NBYTES),
    "one wrong byte": b"hpcmx",
    "version 0": MAGIC[:-1] + b"\0",
    "version 2": MAGIC[:-1] + b"\2",
    "an unknown name": MAGIC + bytes(16),
    "an unknown name, and more": MAGIC + bytes(56),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_strangers(port, knock, join, wrong):
    """Who does not begin with the protocol, its version and a name that was announced is cut off without a word."""
    invitation = invited(port)
    sock = knock(WRONG[wrong])
    if not WRONG[wrong]:
        sock.shutdown(socket.SHUT_WR)
    assert is_closed(sock)
    knock(greeting(invitation))
    assert port.channel(invitation.channel)
    assert port._strangers == []


def test_floods(port, knock, monkeypatch):
    """Who sends a lot is not heard: no more is read of a connection than what its first bytes must be."""
    asked = []

    class Counted:
        def __init__(self, sock):
            self.sock = sock

        def recv(self, nbytes, *flags):
            asked.append(nbytes)
            return self.sock.recv(nbytes, *flags)

        def __getattr__(self, name):
            return getattr(self.sock, name)

    stranger = port_module._Stranger
    monkeypatch.setattr(port_module, "_Stranger", lambda sock: stranger(Counted(sock)))
    invited(port)
    sock = knock()
    sock.sendall(bytes(100_000))
    assert is_closed(sock)
    assert max(asked) <= len(MAGIC) + bulk.CHANNEL_NBYTES


def test_wrong_key(port, knock):
    """Who knows the name, which goes over the wire in clear, and not the key, gets no answer; the announcement is spent."""
    invitation = invited(port)
    impostor = Invitation(invitation.channel, Invitation.fresh().to_rank, Invitation.fresh().from_rank)
    assert is_closed(knock(greeting(impostor)))
    with pytest.raises(PeerLost, match="gone"):
        port.channel(invitation.channel)
    assert is_closed(knock(greeting(invitation)))


def test_wrong_session(port, knock):
    """Nor does who knows the keys, and takes the rank for that of another session."""
    invitation = invited(port)
    assert is_closed(knock(greeting(invitation, "another keeper's key")))


@pytest.mark.parametrize("position", range(len(MAGIC)))
def test_other_protocol(port, knock, position):
    """A notebook of another version, or of another protocol, is refused though all else is right; it can come again."""
    invitation = invited(port)
    other = bytearray(greeting(invitation))
    other[position] ^= 3
    assert is_closed(knock(other))
    assert list(port._invited) == [invitation.channel]
    knock(greeting(invitation))
    assert port.channel(invitation.channel)


@pytest.mark.parametrize("position", range(len(MAGIC) + bulk.CHANNEL_NBYTES, HELLO_NBYTES, 5))
def test_greeting_changed(port, knock, position):
    """A greeting of which one bit is another, anywhere, is none."""
    invitation = invited(port)
    changed = bytearray(greeting(invitation))
    changed[position] ^= 1
    assert is_closed(knock(changed))


def test_works_once(port, knock):
    """A greeting that was recorded and comes again is refused, while the first one's connection lives and after it."""
    invitation = invited(port)
    recorded = greeting(invitation)
    knock(recorded)
    own = port.channel(invitation.channel)
    assert is_closed(knock(recorded))
    assert port.channel(invitation.channel) is own
    port.drop(own)
    assert is_closed(knock(recorded))


def test_rank_replayed(port, knock):
    """What a rank has answered to one connection is no answer to another."""
    invitation = invited(port)
    answer = knock(greeting(invitation)).recv(HELLO_NBYTES, socket.MSG_WAITALL)
    ours, theirs = socket.socketpair()
    other = Channel(ours, Invitation.fresh(), SESSION, at_rank=False)
    theirs.sendall(answer)
    with pytest.raises(Tampered):
        run_one(other, other.receive(Kind.HELLO, 0), WAITS_S)
    other.close()
    theirs.close()


def test_silent(port, knock, join, clock):
    """Who says nothing, or not all, for 5 s is cut off; not sooner, and no one else with him."""
    assert PROVE_S == 5.0
    channel = join()
    name_only = invited(port)
    strangers = [knock(), knock(MAGIC), knock(MAGIC[:3]), knock(greeting(name_only)[:40])]
    clock.ahead_s = PROVE_S - 1
    join()
    assert all(map(is_open, strangers))
    clock.ahead_s = 10 * PROVE_S
    assert all(map(is_closed, strangers))
    assert not port.channel(channel.name).is_cut()
    with pytest.raises(PeerLost, match="gone"):
        port.channel(name_only.channel)
    clock.ahead_s = 0.0
    assert port.channel(join().name)


def test_trickles(port, knock, clock):
    """Who keeps on sending a byte now and then has no longer for it."""
    invitation = invited(port)
    sock = knock(greeting(invitation)[:10])
    clock.ahead_s = PROVE_S - 1
    sock.sendall(greeting(invitation)[10:11])
    clock.ahead_s = 10 * PROVE_S
    with contextlib.suppress(ConnectionError):
        sock.sendall(greeting(invitation)[11:20])
    assert is_closed(sock)


def test_crowd(port, knock, join):
    """Of more strangers than the port will hold the oldest give way; who can show a key gets in past all of them."""
    invited(port)
    crowd = [knock(MAGIC[: number % 5]) for number in range(STRANGERS + 8)]
    assert all(map(is_closed, crowd[:8]))
    assert all(map(is_open, crowd[8:]))
    channel = join()
    assert port.channel(channel.name)
    assert is_closed(crowd[8])
    assert all(map(is_open, crowd[9:]))
    for number in range(3 * STRANGERS):
        knock(MAGIC[: number % 5])
    assert port.channel(join().name)
    assert len(port._strangers) <= STRANGERS


def test_gives_way_while_it_speaks(port, knock, join, watched):
    """One that gives way in the moment in which it says something is simply gone; the port goes on."""
    invitation = invited(port)
    first, *crowd = [knock(MAGIC[:1]) for _ in range(STRANGERS + 1)]
    assert is_closed(first)  # so all others have been let in
    watched.hold()
    for sock in crowd[:3]:
        sock.sendall(MAGIC[1:])
    newest = [knock() for _ in range(2)]
    watched.go_on()
    assert is_closed(crowd[0])
    knock(greeting(invitation))
    assert port.channel(invitation.channel)
    assert all(map(is_open, [*crowd[4:], *newest]))


def test_no_descriptor(port, knock, monkeypatch, clock):
    """A port that may open no more for a moment does not give up."""
    invited(port)
    slept = []
    monkeypatch.setattr(port_module.time, "sleep", slept.append)
    listening = port._door.listening
    refused = []

    class Full:
        def accept(self):
            if not refused:
                refused.append(1)
                raise OSError(errno.EMFILE, "Too many open files")
            return listening.accept()

        def __getattr__(self, name):
            return getattr(listening, name)

    port._door.listening = Full()
    invitation = invited(port)
    knock(greeting(invitation))
    assert port.channel(invitation.channel)
    assert (refused, len(slept)) == ([1], 1)
    port._door.listening = listening
