"""What a cell puts out on a rank: in order, within limits, nothing of it lost, C code's too."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest

from hpcmagic.engine import agent
from hpcmagic.engine.agent import Agent
from hpcmagic.engine.capture import Capture, RankLog, plain
from hpcmagic.wire.history import read_last_words
from hpcmagic.wire.messages import (
    DISPLAY_LIMIT_NBYTES,
    OUTPUT_LIMIT_NBYTES,
    Output,
    Reply,
    from_frames,
    outputs_from,
    sendable,
)

NOTICE = "[… more than 1 MB: the rest is in `%hpc log RANK`]\n"


@pytest.fixture
def path(tmp_path):
    """The file of a rank's log."""
    return tmp_path / "rank-0.log"


@pytest.fixture
def log(path):
    """A rank's log, open as its stderr is."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    log = RankLog(descriptor)
    os.close(descriptor)
    yield log
    os.close(log.descriptor)


def text(outputs, kind="stdout"):
    """What was printed to a stream."""
    return "".join(output.text for output in outputs if output.kind == kind)


def display(nbytes, name="image/png"):
    """A display of a size."""
    return Output("display", data={name: "x" * nbytes})


def c_code(log, what):
    """Write as C code does: past Python, into the rank's log."""
    os.write(log.descriptor, what)


def test_in_order(log):
    """Neighbouring texts of one stream are one; streams and displays keep their places."""
    capture = Capture(log)
    for kind, said in [("stdout", "a"), ("stdout", "b\n"), ("stderr", "e"), ("stdout", "c")]:
        capture.write(kind, said)
    figure = display(1)
    capture.display(figure)
    capture.display(figure)
    capture.write("stdout", "d")
    assert capture.take() == (
        Output("stdout", "ab\n"), Output("stderr", "e"), Output("stdout", "c"), figure, figure, Output("stdout", "d"),
    )  # fmt: skip


def test_pieces_are_counted(log):
    """What is given away ahead counts as a piece, if it is anything; the rest at the end does not."""
    capture = Capture(log)
    assert (capture.take(), capture.streamed) == ((), 0)
    capture.write("stdout", "a")
    assert (text(capture.take()), capture.streamed) == ("a", 1)
    assert (capture.take(), capture.streamed) == ((), 1)
    capture.write("stdout", "b")
    assert (text(capture.take()), capture.streamed) == ("b", 2)
    capture.write("stdout", "c")
    assert (text(capture.take(at_end=True)), capture.streamed) == ("c", 2)


def test_limit(log, path):
    """Up to the limit all is given; what goes beyond is in the log, and that is said once."""
    capture = Capture(log)
    full = "x" * (OUTPUT_LIMIT_NBYTES - 1)
    capture.write("stdout", full)
    capture.write("stdout", "y")
    assert text(capture.take()) == full + "y"
    for said in ("beyond\n", "far beyond\n"):
        capture.write("stdout", said)
    capture.write("stderr", "z")
    assert capture.take() == (Output("stderr", NOTICE),)
    assert capture.take() == ()
    assert path.read_text() == "beyond\nfar beyond\nz"


def test_limit_of_one_text(log, path):
    """A single text beyond the limit goes to the log as a whole."""
    capture = Capture(log)
    capture.write("stdout", "x" * (OUTPUT_LIMIT_NBYTES + 1))
    assert capture.take() == (Output("stderr", NOTICE),)
    assert path.stat().st_size == OUTPUT_LIMIT_NBYTES + 1


