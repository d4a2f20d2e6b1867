"""Strangers at the bulk ports, on the wire and at the shared memory: what docs/security.md promises, tried.

A stranger is on this machine, reaches every port and sees every packet; a man in the middle even changes them.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import stat
import struct
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from faults import engines_below, eventually, everyone, keeper_of
from two_lines import two_lines

import hpcmagic
from hpcmagic.errors import PeerLost, Tampered
from hpcmagic.notebook import channels, data
from hpcmagic.wire import bulk, shared
from hpcmagic.wire.bulk import HEADER, HELLO_NBYTES, MAGIC, Channel, Invitation, Kind
from hpcmagic.wire.crypto import TAG_NBYTES, make_frame_key

NBYTES = 4 << 20
PREFACE_NBYTES = len(MAGIC) + bulk.CHANNEL_NBYTES
ETH_P_ALL, SO_ATTACH_FILTER, SO_RCVBUFFORCE = 3, 26, 33


@pytest.fixture
def ranks(session, monkeypatch):
    """Four ranks that are reached over the wire; their channels are closed at the end."""
    monkeypatch.setattr(shared, "ALLOWED", False)
    session.data.channels.close()
    session.run("x = 'old'")
    yield session
    session.data.channels.close()


def noise(nbytes=NBYTES):
    """Bytes by chance."""
    return np.random.default_rng().integers(0, 255, nbytes, "u1")


def unharmed(session):
    """Nothing was bound on any rank, and the next transfers work."""
    assert session.run("x", timeout=10).same() == "old"
    x = noise()
    session.scatter(y=x)
    assert (session.gather("y") == x).all()


def ports(session):
    """Where each rank waits for bulk connections: host and port by rank."""
    session.scatter(y=noise())
    return {rank: channel.sock.getpeername() for rank, (_, channel) in session.data.channels._open.items()}


# ---- at the port


def test_where_ranks_listen(own_session, monkeypatch):
    """A rank opens its bulk port with the first transfer that needs it, one, on loopback."""
    monkeypatch.setattr(shared, "ALLOWED", False)
    session = own_session(nodes=2)
    session.push(small=1)
    engines = engines_below(keeper_of(session))

    def listening():
        return [c.laddr for p in engines for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]

    assert listening() == []
    addresses = ports(session)
    session.push(y=noise())
    assert set(listening()) == set(addresses.values())
    assert {host for host, _ in addresses.values()} == {"127.0.0.1"}
    assert len(addresses) == 2


def said(address, *pieces, wait_s=3.0):
    """Connect, say something, and give what is answered until the peer closes, None where it does not."""
    heard = b""
    with socket.create_connection(address, timeout=wait_s) as one:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                one.sendall(piece)
        try:
            while got := one.recv(1 << 16):
                heard += got
        except ConnectionResetError:
            pass
        except TimeoutError:
            return heard or None
    return heard


def test_strangers(ranks):
    """Whoever does not show a key is answered with nothing, and cut off as soon as that is clear."""
    addresses = ports(ranks)
    name = bytes.fromhex(ranks.data.channels._open[1][1].name)
    other_version = MAGIC[:-1] + bytes([MAGIC[-1] + 1])
    for saying in (
        b"GET / HTTP/1.1\r\n\r\n",
        secrets.token_bytes(1 << 20),
        MAGIC + secrets.token_bytes(1 << 20),
        MAGIC + name + secrets.token_bytes(1 << 20),  # one that is open
        MAGIC + bytes(1 << 20),
        other_version + name + bytes(HELLO_NBYTES),
    ):
        assert said(addresses[1], saying) == b""
    assert said(addresses[1], MAGIC, wait_s=0.3) is None, "who says less is waited for, a little"
    unharmed(ranks)


def test_keys_of_his_own(ranks, monkeypatch):
    """Who comes in the notebook's place, under the right name, gets nowhere without its keys; the notebook notices."""
    ports(ranks)
    ranks.data.channels.close()
    real, heard = channels.connect, []

    def after_the_stranger(host, port, invitation, session):
        name = bytes.fromhex(invitation.channel)
        heard.append(said((host, port), MAGIC + name + secrets.token_bytes(HELLO_NBYTES)))
        return real(host, port, invitation, session)

    monkeypatch.setattr(channels, "connect", after_the_stranger)
    with pytest.raises(PeerLost, match=r"Rank \d: ") as error:
        ranks.scatter(x=noise())
    two_lines(error)
    assert heard == [b""]
    monkeypatch.setattr(channels, "connect", real)
    unharmed(ranks)


