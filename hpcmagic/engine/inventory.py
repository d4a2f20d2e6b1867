"""What a rank holds: name, type, shape and bytes of each variable, told while a cell may be running.

Asked for in the control thread. So that no cell waits, and nothing can go wrong in the user's own code, a value is
asked only what its type is known to answer at once: nothing is walked through, no property of a user's class is read.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import types
from collections.abc import Mapping
from typing import Any

from hpcmagic.wire.holdings import Variable

MOST = 2000  # variables that are told of, the largest
CODE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
COUNTED = ("builtins", "collections", "array")  # modules whose types tell their length at once
ARRAYS = ("numpy", "cupy", "torch", "jax", "jaxlib", "xarray")  # … their bytes, shape and dtype
PARTS = ("data", "indices", "indptr", "row", "col")  # of SciPy's sparse arrays


def inventory(namespace: Mapping[str, Any], hidden: Mapping[str, Any], *, everything: bool = False) -> list[Variable]:
    """List the variables of a namespace, the largest first.

    Parameters
    ----------
    hidden
        What IPython has put there by itself.
    everything
        List that too, and modules and functions.
    """
    found: list[Variable] = []
    seen: set[int] = set()
    for name, value in dict(namespace).items():
        if isinstance(name, str) and (everything or not _is_hidden(name, value, hidden)):
            found.append(_variable(name, value, again=id(value) in seen))
            seen.add(id(value))
    found.sort(key=lambda variable: (-variable.nbytes, variable.name))
    return found[:MOST]


def _is_hidden(name: str, value: Any, hidden: Mapping[str, Any]) -> bool:
    own = name.startswith("_") or (name in hidden and hidden[name] is value)
    return own or issubclass(type(value), CODE)


def _variable(name: str, value: Any, *, again: bool) -> Variable:
    shape, length, dtype, nbytes = None, None, "", 0
    with contextlib.suppress(Exception):  # a cell may be changing it at this moment
        nbytes = _nbytes(value)
    with contextlib.suppress(Exception):
        shape, dtype = _shape(value), _dtype(value)
    with contextlib.suppress(Exception):
        length = len(value) if shape is None and type(value).__module__ in COUNTED else None
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return Variable(_plain(name), _plain(kind), shape, length, _plain(dtype), nbytes, again)


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:200]


def _top(value: Any) -> str:
    """Give the library that a value's type is of."""
    return str(type(value).__module__).partition(".")[0]


def _array_type(value: Any) -> Any:
    """Give NumPy's own type of an array, also of one of a user's class derived from it; else None."""
    numpy = sys.modules.get("numpy")
    return numpy.ndarray if numpy is not None and issubclass(type(value), numpy.ndarray) else None


def _shape(value: Any) -> tuple[int, ...] | None:
    array = _array_type(value)
    if array is not None:
        shape = array.shape.__get__(value)
    elif _top(value) in (*ARRAYS, "pandas", "polars", "pyarrow", "scipy"):
        shape = getattr(value, "shape", None)
    else:
        return None
    return tuple(operator.index(n) for n in shape) if isinstance(shape, tuple) else None


def _dtype(value: Any) -> str:
    array = _array_type(value)
    if array is not None:
        return str(array.dtype.__get__(value))
    return str(getattr(value, "dtype", "")) if _top(value) in (*ARRAYS, "scipy") else ""


def _nbytes(value: Any) -> int:
    """Give the bytes of a value: those of an array's numbers, of a table with its index, else of the object alone."""
    array, top = _array_type(value), _top(value)
    if array is not None:
        return int(array.nbytes.__get__(value))
    if top == "pandas" and hasattr(type(value), "memory_usage"):
        used = value.memory_usage(deep=False)  # of a table by column, its index among them
        return int(used.sum() if hasattr(used, "sum") else used)
    if top == "polars":
        return int(value.estimated_size())
    if top in (*ARRAYS, "pyarrow") and hasattr(type(value), "nbytes"):
        return int(value.nbytes)
    if top == "scipy" and hasattr(value, "data"):
        return sum(int(getattr(getattr(value, part, None), "nbytes", 0)) for part in PARTS)
    told = type(value).__sizeof__
    by_itself = isinstance(told, types.FunctionType)  # the user's own, or a library's that walks through it
    return int(object.__sizeof__(value)) if by_itself else sys.getsizeof(value)
