"""Every error says what happened and what to do, in two lines."""

import copy
import inspect
import pickle

import pytest

import hpcmagic
from hpcmagic import errors

TREE = {
    "HpcMagicError": Exception,
    "ProfileError": errors.HpcMagicError,
    "LaunchError": errors.HpcMagicError,
    "SessionEnded": errors.LaunchError,
    "ChannelError": errors.HpcMagicError,
    "NotEncrypted": errors.ChannelError,
    "PeerLost": errors.ChannelError,
    "Tampered": errors.ChannelError,
    "DataError": errors.HpcMagicError,
    "SteerError": errors.HpcMagicError,
    "BudgetSpent": errors.HpcMagicError,
    "CellError": errors.HpcMagicError,
    "RankError": errors.CellError,
    "StillRunning": errors.CellError,
}
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
TWO_LINES = [kind for kind in KINDS if kind is not errors.RankError]


def test_one_tree():
    """All errors form one tree, so that `except HpcMagicError` catches whatever is ours, and nothing else."""
    assert {kind.__name__: kind.__bases__[0] for kind in KINDS} == TREE


def test_tree_drawn_as_it_is():
    """The tree that is drawn at the top of the module is the one that the classes form."""
    drawn = {}
    above = [(-1, "Exception")]
    for line in errors.__doc__.splitlines():
        name = next((word for word in line.split() if word in TREE), None)
        if name is None:
            continue
        depth = line.index(name)
        while above[-1][0] >= depth:
            above.pop()
        drawn[name] = above[-1][1]
        above.append((depth, name))
    assert drawn == {name: base.__name__ for name, base in TREE.items()}


def test_public():
    """Every error can be caught by its name in `hpcmagic`."""
    for name in TREE:
        assert getattr(hpcmagic, name) is getattr(errors, name)
        assert name in hpcmagic.__all__


@pytest.mark.parametrize("kind", TWO_LINES)
def test_two_lines(kind):
    """The text is what happened, then the mend behind an arrow; both stay readable apart."""
    error = kind("Job 8123 waits.", "Ask for less.")
    assert str(error) == "Job 8123 waits.\n→ Ask for less."
    assert (error.message, error.mend) == ("Job 8123 waits.", "Ask for less.")


@pytest.mark.parametrize("kind", TWO_LINES)
def test_rendered_without_frames(kind):
    """IPython shows the name and the two lines, and none of our own frames."""
    assert kind("It broke.", "Mend it.")._render_traceback_() == [f"{kind.__name__}: It broke.", "→ Mend it."]


def test_no_mend_no_arrow():
    """Without a mend there is no empty arrow."""
    assert str(errors.HpcMagicError("It broke.")) == "It broke."


def test_rank_error_shows_its_text():
    """What ranks raised is shown as it was put together, with nothing of ours around it."""
    error = errors.RankError(
        "ZeroDivisionError on rank 1: division by zero\n  cell 3, line 2:  1/0", [1, 2], "all of it"
    )
    assert error._render_traceback_() == error.text.splitlines()
    assert str(error) == error.text
    assert (error.ranks, error.full) == ((1, 2), "all of it")


@pytest.mark.parametrize("way", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize(
    "error", [errors.DataError("It broke.", "Mend it."), errors.RankError("ValueError on rank 0: x", [0, 3], "full")]
)
def test_survives_copy_and_pickle(error, way):
    """An error stays whole when something between it and the user copies or pickles it."""
    again = way(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