def test_crowd(ranks):
    """A crowd that connects and says nothing is kept small, keeps nobody out, and is cut off within seconds."""
    addresses = ports(ranks)
    engine = psutil.Process(ranks.run("import os; os.getpid()")[0])
    ranks.run("from hpcmagic.engine import port; patience_s, port.PROVE_S = port.PROVE_S, 1.0", ranks=[0])
    before = engine.memory_info().rss
    with contextlib.ExitStack() as crowd:
        for number in range(300):
            one = crowd.enter_context(socket.create_connection(addresses[0], timeout=3))
            one.sendall(MAGIC[: number % 8])
        began = time.monotonic()
        unharmed(ranks)  # over the channels that there are
        ranks.data.channels.close()
        unharmed(ranks)  # over new ones
        assert time.monotonic() - began < 4
        inside = [c for c in engine.net_connections("tcp") if c.laddr[1] == addresses[0][1] and c.raddr]
        assert len(inside) < 40
        assert engine.memory_info().rss - before < 8 << 20
        one.settimeout(3)
        assert one.recv(1) == b""
    assert ranks.run("port.PROVE_S = patience_s; patience_s", ranks=[0])[0] == 5.0
    unharmed(ranks)


@pytest.fixture
def recorded(monkeypatch):
    """What this notebook sends over each connection, and what comes, by its name."""
    sent, came = {}, {}
    real_send, real_fill = Channel.send_sealed, Channel._fill

    def send(self, left):
        sent.setdefault(self.name, bytearray()).extend(left)
        yield from real_send(self, left)

    def fill(self, left):
        yield from real_fill(self, left)
        came.setdefault(self.name, bytearray()).extend(left)

    monkeypatch.setattr(Channel, "send_sealed", send)
    monkeypatch.setattr(Channel, "_fill", fill)
    return sent, came


@pytest.mark.parametrize("verb", ["scatter", "push"])
def test_recorded_stream(ranks, recorded, verb):
    """A transfer that was recorded and is said again, as a whole or in part, or back to who said it, does nothing."""
    x = noise()
    ranks.scatter(x=x) if verb == "scatter" else ranks.push(x=x)
    addresses = ports(ranks)
    sent, came = recorded
    streams = {rank: bytes(sent[channel.name]) for rank, (_, channel) in ranks.data.channels._open.items()}
    backs = {rank: bytes(came[channel.name]) for rank, (_, channel) in ranks.data.channels._open.items()}
    assert sum(map(len, streams.values())) > NBYTES
    assert all(
        stream.startswith(MAGIC + bytes.fromhex(ranks.data.channels._open[r][1].name))
        for r, stream in streams.items()
    )
    ranks.run("x = 'old'")
    for still_open in (True, False):
        for rank, stream in streams.items():
            for other in addresses.values():
                assert said(other, stream) == b"", rank
            for part in (stream[HELLO_NBYTES:], backs[rank], stream[:PREFACE_NBYTES] + backs[rank]):
                assert said(addresses[rank], part) == b"", rank
        if still_open:
            ranks.data.channels.close()
    fresh = {rank: Invitation.fresh() for rank in streams}  # connections that are expected
    answers = ranks.control.invite(fresh)
    eventually(lambda: len(answers) == len(fresh))
    for rank, stream in streams.items():
        renamed = MAGIC + bytes.fromhex(fresh[rank].channel) + stream[PREFACE_NBYTES:]
        assert said(addresses[rank], renamed) == b""
    unharmed(ranks)


# ---- in the middle


