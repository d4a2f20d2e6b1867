"""What passes between notebook and ranks: it arrives as it was sent, and large values are copied once at most."""

import pickle
from dataclasses import FrozenInstanceError, fields, is_dataclass

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmagic.notebook.pickling import pickle_for_ranks
from hpcmagic.wire import messages
from hpcmagic.wire.messages import (
    Frame,
    Offer,
    Offered,
    Output,
    Parcel,
    Pickled,
    Push,
    Raised,
    Reply,
    RunCell,
    from_frames,
    outputs_from,
    reply_from,
    to_frames,
)

RAISED = Raised("ValueError", "boom", (Frame("3, line 2", "f", "1/0"),), "Traceback …")
MESSAGES = [
    RunCell("print('Grüße')\n", "cell 3", 2),
    Push({}),
    Push({"a": pickle_for_ranks("a", [1, 2]), "b": pickle_for_ranks("b", b"x" * 10)}),
    Offer(7, ("a", "b")),
    Reply(3),
    Reply(
        0,
        (Output("stdout", "hi\n"), Output("display", data={"image/png": b"\x89"}, metadata={"w": 1})),
        elapsed_s=1.5,
    ),
    Reply(
        1,
        has_value=True,
        value=pickle_for_ranks("v", 7),
        offered={"x": Offered(Parcel((3,)), "", "None", None, pickle_for_ranks("x", None))},
    ),
    Reply(2, has_value=True, described="numpy.ndarray, shape (9,)", raised=RAISED),
]


def address(buffer):
    """Where a buffer's bytes lie in memory."""
    return np.frombuffer(buffer, dtype=np.uint8).ctypes.data


def travelled(message):
    """Give a message as the other side gets it: every frame as plain bytes of its own."""
    return from_frames([bytes(frame) for frame in to_frames(message)])


def plain(value):
    """Give a message with the bytes of its values, to compare."""
    if isinstance(value, Pickled):
        return Pickled(bytes(value.body), tuple(bytes(b) for b in value.buffers))
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if is_dataclass(value):
        return type(value), {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return value


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_come_back(message):
    """Every message arrives as the same, whatever it holds."""
    assert plain(travelled(message)) == plain(message)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_are_frozen(message):
    """Nobody changes a message on its way."""
    with pytest.raises((FrozenInstanceError, AttributeError)):
        setattr(message, fields(message)[0].name, None)


@given(st.binary(max_size=50), st.lists(st.binary(max_size=50), max_size=4))
def test_buffers_come_back(body, buffers):
    """A value's body and buffers arrive in their order, empty ones too."""
    again = travelled(Push({"x": Pickled(body, tuple(bytearray(b) for b in buffers))})).values["x"]
    assert bytes(again.body) == body
    assert [bytes(b) for b in again.buffers] == buffers


def test_one_frame_a_part():
    """The values' parts travel beside the message: none of them is inside of its pickle."""
    marks = [b"body-of-the-value", b"first-buffer", b"second-buffer"]
    frames = to_frames(Push({"x": Pickled(marks[0], (bytearray(marks[1]), bytearray(marks[2])))}))
    assert [bytes(frame) for frame in frames[1:]] == marks
    assert not any(mark in frames[0] for mark in marks)


def test_nothing_copied_on_sending():
    """The frames of an array are the array's own memory: 256 MB are not held twice."""
    array = np.arange(100_000.0)
    value = pickle_for_ranks("array", array)
    frames = to_frames(Push({"array": value}))
    assert address(array) in [address(frame) for frame in frames[1:]]
    assert sum(memoryview(frame).nbytes for frame in frames) < array.nbytes + 2000


def test_nothing_copied_on_receiving():
    """The message that arrives looks at the frames that arrived."""
    frames = [bytearray(frame) for frame in to_frames(Push({"x": Pickled(b"body", (bytearray(100),))}))]
    value = from_frames(frames).values["x"]
    assert [address(b) for b in (value.body, *value.buffers)] == [address(frame) for frame in frames[1:]]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4), (2, 3, 4)])
def test_arrays_come_back(shape, order):
    """An array arrives with its shape, type, order and numbers, and can be written to."""
    array = np.asarray(np.random.default_rng(0).random(shape), order=order)
    again = travelled(Push({"a": pickle_for_ranks("a", array)})).values["a"].load()
    np.testing.assert_array_equal(again, array)
    assert again.dtype == array.dtype
    assert again.flags.writeable
    assert again.flags.f_contiguous == array.flags.f_contiguous
    again[...] = 1


