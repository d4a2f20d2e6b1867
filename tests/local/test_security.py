"""Strangers at a session's ports, and secrets where they do not belong: what docs/security.md promises, tried.

A stranger is on this machine, reaches every port, and knows the public keys. He has a key pair of his own, and
here even the key that signs messages: it protects nothing that CURVE should protect alone.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import stat
import struct
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import zmq
from jupyter_client.session import Session as Signer
from nbclient import NotebookClient
from zmq.utils.monitor import recv_monitor_message

import hpcmagic
from hpcmagic.errors import ChannelError, NotEncrypted, ProfileError
from hpcmagic.notebook.pickling import pickle_for_ranks
from hpcmagic.rendezvous import Connection, Request, SessionDirectory
from hpcmagic.wire import crypto
from hpcmagic.wire.control import Control
from hpcmagic.wire.crypto import (
    FRAME_LIMIT_NBYTES,
    KeyPair,
    load_key_pair,
    load_signing_key,
    make_keys,
    require_encrypted,
)
from hpcmagic.wire.messages import INTERRUPT, REQUEST, Push, RunCell, to_frames

MPI_OWN = ("mpiexec", "mpirun", "orterun", "orted", "prte", "prted", "prterun")  # their ports: docs/security.md
TYPES = (zmq.DEALER, zmq.REQ, zmq.ROUTER, zmq.SUB, zmq.XSUB, zmq.PUB, zmq.PUSH, zmq.PULL, zmq.PAIR)
FAILED = (zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
GROWTH_LIMIT_MB = 50
HALF_OPEN = 1000
TOKENS = {
    name: f"token-of-{name.lower()}-d41d8cd98f"
    for name in ("JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")
}
OF_THE_HUB = ("JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN")


@pytest.fixture(autouse=True, scope="module")
def tokens():
    """Tokens in the notebook's environment, as a hub puts them there, before any session starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TOKENS.items():
            patch.setenv(name, value)
        yield TOKENS


@pytest.fixture(scope="module")
def ports(session):
    """Every port that connection.json names, by name."""
    connection = json.loads(session.directory.connection.read_text())
    return {
        f"{side} {channel} {i}": port
        for side in ("engine", "client")
        for channel, value in connection[side].items()
        for i, port in enumerate(value if isinstance(value, list) else [value])
        if isinstance(port, int)
    }


@pytest.fixture
def growth(session):
    """The keeper's resident size above what it was, at its highest: ``growth()`` in MB."""
    keeper = psutil.Process(session.keeper_state().keeper_pid)
    time.sleep(0.1)
    before = peak = keeper.memory_info().rss
    over = threading.Event()

    def watch():
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, keeper.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    yield lambda: (peak - before) / 1e6
    over.set()
    thread.join()
    print(f"the keeper grew by {(peak - before) / 1e6:.1f} MB")


def family(session):
    """Keeper, ranks and what starts them, by their names."""
    keeper = psutil.Process(session.keeper_state().keeper_pid)
    return [keeper, *keeper.children(recursive=True)]


def listening(process):
    """The addresses that a process listens at, or takes datagrams at."""
    return {
        (c.laddr.ip, c.laddr.port)
        for c in process.net_connections("inet")
        if c.status == psutil.CONN_LISTEN or c.type == socket.SOCK_DGRAM
    }


def test_ports(session, ports):
    """Nobody of hpcmagic listens but the keeper, there only at the ports of connection.json, on loopback."""
    keeper, *others = family(session)
    assert listening(keeper) == {("127.0.0.1", port) for port in ports.values()}
    assert len(set(ports.values())) >= 14
    ranks = [p for p in others if "hpcmagic.engine" in p.cmdline() and p.name() not in MPI_OWN]
    assert len(ranks) == session.size
    assert {p.pid: listening(p) for p in (*ranks, psutil.Process())} == {
        p.pid: set() for p in (*ranks, psutil.Process())
    }
    strangers = [p for p in others if p not in ranks and p.name() not in MPI_OWN]
    assert strangers == [], "what are these processes? list them in docs/security.md"


