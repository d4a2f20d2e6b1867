"""Frames are sealed as documented, each under a nonce of its own; keys wear out, are never shared, and never shown."""

import hashlib
import itertools
import socket

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from two_lines import two_lines

from hpcmagic.errors import ChannelError, Tampered
from hpcmagic.wire import bulk, crypto
from hpcmagic.wire.bulk import FROM_RANK, HEADER, TO_ALL, TO_RANK, Channel, Invitation, Kind, bound_to
from hpcmagic.wire.crypto import BLOCK_NBYTES, KEY_NBYTES, TAG_NBYTES, Opener, Sealer, make_frame_key
from hpcmagic.wire.messages import Link, Spread, Take
from hpcmagic.wire.moving import run_all

SESSION = "a keeper's public key, in Z85"
KEY = bytes(range(KEY_NBYTES))
BOUND = bound_to(SESSION, TO_RANK)
WORDS = st.integers(0, (1 << 64) - 1)
FRAMES = st.lists(
    st.tuples(st.sampled_from(Kind), WORDS, WORDS, WORDS, st.binary(max_size=100)), min_size=1, max_size=5
)


def sealed_elsewhere(key, nonce, direction, frame):
    """A frame, header and all, as docs/security.md says: written down without a line of hpcmagic's."""
    kind, transfer, number, count, data = frame
    header = bytes([1, kind, 0, 0]) + len(data).to_bytes(4, "big")
    header += transfer.to_bytes(8, "big") + number.to_bytes(8, "big")
    bound = b"hpcmagic bulk 1" + b"\0" + SESSION.encode() + b"\0" + direction + b"\0" + header
    return header + AESGCM(key).encrypt(nonce.to_bytes(12, "big"), data, bound + count.to_bytes(8, "big"))


def ends(invitation):
    """Both ends of a channel: the notebook's, then the rank's."""
    ours, theirs = socket.socketpair()
    return Channel(ours, invitation, SESSION, at_rank=False), Channel(theirs, invitation, SESSION, at_rank=True)


def is_sealed(sealer, nbytes, header=bytes(HEADER.size)):
    """Seal so many bytes; give whether that was refused, and what became of the room."""
    room = bytearray(nbytes + TAG_NBYTES)
    try:
        sealer.seal_into(bytes(nbytes), header, memoryview(room))
    except ChannelError:
        assert not any(room)
        return False
    return any(room)


@pytest.mark.parametrize(("at_rank", "direction"), [(False, b"to rank"), (True, b"from rank")])
@given(frames=FRAMES)
def test_sealed_as_documented(at_rank, direction, frames):
    """What goes over the wire is the documented format, byte by byte, under a nonce that counts frames from 0."""
    invitation = Invitation.fresh()
    notebook, rank = ends(invitation)
    sender, listener = (rank, notebook) if at_rank else (notebook, rank)
    key = bytes.fromhex(invitation.from_rank if at_rank else invitation.to_rank)
    for nonce, frame in enumerate(frames):
        for _ in sender.send(*frame):
            raise AssertionError("a small frame waits for nothing")
        expected = sealed_elsewhere(key, nonce, direction, frame)
        assert listener.sock.recv(len(expected) + 1) == expected
    notebook.close()
    rank.close()


@pytest.mark.parametrize(("at_rank", "direction"), [(False, b"from rank"), (True, b"to rank")])
@given(frames=FRAMES)
def test_opened_as_documented(at_rank, direction, frames):
    """What a peer of another make has sealed by the document is opened."""
    invitation = Invitation.fresh()
    notebook, rank = ends(invitation)
    receiver, sender = (rank, notebook) if at_rank else (notebook, rank)
    key = bytes.fromhex(invitation.to_rank if at_rank else invitation.from_rank)
    for nonce, (kind, transfer, number, count, data) in enumerate(frames):
        sender.sock.sendall(sealed_elsewhere(key, nonce, direction, (kind, transfer, number, count, data)))
        into = bytearray(len(data))
        for _ in receiver.receive(kind, transfer, number, count, into):
            raise AssertionError("all is there")
        assert into == data
    notebook.close()
    rank.close()


def test_to_all_as_documented():
    """What is sealed once for all ranks is bound to that direction, and counted from 0 beside the channel's own."""
    invitation, key = Invitation.fresh(), make_frame_key()
    notebook, rank = ends(invitation)
    sealer = Sealer(key, bound_to(SESSION, TO_ALL))
    own = bytes.fromhex(invitation.to_rank)
    frames = [(Kind.DATA, 7, number, 2, b"block") for number in range(2)]
    wanted = [
        sealed_elsewhere(own, 0, b"to rank", (Kind.READY, 7, 0, 0, b"")),
        *(sealed_elsewhere(key, nonce, b"to all", frame) for nonce, frame in enumerate(frames)),
        sealed_elsewhere(own, 1, b"to rank", (Kind.COMMIT, 7, 0, 0, b"")),
    ]
    for moving in (
        notebook.send(Kind.READY, 7),
        notebook.send_blocks(7, iter([b"block"] * 2), 2, sealer),
        notebook.send(Kind.COMMIT, 7),
    ):
        list(moving)
    assert rank.sock.recv(10_000) == b"".join(wanted)
    notebook.close()
    rank.close()


