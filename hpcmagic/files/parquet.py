"""Tables in Parquet files, and in directories of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hpcmagic.errors import DataError
from hpcmagic.files.kinds import Header, Whole, _Format, _is_parquet, library


class _Parquet(_Format):
    """One file, or a directory of files whose rows follow each other in the order of their names."""

    def paths(self, folder: Path) -> list[Path]:
        """Give the files in order: part-10 after part-9."""
        if not folder.is_dir():
            return [folder]
        names = sorted((path.name for path in folder.iterdir() if path.name[0] not in "._"), key=_counted)
        strange = [name for name in names if not _is_parquet(name)]
        if strange or not names:
            what = f"`{strange[0]}`, which is no Parquet file" if strange else "no Parquet file"
            raise DataError(f"`{folder}` holds {what}.", "Name a directory with nothing but Parquet files.")
        return [folder / name for name in names]

    def footers(self, folder: Path) -> tuple[Any, list[tuple[Path, Any]]]:
        """Give the schema that all files fit, and each file's metadata."""
        schemas, footers = [], []
        for path in self.paths(folder):
            with library("pyarrow.parquet").ParquetFile(path) as opened:
                schemas.append(opened.schema_arrow)
                footers.append((path, opened.metadata))
            if schemas[-1].names != schemas[0].names:
                raise DataError(f"`{path}` has other columns than those before.", "Give all files the same.")
        return library("pyarrow").unify_schemas(schemas), footers  # a column of nulls alone fits every type

    def header(self) -> Header:
        schema, footers = self.footers(self.store)
        return (sum(footer.num_rows for _, footer in footers), len(schema)), "", "C", tuple(schema.names)

    def read(self, begin: int, end: int, axis: int) -> Any:
        """Read the row groups that hold some of the rows, and cut them."""
        if axis:
            raise DataError(f"`{self.store}` is a table: only its rows are read.", "Leave the axis out.")
        schema, footers = self.footers(self.store)
        tables, first = [schema.empty_table()], 0
        for path, footer in footers:
            groups, skipped = _groups(footer, begin - first, end - first)
            if groups:
                with library("pyarrow.parquet").ParquetFile(path) as opened:
                    table = opened.read_row_groups(groups).cast(schema)
                start = max(begin - first - skipped, 0)
                tables.append(table.slice(start, end - first - skipped - start))
            first += footer.num_rows
        return library("pyarrow").concat_tables(tables)

    def require_own_folder(self) -> None:
        strange = [path.name for path in self.target.iterdir() if not _is_parquet(path.name.removesuffix(".crc"))]
        if strange := [name for name in strange if not name.startswith("_")]:  # as _SUCCESS and _metadata
            raise DataError(f"`{self.target}` holds `{strange[0]}` too: it stays.", "Name another, or a new one.")

    def begin(self, _whole: Whole) -> None:
        self.part.mkdir(mode=0o700)

    def write(self, value: Any, _begin: int, rank: int, _axis: int, _step: str) -> None:
        if not hasattr(type(value), "columns"):  # which tables of pyarrow, pandas and polars have
            raise DataError(f"Rank {rank} holds a {type(value).__name__}, which is no table.", "Make it a DataFrame.")
        table = value.to_arrow() if hasattr(value, "to_arrow") else library("pyarrow").table(value)
        with (self.part / f"part-{rank:05}.parquet").open("wb") as out:
            library("pyarrow.parquet").write_table(table, out)
            out.flush()
            os.fsync(out.fileno())

    def finish(self) -> None:
        self.footers(self.part)  # all ranks' tables fit together
        super().finish()


def _counted(name: str) -> str:
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), name)


def _groups(footer: Any, begin: int, end: int) -> tuple[list[int], int]:
    """Give the row groups of a file that hold some of its rows begin:end, and how many rows come before them."""
    groups: list[int] = []
    first = skipped = 0
    for number in range(footer.num_row_groups):
        last = first + footer.row_group(number).num_rows
        if max(first, begin) < min(last, end):
            skipped = skipped if groups else first
            groups.append(number)
        first = last
    return groups, skipped
