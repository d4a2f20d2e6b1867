"""Rows that ranks write into files: what is asked of them, and when it is given up."""

from types import SimpleNamespace

import numpy as np
import pytest

from hpcmagic.files import File
from hpcmagic.notebook.rows import gather_file
from hpcmagic.wire.parcels import packed


@pytest.mark.parametrize("name", ["x.npy", "x.zarr"])
@pytest.mark.parametrize("at", ["rows", "finish"])
def test_broken_off_between_two_steps(tmp_path, name, at):
    """Ctrl-C at any moment has rank 0 give the unfinished file up."""
    asked = []
    first = "chunks" if at == "rows" and name.endswith("zarr") else at

    def ask(messages):
        asked.append(messages[min(messages)].step)
        if asked[-1] == first:
            raise KeyboardInterrupt

    offered = {rank: SimpleNamespace(parcel=packed(np.zeros(3))[0]) for rank in range(2)}
    with pytest.raises(KeyboardInterrupt):
        gather_file(SimpleNamespace(ask=ask, ended=""), "x", File(str(tmp_path / name)), offered, axis=0, transfer=1)
    assert asked[0] == "begin"
    assert asked[-2:] == [first, "give up"]


def test_zarr_in_two_steps(tmp_path):
    """Of a Zarr array all ranks write their own chunks at once, then one after the other what they share."""
    asked = []

    def ask(messages):
        asked.append((messages[min(messages)].step, sorted(messages)))

    offered = {rank: SimpleNamespace(parcel=packed(np.zeros(3))[0]) for rank in range(2)}
    gather_file(SimpleNamespace(ask=ask, ended=""), "x", File(str(tmp_path / "x.zarr")), offered, axis=0, transfer=1)
    assert asked == [("begin", [0]), ("chunks", [0, 1]), ("edges", [0]), ("edges", [1]), ("finish", [0])]