class Caller:
    """Someone who connects sockets of every type to every port, and says what he pleases."""

    def __init__(self, ports, prepare, types=TYPES):
        self.context = zmq.Context()
        self.poller = zmq.Poller()
        self.monitors, self.sockets, self.events, self.heard = {}, {}, {}, []
        for where, port in ports.items():
            for kind in types:
                one = self.context.socket(kind)
                one.linger = 0
                prepare(one)
                if kind == zmq.SUB:
                    one.subscribe(b"")
                name = (where, zmq.SocketType(kind).name)
                monitor = one.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | sum(FAILED))
                one.connect(f"tcp://127.0.0.1:{port}")
                self.sockets[one], self.monitors[monitor], self.events[name] = name, name, set()
                self.poller.register(monitor, zmq.POLLIN)
                self.poller.register(one, zmq.POLLIN)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in (*self.sockets, *self.monitors):
            one.close(0)
        self.context.term()

    def say(self, make):
        """Say all messages that `make` gives on every socket that can speak; each is signed anew: none comes twice."""
        for one in self.sockets:
            for message in make():
                with contextlib.suppress(zmq.ZMQError):
                    lead = [b""] if one.socket_type == zmq.REQ else []
                    one.send_multipart([*lead, *message], zmq.NOBLOCK)

    def listen(self, seconds):
        """Note every event and every message for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for one, _ in self.poller.poll(left * 1000):
                if one in self.monitors:
                    self.events[self.monitors[one]].add(recv_monitor_message(one)["event"])
                else:
                    self.heard.append((self.sockets[one], one.recv_multipart()))

    def succeeded(self):
        """Whose handshakes succeeded."""
        return {name for name, events in self.events.items() if zmq.EVENT_HANDSHAKE_SUCCEEDED in events}

    def refused(self, *ways):
        """Whose handshakes the server refused in so many words: for the key, or for the type of socket before it."""
        return {name for name, events in self.events.items() if events.intersection(ways or FAILED)}


def curve(server, pair):
    """Prepare sockets to speak CURVE with a key pair."""

    def prepare(one):
        one.curve_serverkey, one.curve_publickey, one.curve_secretkey = server, pair.public, pair.secret

    return prepare


def plain(one):
    """Prepare a socket to speak PLAIN."""
    one.plain_username, one.plain_password = b"alice", b"alice"


def tale(signing_key, marker, *, harmless):
    """Everything that a peer of ipyparallel's may say, signed; where it runs code, the code leaves marks."""
    signer = Signer(key=signing_key)
    code = f"import builtins; builtins.marked = {marker.name!r}; open({str(marker)!r}, 'a').close()"
    cell = RunCell(code, "cell 1")
    said = [
        (b"0", "execute_request", {"code": code, "silent": False, "user_expressions": {}}, []),
        (b"0", REQUEST, {}, to_frames(cell)),
        (b"0", REQUEST, {}, to_frames(Push({"marked": pickle_for_ranks("marked", 1)}))),
        (None, "connection_request", {}, []),
        (None, "history_request", {}, []),
        (None, "queue_request", {"targets": "all", "verbose": True}, []),
    ]
    if not harmless:
        said += [
            (b"0", INTERRUPT, {}, []),
            (b"0", "shutdown_request", {"restart": False}, []),
            (b"0", "clear_request", {}, []),
            (None, "registration_request", {"uuid": "evil", "id": 9}, []),
            (None, "unregistration_request", {"id": 0}, []),
            (None, "shutdown_request", {}, []),
            (None, "stop_distributed_request", {}, []),
            (None, "become_dask_request", {}, []),
            (None, "purge_request", {"msg_ids": "all"}, []),
            (None, "result_request", {"msg_ids": ["x"]}, []),
        ]
    messages = []
    for ident, kind, content, buffers in said:
        messages.append([*signer.serialize(signer.msg(kind, content), ident), *buffers])
    return messages


def marked(session):
    """On which ranks the tale's code has run."""
    seen = "import builtins; (getattr(builtins, 'marked', None), 'marked' in globals())"
    return [rank for rank, found in enumerate(session.run(seen, timeout=10)) if found != (None, False)]


