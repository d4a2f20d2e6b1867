"""Make the pictures of the live panel: docs/panel.png, and docs/images/panel-dark.png in JupyterLab's dark theme.

    python docs/screenshots.py

It runs the cells of notebooks/waves.ipynb in a real JupyterLab, in a browser that nobody sees (tests/lab.py), changes
a parameter, waits, and looks.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import lab

REPO = Path(__file__).resolve().parent.parent
PICTURES = {"Light": REPO / "docs" / "panel.png", "Dark": REPO / "docs" / "images" / "panel-dark.png"}
WIDTH, HEIGHT, SCALE = 1240, 1100, 1.5
RANKS = 2  # no more than a small machine has cores beside the browser
CHANGED, SHOWN = 700, 1500  # from which step on the parameter is changed, and the picture taken
PASSED = "([panel, step]) => Number(panel.dataset.step) > step"


def main() -> None:
    """Run the notebook, take the pictures."""
    os.environ["LOGNAME"] = "ada"  # who changed what stands in the panel
    with (
        tempfile.TemporaryDirectory() as folder,
        lab.served(Path(folder)) as server,
        lab.opened(server, WIDTH, HEIGHT, SCALE) as page,
    ):
        notebook = lab.Notebook(page, server, "waves.ipynb", cells())
        for number in range(len(cells())):
            notebook.run(number)
        page.wait_for_selector('.hpcmagic-live[data-state="running"] .field[data-frames]')
        notebook.command("application:toggle-left-area")  # more room
        panel = notebook.panel()
        panel.get_by_label("colours").select_option("blue–red")
        page.wait_for_function(PASSED, arg=[panel.element_handle(), CHANGED])
        damping = panel.get_by_label("damping").first
        damping.fill("0.001")
        damping.press("Enter")
        damping.blur()
        page.wait_for_function(PASSED, arg=[panel.element_handle(), SHOWN])
        for theme, path in PICTURES.items():
            notebook.command("apputils:change-theme", theme=f"JupyterLab {theme}")
            page.wait_for_selector(f'body[data-jp-theme-name="JupyterLab {theme}"]', state="attached")
            page.wait_for_timeout(2500)  # the panel looks at its colours once a second
            panel.screenshot(path=path)
        notebook.close()


def cells() -> list[str]:
    """Give the notebook's cells of code, up to that with the simulation."""
    found = [cell.source for cell in nbformat.read(REPO / "notebooks" / "waves.ipynb", 4).cells if is_code(cell)]
    last = next(number for number, source in enumerate(found) if "steer.live(" in source)
    return [source.replace("--nodes 4", f"--nodes {RANKS}") for source in found[: last + 1]]


def is_code(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell is one of code."""
    return bool(cell.cell_type == "code")


if __name__ == "__main__":
    main()
