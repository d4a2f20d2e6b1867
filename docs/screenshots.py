"""Make the pictures of the live panel and of the meter, in JupyterLab's light theme and in its dark one.

    python docs/screenshots.py [panel] [meter]

Both come from a real JupyterLab, in a browser that nobody sees (tests/lab.py). For the panel the cells of
notebooks/waves.ipynb run, a parameter is changed, and after a while the picture is taken. The meter is shown what it
would read of a job, since here there is none.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
from playwright.sync_api import Page

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import lab

REPO = Path(__file__).resolve().parent.parent
IMAGES = REPO / "docs" / "images"
PANEL = {"Light": REPO / "docs" / "panel.png", "Dark": IMAGES / "panel-dark.png"}
METER = {"Light": IMAGES / "meter.png", "Dark": IMAGES / "meter-dark.png"}
SCALE = 1.5
RANKS = 2  # no more than a small machine has cores beside the browser
CHANGED, SHOWN = 700, 1500  # from which step on the parameter is changed, and the picture taken
PASSED = "([panel, step]) => Number(panel.dataset.step) > step"
SILENTLY = "(code) => window.book.sessionContext.session.kernel.requestExecute({code, silent: true}).done"
JOB = f"""\
%load_ext hpcmagic
%hpc start --nodes {RANKS} --session waves
import dataclasses, time
from hpcmagic.notebook import readings
real, begun_s = readings.reading, time.monotonic()
def reading(session):
    ran_s = 1442.0 + time.monotonic() - begun_s
    return dataclasses.replace(
        real(session), job="66", ranks=2, nodes=2, unit="billing-minutes", rate_per_hour=269.0, ceiling=134.5,
        spent=ran_s * 269.0 / 3600, elapsed_s=ran_s, left_s=1800.0 - ran_s, idle_s=497.0, balance=4200.0,
        balance_whose="account alice-lab", budget=200.0, budget_spent=ran_s * 269.0 / 3600, budget_what="session")
readings.reading = reading"""
CELL = """\
%%remote
import time
for step in range(0, 10_000, 100):
    energy = 1.0 / (1 + step / 100)
    if rank == 0:
        print(f"step {step:5d}   energy {energy:.4f}")
    time.sleep(0.4)"""


def main() -> None:
    """Take the pictures that were asked for, else all."""
    os.environ["LOGNAME"] = "ada"  # who changed what stands in the panel
    for name in sys.argv[1:] or PICTURES:
        take, width, height = PICTURES[name]
        with (
            tempfile.TemporaryDirectory() as folder,
            lab.served(Path(folder)) as server,
            lab.opened(server, width, height, SCALE) as page,
        ):
            notebook = take(page, server)
            notebook.interrupt()
            notebook.close()


def take_panel(page: Page, server: lab.Lab) -> lab.Notebook:
    """Run the notebook of waves, and take its panel's pictures."""
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
    in_both_themes(notebook, PANEL, lambda path: panel.screenshot(path=path))
    return notebook


def take_meter(page: Page, server: lab.Lab) -> lab.Notebook:
    """Run a cell that keeps the kernel busy, and take pictures of the meter over it."""
    notebook = lab.Notebook(page, server, "waves.ipynb", [CELL])
    notebook.command("application:toggle-left-area")
    page.evaluate(SILENTLY, JOB)
    notebook.run(0, wait=False)
    page.wait_for_selector('.hpcmagic-meter [data-session="waves"][data-left][data-busy="true"]')
    in_both_themes(notebook, METER, lambda path: page.screenshot(path=path))
    return notebook


def in_both_themes(notebook: lab.Notebook, paths: dict[str, Path], shoot: Callable[[Path], object]) -> None:
    """Take a picture in either theme."""
    for theme, path in paths.items():
        notebook.command("apputils:change-theme", theme=f"JupyterLab {theme}")
        notebook.page.wait_for_selector(f'body[data-jp-theme-name="JupyterLab {theme}"]', state="attached")
        notebook.page.wait_for_timeout(2500)  # the panel looks at its colours once a second
        shoot(path)


def cells() -> list[str]:
    """Give the notebook's cells of code, up to that with the simulation."""
    found = [cell.source for cell in nbformat.read(REPO / "notebooks" / "waves.ipynb", 4).cells if is_code(cell)]
    last = next(number for number, source in enumerate(found) if "steer.live(" in source)
    return [source.replace("--nodes 4", f"--nodes {RANKS}") for source in found[: last + 1]]


def is_code(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell is one of code."""
    return bool(cell.cell_type == "code")


PICTURES = {"panel": (take_panel, 1240, 1100), "meter": (take_meter, 1000, 520)}

if __name__ == "__main__":
    main()
