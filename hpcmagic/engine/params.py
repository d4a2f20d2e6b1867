"""What a parameter of a simulation takes, the user's own check included (asked of rank 0 before a change spreads)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hpcmagic.engine.patience import patience
from hpcmagic.ranges import Param, Refused, new_value

NAMED = 10  # parameters, in a refusal


@dataclass(frozen=True, slots=True)
class Check:
    """What a parameter takes besides its type and range."""

    param: Param
    check: Callable[[Any], Any] | None = None


def accepted(name: str, value: Any, checks: Mapping[str, Check]) -> Any:
    """Give the value that a parameter takes on.

    Raises
    ------
    Refused
        There is no such parameter, or it does not take this value.
    """
    if name not in checks:
        if not isinstance(name, str):
            raise Refused("parameters have names, which are texts")
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
