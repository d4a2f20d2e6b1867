"""Make the pictures of the front ends in docs/images: lab.png, notebook7.png and terminal.png.

    python docs/frontends.py

The same cells in JupyterLab, in Notebook 7, both in a browser that nobody sees (tests/lab.py), and in IPython in a
terminal, which is tmux's: its screen becomes a page, and that a picture.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import lab

IMAGES = Path(__file__).resolve().parent / "images"
WIDTH, HEIGHT, SCALE = 1100, 840, 1.5
COLUMNS, LINES = 104, 60
READY_S = 60.0
FIRST = """\
%%remote --nodes 4 --session demo
import numpy as np
mine = np.random.default_rng(rank).random(1_000_000)
print(f"{mine.size:,} numbers, mean {mine.mean():.2f}")
if rank == 0: print("I am the first of", size)
int(mine.argmax())"""
CELLS = ["%load_ext hpcmagic", FIRST, "%%remote\n1 / (rank - 2)", "%hpc vars"]
CODES = {1: ("font-weight", "bold"), 2: ("opacity", "0.6"), 39: ("color", "inherit")}
COLOURS = ["#2e3436", "#ef5350", "#66bb6a", "#ffca28", "#64b5f6", "#ce93d8", "#4dd0e1", "#eceff1"]
PAGE = """
<body style="margin:0;background:#1e1e1e"><pre style="margin:0;padding:14px 18px;display:inline-block;color:#d4d4d4;
font:14px/1.35 'DejaVu Sans Mono',monospace;background:#1e1e1e">{}</pre></body>
"""


def main() -> None:
    """Take the pictures."""
    with (
        tempfile.TemporaryDirectory() as folder,
        lab.served(Path(folder)) as server,
        lab.opened(server, WIDTH, HEIGHT, SCALE) as page,
    ):
        book = lab.Notebook(page, server, "demo.ipynb", CELLS)
        run(book)
        book.command("application:toggle-left-area")  # more room
        page.wait_for_timeout(1500)
        page.screenshot(path=IMAGES / "lab.png")
        book.close()
        book = lab.Notebook7(page, server, "demo7.ipynb", CELLS)
        book.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        run(book)
        book.page.wait_for_timeout(1500)
        book.page.screenshot(path=IMAGES / "notebook7.png")
        book.close()
        page.set_content(PAGE.format(terminal(Path(folder))))
        page.locator("pre").screenshot(path=IMAGES / "terminal.png")


def run(book: lab.Notebook) -> None:
    """Run all cells; the third fails, as it should."""
    for number in range(len(CELLS)):
        book.run(number)
    book.page.evaluate("() => { window.book.content.node.querySelector('.jp-WindowedPanel-outer')?.scrollTo(0, 0) }")


def terminal(folder: Path) -> str:
    """Run the cells in IPython in a terminal; give its screen as HTML."""
    tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
    own = [f"{name}={folder / place}" for name, place in lab.PLACES.items()]
    size = ["-x", str(COLUMNS), "-y", str(LINES)]
    ipython = [sys.executable, "-m", "IPython", "--no-banner", "--no-confirm-exit"]

    def tell(*words: str) -> str:
        return subprocess.run([*tmux, *words], capture_output=True, text=True, timeout=20, check=True).stdout

    def wait_for(prompt: str) -> None:
        deadline = time.monotonic() + READY_S
        while not tell("capture-pane", "-p", "-J").rstrip().endswith(prompt):
            if time.monotonic() > deadline:
                raise TimeoutError(tell("capture-pane", "-p"))
            time.sleep(0.1)

    tell("new-session", "-d", *size, "env", "TERM=screen-256color", "HPCMAGIC_LAUNCHER=local", *own, *ipython)
    try:
        wait_for("In [1]:")
        for number, cell in enumerate(CELLS, 1):
            for line in cell.splitlines():
                tell("send-keys", "-l", line)
                tell("send-keys", "Enter")
                time.sleep(0.5)
            if "\n" in cell:
                tell("send-keys", "Enter")
                time.sleep(0.5)
                tell("send-keys", "Enter")
            wait_for(f"In [{number + 1}]:")
        screen = tell("capture-pane", "-p", "-e", "-J")
        for line in ("%hpc stop", "exit"):
            tell("send-keys", "-l", line)
            tell("send-keys", "Enter")
            time.sleep(3)
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True, timeout=20, check=False)
    return "".join(marked_up(screen.rstrip()))


def marked_up(screen: str) -> Iterator[str]:
    """Give a screen with its colours as HTML."""
    style: dict[str, str] = {}
    for number, part in enumerate(re.split(r"\x1b\[([0-9;]*)m", screen)):
        if number % 2:
            restyle(style, [int(code or 0) for code in part.split(";")])
        elif part:
            css = ";".join(f"{key}:{value}" for key, value in style.items())
            text = html.escape(re.sub(r"\x1b[()][A-Z0-9]|[\x0e\x0f]", "", part))
            yield f'<span style="{css}">{text}</span>' if css else text


def restyle(style: dict[str, str], codes: list[int]) -> None:
    """Change a style as a terminal's codes say."""
    if not codes or codes[0] == 0:
        style.clear()
    if codes[:2] == [38, 5]:
        style["color"] = of_256(codes[2])
        return
    for code in codes:
        changes: dict[int, tuple[str, str]] = {
            1: ("font-weight", "bold"),
            2: ("opacity", "0.6"),
            39: ("color", "inherit"),
        }
        if code in changes:
            style.update([changes[code]])
        elif 30 <= code <= 37 or 90 <= code <= 97:
            style["color"] = COLOURS[code % 10]


def of_256(number: int) -> str:
    """Give one of a terminal's 256 colours."""
    if number < 16:
        return COLOURS[number % 8]
    if number >= 232:
        grey = 8 + 10 * (number - 232)
        return f"rgb({grey},{grey},{grey})"
    levels = [0, 95, 135, 175, 215, 255]
    rest = number - 16
    return f"rgb({levels[rest // 36]},{levels[rest // 6 % 6]},{levels[rest % 6]})"


if __name__ == "__main__":
    os.environ["LOGNAME"] = "ada"
    main()
