"""Whether a cell will be over before its job: by its own history, by its pace."""

import pytest

from hpcmagic.notebook import fitting
from hpcmagic.notebook.fitting import Fitting, percent, remember, took

ENDS = "job 7 ends"


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    """Each test begins as a fresh kernel."""
    monkeypatch.setattr(fitting, "_took", type(fitting._took)())


def test_history():
    """A cell that took longer than is left is warned of, once, with both times."""
    remember("x = solve()", 3000.0)
    assert took("x = solve()") == 3000.0
    assert took("x = solve(2)") is None
    cell = Fitting(0.0, took("x = solve()"))
    assert cell.warning(1.0, 3100.0, ENDS) == ""
    said = cell.warning(2.0, 600.0, ENDS)
    assert said == "the last time this cell took 50 min, and job 7 ends in 10 min"
    assert cell.warning(3.0, 500.0, ENDS) == ""


def test_history_counts_down():
    """What a cell has run already need not fit any more."""
    cell = Fitting(0.0, 3000.0)
    assert cell.warning(2900.0, 200.0, ENDS) == ""


def test_newest_history_counts():
    """A cell that ran several times is judged by the last; not more than some hundred are remembered."""
    remember("a", 10.0)
    for number in range(fitting.REMEMBERED - 1):
        remember(f"b{number}", 1.0)
    remember("a", 20.0)
    remember("c", 1.0)
    assert (took("a"), took("b0"), len(fitting._took)) == (20.0, None, fitting.REMEMBERED)


def test_pace():
    """A loop that is a tenth of its way after a minute needs nine more."""
    cell = Fitting(0.0)
    cell.note("steps", 0.0, 0.0)
    cell.note("steps", 60.0, 0.1)
    assert cell.paced_s(60.0) == pytest.approx(540.0)
    assert cell.paced_s(100.0) == pytest.approx(500.0)
    assert cell.warning(60.0, 600.0, ENDS) == ""
    assert "at this pace the cell takes 9 min more, and job 7 ends in 5 min" in cell.warning(60.0, 300.0, ENDS)


def test_pace_before_history():
    """The pace of now counts more than what was before."""
    cell = Fitting(0.0, 10_000.0)
    cell.note("steps", 0.0, 0.0)
    cell.note("steps", 60.0, 0.5)
    assert cell.warning(60.0, 300.0, ENDS) == ""


@pytest.mark.parametrize(("seconds", "share"), [(5.0, 0.5), (60.0, 0.001)])
def test_too_early_to_tell(seconds, share):
    """Neither some seconds nor a thousandth of the way make a pace."""
    cell = Fitting(0.0)
    cell.note("bar", 0.0, 0.0)
    cell.note("bar", seconds, share)
    assert cell.paced_s(seconds) is None
    assert cell.warning(seconds, 1.0, ENDS) == ""


def test_another_bar():
    """A bar that begins anew has a pace of its own."""
    cell = Fitting(0.0)
    for now, share in ((0.0, 0.0), (30.0, 1.0), (40.0, 0.01), (70.0, 0.31)):
        cell.note("bar", now, share)
    assert cell.paced_s(70.0) == pytest.approx(69.0)


def test_no_end():
    """Where nothing ends the job nothing is said."""
    assert Fitting(0.0, 1e9).warning(0.0, None, ENDS) == ""


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("[0]  45%|####      | 45/100 [00:10<00:12]", 0.45),
        ("7.5 % done", 0.075),
        ("100%", 1.0),
        ("0%|    | 0/10", None),
        ("450%", None),
        ("", None),
    ],
)
def test_percent(text, share):
    """A bar's share is read from its text; what is none is left alone."""
    assert percent(text) == share
