"""Bulk channels: whatever somebody on the way does to the stream, nothing of it is used; memory stays small."""

import errno
import itertools
import os
import selectors
import socket
import threading
import tracemalloc
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from two_lines import two_lines

from hpcmagic.errors import ChannelError, HpcMagicError, PeerLost, Tampered
from hpcmagic.wire import bulk
from hpcmagic.wire.bulk import HEADER, HELLO_NBYTES, MAGIC, TURN, Channel, Invitation, Kind, connect, welcome
from hpcmagic.wire.crypto import TAG_NBYTES
from hpcmagic.wire.messages import FRAME_NBYTES, Parcel
from hpcmagic.wire.moving import GO_ON, READ, run_all, run_one
from hpcmagic.wire.parcels import Room, blocks, packed

SESSION = "a keeper's public key, in Z85"
TRANSFERS = 11, 12
VALUES = {11: bytes(range(100)), 12: bytes(range(100, 250))}
PIECES = {number: [value[i : i + 30] for i in range(0, len(value), 30)] for number, value in VALUES.items()}


@pytest.fixture(scope="module")
def invitation():
    """The keys of one channel. No other test is a reason to use them twice: here time is turned back on purpose."""
    return Invitation.fresh()


class End:
    """One end of a channel, and the stream that whoever sits on the way gives it to read."""

    def __init__(self, invitation, *, at_rank, session=SESSION):
        ours, self.way = socket.socketpair()
        self.way.setblocking(False)
        self.channel = Channel(ours, invitation, session, at_rank=at_rank)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
        self.way.close()

    def do(self, moving, stream=None):
        """Do a part with this stream to read, and nothing behind it; give what was sent."""
        sent = bytearray()
        left = memoryview(b"" if stream is None else bytes(stream))
        for _ in self._turns(moving):
            sent += self.heard()
            if left:
                left = left[self.way.send(left[:100_000]) :]
            elif stream is not None:
                with suppress(OSError):
                    self.way.shutdown(socket.SHUT_WR)
        return bytes(sent)

    def heard(self):
        """What it has sent by now."""
        heard = bytearray()
        with suppress(BlockingIOError):
            while came := self.way.recv(1 << 16):
                heard += came
        return heard

    @staticmethod
    def _turns(moving):
        """Once before and whenever it waits, and once more behind it."""
        yield
        for _ in moving:
            yield
        yield


def give(channel, pieces=PIECES, count=None):
    """What a notebook does to send values, one behind the other."""
    for transfer, parts in pieces.items():
        yield from channel.receive(Kind.READY, transfer)
        yield from channel.send_blocks(transfer, iter(parts), len(parts) if count is None else count)
        yield from channel.receive(Kind.DONE, transfer)
        yield from channel.send(Kind.COMMIT, transfer)


def take(channel, bound=None):
    """What a rank does to receive them; `bound` gets what is handed on."""
    for transfer, parts in PIECES.items():
        yield from channel.send(Kind.READY, transfer)
        value = memoryview(bytearray(sum(map(len, parts))))
        room = [value[i : i + 30] for i in range(0, len(value), 30)]
        yield from channel.receive_blocks(transfer, iter(room), len(parts))
        yield from channel.send(Kind.DONE, transfer)
        yield from channel.receive(Kind.COMMIT, transfer)
        if bound is not None:
            bound[transfer] = bytes(value)


def talk(channel, part):
    """A channel's whole life: it greets, then does its part."""
    yield from channel.send(Kind.HELLO, 0)
    yield from channel.receive(Kind.HELLO, 0)
    yield from part(channel)


def both(notebook, rank, moving):
    """Do both ends' parts side by side; give what each has sent."""
    ends, sent = (notebook, rank), (bytearray(), bytearray())
    moving = dict(enumerate(moving))
    while moving:
        for number in list(moving):
            if next(moving[number], None) is None:
                del moving[number]
            heard = ends[number].heard()
            sent[number].extend(heard)
            ends[1 - number].way.sendall(heard)  # little enough for the socket to hold
    return tuple(map(bytes, sent))


