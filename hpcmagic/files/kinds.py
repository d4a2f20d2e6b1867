"""What all kinds of files share: how an array is described, and how the unfinished takes the old one's place."""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmagic.errors import DataError

SUFFIXES = {".npy": "npy", ".zarr": "zarr", ".parquet": "parquet", ".pq": "parquet"}
SUFFIXES |= dict.fromkeys((".h5", ".hdf5", ".he5", ".nc", ".nc4"), "hdf5")
ROWS, CHUNKS, EDGES = "rows", "chunks", "edges"  # what a rank writes in one step
Header = tuple[tuple[int, ...], str, str, tuple[str, ...]]  # shape, dtype, order, columns


@dataclass(frozen=True, slots=True)
class Whole:
    """What the rows of all ranks are together; of a table only that it is one."""

    kind: str  # array | table
    shape: tuple[int, ...] = ()
    dtype: str = ""  # as `dtype_text` writes it
    order: str = "C"  # C | F; only .npy keeps it

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))


def library(name: str) -> Any:
    """Load an optional library."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        what = {"numpy": "arrays", "h5py": "HDF5", "zarr": "Zarr", "pyarrow": "Parquet"}[package]
        message = f"Reading and writing {what} needs {package}, which is not installed on the ranks."
        raise DataError(message, "Install it there: `pip install 'hpcmagic[files]'`.") from error


def dtype_text(dtype: Any) -> str:
    """Write a numpy dtype so that it can be rebuilt: byte order, unit, fields and gaps are kept."""
    if dtype.names is not None:
        return repr(dtype.descr)
    return "T" if dtype.kind == "T" else str(dtype.str)


def dtype_from(text: str) -> Any:
    """Rebuild what `dtype_text` wrote."""
    return library("numpy").lib.format.descr_to_dtype(ast.literal_eval(text) if text.startswith("[") else text)


def axis_from_front(shape: tuple[int, ...], axis: int) -> int:
    """Count an axis from the front."""
    if not -len(shape) <= axis < len(shape):
        raise DataError(f"There is no axis {axis} in the shape {shape}.", "Name another; a single value has none.")
    return axis % len(shape)


def fitting(value: Any, whole: tuple[Any, Any], begin: int, rank: int, axis: int) -> tuple[Any, int]:
    """Give a rank's rows as an array, if they fit into the whole's shape and dtype, and the axis from the front."""
    np, (shape, dtype) = library("numpy"), whole
    rows, axis = np.asarray(value), axis_from_front(shape, axis)
    count = rows.shape[axis] if rows.ndim == len(shape) else -1
    fits = rows.shape == (*shape[:axis], count, *shape[axis + 1 :]) and 0 <= begin <= shape[axis] - count
    if not fits or rows.dtype.kind != dtype.kind or not np.can_cast(rows.dtype, dtype, "safe"):
        what = f"Rank {rank} holds {rows.dtype}{list(rows.shape)}"
        mend = "Let all ranks hold rows of one shape and one dtype."
        raise DataError(f"{what}: these are no rows from {begin} on of {dtype}{list(shape)}.", mend)
    if np.ma.isMaskedArray(value):
        raise DataError(f"Rank {rank} holds a masked array, whose mask would be lost.", "Fill it with `.filled()`.")
    return rows, axis


def _slab(begin: int, end: int, axis: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(begin, end),)


def measured(path: Path) -> tuple[int, int]:
    """Give the bytes and the latest change; a file is opened for it, since NFS asks anew only then."""
    if path.is_dir():
        found = [Path(folder, name).stat() for folder, _, names in os.walk(path) for name in names]
    else:
        with path.open("rb") as opened:
            found = [os.fstat(opened.fileno())]
    return sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)


def remove(path: Path) -> None:
    """Remove a file or a directory; another rank may do so at the same time."""
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


class _Format:
    """A kind of file: its rows are read from it, and written into an unfinished one beside it."""

    def __init__(self, path: str, inner: str) -> None:
        self.inner = inner
        self.store = Path(os.path.realpath(path))  # a link stays, what it points to is replaced
        self.target = self.store
        self.part = self.store.with_name(f".{self.store.name}.hpcmagic-part")
        self.layout = self.store.with_name(f".{self.store.name}.hpcmagic-layout")

    @property
    def aside(self) -> Path:
        """Where an old directory is while the new one takes its place."""
        return self.target.with_name(f".{self.target.name}.hpcmagic-old")

    def require_replaceable(self) -> None:
        """Refuse to replace what its owner has closed."""
        if not os.access(self.target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.target))
        if self.target.is_dir():
            self.require_own_folder()

    def require_own_folder(self) -> None:
        """Refuse to replace a directory that holds anything else."""
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.target))

    def finish(self) -> None:
        """Rename; a directory only after what is in its way."""
        if not (self.part.is_dir() and self.target.exists()):
            self.part.replace(self.target)
            return
        remove(self.aside)
        self.target.rename(self.aside)
        try:
            self.part.rename(self.target)
        except OSError:
            self.aside.rename(self.target)
            raise
        remove(self.aside)


def _is_parquet(name: str) -> bool:
    return SUFFIXES.get(Path(name).suffix.lower()) == "parquet"