class Recorded:
    """AES-GCM that writes down under which key and nonce it seals and opens."""

    log: list

    def __init__(self, key):
        self.key = bytes(key)
        self.cipher = AESGCM(key)

    def encrypt_into(self, nonce, *rest):
        """Seal."""
        self.log.append(("sealed", self.key, bytes(nonce)))
        return self.cipher.encrypt_into(nonce, *rest)

    def decrypt_into(self, nonce, *rest):
        """Open."""
        self.log.append(("opened", self.key, bytes(nonce)))
        return self.cipher.decrypt_into(nonce, *rest)


def test_no_nonce_twice(monkeypatch):
    """Over all that passes on several channels no key ever seals two frames under one nonce: they count from 0."""
    log = []
    monkeypatch.setattr(crypto, "AESGCM", type("Logged", (Recorded,), {"log": log}))
    channels = list(itertools.chain.from_iterable(ends(Invitation.fresh()) for _ in range(3)))
    blocks = [bytes([number]) * 50 for number in range(40)]
    for transfer in range(3):

        def give(channel, transfer=transfer):
            yield from channel.receive(Kind.READY, transfer)
            yield from channel.send_blocks(transfer, iter(blocks), len(blocks))

        def take(channel, transfer=transfer):
            yield from channel.send(Kind.READY, transfer)
            yield from channel.receive_blocks(
                transfer, iter([memoryview(bytearray(50)) for _ in blocks]), len(blocks)
            )

        moving = {number: (take if number % 2 else give)(channel) for number, channel in enumerate(channels)}
        assert run_all(dict(enumerate(channels)), moving, lambda: None) == {}
    for channel in channels:
        channel.close()
    used = [(key, nonce) for what, key, nonce in log if what == "sealed"]
    assert len(set(used)) == len(used)
    by_key = {key: [int.from_bytes(nonce, "big") for k, nonce in used if k == key] for key, _ in used}
    assert sorted(map(len, by_key.values())) == [3] * 3 + [120] * 3
    assert all(counted == list(range(len(counted))) for counted in by_key.values())
    assert {len(nonce) for _, nonce in used} == {12}


def test_no_nonce_again_after_a_fault():
    """A nonce whose sealing failed is not used for the next frame; what did not open does not open later either."""
    sealer, room = Sealer(KEY, BOUND), memoryview(bytearray(20))
    with pytest.raises(ValueError, match="buffer"):
        sealer.seal_into(b"data", b"", room[:3])
    sealer.seal_into(b"data", b"", room)
    assert bytes(room) == AESGCM(KEY).encrypt((1).to_bytes(12, "big"), b"data", BOUND)
    opener, sealed = Opener(KEY, BOUND), AESGCM(KEY).encrypt(bytes(12), b"data", BOUND)
    with pytest.raises(Tampered):
        opener.open_into(memoryview(bytes(20)), b"", memoryview(bytearray(4)))
    with pytest.raises(Tampered):
        opener.open_into(memoryview(sealed), b"", memoryview(bytearray(4)))


