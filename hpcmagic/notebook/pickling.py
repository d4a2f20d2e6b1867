"""The user's values on their way to the ranks and back: pickled once, and the culprit named when that fails."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from hpcmagic.errors import DataError
from hpcmagic.notebook import frontend
from hpcmagic.wire.messages import Pickled, Sources

LOOKED_AT = 10_000  # objects to look at for the culprit
DEPTH = 8
FUNCTIONS_LOOKED_AT = 50


def pickle_for_ranks(name: str, value: Any) -> Pickled:
    """Pickle a value; its large buffers are not copied.

    Raises
    ------
    DataError
        It cannot be pickled; names the path to the culprit inside it, e.g. ``model['lock']``.
    """
    try:
        return Pickled.of(value)
    except pickle.PicklingError as error:
        raise cannot_be_pickled(name, value, error) from error


def cannot_be_pickled(name: str, value: Any, error: pickle.PicklingError) -> DataError:
    """Give the error for a value that did not pickle, with the path to the culprit inside it."""
    path, culprit = _culprit(name, value)
    kind = f"{type(culprit).__module__}.{type(culprit).__qualname__}".removeprefix("builtins.")
    return DataError(
        f"`{path}` is a {kind}, which cannot be pickled ({_one_line(error)}).",
        "Push the parts without it, or make it on the ranks.",
    )


def cannot_be_loaded(name: str, rank: int, error: pickle.UnpicklingError) -> DataError:
    """Give the error for a value that a rank has sent and that cannot be loaded here."""
    return DataError(
        f"`{name}` of rank {rank} cannot be loaded here: {error}.",
        "Install what it needs here too, or pull a plainer form of it.",
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def _pickles(value: Any) -> bool:
    try:
        Pickled.of(value)
    except pickle.PicklingError:
        return False
    return True


def _culprit(path: str, value: Any) -> tuple[str, Any]:
    """Go down to the innermost part that cannot be pickled."""
    budget = LOOKED_AT
    for _ in range(DEPTH):
        for step, part in _parts(value):
            budget -= 1
            if budget <= 0:
                return path, value
            if not _pickles(part):
                path, value = path + step, part
                break
        else:
            break
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Give an object's parts, each with how one writes the way to it."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from (("{…}", part) for part in value)
    elif isinstance(value, FunctionType):
        yield from _function_parts(value)
    yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names = [slots] if isinstance(slots, str) else slots
        yield from ((f".{name}", getattr(value, name)) for name in names if hasattr(value, name))


def _function_parts(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Give what a function takes along: its closure, and the globals that it names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell: not bound yet
            yield f".<closure {name}>", cell.cell_contents
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f".<global {name}>", function.__globals__[name]


def sources_of(function: Any) -> Sources:
    """Give the lines of a notebook's function and of those that it calls: pickled, they have lost their file."""
    sources: Sources = {}
    known: list[Any] = []
    left = [function]
    while left and len(known) < FUNCTIONS_LOOKED_AT:
        one = left.pop(0)
        one = inspect.unwrap(getattr(getattr(one, "func", one), "__func__", getattr(one, "func", one)))
        if isinstance(one, FunctionType) and one not in known:
            known.append(one)
            sources |= _lines_of(one.__code__)
            left += [part for _, part in _function_parts(one)]
    return sources


def _lines_of(code: CodeType) -> Sources:
    """Give the lines of a code that stands in no file which the ranks could read."""
    entry = linecache.cache.get(code.co_filename, ())
    if len(entry) != 4 or entry[1] is not None:
        return {}
    cell, lines = _name_of_cell(code.co_filename), entry[2]
    numbers = {number for *_, number in code.co_lines() if number and number <= len(lines)}
    found = {(code.co_name, number): (f"{cell}, line {number}", lines[number - 1].strip()) for number in numbers}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found |= _lines_of(inner)
    return found


def _name_of_cell(filename: str) -> str:
    """Name a cell of the notebook as those of the ranks are named, if IPython knows the file as one."""
    compiler: Any = getattr(frontend.shell(), "compile", None)
    told = compiler.format_code_name(filename) if hasattr(compiler, "format_code_name") else None
    number = re.search(r"\d+", told[1]) if told else None
    return f"cell {number[0]}" if number else Path(filename).name