class Middle:
    """A man in the middle of one connection; ``change(frame, at_rank)`` gives what he lets pass in its place.

    `at_rank`: whether a rank will get it. To give None is to cut the connection.
    """

    def __init__(self, address, change):
        self.change = change
        self.seen = bytearray()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = self.listening.getsockname()
        self.sockets = [socket.create_connection(address)]
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self):
        client, _ = self.listening.accept()
        rank = self.sockets[0]
        self.sockets.append(client)
        self.threads += [
            threading.Thread(target=self.forward, args=way) for way in ((client, rank, True), (rank, client, False))
        ]
        for thread in self.threads[1:]:
            thread.start()

    def forward(self, source, target, at_rank):
        """Pass frame after frame on, until somebody closes."""
        with contextlib.suppress(OSError):
            if at_rank:
                target.sendall(self.read(source, PREFACE_NBYTES))
            while head := self.read(source, HEADER.size):
                frame = head + self.read(source, HEADER.unpack(head)[3] + TAG_NBYTES)
                passed = self.change(frame, at_rank)
                if passed is None:
                    break
                target.sendall(passed)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def read(self, source, nbytes):
        data = b""
        while len(data) < nbytes and (got := source.recv(nbytes - len(data))):
            data += got
        self.seen += data
        return data

    def close(self):
        for one in (*self.sockets, self.listening):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(10)
        for one in (*self.sockets, self.listening):
            one.close()


@pytest.fixture
def middle(monkeypatch):
    """Put a man in the middle of each connection that is made, ``middle(change)``; gives them all."""
    men = []
    real = channels.connect

    def begin(change):
        def connect(host, port, invitation, session):
            men.append(Middle((host, port), change))
            return real(*men[-1].address, invitation, session)

        monkeypatch.setattr(channels, "connect", connect)
        return men

    yield begin
    for man in men:
        man.close()


class Change:
    """Does something to the second frame of data of the first connection that has one, in one direction."""

    def __init__(self, how, *, at_rank):
        self.how = how
        self.at_rank = at_rank
        self.lock = threading.Lock()
        self.first = {}  # frame of each connection and direction: each has its thread
        self.done = False

    def __call__(self, frame, at_rank):
        if frame[1] != Kind.DATA or at_rank != self.at_rank:
            return frame
        with self.lock:
            first = self.first.setdefault(threading.get_ident(), frame)
            if self.done or frame is first:
                return frame
            self.done = True
        return self.how(frame, first)


def flipped(frame, at):
    """A frame with one bit changed."""
    changed = bytearray(frame)
    changed[at] ^= 1
    return bytes(changed)


def renumbered(frame, by):
    """A frame whose header gives another number."""
    version, kind, zero, length, transfer, number = HEADER.unpack(frame[: HEADER.size])
    return HEADER.pack(version, kind, zero, length, transfer, number + by) + frame[HEADER.size :]


CHANGES = {
    "a bit of the data": lambda frame, _: flipped(frame, HEADER.size + 1000),
    "a bit of the tag": lambda frame, _: flipped(frame, -1),
    "another version": lambda frame, _: flipped(frame, 0),
    "another kind": lambda frame, _: flipped(frame, 1),
    "another length": lambda frame, _: flipped(frame, 7),
    "a huge length": lambda frame, _: frame[:4] + struct.pack("!I", 1 << 31) + frame[8:],
    "another transfer": lambda frame, _: flipped(frame, 15),
    "twice": lambda frame, _: frame + frame,
    "left out": lambda _frame, _: b"",
    "an earlier one again": lambda frame, first: first + frame,
    "an earlier one in its place": lambda frame, first: frame[: HEADER.size] + first[HEADER.size :],
    "in another order": lambda frame, _: renumbered(frame, 1),
    "cut off": lambda _frame, _: None,
}


