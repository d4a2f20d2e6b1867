"""Long frames are cut on their way and come back whole, whatever is in them."""

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from hpcmagic.wire import envelope
from hpcmagic.wire.crypto import FRAME_LIMIT_NBYTES
from hpcmagic.wire.envelope import _MARK, PIECE_NBYTES, Envelope, RelayEnvelope, joined, pieces, whole

CURVE_NBYTES = 33  # what a MESSAGE command adds: its name, a nonce, the box's seal, flags
SIZES = st.sampled_from([0, 1, PIECE_NBYTES - 1, PIECE_NBYTES, PIECE_NBYTES + 1, 3 * PIECE_NBYTES, 100_000])
PARTS = st.one_of(
    SIZES.map(lambda n: bytes(range(256)) * (n // 256) + b"x" * (n % 256)), st.binary(), st.just(_MARK + bytes(8))
)
KEY = b"a key"


class Wire:
    """Takes what is sent, as ZeroMQ would deliver it."""

    def send_multipart(self, frames, **_):
        """Keep copies."""
        self.frames = [bytes(frame) for frame in frames]
        assert all(len(frame) + CURVE_NBYTES <= FRAME_LIMIT_NBYTES for frame in self.frames)


def sent(sender, *args, **kwargs):
    """The frames of a message behind its delimiter."""
    wire = Wire()
    sender.send(wire, *args, **kwargs)
    return sender.feed_identities(wire.frames)[1]


@pytest.fixture(autouse=True)
def no_timers(monkeypatch):
    """Give no memory back behind a test's end."""
    monkeypatch.setattr(envelope, "_give_memory_back_soon", lambda _: None)


@given(st.lists(PARTS, max_size=5))
def test_parts_come_back(parts):
    """Any parts one behind the other come back as they were, those that look like a mark too."""
    cut = [bytes(piece) for part in parts for piece in pieces(part)]
    assert all(len(piece) <= PIECE_NBYTES for piece in cut)
    rest = iter(cut)
    assert [bytes(joined(frame, rest)) for frame in rest] == parts


@given(st.lists(PARTS, max_size=4), st.integers(0, 100_000), st.booleans())
def test_messages_come_back(buffers, length, as_frames):
    """Content, metadata and buffers of any size come back, and the signature holds."""
    content, metadata = {"code": "ä" * length}, {"after": ["id"] * (length // 3)}
    frames = sent(Envelope(key=KEY), "execute_request", content, metadata=metadata, buffers=buffers)
    received = [zmq.Frame(frame) for frame in frames] if as_frames else frames
    message = Envelope(key=KEY).deserialize(received, copy=not as_frames)
    assert (message["content"], message["metadata"]) == (content, metadata)
    assert [bytes(buffer) for buffer in message["buffers"]] == buffers


def test_short_messages_are_stock():
    """A message without long parts is ipyparallel's own, frame by frame."""
    stock, ours = envelope.Session(key=KEY), Envelope(key=KEY)
    message = stock.msg("execute_request", {"code": "1"})
    assert sent(ours, message, buffers=[b"b"]) == sent(stock, message, buffers=[b"b"])


def test_relays_pass_buffers_on():
    """The keeper reads content and metadata, and what it passes on is joined at the end."""
    big, long = b"b" * 100_000, "l" * 100_000
    frames = sent(Envelope(key=KEY), "apply_request", {"c": long}, metadata={"m": long}, buffers=[big, b"s"])
    relay = RelayEnvelope(key=KEY)
    message = relay.deserialize(frames, content=False)
    assert message["metadata"] == {"m": long}
    assert max(len(buffer) for buffer in message["buffers"]) <= PIECE_NBYTES
    passed = relay.feed_identities([*relay.serialize(message), *message["buffers"], *message["buffers"]])[1]
    final = Envelope(key=KEY).deserialize(passed)
    assert final["content"] == {"c": long}
    assert [bytes(buffer) for buffer in final["buffers"]] == [big, b"s", big, b"s"]


@given(st.lists(PARTS, max_size=5))
def test_whole(buffers):
    """The buffers of a message that was passed on unread are the sender's, whatever is in them, cut or not."""
    frames = sent(Envelope(key=KEY), "hpcmagic_reply", {}, buffers=buffers)
    read = RelayEnvelope(key=KEY).deserialize(frames, content=False)["buffers"]
    assert [bytes(buffer) for buffer in whole(read)] == buffers


@pytest.mark.parametrize("lost", [slice(-1), slice(0, 0), slice(1, None)], ids=["the last", "all", "the first"])
def test_whole_lacks_a_piece(lost):
    """Of a buffer that lacks a piece nothing is given."""
    mark, *cut = pieces(b"b" * (2 * PIECE_NBYTES + 1))
    with pytest.raises(ValueError, match="bytes are missing"):
        whole([b"first", mark, *cut[lost]])


def test_missing_pieces():
    """A message that lost pieces, or was signed with another key, is refused."""
    frames = sent(Envelope(key=KEY), "apply_request", {}, buffers=[b"b" * 100_000])
    with pytest.raises(ValueError, match="bytes are missing"):
        Envelope(key=KEY).deserialize(frames[:-1])
    with pytest.raises(ValueError, match="Invalid Signature"):
        Envelope(key=b"another").deserialize(frames)


def test_pieces_are_not_copied():
    """Cutting a value takes no memory of its size."""
    value = bytearray(1_000_000)
    cut = list(pieces(value))
    value[-1] = 7
    assert cut[-1][-1] == 7
