"""A real JupyterLab, or Notebook 7, in a real browser: for the tests, the panel's benchmark, and the documents' pictures.

    served(folder) ─► Lab ─► opened(lab) ─► page ─► Notebook(page, lab, path, cells)
                                                    Notebook7

Everything that runs has its settings, its temporary files and what it keeps below the folder.
"""

import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import psutil

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
]  # fmt: skip
NEEDED = ("playwright", "jupyterlab", "notebook", "anywidget")
STARTS_S = 60
ENDS_S = 10
STEP_S = 30  # the most that a page may take to show something
SETTINGS = {
    "notification": {"fetchNews": "false", "checkForUpdates": False},
    "themes": {"theme": "JupyterLab Light"},
}
PLACES = {
    "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
    "XDG_STATE_HOME": "state", "XDG_CONFIG_HOME": "xdg", "TMPDIR": "t",
}  # fmt: skip


class NoLab(Exception):
    """JupyterLab does not start; the text tells what it said."""


def mends():
    """Give what is to be installed before anything here works."""
    lacking = {
        f"apt-get install {CHROMIUM.rpartition('/')[2]}": not shutil.which(CHROMIUM),
        "pip install 'hpcmagic[test]'": not all(map(importlib.util.find_spec, NEEDED)),
    }
    return [mend for mend, lacks in lacking.items() if lacks]


@dataclass(frozen=True)
class Lab:
    """A server that runs: where, by which token, of which process, and the folder of its notebooks."""

    url: str
    token: str
    pid: int
    work: Path


@contextmanager
def served(root, *options):
    """Serve JupyterLab and Notebook 7 from a folder; with them end, in order, the kernels and sessions still there.

    The server may be given further options.
    """
    for name, settings in SETTINGS.items():
        path = root / "settings" / "@jupyterlab" / "apputils-extension" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    for place in ("work", "browser", PLACES["TMPDIR"]):
        (root / place).mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex()
    own = {name: str(root / place) for name, place in PLACES.items()}
    environment = {**os.environ, **own, "HPCMAGIC_LAUNCHER": "local", "JUPYTER_TOKEN": token}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--LabApp.expose_app_in_browser=True",
        "--JupyterNotebookApp.expose_app_in_browser=True", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={root / 'work'}", "--LabApp.extension_manager=readonly",
        *options,
    ]  # fmt: skip
    with (root / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + STARTS_S
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{url}/api", timeout=5):  # noqa: S310  # ours
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise NoLab((root / "lab.log").read_text()[-3000:])
            time.sleep(0.1)
        yield Lab(url, token, server.pid, root / "work")
    finally:
        end(server, root)


def end(server, root):
    """End a server, its kernels, then keepers; each may tidy up first: a rank that is killed leaves shared memory."""
    children = psutil.Process(server.pid).children(recursive=True)
    server.terminate()  # it ends its kernels
    with suppress(subprocess.TimeoutExpired):
        server.wait(ENDS_S)
    own = [one for one in psutil.process_iter(["cmdline"]) if str(root) in " ".join(one.info["cmdline"] or ())]
    keepers = [one for one in own if "hpcmagic.keeper" in one.info["cmdline"]]
    for keeper in keepers:
        with suppress(psutil.NoSuchProcess):
            keeper.terminate()
    _, left = psutil.wait_procs([*children, *own], ENDS_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    server.kill()
    server.wait()


@contextmanager
def opened(lab, width=1400, height=1000, scale=1, flags=()):
    """Open a browser; give a page in which JupyterLab is, and ``page.foreign``: what was asked of other machines.

    That is refused.
    """
    from playwright.sync_api import sync_playwright

    environment = {**os.environ, "TMPDIR": str(lab.work.parent / "browser")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags], env=environment)
        context = browser.new_context(viewport={"width": width, "height": height}, device_scale_factor=scale)
        context.set_default_timeout(STEP_S * 1000)
        foreign = []

        def gate(route):
            if urlsplit(route.request.url).hostname == "127.0.0.1":
                route.continue_()
            else:
                foreign.append(route.request.url)
                route.abort()

        context.route(re.compile("^(http|ws)"), gate)
        page = context.new_page()
        page.foreign = foreign
        load(page, f"{lab.url}/lab?token={lab.token}&reset")
        yield page
        browser.close()


def load(page, url):
    """Load JupyterLab or Notebook 7, and wait until it is there."""
    page.goto(url)
    page.wait_for_function("window.jupyterapp && window.jupyterapp.restored.then(() => true)")


class Notebook:
    """A fresh notebook that is open in JupyterLab; its cells are given as texts."""

    def __init__(self, page, lab, path, cells, kernel="python3"):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": kernel, "display_name": "Python 3", "language": "python"}
        self.page, self.lab, self.path, self.file = page, lab, path, lab.work / path
        nbformat.write(book, self.file)
        self.open()

    def command(self, name, **arguments):
        """Run one of JupyterLab's commands, without waiting for its end."""
        self.page.evaluate("([n, a]) => { window.jupyterapp.commands.execute(n, a) }", [name, arguments])

    def open(self):
        """Open it, and wait for its kernel."""
        self.command("docmanager:open", path=self.path)
        self.wait_for_kernel()

    def choose(self):
        """Let what follows be done with this one, where others are open in the same page."""
        self.page.evaluate(
            """(path) => {
                window.book = [...window.jupyterapp.shell.widgets('main')].find((w) => w.context?.path === path);
            }""",
            self.path,
        )

    def wait_for_kernel(self):
        """Wait until its kernel waits for cells."""
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
        load(self.page, f"{self.lab.url}/lab?reset")
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


class Notebook7(Notebook):
    """A fresh notebook that is open in Notebook 7, in a page of its own."""

    def open(self):
        """Open it, and wait for its kernel."""
        self.page = self.page.context.new_page()
        load(self.page, f"{self.lab.url}/notebooks/{self.path}?token={self.lab.token}")
        self.wait_for_kernel()

    def close(self):
        """Close it and its page, and end its session and its kernel."""
        super().close()
        self.page.close()