def cut_in_frames(stream):
    """The frames of a stream."""
    frames = []
    while stream:
        end = HEADER.size + HEADER.unpack_from(stream)[3] + TAG_NBYTES
        frames.append(stream[:end])
        stream = stream[end:]
    return frames


@pytest.fixture(scope="module")
def honest(invitation):
    """What both sides send if nobody meddles: by side, frame by frame."""
    with End(invitation, at_rank=False) as notebook, End(invitation, at_rank=True) as rank:
        bound = {}
        parts = talk(notebook.channel, give), talk(rank.channel, lambda channel: take(channel, bound))
        streams = both(notebook, rank, parts)
    assert bound == VALUES
    return dict(zip(("notebook", "rank"), map(cut_in_frames, streams), strict=True))


SIDES = pytest.mark.parametrize("victim", ["rank", "notebook"])


def suffered(invitation, victim, stream, *, part=None, session=SESSION):
    """Have one side read a stream in place of the other's; give what that raised, and what was handed on by then."""
    bound, at_rank = {}, victim == "rank"
    with End(invitation, at_rank=at_rank, session=session) as end:
        doing = part or (lambda channel: take(channel, bound) if at_rank else give(channel))
        try:
            end.do(talk(end.channel, doing), stream)
        except HpcMagicError as error:
            return two_lines(SimpleNamespace(value=error)) and type(error), bound
    return None, bound


def other_side(victim):
    """Whose stream the victim reads."""
    return "notebook" if victim == "rank" else "rank"


def before(frames, position):
    """Of which values all frames, the last word too, lie before this byte of the stream to a rank."""
    ends = list(itertools.accumulate(map(len, frames)))
    commits = [i for i, frame in enumerate(frames) if frame[1] == Kind.COMMIT]
    return {number: VALUES[number] for number, i in zip(TRANSFERS, commits, strict=True) if ends[i] <= position}


@SIDES
def test_honest(honest, invitation, victim):
    """A stream that nobody has touched is taken: what the tests below find is due to what they do to it."""
    came = b"".join(honest[other_side(victim)])
    assert suffered(invitation, victim, came) == (None, VALUES if victim == "rank" else {})


@SIDES
@given(data=st.data())
def test_any_bit_changed(honest, invitation, victim, data):
    """One bit anywhere, in a header, in what is sealed or in a tag, is noticed; nothing of that value is handed on."""
    frames = honest[other_side(victim)]
    stream = bytearray(b"".join(frames))
    position = data.draw(st.integers(0, len(stream) - 1))
    stream[position] ^= 1 << data.draw(st.integers(0, 7))
    wanted = before(frames, position) if victim == "rank" else {}
    assert suffered(invitation, victim, stream) == (Tampered, wanted)


@SIDES
@given(data=st.data())
def test_any_bytes_changed(honest, invitation, victim, data):
    """Nor does anything else in the place of some bytes pass, whatever its length."""
    frames = honest[other_side(victim)]
    stream = b"".join(frames)
    begin = data.draw(st.integers(0, len(stream) - 1))
    end = data.draw(st.integers(begin, len(stream)))
    changed = stream[:begin] + data.draw(st.binary(max_size=60)) + stream[end:]
    same = next((i for i, (a, b) in enumerate(zip(stream, changed, strict=False)) if a != b), None)
    if same is None:  # only longer or shorter than it was
        same = min(len(stream), len(changed))
    error, bound = suffered(invitation, victim, changed)
    assert bound == (before(frames, same) if victim == "rank" else {})
    assert error in ((Tampered, PeerLost) if same < len(stream) else (None,))


