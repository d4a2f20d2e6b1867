"""A field in parts, one a rank, thinned and quantised there: a part on its way, and all parts as one picture.

    array, box ─► part_of() ─► Part ═ MPI ═► rank 0 ─► whole() ─► Picture

A field of more than two dimensions shows the plane through its middle; one of one dimension is a single row.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

from hpcmagic.wire.looks import Picture

NOTHING = 255  # where no number is
LEVELS = 254
AT_ONCE = 1 << 14  # values that are quantised while they are in the processor's cache
Box = tuple[tuple[int, int], ...]  # of each dimension, from where to where


@dataclass(frozen=True, slots=True)
class Collect:
    """Rank 0 asks all ranks for their parts of a field."""

    frame: int
    name: str
    stride: int  # 0 = only say which box
    plane: tuple[int, ...] = ()  # where the dimensions before the last two are cut


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank gives."""

    frame: int
    box: Box
    step: int
    shape: tuple[int, int] = (0, 0)
    low: float = 0.0  # higher than `high` = there is no number
    high: float = 0.0
    pixels: bytes = b""
    cost_s: float = 0.0
    fault: str = ""


def box_of(array: Any, box: Any) -> Box:
    """Give where a rank's part lies; without a box it is the whole.

    Raises
    ------
    ValueError
        The box is none, or does not fit the array.
    """
    shape = tuple(array.shape)
    if not shape:
        raise ValueError("it has no dimensions")
    if box is None:
        return tuple((0, int(length)) for length in shape)
    try:
        if isinstance(box, slice):
            box = (box,)
        own = iter(shape)
        found = tuple(_ends(one, next(own, 0)) for one in box)
    except (TypeError, ValueError) as error:
        raise ValueError(f"box must have a slice, or begin and end, of each dimension, not {box!r}") from error
    lengths = tuple(end - begin for begin, end in found)
    if lengths != shape or any(begin < 0 for begin, _ in found):
        raise ValueError(f"a part of shape {shape} does not fit its box {found}")
    return found


def _ends(one: Any, length: int) -> tuple[int, int]:
    if isinstance(one, slice):
        if one.step not in (None, 1):
            raise ValueError("a part has no gaps")
        begin = operator.index(one.start or 0)
        return begin, begin + length if one.stop is None else operator.index(one.stop)
    begin, end = one
    return operator.index(begin), operator.index(end)


def part_of(collect: Collect, array: Any, box: Box, step: int) -> Part:
    """Thin a part and quantise it between its own lowest and highest value."""
    import numpy as np

    if collect.stride == 0 or len(collect.plane) != len(middle(box)):
        return Part(collect.frame, box, step)
    inside = all(begin <= at < end for at, (begin, end) in zip(collect.plane, box, strict=False))
    if not inside or any(begin == end for begin, end in box):
        return Part(collect.frame, box, step)
    plane = array[tuple(at - begin for at, (begin, _) in zip(collect.plane, box, strict=False))]
    ends = box[len(collect.plane) :]
    thin = np.atleast_2d(plane[tuple(slice(-begin % collect.stride, None, collect.stride) for begin, _ in ends)])
    if thin.size == 0:
        return Part(collect.frame, box, step)
    with np.errstate(all="ignore"):  # the user's own settings are for the user's numbers
        values = np.abs(thin) if thin.dtype.kind == "c" else thin
        values = values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64, copy=False)
        filled = values.filled(np.nan) if hasattr(values, "filled") else values  # of a masked array
        return _quantised(collect.frame, box, step, filled)


