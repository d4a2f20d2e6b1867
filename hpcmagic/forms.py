"""The form that each value of a profile must have, be it typed, in the environment or in a file.

text or number ─► CHECKS[key](key, value, origin) ─► the value, or a ProfileError that shows the right form
"""

from __future__ import annotations

import datetime as dt
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hpcmagic.errors import ProfileError

LAUNCHERS = ("local", "slurm")
MPI_WAYS = ("auto", "pmix", "pmi2", "mpiexec", "none")
DURATIONS = ("no_client_limit", "idle_limit", "start_timeout")  # kept in seconds, as NAME_s
UNLIMITED_S = 1e9


def _malformed(key: str, value: Any, origin: str, form: str) -> ProfileError:
    option = f"--{key.replace('_', '-')}"
    if isinstance(value, dt.time | dt.date):  # what TOML makes of a time without quotes
        return ProfileError(f"{option} {value} ({origin}) is malformed.", f"Write it in quotes, as {form}.")
    return ProfileError(f"{option} {value!r} ({origin}) is malformed.", f"Write it as {form}.")


def _count(least: int) -> Callable[[str, Any, str], int]:
    def check(key: str, value: Any, origin: str) -> int:
        digits = re.fullmatch(r"[0-9]{1,9}", str(value).strip())
        if digits is None or int(digits[0]) < least:
            raise _malformed(key, value, origin, f"a whole number of at least {least}")
        return int(digits[0])

    return check


def _gpus(key: str, value: Any, origin: str) -> int | str:
    """Read how many, or SLURM's `type:number`."""
    if re.fullmatch(TYPED_GPUS, str(value).strip()):
        return str(value).strip()
    try:
        return _count(0)(key, value, origin)
    except ProfileError:
        raise _malformed(key, value, origin, "a number, or a type and a number as in `a100:2`") from None


def gpus_of(value: int | str) -> tuple[str, int]:
    """Give the type of GPUs, empty for any, and their number.

    >>> gpus_of("a100:2"), gpus_of(4)
    (('a100', 2), ('', 4))
    """
    kind, _, number = str(value).rpartition(":")
    return kind, int(number)


def _number(form: str) -> Callable[[str, Any, str], float]:
    def check(key: str, value: Any, origin: str) -> float:
        digits = re.fullmatch(r"[0-9]{0,12}\.?[0-9]{1,9}", str(value).strip())
        if digits is None or float(digits[0]) <= 0:
            raise _malformed(key, value, origin, form)
        return float(digits[0])

    return check


def _matching(pattern: str, form: str) -> Callable[[str, Any, str], str]:
    def check(key: str, value: Any, origin: str) -> str:
        if (
            not isinstance(value, str | int)
            or isinstance(value, bool)
            or not re.fullmatch(pattern, str(value), re.ASCII)
        ):
            raise _malformed(key, value, origin, form)
        return str(value)

    return check


def _one_of(*choices: str) -> Callable[[str, Any, str], str]:
    def check(key: str, value: Any, origin: str) -> str:
        if value not in choices:
            raise _malformed(key, value, origin, " or ".join(choices))
        return str(value)

    return check


def _texts(
    pattern: str, form: str, *, between: str | None, least: int = 0
) -> Callable[[str, Any, str], tuple[str, ...]]:
    one = _matching(pattern, form)

    def check(key: str, value: Any, origin: str) -> tuple[str, ...]:
        items = value.split(between) if between and isinstance(value, str) else value
        items = [items] if isinstance(items, str) else items
        if not isinstance(items, list | tuple) or len(items) < least:
            raise _malformed(key, value, origin, f"a list of {form}")
        return tuple(one(key, item, origin) for item in items)

    return check


def _duration(key: str, value: Any, origin: str) -> float:
    """Read seconds from `off`, a number of minutes, or one of sbatch's forms."""
    if str(value).lower() in ("off", "0"):
        return 0.0
    return float(walltime_s(_span(key, value, origin)) or 0)


def _program(key: str, value: Any, origin: str) -> str:
    """Give a program's path; nobody expands a `~` in it later."""
    path = _line(key, value, origin)
    return str(Path(path).expanduser()) if path.startswith("~/") else path


