"""Arrays within HDF5 files and Zarr stores."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcmagic.errors import DataError
from hpcmagic.files.kinds import CHUNKS, EDGES, Header, Whole, _slab, dtype_from, dtype_text, fitting, library
from hpcmagic.files.places import _Placed

SHOWN = 8  # arrays of a file that an error names
DEEPEST = 16  # groups within groups: HDF5 may hold circles


class _Hdf5(_Placed):
    """Opened without locks, which a cluster's file system may lack."""

    def open(self, path: Path, mode: str) -> Any:
        h5py = library("h5py")
        try:
            return h5py.File(path, mode, locking=False)
        except OSError as error:
            if "locking flag" not in str(error):
                raise
            return h5py.File(path, mode)  # the user's own code on this rank holds it open

    def header(self) -> Header:
        with self.open(self.store, "r") as root:
            array = self.array(root)
            return tuple(array.shape or ()), dtype_text(array.dtype), getattr(array, "order", "C"), ()

    def read(self, begin: int, end: int, axis: int) -> Any:
        with self.open(self.store, "r") as root:
            return self.array(root)[_slab(begin, end, axis)]

    def array(self, root: Any) -> Any:
        """Give the array that is named, or the only one there is."""
        node = _node(root, self.inner)
        if hasattr(node, "shape"):
            return node
        names = list(itertools.islice(_names(root), SHOWN + 1))
        if not self.inner and len(names) == 1:
            return root[names[0]]
        what = f"no array `{self.inner}`" if self.inner else "several arrays" if names else "no array"
        there = ", ".join(f"`{self.store.name}:/{name}`" for name in names[:SHOWN])
        mend = f"Name one of {there}{' …' * (len(names) > SHOWN)}" if names else "Name another file."
        raise DataError(f"`{self.store}` holds {what}.", mend)

    def begin(self, whole: Whole) -> None:
        os.close(os.open(self.part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        inner, old = self.inner or "/data", self.target.exists()
        if old:
            shutil.copyfile(self.target, self.part)
        with self.open(self.part, "r+" if old else "w") as root:
            self.require_no_group(root, inner)
            if inner in root:
                del root[inner]
            place = self.create(root, inner, whole).id.get_offset()
        with self.writing() as fd:  # pages that this host holds are let go of: others write into them
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self.tell(replace(whole, order="C"), int(place or 0))  # an empty one has none

    @staticmethod
    def create(root: Any, inner: str, whole: Whole) -> Any:
        """Make the array in one piece, and room for it at once."""
        h5py = library("h5py")
        at_once = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        at_once.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        at_once.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        return root.create_dataset(inner, whole.shape, dtype_from(whole.dtype), dcpl=at_once)

    def require_no_group(self, root: Any, inner: str) -> None:
        """Refuse to replace a group by an array, with all that is in it."""
        node = _node(root, inner)
        if node is not None and not hasattr(node, "shape"):
            mend = f"Name an array within it, as in `{self.store.name}:{inner}/data`."
            raise DataError(f"`{self.store}:{inner or '/'}` is a group, which stays.", mend)


def _node(root: Any, inner: str) -> Any:
    """Give a group or an array; None if there is none of that name."""
    return (root.get(inner.strip("/")) if hasattr(root, "get") else None) if inner else root


def _names(group: Any, depth: int = 0) -> Iterator[str]:
    """Give the names of all arrays in a group and in the groups within."""
    for name in group:
        node = group.get(name)
        if hasattr(node, "shape"):
            yield name
        elif hasattr(node, "keys") and depth < DEEPEST:
            yield from (f"{name}/{below}" for below in _names(node, depth + 1))


class _Zarr(_Hdf5):
    """An unfinished array is a store of its own, and becomes a directory in the store that it is for."""

    def __init__(self, path: str, inner: str) -> None:
        super().__init__(path, inner)
        self.target = self.store / inner.strip("/")

    @contextmanager
    def open(self, path: Path, mode: str) -> Iterator[Any]:
        zarr = library("zarr")
        os.scandir(path).close()  # says more than zarr what is wrong with it
        yield zarr.open(str(path), mode=mode, use_consolidated=False)

    def require_own_folder(self) -> None:
        """Leave that to `begin`, which looks into the store."""

    def begin(self, whole: Whole) -> None:
        zarr_format = 3
        if self.store.exists():
            with self.open(self.store, "r") as root:
                zarr_format = root.metadata.zarr_format
                if self.inner and hasattr(root, "shape"):
                    raise DataError(f"`{self.store}` is one array, with no `{self.inner}`.", "Name another store.")
                self.require_no_group(root, self.inner)
        self.part.mkdir(mode=0o700)
        dtype = dtype_from(whole.dtype)
        library("zarr").create_array(str(self.part), shape=whole.shape, dtype=dtype, zarr_format=zarr_format)

    def write(self, value: Any, begin: int, rank: int, axis: int, step: str) -> None:
        """Write the chunks that are this rank's alone, or its first and last rows, whose chunks are others' too."""
        with self.open(self.part, "r+") as whole:
            rows, axis = fitting(value, (whole.shape, whole.dtype), begin, rank, axis)
            runs = _runs(begin, begin + rows.shape[axis], whole.shape[axis], whole.chunks[axis], step)
            try:
                for first, last in runs if rows.size else ():
                    whole[_slab(first, last, axis)] = rows[_slab(first - begin, last - begin, axis)]
            except BaseException:  # of one chunk; the others are written on, into what will have been given up
                library("zarr.core.sync").sync(_all_written())
                raise

    def finish(self) -> None:
        if not self.inner:
            super().finish()
            return
        with self.open(self.part, "r") as part:
            zarr_format = part.metadata.zarr_format
        self.store.mkdir(mode=0o700, exist_ok=True)
        root = library("zarr").open_group(str(self.store), mode="a", zarr_format=zarr_format)
        if above := self.inner.strip("/").rpartition("/")[0]:
            root.require_group(above)
        super().finish()
        if root.metadata.consolidated_metadata is not None:  # a list of all there is, as of before
            library("zarr").consolidate_metadata(str(self.store))


def _runs(begin: int, end: int, length: int, chunk: int, step: str) -> list[tuple[int, int]]:
    """Give the rows within whole chunks of begin:end, those at its edges, or all; the array's own end is no edge."""
    first = -(-begin // chunk) * chunk
    last = end if end == length else end // chunk * chunk
    if step not in {CHUNKS, EDGES} or first >= last:
        return [(begin, end)] if step != CHUNKS else []
    return [(first, last)] if step == CHUNKS else [run for run in ((begin, first), (last, end)) if run[0] < run[1]]


async def _all_written() -> None:
    import asyncio

    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
