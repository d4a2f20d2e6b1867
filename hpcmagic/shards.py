"""Which rank holds which rows, and how a value is cut into shards and joined again.

    x ── cut ──► [rows of rank 0, rows of rank 1, …] ── join ──► x

numpy, pandas, polars and pyarrow are never imported here: a value that is theirs has brought them along.
"""

from __future__ import annotations

import functools
import operator
import sys
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain, groupby, pairwise
from typing import Any

from hpcmagic.errors import DataError

Bounds = tuple[int, int]
Part = tuple[str, Any]  # what must be alike in all shards: how it is called, and what it is
Form = tuple[type, tuple[Part, ...]]

TYPES = {  # what can be cut besides sequences: the library, and which of its types
    "array": ("numpy", ("ndarray",)),
    "pandas": ("pandas", ("DataFrame", "Series", "Index", "api.extensions.ExtensionArray")),
    "polars": ("polars", ("DataFrame", "Series")),
    "arrow": ("pyarrow", ("Table", "RecordBatch", "Array", "ChunkedArray")),
}
ARRAYS = ("array", "object array")
BUILT_IN = (list, tuple, str, bytes, bytearray, range, array, memoryview)
SHOWN = 4  # groups of ranks in an error, and of what is particular to each
SHOWN_CHARACTERS = 60


def bounds(rows: int, size: int) -> tuple[Bounds, ...]:
    """Give each rank's first row and the row after its last, as numpy.array_split cuts.

    >>> bounds(5, 3)
    ((0, 2), (2, 4), (4, 5))
    """
    each, over = divmod(rows, size)
    return tuple(pairwise(rank * each + min(rank, over) for rank in range(size + 1)))


def kind(value: Any) -> str:
    """Say how a value is cut; the empty string if it cannot be.

    ``array``: a plain numpy.ndarray, whose bytes are all there is to it; ``object array``: any other one, of
    objects or of a subclass; ``pandas``: a DataFrame, Series, Index or extension array; ``polars``: a DataFrame
    or Series; ``arrow``: a Table, RecordBatch, Array or ChunkedArray; ``sequence``: any other
    collections.abc.Sequence that takes slices.
    """
    libraries = {f"{base.__module__}".partition(".")[0] for base in type(value).__mro__}
    for found, (library, names) in TYPES.items():
        module: Any = sys.modules.get(library) if library in libraries else None
        types = tuple(operator.attrgetter(name)(module) for name in names if module)
        if isinstance(value, types):
            plain = found != "array" or (type(value) in types and not value.dtype.hasobject)
            return found if plain else "object array"
    return "sequence" if isinstance(value, Sequence | array) and _takes_slices(value) else ""


def _takes_slices(value: Any) -> bool:
    try:
        if isinstance(value, memoryview):  # it must be joined as well: by a cast, which knows few formats
            return value.ndim == 1 and not memoryview(b"").cast(value.format)  # type: ignore[call-overload]
        return isinstance(value[:0], Iterable)
    except Exception:  # a user's class refuses slices in its own way, as deque does with a TypeError
        return False


def _adds_up(value: Any) -> bool:
    """Whether a sequence's slices, and their sum, are of its own type."""
    try:
        return type(value[:0]) is type(value) is type(value[:0] + value[:0])
    except Exception:  # a user's class refuses `+` in its own way
        return False


def _axes(value: Any) -> range:
    """Give the axes that a value can be cut along."""
    found = kind(value)
    return range(-value.ndim, value.ndim) if found in ARRAYS else range(1 if found else 0)


def _rows(value: Any, axis: int) -> int:
    if isinstance(value, range):  # len() of a long one overflows
        return value.index(value[-1]) + 1 if value else 0
    return int(value.shape[axis]) if axis else len(value)