@pytest.mark.parametrize("how", CHANGES)
def test_changed_on_the_way(ranks, middle, monkeypatch, how):
    """A frame that was changed, repeated, left out, renumbered or cut off is found out, and nothing of it is used."""
    x = noise()
    ranks.scatter(kept=x)
    moves = {
        "scatter": lambda: ranks.scatter(x=x),
        "push": lambda: ranks.push(x=x),
        "gather": lambda: ranks.gather("kept"),
    }
    for verb, move in moves.items():
        ranks.data.channels.close()
        middle(Change(CHANGES[how], at_rank=verb != "gather"))
        with pytest.raises((hpcmagic.RankError, hpcmagic.ChannelError)) as error:
            move()
        if how == "cut off":
            assert isinstance(error.value, PeerLost)
            assert not isinstance(error.value, Tampered)
        elif verb == "gather":
            assert isinstance(error.value, Tampered)
            assert error.value.message.startswith("Rank ")
        else:
            assert "Tampered on " in str(error.value)
        assert ranks.run("x", timeout=10).same() == "old"
    monkeypatch.undo()
    monkeypatch.setattr(shared, "ALLOWED", False)
    assert (ranks.gather("kept") == x).all()
    ranks.data.channels.close()
    unharmed(ranks)


def test_in_the_middle_without_a_change(ranks, middle):
    """The control group: who passes everything on changes nothing, and has seen nothing but noise."""
    men = middle(lambda frame, _: frame)
    x = np.frombuffer(PATTERN * (NBYTES // len(PATTERN)), "u1")
    ranks.scatter(x=x)
    assert (ranks.gather("x") == x).all()
    ranks.push(x=x)
    assert (ranks.pull("x")[3] == x).all()
    seen = [bytes(man.seen) for man in men]
    assert sum(map(len, seen)) > 5 * NBYTES
    assert not any(piece in stream for stream in seen for piece in pieces_of(PATTERN))
    ranks.run("x = 'old'")


# ---- on the wire


PATTERN = secrets.token_bytes(64)


def pieces_of(pattern):
    """What of a pattern suffices to know it again, wherever a packet begins."""
    return [pattern[at : at + 16] for at in range(0, len(pattern), 16)]


def only(ports):
    """A filter for the kernel, in the code of bpf(4): TCP over IPv4 from or to one of some ports."""
    ports, load_half, load_byte, load_head, load_behind, equal, give = (
        sorted(ports),
        0x28,
        0x30,
        0xB1,
        0x48,
        0x15,
        0x06,
    )
    nothing, all_of_it = 7 + 2 * len(ports), 8 + 2 * len(ports)
    steps = [
        (load_half, 12),
        (equal, 0x0800, None, nothing),
        (load_byte, 23),
        (equal, socket.IPPROTO_TCP, None, nothing),
    ]
    steps += [(load_head, 14), (load_behind, 14), *((equal, port, all_of_it, None) for port in ports)]
    steps += [(load_behind, 16), *((equal, port, all_of_it, None) for port in ports), (give, 0), (give, 1 << 18)]
    code = b""
    for number, (what, value, *jumps) in enumerate(steps):
        code += struct.pack("=HBBI", what, *(to - number - 1 if to else 0 for to in jumps or (0, 0)), value)
    return ctypes.create_string_buffer(code), len(steps)


class Sniffer:
    """Sees every packet on the loopback interface that is from or to one of some ports."""

    def __init__(self, ports):
        self.ports = ports
        self.seen = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.listen)

    def __enter__(self):
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 128 << 20)
        code, steps = only(self.ports)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", steps, ctypes.addressof(code)))
        self.sock.bind(("lo", ETH_P_ALL))
        self.sock.settimeout(0.2)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.sock.close()

    def listen(self):
        while True:
            try:
                packet = self.sock.recv(1 << 18)
            except TimeoutError:
                if self.over.is_set():
                    return
            else:
                head = 14 + 4 * (packet[14] & 15)
                self.seen.append(packet[head + 4 * (packet[head + 12] >> 4) :])

    @property
    def nbytes(self):
        """What it has seen, each packet once going and once coming."""
        return sum(map(len, self.seen)) / 2

    def knows(self, pattern):
        """Whether any packet shows a piece of a pattern."""
        return any(piece in packet for packet in self.seen for piece in pieces_of(pattern))


