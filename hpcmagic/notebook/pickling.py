"""The user's values on their way to the ranks: pickled once, and the culprit named when that fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cloudpickle

from hpcmagic.errors import DataError
from hpcmagic.wire.messages import Pickled

LOOKED_AT = 10_000  # objects to look at for the culprit
DEPTH = 8


def pickle_for_ranks(name: str, value: Any) -> Pickled:
    """Pickle a value; its large buffers are not copied.

    Raises
    ------
    DataError
        It cannot be pickled; names the path to the culprit inside it, e.g. ``model['lock']``.
    """
    buffers: list[Any] = []
    try:
        body = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        return Pickled(body, tuple(b.raw() for b in buffers))
    except Exception as error:  # a user's __reduce__ may raise anything
        path, culprit = _culprit(name, value)
        kind = f"{type(culprit).__module__}.{type(culprit).__qualname__}".removeprefix("builtins.")
        raise DataError(
            f"`{path}` is a {kind}, which cannot be pickled ({_one_line(error)}).",
            "Push the parts without it, or make it on the ranks.",
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def _pickles(value: Any) -> bool:
    try:
        cloudpickle.dumps(value, protocol=5, buffer_callback=lambda _: None)
    except Exception:  # as above
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
    elif callable(value) and getattr(value, "__closure__", None):
        cells = zip(value.__code__.co_freevars, value.__closure__, strict=True)
        yield from ((f".<closure {name}>", cell.cell_contents) for name, cell in cells)
    yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