@SIDES
@given(data=st.data())
def test_replayed(honest, invitation, victim, data):
    """A frame that comes again is refused, at once or much later."""
    frames = list(honest[other_side(victim)])
    which = data.draw(st.integers(0, len(frames) - 2))
    where = data.draw(st.integers(which + 1, len(frames) - 1))
    frames.insert(where, frames[which])
    wanted = before(honest["notebook"], sum(map(len, frames[:where]))) if victim == "rank" else {}
    assert suffered(invitation, victim, b"".join(frames)) == (Tampered, wanted)


@SIDES
def test_last_frame_replayed(honest, invitation, victim):
    """What comes again when all is over spoils the next transfer, and is no part of it."""
    frames = honest[other_side(victim)]
    bound = {}

    def twice(channel):
        part = take(channel, bound) if victim == "rank" else give(channel)
        yield from part
        yield from channel.receive(Kind(frames[-1][1]), TRANSFERS[-1])
        bound["again"] = True

    assert suffered(invitation, victim, b"".join([*frames, frames[-1]]), part=twice)[0] is Tampered
    assert "again" not in bound


@SIDES
@given(data=st.data())
def test_reordered(honest, invitation, victim, data):
    """Two frames that have changed places are refused, however far apart they were."""
    frames = list(honest[other_side(victim)])
    one, other = sorted(data.draw(st.lists(st.integers(0, len(frames) - 1), min_size=2, max_size=2, unique=True)))
    frames[one], frames[other] = frames[other], frames[one]
    wanted = before(honest["notebook"], sum(map(len, frames[:one]))) if victim == "rank" else {}
    assert suffered(invitation, victim, b"".join(frames)) == (Tampered, wanted)


@SIDES
def test_dropped(honest, invitation, victim):
    """A frame that is left out is missed: by the next one, or as the end of the stream."""
    frames = honest[other_side(victim)]
    for which in range(len(frames)):
        stream = b"".join(frames[:which] + frames[which + 1 :])
        error, bound = suffered(invitation, victim, stream)
        assert error is (PeerLost if which == len(frames) - 1 else Tampered)
        assert bound == (before(frames, sum(map(len, frames[:which]))) if victim == "rank" else {})


@SIDES
def test_cut_off(honest, invitation, victim):
    """A stream that ends early is a lost peer, wherever: between frames, in a header, in a block or in its tag."""
    frames = honest[other_side(victim)]
    stream = b"".join(frames)
    for end in {*range(0, len(stream), 7), *itertools.accumulate(map(len, frames[:-1])), len(stream) - 1}:
        bound = before(frames, end) if victim == "rank" else {}
        assert suffered(invitation, victim, stream[:end]) == (PeerLost, bound)


def relabelled(frame, like):
    """A frame behind the header of another one."""
    return like[: HEADER.size] + frame[HEADER.size :]


def stream_of(invitation, session=SESSION, *, count=None, pieces=PIECES):
    """What a notebook sends that deviates in just this."""
    with End(invitation, at_rank=False, session=session) as notebook:
        other = End(invitation, at_rank=True, session=session)
        with other as rank:
            parts = talk(notebook.channel, lambda c: give(c, pieces, count)), _listening(rank.channel, pieces)
            return cut_in_frames(both(notebook, rank, parts)[0])


def _listening(channel, pieces):
    """A rank that says what is due and does not care for what it hears."""
    yield from channel.send(Kind.HELLO, 0)
    for transfer in pieces:
        yield from channel.send(Kind.READY, transfer)
        yield from channel.send(Kind.DONE, transfer)


def test_of_another_transfer(honest, invitation):
    """A block that belongs to another transfer is not taken for this one's, nor behind this one's header."""
    frames = stream_of(invitation, pieces={99: PIECES[11], 12: PIECES[12]})
    own = honest["notebook"]
    assert suffered(invitation, "rank", b"".join(frames)) == (Tampered, {})
    lying = [relabelled(frame, like) for frame, like in zip(frames, own, strict=True)]
    assert suffered(invitation, "rank", b"".join(lying)) == (Tampered, {})


