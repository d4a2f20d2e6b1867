"""A handle's display in a notebook, drawn anew by a thread until its cell is over."""

from __future__ import annotations

import contextvars

from hpcmagic.notebook import panel
from hpcmagic.notebook.handles import Cell, in_thread

REFRESH_S = 0.5


class View:
    """A handle's display, drawn anew until its cell is over."""

    def __init__(self, cell: Cell) -> None:
        from IPython.display import display

        self.cell = cell
        self.alive = not cell.done()
        self._shown = ""
        self._handle = display(self._bundle(), raw=True, display_id=True)
        self._lookout = panel.Lookout(cell) if panel.can_be_shown() else None
        if self.alive:
            context = contextvars.copy_context()  # ipykernel finds the cell to draw in by it
            in_thread(lambda: context.run(self._follow))

    def show_again(self) -> None:
        """Show it here too: both are one display, and are drawn anew together."""
        if self._handle is not None:
            self._handle.display(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        return {"text/plain": self.cell.as_text(), "text/html": self.cell.as_html()}

    def _follow(self) -> None:
        while self.alive:
            self.alive = not self.cell.wait(REFRESH_S)
            bundle = self._bundle()
            if bundle["text/html"] != self._shown and self._handle is not None:
                self._shown = bundle["text/html"]
                self._handle.update(bundle, raw=True)
            if self._lookout is not None and self.alive:
                self._lookout.look()
