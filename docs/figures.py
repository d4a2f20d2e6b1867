"""Make the figures that notebooks draw anew, small enough for the documents: docs/quickstart.png, docs/images/*.png.

    python docs/figures.py [quickstart|waves|whirls|atoms|depth|tuning|rain …]

It runs the notebooks on this machine; all of them where none is named. atoms needs LAMMPS (docs/simulations.md).
docs/architecture.svg is drawn by hand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

REPO = Path(__file__).resolve().parent.parent
DOCS = REPO / "docs"
FIGURES = {
    "quickstart": DOCS / "quickstart.png",
    "waves": DOCS / "images" / "waves.png",
    "whirls": DOCS / "images" / "whirls.png",
    "atoms": DOCS / "images" / "atoms.png",
    "depth": DOCS / "images" / "depth.png",
    "tuning": DOCS / "images" / "tuning.png",
    "rain": DOCS / "images" / "rain.png",
}
PHOTOGRAPHS = {"quickstart", "depth"}
WIDTH = 880


def main() -> None:
    """Run the notebooks, shrink their figures."""
    for name in sys.argv[1:] or FIGURES:
        make(name, FIGURES[name])


def make(name: str, path: Path) -> None:
    """Run one notebook, shrink its figure."""
    subprocess.run([sys.executable, "notebooks/show.py", f"notebooks/{name}.ipynb"], cwd=REPO, check=True)
    with Image.open(REPO / "build" / f"{name}.png") as figure:
        small = figure.convert("RGB").resize((WIDTH, figure.height * WIDTH // figure.width))
    path.parent.mkdir(exist_ok=True)
    if name not in PHOTOGRAPHS:  # of few hues: 256 colours show the same in a third of the bytes
        small = small.quantize(256, Image.Quantize.MAXCOVERAGE)
    small.save(path, optimize=True)


if __name__ == "__main__":
    main()