def test_of_another_count(honest, invitation):
    """A value of which the two sides believe that it has another number of blocks is not taken."""
    frames = stream_of(invitation, count=9)
    assert [frame[: HEADER.size] for frame in frames] == [frame[: HEADER.size] for frame in honest["notebook"]]
    assert suffered(invitation, "rank", b"".join(frames)) == (Tampered, {})


@SIDES
def test_reflected(honest, invitation, victim):
    """What a side has sent itself is not taken for the other side's, though it looks just as that should."""
    own, wanted = honest[victim], honest[other_side(victim)]
    assert own[0][: HEADER.size] == wanted[0][: HEADER.size]  # both greet alike
    assert suffered(invitation, victim, b"".join(own)) == (Tampered, {})


@SIDES
def test_reflected_under_one_key(victim):
    """Not even if both directions had one and the same key: what is sealed is bound to its direction."""
    key = bytes(range(32)).hex()
    alike = Invitation(bytes(16).hex(), key, key)
    with End(alike, at_rank=victim == "rank") as end:
        hello = end.do(end.channel.send(Kind.HELLO, 0))
        with pytest.raises(Tampered):
            end.do(end.channel.receive(Kind.HELLO, 0), hello)


@SIDES
def test_of_another_session(honest, invitation, victim):
    """What was sealed for one session does not open in another, under the same keys neither."""
    stream = b"".join(honest[other_side(victim)])
    assert suffered(invitation, victim, stream, session="another keeper's key") == (Tampered, {})


@SIDES
@pytest.mark.parametrize("keys", ["both", "to_rank", "from_rank"])
def test_of_another_channel(honest, invitation, victim, keys):
    """A recorded stream does not open on a later connection: that has keys of its own."""
    later = Invitation.fresh()
    if keys != "both":
        own = {"to_rank": invitation.to_rank, "from_rank": invitation.from_rank, keys: getattr(later, keys)}
        later = Invitation(invitation.channel, **own)
    stream = b"".join(honest[other_side(victim)])
    reads = "to_rank" if victim == "rank" else "from_rank"
    expected = (Tampered, {}) if keys in ("both", reads) else (None, VALUES if victim == "rank" else {})
    assert suffered(later, victim, stream) == expected


def test_frame_from_another_channel(honest, invitation):
    """One frame of another channel in the place of one's own is refused, with the same header and number."""
    other = stream_of(Invitation.fresh())
    for which in range(len(other)):
        frames = [*honest["notebook"][:which], other[which], *honest["notebook"][which + 1 :]]
        assert suffered(invitation, "rank", b"".join(frames))[0] is Tampered


@SIDES
@pytest.mark.parametrize("version", [0, 2, 255])
def test_of_another_version(invitation, victim, version, monkeypatch):
    """A peer that knows the keys and speaks another version of the protocol is refused: nothing is negotiated."""
    at_rank = victim != "rank"
    with End(invitation, at_rank=at_rank) as peer, monkeypatch.context() as patch:
        patch.setattr(bulk, "VERSION", version)
        hello = peer.do(peer.channel.send(Kind.HELLO, 0))
    assert hello[0] == version
    with End(invitation, at_rank=not at_rank) as end, pytest.raises(Tampered):
        end.do(end.channel.receive(Kind.HELLO, 0), hello)


@pytest.mark.parametrize("claimed", [0xFFFF_FFFF, 1 << 31, FRAME_NBYTES + 1, FRAME_NBYTES, 31, 29, 0])
def test_claimed_length(honest, invitation, claimed):
    """A length that a header claims is not believed: no memory is taken for it, and no byte behind it is read."""
    hello, first = honest["notebook"][:2]
    lying = first[:4] + claimed.to_bytes(4, "big") + first[8 : HEADER.size]
    with End(invitation, at_rank=True) as rank:
        rank.way.sendall(hello + lying + bytes(50_000))
        into = bytearray(30)
        tracemalloc.start()
        rank.do(rank.channel.receive(Kind.HELLO, 0))
        with pytest.raises(Tampered) as error:
            rank.do(rank.channel.receive(Kind.DATA, TRANSFERS[0], 0, len(PIECES[TRANSFERS[0]]), into))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200_000
        assert rank.channel.moved_nbytes == len(hello) + HEADER.size
        assert len(rank.channel._in) <= HEADER.size + 4096 + TAG_NBYTES
        assert not any(into)
    two_lines(error)


