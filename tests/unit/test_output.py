"""What ranks print, show and raise, folded: nothing lost, nothing made up, each line with its ranks."""

import re
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmagic.notebook import output
from hpcmagic.notebook.output import StatusLine, clock, fold, rank_error, show, time_of_day, values
from hpcmagic.notebook.perrank import StaysOnRank
from hpcmagic.notebook.pickling import pickle_for_ranks
from hpcmagic.wire.messages import Frame, Output, Raised, Reply

FOLDING_MAY_TAKE_S = 2.0  # on a slow machine; it takes a tenth of that


# ---- folding


@pytest.mark.parametrize(
    ("texts", "folded"),
    [
        ({}, ""),
        ({0: "", 1: ""}, ""),
        ({0: "hello\n"}, "[0] hello\n"),
        ({0: "a\n", 1: "a\n", 2: "a\n"}, "[0-2] a\n"),
        ({0: "a\n", 1: "b\n"}, "[0] a\n[1] b\n"),
        ({0: "a\n", 1: "b\n", 2: "a\n", 3: "b\n"}, "[0,2] a\n[1,3] b\n"),
        ({3: "c\n", 0: "a\n", 1: "b\n"}, "[0] a\n[1] b\n[3] c\n"),
        ({0: "a\nok\n", 1: "b\nok\n"}, "[0] a\n[1] b\n[0-1] ok\n"),
        (
            {0: "begin\n0\nmid\nend\n", 1: "begin\n1\nmid\n1\nend\n"},
            "[0-1] begin\n[0] 0\n[1] 1\n[0-1] mid\n[1] 1\n[0-1] end\n",
        ),
        ({0: "a\n", 1: "", 2: "a\n"}, "[0,2] a\n"),
        ({0: "a", 1: "a\n"}, "[0-1] a\n"),
        ({0: "a"}, "[0] a\n"),
        ({0: "a\n\nb\n", 1: "a\n\nb\n"}, "[0-1] a\n[0-1] \n[0-1] b\n"),
        ({0: "\n"}, "[0] \n"),
        ({0: "x\nx\n", 1: "x\n"}, "[0-1] x\n[0] x\n"),
    ],
    ids=[
        "nobody", "nothing", "one rank", "all equal", "all differ", "two groups", "out of order", "common last",
        "common anchored", "one silent", "no last newline", "one rank, no newline", "blank lines", "only a newline",
        "more of the same",
    ],
)  # fmt: skip
def test_fold(texts, folded):
    """Common lines are printed once and anchor the others; each rank's own lines stand between them."""
    assert fold(texts) == folded


def test_fold_without_labels():
    """A session of one rank needs no labels."""
    assert fold({0: "a\n\nb\n"}, labels=False) == "a\n\nb\n"


def test_own_lines_stay_together():
    """Between common lines one rank's lines stay together: a traceback or a table is not torn apart."""
    folded = fold({0: "a1\na2\nsame\n", 1: "b1\nb2\nsame\n"})
    assert folded == "[0] a1\n[0] a2\n[1] b1\n[1] b2\n[0-1] same\n"


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_only_newlines_end_lines(character):
    """A line ends where the program ended it, and not at some other character that Unicode counts as a break."""
    line = f"before{character}after"
    assert fold({0: f"{line}\n", 1: f"{line}\n"}) == f"[0-1] {line}\n"
    assert fold({0: f"{line}\n"}, labels=False) == f"{line}\n"


def test_progress_bar_is_one_line():
    """A progress bar that draws itself anew behind `\\r` does not become a line for each of its states."""
    bar = "".join(f"\r{percent}%" for percent in range(101)) + "\n"
    folded = fold({0: bar, 1: bar})
    assert folded.count("\n") == 1
    assert folded.endswith("100%\n")
    assert folded.startswith("[0-1]")


@pytest.mark.parametrize("count", [17, 64, 1024])
def test_many_ranks(count):
    """However many ranks there are, those that say the same are folded, and a common line is printed once."""
    assert fold(dict.fromkeys(range(count), "ok\n")) == f"[0-{count - 1}] ok\n"
    folded = fold({rank: f"rank {rank}\nready\n" for rank in range(count)})
    assert folded.count("ready") == 1, f"{folded.count('ready')} times"
    assert folded.startswith("[0] rank 0\n[1] rank 1\n")
    assert folded.endswith(f"[0-{count - 1}] ready\n")


