"""A real JupyterLab and a real browser on this machine: one each for all tests, a fresh notebook a test."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from itertools import count
from urllib.parse import urlsplit

import nbformat
import psutil
import pytest

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
]  # fmt: skip
STARTS_S = 60
STEP_S = 30  # the most that a page may take to show something
TOKEN = "browser-tests"
SETTINGS = {
    "notification": {"fetchNews": "false", "checkForUpdates": False},
    "themes": {"theme": "JupyterLab Light"},
}


@pytest.fixture(autouse=True, scope="session")
def all_there():
    """CI never leaves these tests out in silence; on a user's machine they are skipped."""
    lacking = {
        f"apt-get install {CHROMIUM.rpartition('/')[2]}": not shutil.which(CHROMIUM),
        "pip install 'hpcmagic[test]'": not all(
            map(importlib.util.find_spec, ("playwright", "jupyterlab", "anywidget"))
        ),
    }
    mends = [mend for mend, lacks in lacking.items() if lacks]
    if mends and os.environ.get("CI") == "true":
        pytest.fail(f"CI lacks what the browser tests need: {' and '.join(mends)}", pytrace=False)
    if mends:
        pytest.skip(f"no browser tests here: {' and '.join(mends)}")


@pytest.fixture(scope="session")
def lab(tmp_path_factory, all_there):
    """JupyterLab in a folder of its own; with it end the kernels and sessions that tests have left."""
    root = tmp_path_factory.mktemp("lab")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, settings in SETTINGS.items():
        path = root / "settings" / "@jupyterlab" / "apputils-extension" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    places = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
        "XDG_STATE_HOME": "state", "XDG_CONFIG_HOME": "xdg",
    }  # fmt: skip
    own = {name: str(root / place) for name, place in places.items()}
    (root / "work").mkdir()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--LabApp.expose_app_in_browser=True",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={root / 'work'}", "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    with (root / "lab.log").open("w") as log:
        environment = {**os.environ, **own, "HPCMAGIC_LAUNCHER": "local"}
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + STARTS_S
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{url}/api", timeout=5):  # noqa: S310  # ours
                break
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"JupyterLab does not start:\n{(root / 'lab.log').read_text()[-3000:]}", pytrace=False)
            time.sleep(0.1)
        yield url, root / "work"
    finally:
        children = psutil.Process(server.pid).children(recursive=True)
        children += [p for p in psutil.process_iter(["cmdline"]) if str(root) in " ".join(p.info["cmdline"] or ())]
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)
        for process in children:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def page(lab):
    """One page with JupyterLab in it; whatever it asks of another machine is refused, and noted."""
    from playwright.sync_api import sync_playwright

    url, _ = lab
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(STEP_S * 1000)
        page.foreign = []

        def gate(route):
            if urlsplit(route.request.url).hostname == "127.0.0.1":
                route.continue_()
            else:
                page.foreign.append(route.request.url)
                route.abort()

        page.route(re.compile("^(http|ws)"), gate)
        load(page, f"{url}/lab?token={TOKEN}&reset")
        yield page
        browser.close()


def load(page, url):
    """Load JupyterLab, and wait until it is there."""
    page.goto(url)
    page.wait_for_function("window.jupyterapp && window.jupyterapp.restored.then(() => true)")


class Notebook:
    """A notebook that is open in JupyterLab."""

    def __init__(self, page, path, file):
        self.page, self.path, self.file = page, path, file
        self.open()

    def command(self, name, **arguments):
        """Run one of JupyterLab's commands, without waiting for its end."""
        self.page.evaluate("([n, a]) => { window.jupyterapp.commands.execute(n, a) }", [name, arguments])

    def open(self):
        """Open it, and wait for its kernel."""
        self.command("docmanager:open", path=self.path)
        self.page.wait_for_function(
            """(path) => {
                const one = [...window.jupyterapp.shell.widgets('main')].find((w) => w.context?.path === path);
                if (!one?.content?.widgets?.length || one.sessionContext.session?.kernel?.status !== 'idle') return false;
                window.book = one; return true;
            }""",
            arg=self.path,
        )

    def run(self, number, *, wait=True):
        """Run a cell, and wait until it is over."""
        before = self.count(number)
        self.page.evaluate("(n) => { window.book.content.activeCellIndex = n }", number)
        self.command("notebook:run-cell")
        if wait:
            self.page.wait_for_function(
                """([n, before]) => {
                    const model = window.book.content.widgets[n].model;
                    return model.executionState === 'idle' && model.executionCount !== null && model.executionCount !== before;
                }""",
                arg=[number, before],
            )

    def count(self, number):
        """Give the number beside a cell."""
        return self.page.evaluate("(n) => window.book.content.widgets[n].model.executionCount", number)

    def cell(self, number):
        """Give a cell in the page."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(number)

    def text(self, number):
        """Give what a cell has put out, as it would be saved."""
        outputs = self.page.evaluate("(n) => window.book.content.widgets[n].model.outputs.toJSON()", number)
        parts = [
            one.get("text") or (one.get("data") or {}).get("text/plain") or one.get("evalue") or "" for one in outputs
        ]
        return "\n".join("".join(part) for part in parts)

    def panel(self):
        """Give the live panel."""
        return self.page.locator(".hpcmagic-live")

    def save(self):
        """Save it; give the file's cells."""
        self.page.evaluate("() => window.book.context.save()")
        return nbformat.read(self.file, 4).cells

    def reopen(self, *, kernel=True):
        """Close the page, as a person does, and open the notebook again; without its kernel, if that is to end."""
        if not kernel:
            self.page.evaluate("() => window.book.sessionContext.shutdown()")
        load(self.page, self.page.url.partition("/lab")[0] + "/lab?reset")
        self.open()

    def interrupt(self):
        """Interrupt what runs, and wait for its end."""
        self.page.evaluate("() => { window.book.sessionContext.session?.kernel?.interrupt() }")
        self.page.wait_for_function(
            "() => !window.book.content.widgets.some((w) => w.model.executionState === 'running')"
        )

    def close(self):
        """Close it, and end its session and its kernel."""
        self.page.evaluate(
            """async () => {
                const {sessionContext, context} = window.book;
                const kernel = sessionContext.session?.kernel;
                const late = new Promise((done) => setTimeout(done, 10000));
                const stop = {code: "get_ipython().run_line_magic('hpc', 'stop')", silent: true};
                if (kernel) await Promise.race([kernel.requestExecute(stop).done, late]);
                await context.save();
                if (kernel) await sessionContext.shutdown();
                window.book.dispose();
            }"""
        )


@pytest.fixture
def notebook(page, lab, request):
    """Open a fresh notebook, ``notebook(*cells)``; nothing may leave the machine, no widget may fail."""
    _, work = lab
    opened, numbers = [], count()

    def start(*cells):
        path = f"{re.sub('[^a-z]+', '-', request.node.name)}{next(numbers)}.ipynb"
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, work / path)
        opened.append(Notebook(page, path, work / path))
        return opened[-1]

    yield start
    assert page.foreign == []
    assert page.get_by_text("Error displaying widget").count() == 0
    for one in opened:
        one.interrupt()
        one.close()