def count_rows(name: str, value: Any, axis: int = 0) -> int:
    """Count a value's rows along an axis.

    Raises
    ------
    DataError
        It cannot be cut, or has no such axis.
    """
    axes, whole = _axes(value), f"`%push {name}` sends a value whole."
    if not axes:
        raise DataError(f"`{name}` is {_text([value])}, which has no rows to cut.", whole)
    if axis not in axes:
        mend = f"Cut it along axis {', '.join(map(str, axes))}, or {whole}"
        raise DataError(f"`{name}` has no axis {axis} to cut along: it is {_text([value])}.", mend)
    return _rows(value, axis)


def cut(name: str, value: Any, size: int, axis: int = 0) -> list[Any]:
    """Cut a value into one shard a rank, in order.

    Shards of arrays and tables are views of the value; those of a numpy.memmap are plain arrays. Those of a
    sequence whose slices are of another type than itself (a named tuple's, for one) are lists of its items.
    Mind that pickle takes along the whole buffers of an arrow slice, and all levels and categories of a pandas one.

    Raises
    ------
    DataError
        It cannot be cut, or has no such axis.
    """
    edges = bounds(count_rows(name, value, axis), size)
    found = kind(value)
    if found in ARRAYS:
        return _cut_array(value, edges, axis)
    if found in {"polars", "arrow"}:
        return [value.slice(start, stop - start) for start, stop in edges]
    rows = getattr(value, "iloc", value) if found == "pandas" else value
    shards = [rows[start:stop] for start, stop in edges]
    listed = found == "sequence" and type(value) not in BUILT_IN and not _adds_up(value)
    return [list(shard) for shard in shards] if listed else shards


def _cut_array(value: Any, edges: Iterable[Bounds], axis: int) -> list[Any]:
    numpy = sys.modules["numpy"]
    rows = value.view(numpy.ndarray) if isinstance(value, numpy.memmap) else value
    before = (slice(None),) * (axis % value.ndim)
    return [rows[(*before, slice(start, stop))] for start, stop in edges]


# ---- join


def join(name: str, shards: Sequence[Any], axis: int = 0) -> Any:
    """Join what each rank holds, in order: the inverse of `cut`.

    All that makes a value comes back: bytes, dtype, memory order, masks; index with names, levels, frequency,
    column order, extension dtypes, categories, `attrs` (the first rank's); schema, its metadata, dictionaries.

    These are equal to what was cut, and yet not the same to the last bit:

    - the memory order of an array: C where the shards, all of one row, do not tell; gaps and reversals are gone;
    - the `stop` of a range or a RangeIndex, where its step leaves a rest: ``range(0, 10, 3)`` → ``range(0, 12, 3)``;
    - polars and arrow tables may have a chunk a rank; what is in the chunks is not copied;
    - a numpy.memmap is an array in memory, and a memoryview has memory of its own;
    - sequences of a user's class are lists, unless their slices and their sums are of that class.

    Raises
    ------
    DataError
        The shards do not fit each other, or cannot be joined at all; names which ranks differ, and how.
    """
    require_alike(name, shards, axis)
    try:
        return _joined([shard for shard in shards if _rows(shard, axis)] or shards[:1], axis)
    except MemoryError:
        raise
    except Exception as error:  # a library's or a user's own types refuse in their own way
        raise _refused(name, _few(str(error) or type(error).__name__, 200)) from error


def require_alike(name: str, shards: Sequence[Any], axis: int = 0) -> None:
    """Refuse shards that do not fit each other.

    Raises
    ------
    DataError
        They do not, or cannot be joined at all; names which ranks differ, and how.
    """
    axes = _axes(shards[0]) if shards else range(0)
    if axes and axis not in axes:
        mend = f"Join it along another: `%gather {name} --axis {axes[-1]}`; or "
        raise _refused(name, f"{_text(shards[:1])} has no axis {axis}", mend)
    groups = _groups(shards, axis)
    if not axes or len(groups) > 1:
        raise _misfit(name, shards, groups)


def _refused(name: str, why: str, mend: str = "") -> DataError:
    return DataError(f"`{name}` cannot be joined: {why}.", f"{mend}`%pull {name}` gives each rank's own.")


