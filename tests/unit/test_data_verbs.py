"""What a user hands to the verbs that move data: what is none of it is refused in two lines, before any rank is asked."""

import contextlib

import pytest
from two_lines import two_lines

from hpcmagic.errors import DataError
from hpcmagic.notebook.data_verbs import DataVerbs


class Verbs(DataVerbs):
    """The verbs, with nobody behind them."""

    noted_errors = contextlib.nullcontext
    data = None  # whoever asks it for anything fails


@pytest.mark.parametrize("verb", ["push", "scatter"])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (5, "{verb} was given 5 without a name."),
        ([1, 2], "{verb} was given [1, 2] without a name."),
        ("x", "{verb} was given 'x' without a name."),
        ({5: 1}, "5 is not a name for a variable."),
        ({"two words": 1}, "'two words' is not a name for a variable."),
        ({"lambda": 1}, "'lambda' is not a name for a variable."),
    ],
)
def test_values_without_names(verb, values, said):
    """A value goes to the ranks under a name that a variable can have."""
    with pytest.raises(DataError) as error:
        getattr(Verbs(), verb)(values)
    assert two_lines(error).message == said.format(verb=verb)
    assert f"session.{verb}(x=value)" in error.value.mend


@pytest.mark.parametrize("verb", ["pull", "gather"])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "{verb} needs the name of a variable."),
        ((5,), "5 is not a name for a variable."),
        (("x", "a b"), "'a b' is not a name for a variable."),
    ],
)
def test_nothing_named(verb, names, said):
    """What is fetched has a name, too."""
    with pytest.raises(DataError) as error:
        getattr(Verbs(), verb)(*names)
    assert two_lines(error).message == said.format(verb=verb)
    assert f"session.{verb}('x')" in error.value.mend
