"""Sets of ranks, written and read; and one value a rank, indexed by rank and shown folded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from two_lines import two_lines

from hpcmagic.errors import DataError, ProfileError
from hpcmagic.notebook.perrank import PerRank, choose_ranks, rank_set
from hpcmagic.notebook.pickling import pickle_for_ranks

# ---- sets of ranks


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([0, 1], "0-1"),
        ([0, 2], "0,2"),
        ([2, 0, 1, 5], "0-2,5"),
        ([10, 9, 11, 1], "1,9-11"),
        (range(1000), "0-999"),
        ({7, 8}, "7-8"),
    ],
)
def test_rank_set(ranks, text):
    """Ranks are written as SLURM writes nodes, whatever order they come in."""
    assert rank_set(ranks) == text


@given(st.sets(st.integers(0, 200), min_size=1))
def test_rank_set_read_back(ranks):
    """No rank is lost in writing, none is made up."""
    assert choose_ranks(rank_set(ranks), 201) == tuple(sorted(ranks))


@pytest.mark.parametrize(
    ("ranks", "chosen"),
    [
        (None, (0, 1, 2, 3)),
        ("0,2-3", (0, 2, 3)),
        (" 1 , 3 ", (1, 3)),
        ("3,1,1-2", (1, 2, 3)),
        ("0-3", (0, 1, 2, 3)),
        (2, (2,)),
        (np.int64(2), (2,)),
        ([3, 0], (0, 3)),
        ((1, 1), (1,)),
        ({2}, (2,)),
        (range(1, 3), (1, 2)),
        (np.arange(2), (0, 1)),
        ((r for r in (1, 2)), (1, 2)),
    ],
)
def test_choose_ranks(ranks, chosen):
    """Ranks may be named in text as SLURM names nodes, or as numbers; they come out in order, each once."""
    assert choose_ranks(ranks, 4) == chosen
    assert all(type(rank) is int for rank in choose_ranks(chosen, 4))


@pytest.mark.parametrize(
    "ranks",
    ["", "a", "0,", ",", "0-", "-", "-1", "1-2-3", "0;1", "0 1", "all", "1.0", 1.5, [0.5], ["a"], [None], object()],
)
def test_malformed_ranks(ranks):
    """Ranks that are no numbers are malformed, with the right form; a half is not rounded away."""
    with pytest.raises(ProfileError, match="malformed") as error:
        choose_ranks(ranks, 4)
    two_lines(error)


@pytest.mark.parametrize(
    ("ranks", "size", "named"),
    [
        ("4", 4, "4"), ("0,7", 4, "7"), ("2-5", 4, "4-5"), (4, 4, "4"), (-1, 4, "-1"), ([0, 9], 4, "9"),
        ("1", 1, "1"), ("0-999", 4, "4-999"), ("0-999999999999", 4, "4"), ([], 4, "empty"), ("3-2", 4, ""),
        (range(10**6), 4, "4"),
    ],
)  # fmt: skip
def test_ranks_out_of_range(ranks, size, named):
    """Ranks that the session does not have are named, in few words, with those that it has."""
    with pytest.raises(ProfileError) as error:
        choose_ranks(ranks, size)
    message = str(two_lines(error))
    assert named in message
    assert str(size) in message
    assert len(message) < 300


# ---- PerRank


def test_indexed_by_rank():
    """A PerRank is indexed by rank, and not by position."""
    result = PerRank({3: "d", 1: "b"})
    assert (result[1], result[3], len(result), result.ranks) == ("b", "d", 2, (1, 3))
    assert list(result) == ["b", "d"]
    for rank in (0, 2, 4):
        with pytest.raises(IndexError, match=rf"rank {rank}.*1,3"):
            result[rank]


def test_indexed_by_numpy_integer():
    """A rank that came out of an array is a rank."""
    assert PerRank({0: "a", 1: "b"})[np.int64(1)] == "b"


def test_from_the_end():
    """Negative numbers and slices count within the ranks there are."""
    result = PerRank({1: "b", 3: "d", 5: "f"})
    assert (result[-1], result[-3], result[:2], result[::-1]) == ("f", "b", ["b", "d"], ["f", "d", "b"])
    with pytest.raises(IndexError):
        result[-4]


def test_sequence_of_a_subset():
    """Whatever a sequence can do works for a subset of the ranks as well."""
    result = PerRank({1: "b", 3: "d"})
    assert "d" in result
    assert "c" not in result
    assert list(reversed(result)) == ["d", "b"]
    assert result.count("d") == 1
    assert result[result.index("d")] == "d"
    assert np.asarray(result).tolist() == ["b", "d"]


class Quiet:
    """A value whose repr hides a part of it."""

    def __init__(self, hidden):
        self.hidden = hidden

    def __eq__(self, other):
        return self.hidden == other.hidden

    def __hash__(self):
        return hash(self.hidden)

    def __repr__(self):
        return "Quiet"


def differing(size):
    """Two arrays that differ by a hair in the middle."""
    one, other = np.zeros(size), np.zeros(size)
    other[size // 2] = 1e-12
    return one, other


@pytest.mark.parametrize(
    "value",
    [7, "x", None, [1, 2], {"a": 1}, float("nan"), np.arange(5000), np.array([np.nan, 1.0]), Quiet(1), {3, 1, 2}],
)
def test_same(value):
    """Where all ranks hold one value, that is given; arrays and not-a-number included."""
    copies = {rank: pickle_for_ranks("v", value).load() for rank in range(3)}
    assert repr(PerRank(copies).same()) == repr(value)


def test_same_whatever_the_order():
    """Equal values are the same though they are written otherwise."""
    assert PerRank({0: {"a": 1, "b": 2}, 1: {"b": 2, "a": 1}}).same() == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 2), ("1", 1), (None, 0), ([1], [1, 1]), (Quiet(1), Quiet(2)), differing(10), differing(5000)],
    ids=["numbers", "types", "none", "lists", "equal reprs", "array", "long array"],
)
def test_not_the_same(one, other):
    """Where ranks differ, `same` raises and names who, even if the difference does not show in their reprs."""
    with pytest.raises(DataError, match="different") as error:
        PerRank({0: one, 1: one, 2: other}).same()
    assert "0-1" in error.value.message
    assert "2" in error.value.message
    two_lines(error)


def test_not_the_same_by_the_thousand():
    """The error stays short, however many ranks differ and however long their values are."""
    with pytest.raises(DataError) as error:
        PerRank({rank: f"{rank}\n" * 1000 for rank in range(1000)}).same()
    assert len(str(error.value)) < 1000
    two_lines(error)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({0: 1, 1: 1, 2: 1}, "[0-2] 1"),
        ({0: 1, 1: 2, 2: 1}, "[0,2] 1\n[1] 2"),
        ({0: "a"}, "[0] 'a'"),
        ({}, ""),
        ({0: np.eye(2)}, "[0] array([[1., 0.],\n           [0., 1.]])"),
    ],
)
def test_repr(values, shown):
    """The display folds equal values and keeps values of several lines straight."""
    assert repr(PerRank(values)) == shown


def test_repr_of_many():
    """A display of many values says how many more there are."""
    shown = repr(PerRank(dict(enumerate(range(100))))).splitlines()
    assert len(shown) < 40
    assert shown[-1] == "… and 68 more"


def test_shown_by_ipython():
    """IPython's printer shows the same lines."""
    from IPython.lib.pretty import pretty

    result = PerRank({0: np.eye(2), 1: 5})
    assert pretty(result) == repr(result)
    assert pretty(PerRank({})) == ""
    assert "[1] 5" in pretty([result])