def _joined(shards: Sequence[Any], axis: int) -> Any:
    """Join shards that fit each other; none is empty, or there is one only."""
    found = kind(shards[0])
    if found in ARRAYS:
        return _join_arrays(shards, axis)
    if found == "polars":
        return sys.modules["polars"].concat(shards, rechunk=False)
    return {"pandas": _join_pandas, "arrow": _join_arrow, "sequence": _join_sequences}[found](shards)


def _join_arrays(shards: Sequence[Any], axis: int) -> Any:
    numpy, first = sys.modules["numpy"], shards[0]
    joined = _concatenated([numpy.asarray(shard) for shard in shards], axis)
    if type(first) in (numpy.ndarray, numpy.memmap):
        return joined
    if not isinstance(first, numpy.ma.MaskedArray):
        return numpy.ndarray.__array_wrap__(first, joined)  # with the attributes of the subclass
    mask = numpy.ma.nomask
    if any(shard.mask is not mask for shard in shards):
        mask = _concatenated([numpy.ma.getmaskarray(shard) for shard in shards], axis)
    joined = numpy.ma.MaskedArray(joined, mask, fill_value=first.fill_value, hard_mask=first.hardmask)
    return joined.view(type(first))


def _concatenated(arrays: Sequence[Any], axis: int) -> Any:
    """Concatenate in the memory order that arrays have; numpy takes C where they disagree, or do not tell."""
    numpy, first = sys.modules["numpy"], arrays[0]
    orders = {(each.flags.c_contiguous, each.flags.f_contiguous) for each in arrays} - {(True, True)}
    if orders != {(False, True)}:
        return numpy.concatenate(arrays, axis, dtype=first.dtype)  # or else of native byte order, and packed
    shape = list(first.shape)
    shape[axis] = sum(each.shape[axis] for each in arrays)
    return numpy.concatenate(arrays, axis, out=numpy.empty(shape, first.dtype, order="F"))


def _join_pandas(shards: Sequence[Any]) -> Any:
    pandas, first = sys.modules["pandas"], shards[0]
    if isinstance(first, pandas.Index):
        return _join_index(shards)
    if not isinstance(first, pandas.DataFrame | pandas.Series):
        return _join_column(shards, first.dtype)
    bare = [shard.copy(deep=False) for shard in shards]
    for shard in bare:
        shard.attrs = {}  # pandas would compare them with ==, which arrays among them do not take
    joined = pandas.concat(bare, ignore_index=True)
    joined.index = _join_index([shard.index for shard in shards])
    labels = "columns" if isinstance(first, pandas.DataFrame) else "name"
    setattr(joined, labels, getattr(first, labels))
    joined.attrs = first.attrs
    joined.flags.allows_duplicate_labels = first.flags.allows_duplicate_labels  # checks the new index
    return joined


def _join_column(columns: Sequence[Any], dtype: Any) -> Any:
    pandas = sys.modules["pandas"]
    return pandas.concat([pandas.Series(column, dtype=dtype) for column in columns], ignore_index=True).array


def _join_index(indexes: Sequence[Any]) -> Any:
    """Join indexes; their own `append` guesses a dtype anew, and forgets levels and frequency."""
    pandas, first = sys.modules["pandas"], indexes[0]
    if isinstance(first, pandas.MultiIndex):
        words, codes = zip(*(_join_level(indexes, level) for level in range(first.nlevels)), strict=True)
        return pandas.MultiIndex(words, codes, names=first.names, verify_integrity=False)
    if all(isinstance(index, pandas.RangeIndex) for index in indexes):
        with suppress(ValueError):  # they do not follow one another
            ranges = [range(index.start, index.stop, index.step) for index in indexes]
            return pandas.RangeIndex(_join_ranges(ranges), name=first.name)
    joined = pandas.Index(_join_column([index.array for index in indexes], first.dtype), dtype=first.dtype)
    if isinstance(first, pandas.DatetimeIndex | pandas.TimedeltaIndex):
        with suppress(ValueError):  # they do not follow one another
            joined.freq = first.freq
    return joined.rename(first.name)


