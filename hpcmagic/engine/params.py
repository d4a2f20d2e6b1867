"""What a parameter of a simulation takes: its type, its range, the user's own check."""

from __future__ import annotations

import difflib
import keyword
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from hpcmagic.engine.patience import patience
from hpcmagic.errors import SteerError
from hpcmagic.wire.looks import KINDS, Param, plain

WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
LONGEST_BITS = 1024  # of a whole number
NAMED = 10  # parameters, in a refusal
Scheduled = tuple[str, Any, str]  # of a replayed log: parameter (no name = stop), value, its line


class Refused(Exception):
    """Why a change is none; told to whoever asked for it."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a parameter takes besides its type and range."""

    param: Param
    check: Callable[[Any], Any] | None = None


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


def accepted(name: str, value: Any, checks: Mapping[str, Check]) -> Any:
    """Give the value that a parameter takes on.

    Raises
    ------
    Refused
        There is no such parameter, or it does not take this value.
    """
    if name not in checks:
        near = difflib.get_close_matches(name, checks, 1)
        more = ", …" if len(checks) > NAMED else ""
        there = f"there is {', '.join([*checks][:NAMED])}{more}" if checks else "none was declared yet"
        raise Refused(f"{name} is no parameter of this simulation: {f'did you mean {near[0]}?' if near else there}")
    one = checks[name]
    new = new_value(name, value, one.param)
    if one.check is not None and (why := _objection(one.check, new)):
        raise Refused(f"{name} = {new!r}: {why}")
    return new


def _objection(check: Callable[[Any], Any], value: Any) -> str:
    """Ask the user's own check; give why it objects, or nothing."""
    try:
        with patience.lifted():
            said = check(value)
        agrees = said is None or bool(said)
    except Exception as error:  # the user's own: whatever it raises is its reason
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".removesuffix(": ")
    if isinstance(said, str):
        return said
    return "" if agrees else "its check says no"


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
        raise Refused(f"{name} takes {WORDS[kind]}, not {reprlib.repr(value)}")
    if kind is float and not math.isfinite(new):
        raise Refused(f"{name} takes a finite number, not {new}")
    if _is_number(new) and (why := _outside(name, new, param)):
        raise Refused(why)
    return new


def require_taken(name: str, param: Param, schedule: Mapping[int, Sequence[Scheduled]]) -> None:
    """Refuse a log that sets a parameter to what it does not take; its own check was asked when the log was written.

    Raises
    ------
    SteerError
        Names the file and the line.
    """
    for changes in schedule.values():
        for changed, value, where in changes:
            if changed == name:
                try:
                    new_value(name, value, param)
                except Refused as refused:
                    raise SteerError(
                        f"The steering log does not fit this simulation: {where}: {refused}.",
                        "Mend that line, or the range in `live.param`, and run it again.",
                    ) from None
