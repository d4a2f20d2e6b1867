"""Three workflows, as their notebooks are shipped, and what the pages for ipyparallel's and Dask's users say."""

import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from executed import execute, figures, texts
from PIL import Image

REPO = Path(__file__).parents[2]
FENCED = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (.*?) \| (.*?) \|.*?\|$", re.MULTILINE)
NOTEBOOKS = {  # what each says of itself, and a number in it with its bounds
    "depth": ("four ranks found what one process found", r"to within (\S+) pixels", 0.1, 0.4),
    "tuning": ("four ranks give the scores that one process gives", r": (\S+)% of 1079 unseen pictures", 96, 100),
    "rain": ("the script finds the same water, to the last bit", r"rain stopped at step (\d+)", 600, 10_000),
}


@pytest.fixture
def sessions(tmp_path, monkeypatch):
    """Where sessions of this test lie, with nothing set but that ranks are of this machine."""
    monkeypatch.setenv("HPCMAGIC_SESSION_DIR", str(tmp_path / "d"))
    monkeypatch.setenv("HPCMAGIC_LAUNCHER", "local")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "d"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_same_on_ranks(sessions, name):
    """Its ranks find what one process finds, what comes of it makes sense, and neither session nor key is left."""
    notebook = nbformat.read(REPO / "notebooks" / f"{name}.ipynb", as_version=4)
    execute(notebook)
    said = texts(notebook)
    sentence, number, low, high = NOTEBOOKS[name]
    assert sentence in said
    assert low <= float(re.search(number, said)[1]) <= high
    (figure,) = figures(notebook)
    assert_drawn(figure)
    assert [path.name for path in sessions.iterdir()] == ["ended"]
    assert list(sessions.rglob("*.key")) == []


def assert_drawn(figure):
    """Each half of a picture shows something, in colour."""
    with Image.open(io.BytesIO(base64.b64decode(figure.data["image/png"]))) as picture:
        pixels = np.asarray(picture.convert("RGB"), float)
    for half in np.array_split(pixels, 2, axis=1):
        assert half.std() > 20
        assert len(np.unique(half.reshape(-1, 3), axis=0)) > 50
    assert np.ptp(pixels, axis=2).max() > 50


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_shipped_clean(name):
    """It is shipped without outputs, names its profile in one place, and is not long."""
    notebook = nbformat.read(REPO / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code if cell.outputs or cell.execution_count] == []
    assert sum(cell.source.count('"local"') for cell in code) == 1
    assert sum("assert" in cell.source for cell in code) >= 2
    assert len(notebook.cells) <= 20


def test_page_quotes():
    """Every line of code in the page on the three stands in one of them."""
    sources = [nbformat.read(REPO / "notebooks" / f"{name}.ipynb", as_version=4) for name in NOTEBOOKS]
    code = "\n".join(cell.source for notebook in sources for cell in notebook.cells)
    quoted = "".join(FENCED.findall((REPO / "docs" / "workflows.md").read_text())).splitlines()
    assert len(quoted) > 15
    assert [line for line in quoted if line.strip() not in code] == []


def rows(page):
    """The code in the first two columns of a page's table of what is typed, row by row."""
    table = (REPO / "docs" / page).read_text().partition("## What you type there")[2].partition("Starting and")[0]
    found = [tuple(re.findall(r"`([^`]+)`", column) for column in row) for row in ROW.findall(table)]
    return [row for row in found if all(row)]


def cells(codes):
    """Cells of a notebook; a cell magic alone is given a line to run."""
    sources = [f"{code}\n1 + 1" if code.startswith("%%") else code for code in codes]
    return [nbformat.v4.new_code_cell(source) for source in sources]


def run_as_typed(page, begin, columns):
    """Run a page's code blocks, then its table row by row; give the notebook."""
    table = [code for row in rows(page) for column in columns for code in row[column]]
    notebook = nbformat.v4.new_notebook(
        cells=cells([*FENCED.findall((REPO / "docs" / page).read_text()), *begin, *table, "session.stop()"])
    )
    execute(notebook)
    return notebook


def test_from_ipyparallel(sessions):
    """Both columns do what they say on the same ranks, and what the page says of the two together holds."""
    begin = ["%load_ext hpcmagic", "%hpc attach demo", "%remote y = 0"]
    notebook = run_as_typed("from-ipyparallel.md", begin, (0, 1))
    by_source = {cell.source: texts(nbformat.v4.new_notebook(cells=[cell])) for cell in notebook.cells}
    assert by_source['session.gather("x")'].strip() == by_source['dview.gather("x", block=True)'].strip()
    assert by_source["session.map(f, items)"] == by_source["lview.map_sync(f, items)"] == str(list(range(1, 9)))
    assert by_source["session.call(f, 3)"] == "[0-3] 4"
    assert by_source["rc.ids"] == "[0, 1, 2, 3]"
    assert len(rows("from-ipyparallel.md")) >= 15


def test_from_dask(sessions):
    """Every line of the right column does what it says."""
    notebook = run_as_typed("from-dask.md", [], (1,))
    by_source = {cell.source: texts(nbformat.v4.new_notebook(cells=[cell])) for cell in notebook.cells}
    assert by_source["session.map(f, items)"] == str(list(range(1, 9)))
    assert by_source['session.run("comm.allreduce(sum(x))")'] == "[0-3] 28"
    assert by_source['session.gather("x")'] == str(list(range(8)))
    assert len(rows("from-dask.md")) >= 12
