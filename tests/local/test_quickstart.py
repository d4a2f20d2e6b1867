"""The quickstart notebook, as `make demo` runs it: on four ranks of this machine."""

from pathlib import Path

import nbformat
import pytest
from executed import execute, figures, texts

QUICKSTART = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


@pytest.mark.parametrize(("mpi", "world"), [("auto", "MPI world of 4"), ("none", "no MPI")])
def test_runs_here(tmp_path, monkeypatch, mpi, world):
    """As it is shipped it passes with MPI and without, ends with a figure, and leaves neither session nor key."""
    sessions = tmp_path / "d"
    monkeypatch.setenv("HPCMAGIC_SESSION_DIR", str(sessions))
    monkeypatch.setenv("HPCMAGIC_MPI", mpi)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    notebook = nbformat.read(QUICKSTART, as_version=4)
    monkeypatch.chdir(tmp_path)
    execute(notebook)
    said = texts(notebook)
    assert world in said
    assert "four ranks measured what one process measures" in said
    assert len(figures(notebook)) == 1
    assert [path.name for path in sessions.iterdir()] == ["ended"]
    assert list(sessions.rglob("*.key")) == []


def test_shipped_clean():
    """It is shipped without outputs, and names its profile in one place."""
    notebook = nbformat.read(QUICKSTART, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code if cell.outputs or cell.execution_count] == []
    assert sum(cell.source.count('"local"') for cell in code) == 1
    assert "assert" in code[-1].source