HUGE = {
    "equal": dict.fromkeys(range(4), "same line\n" * 100000),
    "different": {rank: "".join(f"{rank} {i}\n" for i in range(50_000)) for rank in range(4)},
    "many short": {rank: f"{rank}\n" * 1000 for rank in range(200)},
    "one long line": {rank: f"{rank}" * 1_000_000 for rank in range(4)},
    "alternating": {rank: "".join(f"{rank} {i}\nok\n" for i in range(900)) for rank in range(4)},
    "nearly equal": {rank: "ok\n" * (1990 + rank) for rank in range(8)},
    "two words": {rank: "".join(("a\n", "b\n")[i * (rank + 3) // 7 % 2] for i in range(1900)) for rank in range(8)},
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("texts", HUGE.values(), ids=HUGE.keys())
def test_huge_outputs(texts):
    """Whatever ranks print, folding it takes no time that one notices."""
    began = time.perf_counter()
    folded = fold(texts)
    assert time.perf_counter() - began < FOLDING_MAY_TAKE_S
    assert folded


LINES = st.lists(st.sampled_from(["a", "b", "c", "", "x y"]), max_size=8)
TEXTS = st.dictionaries(st.integers(0, 9), LINES, max_size=5)


def ranks_of(label):
    """Read a label's ranks."""
    for item in label.split(","):
        low, _, high = item.partition("-")
        yield from range(int(low), int(high or low) + 1)


@given(TEXTS, st.booleans())
def test_nothing_lost_nothing_invented(lines, last_newline):
    """Reading only the lines with a rank's label gives back what that rank printed, for every rank."""
    end = "\n" if last_newline else ""
    texts = {rank: "\n".join(own) + end if own else "" for rank, own in lines.items()}
    seen = {rank: [] for rank in texts}
    for line in fold(texts).splitlines():
        label, text = re.fullmatch(r"\[([\d,-]+)\] (.*)", line).groups()
        for rank in ranks_of(label):
            seen[rank].append(text)
    assert seen == {rank: text.splitlines() for rank, text in texts.items()}


@given(TEXTS)
def test_fold_knows_no_order_of_arrival(lines):
    """The same texts fold to the same, whichever rank answered first."""
    texts = {rank: "\n".join(own) for rank, own in lines.items()}
    assert fold(texts) == fold(dict(reversed(texts.items())))


# ---- a cell's outputs


@pytest.fixture
def displayed(monkeypatch):
    """What is displayed, instead of printing its text."""
    shown = []
    monkeypatch.setattr(output, "_publish", lambda data, *_, **__: shown.append(data))
    return shown


def test_show_in_order(capsys, displayed):
    """Text before a display stays before it; texts after it follow."""
    outputs = (
        Output("stdout", "before\n"),
        Output("display", data={"text/plain": "figure"}),
        Output("stdout", "after\n"),
    )
    show({0: outputs, 1: outputs}, labels=True)
    assert capsys.readouterr().out == "[0-1] before\n[0-1]\n[0-1] after\n"
    assert displayed == [{"text/plain": "figure"}]


def test_show_streams_apart(capsys):
    """What ranks wrote to stderr arrives on stderr."""
    show({0: (Output("stdout", "out\n"), Output("stderr", "err\n"))}, labels=False)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("out\n", "err\n")


def test_displays_with_their_ranks(capsys, displayed):
    """Equal displays are shown once with all their ranks, others each with its own."""
    same, other = {"text/plain": "same"}, {"text/plain": "other"}
    shown = {rank: (Output("display", data=other if rank == 1 else same),) for rank in range(3)}
    show(shown, labels=True)
    assert capsys.readouterr().out == "[0,2]\n[1]\n"
    assert displayed == [same, other]


def test_show_nothing(capsys):
    """A cell that says nothing shows nothing."""
    show({0: (), 1: ()}, labels=True)
    show({}, labels=True)
    assert capsys.readouterr() == ("", "")


# ---- errors


def raising(rank, text="boom", name="ValueError", line=2, function="<module>"):
    """A rank's answer of an error in the cell."""
    frames = (Frame(f"3, line {line}", function, "f(x)"),)
    return Reply(rank, raised=Raised(name, text, frames, f"Traceback of rank {rank}\n{name}: {text}\n"))


def test_no_error():
    """Where no rank raised there is no error."""
    assert rank_error([Reply(0), Reply(1)], size=2) is None
    assert rank_error([], size=2) is None


@pytest.mark.parametrize(
    ("ranks", "size", "where"),
    [
        ([0], 1, "ValueError: boom"),
        ([1], 4, "ValueError on rank 1: boom"),
        ([0, 2, 3], 4, "ValueError on ranks 0,2-3: boom"),
        ([0, 1, 2, 3], 4, "ValueError on all 4 ranks: boom"),
    ],
)
def test_one_error(ranks, size, where):
    """The same error of many ranks is one, and names them; with its line of the cell."""
    error = rank_error([raising(r) if r in ranks else Reply(r) for r in range(size)], size=size)
    assert error.text.splitlines() == [where, "  3, line 2:  f(x)"]
    assert error.ranks == tuple(ranks)


def test_function_named():
    """A line inside a function says which."""
    assert "  3, line 7 in solve:  f(x)" in rank_error([raising(0, line=7, function="solve")], size=1).text


def test_texts_that_differ():
    """One error in the same line whose text differs by rank is one block, with each text and its ranks."""
    error = rank_error([raising(0, "1"), raising(1, "2"), raising(2, "1"), Reply(3)], size=4)
    assert error.text.splitlines() == ["ValueError on ranks 0-2:", "  [0,2] 1", "  [1] 2", "  3, line 2:  f(x)"]


def test_errors_that_differ():
    """Errors of another kind or another line are told apart; the ranks of all are known."""
    error = rank_error([raising(0), raising(1, name="KeyError"), raising(2, line=5), raising(3)], size=4)
    heads = [line for line in error.text.splitlines() if not line.startswith(" ")]
    assert heads == ["ValueError on ranks 0,3: boom", "KeyError on rank 1: boom", "ValueError on rank 2: boom"]
    assert error.ranks == (0, 1, 2, 3)


def test_many_texts():
    """A thousand ranks with a thousand texts leave a message that one can read, and every rank is in it."""
    error = rank_error([raising(rank, f"value {rank}") for rank in range(1000)], size=1000)
    assert len(error.text.splitlines()) < 40
    assert "all 1000 ranks" in error.text
    assert "992 more" in error.text


def test_full_traceback_kept():
    """The whole traceback of one rank of each distinct error can be asked for."""
    error = rank_error([raising(0), raising(1), raising(2, name="KeyError")], size=3)
    assert "Traceback of rank 0" in error.full
    assert "Traceback of rank 2" in error.full
    assert "Traceback of rank 1" not in error.full


def test_deep_traceback():
    """Of a deep recursion the last lines are shown: there it broke."""
    frames = tuple(Frame(f"3, line {n}", "f", "f(x)") for n in range(1000))
    error = rank_error([Reply(0, raised=Raised("RecursionError", "too deep", frames, ""))], size=1)
    assert len(error.text.splitlines()) < 40
    assert "line 999" in error.text


# ---- values


def test_values():
    """The last values become a PerRank of the ranks that took part; where there is none, nothing."""
    replies = [Reply(r, has_value=True, value=pickle_for_ranks("v", r * 10)) for r in (1, 3)]
    assert dict(zip(values(replies).ranks, values(replies), strict=True)) == {1: 10, 3: 30}
    assert values([Reply(0), Reply(1)]) is None


def test_some_without_value():
    """A rank whose last value was None among others with one keeps its place."""
    replies = [Reply(0), Reply(1, has_value=True, value=pickle_for_ranks("v", "x"))]
    assert list(values(replies)) == [None, "x"]


def test_value_that_stays():
    """A value that was not sent shows what it is and how to fetch it."""
    (value,) = values([Reply(2, has_value=True, described="numpy.ndarray, shape (9, 9)")])
    assert isinstance(value, StaysOnRank)
    assert "numpy.ndarray, shape (9, 9)" in repr(value)
    assert "%pull" in repr(value)


def test_value_that_cannot_be_loaded():
    """A value whose module is only on the ranks is no error here: it says why it cannot be shown."""
    broken = pickle_for_ranks("v", 1).__class__(b"\x80\x05cno_such_module\nThing\n.")
    (value,) = values([Reply(0, has_value=True, value=broken)])
    assert "no_such_module" in repr(value)


# ---- times and the status line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.25, "0.25 s"),
        (9.99, "9.99 s"),
        (10, "10 s"),
        (59, "59 s"),
        (59.7, "1 min"),
        (60, "1 min"),
        (75, "1 min 15 s"),
        (1200, "20 min"),
        (3599, "59 min 59 s"),
        (3600, "1 h"),
        (7265, "2 h 1 min"),
        (86400, "1 d"),
        (2 * 86400, "2 d"),
        (2.5 * 86400, "2 d 12 h"),
    ],
)
def test_clock(seconds, text):
    """Durations are written as people read them."""
    assert clock(seconds) == text


def test_time_of_day(monkeypatch):
    """A time today is hours and minutes; one that is further off has its day."""
    monkeypatch.setattr(output, "time", SimpleNamespace(
        time=lambda: 1_700_000_000.0, localtime=time.gmtime, strftime=time.strftime))  # fmt: skip
    assert time_of_day(60) == "22:14"
    assert time_of_day(86400) == "Wed 22:13"


def test_status_line_without_a_terminal(capsys):
    """Where nothing can be updated in place, only the last text is printed: a log does not fill up."""
    line = StatusLine()
    for text in ("waiting, 1 s", "waiting, 2 s"):
        line.update(text)
    line.finish("ready")
    assert capsys.readouterr().out == "ready\n"


def test_status_line_in_a_terminal(capsys, monkeypatch):
    """A terminal sees one line that changes, and a new line only at the end."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    line = StatusLine()
    line.update("waiting")
    line.update("waiting")
    line.finish("ready")
    out = capsys.readouterr().out
    assert out.count("waiting") == 1
    assert out.count("\n") == 1
    assert out.endswith("ready\n")


def test_status_line_taken_away(capsys, monkeypatch):
    """A line that has served is taken away, and leaves nothing where it was never shown."""
    StatusLine().clear()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    line = StatusLine()
    line.update("running")
    line.clear()
    line.clear()
    out = capsys.readouterr().out
    assert out.endswith("\x1b[2K")
    assert "\n" not in out
