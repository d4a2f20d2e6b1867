"""Run a notebook and show it on the terminal: each cell, then what came of it.

    python notebooks/show.py notebooks/quickstart.ipynb

The notebook itself stays as it is: a copy runs, in a temporary directory. As executed, and its last figure as PNG,
it is left in build/. Exit status 1 when a cell fails.
"""

from __future__ import annotations

import base64
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

BUILD = Path(__file__).resolve().parent.parent / "build"
CELL_LIMIT_S = 600
GOODBYE_S = 60  # how long the kernel may take to stop its session when it exits
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    source = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copy(source, place)
        notebook = nbformat.read(copy, as_version=4)
        failure = run(notebook, Path(place))
    keep(notebook, source.stem)
    if failure:
        print(f"{source.name} failed in {failure}", file=sys.stderr)
    return 1 if failure else 0


def run(notebook: NotebookNode, place: Path) -> str:
    """Execute and show cell by cell; give what went wrong, or nothing."""
    client = NotebookClient(
        notebook,
        timeout=CELL_LIMIT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(place)}},
        config=Config(KernelManager={"transport_encryption": "auto", "shutdown_wait_time": GOODBYE_S}),
    )
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            show_source(cell)
            try:
                client.execute_cell(cell, index)
            except (CellControlSignal, DeadKernelError) as error:  # failed, took too long, or killed its kernel
                show_outputs(cell)
                return f"cell {index + 1}: {getattr(error, 'ename', type(error).__name__)}"
            show_outputs(cell)
    return ""


def show_source(cell: NotebookNode) -> None:
    bar = "  │ " if cell.cell_type == "code" else ""
    print("", *(bar + line for line in cell.source.splitlines()), sep="\n", flush=True)


def show_outputs(cell: NotebookNode) -> None:
    texts = [text_of(output).rstrip("\n") for output in cell.get("outputs", [])]
    text = "\n".join(filter(None, texts))
    if text:
        print("", text if sys.stdout.isatty() else ANSI.sub("", text), sep="\n", flush=True)


def text_of(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return re.sub(r"[^\n]*\r(?!\n)", "", output.text)  # a line rewritten in place: what stands at the end
    if output.output_type == "error":
        return "\n".join(output.traceback)
    return output.data.get("text/plain", "")


def keep(notebook: NotebookNode, name: str) -> None:
    """Leave the executed notebook and its last figure in build/, and say so."""
    BUILD.mkdir(exist_ok=True)
    executed = BUILD / f"{name}.ipynb"
    nbformat.write(notebook, executed)
    print(f"\nThe notebook as executed: {executed}")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    if figures:
        figure = executed.with_suffix(".png")
        figure.write_bytes(base64.b64decode(figures[-1]))
        print(f"Its figure: {figure}")


if __name__ == "__main__":
    sys.exit(main())