def _join_level(indexes: Sequence[Any], level: int) -> tuple[Any, Any]:
    """Give the words of one level, unused ones included, and the codes of all rows."""
    numpy, levels = sys.modules["numpy"], [index.levels[level] for index in indexes]
    codes = [index.codes[level] for index in indexes]
    words = levels[0]
    if not all(words.identical(own) for own in levels[1:]):
        words = _join_index(levels).unique()
        codes = [numpy.append(words.get_indexer(own), -1)[at] for own, at in zip(levels, codes, strict=True)]
    return words, numpy.concatenate(codes)  # code -1: a missing value


def _join_arrow(shards: Sequence[Any]) -> Any:
    arrow, first = sys.modules["pyarrow"], shards[0]
    if isinstance(first, arrow.ChunkedArray):
        return arrow.chunked_array(list(chain.from_iterable(shard.chunks for shard in shards)), type=first.type)
    if isinstance(first, arrow.Array):
        return arrow.concat_arrays(shards)
    if not first.num_columns:  # arrow would forget how many rows there are
        rows = {"": arrow.nulls(sum(shard.num_rows for shard in shards))}
        return type(first).from_pydict(rows).select([]).replace_schema_metadata(first.schema.metadata)
    if isinstance(first, arrow.Table):
        return arrow.concat_tables(shards)
    columns = [arrow.concat_arrays([shard.column(at) for shard in shards]) for at in range(first.num_columns)]
    return arrow.RecordBatch.from_arrays(columns, schema=first.schema)


def _join_sequences(shards: Sequence[Any]) -> Any:
    first, of = shards[0], type(shards[0])
    if of in {str, bytes, bytearray}:
        return of().join(shards)
    if of is range:
        return _join_ranges(shards)
    if of is memoryview:
        memory = b"".join(shard.tobytes() for shard in shards)
        return memoryview(memory if all(shard.readonly for shard in shards) else bytearray(memory)).cast(first.format)
    if of is array or (of not in BUILT_IN and _adds_up(first)):
        joined = functools.reduce(operator.iadd if of is array else operator.add, shards, first[:0])
        if len(joined) == sum(map(len, shards)):  # else its `+` adds item by item
            return joined
    return (tuple if of is tuple else list)(chain.from_iterable(shards))


def _join_ranges(ranges: Sequence[range]) -> range:
    first, ends = ranges[0], [each.start + each.step * _rows(each, 0) for each in ranges]
    if any(each.step != first.step for each in ranges) or ends[:-1] != [each.start for each in ranges[1:]]:
        raise ValueError("the ranges do not follow one another; a `list` of each could be joined")
    return range(first.start, ends[-1], first.step)


# ---- what must be alike, and what to say when it is not


def _groups(shards: Sequence[Any], axis: int) -> list[tuple[Form, list[int]]]:
    """Give the ranks by what their shards are; of many different ones the first few."""
    groups: list[tuple[Form, list[int]]] = []
    for rank, shard in enumerate(shards):
        form = _form(shard, axis)
        ranks = next((ranks for known, ranks in groups if known == form), None)
        if ranks is not None:
            ranks.append(rank)
        elif len(groups) <= SHOWN:
            groups.append((form, [rank]))
    return groups


def _form(value: Any, axis: int) -> Form:
    """Give what must be alike in all shards of a value."""
    found, parts = kind(value), ()  # type: str, tuple[Part, ...]
    if found in ARRAYS:
        away = tuple(length for at, length in enumerate(value.shape) if at != axis % value.ndim)
        parts = ("dtype", value.dtype), ("shape", away)
    elif found == "pandas":
        parts = _pandas_parts(value)
    elif found in {"polars", "arrow"}:
        parts = _table_parts(value)
    elif isinstance(value, array | memoryview):
        parts = (("items", value.typecode if isinstance(value, array) else value.format),)
    return type(value), parts


