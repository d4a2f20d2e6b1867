"""One sealed copy reaches every rank, by MPI or along a chain; whatever befalls one of them, the others go on in step."""

import socket
import threading
from collections import defaultdict, deque
from types import SimpleNamespace

import numpy as np
import pytest

from hpcmagic.engine import fanout
from hpcmagic.engine.fanout import BUNDLE, DEPTH, Fanout
from hpcmagic.engine.transfers import Transfers
from hpcmagic.errors import HpcMagicError, PeerLost, Tampered
from hpcmagic.wire.bulk import HEADER, TO_ALL, Channel, Invitation, Kind, bound_to
from hpcmagic.wire.crypto import TAG_NBYTES, Sealer, make_frame_key
from hpcmagic.wire.messages import Spread, Take
from hpcmagic.wire.moving import run_all, run_one
from hpcmagic.wire.parcels import blocks, packed

SESSION = "a keeper's public key, in Z85"
KEY = bytes(range(32))
WAITS_S = 30.0
SIZE = 3
COUNTS = [0, 1, BUNDLE - 1, BUNDLE, BUNDLE + 1, BUNDLE * DEPTH, BUNDLE * DEPTH + 1, 10 * BUNDLE * DEPTH + 3]


@pytest.fixture(autouse=True)
def no_naps(monkeypatch):
    """Have those who wait for MPI look again at once."""
    monkeypatch.setattr(fanout, "EAGER_S", 1000.0)


class Broadcast:
    """One broadcast: what its root has begun, and who else has."""

    def __init__(self):
        self.root = None
        self.begun = set()
        self.copied = set()


class World:
    """MPI as far as it is needed: ranks are threads, and the n-th broadcast of one is the n-th of all.

    Nothing is copied before all ranks have begun a broadcast, and the root's memory is read only then: as late as
    MPI may. `change` sees what a rank gets, and may change it.
    """

    def __init__(self, size=SIZE, change=None):
        self.size = size
        self.change = change or (lambda rank, number, data: None)
        self.begun = [0] * size
        self.broadcasts = {}
        self.sent = defaultdict(deque)  # messages by who sent them to whom
        self.changed = threading.Condition()

    def comm(self, rank):
        """A communicator as a rank has it."""
        return Comm(self, rank)


class Comm:
    """One rank's communicator."""

    def __init__(self, world, rank):
        self.world = world
        self.rank = rank
        self.size = world.size

    def Isend(self, message, rank):  # noqa: N802  # mpi4py's name
        """Send a small message, which MPI keeps until it is fetched."""
        self.world.sent[self.rank, rank].append(bytes(message))
        return SimpleNamespace(Test=lambda: True)

    def Iprobe(self, source):  # noqa: N802  # mpi4py's name
        """Whether there is a message from that rank."""
        return bool(self.world.sent[source, self.rank])

    def Recv(self, into, source):  # noqa: N802  # mpi4py's name
        """Fetch it."""
        into[:] = self.world.sent[source, self.rank].popleft()

    def Ibcast(self, buffer, root):  # noqa: N802  # mpi4py's name
        """Begin a broadcast."""
        with self.world.changed:
            number = self.world.begun[self.rank]
            self.world.begun[self.rank] += 1
            broadcast = self.world.broadcasts.setdefault(number, Broadcast())
            broadcast.begun.add(self.rank)
            if self.rank == root:
                broadcast.root = buffer
            self.world.changed.notify_all()
        return Request(self, number, broadcast, buffer)


class Request:
    """A broadcast under way."""

    def __init__(self, comm, number, broadcast, buffer):
        self.comm = comm
        self.number = number
        self.broadcast = broadcast
        self.buffer = buffer

    def Test(self):  # noqa: N802  # mpi4py's name
        """Whether it is over; waits for news a little, to let the others go on."""
        world, rank, broadcast = self.comm.world, self.comm.rank, self.broadcast
        with world.changed:
            if len(broadcast.begun) == world.size and rank not in broadcast.copied:
                assert len(self.buffer) == len(broadcast.root), "MPI_ERR_TRUNCATE"
                if self.buffer is not broadcast.root:
                    self.buffer[:] = broadcast.root
                    world.change(rank, self.number, self.buffer)
                broadcast.copied.add(rank)
                world.changed.notify_all()
            over = len(broadcast.copied) == world.size if self.buffer is broadcast.root else rank in broadcast.copied
            if not over:
                world.changed.wait(0.01)
            return over


def blocks_of(count, last=77):
    """What is sent: small blocks, the last one shorter."""
    rng = np.random.default_rng(count)
    return [rng.bytes(100) for _ in range(count - 1)] + [rng.bytes(last)] * bool(count)


