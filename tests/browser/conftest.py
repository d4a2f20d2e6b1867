"""A real JupyterLab and a real browser on this machine: one each for all tests, a fresh notebook a test."""

import os
import re
from itertools import count

import pytest
from lab import PLACES, NoLab, Notebook, Notebook7, mends, opened, served
from leftovers import SharedMemory, TemporaryFiles, nothing_left


@pytest.fixture(autouse=True, scope="session")
def all_there():
    """CI never leaves these tests out in silence; on a user's machine they are skipped."""
    lacking = " and ".join(mends())
    if lacking and os.environ.get("CI") == "true":
        pytest.fail(f"CI lacks what the browser tests need: {lacking}", pytrace=False)
    if lacking:
        pytest.skip(f"no browser tests here: {lacking}")


@pytest.fixture(scope="session")
def lab(tmp_path_factory, all_there):
    """JupyterLab in a folder of its own; neither it nor the kernels and sessions that tests have left leave anything."""
    root = tmp_path_factory.mktemp("lab")
    temporary = root / PLACES["TMPDIR"]
    temporary.mkdir()
    try:
        with nothing_left(SharedMemory(), TemporaryFiles(temporary)), served(root) as server:
            yield server
    except NoLab as error:
        pytest.fail(f"JupyterLab does not start:\n{error}", pytrace=False)


@pytest.fixture(scope="module")
def page(lab):
    """One page with JupyterLab in it; whatever it asks of another machine is refused, and noted."""
    with opened(lab) as page:
        yield page


@pytest.fixture
def front():
    """Which program shows the notebook: ``lab``; a test may be given ``notebook`` (Notebook 7) as well."""
    return "lab"


@pytest.fixture
def notebook(page, lab, front, request):
    """Open a fresh notebook, ``notebook(*cells)``; nothing may leave the machine, no widget may fail."""
    books, numbers = [], count()

    def start(*cells):
        path = f"{re.sub('[^a-z]+', '-', request.node.name)}{next(numbers)}.ipynb"
        books.append({"lab": Notebook, "notebook": Notebook7}[front](page, lab, path, cells))
        return books[-1]

    yield start
    assert page.foreign == []
    for one in books:
        assert one.page.get_by_text("Error displaying widget").count() == 0
        one.choose()
        one.interrupt()
        one.close()