def _pandas_parts(value: Any) -> tuple[Part, ...]:
    pandas = sys.modules["pandas"]
    if isinstance(value, pandas.DataFrame):
        columns = _columns(zip(map(repr, value.columns), value.dtypes, strict=True))
        return (*columns, ("names", repr(list(value.columns.names))), *_pandas_parts(value.index))
    if isinstance(value, pandas.Series):
        return ("dtype", value.dtype), ("name", repr(value.name)), *_pandas_parts(value.index)
    if not isinstance(value, pandas.Index):
        return (("dtype", value.dtype),)
    levels = zip(value.names, getattr(value, "levels", (value,)), strict=True)
    return tuple((f"index {name!r}", level.dtype) for name, level in levels)


def _table_parts(value: Any) -> tuple[Part, ...]:
    """Give the columns of polars' and arrow's tables, or what one column of theirs holds."""
    polars = kind(value) == "polars"
    if not hasattr(value, "schema"):
        return (("name", repr(value.name)), ("dtype", value.dtype)) if polars else (("type", value.type),)
    if polars:
        return _columns((repr(name), dtype) for name, dtype in value.schema.items())
    return _columns((f"{field.name!r}{'' if field.nullable else ' not null'}", field.type) for field in value.schema)


def _columns(columns: Iterable[Part]) -> tuple[Part, ...]:
    parts = [(f"column {name}", dtype) for name, dtype in columns]
    return (f"{len(parts)} column{'s' * (len(parts) != 1)}", ""), *parts


def _misfit(name: str, shards: Sequence[Any], groups: Sequence[tuple[Form, list[int]]]) -> DataError:
    """Say which ranks hold what, the fewest first."""
    forms, told = [form for form, _ in groups], []
    for form, ranks in sorted(groups[:SHOWN], key=lambda group: len(group[1])):
        text = _text([shards[rank] for rank in ranks], _particular(form, forms))
        told.append(f"{_named(ranks)} hold{'s' * (len(ranks) == 1)} {text}")
    why = (", ".join(told) or "no rank holds it") + ", and so on" * (len(groups) > SHOWN)
    return _refused(name, why, "Make them alike, or " * (len(groups) > 1))


def _particular(form: Form, forms: Sequence[Form]) -> Sequence[Part]:
    """Give the parts of a form that some other has not; all if it is but for their order; none if types differ."""
    of, parts = form
    if any(other is not of for other, _ in forms):
        return ()
    moved = [part for at, part in enumerate(parts) if any(p[at : at + 1] != (part,) for _, p in forms)]
    return [part for part in moved if any(part not in p for _, p in forms)] or moved


def _text(values: Sequence[Any], parts: Sequence[Part] = ()) -> str:
    """Say in a few words what all of these values are."""
    first, of = values[0], type(values[0])
    called = f"{of.__module__}.".partition(".")[0].replace("builtins", "") + f".{of.__qualname__}"
    if kind(first) in ARRAYS:
        axes = [set(lengths) for lengths in zip(*(value.shape for value in values), strict=True)]
        lengths = ["n" if len(axis) > 1 else str(*axis) for axis in axes]
        shape = f"({', '.join(lengths)}{',' * (len(lengths) == 1)})"
        return f"{'' if called == 'numpy.ndarray' else called + ' '}{_few(str(first.dtype))} {shape}"
    things = [repr(thing) if str(thing) == "category" else str(thing) for _, thing in parts[:SHOWN]]
    said = ", ".join(f"{_few(label)} {_few(thing)}".strip() for (label, _), thing in zip(parts, things, strict=False))
    called = called.lstrip(".")
    return "None" if first is None else f"a{'n' * (called[0] in 'aeiou')} {called}" + f" with {said}" * bool(said)


def _few(text: str, most: int = SHOWN_CHARACTERS) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}…"


def _named(ranks: Sequence[int]) -> str:
    """Write ranks as SLURM writes nodes, e.g. ``ranks 0-2,5``."""
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0])]
    text = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"rank{'s' * (len(ranks) > 1)} {_few(text)}"
