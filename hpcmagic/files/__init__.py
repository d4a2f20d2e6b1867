"""Files that ranks read their rows from and write them to: .npy, HDF5, Zarr, Parquet.

    the shared file system                    the ranks
    big.h5:/rho     ──── read_rows ─────────> each its own rows
    .out.npy.hpcmagic-part <── rank 0 ─────── begin_writing    sized, and empty
                    <─── write_rows ───────── each its own rows: all at once, or rank after rank (steps)
    out.npy         <─── rank 0: a rename ─── finish_writing   … or give_up, and an older out.npy stays as it was

New files are private (0600, directories 0700). A path has one unfinished file: one name at a time goes to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import tokenize
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpcmagic.errors import DataError
from hpcmagic.files.datasets import _Hdf5, _Zarr
from hpcmagic.files.kinds import (
    CHUNKS,
    EDGES,
    ROWS,
    SUFFIXES,
    Whole,
    _is_parquet,
    axis_from_front,
    dtype_from,
    dtype_text,
    measured,
    remove,
)
from hpcmagic.files.npy import _Npy
from hpcmagic.files.parquet import _Parquet

__all__ = [
    "Contents",
    "File",
    "Whole",
    "begin_writing",
    "dtype_from",
    "dtype_text",
    "finish_writing",
    "give_up",
    "look",
    "read_rows",
    "steps",
    "write_rows",
]

WITH_INNER = re.compile(r"(.+?\.(?:h5|hdf5|he5|nc|nc4|zarr)):(/.*)", re.IGNORECASE | re.DOTALL)
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
FOREIGN: tuple[type[Exception], ...] = (  # all that numpy, h5py, zarr and pyarrow raise about what is damaged
    ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, AttributeError, EOFError, SyntaxError,
    tokenize.TokenError, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class File:
    """A file on the file system that all ranks see.

    Parameters
    ----------
    path
        As given; ``"big.h5:/rho"`` is split into path and inner.
    inner
        The array within an HDF5 file or a Zarr store; "" = the only one there is.
    """

    path: str
    inner: str = ""

    def __post_init__(self) -> None:
        path, inner = os.fspath(self.path), self.inner
        if not inner and (parts := WITH_INNER.fullmatch(path)):
            path, inner = parts[1], parts[2]
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "inner", "".join(f"/{name}" for name in inner.split("/") if name))

    def __str__(self) -> str:
        return f"{self.path}:{self.inner}" if self.inner else self.path

    def absolute(self, folder: str) -> File:
        """Give it by its whole path; a relative one is meant from that folder, `~` is this user's home."""
        home, slash, rest = self.path.partition("/")
        path = f"{Path.home()}{slash}{rest}" if home == "~" else self.path
        return replace(self, path=str(Path(folder, path)))

    def kind(self) -> str:
        """Give npy, hdf5, zarr or parquet: by the suffix, or by what the directory holds; DataError for others."""
        kind = SUFFIXES.get(Path(self.path).suffix.lower()) or _kind_of_folder(self)
        if not kind:
            mend = f"Name one that ends in {', '.join(SUFFIXES)}; an array within as in `big.h5:/rho`."
            raise DataError(f"`{self}` is no file whose rows ranks read or write.", mend)
        if self.inner and kind in {"npy", "parquet"}:
            raise DataError(f"`{self.path}` is one whole: there is no `{self.inner}` within.", f"Name `{self.path}`.")
        return kind

    def require_known(self, folder: str) -> None:
        """Refuse a kind that no rank reads or writes; a name without a suffix that is not here is left to them."""
        file = self.absolute(folder)
        if Path(file.path).suffix or os.path.exists(file.path):  # noqa: PTH110  # Path.exists raises where we may not look
            file.kind()


@dataclass(frozen=True, slots=True)
class Contents:
    """What one rank sees of a file; equal on all ranks if the file is one."""

    kind: str
    shape: tuple[int, ...]  # of a table: rows, columns
    dtype: str  # as `dtype_text` writes it; "" of a table
    order: str  # C | F
    columns: tuple[str, ...]  # of a table
    size: int  # bytes; of a directory the sum of its files
    mtime_ns: int  # of a directory the latest

    @property
    def rows(self) -> int:
        """The rows along axis 0."""
        return self.rows_along(0)

    def rows_along(self, axis: int) -> int:
        """Give the number of rows along an axis; DataError where there is no such axis."""
        return self.shape[axis_from_front(self.shape, axis)]


# ---- reading


def look(file: File) -> Contents:
    """Give what a file holds, from its header; of a directory the size of each file is asked for.

    Raises
    ------
    DataError
        It is missing, closed to us, damaged, or it is not clear which array is meant.
    """
    kind = file.kind()
    with _told(file, "read"):
        form = _format(file)
        return Contents(kind, *form.header(), *measured(form.target))


def read_rows(file: File, begin: int, end: int, axis: int = 0, expected: Contents | None = None) -> Any:
    """Read the rows begin:end into a new array, which may be written to, or into a pyarrow.Table.

    Raises
    ------
    DataError
        As of `look`; there are no such rows; or the file is not as expected, or changed while it was read.
    """
    seen = look(file)
    _require_same(file, seen, expected or seen)
    rows = seen.rows_along(axis)
    if not 0 <= begin <= end <= rows:
        raise DataError(f"`{file}` has no rows {begin}:{end} along axis {axis}.", f"Read some of 0:{rows}.")
    with _told(file, "read"):
        value = _format(file).read(begin, end, axis_from_front(seen.shape, axis))
    _require_same(file, look(file), seen)  # HDF5 gives zeros for what was cut off meanwhile
    return value


