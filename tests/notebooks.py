"""Notebooks as nbclient runs them: nobody sits there."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def notebook(home, *cells, fails=False):
    """Run cells; give them with their outputs."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(book, timeout=90, resources={"metadata": {"path": str(home)}})
    if fails:
        with pytest.raises(CellExecutionError):
            client.execute()
    else:
        client.execute()
    return book.cells


def text_of(cell):
    """What a cell shows, as text."""
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
        parts += output.get("traceback", [])
    return "\n".join(parts)


def shown_by(home, *cells, fails=False):
    """Run cells; give what each shows, as text."""
    return [text_of(cell) for cell in notebook(home, *cells, fails=fails)]
