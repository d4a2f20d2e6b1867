"""A handle's display in a notebook, drawn anew until its cell is over.

while the cell runs                  ─► a thread draws, on behalf of the notebook's cell that shows the handle
whenever a cell of the notebook ends ─► drawn on its behalf: nbclient and papermill listen to no other
when the kernel ends                 ─► drawn as it stands then
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import html
import threading
import time
from typing import TYPE_CHECKING, cast

from hpcmagic.errors import HpcMagicError
from hpcmagic.notebook import frontend, panel, widgets
from hpcmagic.notebook.fitting import Foresight
from hpcmagic.notebook.handles import Cell, in_thread

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session

REFRESH_S = 0.5
STANDING = "when this was shown last"

_unfinished: set[View] = set()  # whose end has not been drawn on behalf of a cell that was just running


class View:
    """A handle's display, drawn anew until its cell is over."""

    def __init__(self, cell: Cell) -> None:
        from IPython.display import display

        self.cell = cell
        self.alive = not cell.done()
        self._shown = self._note = ""  # what stands there; that it will not be over in time
        self._drawing = threading.Lock()
        self._stands = frontend.unattended()  # nobody watches: what is shown may be read when it is over
        self._handle = display(self._bundle(), raw=True, display_id=True)
        session = cast("Session", cell.session)  # it runs: it is no past one's
        self._foresight = Foresight(session, cell, time.monotonic()) if self.alive else None
        self._lookout = panel.Lookout(cell) if widgets.can_be_shown() else None
        if self.alive:
            _unfinished.add(self)
            context = contextvars.copy_context()  # ipykernel finds the cell to draw in by it
            in_thread(lambda: context.run(self._follow))

    def show_again(self) -> None:
        """Show it here too: both are one display, and are drawn anew together."""
        if self._handle is not None:
            self._handle.display(self._bundle(), raw=True)

    def draw(self, *, again: bool = False) -> None:
        """Draw it as it stands; unless `again`, only if that has changed."""
        with self._drawing:
            self.alive = self.alive and not self.cell.done()
            bundle = self._bundle()
            if (again or bundle["text/html"] != self._shown) and self._handle is not None:
                self._shown = bundle["text/html"]
                self._handle.update(bundle, raw=True)

    def stand(self) -> None:
        """Draw it for the last time, though its cell may go on: the kernel ends."""
        self._stands = True
        self.draw(again=True)

    def _bundle(self) -> dict[str, str]:
        text, page = self.cell.as_text(), self.cell.as_html()
        if self._stands and self.alive:
            return {"text/plain": f"{text}\n({STANDING})", "text/html": f"{page}<i>({html.escape(STANDING)})</i>"}
        if self._note and self.alive:
            return {"text/plain": f"{text}\n{self._note}", "text/html": f"{page}<div>{html.escape(self._note)}</div>"}
        return {"text/plain": text, "text/html": page}

    def _follow(self) -> None:
        while self.alive:
            self.cell.wait(REFRESH_S)
            self._foresee()
            self.draw()
            if self._lookout is not None and self.alive:
                self._lookout.look()

    def _foresee(self) -> None:
        if self._foresight is not None and self.alive and not self.cell.done():
            with contextlib.suppress(HpcMagicError):  # it is over already, or the session is
                said = self._foresight.look(time.monotonic())
                self._note = f"! {said}" if said else self._note


def draw_all(*_: object) -> None:
    """Draw every handle whose end may not be shown yet (called when a cell of the notebook has ended)."""
    for view in list(_unfinished):
        view.draw(again=True)
        if not view.alive:
            _unfinished.discard(view)


@atexit.register
def _stand_all() -> None:
    for view in list(_unfinished):
        with contextlib.suppress(Exception):  # what can be drawn at that moment is not ours to say
            view.stand()
