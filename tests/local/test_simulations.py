"""The notebooks that steer simulations, as they are shipped: their own assertions hold, and a figure comes."""

import shutil
from pathlib import Path

import nbformat
import pytest
from executed import execute, figures, texts
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
MODULES = Path("/usr/lib/python3/dist-packages")  # Debian's, where its LAMMPS lies


@pytest.fixture
def lammps():
    """LAMMPS with its Python module."""
    module, library = MODULES / "lammps", Path("/usr/lib").glob("*/liblammps.so")
    if not (shutil.which("lmp") and module.exists() and any(library)):
        pytest.skip("LAMMPS is missing: sudo apt-get install lammps python3-lammps liblammps-dev")


@pytest.mark.parametrize("name", ["waves", "whirls", "atoms"])
def test_steered(request, tmp_path, monkeypatch, name):
    """It passes, its change is applied, its log lies beside the run, and it leaves neither session nor key."""
    if name == "atoms":
        request.getfixturevalue("lammps")
    sessions = tmp_path / "d"
    monkeypatch.setenv("HPCMAGIC_SESSION_DIR", str(sessions))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    monkeypatch.chdir(tmp_path)
    execute(notebook)
    assert "applied at step" in texts(notebook)
    assert len(figures(notebook)) == 1
    assert list(tmp_path.glob("steering-*.jsonl"))
    assert [path.name for path in sessions.iterdir()] == ["ended"]
    assert list(sessions.rglob("*.key")) == []


def test_without_lammps(tmp_path, monkeypatch):
    """Where LAMMPS is missing the notebook says so, and what to install, in its first cell on the ranks."""
    monkeypatch.setenv("HPCMAGIC_SESSION_DIR", str(tmp_path / "d"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    notebook = nbformat.read(NOTEBOOKS / "atoms.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if str(MODULES) in cell.source)
    first.source = first.source.replace(str(MODULES), str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CellExecutionError, match="LAMMPS is missing on the ranks"):
        execute(notebook)
    assert "apt-get install lammps python3-lammps liblammps-dev" in notebook.cells[0].source


@pytest.mark.parametrize("name", ["waves", "whirls", "atoms"])
def test_shipped_clean(name):
    """It is shipped without outputs, and names its profile in one place."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code if cell.outputs or cell.execution_count] == []
    assert sum(cell.source.count('"local"') for cell in code) == 1