def strangers(session, directory):
    """Ways to connect that must fail, by name."""
    server = session.request.server_public.encode()
    of_his_own = KeyPair(*zmq.curve_keypair())
    borrowed = KeyPair(session.request.client_public.encode(), of_his_own.secret)
    servers = KeyPair(server, of_his_own.secret)
    return {
        "a key pair of his own": curve(server, of_his_own),
        "the notebooks' public key": curve(server, borrowed),
        "the keeper's public key": curve(server, servers),
        "another server's key": curve(zmq.curve_keypair()[0], load_key_pair(directory, "client")),
        "NULL": lambda one: None,
        "PLAIN": plain,
    }


STRANGERS = (
    "a key pair of his own", "the notebooks' public key", "the keeper's public key", "another server's key", "NULL", "PLAIN",
)  # fmt: skip


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers(session, ports, tmp_path, capsys, who):
    """On every port, with every socket type: no handshake, nothing heard, nothing executed."""
    prepare = strangers(session, session.directory)[who]
    marker = tmp_path / "marker"
    with Caller(ports, prepare) as stranger:
        for key in (load_signing_key(session.directory), b"a wrong key"):
            stranger.say(partial(tale, key, marker, harmless=False))
        stranger.listen(0.6)
        session.run("kept = rank; print('nobody else reads this')")
        session.client[:].execute("print('nor this')", block=True)
        stranger.listen(0.4)
        assert stranger.succeeded() == set()
        assert stranger.heard == []
        if who == "a key pair of his own":
            assert stranger.refused() == set(stranger.events), "some port did not say no"
            assert {where for where, _ in stranger.refused(zmq.EVENT_HANDSHAKE_FAILED_AUTH)} == set(ports)
    assert marked(session) == []
    assert not marker.exists()
    assert list(session.run("kept")) == [0, 1, 2, 3]
    assert session.client.ids == [0, 1, 2, 3]
    assert "nobody else reads this" in capsys.readouterr().out


def test_the_attack_works_with_the_key(session, ports, tmp_path):
    """The control group: with the session's own key the same calls get in, run code and read output."""
    prepare = curve(session.request.server_public.encode(), load_key_pair(session.directory, "client"))
    with Caller(ports, prepare, (zmq.DEALER, zmq.SUB, zmq.PUB)) as friend:
        friend.listen(0.5)
        assert {where for where, _ in friend.succeeded()} == set(ports)
    marker = tmp_path / "marker"
    desks = {where: port for where, port in ports.items() if where.startswith("client")}
    with Caller(desks, prepare, (zmq.DEALER, zmq.SUB)) as friend:
        friend.say(partial(tale, b"a wrong key", marker, harmless=True))
        friend.listen(0.5)
        assert marked(session) == [], "the signing key protects nothing"
        friend.say(partial(tale, load_signing_key(session.directory), marker, harmless=True))
        friend.listen(0.5)
        session.client[:].execute("print('read by all')", block=True)
        friend.listen(0.5)
        said = b"".join(frame for _, message in friend.heard for frame in message)
        assert b"connection_reply" in said
        assert b"read by all" in said
    assert marked(session), "the same calls, with the key, run code"
    assert marker.exists()
    session.run("import builtins\nvars(builtins).pop('marked', None), globals().pop('marked', None);")
    assert marked(session) == []


GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\3\1" + b"CURVE".ljust(20, b"\0") + b"\0" + bytes(31)
POUR = bytes(1 << 20)


def claim(nbytes):
    """The beginning of a ZMTP frame of that size (a long message frame, the last of its message)."""
    return b"\2" + struct.pack(">Q", nbytes)


class Crowd:
    """Raw connections, closed at the end."""

    def __init__(self, ports):
        self.ports = list(ports.values())
        self.open = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in self.open:
            one.close()

    def connect(self, *said, port=None):
        """Connect, say something, stay; whatever the peer does."""
        port = port or self.ports[len(self.open) % len(self.ports)]
        one = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.open.append(one)
        with contextlib.suppress(OSError):
            one.sendall(b"".join(said))
        return one

    def pour(self, one, nbytes):
        """Pour bytes until that many are gone or the peer closes; give how many went."""
        gone = 0
        with contextlib.suppress(OSError):
            while gone < nbytes:
                gone += one.send(POUR[: nbytes - gone])
        return gone


