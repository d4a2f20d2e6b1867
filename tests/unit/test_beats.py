"""The keeper's beat: what it says, how that ages, and what a damaged one does."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmagic.wire.beats import Beat

TOLD = Beat("its disk is full", 100.0, 30.0, busy=False, idle_left_s=50.0, budget_left_s=70.0)


def test_there_and_back():
    """What is said is what is heard."""
    assert Beat.from_frame(TOLD.to_frame()) == TOLD
    assert Beat.from_frame(Beat().to_frame()) == Beat()


def test_ages():
    """Between two beats time goes on: of an idle session idle time too; nothing falls below none left."""
    later = TOLD.aged(60.0)
    assert (later.ran_s, later.idle_s, later.idle_left_s, later.budget_left_s) == (160.0, 90.0, 0.0, 10.0)
    busy = Beat(ran_s=5.0, idle_s=2.0, busy=True).aged(3.0)
    assert (busy.ran_s, busy.idle_s, busy.idle_left_s, busy.budget_left_s) == (8.0, 2.0, None, None)


def test_unsaid_does_not_age():
    """Before the first beat nothing is known, and nothing grows."""
    assert Beat().aged(1000.0) == Beat()


@pytest.mark.parametrize("frame", [b"", b"a warning", b"[]", b"3", b"null", b"\xff\xfe", b'{"ran_s": "x"}'])
def test_damaged(frame):
    """What makes no sense says nothing."""
    assert Beat.from_frame(frame) == Beat()


def test_of_another_version():
    """What is not known is left out, what has another form too; the rest is heard."""
    told = {"warning": "w", "ran_s": True, "busy": 1, "idle_left_s": float("nan"), "new": 1, "idle_s": 4}
    assert Beat.from_frame(json.dumps(told).encode()) == Beat(warning="w", idle_s=4)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda c: st.lists(c) | st.dictionaries(
    st.sampled_from(["warning", "ran_s", "idle_s", "busy", "idle_left_s", "budget_left_s", "x"]), c)))  # fmt: skip
def test_anything(told):
    """Whatever comes, it can be aged and told again."""
    beat = Beat.from_frame(json.dumps(told).encode()).aged(1.0)
    assert Beat.from_frame(beat.to_frame()) == beat
