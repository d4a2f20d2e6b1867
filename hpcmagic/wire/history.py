"""A session's cells on disk, one file a cell: the keeper writes what passes by, whoever attaches reads it.

    cells/000017~9f3ab2c4d5e6     record · record · …

    record   sizes, as a line of JSON · a head, JSON · the frames of a message, as they went over the wire
    head     {"kind": "cell", …}       source, ranks, who sent it        frames of RunCell
             {"kind": "output", …}     what a rank printed or showed     frames of a tuple of Output
             {"kind": "reply", …}      how a rank ended                  frames of Reply
             {"kind": "stuck", …}      ranks that wait for ever, where   no frames
             {"kind": "lost", …}       ranks that will never reply       no frames
             {"kind": "dropped"}       its outputs and values gave way to younger cells'

Beside, each rank has one record in ``ranks/last-N``, written over and over: the piece of output that it has flushed
and not sent yet.

The keeper passes frames on unopened. A record that was cut off, by a full disk or a sudden end, is left out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hpcmagic.rendezvous import PRIVATE_FILE
from hpcmagic.wire.messages import Output, to_frames

NAME = re.compile(r"(\d{6,})~([0-9a-z]+)")
SIZES_LIMIT_NBYTES = 1 << 20  # of a record's first line: a larger one is no record


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a cell's file."""

    head: dict[str, Any]
    frames: tuple[bytes, ...]

    @property
    def kind(self) -> str:
        """What the record tells."""
        return str(self.head.get("kind", ""))


def cell_path(folder: Path, number: int, cell: str) -> Path:
    """Give the file of a cell."""
    return folder / f"{number:06d}~{cell}"


def cell_paths(folder: Path) -> dict[str, tuple[int, Path]]:
    """Give number and file of every cell, by its id, in the order in which the keeper saw them."""
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return {}
    found = ((NAME.fullmatch(name), name) for name in names)
    numbered = sorted((int(m[1]), m[2], folder / name) for m, name in found if m)
    return {cell: (number, path) for number, cell, path in numbered}


def append_record(path: Path, head: dict[str, Any], frames: Sequence[Any] = ()) -> int:
    """Write a record behind a cell's others; give its size in bytes."""
    parts = [json.dumps(head).encode(), *(memoryview(frame).cast("B") for frame in frames)]
    sizes = json.dumps([len(part) for part in parts]).encode() + b"\n"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE_FILE), "ab", 0) as out:
        begin = os.fstat(out.fileno()).st_size
        try:
            for part in (sizes, *parts):
                _write_all(out, part)
        except OSError:
            os.ftruncate(out.fileno(), begin)
            raise
    return len(sizes) + sum(len(part) for part in parts)


def _write_all(out: Any, part: Any) -> None:
    view = memoryview(part)
    while view:
        view = view[out.write(view) :]


def read_records(path: Path, offset: int = 0, *, heads_only: bool = False) -> Iterator[tuple[Record, int]]:
    """Give a cell's whole records from an offset on, each with the offset of the next.

    With `heads_only`, frames are given for the first record alone: the cell itself.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        end = os.fstat(file.fileno()).st_size
        while (record := _read_record(file, offset, end, skip=heads_only and offset > 0)) is not None:
            offset = record[1]
            yield record


def _read_record(file: BinaryIO, offset: int, end: int, *, skip: bool) -> tuple[Record, int] | None:
    file.seek(offset)
    try:
        line = file.readline(SIZES_LIMIT_NBYTES)
        sizes = [int(size) for size in json.loads(line)]
        following = offset + len(line) + sum(sizes)
        if not line.endswith(b"\n") or following > end or not sizes:
            return None
        head = json.loads(file.read(sizes[0]))
    except (ValueError, TypeError):
        return None
    frames = () if skip else tuple(file.read(size) for size in sizes[1:])
    return Record(head, frames), following


def last_words(cell: str, piece: int, outputs: tuple[Output, ...]) -> bytes:
    """Give the record of a piece of output for `read_last_words`, which knows its end: what follows is older."""
    (body,) = to_frames(outputs)
    head = json.dumps({"cell": cell, "piece": piece}).encode()
    return b"".join((json.dumps([len(head), len(body)]).encode(), b"\n", head, body))


def read_last_words(path: Path) -> Record | None:
    """Give a rank's last words, if it has left any."""
    return next((record for record, _ in read_records(path)), None)
