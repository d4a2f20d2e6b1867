"""Curves: bounded at the rank, the same here, whatever part of them one has when one looks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmagic.engine.patience import patience
from hpcmagic.engine.series import ROOM, Series
from hpcmagic.notebook.mirror import Curve, _longer
from hpcmagic.wire.looks import HALF, halved


def grown(count, series=None, begin=0):
    series = series or Series()
    for step in range(begin, begin + count):
        series.add(step, 2.0 * step)
    return series


@settings(max_examples=25)
@given(st.lists(st.integers(0, 3 * HALF), min_size=1, max_size=8))
def test_seen_is_what_is_kept(growths):
    """One who looks now and then has, after each look, what one has who looks for the first time."""
    series, seen, step = Series(), Curve(), 0
    for growth in growths:
        grown(growth, series, step)
        step += growth
        tail = series.since(seen.thinned, len(seen.values))
        assert (tail is None) == (not series.has_more(seen.thinned, len(seen.values)))
        if tail is not None:
            seen = _longer(seen, tail)
        whole = _longer(Curve(), series.since(0, 0) or tail) if step else Curve()
        assert (seen.thinned, seen.steps, seen.values) == (whole.thinned, whole.steps, whole.values)
        assert [2.0 * n for n in seen.steps] == list(seen.values)


@pytest.mark.parametrize("count", [1, ROOM - 1, ROOM, 5 * ROOM + 17])
def test_bounded(count):
    """The first and the last value are there, in order, in bounded memory; what is young is whole."""
    steps = np.array(grown(count).since(0, 0).steps)
    assert len(steps) < ROOM
    assert (steps[0], steps[-1]) == (0, count - 1)
    gaps = np.diff(steps)
    assert (gaps > 0).all()
    assert (np.diff(gaps) <= 0).all()  # the older the fewer
    assert (gaps[-min(len(gaps), HALF // 2) :] == 1).all()


def test_thinned_on_both_sides():
    """Whoever has half or more of a curve that is thinned gets the end of it only."""
    series = grown(ROOM - 1)
    had = _longer(Curve(), series.since(0, 0))
    grown(10, series, ROOM - 1)
    tail = series.since(had.thinned, len(had.values))
    assert len(tail.values) == 10
    assert list(halved(had.steps))[:3] == [0, 2, 4]
    assert list(_longer(had, tail).steps) == list(series.since(0, 0).steps)


def test_whoever_has_more_than_there_is():
    """One who claims to have what never was gets the whole."""
    series = grown(10)
    assert series.since(0, 11).begin == 0
    assert series.since(3, 5).begin == 0
    assert series.since(0, 10) is None


def test_interrupted_between(monkeypatch):
    """An interrupt never comes between a step and its value."""
    assert not patience.holds()
    from hpcmagic.engine.runs import Run

    seen = []
    monkeypatch.setattr(Series, "add", lambda *_: seen.append(patience._depth))
    Run(1).publish(0, {"a": 1.0})
    assert seen == [1]
