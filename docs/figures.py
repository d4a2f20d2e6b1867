"""Make docs/quickstart.png anew: the figure that the quickstart notebook draws, made small for the README.

    python docs/figures.py

It runs the notebook on four ranks of this machine. docs/architecture.svg is drawn by hand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

REPO = Path(__file__).resolve().parent.parent
WIDTH = 880


def main() -> None:
    """Run the notebook, shrink its figure."""
    subprocess.run([sys.executable, "notebooks/show.py", "notebooks/quickstart.ipynb"], cwd=REPO, check=True)
    with Image.open(REPO / "build" / "quickstart.png") as figure:
        small = figure.convert("RGB").resize((WIDTH, figure.height * WIDTH // figure.width))
    small.save(REPO / "docs" / "quickstart.png", optimize=True)


if __name__ == "__main__":
    main()