# ---- writing


def steps(file: File) -> dict[str, bool]:
    """Give the steps in which ranks write their rows, and of each whether all do at once, or rank after rank.

    Of a Zarr array each writes the chunks that are its own alone, then those that it shares with its neighbours.
    """
    return {CHUNKS: True, EDGES: False} if file.kind() == "zarr" else {ROWS: True}


def begin_writing(file: File, whole: Whole) -> None:
    """Make the unfinished file; on one rank, before any writes. What an older attempt left is removed.

    An HDF5 file is copied with all else that it holds. A Parquet file becomes a directory, with one file a rank.

    Raises
    ------
    DataError
        The file cannot hold that, may not be replaced, or there is no place for it.
    """
    _require_fit(file, whole)
    form = _format(file)
    with _told(file, "written"):
        os.scandir(form.part.parent).close()
        if form.aside.exists() and not form.target.exists():  # somebody was killed between two renames
            form.aside.rename(form.target)
        if form.target.exists():
            form.require_replaceable()
        give_up(file)
        form.begin(whole)


def write_rows(file: File, value: Any, begin: int, rank: int, axis: int = 0, *, step: str = ROWS) -> None:
    """Write a rank's rows, from `begin` on, into the unfinished file, those of one of its `steps`; of a table all.

    Raises
    ------
    DataError
        The rows do not fit, the disk is full, or this rank does not see what was begun.
    """
    with _told(file, "written"):
        _format(file).write(value, begin, rank, axis, step)


def finish_writing(file: File) -> None:
    """Put what was written in the target's place; on one rank, after all have written.

    A file is replaced in one step. Of directories the old one goes aside, the new one comes, the old is removed.
    """
    with _told(file, "written"):
        _format(file).finish()
        give_up(file)


def give_up(file: File) -> None:
    """Remove what is unfinished, on any rank; the target stays as it was."""
    form = _format(file)
    remove(form.part)
    remove(form.layout)


# ---- what is told


@contextmanager
def _told(file: File, doing: str) -> Iterator[None]:
    """Say the errors of disks and libraries in two lines."""
    path = Path(file.path).absolute()
    with contextlib.suppress(OSError):
        os.scandir(path.parent).close()  # NFS: look names up anew, an absence may be cached
    try:
        yield
    except OSError as error:
        raise _disk_error(path, doing, error) from error
    except FOREIGN as error:
        mend = "Make it anew, or try it with the program that wrote it."
        if doing == "written":
            mend = "Try another kind: .npy, .h5 or .zarr for arrays, .parquet for tables."
        raise DataError(f"`{path}` cannot be {doing}: {_first_line(error)}", mend) from error


def _disk_error(path: Path, doing: str, error: OSError) -> DataError:
    in_words = re.search(r"errno = (\d+)", str(error))  # HDF5's way
    number = error.errno or (int(in_words[1]) if in_words else 0)
    number = errno.ENOENT if isinstance(error, FileNotFoundError) else number
    reason = os.strerror(number) if number else _first_line(error)
    about = Path(error.filename).absolute() if isinstance(error.filename, str) else path
    host = socket.gethostname().partition(".")[0]
    if about.name.startswith(f".{path.name}.hpcmagic-"):  # the unfinished one: nobody has asked for it by that name
        about = path
        if number == errno.ENOENT:
            return DataError(
                f"`{path}`, begun by rank 0, is not there on host {host}.", "Name a path that all ranks see."
            )
    if number in FULL:
        return DataError(f"{reason} while writing `{path}`.", "Free some there, or name another file system.")
    if number == errno.ENOENT:
        return DataError(f"`{about}` is not there on host {host}.", "Name a path that all ranks see.")
    how = "may not" if number in CLOSED else "cannot"
    return DataError(f"`{about}` {how} be {doing} on host {host}: {reason}.", f"Look at `ls -ld {about}` there.")


def _first_line(error: Exception) -> str:
    return (str(error).strip("'\"").splitlines() or [type(error).__name__])[0][:300].rstrip(".")


def _require_same(file: File, seen: Contents, expected: Contents) -> None:
    if seen != expected:
        raise DataError(f"`{Path(file.path).absolute()}` has changed while it was read.", "Read it again.")


def _require_fit(file: File, whole: Whole) -> None:
    if (whole.kind == "table") != (file.kind() == "parquet"):
        fits = ".parquet" if whole.kind == "table" else ".npy, .h5 or .zarr"
        raise DataError(f"`{file}` cannot hold {whole.kind}s.", f"Name a file that ends in {fits}.")
    if whole.kind == "array" and dtype_from(whole.dtype).hasobject:
        raise DataError(f"`{file}` cannot hold an array of Python objects.", "Give it another dtype with `.astype`.")


# ---- the kinds


def _format(file: File) -> _Npy | _Hdf5 | _Parquet:
    return FORMATS[file.kind()](file.path, file.inner)


def _kind_of_folder(file: File) -> str:
    path = Path(file.path)
    with _told(file, "read"):
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if names & {"zarr.json", ".zgroup", ".zarray"}:
        return "zarr"
    return "parquet" if any(map(_is_parquet, names)) else ""


FORMATS: dict[str, type[_Npy | _Hdf5 | _Parquet]] = {"npy": _Npy, "hdf5": _Hdf5, "zarr": _Zarr, "parquet": _Parquet}