@given(st.data(), st.binary(max_size=40), st.binary(max_size=40))
def test_any_bit(data, text, header):
    """A frame of which one bit is another does not open: of what is sealed, its tag, its header, or what it is bound to."""
    room = bytearray(len(text) + TAG_NBYTES)
    Sealer(KEY, BOUND).seal_into(text, header, memoryview(room))
    parts = [bytearray(room), bytearray(header), bytearray(BOUND), bytearray(KEY)]
    part = data.draw(st.sampled_from([part for part in parts if part]))
    part[data.draw(st.integers(0, len(part) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    sealed, header, bound, key = map(bytes, parts)
    with pytest.raises(Tampered) as error:
        Opener(key, bound).open_into(memoryview(sealed), header, memoryview(bytearray(len(text))))
    two_lines(error)


@pytest.mark.parametrize("direction", [FROM_RANK, TO_ALL])
def test_directions(direction):
    """A frame of one direction does not open as one of another, not even under the same key."""
    room = bytearray(4 + TAG_NBYTES)
    Sealer(KEY, bound_to(SESSION, direction)).seal_into(b"data", b"", memoryview(room))
    with pytest.raises(Tampered):
        Opener(KEY, BOUND).open_into(memoryview(room), b"", memoryview(bytearray(4)))


def test_bound_to_tells_apart():
    """What frames are bound to begins nowhere like that of another session or direction, whatever a session is called."""
    told = [bound_to(session, way) for session in ("a", "ab", "a b") for way in (TO_RANK, FROM_RANK, TO_ALL)]
    assert not [(a, b) for a, b in itertools.permutations(told, 2) if b.startswith(a)]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=60))
def test_key_limit(sizes):
    """A key that has sealed all it may seals nothing more, a smaller frame neither; it never does more than it may."""
    limit = 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crypto, "KEY_LIMIT_BLOCKS", limit)
        sealer, blocks, over = Sealer(KEY, BOUND), 0, False
        for nbytes in sizes:
            left = sealer.left_nbytes()
            done = is_sealed(sealer, nbytes)
            assert not (over and done)
            assert done or left <= nbytes + 2 * BLOCK_NBYTES
            assert sealer.left_nbytes() < left or not left
            over = not done
            blocks += done * (1 + -(-nbytes // BLOCK_NBYTES))  # the block of the tag is one of them
            assert blocks <= limit
            if over:
                assert sealer.left_nbytes() == 0


def test_worn_key_says_so(monkeypatch):
    """Who would seal beyond the limit is told in two lines; so is who would open more than that."""
    monkeypatch.setattr(crypto, "KEY_LIMIT_BLOCKS", 3)
    for worn in (Sealer(KEY, BOUND), Opener(KEY, BOUND)):
        use = worn.seal_into if isinstance(worn, Sealer) else worn.open_into
        with pytest.raises(ChannelError) as error:
            use(memoryview(bytes(48)), b"", memoryview(bytearray(64 if isinstance(worn, Sealer) else 32)))
        two_lines(error)
        assert not isinstance(error.value, Tampered)


def test_limit_holds_for_a_connection(monkeypatch):
    """A connection of worn keys sends nothing more: no byte of a frame that would go beyond the limit leaves."""
    monkeypatch.setattr(crypto, "KEY_LIMIT_BLOCKS", 20)
    notebook, rank = ends(Invitation.fresh())
    blocks = [bytes(100)] * 5
    with pytest.raises(ChannelError):
        list(notebook.send_blocks(1, iter(blocks), len(blocks)))
    frame = HEADER.size + 100 + TAG_NBYTES
    assert len(rank.sock.recv(10_000)) == 2 * frame
    notebook.close()
    rank.close()


def test_limit():
    """The limit is the documented one: a TiB a key."""
    assert crypto.KEY_LIMIT_BLOCKS * BLOCK_NBYTES == 1 << 40


def test_keys_are_fresh(monkeypatch):
    """No two connections share a key or a name, nor do two directions; all come from the system's generator."""
    drawn = []
    token = crypto.secrets.token_bytes
    monkeypatch.setattr(crypto.secrets, "token_bytes", lambda n: drawn.append(token(n)) or drawn[-1])
    invitations = [Invitation.fresh() for _ in range(100)]
    keys = [key for invitation in invitations for key in (invitation.to_rank, invitation.from_rank)]
    names = [invitation.channel for invitation in invitations]
    assert len(set(keys)) == 200
    assert len(set(names)) == 100
    assert {len(bytes.fromhex(key)) for key in keys} == {KEY_NBYTES}
    assert {len(bytes.fromhex(name)) for name in names} == {bulk.CHANNEL_NBYTES}
    assert set(keys) <= {secret.hex() for secret in drawn}


def test_name_tells_nothing_of_the_keys():
    """A channel's name, which goes over the wire in clear, is no part of its keys."""
    for _ in range(20):
        invitation = Invitation.fresh()
        assert invitation.channel not in invitation.to_rank + invitation.from_rank


def test_keys_are_not_shown():
    """Nothing that holds a key shows it: neither as such nor as a part of a message, in a log or a traceback."""
    invitation = Invitation.fresh("hpcmagic-0-abc")
    key = make_frame_key()
    link = Link("n2", 4711, invitation.channel, invitation.to_rank, invitation.from_rank)
    spread = Spread(key.hex(), "", link)
    notebook, rank = ends(invitation)
    sealer, opener = Sealer(key, BOUND), Opener(key, BOUND)
    shown = [
        text
        for held in (invitation, link, spread, Take("c", 1, {}, {}, spread), sealer, opener, notebook, rank)
        for text in (repr(held), str(held), f"{held}", repr([held]))
    ]
    secrets = [key, *map(bytes.fromhex, (invitation.to_rank, invitation.from_rank))]
    for text in shown:
        assert not [secret for secret in secrets if secret.hex() in text.lower() or repr(secret)[2:-1] in text]
    assert invitation.channel in repr(invitation)
    notebook.close()
    rank.close()


def test_sealed_is_not_plain():
    """Nothing of what is sent can be read off the wire, and two equal blocks look like nothing of the kind."""
    notebook, rank = ends(Invitation.fresh())
    text = hashlib.sha256(b"plain").digest() * 8
    list(notebook.send_blocks(1, iter([text, text]), 2))
    came = rank.sock.recv(10_000)
    assert not any(text[i : i + 8] in came for i in range(len(text) - 8))
    bodies = [came[HEADER.size : HEADER.size + len(text)], came[-len(text) - TAG_NBYTES : -TAG_NBYTES]]
    assert bodies[0] != bodies[1]
    assert len(came) == 2 * (HEADER.size + len(text) + TAG_NBYTES)
    notebook.close()
    rank.close()