def still_works(session):
    """A cell runs, at once, and another notebook gets in."""
    begun = time.monotonic()
    assert list(session.run("rank", timeout=10)) == [0, 1, 2, 3]
    assert time.monotonic() - begun < 2
    other = Control.connect(session.directory, session.request)
    try:
        pending = other.send(RunCell("rank", "cell 1"), [0])
        assert pending.wait(5)
    finally:
        other.close()


SAYINGS = {  # the dearest first: what a keeper has once held makes the next attack look cheaper
    "a greeting and the largest frame": (GREETING, claim(FRAME_LIMIT_NBYTES), POUR[: FRAME_LIMIT_NBYTES - 1]),
    "a greeting and a long frame": (GREETING, claim(1 << 20), POUR[: (1 << 20) - 1]),
    "a greeting": (GREETING,),
    "nothing": (),
}


@pytest.mark.parametrize("said", SAYINGS)
def test_half_open(session, ports, growth, said):
    """1000 connections that go no further than this stop nobody, and cost little."""
    with Crowd(ports) as crowd:
        for _ in range(HALF_OPEN):
            crowd.connect(*SAYINGS[said])
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            still_works(session)
            time.sleep(0.2)
    assert growth() < GROWTH_LIMIT_MB


def test_frames_of_2_gb(session, ports, growth):
    """A frame that says it has 2 GB is refused at its first bytes."""
    with Crowd(ports) as crowd:
        for port in ports.values():
            gone = crowd.pour(crowd.connect(GREETING, claim(2 << 30), port=port), 200 << 20)
            assert gone < 64 << 20, "the peer reads on"
        for _ in range(100):
            crowd.connect(GREETING, claim(2 << 30))
            crowd.connect(GREETING, claim(2 << 30))
        still_works(session)
    assert growth() < GROWTH_LIMIT_MB