class Transfer:
    """One transfer to all ranks: what the notebook sends, and where it shall be at each of them."""

    def __init__(self, count, transfer=5, size=SIZE):
        self.transfer = transfer
        self.sent = blocks_of(count)
        key = make_frame_key()
        self.sealer = Sealer(key, bound_to(SESSION, TO_ALL))
        self.into = [[memoryview(bytearray(len(block))) for block in self.sent] for _ in range(size)]
        self.fanouts = [Fanout(Spread(key.hex()), SESSION, transfer, into) for into in self.into]
        self.raised = {}

    def stream(self):
        """The frames as the notebook seals them."""
        ours, theirs = socket.socketpair()
        channel = Channel(ours, Invitation.fresh(), SESSION, at_rank=False)
        frames = []
        for number, block in enumerate(self.sent):
            list(channel.send(Kind.DATA, self.transfer, number, len(self.sent), block, sealer=self.sealer))
            frames.append(theirs.recv(1 << 20))
        channel.close()
        theirs.close()
        return frames

    def whole(self):
        """The ranks that say that all has arrived, which must be so."""
        ranks = [rank for rank in range(len(self.into)) if rank not in self.raised]
        assert all([bytes(block) for block in self.into[rank]] == self.sent for rank in ranks)
        return ranks

    def run(self, parts):
        """Let each rank do its part in a thread of its own; note what it raises."""

        def keep(rank, part):
            try:
                part()
            except Exception as error:
                self.raised[rank] = error

        threads = [threading.Thread(target=keep, args=(rank, part)) for rank, part in enumerate(parts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAITS_S)
            assert not thread.is_alive()
        for error in self.raised.values():
            if not isinstance(error, HpcMagicError):
                raise error

    def kinds(self):
        """What was raised, by rank."""
        return {rank: type(error) for rank, error in sorted(self.raised.items())}


class Notebook:
    """Feeds a stream to rank 0 from a thread, and then hangs up or stays."""

    def __init__(self, stream, *, hangs_up=True):
        ours, self.way = socket.socketpair()
        self.channel = Channel(ours, Invitation.fresh(), SESSION, at_rank=True)
        self.thread = threading.Thread(target=self.feed, args=(stream, hangs_up))
        self.thread.start()

    def feed(self, stream, hangs_up):
        """Send it all, to nobody perhaps."""
        try:
            self.way.sendall(stream)
            if hangs_up:
                self.way.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        """Be gone."""
        self.channel.close()
        self.thread.join(WAITS_S)
        assert not self.thread.is_alive()
        self.way.close()


def by_mpi(transfer, world, stream, **kwargs):
    """Let all ranks take part in a transfer of which rank 0 gets this stream."""
    notebook = Notebook(stream, **kwargs)
    sources = [notebook.channel] + [None] * (world.size - 1)
    try:
        transfer.run(
            [
                lambda rank=rank: transfer.fanouts[rank].by_mpi(world.comm(rank), sources[rank])
                for rank in range(world.size)
            ]
        )
    finally:
        notebook.close()
    return transfer


def in_step(world):
    """Whether all ranks have begun the same broadcasts, and none is left under way."""
    assert all(len(broadcast.copied) == world.size for broadcast in world.broadcasts.values())
    return len(set(world.begun)) == 1


def body(frames, number, position=0):
    """Where in a stream a frame's sealed bytes begin."""
    return sum(map(len, frames[:number])) + HEADER.size + position


# ---- by MPI


@pytest.mark.parametrize("count", COUNTS)
def test_by_mpi(count):
    """Every rank gets every block, in as many broadcasts as there are bundles; memory is used again only when it may be."""
    world, transfer = World(), Transfer(count)
    by_mpi(transfer, world, b"".join(transfer.stream()))
    assert transfer.kinds() == {}
    assert transfer.whole() == [0, 1, 2]
    assert world.begun == [-(-count // BUNDLE)] * SIZE
    assert in_step(world)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_by_mpi_sizes(size):
    """However many ranks there are."""
    world, transfer = World(size), Transfer(9, size=size)
    by_mpi(transfer, world, b"".join(transfer.stream()))
    assert transfer.whole() == list(range(size))


def test_nothing_clear_over_mpi():
    """MPI's traffic, which is clear text, holds the frames as the notebook has sealed them, and nothing else of them."""
    passed = []
    world, transfer = World(change=lambda rank, number, data: passed.append(bytes(data))), Transfer(9)
    frames = transfer.stream()
    by_mpi(transfer, world, b"".join(frames))
    passed = {data[1:] for data in passed}
    assert passed == {b"".join(frames[first : first + BUNDLE]) for first in range(0, 9, BUNDLE)}
    assert not [data for data in passed for block in transfer.sent if block[:20] in data]


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("number", [0, 2, 4, 7])
def test_tampered_on_the_way_to_one(rank, number):
    """A frame that was changed between two ranks is noticed by the one that gets it; all others get all."""

    def change(to, broadcast, data):
        if to == rank and broadcast == number:
            data[1 + HEADER.size + 5] ^= 1

    world, transfer = World(change=change), Transfer(8 * BUNDLE)
    by_mpi(transfer, world, b"".join(transfer.stream()))
    assert transfer.kinds() == {rank: Tampered}
    assert transfer.whole() == [other for other in range(SIZE) if other != rank]
    assert in_step(world)
    assert world.begun[0] == 8


def test_swapped_on_the_way_to_one():
    """So are two frames that have changed places there, and a broadcast that comes twice."""
    seen = {}

    def change(rank, number, data):
        if rank == 1 and number == 0:
            nbytes = HEADER.size + 100 + TAG_NBYTES
            data[1 : 1 + nbytes], data[1 + nbytes : 1 + 2 * nbytes] = (
                bytes(data[1 + nbytes : 1 + 2 * nbytes]),
                bytes(data[1 : 1 + nbytes]),
            )
        elif rank == 2 and number == 1:
            seen["again"] = bytes(data)
        elif rank == 2 and number == 2:
            data[:] = seen["again"]

    world, transfer = World(change=change), Transfer(4 * BUNDLE + 1)
    by_mpi(transfer, world, b"".join(transfer.stream()))
    assert transfer.kinds() == {1: Tampered, 2: Tampered}
    assert in_step(world)


@pytest.mark.parametrize("where", ["header", "body"])
@pytest.mark.parametrize("number", [0, 1, BUNDLE, BUNDLE * DEPTH + 1, 39])
def test_tampered_before_rank_0(where, number):
    """What was changed before it came to rank 0 is used by no rank; all of them end, in step."""
    world, transfer = World(), Transfer(40)
    frames = transfer.stream()
    stream = bytearray(b"".join(frames))
    stream[body(frames, number) - (3 if where == "header" else 0)] ^= 1
    by_mpi(transfer, world, stream, hangs_up=False)
    assert set(transfer.kinds()) == {0, 1, 2}
    assert transfer.kinds()[0] is Tampered
    assert set(transfer.kinds().values()) == ({Tampered} if where == "body" else {Tampered, PeerLost})
    assert in_step(world)


@pytest.mark.parametrize("number", [0, 1, BUNDLE, BUNDLE * DEPTH - 1, BUNDLE * DEPTH, 37, 39])
@pytest.mark.parametrize("offset", [0, 3, HEADER.size + 1])
def test_notebook_lost(number, offset):
    """If the notebook is lost in the middle, every rank says so, having begun the same broadcasts, and none waits on."""
    world, transfer = World(), Transfer(40)
    frames = transfer.stream()
    by_mpi(transfer, world, b"".join(frames)[: body(frames, number) - HEADER.size + offset])
    assert transfer.kinds() == {0: PeerLost, 1: PeerLost, 2: PeerLost}
    assert in_step(world)
    assert number // BUNDLE < world.begun[0] <= -(-40 // BUNDLE)


@pytest.mark.parametrize("cut", [0, 1, 500, 2000])
def test_the_next_one_works(cut):
    """After one that failed another one passes over the same communicator."""
    world, failing = World(), Transfer(40)
    by_mpi(failing, world, b"".join(failing.stream())[:cut])
    assert len(failing.raised) == SIZE
    transfer = Transfer(20, transfer=6)
    by_mpi(transfer, world, b"".join(transfer.stream()))
    assert transfer.kinds() == {}
    assert transfer.whole() == [0, 1, 2]
    assert in_step(world)


def test_rank_0_gone(monkeypatch):
    """A rank whose broadcast never comes does not wait for ever."""
    monkeypatch.setattr(fanout, "EAGER_S", 0.0)
    monkeypatch.setattr(fanout, "SILENT_S", 0.0)
    world, transfer = World(), Transfer(3)
    with pytest.raises(PeerLost) as error:
        transfer.fanouts[1].by_mpi(world.comm(1), None)
    assert "\n→ " in str(error.value)


# ---- along a chain


class Chain:
    """Connections from each rank to the next."""

    def __init__(self, stream, size=SIZE):
        self.notebook = Notebook(stream)
        self.sources, self.onwards = [self.notebook.channel], []
        for _ in range(size - 1):
            invitation = Invitation.fresh()
            ends = socket.socketpair()
            for end in ends:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            self.onwards.append(Channel(ends[0], invitation, SESSION, at_rank=False))
            self.sources.append(Channel(ends[1], invitation, SESSION, at_rank=True))
        self.onwards.append(None)

    def run(self, transfer):
        """Let each rank do its part, and close its connections behind it, as a rank does."""

        def part(rank):
            try:
                transfer.fanouts[rank].by_chain(self.sources[rank], self.onwards[rank])
            finally:
                self.sources[rank].close()
                if self.onwards[rank] is not None:
                    self.onwards[rank].close()

        transfer.run([lambda rank=rank: part(rank) for rank in range(len(self.sources))])
        self.notebook.close()
        return transfer


@pytest.mark.parametrize("count", [0, 1, 2, 50, 500])
def test_by_chain(count):
    """Every rank gets every block, also where the connections hold less than what passes."""
    transfer = Transfer(count)
    Chain(b"".join(transfer.stream())).run(transfer)
    assert transfer.kinds() == {}
    assert transfer.whole() == [0, 1, 2]


def test_chain_of_one():
    """A chain may end where it begins."""
    transfer = Transfer(5, size=1)
    Chain(b"".join(transfer.stream()), size=1).run(transfer)
    assert transfer.whole() == [0]


def test_chain_passes_on_what_was_sealed():
    """A rank passes on the notebook's frames as they are: what goes from rank to rank is the notebook's stream."""
    transfer = Transfer(5)
    stream = b"".join(transfer.stream())
    chain = Chain(stream, size=1)
    ours, way = socket.socketpair()
    chain.onwards[0] = Channel(ours, Invitation.fresh(), SESSION, at_rank=False)
    chain.run(transfer)
    assert way.recv(1 << 20) == stream
    way.close()


@pytest.mark.parametrize("number", [0, 20, 39])
def test_chain_tampered(number):
    """A frame that was changed on its way opens at no rank; each of them has passed it on, and says so at the end."""
    transfer = Transfer(40)
    frames = transfer.stream()
    stream = bytearray(b"".join(frames))
    stream[body(frames, number, 5)] ^= 1
    Chain(stream).run(transfer)
    assert transfer.kinds() == {0: Tampered, 1: Tampered, 2: Tampered}


@pytest.mark.parametrize("victim", [1, 2])
def test_chain_tampered_later(victim):
    """One that was changed between two ranks is noticed from there on; those before have all."""
    transfer = Transfer(40)
    frames = transfer.stream()
    chain = Chain(b"".join(frames))
    send = chain.onwards[victim - 1].send_sealed
    passed = []

    def meddle(frame):
        passed.append(1)
        changed = bytearray(frame)
        changed[-1] ^= len(passed) == 20
        return send(memoryview(changed))

    chain.onwards[victim - 1].send_sealed = meddle
    chain.run(transfer)
    assert transfer.kinds() == dict.fromkeys(range(victim, SIZE), Tampered)
    assert transfer.whole() == list(range(victim))


@pytest.mark.parametrize("end", [0, 1, 2000, -1])
def test_chain_without_a_notebook(end):
    """If the notebook is lost all ranks are told, one by the other."""
    transfer = Transfer(40)
    Chain(b"".join(transfer.stream())[:end]).run(transfer)
    assert transfer.kinds() == {0: PeerLost, 1: PeerLost, 2: PeerLost}


def test_chain_without_a_rank():
    """If a rank in the middle is lost, both its neighbours are told; none of them waits."""
    transfer = Transfer(4000)
    chain = Chain(b"".join(transfer.stream()))

    def leave(source, _onward):
        run_one(source, source.receive_sealed(Kind.DATA, transfer.transfer, 0, 100))

    transfer.fanouts[1].by_chain = leave
    chain.run(transfer)
    assert transfer.kinds() == {0: PeerLost, 2: PeerLost}


@pytest.mark.parametrize("other", ["key", "session", "transfer"])
def test_of_another_transfer(other):
    """Frames of another transfer, key or session open nowhere."""
    transfer, strange = Transfer(6), Transfer(6, transfer=6 if other == "transfer" else 5)
    if other == "transfer":  # under the same key, behind the right header
        strange.sealer = transfer.sealer
    if other == "session":
        key = make_frame_key()
        strange.sealer = Sealer(key, bound_to("another", TO_ALL))
        transfer.fanouts = [Fanout(Spread(key.hex()), SESSION, 5, into) for into in transfer.into]
    frames = strange.stream()
    if other == "transfer":
        frames = [
            HEADER.pack(*HEADER.unpack_from(frame)[:4], 5, number) + frame[HEADER.size :]
            for number, frame in enumerate(frames)
        ]
    Chain(b"".join(frames)).run(transfer)
    assert transfer.kinds() == {0: Tampered, 1: Tampered, 2: Tampered}


# ---- as a rank takes part in it


@pytest.fixture
def rank_takes(monkeypatch):
    """Let a rank take part in a transfer to all; gives its namespace, the notebook's end, and how it went."""
    opened = []

    def take(world, transfer, rank, array):
        """Begin; `ends` waits for the rank."""
        parcel, _ = packed(array)
        ends = socket.socketpair()
        invitation = Invitation.fresh()
        own, notebook = (Channel(end, invitation, SESSION, at_rank=i == 0) for i, end in enumerate(ends))
        opened.extend([own, notebook])
        comm = world.comm(rank)
        comm.Dup = lambda: comm
        held = Transfers(SimpleNamespace(server_public=SESSION), rank, comm, {}, str)
        monkeypatch.setattr(held.port, "channel", lambda _name: own)
        how = SimpleNamespace(names=held._namespace, notebook=notebook, raised=None)

        def do():
            try:
                held.take(Take("c", transfer, {"x": parcel}, {}, Spread(KEY.hex())))
            except HpcMagicError as error:
                how.raised = error

        how.thread = threading.Thread(target=do)
        how.thread.start()
        run_one(notebook, notebook.receive(Kind.READY, transfer), WAITS_S)
        return how

    yield take
    for channel in opened:
        channel.close()


def test_no_rank_begins_before_all(rank_takes):
    """If some rank never comes to it, say because it is busy and one gives up, no rank has begun a broadcast."""
    world = World()
    ranks = [rank_takes(world, 1, rank, np.arange(9.0)) for rank in (0, 1)]
    for how in ranks:
        how.notebook.close()
    for how in ranks:
        how.thread.join(WAITS_S)
        assert not how.thread.is_alive()
        assert type(how.raised) is PeerLost
        assert how.names == {}
    assert world.begun == [0, 0, 0]


@pytest.mark.parametrize("told", [(1, 2), (0, 1), (0, 1, 2)])
def test_notebook_lost_as_it_begins(rank_takes, told):
    """A notebook that is lost while it tells ranks that all are there, or just after: none has begun a broadcast."""
    world, array = World(), np.arange(9.0)
    ranks = [rank_takes(world, 1, rank, array) for rank in range(SIZE)]
    for rank in told:
        run_one(ranks[rank].notebook, ranks[rank].notebook.send(Kind.READY, 1))
    for how in ranks:
        how.notebook.close()
    for how in ranks:
        how.thread.join(WAITS_S)
        assert not how.thread.is_alive()
        assert type(how.raised) is PeerLost
    assert world.begun == [0, 0, 0]


def test_words_for_others_are_dropped(rank_takes):
    """Rank 0's word on a transfer that a rank never came to is not taken for its word on the next."""
    world, array = World(), np.arange(9.0)
    how = rank_takes(world, 1, 0, array)
    how.notebook.close()
    how.thread.join(WAITS_S)
    assert len(world.sent[0, 1]) == len(world.sent[0, 2]) == 1
    all_begin(rank_takes, world, 2)


def test_all_begin(rank_takes):
    """When all are at it they begin, and bind the name when all have the value."""
    all_begin(rank_takes, World(), 1)


def all_begin(rank_takes, world, transfer):
    """Let all ranks take part in a transfer, which must succeed."""
    array = np.arange(100_000.0)
    parcel, parts = packed(array)
    ranks = [rank_takes(world, transfer, rank, array) for rank in range(SIZE)]
    channels = {rank: how.notebook for rank, how in enumerate(ranks)}
    sealer = Sealer(KEY, bound_to(SESSION, TO_ALL))

    def send_and_hear(rank, channel):
        yield from channel.send(Kind.READY, transfer)
        if rank == 0:
            yield from channel.send_blocks(transfer, blocks(parts), parcel.frames, sealer)
        yield from channel.receive(Kind.DONE, transfer)

    assert run_all(channels, {rank: send_and_hear(rank, channels[rank]) for rank in channels}, lambda: None) == {}
    assert [how.names for how in ranks] == [{}] * SIZE
    for how in ranks:
        run_one(how.notebook, how.notebook.send(Kind.COMMIT, transfer))
        how.thread.join(WAITS_S)
        np.testing.assert_array_equal(how.names["x"], array)
    assert in_step(world)
