"""The live panel of a simulation, as a person uses it in JupyterLab."""

import re
import time

import pytest

LOAD = "%load_ext hpcmagic\n%hpc start --nodes 2"
SIMULATION = """\
%%remote -a
import time
import numpy as np
from hpcmagic import steer
live = steer.live(comm)
n = 96
lo, hi = rank * n // size, (rank + 1) * n // size
x, y = np.meshgrid(np.arange(n), np.arange(n)[lo:hi])
phase = 0.0
for step in live.steps(100_000):
    speed = live.param("speed", 0.05, min=0.0, max=0.5)
    level = live.param("level", 1.0)
    shear = live.param("shear", False)
    title = live.param("title", "waves")
    phase += speed
    live.publish(speed=speed, phase=np.sin(phase))
    box = slice(lo, hi), slice(0, n)
    live.field("wave", level * np.sin(x / 5 + phase) * np.cos(y / 20), box=box)
    live.field("rows", y - 48.0, box=box)
    time.sleep(0.004)
"""


@pytest.fixture
def running(notebook):
    """Open a notebook in which a simulation runs on two ranks, and wait for its panel."""

    def start(*more):
        book = notebook(LOAD, SIMULATION, *more)
        book.run(0)
        book.run(1)
        book.page.wait_for_selector('.hpcmagic-live[data-state="running"] [data-curve="speed"][data-points]')
        return book

    return start


def number(panel, name):
    """Give a number that the panel tells of itself."""
    return float(panel.get_attribute(f"data-{name}"))


def after(page, panel, step):
    """Wait until the simulation is past a step."""
    page.wait_for_function("([p, s]) => Number(p.dataset.step) > s", arg=[panel.element_handle(), step])


def test_comes_by_itself(running):
    """The panel comes below the cell whose simulation is alive; `%steer` takes it elsewhere, and leaves a picture."""
    book = running("%steer")
    assert book.cell(1).locator(".hpcmagic-live").count() == 1
    book.run(2)
    book.page.wait_for_selector(".hpcmagic-live[data-state=running]")
    assert book.cell(2).locator(".hpcmagic-live").count() == book.panel().count() == 1
    picture = book.cell(1).locator(".hpcmagic-panel img")
    picture.wait_for()
    assert picture.evaluate("(img) => img.naturalWidth") > 0


@pytest.mark.parametrize("front", ["lab", "notebook"])
def test_set(running):
    """In JupyterLab and in Notebook 7: a slider that is dragged sets its parameter; a refusal stands where it belongs; keys are no shortcuts."""
    book = running()
    page, panel = book.page, book.panel()
    assert book.cell(1).locator(".hpcmagic-live").count() == 1
    row = panel.locator('[data-param="speed"]')
    slider = row.locator("input[type=range]")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.12, middle)
    page.mouse.down()
    for part in range(12, 61, 4):
        page.mouse.move(box["x"] + box["width"] * part / 100, middle)
    page.mouse.up()
    panel.get_by_text(re.compile(r"applied at step [\d,]+")).first.wait_for()
    page.wait_for_function(
        "([row, curve]) => row.dataset.value > 0.25 && Math.abs(row.dataset.value - curve.dataset.last) < 1e-12",
        arg=[row.element_handle(), panel.locator('[data-curve="speed"]').element_handle()],
    )
    assert 0.28 < float(row.get_attribute("data-value")) < 0.32
    slider.press("ArrowRight")
    panel.locator("[data-event]").get_by_text(re.compile("speed: .* → .* applied at step")).first.wait_for()

    level = panel.locator('[data-param="level"]')
    level.locator("input").fill("much")
    level.locator("input").press("Enter")
    level.get_by_text("takes a number").wait_for()
    level.locator("input").press("Escape")
    assert level.locator("input").input_value() == "1.0"
    for text, refused in (("much", "true"), ("1.0", "false")):  # back to what it is: nothing is refused any more
        level.locator("input").fill(text)
        level.locator("input").press("Enter")
        level.locator(f'input[aria-invalid="{refused}"]').wait_for()

    cells = page.evaluate("() => window.book.content.widgets.length")
    title = panel.locator('[data-param="title"]')
    title.locator("input").press_sequentially("abxdd")
    title.locator("input").press("Enter")
    page.wait_for_selector('.hpcmagic-live [data-param="title"][data-applied]')
    assert page.evaluate("() => window.book.content.widgets.length") == cells
    panel.locator('[data-param="shear"] input').check()
    page.wait_for_selector('.hpcmagic-live [data-param="shear"][data-value="True"]')


def test_pause_step_resume_stop(running):
    """The simulation pauses, does one step, goes on; stop asks once more. The picture of the end is in the notebook."""
    book = running()
    page, panel = book.page, book.panel()
    panel.get_by_role("button", name="Pause").click()
    page.wait_for_selector('.hpcmagic-live[data-state="paused"][data-answered^="pause"]')
    at = number(panel, "step")
    panel.get_by_role("button", name="Step").click()
    after(page, panel, at)
    assert number(panel, "step") == at + 1
    assert panel.get_attribute("data-state") == "paused"
    panel.get_by_role("button", name="Resume").click()
    page.wait_for_selector('.hpcmagic-live[data-state="running"]')
    after(page, panel, at + 2)
    panel.get_by_role("button", name="Stop", exact=True).click()
    panel.get_by_role("button", name="Go on").click()
    panel.get_by_role("button", name="Stop", exact=True).click()
    panel.get_by_role("button", name="Stop it").click()
    page.wait_for_selector('.hpcmagic-live[data-state="over"]')
    assert panel.get_by_role("button", name="Pause").is_disabled()
    page.wait_for_function(
        "() => JSON.stringify(window.book.content.widgets[1].model.outputs.toJSON()).includes('Simulation over')"
    )


