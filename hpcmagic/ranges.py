"""What a parameter of a simulation takes, by its type and its range: alike in a session and outside.

live.param ─► declared() ─► Param
steer.set ──► new_value() ─► a value of its type, or Refused
a log ──────► fitted() ─► its values likewise, or an error that names the line
"""

from __future__ import annotations

import keyword
import math
import reprlib
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeGuard

from hpcmagic.errors import SteerError

KINDS = (bool, int, float, str)  # of parameters
WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
LONGEST_BITS = 1024  # of a whole number
Scheduled = tuple[str, Any, str]  # of a replayed log: parameter (no name = stop), value, its line
Schedule = Mapping[int, Sequence[Scheduled]]  # by step


class Refused(Exception):
    """Why a change is none; told to whoever asked for it."""


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of a running simulation."""

    value: Any
    default: Any
    min: float | None = None
    max: float | None = None

    @property
    def kind(self) -> str:
        """``bool``, ``int``, ``float`` or ``str``: what it takes."""
        return type(self.default).__name__


def plain(value: Any) -> Any:
    """Give a number, a truth value or a text as Python's own; anything else as it is."""
    if hasattr(value, "item") and not isinstance(value, KINDS):
        with suppress(Exception):  # an array of many: it stays what it is
            value = value.item()
    return next((kind(value) for kind in KINDS if isinstance(value, kind)), value)


def declared(name: str, default: Any, least: Any = None, most: Any = None) -> Param:
    """Give a parameter as a simulation declares it.

    Raises
    ------
    SteerError
        It is of a kind that cannot be steered, or its range is none.
    """
    value, bounds = plain(default), [plain(least), plain(most)]
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise SteerError(
            f"A parameter is called {name!r}.",
            "Give it a name as a variable has, e.g. 'dt': `steer.set(dt=…)` and `%steer dt=…` set it by that.",
        )
    if not isinstance(value, KINDS):
        raise SteerError(
            f"The parameter {name!r} holds a {type(default).__name__}.",
            "Numbers, True and False, and texts can be steered.",
        )
    if any(bound is not None and (not _is_number(bound) or math.isnan(bound)) for bound in bounds):
        raise SteerError(
            f"The parameter {name!r} has the range {least!r} to {most!r}.", "Give min= and max= as numbers."
        )
    param = Param(value, value, *bounds)
    if _is_number(value) and (why := _outside(name, value, param)):
        raise SteerError(f"The default of a parameter is outside its range: {why}.", "Mend one of them.")
    return param


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _outside(name: str, value: Any, param: Param) -> str:
    if param.min is not None and value < param.min:
        return f"{name} = {value!r} is below its least value, {param.min!r}"
    if param.max is not None and value > param.max:
        return f"{name} = {value!r} is above its greatest value, {param.max!r}"
    return ""


def new_value(name: str, value: Any, param: Param) -> Any:
    """Give a value of the parameter's type, within its range.

    Raises
    ------
    Refused
        It is none.
    """
    kind, new = type(param.default), plain(value)
    if kind is int and isinstance(new, float) and new.is_integer():
        new = int(new)
    if kind is int and type(new) is int and new.bit_length() > LONGEST_BITS:
        raise Refused(f"{name} takes a whole number of at most {LONGEST_BITS} bits")
    if kind is float and _is_number(new):
        try:
            new = float(new)
        except OverflowError:
            new = math.inf
    if type(new) is not kind:
        raise Refused(f"{name} takes {WORDS[kind]}, not {_shown(value)}")
    if kind is float and not math.isfinite(new):
        raise Refused(f"{name} takes a finite number, not {new}")
    if _is_number(new) and (why := _outside(name, new, param)):
        raise Refused(why)
    return new


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return f"such a long {type(value).__name__}"


def fitted(name: str, param: Param, schedule: Schedule) -> Schedule:
    """Give a log with this parameter's values of its type; its own check was asked when the log was written.

    Raises
    ------
    SteerError
        It does not take one of them; names the file and the line.
    """

    def fit(changed: str, value: Any, where: str) -> Scheduled:
        try:
            return changed, new_value(name, value, param) if changed == name else value, where
        except Refused as refused:
            raise SteerError(
                f"The steering log does not fit this simulation: {where}: {refused}.",
                "Mend that line, or the range in `live.param`, and run it again.",
            ) from None

    return {step: [fit(*change) for change in changes] for step, changes in schedule.items()}


def strays(schedule: Schedule, known: Container[str], until: int) -> list[str]:
    """Say what a log sets up to this step that was no parameter."""
    return [
        f"the steering log sets {name}, which is no parameter of this simulation ({where})"
        for step, changes in schedule.items()
        for name, _, where in changes
        if step <= until and name and name not in known
    ]
