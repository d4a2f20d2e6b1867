"""Output shown while a cell runs: shared lines once, nothing lost, doubled or out of order, however it comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmagic.notebook import output
from hpcmagic.notebook.streaming import ALONE_S, HOLD_S, PARTIAL_SHOWN, Streamed
from hpcmagic.testing import FakeClock
from hpcmagic.wire.messages import Output

FIGURE = Output("display", data={"text/plain": "figure"})
MOMENT_S = 0.01


def out(text):
    """What a rank prints."""
    return (Output("stdout", text),)


class Ranks:
    """Ranks that say what the test lets them, and what of it is on the screen."""

    def __init__(self, capsys, number, **kwargs):
        self.clock = FakeClock(100.0)
        self.running = set(range(number))
        self.streamed = Streamed(range(number), labels=number > 1, clock=self.clock, **kwargs)
        self.capsys = capsys

    def say(self, text, *ranks):
        """Let ranks print a text."""
        self.streamed.add({rank: out(text) for rank in ranks})

    def seen(self, after_s=0.0):
        """What is new on the screen after some time."""
        self.clock.advance(after_s)
        self.streamed.show_due(self.running)
        return self.capsys.readouterr().out


@pytest.fixture
def three(capsys):
    """A cell on three ranks."""
    return Ranks(capsys, 3)


def test_common_lines_at_once(three):
    """A line that all ranks have said is shown at once, and once."""
    three.say("hello\n", 0, 1, 2)
    assert three.seen() == "[0-2] hello\n"
    assert three.seen(HOLD_S) == ""
    assert not three.streamed.waits()


def test_common_lines_wait_for_the_last(three):
    """A line waits for the rank that has not said it yet, and is then shown at once."""
    three.say("hello\nbye\n", 0, 2)
    assert three.seen(HOLD_S - MOMENT_S) == ""
    assert three.streamed.waits()
    three.say("hello\n", 1)
    assert three.seen() == "[0-2] hello\n"


def test_one_rank_waits_for_nobody(capsys):
    """With one rank each line is shown at once, and without a label."""
    one = Ranks(capsys, 1)
    one.say("a\nb\n", 0)
    assert one.seen() == "a\nb\n"


def test_line_of_one_rank(three):
    """A line that nobody else says is shown with its rank after a while, the next ones of that rank sooner."""
    three.say("mine\n", 1)
    assert three.seen(HOLD_S - MOMENT_S) == ""
    assert three.seen(MOMENT_S) == "[1] mine\n"
    three.say("mine too\n", 1)
    assert three.seen(ALONE_S - MOMENT_S) == ""
    assert three.seen(MOMENT_S) == "[1] mine too\n"
    three.say("another's\n", 2)
    assert three.seen(ALONE_S) == ""


def test_alone_no_more(three):
    """A rank whose line all others have said, too, waits for them again."""
    three.say("mine\n", 1)
    assert three.seen(HOLD_S) == "[1] mine\n"
    three.say("ours\n", 0, 1, 2)
    assert three.seen() == "[0-2] ours\n"
    three.say("again\n", 1)
    assert three.seen(HOLD_S - MOMENT_S) == ""
    assert three.seen(MOMENT_S) == "[1] again\n"


def test_some_say_the_same(three):
    """Lines that have waited long enough take those of other ranks along that are the same, young as they are."""
    three.say("same\nmine\n", 0)
    three.clock.advance(HOLD_S - MOMENT_S)
    three.say("same\nother\n", 2)
    assert three.seen(MOMENT_S) == "[0,2] same\n[0] mine\n"
    assert three.seen(HOLD_S - MOMENT_S) == "[2] other\n"


def test_no_more_companions_than_lines(three):
    """A rank that says a line more often than the one it is shown with keeps the rest for later."""
    three.say("x\n", 0)
    three.clock.advance(HOLD_S - MOMENT_S)
    three.say("x\nx\nx\n", 1)
    assert three.seen(MOMENT_S) == "[0-1] x\n"
    assert three.seen(HOLD_S) == "[1] x\n[1] x\n"


def test_ranks_that_are_over(three):
    """Nobody waits for a rank that has ended and has nothing left to show."""
    three.say("hello\n", 0, 1)
    three.running = {0, 1}
    assert three.seen() == "[0-1] hello\n"


def test_queue_of_a_rank_that_is_over(three):
    """What a rank that has ended had said is still compared with the others'."""
    three.say("hello\n", 2)
    three.running = {0, 1}
    assert three.seen() == ""
    three.say("hello\n", 0, 1)
    assert three.seen() == "[0-2] hello\n"


def test_no_part_of_a_line(three):
    """Part of a line is not shown until the rest has come; then the whole is, in one."""
    three.say("hel", 0, 1, 2)
    assert three.seen(2 * HOLD_S) == ""
    assert not three.streamed.waits()
    three.say("lo\n", 0, 1, 2)
    assert three.seen() == "[0-2] hello\n"


