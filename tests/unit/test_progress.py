"""How far something is: nothing for a second, then one line, in place, that says what is true."""

import itertools
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmagic.notebook import progress
from hpcmagic.notebook.progress import BAR, Progress, how_far, nbytes_in_words
from hpcmagic.testing import FakeClock


class Shown:
    """A line that writes down what it shows, and when."""

    def __init__(self, clock):
        self.clock = clock
        self.lines = []
        self.cleared = 0

    def update(self, text):
        """Show a text instead of the last one."""
        self.lines.append((self.clock(), text))

    def clear(self):
        """Take the line away."""
        self.cleared += 1


@pytest.fixture
def clock(monkeypatch):
    """Time as the test lets it pass."""
    clock = FakeClock(1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def begun(monkeypatch, clock):
    """Something that has just begun, and its line."""
    shown = Shown(clock)
    monkeypatch.setattr(progress.output, "StatusLine", lambda: shown)
    return Progress("push x", 1e9, nbytes_in_words), shown


def run(begun, clock, seconds, amount, *, step_s=0.0625, waits_for=""):
    """Let so much time pass, with an update now and then."""
    for _ in range(round(seconds / step_s)):
        clock.advance(step_s)
        begun[0].update(amount(clock() - 1000.0), waits_for)


def test_nothing_for_a_second(begun, clock):
    """What is over within a second shows nothing."""
    run(begun, clock, 0.99, lambda s: s * 1e8, step_s=0.09)
    begun[0].close()
    assert begun[1].lines == []
    assert begun[1].cleared == 1


def test_then_four_times_a_second(begun, clock):
    """From then on the line is renewed, and no more often than one can read."""
    run(begun, clock, 4.0, lambda s: s * 1e8, step_s=0.01)
    times = [second - 1000.0 for second, _ in begun[1].lines]
    assert times[0] == pytest.approx(1.0, abs=0.02)
    assert all(b - a >= 0.249 for a, b in itertools.pairwise(times))
    assert len(times) in (12, 13)


def test_what_it_says(begun, clock):
    """The line says what it is, how much there is of all, how fast, and for how long still."""
    run(begun, clock, 5.0, lambda s: s * 1e8)
    line = begun[1].lines[-1][1]
    assert line.startswith("push x: ")
    for words in ("MB of 1.0 GB", "100 MB/s", "s left"):
        assert words in line


def test_waiting(begun, clock):
    """While it waits it says for whom, and for how long; that time is no part of the rate later."""
    run(begun, clock, 60.0, lambda s: 0, waits_for="rank 2, busy with cell 3")
    assert begun[1].lines[-1][1] == "push x: waits for rank 2, busy with cell 3, 1 min"
    run(begun, clock, 4.0, lambda s: (s - 60.0) * 1e8)
    assert "MB/s" in begun[1].lines[-1][1]
    rate = float(begun[1].lines[-1][1].split(", ")[1].removesuffix(" MB/s"))
    assert rate == pytest.approx(100, rel=0.05)


def test_some_wait_still(begun, clock):
    """If some move and others wait it says who waits."""
    run(begun, clock, 3.0, lambda s: s * 1e8, waits_for="rank 1")
    assert begun[1].lines[-1][1].startswith("push x: waits for rank 1, ")


@pytest.mark.parametrize(
    ("amount", "total", "seconds", "line"),
    [
        (0, 3e9, 5, f"{'':20} 0 %  0 B of 3.0 GB, 0 B/s"),
        (1.5e9, 3e9, 3, "██████████           50 %  1.5 GB of 3.0 GB, 500 MB/s, 3 s left"),
        (3e9, 3e9, 3, "████████████████████ 100 %  3.0 GB of 3.0 GB, 1.0 GB/s, 0 s left"),
        (1e6, 1e9, 0, f"{'':20} 0 %  1.0 MB of 1.0 GB, 0 B/s"),
        (1e6, 1e12, 1, f"{'':20} 0 %  1.0 MB of 1.0 TB, 1.0 MB/s, 11 d 13 h left"),
        (0, 0, 1, "████████████████████ 100 %  0 B of 0 B, 0 B/s"),
    ],
)
def test_how_far(amount, total, seconds, line):
    """A bar, the share, the amount, the rate and the time left; nothing is divided by what is not there."""
    assert how_far(amount, total, seconds, nbytes_in_words) == line


@pytest.mark.parametrize("seconds", [1, 100, 100_000])
def test_more_than_all(seconds):
    """The bytes of headers and tags come on top: more than all is all, and no time is left, not less than none."""
    assert how_far(3.03e9, 3e9, seconds, nbytes_in_words).endswith(", 0 s left")
    assert "100 %" in how_far(3.03e9, 3e9, seconds, nbytes_in_words)


@given(st.integers(0, 16_000), st.floats(0, 1e9))
def test_bar(amount, seconds):
    """The bar is always as wide, and as long as the share is; whatever the rate, no more than a line comes of it."""
    line = how_far(amount, 8000, seconds, str)
    bar = line[:BAR]
    assert re.fullmatch("█*[▉▊▋▌▍▎▏]? *", bar)
    filled = bar.count("█") + next((" ▏▎▍▌▋▊▉".index(c) / 8 for c in bar if c not in "█ "), 0)
    assert filled == pytest.approx(min(amount / 8000, 1) * BAR, abs=1 / 16 + 1e-9)
    assert line[BAR] == " "
    assert "\n" not in line
    assert "-" not in line.split(", ")[-1]


def test_other_amounts():
    """What is counted in items is written in items."""
    line = how_far(3, 12, 2, lambda amount: f"{amount:.0f}")
    assert line == "█████                25 %  3 of 12, 2/s, 6 s left"


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.0 kB"), (9_940, "9.9 kB"), (9_960, "10 kB"),
        (999_499, "999 kB"), (999_600, "1.0 MB"), (2.5e6, "2.5 MB"), (64e6, "64 MB"), (999.6e6, "1.0 GB"),
        (3e9, "3.0 GB"), (2 << 40, "2.2 TB"), (5e15, "5000 TB"), (0.3, "0 B"),
    ],
)  # fmt: skip
def test_nbytes_in_words(nbytes, words):
    """Sizes have two or three digits and the unit that suits them, right up to where the next one begins."""
    assert nbytes_in_words(nbytes) == words


@given(st.floats(0, 1e15))
def test_any_nbytes(nbytes):
    """No size is written with four digits where a larger unit would do; what is written is near what it is."""
    number, unit = nbytes_in_words(nbytes).split()
    assert len(number) <= 4
    assert float(number) < 1000 or unit == "TB"
    written = float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert written == pytest.approx(nbytes, rel=0.06, abs=0.5)