def test_limit_in_bytes(log):
    """The limit counts bytes, whatever the alphabet."""
    capture = Capture(log)
    capture.write("stdout", "€" * (OUTPUT_LIMIT_NBYTES // 3))
    assert len(text(capture.take())) == OUTPUT_LIMIT_NBYTES // 3
    capture.write("stdout", "€")
    assert capture.take() == (Output("stderr", NOTICE),)


def test_last_words(log, tmp_path):
    """What was flushed and nobody has taken is noted, with the piece that it would be; younger notes replace older."""
    path = tmp_path / "last-0"
    log.last = os.open(path, os.O_WRONLY | os.O_CREAT)
    capture = Capture(log, "c0ffee")
    try:
        capture.flush()
        assert read_last_words(path) is None
        capture.write("stdout", "long enough to be longer than what follows\n" * 9)
        capture.flush()
        capture.take()
        capture.write("stdout", "a")
        capture.write("stderr", "b")
        capture.display(display(1))
        capture.flush()
        noted = read_last_words(path)
        assert noted.head == {"cell": "c0ffee", "piece": 1}
        assert outputs_from(noted.frames) == (Output("stdout", "a"), Output("stderr", "b"))
        capture.take()
        capture.flush()
        assert read_last_words(path) == noted
    finally:
        os.close(log.last)


def test_full_disk(log, monkeypatch):
    """What can be written nowhere is lost; that is said once, and is no fault of the cell's."""
    capture = Capture(log)

    def write(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log, "write", write)
    for _ in range(3):
        capture.write("stdout", "x" * (OUTPUT_LIMIT_NBYTES + 1))
    assert text(capture.take(), "stderr") == f"{NOTICE}[… and the rest is lost: No space left on device]\n"


def test_c_code(log):
    """What C code and child processes write is output of the cell, once; what was in the log before is not."""
    c_code(log, b"before the cell\n")
    capture = Capture(log)
    c_code(log, "from C: ä\n".encode())
    assert text(capture.take()) == "from C: ä\n"
    assert capture.take() == ()
    c_code(log, b"more\n")
    assert text(capture.take(at_end=True)) == "more\n"


def test_c_code_in_the_middle_of_a_character(log):
    """A character whose bytes C code writes in two goes is one character; half a one at the end is not lost."""
    capture = Capture(log)
    first, second = "ä".encode()[:1], "ä".encode()[1:]
    c_code(log, b"a" + first)
    seen = text(capture.take())
    c_code(log, second + b"z" + first)
    seen += text(capture.take())
    assert seen == "aäz"
    assert text(capture.take(at_end=True)) == "�"


def test_c_code_beyond_the_limit(log, path):
    """C code that writes more than the limit at once gets its beginning shown, and that there is more is said."""
    capture = Capture(log)
    c_code(log, b"c" * (OUTPUT_LIMIT_NBYTES + 7))
    outputs = capture.take()
    assert text(outputs) == "c" * OUTPUT_LIMIT_NBYTES
    assert text(outputs, "stderr") == NOTICE
    capture.write("stdout", "python")
    c_code(log, b"more")
    assert capture.take() == ()
    assert path.read_text() == "c" * (OUTPUT_LIMIT_NBYTES + 7) + "pythonmore"


def test_c_code_when_the_limit_is_reached(log, path):
    """C code's output of before the limit is shown, in spite of a long text behind it; the log has it once."""
    capture = Capture(log)
    c_code(log, b"from C\n")
    capture.write("stdout", "x" * (OUTPUT_LIMIT_NBYTES + 1))
    outputs = capture.take()
    assert text(outputs) == "from C\n"
    assert text(outputs, "stderr") == NOTICE
    assert path.read_text().count("from C") == 1


def test_clear(log):
    """Clearing forgets what has not been given away, C code's too, and clears what was where it is shown."""
    capture = Capture(log)
    capture.write("stdout", "given away")
    assert text(capture.take()) == "given away"
    capture.write("stdout", "forgotten")
    capture.display(display(1))
    c_code(log, b"forgotten as well")
    capture.clear(wait=True)
    capture.write("stdout", "new")
    assert capture.take() == (Output("clear", "wait"), Output("stdout", "new"))
    capture.clear(wait=False)
    capture.clear(wait=False)
    assert capture.take() == (Output("clear", ""),)


def test_clear_begins_anew(log):
    """A cell that redraws itself goes on for ever: what was cleared does not count towards the limit."""
    capture = Capture(log, "c")
    for _ in range(5):
        capture.clear(wait=True)
        capture.write("stdout", "x" * (OUTPUT_LIMIT_NBYTES - 1))
    outputs = capture.take()
    assert [output.kind for output in outputs] == ["clear", "stdout"]
    assert len(text(outputs)) == OUTPUT_LIMIT_NBYTES - 1


def test_display_limit(log):
    """Displays up to the limit are shown; that the rest is dropped is said once. Text goes on."""
    capture = Capture(log)
    capture.display(display(DISPLAY_LIMIT_NBYTES))
    first = capture.take()
    assert [output.kind for output in first] == ["display"]
    for _ in range(3):
        capture.display(display(1))
    capture.write("stdout", "text")
    rest = capture.take()
    assert [output.kind for output in rest] == ["stderr", "stdout"]
    assert rest[0].text.count("50 MB") == 1


def test_display_that_is_no_text(log):
    """A display's data that is neither text nor bytes has a size too: many small ones reach the limit."""
    capture = Capture(log)
    capture.display_nbytes = DISPLAY_LIMIT_NBYTES - 150
    capture.display(Output("display", data={"application/json": {"a": 1}}))
    capture.display(Output("display", data={"application/json": {"a": 1}}))
    assert [output.kind for output in capture.take()] == ["display", "stderr"]


def test_text_that_could_not_travel(log):
    """A file's name that is no UTF-8 is shown escaped; other characters stay."""
    capture = Capture(log)
    capture.write("stdout", "\udcff ä 水")
    assert text(capture.take()) == "\\udcff ä 水"


# ---- the rank's log


def test_log_writes_at_its_end(log, path):
    """Text is appended behind what others have written, whatever characters are in it; its length is counted."""
    assert log.write("ä\udcff\n") == 3
    with path.open("a") as other:
        other.write("another's\n")
    log.write("z")
    assert path.read_text() == "ä\\udcff\nanother's\nz"
    assert log.size() == path.stat().st_size
    assert log.read_at(2, 6) == b"\\udcff"


def test_log_writes_all(log, path, monkeypatch):
    """A system that takes a few bytes at once gets all of them."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))
    log.write("0123456789")
    monkeypatch.undo()
    assert path.read_text() == "0123456789"


@pytest.mark.parametrize("descriptor", [1, 2])
def test_closed_by_a_cell(log, path, descriptor):
    """A cell that has closed 1 or 2 finds it open again, at the rank's log; one that is open is left alone."""
    kept = os.dup(descriptor)
    try:
        log.put_back()
        assert os.path.sameopenfile(descriptor, kept)
        os.close(descriptor)
        log.put_back()
        assert os.path.samestat(os.fstat(descriptor), path.stat())
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


class Own(str):
    """A text of the cell's own class, which only the rank has."""

    __slots__ = ()

    def __str__(self):
        return "changed"


@pytest.mark.parametrize(
    ("shown", "plainly"),
    [
        ({"a": Own("x"), Own("b"): [1, 2.5, True, None, b"x"]}, {"a": "x", "changed": [1, 2.5, True, None, b"x"]}),
        ({"a": (1, {"b": Own("x")})}, {"a": [1, {"b": "x"}]}),
        ({"a": print, "b": {1: np.float64(2)}}, {"a": repr(print), "b": {"1": 2.0}}),
    ],
)
def test_plain(shown, plainly):
    """Of what is displayed only what loads anywhere leaves the rank; of all else the repr."""
    given = plain(shown)
    assert given == plainly
    assert kinds(given) <= {dict, list, str, int, float, bool, bytes, type(None)}


def kinds(value):
    """The types of a value and all in it."""
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return {type(value)}.union(*map(kinds, inside))


def test_always_sendable():
    """A reply that cannot be pickled becomes one that says so, with what was printed."""
    printed = Output("stdout", "printed\n")
    shown = Output("display", "", {"text/plain": lambda: 1})
    reply, frames = sendable(Reply(2, (printed, shown), streamed=3))
    assert (reply.rank, reply.outputs, reply.streamed) == (2, (printed,), 3)
    assert "cannot be sent" in reply.raised.text
    assert from_frames(frames) == reply


def test_agent_goes_on(monkeypatch):
    """Output that cannot be sent ahead does not end the watch over the keeper."""
    looked = []

    class Over(BaseException):
        """Ends the thread's work."""

    def look():
        looked.append(True)
        raise Over

    one = Agent(None, SimpleNamespace(launcher="slurm"))
    one.stream = lambda: 1 / 0
    one.require_keeper = look
    monkeypatch.setattr(agent, "sleep", lambda _: None)
    monkeypatch.setattr(agent, "LOOK_S", 0.0)
    with pytest.raises(Over):
        one.run()
    assert looked