def walltime_s(text: str) -> int | None:
    """Read one of sbatch's forms of a time: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None = unlimited.

    >>> walltime_s("90"), walltime_s("1:30:00"), walltime_s("1-12")
    (5400, 5400, 129600)
    """
    if text.lower() in ("infinite", "unlimited", ""):
        return None
    days, dash, rest = text.rpartition("-")
    numbers = [int(n) for n in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, minutes, seconds = {1: (0, *numbers, 0), 2: (0, *numbers)}.get(len(numbers), tuple(numbers))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def canonical(name: str, value: Any) -> Any:
    """Give a resource's value in one form, so that the same in other words is the same.

    >>> canonical("time", "60") == canonical("time", "1:00:00")
    True
    """
    if name == "time" and value:
        return walltime_s(value)
    if name == "mem" and (size := re.fullmatch(r"(\d+)([KMGT]?)B?", str(value).upper())):
        return int(size[1]) << {"K": 10, "": 20, "M": 20, "G": 30, "T": 40}[size[2]]
    return value


TYPED_GPUS = r"[A-Za-z_][\w.-]{0,63}:[0-9]{1,9}"
SPAN = r"(?![0:-]+$)(\d+|\d+:[0-5]\d|\d+:[0-5]\d:[0-5]\d|\d+-\d+(:[0-5]\d){0,2})|(?i:infinite|unlimited)"
_walltime = _matching(SPAN, "minutes, H:MM:SS or D-HH:MM:SS, e.g. `--time 1:30:00`")
_span = _matching(SPAN, "minutes, H:MM:SS or `off`")
NAME = r"[A-Za-z0-9_.,@+-]+"
_name = _matching(NAME, "a name without blanks")
_line = _matching(r"[^\n\r\0]*", "one line of text")

CHECKS: dict[str, Callable[[str, Any, str], Any]] = {
    "launcher": _one_of(*LAUNCHERS),
    "session_dir": _matching(r"[~/][^\n\r\0$]*", "an absolute path, or one below ~, without `$`"),
    "nodes": _count(1),
    "ntasks": _count(1),
    "ntasks_per_node": _count(1),
    "cpus_per_task": _count(1),
    "mem": _matching(r"\d+(?i:[KMGT]B?)?", "a size, e.g. `--mem 16G`"),
    "gpus_per_node": _gpus,
    "time": _walltime,
    "partition": _name,
    "account": _name,
    "qos": _name,
    "constraint": _matching(r"[A-Za-z0-9_.,&|*()\[\]!+-]+", "a constraint without blanks, e.g. `intel&gpu`"),
    "mpi": _one_of(*MPI_WAYS),
    "interface": _name,
    "no_client_limit": _duration,
    "idle_limit": _duration,
    "start_timeout": lambda key, value, origin: _duration(key, value, origin) or UNLIMITED_S,
    "jobqueue": _matching(
        rf"({NAME}|[~/][^\n\r\0:$]*\.ya?ml(:{NAME})?)",
        "a section's name, or the path of a .yaml file, with `:SECTION`",
    ),
    "python": _program,
    "env": _texts(r"[A-Za-z_][A-Za-z0-9_]*", "names of environment variables", between=","),
    "prologue": _texts(r"[^\n\r\0]*", "shell lines", between=None),
    "cost_unit": _matching(r"[^\W\d_][\w -]{0,31}", "what the site calls it, e.g. `core-hours`"),
    "cost_divisor": _number("a number above 0: billing-minutes in one unit"),
    "price": _number("a number above 0: of one unit"),
    "currency": _matching(r"[^\s\d]{1,8}", "a sign or three letters, e.g. `EUR`"),
    "confirm_above": _number("a number above 0, in units of cost"),
    "allow_groups": _texts(r"[^\s,:\0]([^,:\n\r\0]*[^\s,:\0])?", "names of Unix groups", between=None, least=1),
}

FILE_KEYS = tuple(CHECKS)
KEYS = tuple(key for key in CHECKS if key != "allow_groups")  # what may be typed, and stand in the environment, too


def nearest(word: str, valid: Iterable[str]) -> str:
    """Give the nearest of the valid words, or nothing where none is near."""
    return next(iter(difflib.get_close_matches(word, list(valid), 1, 0.5)), "")


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Ask whether the nearest of the valid words was meant; nothing where none is near.

    >>> did_you_mean("stats", ["status", "stop"])
    'Did you mean `status`? '
    """
    near = nearest(word, valid)
    return f"Did you mean `{near}`? " if near else ""


def guess(word: str, valid: Iterable[str]) -> str:
    """Give the nearest of the valid words, and all of them."""
    choices = list(valid)
    near, listed = nearest(word, choices), ", ".join(choices)
    return f"Did you mean {near!r}? Valid: {listed}." if near else f"Valid: {listed}."


def require_known(key: str, what: str, keys: Sequence[str], value: Any = None) -> None:
    """Refuse a key that there is none of, with the nearest that there is.

    Raises
    ------
    ProfileError
        It is unknown.
    """
    if key in keys:
        return
    mend = "Profiles do not nest: write `[profiles.NAME]`." if isinstance(value, dict) else ""
    raise ProfileError(f"Unknown {what} {key!r}.", f"{mend} {guess(key, keys)}".lstrip())