def test_room_of_what_failed(invitation):
    """The value of a transfer that failed never comes to be: the error comes where it would be made."""
    array = np.arange(200_000.0)
    parcel, parts = packed(array)
    room, values = Room(parcel), []

    def receive(channel):
        yield from channel.receive_blocks(1, room.blocks(), parcel.frames)
        values.append(room.value())

    with End(invitation, at_rank=False) as notebook, End(invitation, at_rank=True) as rank:
        sent = bytearray(notebook.do(notebook.channel.send_blocks(1, blocks(parts), parcel.frames)))
        assert len(sent) == array.nbytes + parcel.frames * (HEADER.size + TAG_NBYTES)
        sent[-1] ^= 1  # of the last tag
        with pytest.raises(Tampered):
            rank.do(receive(rank.channel), sent)
    assert values == []


# ---- many channels in one thread


def pairs(count, buffer_nbytes=0):
    """Both ends of so many channels, numbered: even ones send, the odd one behind each receives."""
    channels = {}
    for number in range(count):
        ends = socket.socketpair()
        for end in ends if buffer_nbytes else ():
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_nbytes)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_nbytes)
        invitation = Invitation.fresh()
        for at_rank, end in enumerate(ends):
            channels[2 * number + at_rank] = Channel(end, invitation, SESSION, at_rank=bool(at_rank))
    return channels


@pytest.fixture
def opened():
    """Channels that are closed behind the test."""
    opened = []

    def make(*args, **kwargs):
        channels = pairs(*args, **kwargs)
        opened.extend(channels.values())
        return channels

    yield make
    for channel in opened:
        channel.close()


def moving_parts(channels, parcels, rooms):
    """What all ends do to move values, each from an even one to the odd one behind it."""
    parts = {}
    for number, (parcel, sent) in enumerate(parcels):
        room = rooms[number].blocks()
        parts[2 * number] = channels[2 * number].send_blocks(1, blocks(sent), parcel.frames)
        parts[2 * number + 1] = channels[2 * number + 1].receive_blocks(1, room, parcel.frames)
    return parts


def nothing():
    """Do nothing, now and then."""


@pytest.mark.parametrize(
    "sizes", [[], [0], [1], [4096], [4097], [FRAME_NBYTES], [FRAME_NBYTES, 0, 1, FRAME_NBYTES - 1]]
)
def test_blocks_come_back(opened, sizes):
    """Blocks of every size that a frame may have arrive whole, none at all too; memory holds one of them, and then none."""
    sent = [np.random.default_rng(n).bytes(size) for n, size in enumerate(sizes)]
    into = [memoryview(bytearray(size)) for size in sizes]
    channels = opened(1)
    parts = {0: channels[0].send_blocks(1, iter(sent), 3), 1: channels[1].receive_blocks(1, iter(into), 3)}
    assert run_all(channels, parts, nothing) == {}
    assert [bytes(block) for block in into] == sent
    for channel in channels.values():
        assert max(len(channel._out), len(channel._in)) <= HEADER.size + FRAME_NBYTES + TAG_NBYTES
        channel.rest()
        assert len(channel._out) == len(channel._in) == 0


def test_memory_is_bounded(opened):
    """64 MB through sockets that hold 4 KB take a few frames' memory beside the value: TCP's window is the credit."""
    array = np.random.default_rng(0).integers(0, 1 << 60, 8 << 20)
    parcel, parts = packed(array)
    room = Room(parcel)
    channels = opened(1, buffer_nbytes=4096)
    tracemalloc.start()
    assert run_all(channels, moving_parts(channels, [(parcel, parts)], [room]), nothing) == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    np.testing.assert_array_equal(room.value(), array)
    assert channels[0].moved_nbytes == channels[1].moved_nbytes
    assert channels[0].moved_nbytes < array.nbytes * 1.0002


