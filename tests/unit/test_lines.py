"""A line that cannot work starts nothing: no job is bought for a name that is misspelt."""

from types import SimpleNamespace

import pytest
from two_lines import two_lines

from hpcmagic.errors import HpcMagicError, ProfileError
from hpcmagic.notebook.extension import with_a_body
from hpcmagic.notebook.magics import HpcMagics


@pytest.fixture
def magics(desk):
    """The magics of a notebook where SLURM answers, with one variable."""
    magics = HpcMagics(None)
    magics.shell = SimpleNamespace(user_ns={"x": [1, 2]}, var_expand=str, execution_count=1,
                                   displayhook=SimpleNamespace(exec_result=None))  # fmt: skip
    return magics


@pytest.mark.parametrize("line", [
    "--nodes 2 --push y", "--nodes 2 --push x,y", "--nodes 2 --scatter y", "--nodes 2 --ranks 7", "--nodes 2 --ranks a",
    "--nodes 2 --out 1x", "--nodes 2 --timeout -1",
])  # fmt: skip
def test_cells(magics, desk, line):
    """Neither for a variable that is not here, nor for a rank that there will not be."""
    with pytest.raises(HpcMagicError) as error:
        magics.remote_cell(line, "1")
    two_lines(error)
    assert not desk.launcher.jobs
    assert not magics.held


def test_await_here_too(magics, desk):
    """A cell that awaits cannot run here from within a magic: that is said before any rank has run it."""
    with pytest.raises(ProfileError, match="top-level `await`") as error:
        magics.remote_cell("--nodes 2 --local", "import asyncio\nawait asyncio.sleep(0)")
    two_lines(error)
    assert not desk.launcher.jobs


@pytest.mark.parametrize("act", ["push", "scatter"])
def test_names(laptop, magics, act):
    """Nor where it would be free."""
    with pytest.raises(HpcMagicError, match="`y` is not defined here") as error:
        getattr(magics, act)("y")
    two_lines(error)
    assert not laptop.launcher.jobs


@pytest.mark.parametrize("verb", ["log", "stop", "attach", "restart", "cells", "cancel", "vars"])
def test_verbs_without_a_session(magics, verb):
    """A verb that needs a session and finds none says so, and invents no name."""
    with pytest.raises(ProfileError, match="This notebook has no session") as error:
        magics.hpc(verb)
    two_lines(error)


@pytest.mark.parametrize(("cell", "given"), [
    (["%%remote -h"], ["%%remote -h\n", "\n"]),
    (["%%remote --dry-run\n", "  \n"], ["%%remote --dry-run\n", "\n"]),
    (["%%remote --nodes 2\n"], ["%%remote --nodes 2\n"]),  # in a terminal more is to come
    (["%%remote\n", "1\n"], ["%%remote\n", "1\n"]),
    (["%%time\n"], ["%%time\n"]), (["x = 1\n"], ["x = 1\n"]), ([], []),
])  # fmt: skip
def test_cell_without_a_body(cell, given):
    """A cell that is nothing but our line reaches us; all others stay as they are."""
    assert with_a_body(cell) == given