@pytest.fixture
def sniffer():
    """Begin to listen, ``with sniffer(ports)``."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        pytest.skip("only root may see the packets of others; the man in the middle sees them anyway")
    return Sniffer


def test_sniffer_sees(sniffer):
    """The control group: what passes in clear text is found in the capture."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with sniffer({address[1]}) as seen, socket.create_connection(address) as one:
            other, _ = server.accept()
            with other:
                one.sendall(bytes(1000) + PATTERN + bytes(1000))
                other.recv(4096)
    assert seen.knows(PATTERN)


def test_nothing_to_read_on_the_wire(ranks, own_session, sniffer):
    """Of what is scattered, pushed, gathered and pulled, small or large, no packet shows a trace; by a chain neither."""
    chain = own_session(nodes=3, mpi="none")
    x = np.frombuffer(PATTERN * (NBYTES // len(PATTERN)), "u1")
    for held in (ranks, chain):
        bulk_ports = {port for _, port in ports(held).values()}
        keeper_ports = {
            c.laddr.port for c in keeper_of(held).net_connections("tcp") if c.status == psutil.CONN_LISTEN
        }
        with sniffer(bulk_ports) as large:
            held.scatter(x=x)
            held.push(x=x)
            held.pull("x")
        copies = (
            1 + (held.size - 1 if held is chain else 0) + 1 + held.size
        )  # a chain's push passes from rank to rank
        assert large.nbytes > 0.98 * copies * NBYTES, "it has missed some"
        assert not large.knows(PATTERN)
        with sniffer(keeper_ports) as small:
            held.push(s=PATTERN * 100)
            held.scatter(t=[PATTERN] * 400)
            assert held.pull("s")[1] == PATTERN * 100
            assert held.gather("t") == [PATTERN] * 400
        assert small.nbytes > 2 * 100 * len(PATTERN)
        assert not small.knows(PATTERN)
    ranks.run("x = 'old'")
    chain.data.channels.close()


# ---- at the shared memory, and in the files


@pytest.fixture
def as_nobody():
    """Run a command as another user; give how it went."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user")

    def run(*command):
        leave = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
        return subprocess.run([*leave, *command], capture_output=True, timeout=20)

    assert run("true").returncode == 0
    assert run("cat", "/etc/hostname").returncode == 0
    return run


def test_shared_memory_of_others(session, monkeypatch, as_nobody):
    """Another user can open neither the shared memory, even while it has a name, nor the session's keys."""
    session.data.channels.close()
    unlink = shared.Shared.unlink
    named = []
    monkeypatch.setattr(shared.Shared, "unlink", lambda one: named.append(one))  # noqa: PLW0108  # a method
    try:
        x = np.frombuffer(PATTERN * (NBYTES // len(PATTERN)), "u1")
        session.scatter(y=x)
        paths = [shared.FOLDER / one.name for one in named]
        assert len(set(paths)) == 4
        for path in paths:
            assert PATTERN in path.read_bytes(), "it is what bytes pass through"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            for command in (("cat",), ("dd", "of=/dev/null"), ("cp", "-t", "/tmp")):
                done = as_nobody(*command, f"if={path}" if command[0] == "dd" else str(path))
                assert done.returncode != 0
                assert b"Permission denied" in done.stderr
                assert PATTERN not in done.stdout
    finally:
        for one in named:
            with contextlib.suppress(FileNotFoundError):
                unlink(one)
    keys = list(session.directory.path.glob("*.key"))
    assert len(keys) == 4
    for path in (*keys, session.directory.path):
        done = as_nobody("ls" if path.is_dir() else "cat", str(path))
        assert done.returncode != 0
        assert b"Permission denied" in done.stderr
    session.data.channels.close()


def test_shared_memory_has_no_name(session):
    """As soon as a rank has found the memory it has no name any more; the bytes are in no file."""
    session.data.channels.close()
    before = set(shared.FOLDER.iterdir())
    session.scatter(y=noise())
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(f"{shared.PREFIX}{os.getuid()}-") == 4
    assert all("(deleted)" in line for line in maps.splitlines() if f"{shared.PREFIX}{os.getuid()}-" in line)
    here = {channel.shared.name for _, channel in session.data.channels._open.values()}
    assert not here & {path.name for path in set(shared.FOLDER.iterdir()) - before}
    session.data.channels.close()


def test_memory_that_is_not_ours(as_nobody):
    """Memory that another user has put there under such a name is not taken for the notebook's."""
    name = f"{shared.PREFIX}{os.getuid()}-{secrets.token_hex(16)}"
    path = shared.FOLDER / name
    try:
        done = as_nobody("sh", "-c", f"umask 0; truncate -s {shared.SHARED_NBYTES} {path}")
        assert done.returncode == 0, done.stderr
        assert shared.Shared.open(name) is None
        path.chmod(0o600)
        assert shared.Shared.open(name) is None
        os.chown(path, os.getuid(), os.getgid())
        found = shared.Shared.open(name)
        assert found is not None, "all else about it is right"
        found.close()
    finally:
        path.unlink()


@pytest.fixture
def keys(monkeypatch):
    """Every key that is made for a transfer, hexadecimal."""
    made = []

    def make():
        made.append(make_frame_key())
        return made[-1]

    monkeypatch.setattr(bulk, "make_frame_key", make)
    monkeypatch.setattr(data, "make_frame_key", make)
    return made


def test_keys_are_nowhere(own_session, keys, monkeypatch, capfd, caplog):
    """No key of a transfer is in an argv, an environment, a file, a log, an error, or the words for an object."""
    caplog.set_level(0)
    monkeypatch.setattr(shared, "ALLOWED", False)
    session = own_session(nodes=3)
    x = noise()
    taken = []
    send = session.send_to
    monkeypatch.setattr(session, "send_to", lambda messages: taken.extend(messages.values()) or send(messages))
    session.scatter(x=x)
    session.push(x=x)
    session.gather("x")
    session.run("import threading\nlock = [threading.Lock(), bytes(200_000)]")
    with pytest.raises(hpcmagic.RankError) as error:
        session.pull("lock")
    names = {channel.name for _, channel in session.data.channels._open.values()}
    assert len(keys) == 3 * 3 + 1  # each connection has a name and two keys, the push to all has one
    hidden = [key for key in keys if key[:16].hex() not in names]
    assert len(hidden) == 7
    things = [
        session, session.data, session.data.channels, session.data.channels._open, taken, error.value, session.why(),
        [vars(channel) for _, channel in session.data.channels._open.values()], session.log(), error.value.full,
        *(session.log(rank) for rank in range(3)), Invitation.fresh(),
    ]  # fmt: skip
    words = [f"{thing!r}\n{thing!s}" for thing in things] + [caplog.text]
    for process in (*everyone(session), psutil.Process()):
        words += [" ".join(process.cmdline()), *process.environ().values()]
    inside = session.run("import os, sys; repr([*os.environ.items(), *sys.argv, *map(repr, globals().items())])")
    words += list(inside)
    printed = capfd.readouterr()
    words += [printed.out, printed.err]
    for text in words:
        assert [key for key in keys if known(key, text.encode(errors="replace")) and key in hidden] == []
    files = [path for path in session.directory.path.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        assert [key for key in hidden if known(key, path.read_bytes())] == [], path
    session.data.channels.close()


def known(key, text):
    """Whether half of a key is in a text, in any of the ways to write it."""
    half = key[:16]
    return any(
        form in text for form in (half, half.hex().encode(), half.hex().upper().encode(), repr(half)[2:-1].encode())
    )


def test_every_connection_has_its_own_keys(ranks, keys):
    """No key serves twice: each connection, each direction and each push to all has its own, and a new one after it."""
    for _ in range(3):
        ranks.scatter(y=noise())
        ranks.push(y=noise())
        ranks.data.channels.close()
    assert len(keys) == len(set(keys)) == 3 * (4 * 3 + 1)