@pytest.mark.parametrize("threads", [1, 3])
def test_many_at_once(opened, threads):
    """Many values of unlike sizes move at once in one thread, and each arrives where it belongs."""
    rng = np.random.default_rng(1)
    arrays = [rng.random(int(size)) for size in rng.integers(0, 100_000, 40)]
    parcels = [packed(array) for array in arrays]
    rooms = [Room(parcel) for parcel, _ in parcels]
    channels = opened(len(arrays))
    assert run_all(channels, moving_parts(channels, parcels, rooms), nothing, threads=threads) == {}
    for array, room in zip(arrays, rooms, strict=True):
        np.testing.assert_array_equal(room.value(), array)


def test_all_have_their_turn(opened):
    """One whose bytes never make it wait leaves the others their turn: no more than so many frames at a stretch."""
    channels = opened(1)
    count = 5 * TURN
    turns = list(channels[0].send_blocks(1, iter([b"x"] * count), count))
    assert set(turns) == {GO_ON}
    assert len(turns) >= count // TURN
    turns = list(channels[1].receive_blocks(1, iter([memoryview(bytearray(1)) for _ in range(count)]), count))
    assert set(turns) == {GO_ON}
    assert len(turns) >= count // TURN


@pytest.mark.parametrize("threads", [1, 3])
def test_tick(opened, threads):
    """The caller hears how it goes while bytes flow, and while nothing comes; what it raises ends all."""
    channels = opened(2)
    heard = []

    def tick():
        heard.append(1)
        if len(heard) == 3:
            raise KeyboardInterrupt

    def endless():
        while True:
            yield GO_ON

    for waits in (channels[1].receive(Kind.READY, 1), endless()):
        heard.clear()
        with pytest.raises(KeyboardInterrupt):
            run_all(channels, {1: waits}, tick, tick_s=0.001, threads=threads)
        assert len(heard) == 3


def test_interrupt_while_threads_start(opened, monkeypatch):
    """Ctrl-C in the moment in which a thread has begun, and nobody has noted it yet, leaves none behind."""
    channels, begun, start = opened(1), [], threading.Thread.start

    def start_and_interrupt(thread):
        start(thread)
        begun.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_all(channels, {1: channels[1].receive(Kind.READY, 1)}, nothing, tick_s=0.001, threads=2)
    (thread,) = begun
    thread.join(5)
    left = thread.is_alive()
    channels[0].close()  # else it would wait for ever, and pytest with it
    assert not left


def test_closed_while_a_child_lives(opened):
    """The other side notices at once, though a process that was forked meanwhile holds the socket as well."""
    channels = opened(1)
    with channels[0].sock.dup():
        channels[0].close()
        assert channels[1].is_cut()


@pytest.mark.parametrize("threads", [1, 3])
def test_failed_rank_is_named(opened, threads):
    """Who was lost or tampered with is told by number, as soon as it is; the others do not wait for their ends."""
    channels = opened(4)
    for number in (0, 4):
        list(channels[number].send(Kind.READY, 1))
    channels[4].sock.sendall(b"no frame".ljust(200))
    channels[6].close()

    def hear(channel):
        yield from channel.receive(Kind.READY, 1)
        yield from channel.receive(Kind.DONE, 1)

    failed = run_all(channels, {number: hear(channels[number]) for number in (1, 3, 5, 7)}, nothing, threads=threads)
    assert {number: type(error) for number, error in failed.items()} == {5: Tampered, 7: PeerLost}
    for error in failed.values():
        two_lines(SimpleNamespace(value=error))


def test_peer_is_lost_while_sending(opened):
    """A side that sends notices that nobody is there any more."""
    channels = opened(1, buffer_nbytes=4096)
    sending = channels[0].send(Kind.DATA, 1, 0, 1, bytes(FRAME_NBYTES))
    next(sending)
    channels[1].close()
    assert [type(error) for error in run_all(channels, {0: sending}, nothing).values()] == [PeerLost]


