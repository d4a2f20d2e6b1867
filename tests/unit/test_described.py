"""A cell's value on its way home: what it says of itself may be anything, and is never trusted."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from hpcmagic.engine.cells import describe, pickled_value
from hpcmagic.wire.messages import VALUE_LIMIT_NBYTES

LARGE = VALUE_LIMIT_NBYTES + 1


class Wordless:
    """Raises whatever it is asked."""

    def __len__(self):
        raise ValueError("no length")

    @property
    def shape(self):
        """No shape."""
        raise RuntimeError("no shape")

    nbytes = shape


def method():
    """Stands where a number is expected."""


@pytest.mark.parametrize("nbytes", [method, "many", None, [1], MagicMock(), -1], ids=str)
def test_odd_sizes(nbytes):
    """A value whose `nbytes` is no size comes home like any other."""
    value, described = pickled_value(SimpleNamespace(nbytes=nbytes) if nbytes is not method else Wordless())
    assert described == "" or "cannot be pickled" in described
    assert (value is None) == bool(described)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((2, 3)), "numpy.ndarray, shape (2, 3), 0 MB"),
        (np.zeros(()), "numpy.ndarray, shape (), 0 MB"),
        ([1, 2], "list, length 2"),
        (3, "int"),
        (Wordless(), f"{__name__}.Wordless"),
        (SimpleNamespace(shape="round", nbytes="many"), "types.SimpleNamespace"),
    ],
)
def test_in_words(value, words):
    """A value is described by what it can say of type, shape or length, and size."""
    assert describe(value) == words


def test_large_stays():
    """What is too large is described, whether it says so or is found to be."""
    for value in (np.zeros(LARGE, dtype=np.int8), bytes(LARGE)):
        pickled, described = pickled_value(value)
        assert pickled is None
        assert described.endswith("10 MB")
