"""What a killed mpiexec leaves is removed by name: that of its own run, and nobody else's."""

import os

import pytest

from hpcmagic.keeper.remains import remove_remains

ME = os.getuid()


@pytest.fixture
def host(tmp_path):
    """A folder for temporary files and one of shared memory, with what two runs have in them."""
    temporary, shared = tmp_path / "tmp", tmp_path / "shm"
    shared.mkdir()
    for pid, run in ((11, 0x1BC80000), (12, 0x0AA80000)):
        folder = temporary / f"ompi.n1.{ME}" / f"pid.{pid}"
        (folder / "0").mkdir(parents=True)
        (folder / "contact.txt").write_text(f"{run}.0;tcp://127.0.0.1:40000\n{pid}\n")
        for rank in (0, 1):
            (shared / f"vader_segment.n1.{ME}.{run + 1:x}.{rank}").touch()
    return temporary, shared


def left(host):
    return sorted(path.name for folder in host for path in folder.rglob("pid.*")), sorted(os.listdir(host[1]))


def test_own_run(host):
    """Folder and segments of the run go, those of another stay."""
    remove_remains(11, *host)
    assert left(host) == (["pid.12"], [f"vader_segment.n1.{ME}.aa80001.{rank}" for rank in (0, 1)])


def test_nothing_there(host):
    """An mpiexec that cleared up, or another program, has left nothing to remove."""
    before = left(host)
    remove_remains(13, *host)
    assert left(host) == before


@pytest.mark.parametrize("contact", [None, "", "no number"])
def test_begun_only(host, contact):
    """A run that did not get far enough to say its number leaves a folder, which goes."""
    told = host[0] / f"ompi.n1.{ME}" / "pid.11" / "contact.txt"
    told.unlink()
    if contact is not None:
        told.write_text(contact)
    remove_remains(11, *host)
    assert left(host)[0] == ["pid.12"]
    assert len(left(host)[1]) == 4
