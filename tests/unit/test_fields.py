"""Fields in parts: cut however, thinned however, put together as they were; pictures within their share of time."""

import math
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmagic.engine import pictures
from hpcmagic.engine.fields import Collect, Part, box_of, fault_of, middle, part_of, stride_for, whole, whole_shape
from hpcmagic.engine.pictures import Pictures
from hpcmagic.engine.runs import Run, Wanted


def cut(shape, cuts):
    """All boxes of a grid of parts."""
    boxes = [()]
    for length, own in zip(shape, cuts, strict=True):
        ends = sorted({0, length, *(c % (length + 1) for c in own)})
        boxes = [(*box, pair) for box in boxes for pair in pairwise(ends)]
    return boxes


def picture_of(array, boxes, stride=1):
    collect = Collect(1, "f", stride, middle(array.shape))
    parts = {
        rank: part_of(collect, array[tuple(slice(*ends) for ends in box)], box, 7) for rank, box in enumerate(boxes)
    }
    return whole(collect, parts)


shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(st.data())
def test_put_together(data):
    """Whatever the shape, the cuts and the stride: the picture is that of the whole, to half a level."""
    shape = data.draw(shapes)
    cuts = [data.draw(st.lists(st.integers(0, 9), max_size=3)) for _ in shape]
    stride = data.draw(st.integers(1, 4))
    array = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=shape)
    boxes = cut(shape, cuts)
    assert whole_shape(boxes) == tuple(shape)
    assert fault_of(dict(enumerate(boxes))) == ""
    picture = picture_of(array, boxes, stride)
    plane = np.atleast_2d(array[tuple(n // 2 for n in shape[:-2])])
    expected = plane[::stride, ::stride] if len(shape) > 1 else plane[:, ::stride]
    seen = picture.as_array()
    assert (picture.shape, picture.step) == (tuple(shape), 7)
    assert seen.shape == expected.shape
    assert np.abs(seen - expected).max() <= (expected.max() - expected.min()) * 0.0081 + 1e-12


ODD = {
    "all NaN": (np.full((4, 4), np.nan), 0),
    "infinite": (np.array([[1.0, np.inf], [-np.inf, 2.0]]), 0.01),
    "constant": (np.full((4, 4), -3.0), 0),
    "int": (np.arange(16).reshape(4, 4), 0.1),
    "bool": (np.eye(4, dtype=bool), 0.01),
    "half": (np.linspace(0, 1, 16, dtype=np.float16).reshape(4, 4), 0.01),
    "complex": (np.full((4, 4), 3 + 4j), 0),
    "tiny": (np.linspace(1, 2, 16).reshape(4, 4) * 1e-300, 1e-302),
    "vast": (np.linspace(-1, 1, 16).reshape(4, 4) * 1.79e308, 2e306),
    "vast float32": (np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4) * np.float32(3.4e38), 4e36),
    "masked": (np.ma.masked_less(np.arange(16.0).reshape(4, 4), 5), 0.1),
    "Fortran": (np.asfortranarray(np.arange(16.0).reshape(4, 4)), 0.1),
    "read-only": (np.broadcast_to(np.arange(4.0), (4, 4)), 0.1),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_values(kind):
    """Whatever is in a field, its picture shows what is a number."""
    array, tolerance = ODD[kind]
    with np.errstate(all="raise"):  # the user's own settings do no harm
        seen = picture_of(
            array, [((0, 1), (0, array.shape[1])), ((1, array.shape[0]), (0, array.shape[1]))]
        ).as_array()
    expected = np.ma.filled(np.abs(array) if array.dtype.kind == "c" else array.astype(float), np.nan)
    expected = np.where(np.isfinite(expected), expected, np.nan)
    assert (np.isnan(seen) == np.isnan(expected)).all()
    assert np.abs(seen / 2 - expected / 2)[np.isfinite(expected)].max(initial=0.0) <= tolerance / 2


def test_part_without_numbers_keeps_the_range():
    """A part that is all NaN does not draw zero into the range of the others."""
    array = np.vstack([np.full((2, 4), np.nan), np.linspace(1000, 1001, 8).reshape(2, 4)])
    picture = picture_of(array, [((0, 2), (0, 4)), ((2, 4), (0, 4))])
    assert (picture.low, picture.high) == (1000.0, 1001.0)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (((0, 3),), "does not fit"),
        (((0, 3), (0, 5)), "does not fit"),
        (((-1, 2), (0, 4)), "does not fit"),
        ((slice(0, 6, 2), slice(0, 4)), "box must have"),
        ((slice(0, 3), slice(1.5, None)), "box must have"),
        (7, "box must have"),
        (((0, 3), 4), "box must have"),
        (((0.0, 3.0), (0, 4)), "box must have"),
    ],
)
def test_wrong_box(box, said):
    """A box that is none, or does not fit, is refused with both shapes."""
    with pytest.raises(ValueError, match=said):
        box_of(np.ones((3, 4)), box)


def test_box():
    """Slices, pairs, NumPy's numbers and no box at all are good."""
    array = np.ones((3, 4))
    expected = ((2, 5), (0, 4))
    for box in (
        (slice(2, 5), slice(4)),
        ((2, 5), (0, 4)),
        [(np.int64(2), 5), slice(None, 4)],
        np.array([[2, 5], [0, 4]]),
        np.s_[2:, :],
    ):
        assert box_of(array, box) == expected
    assert box_of(array, None) == ((0, 3), (0, 4))
    assert box_of(np.ones(3), slice(2, 5)) == ((2, 5),)
    with pytest.raises(ValueError, match="no dimensions"):
        box_of(np.float64(1.0), None)


def test_boxes_at_fault():
    """Overlapping boxes are named, holes are told of; of very many ranks the volumes tell, in bounded time."""
    assert fault_of({0: ((0, 3),), 2: ((2, 4),), 1: ((4, 5),)}) == "the boxes of ranks 0 and 2 overlap"
    assert fault_of({0: ((0, 3),), 1: ((4, 5),)}) == "the boxes leave holes"
    assert fault_of({0: ((0, 3), (0, 0)), 1: ((0, 3), (0, 5))}) == ""
    many = {rank: ((rank, rank + 1), (0, 4)) for rank in range(20_000)}
    began_s = time.process_time()
    assert fault_of(many) == ""
    assert fault_of(many | {19_999: ((0, 20_000), (0, 4))}) in (
        "the boxes of some ranks overlap",
        "the boxes of ranks 0 and 19999 overlap",
    )
    assert time.process_time() - began_s < 10.0


def test_stride():
    """A picture has no more pixels on its longer side than were asked for."""
    for length, pixels in ((512, 512), (513, 512), (10_000, 512), (3, 512), (5, 1)):
        stride = stride_for((2, length), pixels)
        assert -(-length // stride) <= pixels
    assert stride_for((4000, 10, 10), 10) == 1  # of the plane that is shown


class Clock:
    """Stands still but when it is set."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        self.work = 0.0
        monkeypatch.setattr(pictures.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(pictures.time, "thread_time", lambda: self.work)


class Readers:
    def __init__(self, *wanted):
        self.all = list(wanted)

    def wanted(self):
        return self.all


def wants(name, pixels=100, hz=10.0):
    return Wanted(name, pixels, hz, math.inf)


def answered(shown, collect, ranks=2, cost_s=0.0, skip=()):
    """Let all ranks give their parts."""
    for rank in range(ranks):
        if rank not in skip:
            box = ((100 * rank, 100 * rank + 100), (0, 100))
            part = part_of(collect, np.ones((100, 100)), box, 1)
            shown.take(rank, Part(part.frame, box, 1, part.shape, 1.0, 1.0, part.pixels, cost_s))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_pictures_in_turn(clock):
    """Two readers that want different fields both have theirs, each as often as it asked, if time allows."""
    run = Run(1, fields={"a": (), "b": ()})
    shown, came = Pictures(run, Readers(wants("a"), wants("b")), 2), []
    for _ in range(100):
        collect = shown.wish(0.01)
        if collect is not None:
            came.append(collect.name)
            answered(shown, collect)
        clock.now += 0.01
    assert came[:4] == ["a", "a", "b", "b"] or came[:4] == ["a", "b", "a", "b"]  # their sizes first
    assert abs(came.count("a") - came.count("b")) <= 1
    assert 18 <= len(came) <= 24
    assert set(run.pictures) == {"a", "b"}


def test_pictures_while_paused(clock):
    """Of what stands only what nobody has seen is asked for: another field, another step, or finer than it was."""
    readers = Readers(wants("a", pixels=50), wants("b", pixels=50))
    shown = Pictures(Run(1, fields={"a": (), "b": ()}), readers, 2)

    def asked(still):
        names = []
        for _ in range(200):
            if (collect := shown.wish(0.01, still)) is not None:
                names.append((collect.name, collect.stride))
                answered(shown, collect)
            clock.now += 0.05
        return names

    assert asked({"a": 1}) == [("a", 0), ("a", 4)]  # its size first; then it stands
    assert asked({"a": 1, "b": 1}) == [("b", 0), ("b", 4)]
    assert asked({"a": 1, "b": 1}) == []
    assert len(asked({"a": 2})) > 1  # these parts are of step 1
    readers.wanted = lambda: [wants("a", pixels=100)]
    assert asked({"a": 1}) == [("a", 2)]


@pytest.mark.parametrize("cost_s", [1e-4, 1e-3, 1e-2, 0.1])
def test_pictures_cost_their_share(clock, cost_s):
    """However much a picture costs the slowest rank, on the whole it is no more than the share; they become coarser."""
    run, spent, strides = Run(1, fields={"a": ()}), 0.0, []
    shown = Pictures(run, Readers(wants("a", pixels=200)), 2)
    began = clock.now
    while clock.now < began + 100:
        collect = shown.wish(0.001)
        if collect is not None:
            strides.append(collect.stride)
            cost = cost_s / max(1, collect.stride) ** 2
            spent += cost
            answered(shown, collect, cost_s=cost)
        clock.now += 0.005
    assert spent <= 0.01 * 100 + 4 * cost_s  # until they are coarse enough
    assert len(strides) > 50  # rather coarser than fewer
    assert max(strides) > 1 or cost_s <= 0.01


def test_what_pictures_add_to_boundaries(clock):
    """What rank 0 does at its boundaries for a picture is paid for like what the picture costs itself."""
    run, own, came = Run(1, fields={"a": ()}), 0.0, 0
    shown = Pictures(run, Readers(wants("a")), 2)
    for _ in range(50_000):
        collect = shown.wish(0.001)
        shown.note_boundary(1e-4 + 2e-3 * (collect is not None), busy=collect is not None)
        if collect is not None:
            own, came = own + 2e-3, came + 1
            answered(shown, collect, cost_s=1e-3)
        clock.now += 0.002
    assert came > 20
    assert own + came * 1e-3 <= 0.01 * 100 * 1.05


def test_pictures_of_very_many_ranks(clock):
    """Where it is not the pixels that cost, pictures keep some, and become fewer."""
    run, spent, strides = Run(1, fields={"a": (200, 100)}), 0.0, []
    shown = Pictures(run, Readers(wants("a", pixels=200)), 2)
    for _ in range(20_000):
        if (collect := shown.wish(0.001)) is not None:
            strides.append(collect.stride)
            spent += 0.05
            answered(shown, collect, cost_s=0.05)
        clock.now += 0.01
    assert max(strides) == 4  # of 200 values 50 are shown
    assert spent <= 0.01 * 200 + 4 * 0.05


def test_picture_after_a_long_time_without(clock):
    """What readers took in seconds without any picture makes the next ones no coarser."""
    run, strides = Run(1, fields={"a": (200, 100)}), []
    shown = Pictures(run, Readers(wants("a")), 2)
    for turn in range(8):
        clock.now += 10.0 * (turn == 1)
        run.watching_s += 0.04 * (turn == 1)  # 0.4 % of that time
        collect = shown.wish(0.01)
        strides.append(collect.stride)
        answered(shown, collect, cost_s=1e-4)
        clock.now += 5.0
    assert strides == strides[:1] * 8


def test_picture_that_never_comes(clock):
    """A picture to which one rank gives no part is given up, counted, and told of; later ones are asked for."""
    run = Run(1, fields={"a": (200, 100)})
    shown = Pictures(run, Readers(wants("a")), 2)
    first = shown.wish(0.01)
    answered(shown, first, skip=(1,))
    clock.now += 1.0
    assert shown.wish(0.01) is None
    clock.now += 5.0
    shown.wish(0.01)
    assert run.dropped == 1
    assert run.warnings == ["the field a is not shown: no part of it came from rank 1"]
    clock.now += 2.0
    again = shown.wish(0.01)
    assert again.frame > first.frame
    answered(shown, first)  # too late
    assert run.pictures == {}
    answered(shown, again)
    assert "a" in run.pictures


def test_long_steps_are_waited_for(clock):
    """Steps that take longer than pictures are waited for give pictures all the same."""
    run = Run(1, fields={"a": (200, 100)})
    shown = Pictures(run, Readers(wants("a")), 2)
    collect = shown.wish(60.0)
    clock.now += 60.0
    assert shown.wish(60.0) is None
    answered(shown, collect)
    assert "a" in run.pictures
    assert run.dropped == 0


def test_field_that_changes_its_size(clock):
    """A field that gets other dimensions is shown in these from then on."""
    run = Run(1, fields={"a": (5, 5, 5)})
    shown = Pictures(run, Readers(wants("a")), 1)
    for expected in ((), (200, 100)):
        collect = shown.wish(0.01)
        answered(shown, collect, ranks=1)
        assert run.fields["a"] == (100, 100)
        assert ("a" in run.pictures) == bool(expected)
        clock.now += 0.2