def test_nobody_waits_at_the_end(monkeypatch):
    """When all are over it is over: nobody looks whether there is something to read where nobody waits for it."""

    class Strict(selectors.DefaultSelector):
        def select(self, timeout=None):
            assert self.get_map() or timeout == 0
            return super().select(timeout)

    monkeypatch.setattr(selectors, "DefaultSelector", Strict)

    def over_after(turns):
        for _ in range(turns):
            yield GO_ON

    for ends in ([], [0], [0, 0, 0], [1], [0, 3, 1]):
        assert run_all({}, {number: over_after(turns) for number, turns in enumerate(ends)}, nothing) == {}
    channels = pairs(2)
    parts = {0: channels[0].send(Kind.READY, 1), 1: channels[1].receive(Kind.READY, 1), 2: over_after(2)}
    assert run_all(channels, parts, nothing) == {}
    for channel in channels.values():
        channel.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_errors_of_others_fly(opened, threads):
    """What is no fault of the wire is not taken for one: a source of blocks that raises, say."""
    channels = opened(2)

    def broken():
        yield b"first"
        raise MemoryError

    waits = channels[2].receive(Kind.READY, 2)
    with pytest.raises(MemoryError):
        run_all(channels, {0: channels[0].send_blocks(1, broken(), 2), 2: waits}, nothing, threads=threads)


def test_one_that_takes_too_long(opened):
    """Who does not answer in time is lost; without a limit there is none."""
    channels = opened(1)
    with pytest.raises(PeerLost) as error:
        run_one(channels[1], channels[1].receive(Kind.READY, 1), 0)
    two_lines(error)
    list(channels[0].send(Kind.READY, 1))
    run_one(channels[1], channels[1].receive(Kind.READY, 1))


def test_run_one_goes_on(opened):
    """One channel in a thread of its own moves as many do: it waits for room to send, and for what comes."""
    channels = opened(1, buffer_nbytes=4096)
    into = bytearray(FRAME_NBYTES)
    other = threading.Thread(target=run_one, args=(channels[1], channels[1].receive(Kind.DATA, 1, 0, 1, into), 30))
    other.start()
    run_one(channels[0], channels[0].send(Kind.DATA, 1, 0, 1, b"x" * FRAME_NBYTES), 30)
    other.join(30)
    assert into == b"x" * FRAME_NBYTES


# ---- from the greeting to the end


def test_is_cut(opened):
    """A channel whose other end is gone is known while nothing moves; one that is merely silent, or has news, lives."""
    channels = opened(2)
    assert not channels[0].is_cut()
    list(channels[1].send(Kind.READY, 1))
    assert not channels[0].is_cut()
    channels[3].close()
    assert channels[2].is_cut()
    channels[0].close()
    assert channels[0].is_cut()


def test_close(opened):
    """Closing twice is closing once; memory that was shared is let go with it, and kept while that is open."""
    channels = opened(1)
    closed = []
    channels[0].shared = SimpleNamespace(close=lambda: closed.append(1))
    channels[0].rest()
    assert closed == []
    channels[0].close()
    channels[0].close()
    assert closed == [1]
    assert channels[0].sock.fileno() == -1


class Rank:
    """A rank's end of a connection that is being made; `answers` does what it does."""

    def __init__(self, monkeypatch, answers):
        self.made = socket.socketpair()
        self.asked = []
        monkeypatch.setattr(bulk, "_dialled", self.connected)
        self.thread = threading.Thread(target=answers, args=(self.made[1],))
        self.thread.start()

    def connected(self, host, port):
        """Instead of a connection over TCP give one end."""
        self.asked.append((host, port))
        return self.made[0]

    def end(self):
        """Wait for it."""
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.made[1].close()


