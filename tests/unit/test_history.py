"""Cells on disk: what was written is read back, and a record that was cut off spoils none before it."""

import errno
import io
import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmagic.wire import history
from hpcmagic.wire.history import append_record, cell_path, cell_paths, read_records

FRAMES = st.lists(st.binary(max_size=40), max_size=3)
HEADS = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=9)), max_size=3)


def records(path, offset=0, **kwargs):
    """Every record from an offset on, as (head, frames)."""
    return [(record.head, list(record.frames)) for record, _ in read_records(path, offset, **kwargs)]


@given(st.lists(st.tuples(HEADS, FRAMES), max_size=5))
def test_read_back(tmp_path_factory, written):
    """Whatever bytes the frames hold, records come back in order, as they were, and add up to the file's size."""
    path = tmp_path_factory.mktemp("cells") / "000001~a"
    sizes = [append_record(path, head, frames) for head, frames in written]
    assert records(path) == written
    assert sum(sizes) == (path.stat().st_size if written else 0)


def test_frames_as_they_come(tmp_path):
    """Frames are whatever has a buffer: arrays' memory is written as its bytes."""
    array = memoryview(bytearray(range(24))).cast("I", (2, 3))
    append_record(tmp_path / "c", {"kind": "reply"}, [array, bytearray(b"xy"), b""])
    assert records(tmp_path / "c") == [({"kind": "reply"}, [bytes(range(24)), b"xy", b""])]


def test_nobody_else_reads(tmp_path):
    """A cell's file is open to its owner only."""
    before = os.umask(0)
    try:
        append_record(tmp_path / "c", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o600


def test_torn_last_record(tmp_path):
    """Of a record that was cut off at any byte nothing is read, and all before it is."""
    path, torn = tmp_path / "c", tmp_path / "torn"
    append_record(path, {"kind": "cell", "n": 1}, [b"[3]\nsource", b""])
    append_record(path, {"kind": "output"}, [b"\n[1]\n"])
    begin = path.stat().st_size
    append_record(path, {"kind": "reply", "rank": 12}, [b"0123456789", b"\n"])
    whole = path.read_bytes()
    assert len(records(path)) == 3
    for end in range(begin, len(whole)):
        torn.write_bytes(whole[:end])
        assert records(torn) == records(path)[:2], f"cut off at {end - begin}"


@pytest.mark.parametrize(
    "junk",
    [b"\n", b"[]\n", b"{}\n", b"7\n", b"null\n", b"[null]\n", b"[2, 3]", b"not json\n", b"[4]\n{{{{", b"\xff\xfe\n"],
)
def test_no_record(tmp_path, junk):
    """What is no record ends the reading, and is no error."""
    append_record(tmp_path / "c", {"kind": "cell"})
    with (tmp_path / "c").open("ab") as file:
        file.write(junk)
    assert records(tmp_path / "c") == [({"kind": "cell"}, [])]


def test_no_file(tmp_path):
    """A cell without a file has no records."""
    assert records(tmp_path / "none") == []


def test_go_on_from(tmp_path):
    """Each record comes with the offset of the next, where a later look goes on."""
    path = tmp_path / "c"
    for number in range(3):
        append_record(path, {"n": number}, [b"x" * number])
    offsets = [following for _, following in read_records(path)]
    assert offsets[-1] == path.stat().st_size
    assert [head["n"] for head, _ in records(path, offsets[0])] == [1, 2]
    assert records(path, offsets[-1]) == []
    append_record(path, {"n": 3})
    assert records(path, offsets[-1]) == [({"n": 3}, [])]


def test_heads_only(tmp_path):
    """Of heads alone the cell itself comes with its frames, and the large rest is not read."""
    path = tmp_path / "c"
    append_record(path, {"kind": "cell"}, [b"source"])
    append_record(path, {"kind": "reply", "rank": 0}, [b"value" * 1000])
    append_record(path, {"kind": "reply", "rank": 1}, [])
    heads = records(path, heads_only=True)
    assert heads == [
        ({"kind": "cell"}, [b"source"]),
        ({"kind": "reply", "rank": 0}, []),
        ({"kind": "reply", "rank": 1}, []),
    ]


def test_kind(tmp_path):
    """A record tells what it is; one that does not is of no kind."""
    append_record(tmp_path / "c", {"kind": "lost"})
    append_record(tmp_path / "c", {})
    assert [record.kind for record, _ in read_records(tmp_path / "c")] == ["lost", ""]


def test_cells_in_order(tmp_path):
    """Cells come in the order in which the keeper saw them, however many there are; other files are none."""
    numbers = [2, 10, 999_999, 1, 1_000_000, 1_000_001]
    for number in numbers:
        append_record(cell_path(tmp_path, number, f"{number:x}"), {})
    for other in (".000003~abc", "000004~abc.tmp", "notes", "4~abc"):
        (tmp_path / other).touch()
    found = cell_paths(tmp_path)
    assert [number for number, _ in found.values()] == sorted(numbers)
    assert {cell: path for cell, (_, path) in found.items()} == {
        f"{number:x}": cell_path(tmp_path, number, f"{number:x}") for number in numbers
    }


def test_no_cells(tmp_path):
    """A session of an older keeper has no folder of cells, and so no cells."""
    assert cell_paths(tmp_path / "none") == {}


class FullDisk(io.FileIO):
    """A file on a disk that has room for so many more bytes, and takes few at once."""

    room = 0

    def write(self, data):
        """Write a part, as a disk that fills up does."""
        part = bytes(data)[: min(7, FullDisk.room)]
        if not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        FullDisk.room -= len(part)
        return super().write(part)


def test_full_disk(tmp_path, monkeypatch):
    """Whenever the disk fills up, the half of a record is taken back, and later ones are read."""
    path, head, frames = tmp_path / "c", {"kind": "reply"}, [b"0123456789" * 3]
    append_record(path, {"kind": "cell"})
    before = path.read_bytes()
    size = len(json.dumps([len(json.dumps(head)), 30])) + 1 + len(json.dumps(head)) + 30
    monkeypatch.setattr(history.os, "fdopen", lambda descriptor, *_: FullDisk(descriptor, "ab"))
    for room in range(size):
        FullDisk.room = room
        with pytest.raises(OSError, match="No space left"):
            append_record(path, head, frames)
        assert path.read_bytes() == before, f"{room} bytes were left"
    FullDisk.room = size
    assert append_record(path, head, frames) == size
    assert records(path) == [({"kind": "cell"}, []), (head, frames)]
