"""Notebooks as somebody runs them, in a kernel that nobody sits at."""

from nbclient import NotebookClient
from traitlets.config import Config

CELL_LIMIT_S = 120


def execute(notebook):
    """Run all cells of a notebook, in the current directory: over ipc, kernel and client must share it."""
    config = Config(KernelManager={"transport": "ipc"})
    NotebookClient(notebook, timeout=CELL_LIMIT_S, kernel_name="python3", config=config).execute()


def texts(notebook):
    """All that the cells printed and showed as text, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def figures(notebook):
    """The pictures that the cells showed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if "image/png" in output.get("data", {})]