def test_greeting(monkeypatch, invitation):
    """The notebook says which channel it is, then shows its key, in 64 bytes; so does the rank; then frames pass."""
    heads, got = [], bytearray(5)

    def answer(sock):
        heads.append(sock.recv(len(MAGIC) + 16, socket.MSG_WAITALL))
        channel = Channel(sock, invitation, SESSION, at_rank=True)
        run_one(channel, welcome(channel), 30)
        heads.append(channel.moved_nbytes)
        run_one(channel, channel.receive(Kind.DATA, 1, 0, 1, got), 30)

    rank = Rank(monkeypatch, answer)
    channel = connect("n1", 4711, invitation, SESSION)
    run_one(channel, channel.send(Kind.DATA, 1, 0, 1, b"hello"))
    rank.end()
    channel.close()
    assert rank.asked == [("n1", 4711)]
    assert heads == [b"hpcmb\0\0\1" + bytes.fromhex(invitation.channel), 2 * (HEADER.size + TAG_NBYTES)]
    assert HELLO_NBYTES == 64
    assert got == b"hello"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda sock: sock.close(), PeerLost),
        (lambda sock: (sock.recv(64, socket.MSG_WAITALL), sock.close()), PeerLost),
        (lambda sock: sock.sendall(bytes(100)), Tampered),
        (lambda sock: sock.sendall(sock.recv(64, socket.MSG_WAITALL)[-40:]), Tampered),  # his own greeting
        (lambda sock: None, PeerLost),  # silence
    ],
    ids=["gone", "hangs up", "garbage", "an echo", "silence"],
)
def test_greeting_fails(monkeypatch, invitation, answer, error):
    """Who answers otherwise than one who knows the keys is not spoken to any further; nothing stays open."""
    monkeypatch.setattr(bulk, "CONNECT_S", 0.1 if error is PeerLost else 30.0)
    rank = Rank(monkeypatch, answer)
    with pytest.raises(error) as raised:
        connect("n1", 4711, invitation, SESSION)
    two_lines(raised)
    rank.end()
    assert rank.made[0].fileno() == -1


def refused(monkeypatch, invitation, why):
    """The error of a connection that cannot be made."""

    def refuse(*_args, **_kwargs):
        raise why

    monkeypatch.setattr(bulk, "_dialled", refuse)
    with pytest.raises(ChannelError) as error:
        connect("n1", 4711, invitation, SESSION)
    return two_lines(error)


@pytest.mark.parametrize("why", [OSError(errno.EHOSTUNREACH, "No route to host"), TimeoutError("timed out")])
def test_nobody_there(monkeypatch, invitation, why):
    """A port that cannot be reached is said with its address and the reason."""
    error = refused(monkeypatch, invitation, why)
    assert isinstance(error, PeerLost)
    assert "n1:4711" in error.message
    assert (why.strerror or str(why)) in error.message
    assert "firewall" in error.mend


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_no_descriptor(monkeypatch, invitation, number):
    """What this process lacks itself is not put down to the rank, or to a firewall."""
    error = refused(monkeypatch, invitation, OSError(number, os.strerror(number)))
    assert not isinstance(error, PeerLost)
    assert os.strerror(number) in error.message
    assert "ulimit -n" in error.mend


def test_parcel_counts_frames():
    """Both sides know from the parcel how many frames come: of each part so many as it fills or begins."""
    assert Parcel((0, 1, FRAME_NBYTES, FRAME_NBYTES + 1)).frames == 0 + 1 + 1 + 2


def test_waits_for_what_it_needs(opened):
    """A side that has nothing to read says so, rather than to spin."""
    channels = opened(1)
    assert next(channels[1].receive(Kind.READY, 1)) == READ


def test_interrupted_while_connecting(monkeypatch):
    """Ctrl-C while nobody answers leaves no socket open."""
    made = []

    class Interrupted(socket.socket):
        def connect(self, _address):
            made.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(bulk.socket, "socket", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        bulk._dialled("127.0.0.1", 4711)
    assert [sock.fileno() for sock in made] == [-1]