def test_streams_apart(capsys):
    """A begun line of one stream is not finished by the other."""
    one = Ranks(capsys, 1)
    one.say("out", 0)
    one.streamed.add({0: (Output("stderr", "err\n"),)})
    one.say("put\n", 0)
    one.streamed.show_due({0})
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("output\n", "err\n")


def test_progress_bar(three):
    """A progress bar is the status line's: its last state, with its rank; once whole it is one line."""
    assert three.streamed.partial() == ""
    three.say("\r 10%\r 20%", 0)
    three.say("\r 30%\r", 2)
    assert three.streamed.partial() == "[2] 30%"
    three.say("\r 25%", 0)
    assert three.streamed.partial() == "[0] 25%"
    assert three.seen(2 * HOLD_S) == ""
    three.say("\r100%\n", 0, 2)
    assert three.streamed.partial() == ""
    assert three.seen(HOLD_S) == "[0,2] 100%\n"


def test_partial_is_short(capsys):
    """A long begun line does not fill the status line; with one rank it has no label."""
    one = Ranks(capsys, 1)
    one.say("x" * 1000, 0)
    assert one.streamed.partial() == "x" * PARTIAL_SHOWN
    one.say("\r", 0)
    one.say("\r   ", 0)
    assert one.streamed.partial() == ""


def test_displays_are_barriers(three):
    """A begun line is ended by a display, and comes before it; what is said after stays behind."""
    pieces = (Output("stdout", "before"), FIGURE, Output("stdout", "after\n"))
    three.streamed.add(dict.fromkeys(range(3), pieces))
    assert three.seen() == "[0-2] before\n[0-2]\nfigure\n[0-2] after\n"


def test_figures_of_some_wait(three):
    """A figure waits for other ranks to show the same, as a line does."""
    three.streamed.add({0: [FIGURE]})
    assert three.seen() == ""
    three.streamed.add({1: [FIGURE], 2: [FIGURE]})
    assert three.seen() == "[0-2]\nfigure\n"


def test_flush(three):
    """At the end all is shown: what waited, and lines that were never ended."""
    three.say("whole\nbeg", 0)
    three.streamed.flush()
    assert three.capsys.readouterr().out == "[0] whole\n[0] beg\n"
    assert three.streamed.partial() == ""
    three.streamed.flush()
    assert three.capsys.readouterr().out == ""


def sections(pieces):
    """A rank's texts by stream, cut at its displays: in these nothing may be lost, doubled or change places."""
    cut = [{"stdout": "", "stderr": ""}]
    for piece in pieces:
        if piece.kind in ("stdout", "stderr"):
            cut[-1][piece.kind] += piece.text
        else:
            cut += [piece, {"stdout": "", "stderr": ""}]
    return cut


PIECES = st.one_of(
    st.builds(
        Output, st.sampled_from(["stdout", "stderr"]), st.sampled_from(["a\n", "b\n", "a\nb\n", "c", "\n", "\r5%"])
    ),
    st.builds(Output, st.just("display"), data=st.sampled_from([{"text/plain": "1"}, {"text/plain": "2"}])),
    st.just(Output("clear", "wait")),
)
ARRIVALS = st.dictionaries(st.integers(0, 2), st.lists(PIECES, min_size=1, max_size=4), max_size=3)
STEPS = st.lists(st.tuples(ARRIVALS, st.sampled_from([0.0, 0.1, ALONE_S, 0.7, HOLD_S]), st.booleans()), max_size=12)


def shown_by(steps):
    """What is shown of each rank, in order, when output comes in these steps; the ranks end in turn near the end."""
    shown = {rank: [] for rank in range(3)}
    clock = FakeClock()
    streamed = Streamed(range(3), labels=True, clock=clock)

    def show(parts, **_):
        for rank, pieces in parts.items():
            shown[rank] += pieces

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "show", show)
        for arrivals, passes_s, looks in steps:
            streamed.add(arrivals)
            clock.advance(passes_s)
            if looks:
                streamed.show_due(range(3))
        streamed.show_due({1})
        streamed.flush()
        assert not streamed.waits()
    return shown


@given(STEPS)
def test_nothing_lost_or_out_of_order(steps):
    """Whatever comes whenever, each rank's output is shown once and in order, streams and displays as they were."""
    said = {rank: [] for rank in range(3)}
    for arrivals, _, _ in steps:
        for rank, pieces in arrivals.items():
            said[rank] += pieces
    shown = shown_by(steps)
    assert {rank: sections(pieces) for rank, pieces in shown.items()} == {
        rank: sections(pieces) for rank, pieces in said.items()
    }


@given(STEPS, st.integers(0, 2))
def test_nothing_waits_for_ever(steps, running):
    """After the longest wait, whole lines are all on the screen, though ranks still run."""
    streamed = Streamed(range(3), labels=True, clock=(clock := FakeClock()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "show", lambda *_, **__: None)
        for arrivals, passes_s, _ in steps:
            streamed.add(arrivals)
            clock.advance(passes_s)
            streamed.show_due({running})
        clock.advance(HOLD_S)
        streamed.show_due({running})
    assert not streamed.waits()
