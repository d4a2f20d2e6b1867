"""What a rank says of the variables that it holds: the question goes over the control channel, cells or no cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

VARS = "hpcmagic_vars"  # the message's type in ipyparallel's envelope


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of a rank.

    Attributes
    ----------
    kind
        Its type, e.g. ``numpy.ndarray``; `dtype` of an array's numbers, else empty.
    shape
        Of arrays and tables; None = it has none.
    length
        Of Python's own containers; None = it is none of them.
    nbytes
        In memory, as far as it tells without being walked through.
    again
        Whether an earlier variable is the same object: its bytes count once.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    length: int | None
    dtype: str
    nbytes: int
    again: bool = False


def to_rows(variables: Iterable[Variable]) -> list[tuple[Any, ...]]:
    """Give variables as JSON can hold them."""
    return [astuple(variable) for variable in variables]


def from_rows(rows: Iterable[Any]) -> list[Variable]:
    """Give the variables back."""
    return [Variable(name, kind, None if shape is None else tuple(shape), *rest) for name, kind, shape, *rest in rows]
