"""The visible meter, as a person sees and uses it in JupyterLab and in Notebook 7."""

import os
import signal
import time

import pytest
from lab import Notebook7

SOON = "from hpcmagic.notebook import meter; meter.READ_S = 0.3"
LOAD = f"%load_ext hpcmagic\n{SOON}\n%hpc start --nodes 2"
LONG = "print('line\\n' * 300)"
BUSY = "%%remote\nimport time; time.sleep(600)"
LOOKS_LIKE = """\
import dataclasses
from hpcmagic.notebook import readings
real = readings.reading
readings.reading = lambda session: dataclasses.replace(real(session), {})"""
NOT_AT_ONCE = """\
import os, time
at_once, meter.GRACE_S, meter.BEAT_S = meter.Meter.receive, 2.0, 0.5
def receive(self, message):
    time.sleep(1.5 if message["kind"] == "do" else 0.0)
    at_once(self, message)
meter.Meter.receive = receive
print(os.getpid())
%meter on"""
RUNNING = "(n) => window.book.content.widgets[n].model.executionState === 'running'"


def session(book):
    """What the name of a notebook's session begins with."""
    return book.path.removesuffix(".ipynb") + "-"


def row(book, page=None, **data):
    """Wait until the row of a notebook's session is in a page, and stands as is said; give it."""
    wanted = "".join(f'[data-{name.replace("_", "-")}="{value}"]' for name, value in data.items())
    found = (page or book.page).locator(f'.hpcmagic-meter [data-session^="{session(book)}"]{wanted}')
    found.wait_for()
    return found


def number(shown, name):
    """Give a number that a row tells."""
    return float(shown.get_attribute(f"data-{name}"))


def on_top(shown):
    """Whether the middle of a row is what one would click there."""
    return shown.evaluate(
        """(row) => {
            const {left, top, width, height} = row.getBoundingClientRect();
            const there = document.elementFromPoint(left + width / 2, top + height / 2);
            return there === row.getRootNode().host;
        }"""
    )


@pytest.fixture
def running(notebook):
    """Open a notebook with a session of two ranks, with an hour left if need be, and wait for its row."""

    def start(*more, hour=False):
        book = notebook(f"{LOOKS_LIKE.format('left_s=3600.0')}\n{LOAD}" if hour else LOAD, *more)
        book.run(0)
        row(book, state="ready")
        return book

    return start


@pytest.mark.parametrize("front", ["lab", "notebook"])
def test_in_sight(running):
    """The meter comes by itself, stays on top wherever one scrolls, says what is paid, and goes on `%meter off`."""
    book = running(LONG, "%meter off", "%meter on", "%meter")
    shown = row(book)
    book.run(1)
    for place in ("first", "last"):
        getattr(
            book.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell"), place
        ).scroll_into_view_if_needed()
        assert shown.is_visible()
        assert on_top(shown)
    for words in ("core-hours", "2 an hour", "no walltime", "idle waste"):
        shown.locator("dl").get_by_text(words).first.wait_for()
    assert not shown.get_by_role("button", name="30 minutes more").is_visible()  # there is no walltime here
    book.run(2)
    shown.wait_for(state="detached")
    book.run(3)
    row(book, state="ready", feeds=1)
    book.run(4)
    assert "ready, 2 ranks on this machine" in book.text(4)
    assert row(book).count() == 1


def test_kernel_busy(running):
    """While a cell keeps the kernel busy the numbers go on, a click is answered, and stop, once confirmed, ends it all."""
    book = running("meter.LINGERS_S = 1.0", BUSY, hour=True)
    page = book.page
    book.run(1)
    book.run(2, wait=False)
    shown = row(book, busy="true")
    spent = number(shown, "spent")
    page.wait_for_function(
        "([row, spent]) => Number(row.dataset.spent) > spent + 0.001", arg=[shown.element_handle(), spent]
    )
    shown.get_by_role("button", name="30 minutes more").click()
    began_s = time.monotonic()
    row(book, said="extend refused").get_by_text("no walltime to extend").wait_for()
    assert time.monotonic() - began_s < 3
    assert page.evaluate(RUNNING, 2)

    stop = shown.get_by_role("button", name="stop session")
    stop.click()
    shown.get_by_text("the variables on its 2 ranks are lost, and what runs there").wait_for()
    shown.get_by_role("button", name="Go on").click()
    assert page.evaluate(RUNNING, 2)
    stop.click()
    shown.get_by_role("button", name="Stop it").click()
    ended = row(book, state="ended")
    ended.get_by_text("it was stopped").wait_for()
    assert not stop.is_visible()
    page.wait_for_function(f"!({RUNNING})(2)")
    shown.wait_for(state="detached")