@pytest.mark.parametrize("claimed", [300 << 20, 3 << 20, FRAME_LIMIT_NBYTES])
def test_frames_before_the_handshake(session, ports, growth, claimed):
    """What a stranger pours before he has proved a key is not kept, whatever size he claims it has."""
    connections = max(3, min(300, (300 << 20) // claimed))
    with Crowd(ports) as crowd:
        poured = [crowd.connect(GREETING, claim(claimed)) for _ in range(connections)]
        total = 0
        for one in poured:
            total += crowd.pour(one, min(claimed - 1, (400 << 20) - total))
        time.sleep(0.3)
        still_works(session)
    assert growth() < GROWTH_LIMIT_MB, f"{connections} claims of {claimed} bytes, {total} poured"


def test_values_of_256_mb(own_session):
    """`s.client` passes 256 MB each way, whole, and long frames of every kind; the keeper keeps none of it."""
    session = own_session(nodes=1)
    keeper = psutil.Process(session.keeper_state().keeper_pid)
    before = keeper.memory_info().rss
    view = session.client[:]
    value = np.arange(32_000_000, dtype=float)
    view.push({"a": value}, block=True)
    assert session.run("(a.nbytes, float(a.sum()))").same() == (256_000_000, value.sum())
    (back,) = view.pull("a", block=True)
    assert np.array_equal(back, value)
    del back
    session.push(b=value)
    assert np.array_equal(session.pull("b")[0], value)
    del value
    view.execute(f"c = 7  # {'x' * 3_000_000}", block=True)
    assert view.pull("c", block=True) == [7]
    shown = view.execute("print('y' * 900_000)")
    shown.get()
    shown.wait_for_output(5)
    assert [len(text) for text in shown.stdout] == [900_001]
    balanced = session.client.load_balanced_view()
    first = [balanced.apply_async(int) for _ in range(1000)]
    with balanced.temp_flags(after=first):  # 40 KB of message ids in the metadata
        assert balanced.apply_async(len, b"z" * 3_000_000).get(20) == 3_000_000
    together = session.client.broadcast_view(is_coalescing=True)
    view.execute("d = a[:200_000]", block=True)
    (first,) = together.pull("d").get(20)
    assert np.array_equal(first, np.arange(200_000.0))
    deadline = time.monotonic() + 15
    while (grown := keeper.memory_info().rss - before) > GROWTH_LIMIT_MB * 1e6 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert grown < GROWTH_LIMIT_MB * 1e6, "the keeper keeps memory for values that have passed through"


def secrets_of(directory):
    """Every text that must not be seen: the secret halves of the keys, the signing key, the tokens."""
    pairs = [load_key_pair(directory, who).secret.decode() for who in crypto.PEERS]
    return [*pairs, load_signing_key(directory).decode(), *TOKENS.values()]


def leaks(text, secrets):
    """Which secrets, or what of a half of them, are in a text."""
    return [secret for secret in secrets if secret in text or secret[: len(secret) // 2] in text]


def files(root):
    """Every file and directory below, and the root."""
    return [root, *root.rglob("*")]


def test_secrets_in_processes(session):
    """No key and no token stands in an argv; no key and no token of the hub in an environment."""
    secrets = secrets_of(session.directory)
    keys = secrets[: -len(TOKENS)] + [TOKENS[name] for name in OF_THE_HUB]
    for process in family(session):
        assert leaks(" ".join(process.cmdline()), secrets) == [], f"argv of {process}"
        environment = "\n".join(f"{k}={v}" for k, v in process.environ().items())
        assert leaks(environment, keys) == [], f"environment of {process}"
    inside = session.run("import os, sys; ' '.join([*os.environ.values(), *sys.argv])")
    assert leaks("\n".join(inside), keys) == []


def test_secrets_in_files_and_words(own_session, capfd, caplog):
    """Neither keys nor tokens are in a file beside *.key, in a repr or str, or in what is printed and logged."""
    caplog.set_level(0)
    session = own_session(nodes=2)
    secrets = secrets_of(session.directory)
    session.run("print('hello'); import sys; print('oops', file=sys.stderr); 1")
    with pytest.raises(hpcmagic.RankError):
        session.run("1 / 0")
    keys = load_key_pair(session.directory, "client")
    things = [
        session, session.client, session.control, session.client[:], session.request, session.job, session.directory,
        session.launcher, session.status(), session.keeper_state(), keys, session.request.resources, session.log(),
        session.log(0), hpcmagic.sessions(session_dir=str(session.directory.path.parent)),
    ]  # fmt: skip
    for thing in things:
        assert leaks(f"{thing!r}\n{thing!s}\n{[thing]}", secrets) == [], type(thing)
    root = session.directory.path.parent
    for _ in ("while it runs", "after it ended"):
        for path in files(root):
            if path.is_file() and path.suffix != ".key":
                assert leaks(path.read_text(errors="replace"), secrets) == [], path
        session.stop()
    assert list(root.rglob("*.key")) == []
    assert len(list(root.rglob("*.log"))) >= 3
    printed = capfd.readouterr()
    assert leaks(printed.out + printed.err + caplog.text, secrets) == []


def test_secrets_in_notebooks(tmp_path, monkeypatch):
    """A saved notebook shows no key and no token, whatever its cells display."""
    root, kept = tmp_path / "d", tmp_path / "kept"
    monkeypatch.setenv("HPCMAGIC_SESSION_DIR", str(root))
    monkeypatch.setenv("HPCMAGIC_LAUNCHER", "local")
    cells = [
        "%load_ext hpcmagic",
        "%%remote --nodes 1 --session nb\nprint('hello')\nrank",
        "%hpc status",
        "%hpc log",
        "import hpcmagic; s = hpcmagic.start(session='nb'); s",
        "s.client, s.request, s.control, s.client[:], s.client.session",
        f"import shutil; shutil.copytree({str(root / 'nb')!r}, {str(kept)!r}, copy_function=shutil.copy2); s.stop()",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(book, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    secrets = secrets_of(SessionDirectory(kept))
    saved = nbformat.writes(book)
    assert "hello" in saved
    assert leaks(saved, secrets) == []
    shutil.rmtree(kept)


def test_modes(own_session):
    """While a session runs and after it ended only its user may look inside; its keys are gone at the end."""
    session = own_session(nodes=2)
    session.run("print('x' * 10)")
    root = session.directory.path.parent
    assert len(list(root.rglob("*.key"))) == 4
    for _ in ("while it runs", "after it ended"):
        for path in files(root):
            info = path.lstat()
            wanted = 0o700 if stat.S_ISDIR(info.st_mode) else 0o600
            assert (stat.S_IMODE(info.st_mode), info.st_uid) == (wanted, os.getuid()), path
            assert not stat.S_ISLNK(info.st_mode), path
        session.stop()
    assert list(root.rglob("*.key")) == []


@pytest.fixture
def unread(monkeypatch):
    """Names of the files that hpcmagic has read."""
    read = []
    for name in ("read_text", "read_bytes"):
        original = getattr(Path, name)

        def spy(self, *args, original=original, **kwargs):
            read.append(self.name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Path, name, spy)
    return read


def names_of_session(read):
    """Those of a session's files among them; your budgets are no session's."""
    return [name for name in read if name.endswith((".key", ".json")) and not name.endswith("budget.json")]


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o750, 0o701])
def test_session_dir_too_wide(tmp_path, unread, mode):
    """A session_dir that others may look into is refused, with the line that mends it; nothing is started."""
    root = tmp_path / "d"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(ProfileError, match=f"mode {mode:04o}") as caught:
        hpcmagic.start(nodes=1, launcher="local", session="a", session_dir=str(root))
    assert f"chmod 700 {root}" in caught.value.mend
    assert list(root.iterdir()) == []
    assert names_of_session(unread) == []


def test_session_dir_is_a_link(tmp_path, unread):
    """A symbolic link as session_dir is refused: somebody may turn it."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "d").symlink_to(tmp_path / "real")
    with pytest.raises(ProfileError, match="symbolic link"):
        hpcmagic.start(nodes=1, launcher="local", session="a", session_dir=str(tmp_path / "d"))
    assert list((tmp_path / "real").iterdir()) == []


@pytest.fixture
def standing(session):
    """The module's running session: its directory; modes are as they were afterwards."""
    root = session.directory.path.parent
    modes = {
        path: stat.S_IMODE(path.stat().st_mode)
        for path in (root, session.directory.path, *session.directory.path.glob("*"))
    }
    yield session.directory
    for path, mode in modes.items():
        path.chmod(mode)


WIDENED = ("..", ".", "client.key", "signing.key", "server.key", "request.json", "connection.json", "ranks")


@pytest.mark.parametrize("name", WIDENED)
@pytest.mark.parametrize("mode", [0o755, 0o640])
def test_widened_later(standing, unread, name, mode):
    """A session that was widened after its start is not picked up: nothing of it is read."""
    path = Path(os.path.normpath(standing.path / name))
    path.chmod(mode | (0o100 if path.is_dir() else 0))
    with pytest.raises(ProfileError, match="mode 0"):
        hpcmagic.start(session="module", session_dir=str(standing.path.parent))
    assert names_of_session(unread) == []


@pytest.mark.parametrize("name", ["client.key", "signing.key", "request.json"])
def test_link_in_a_session(standing, tmp_path, unread, name):
    """A symbolic link among a session's files is refused."""
    aside = tmp_path / name
    path = standing.path / name
    path.rename(aside)
    try:
        path.symlink_to(aside)
        with pytest.raises(ProfileError, match="symbolic link"):
            hpcmagic.start(session="module", session_dir=str(standing.path.parent))
        assert names_of_session(unread) == []
    finally:
        aside.replace(path)


@pytest.mark.parametrize("who", crypto.PEERS)
def test_keys_too_wide(tmp_path, unread, who):
    """Keeper, ranks and notebooks look at a key's mode before they read it."""
    directory = SessionDirectory.create(tmp_path / "d" / "a")
    make_keys(directory)
    for path in (directory.key(who), directory.key("signing")):
        path.chmod(0o644)
    with pytest.raises(ProfileError, match="mode 0644"):
        load_key_pair(directory, who)
    with pytest.raises(ProfileError, match="mode 0644"):
        load_signing_key(directory)
    assert unread == []


def test_require_encrypted():
    """Only a socket that speaks CURVE passes."""
    with zmq.Context() as context:
        server, pair = zmq.curve_keypair()[0], KeyPair(*zmq.curve_keypair())
        for prepare, mechanism in ((lambda one: None, "NULL"), (plain, "PLAIN"), (curve(server, pair), None)):
            with context.socket(zmq.DEALER) as one:
                prepare(one)
                if mechanism is None:
                    require_encrypted(one)
                    continue
                with pytest.raises(NotEncrypted, match=f"speaks {mechanism}, not CURVE"):
                    require_encrypted(one)


@pytest.fixture
def impostor(tmp_path):
    """A plain server that answers as a controller would, and the session's directory that leads to it."""
    directory = SessionDirectory.create(tmp_path / "d" / "a")
    public = {who: key.decode() for who, key in make_keys(directory).items()}
    context = zmq.Context()
    desk = context.socket(zmq.ROUTER)
    port = desk.bind_to_random_port("tcp://127.0.0.1")
    others = {}
    sockets = [desk]
    for name, kind in {
        "control": zmq.ROUTER, "mux": zmq.ROUTER, "task": zmq.ROUTER, "broadcast": zmq.ROUTER,
        "iopub": zmq.PUB, "notification": zmq.PUB, "presence": zmq.PUB,
    }.items():  # fmt: skip
        sockets.append(context.socket(kind))
        others[name] = sockets[-1].bind_to_random_port("tcp://127.0.0.1")
    common = {
        "interface": "tcp://127.0.0.1", "location": "127.0.0.1", "ssh": "", "pack": "json", "unpack": "json",
        "signature_scheme": "hmac-sha256", "task_scheme": "leastload", "registration": port,
    }  # fmt: skip
    directory.write_record(directory.connection, Connection("127.0.0.1", {}, {**common, **others}))
    request = Request(
        session="a", launcher="local", ntasks=1, nodes=1, ntasks_per_node=1, cpus_per_task=1, mpi="none", interface="",
        submit_host="localhost", no_client_limit_s=0.0, start_timeout_s=1.0, server_public=public["server"],
        client_public=public["client"], engine_public=public["engine"],
    )  # fmt: skip
    heard, over, signer = [], threading.Event(), Signer(key=load_signing_key(directory))

    def answer():
        while not over.is_set():
            if desk.poll(50):
                message = desk.recv_multipart()
                heard.append(message)
                idents, rest = signer.feed_identities(message)
                parent = signer.deserialize(rest)
                signer.send(desk, "connection_reply", {"status": "ok", "engines": {}}, parent=parent, ident=idents)

    thread = threading.Thread(target=answer)
    thread.start()
    yield directory, request, heard
    over.set()
    thread.join()
    for one in sockets:
        one.close(0)
    context.term()


def test_plain_server(impostor):
    """A server without encryption that pretends to be the keeper gets not one message."""
    directory, request, heard = impostor
    with pytest.raises(ChannelError):
        Control.connect(directory, request, timeout_s=1.0)
    assert heard == []


def test_request_without_a_key(impostor, monkeypatch):
    """A request that names no server key does not lead to a plain connection: nothing is said to anybody."""
    directory, request, heard = impostor
    monkeypatch.delenv("IPP_CURVE_SERVERKEY", raising=False)
    with pytest.raises(NotEncrypted):
        Control.connect(directory, replace(request, server_public=""), timeout_s=2.0)
    assert heard == []


def test_key_pair_in_words():
    """A key pair's words are its public half."""
    pair = KeyPair(*zmq.curve_keypair())
    for words in (repr(pair), str(pair), f"{pair}", repr([pair]), repr({"pair": pair})):
        assert pair.secret.decode() not in words
        assert re.search(r"secret=\*\*\*", words)