def test_field(running):
    """The picture changes, and tells the value under the pointer; range, colours and zoom are the user's."""
    book = running()
    page, panel = book.page, book.panel()
    field = panel.locator(".field")
    page.wait_for_function("(f) => f.dataset.frames > 5", arg=field.element_handle())
    panel.get_by_label("field", exact=True).locator("visible=true").get_by_role("combobox").first.select_option(
        "rows"
    )
    page.wait_for_selector('.hpcmagic-live .field[data-range="-48 47"]')
    canvas = panel.locator("canvas.image")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * 0.5 / 96, "y": box["height"] * 20.5 / 96})
    page.wait_for_selector(".hpcmagic-live .field[data-hover]")
    row, column, value = re.fullmatch(
        r"row (\d+), column (\d+): (-?[\d.]+)", field.get_attribute("data-hover")
    ).groups()
    assert (int(row), int(column)) == (20, 0)
    assert abs(float(value) - (20 - 48)) < 0.2
    panel.get_by_label("colours").select_option("blue–red")
    page.wait_for_selector('.hpcmagic-live .field[data-range="-48 48"]')
    panel.get_by_label("range", exact=True).select_option("fixed")
    panel.get_by_label("highest").fill("10")
    panel.get_by_label("highest").press("Enter")
    page.wait_for_selector('.hpcmagic-live .field[data-range="-48 10"]')
    canvas.click()
    page.mouse.wheel(0, -100)
    page.wait_for_selector('.hpcmagic-live .field[data-zoom="1.25"]')
    canvas.press("0")
    page.wait_for_selector('.hpcmagic-live .field[data-zoom="1.00"]')
    canvas.press("ArrowDown")
    page.wait_for_selector(".hpcmagic-live .field[data-hover]")


def test_while_a_cell_runs(running):
    """While a cell keeps the kernel busy the panel lives, and a click takes effect within a second."""
    book = running("import time; time.sleep(600)")
    page, panel = book.page, book.panel()
    book.run(2, wait=False)
    busy = "() => window.book.content.widgets[2].model.executionState === 'running'"
    page.wait_for_function(busy)
    after(page, panel, number(panel, "step") + 50)
    began = time.monotonic()
    panel.get_by_role("button", name="Pause").click()
    page.wait_for_selector('.hpcmagic-live[data-state="paused"]')
    assert time.monotonic() - began < 1
    assert page.evaluate(busy)
    book.interrupt()


def test_page_that_stalls(running):
    """A page that does not say how far it is gets no more than a few messages; when it does again, it gets all."""
    book = running(
        "from hpcmagic.notebook import panel as p; import time; (one,) = p._shown.values()\n"
        "sent = [one._window.sent]\n"
        "while len(sent) < 15 and sent[-1:] != sent[-2:-1]: time.sleep(1.0); sent.append(one._window.sent)\n"
        "print(len(sent), sent[-1] - sent[0])"
    )
    page, panel = book.page, book.panel()
    page.evaluate(
        "() => Object.defineProperty(document, 'visibilityState', {get: () => 'hidden', configurable: true})"
    )
    book.run(2)
    seconds, messages = map(int, book.text(2).split())
    assert seconds < 15  # then none came any more
    assert messages <= 18
    step = number(panel, "step")
    page.evaluate("() => { delete document.visibilityState }")
    after(page, panel, step + 200)


def test_reload_and_saved(running):
    """A page that is loaded anew shows the panel; so does one whose wire to the ranks was cut; when the kernel has ended the saved notebook shows the picture."""
    book = running("from hpcmagic.notebook import panel as p; (one,) = p._shown.values(); one.mirror._hang_up()")
    page = book.page
    book.run(2)
    page.wait_for_selector('.hpcmagic-live[data-state="lost"]')
    page.wait_for_selector('.hpcmagic-live[data-state="running"]')
    book.panel().get_by_role("button", name="Pause").click()
    page.wait_for_selector('.hpcmagic-live[data-state="paused"]')
    points = int(book.panel().locator('[data-curve="speed"]').get_attribute("data-points"))
    book.save()
    book.reopen()
    page.wait_for_selector('.hpcmagic-live[data-state="paused"] [data-curve="speed"][data-points]')
    assert int(book.panel().locator('[data-curve="speed"]').get_attribute("data-points")) >= points
    (picture,) = [one for one in book.save()[1].outputs if "image/png" in one.get("data", {})]
    assert "Simulation" in picture["data"]["text/plain"]
    book.reopen(kernel=False)
    shown = book.cell(1).locator(".hpcmagic-panel img")
    shown.wait_for()
    assert shown.evaluate("(img) => img.naturalWidth") > 0
    assert book.panel().count() == 0


def test_every_control_named(running):
    """Whoever hears the page instead of seeing it is told what each control is."""
    book = running()
    nameless = book.panel().evaluate(
        """(host) => [...host.shadowRoot.querySelectorAll('button, input, select, canvas[role], canvas[tabindex]')]
            .filter((one) => !(one.labels?.length || one.getAttribute('aria-label') || one.textContent.trim()))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    book.panel().get_by_role("button", name="close the panel").click()
    book.panel().wait_for(state="detached")
    book.cell(1).locator(".hpcmagic-panel img").wait_for()