def test_views_come_back():
    """A view with gaps, or with fewer numbers than it shows, arrives whole, and can be written to."""
    for array in (np.arange(20)[::2], np.arange(20)[::-1], np.broadcast_to(np.arange(3), (4, 3))):
        again = travelled(Push({"a": pickle_for_ranks("a", array)})).values["a"].load()
        np.testing.assert_array_equal(again, array)
        again[...] = 0


def test_read_only_arrays_come_back():
    """An array that is read-only here arrives whole; a copy of it can be written to, as here."""
    array = np.frombuffer(b"12345678", dtype=np.int32)
    again = travelled(Push({"a": pickle_for_ranks("a", array)})).values["a"].load()
    np.testing.assert_array_equal(again, array)
    again.copy()[...] = 0


def test_loaded_twice():
    """Each loading gives memory of its own: what one rank's value does not share, two names do not either."""
    value = travelled(Push({"a": pickle_for_ranks("a", np.zeros(10))})).values["a"]
    first, second = value.load(), value.load()
    first[0] = 1
    assert second[0] == 0


def test_what_is_shared_stays_shared():
    """Two names for one array inside a value are one array after it."""
    array = np.zeros(1000)
    again = travelled(Push({"a": pickle_for_ranks("a", {"x": array, "y": array})})).values["a"].load()
    again["x"][0] = 1
    assert again["y"][0] == 1


def test_bytearrays_come_back():
    """Buffers need no numpy: a bytearray handed over out of band arrives as one."""

    class Frames(list):
        def __reduce_ex__(self, protocol):
            return Frames._made, tuple(pickle.PickleBuffer(part) for part in self)

        @staticmethod
        def _made(*parts):
            return [bytes(part) for part in parts]

    value = pickle_for_ranks("frames", Frames([bytearray(b"one"), b"two", memoryview(b"three")]))
    assert len(value.buffers) == 3
    assert travelled(Push({"frames": value})).values["frames"].load() == [b"one", b"two", b"three"]


def test_nbytes():
    """A value's size is that of all its parts, in bytes and not in items."""
    assert Pickled(b"12345").nbytes == 5
    assert Pickled(b"12", (bytearray(3), memoryview(np.zeros(4)))).nbytes == 2 + 3 + 32
    array = np.zeros((100, 100))
    assert array.nbytes < pickle_for_ranks("a", array).nbytes < array.nbytes + 1000


def test_one_broken_value_spoils_no_message():
    """A value that cannot be loaded is found when it is loaded; the message around it, and its neighbours, arrive."""
    broken = Pickled(b"\x80\x05cno_such_module\nThing\n.")
    values = travelled(Push({"bad": broken, "good": pickle_for_ranks("good", 1)})).values
    assert values["good"].load() == 1
    with pytest.raises(pickle.UnpicklingError, match=r"ModuleNotFoundError: .*no_such_module"):
        values["bad"].load()


def test_functions_travel():
    """A function of the notebook travels by value, with what it closes over."""
    factor = 3
    value = travelled(Push({"f": pickle_for_ranks("f", lambda x: factor * x)})).values["f"]
    assert value.load()(2) == 6


def test_any_pickler_may_carry_a_value():
    """A value survives where somebody pickles the message without leaving its parts out."""
    value = Pickled(b"body", (bytearray(b"buffer"),))
    for dumps in (pickle.dumps, cloudpickle.dumps):
        again = pickle.loads(dumps(Push({"x": value}), protocol=5))
        assert plain(again) == plain(Push({"x": value}))


def test_message_types_differ():
    """Requests, replies and interrupts are told apart by their type in the envelope."""
    assert len({messages.REQUEST, messages.REPLY, messages.INTERRUPT}) == 3


def test_what_cannot_be_loaded():
    """A message that holds what only the rank has becomes one that says so, and nothing is raised in the wire's thread."""
    gone = type("Gone", (), {"__module__": "nowhere", "__reduce__": lambda _: (no_such, ())})
    frames = to_frames(gone())
    assert reply_from(3, frames).rank == 3
    assert "cannot be loaded here (ValueError: only there)" in reply_from(3, frames).raised.text
    (said,) = outputs_from(frames)
    assert (said.kind, "cannot be loaded here: ValueError: only there" in said.text) == ("stderr", True)
    assert "cannot be understood here" in reply_from(3, to_frames(7)).raised.text
    assert reply_from(3, to_frames(Reply(3))) == Reply(3)


def no_such():
    """Cannot be made here."""
    raise ValueError("only there")