def test_folded(running):
    """A key folds it to one line; that is remembered after a reload, and the meter is there again, at the latest when the cell is over that runs. It has a dark side."""
    book = running("%%remote\nimport time; time.sleep(3)")
    page = book.page
    fold = page.locator(".hpcmagic-meter").get_by_role("button", name="fold the meter")
    fold.focus()
    page.keyboard.press("Enter")
    page.locator('.hpcmagic-meter[data-folded="true"]').wait_for()
    shown = row(book)
    assert shown.bounding_box()["height"] < 40
    assert not shown.get_by_text("idle waste").is_visible()
    shown.get_by_text("core-hours").first.wait_for()
    book.run(1, wait=False)
    row(book, busy="true")
    book.reopen()
    again = row(book, state="ready")
    page.locator('.hpcmagic-meter[data-folded="true"]').wait_for()
    page.get_by_role("button", name="unfold the meter").press("Space")
    again.get_by_text("idle waste").wait_for()

    paper = "(row) => getComputedStyle(row.parentElement.parentElement).backgroundColor"
    light = again.evaluate(paper)
    book.command("apputils:change-theme", theme="JupyterLab Dark")
    page.wait_for_function(f"([row, light]) => ({paper})(row) !== light", arg=[again.element_handle(), light])
    assert sum(map(int, again.evaluate(paper).strip("rgb()").split(","))) < 3 * 80
    book.command("apputils:change-theme", theme="JupyterLab Light")


def test_keys_and_names(running):
    """Each control has a name and can be reached by Tab, keys are no shortcuts of JupyterLab's, what changes is told aloud."""
    book = running(hour=True)
    page, shown = book.page, row(book)
    cells = page.evaluate("() => window.book.content.widgets.length")
    stop = shown.get_by_role("button", name="stop session")
    stop.focus()
    page.keyboard.press("b")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.shadowRoot.activeElement.dataset.verb") == "extend"
    stop.press("Enter")
    assert page.evaluate("() => document.activeElement.shadowRoot.activeElement.dataset.verb") == "go-on"
    page.locator(".hpcmagic-meter [role=status]").get_by_text("are lost").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.shadowRoot.activeElement.dataset.verb") == "stop"
    assert page.evaluate("() => window.book.content.widgets.length") == cells
    nameless = page.locator(".hpcmagic-meter").evaluate(
        """(host) => [...host.shadowRoot.querySelectorAll('button, [role=group], [role=region]')]
            .filter((one) => !(one.getAttribute('aria-label') || one.textContent.trim())).map((one) => one.outerHTML)"""
    )
    assert nameless == []


def test_two_notebooks(running, notebook, page, lab):
    """Two sessions are two rows; two notebooks on one session one row, that stays when one of them goes; two tabs each have it."""
    one, other = running(hour=True), running()
    assert row(one).count() == row(other).count() == 1
    name = row(one).get_attribute("data-session")
    third = notebook(f"%load_ext hpcmagic\n%hpc attach {name}", "%meter off")
    third.run(0)
    row(one, feeds=2)
    third.run(1)
    row(one, feeds=1, state="ready")

    tab = Notebook7.__new__(Notebook7)
    tab.page, tab.lab, tab.path = page, lab, one.path
    tab.open()  # another tab with the first notebook and its kernel
    try:
        row(one, tab.page, state="ready").get_by_role("button", name="30 minutes more").click()
        row(one, tab.page, said="extend refused")
        assert row(one).get_attribute("data-said") is None  # it was asked elsewhere
    finally:
        tab.page.close()


def test_kernel_silent(running):
    """A click that the kernel does not take at once waits, and says so; the row of a kernel that was killed says since when it is stale, and goes on; the next kernel takes its place."""
    book = running(NOT_AT_ONCE, hour=True)
    page = book.page
    book.run(1)
    shown = row(book, feeds=1, silent=2.5)
    shown.get_by_role("button", name="30 minutes more").click()
    row(book, said="extend waits").get_by_text("Waits for the kernel").wait_for()
    row(book, said="extend refused")

    os.kill(int(book.text(1).split()[0]), signal.SIGKILL)
    row(book, stale="kernel").locator("[data-note=stale]").get_by_text("Stale since").wait_for()
    spent = number(shown, "spent")
    page.wait_for_function("([row, spent]) => Number(row.dataset.spent) > spent", arg=[shown.element_handle(), spent])
    page.locator(".jp-Dialog").get_by_role("button", name="Ok").click()  # JupyterLab tells that it starts another
    book.wait_for_kernel()
    book.run(0, wait=False)
    row(book, stale="", feeds=1, state="ready")


def test_countdown(running):
    """A session that is about to end since no cell runs counts down in sight; one click keeps it."""
    book = running(LOOKS_LIKE.format("idle_limit_s=600.0, idle_left_s=42.0, stale_s=90.0"))
    book.run(1)
    shown = row(book, short="true", stale="slurm")
    shown.get_by_text("idle: ends in 41 s").wait_for()
    shown.get_by_text("SLURM is not heard").wait_for()
    shown.get_by_role("button", name="keep session").click()
    row(book, said="keep done")