def _quantised(frame: int, box: Box, step: int, values: Any) -> Part:
    import numpy as np

    low, high = float(values.min()), float(values.max())
    holes = None
    if not math.isfinite(low) or not math.isfinite(high):
        holes = ~np.isfinite(values)
        kept = values[~holes]
        low, high = (float(kept.min()), float(kept.max())) if kept.size else (math.inf, -math.inf)
    if high - low > np.finfo(values.dtype).max:  # else the span were no number
        values, shift, span = values / 2, low / 2, high / 2 - low / 2
    else:
        shift, span = low, high - low
    pixels, rows = np.empty(values.shape, np.uint8), max(1, AT_ONCE // values.shape[1])
    for begin in range(0, len(values), rows):
        scaled = values[begin : begin + rows] - shift
        scaled *= LEVELS / span if span > 0 else 0.0
        scaled += 0.5
        pixels[begin : begin + rows] = scaled
    if holes is not None:
        pixels[holes] = NOTHING
    return Part(frame, box, step, pixels.shape, low, high, pixels.tobytes())


def whole_shape(boxes: Sequence[Box]) -> tuple[int, ...]:
    """Give the shape of the whole field."""
    return tuple(max(end for _, end in ends) for ends in zip(*boxes, strict=True))


def stride_for(shape: Sequence[int], pixels: int) -> int:
    """Give how to thin a field for a picture of so many pixels."""
    return max(1, -(-max(shape[-2:], default=1) // max(1, pixels)))


def middle(shape: Sequence[Any]) -> tuple[Any, ...]:
    """Give where the dimensions before the last two are cut."""
    return tuple(length // 2 if isinstance(length, int) else 0 for length in shape[:-2])


def fault_of(boxes: Mapping[int, Box]) -> str:
    """Say what is wrong with the ranks' boxes, of alike dimensions: that two overlap, or they leave holes."""
    volume = sum(_volume(box) for box in boxes.values())
    room = _product(whole_shape(list(boxes.values())))
    for rank, other in islice(combinations(sorted(boxes), 2), MOST_PAIRS):
        if _overlap(boxes[rank], boxes[other]):
            return f"the boxes of ranks {rank} and {other} overlap"
    if volume > room:
        return "the boxes of some ranks overlap"
    return "" if volume == room else "the boxes leave holes"


MOST_PAIRS = 10_000  # of ranks whose boxes are compared; beyond, the volumes alone tell


def _overlap(a: Box, b: Box) -> bool:
    return all(max(p[0], q[0]) < min(p[1], q[1]) for p, q in zip(a, b, strict=True))


def _volume(box: Box) -> int:
    return _product([end - begin for begin, end in box])


def _product(lengths: Sequence[int]) -> int:
    product = 1
    for length in lengths:
        product *= length
    return product


def whole(collect: Collect, parts: Mapping[int, Part]) -> Picture:
    """Put all parts together."""
    import numpy as np

    shape = whole_shape([part.box for part in parts.values()])
    rows, columns = (-(-length // collect.stride) for _, length in _plane(tuple((0, length) for length in shape)))
    pixels = np.full((rows, columns), NOTHING, np.uint8)
    there = [part for part in parts.values() if part.pixels]
    low = min((part.low for part in there), default=0.0)
    high = max((part.high for part in there), default=0.0)
    if low > high:  # there is no number anywhere
        low = high = 0.0
    for part in there:
        top, left = (-(-begin // collect.stride) for begin, _ in _plane(part.box))
        own = part.pixels if (part.low, part.high) == (low, high) else part.pixels.translate(_levels(part, low, high))
        rows_of, columns_of = part.shape
        pixels[top : top + rows_of, left : left + columns_of] = np.frombuffer(own, np.uint8).reshape(part.shape)
    step = max(part.step for part in parts.values())
    return Picture(
        collect.name, collect.frame, step, shape, collect.stride, rows, columns, low, high, pixels.tobytes()
    )


def _plane(box: Box) -> Box:
    """Give the last two dimensions; of one dimension a single row."""
    return box[-2:] if len(box) > 1 else ((0, 1), *box)


def _levels(part: Part, low: float, high: float) -> bytes:
    """Give for each of a part's levels the one between the lowest and the highest value of the whole."""
    import numpy as np

    with np.errstate(all="ignore"):  # of a part without any number
        share = np.arange(LEVELS + 1) / LEVELS
        own = part.low * (1 - share) + part.high * share
        span = high / 2 - low / 2
        levels = (own / 2 - low / 2) * (LEVELS / span) + 0.5 if span > 0 else np.zeros(LEVELS + 1)
        return levels.astype(np.uint8).tobytes() + bytes([NOTHING])
