"""The same cells in every front end that runs without a browser: terminal, papermill, nbconvert, old and new IPython.

The terminal is a real one, in tmux: keys go in, and what a person would see is read from its screen.
"""

import os
import re
import shutil
import subprocess
import sys
import time

import nbformat
import pytest
from faults import SOON_S, eventually

from hpcmagic.notebook.found import all_found
from hpcmagic.profiles import resolve
from notebooks import shown_by, text_of

WIDE, HIGH = 110, 45
OLDEST = ("ipykernel==6.29.*", "ipython==8.18.*")  # that pyproject.toml allows
CELL = "%%remote --nodes 2\nprint('hello')\nrank * 10"


class Terminal:
    """IPython in a terminal, and whoever types there."""

    def __init__(self, socket, environment):
        self.tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        ipython = [sys.executable, "-m", "IPython", "--no-banner"]
        told = [f"{name}={value}" for name, value in environment.items()]
        self("new-session", "-d", "-x", str(WIDE), "-y", str(HIGH), "env", "TERM=screen", *told, *ipython)

    def __call__(self, *command):
        """Run one command of tmux's."""
        done = subprocess.run([*self.tmux, *command], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout

    def screen(self):
        """What stands on it, from the beginning."""
        return self("capture-pane", "-p", "-J", "-S", "-").rstrip()

    def waits_for(self, pattern, seconds=SOON_S):
        """Give the screen once it shows this."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, screen := self.screen()):
            assert time.monotonic() < deadline, screen
            time.sleep(0.1)
        return screen

    def keys(self, *keys):
        """Press keys by tmux's names."""
        self("send-keys", *keys)

    def type(self, text, enter=True):
        """Type a text."""
        self("send-keys", "-l", re.sub(";$", r"\;", text))  # tmux would take it for the end of its command
        if enter:
            self.keys("Enter")

    def cell(self, number, *lines):
        """Type a cell and run it; give what stands behind its prompt when the next one comes."""
        for line in lines:
            self.type(line)
            self.waits_for(re.escape(line) + r"\n\s*(\.\.\.:)?")
        for _ in range(2 if len(lines) > 1 else 0):  # IPython ends a cell at its second empty line
            self.keys("Enter")
        screen = self.waits_for(rf"\nIn \[{number + 1}\]:$")
        return screen.partition(f"In [{number}]: ")[2]


@pytest.fixture
def terminal(home, tmp_path):
    """IPython in a terminal of 110 columns."""
    if not shutil.which("tmux"):
        pytest.skip("tmux is missing: sudo apt-get install tmux")
    own = {name: os.environ[name] for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HPCMAGIC_LAUNCHER", "TMPDIR")}
    opened = Terminal(tmp_path / "tmux", {**own, "IPYTHONDIR": str(tmp_path / "ipython")})
    try:
        opened.waits_for(r"In \[1\]:$")
        yield opened
    finally:
        opened("kill-server")


def test_terminal(terminal):
    """In a terminal a cell streams, counts its time in place, is interrupted by Ctrl-C, and leaves nothing behind."""
    terminal.cell(1, "%load_ext hpcmagic")
    shown = terminal.cell(2, "%%remote --nodes 2", "print('hello')", "rank * 10")
    assert "[0-1] hello\n" in shown
    assert re.search(r"2 ranks × .* · on this machine\nOut\[2\]:\s*\n\[0\] 0\n\[1\] 10\n", shown)
    for line in ("%%remote", "import time", "for i in range(600): time.sleep(0.1)"):
        terminal.type(line)
    for _ in range(3):  # one more leaves the loop
        terminal.keys("Enter")
    terminal.waits_for(r"running on 2 ranks, \d+ s \(Ctrl-C interrupts\)")
    terminal.keys("C-c")
    shown = terminal.waits_for(r"\nIn \[4\]:$").partition("In [3]: ")[2]
    assert "KeyboardInterrupt on all 2 ranks\n  cell 3, line 3:" in shown
    assert "running on 2 ranks" not in shown  # the line counted in place, and is gone
    assert "Traceback" not in shown
    shown = terminal.cell(4, "%remote --rank 0 x")
    assert re.search(r"ProfileError: %remote has no option '--rank'\.\n→ Did you mean `--ranks`\?", shown)
    assert "[0-1] 42" in terminal.cell(5, "%remote 6 * 7")
    assert terminal.cell(6, "%remote 6 * 7;").strip().count("42") == 0
    assert "Session" in terminal.cell(7, "%hpc stop")
    terminal.type("exit")
    eventually(lambda: not all_found(resolve({})))


def test_other_magics(home):
    """IPython's own magics go around ours: what a cell prints is captured, its time told, a `;` silences its value."""
    cells = [
        "%load_ext hpcmagic", f"%%capture said\n{CELL}", "print(said.stdout)", f"%%time\n{CELL}", f"{CELL};",
        "x = %remote rank\nx.ranks", "%%remote -h", "import asyncio\nh = %remote -a rank + 1\n[*(await h)]", "%hpc stop",
    ]  # fmt: skip
    shown = shown_by(home, *cells)
    assert shown[1] == ""
    assert "[0-1] hello" in shown[2]
    assert "Wall time" in shown[3]
    assert "[0] 0\n[1] 10" in shown[3]
    assert "[0-1] hello" in shown[4]
    assert "[1] 10" not in shown[4]
    assert "range(0, 2)" in shown[5] or "(0, 1)" in shown[5]
    assert "usage: %%remote [options]" in shown[6]
    assert "[1, 2]" in shown[7]


def test_local_too(home):
    """What fails here and not on the ranks is shown once, with no frame of ours."""
    *_, failed = shown_by(
        home, "%load_ext hpcmagic", "%%remote --nodes 2\ny = 1", "%%remote --local\ny + 1", fails=True
    )
    failed = re.sub(r"\x1b\[[0-9;]*m", "", failed)
    assert "[0-1] 2" not in failed  # the cell's value is that of the failed run here
    assert failed.count("NameError: name 'y' is not defined") == 1
    assert "here (`--local`) it raised NameError" in failed
    assert "magics.py" not in failed


@pytest.fixture
def book(home):
    """A notebook's file with a cell that papermill gives a parameter, and one that fails if that is 0."""
    path = home / "study.ipynb"
    cells = ["n = 1", "%load_ext hpcmagic", "%%remote --nodes 2 --push n\nprint('n is', n)\n6 // n"]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.cells[0].metadata["tags"] = ["parameters"]
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)
    return path


def run(*command, cwd):
    """Run a program of Jupyter's."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "JUPYTER_PLATFORM_DIRS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=cwd,
        env=environment,
        check=False,
    )


def test_papermill(book):
    """Papermill's parameter reaches the ranks; a failed cell stops it; nobody sits there, so that the session ends."""
    done = run("papermill", "--no-progress-bar", book.name, "out.ipynb", "-p", "n", "3", cwd=book.parent)
    assert done.returncode == 0, done.stderr
    cell = nbformat.read(book.with_name("out.ipynb"), 4).cells[-1]
    assert "[0-1] n is 3" in text_of(cell)
    assert "[0-1] 2" in text_of(cell)
    done = run("papermill", "--no-progress-bar", book.name, "out.ipynb", "-p", "n", "0", cwd=book.parent)
    assert done.returncode != 0
    assert "ZeroDivisionError on all 2 ranks" in done.stderr
    eventually(lambda: not all_found(resolve({})))


def test_nbconvert(book):
    """Nbconvert runs it, and its page shows what the ranks have said."""
    done = run("jupyter", "nbconvert", "--execute", "--to", "html", book.name, cwd=book.parent)
    assert done.returncode == 0, done.stderr
    page = book.with_suffix(".html").read_text()
    assert "[0-1] n is 1" in page
    assert "Traceback" not in page
    eventually(lambda: not all_found(resolve({})))


@pytest.fixture(scope="module")
def oldest(tmp_path_factory):
    """The oldest IPython and ipykernel that we allow, in a folder that stands before the installed ones."""
    folder = tmp_path_factory.mktemp("oldest")
    install = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(folder), *OLDEST]
    done = subprocess.run(install, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot fetch {' and '.join(OLDEST)}: {done.stderr[-300:]}")
    return folder


def test_oldest(home, oldest, monkeypatch):
    """The oldest versions that we allow serve as kernel and as ranks."""
    monkeypatch.setenv("PYTHONPATH", str(oldest))
    ask = "import IPython, ipykernel\n[IPython.__version__, ipykernel.__version__, ipykernel.__file__]"
    data = "import numpy as np\nx = np.arange(9)\n%scatter x\n%remote int(x.sum())"
    show = "%%remote\nfrom IPython.display import HTML\ndisplay(HTML('<b>x</b>'))"
    cells = ["%load_ext hpcmagic", CELL, ask, f"%%remote\n{ask}", "h = %remote -a rank\nh.result()", data, show]
    shown = shown_by(home, *cells, "%remote 1 / 0", fails=True)
    assert "[0-1] hello" in shown[1]
    for here in shown[2:4]:
        assert re.search(rf"'8\.18\.\d+',\s*'6\.29\.\d+',\s*'{oldest}/", here)
    assert "[0] 0\n[1] 1" in shown[4]
    assert "[0] 10\n[1] 26" in shown[5]
    assert "HTML" in shown[6]
    assert "ZeroDivisionError on all 2 ranks" in shown[7]
    eventually(lambda: not all_found(resolve({})))
