"""The live panel of a simulation: one widget in the notebook, told what is new by a thread, and a picture for later.

Mirror ─► Panel ─ messages, at most so many on their way ─► panel.js, in the page
Clicks ◄─ Panel ◄─ what a person does, how far the page is ─┘
                └─ a picture in the output, for the saved notebook; where there are no widgets it is all that is shown
"""

from __future__ import annotations

import ast
import contextvars
import functools
import json
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from hpcmagic.errors import HpcMagicError, SessionEnded
from hpcmagic.notebook import widgets
from hpcmagic.notebook.clicks import Answer, Click, Clicks
from hpcmagic.notebook.mirror import Mirror
from hpcmagic.notebook.pages import Messages, Window
from hpcmagic.notebook.simulation import news_of
from hpcmagic.notebook.snapshot import bundle
from hpcmagic.ranges import Param
from hpcmagic.wire.looks import VERBS

if TYPE_CHECKING:
    from hpcmagic.notebook.handles import Cell
    from hpcmagic.notebook.session import Session

HZ = 30.0
BEAT_S = 1.0  # a page that hears nothing for some of these says so
ATTENDED_S = 5.0  # pictures are fetched while a page has been heard of
SETTLES_S = 0.7  # a run that is over may still tell something
AGAIN_S = (0.5, 60.0)  # until a cut connection is tried again: at first, and at most
PICTURE_AGE_S = 30.0  # of the picture in the output, while nobody is busy in the panel …
ALONE_AGE_S = 2.0  # … and where it is all that is shown
MOST_PIXELS = 2048
OFTEN, SELDOM = 60, 6  # looks for a simulation to come alive, before they become fewer; and then one in so many
PAGE_FILES = ("panel_tools.js", "panel_param.js", "panel_drawn.js", "panel_field.js", "panel.js")


class Screen(Protocol):
    """Where a panel is shown."""

    live: bool  # whether there are pages; else only the picture in the output is shown

    def send(self, message: dict[str, Any], buffers: list[Any]) -> None:
        """Tell the pages something."""

    def update(self, shown: dict[str, str]) -> None:
        """Put another picture into the output."""

    def close(self) -> None:
        """Take the live part away; the picture stays."""


class Panel:
    """Keeps the pages of one session's panel up to date, until it is closed.

    Parameters
    ----------
    mirror
        What is known of the simulation, and the way to it.
    user
        Who clicks.
    screen
        Where it is shown.
    place
        The name of its place in the output.
    again
        Gives another mirror once the connection is cut; it may take its time, and raise.
    """

    def __init__(
        self, mirror: Mirror, user: str, screen: Screen, place: str, again: Callable[[], Mirror] | None = None
    ) -> None:
        self.mirror, self._screen, self._place = mirror, screen, place
        self._wake, self._over = threading.Event(), threading.Event()
        self._window, self._messages = Window(), Messages(mirror)
        self._answers: deque[dict[str, Any]] = deque()
        self._field, self._pixels = "", 512
        self._anew = False
        self._idle = True  # whether nobody is busy in the panel
        self._kept: tuple[int, int, str] = (0, -1, "")  # run, step and end, as the picture in the output shows
        self._kept_s, self._ends_s = time.monotonic(), 0.0
        self._again, self._again_s, self._pause_s = again, 0.0, AGAIN_S[0]
        self._found: deque[Mirror] = deque()  # by a thread that tries again
        self._clicks = Clicks(mirror, user, self._answer)
        mirror.watchers.append(self._wake.set)
        context = contextvars.copy_context()  # ipykernel finds the cell to draw in by it
        self._thread = threading.Thread(target=lambda: context.run(self._keep_up), name="hpcmagic-panel", daemon=True)
        self._thread.start()

    def receive(self, message: Mapping[str, Any]) -> None:
        """Take what a page says; it never waits, whichever thread calls."""
        kind, page = message.get("kind"), str(message.get("page", ""))
        if kind == "hello":
            self._window.heard(page, None, time.monotonic())
            self._anew = True
        elif kind == "ack":
            self._window.heard(page, int(message["seq"]), time.monotonic())
            self._idle = bool(message.get("idle", True))
        elif kind == "view":
            self._field = str(message["field"])
            self._pixels = min(MOST_PIXELS, max(16, int(message.get("pixels", 512))))
        elif kind == "do" and message.get("verb") in VERBS:
            name = str(message.get("name", ""))
            value = value_from(str(message.get("text", "")), news_of(self.mirror).params.get(name))
            self._clicks.put(Click(str(message["id"]), str(message["verb"]), name, value))
        elif kind == "close":
            self._over.set()
        self._wake.set()

    @property
    def closed(self) -> bool:
        """Whether somebody has closed it."""
        return self._over.is_set()

    def close(self) -> None:
        """Leave the last picture in the output, and nothing else."""
        self._over.set()
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def _answer(self, answer: Answer) -> None:
        click = answer.click
        told = {"id": click.id, "verb": click.verb, "name": click.name, "step": answer.step}
        self._answers.append({**told, "refused": answer.refused})
        self._wake.set()

    def _keep_up(self) -> None:
        try:
            while not self._over.wait(1 / HZ):
                self._wake.wait(BEAT_S)
                self._wake.clear()
                self._clicks.look()
                self._come_back(time.monotonic())
                self._turn(time.monotonic())
        finally:
            self._over.set()
            if self._wake.set in self.mirror.watchers:
                self.mirror.watchers.remove(self._wake.set)
            self._clicks.close()
            self._keep_picture(time.monotonic())
            self._screen.close()

    def _come_back(self, now: float) -> None:
        """While the connection is cut try again now and then, in a thread: pages are told meanwhile."""
        if self._found:
            self.mirror, self._pause_s = self._found.popleft(), AGAIN_S[0]
            self.mirror.watchers.append(self._wake.set)
            self._clicks.turn_to(self.mirror)
            self._messages = Messages(self.mirror)
        elif self.mirror.lost is not None and self._again is not None:
            self._again_s = self._again_s or now + self._pause_s
            if now >= self._again_s:
                self._again_s, self._pause_s = math.inf, min(AGAIN_S[1], 2 * self._pause_s)
                threading.Thread(target=self._try, args=(self._again,), name="hpcmagic-again", daemon=True).start()

    def _try(self, again: Callable[[], Mirror]) -> None:
        try:
            found = again()
            if news_of(found).cell == news_of(self.mirror).cell:
                self._found.append(found)
            else:  # another cell's simulation has a panel of its own
                self._again = None
        except SessionEnded:  # what was shown is gone
            self._again = None
        except HpcMagicError:
            pass
        self._again_s = 0.0
        self._wake.set()

    def _turn(self, now: float) -> None:
        """Tell the pages what is new, if they keep up."""
        news = news_of(self.mirror)
        if self._field not in news.fields:
            self._field = news.fields[0] if news.fields else ""
        if self._field and (self._window.attended(now, ATTENDED_S) or not self._screen.live):
            self.mirror.show(self._field, self._pixels, HZ if self._screen.live else 1 / ALONE_AGE_S)
        way = self._window.may_send(now)
        if way:
            if self._anew:
                self._anew = False
                self._messages.start_anew()
            message, buffers, new = self._messages.message(self._field, now, pictures=way == "all")
            if new or self._answers or self._window.silent_s(now) >= BEAT_S:
                message["field"], message["again"] = self._field, self._again is not None
                message["answers"] = [self._answers.popleft() for _ in range(len(self._answers))]
                message["seq"] = self._window.note_sent(now)
                self._screen.send(message, buffers)
        self._look_after_picture(now)

    def _look_after_picture(self, now: float) -> None:
        """Draw the picture in the output anew at the end of a run, and now and then when that disturbs nobody."""
        news = news_of(self.mirror)
        over = news.over or ("cut off" if self.mirror.lost is not None else "")
        shows = news.run, news.step, over
        if shows == self._kept:
            return
        if over and over != self._kept[2]:
            self._ends_s = self._ends_s or now + SETTLES_S
            if now >= self._ends_s:
                self._keep_picture(now)
        elif self._idle and now - self._kept_s > (PICTURE_AGE_S if self._screen.live else ALONE_AGE_S):
            self._keep_picture(now)

    def _keep_picture(self, now: float) -> None:
        news = news_of(self.mirror)
        over = news.over or ("cut off" if self.mirror.lost is not None else "")
        self._kept, self._kept_s, self._ends_s = (news.run, news.step, over), now, 0.0
        self._screen.update(bundle(self.mirror, self._field, self._place))


def value_from(text: str, param: Param | None) -> Any:
    """Give the value that a text from the page means; a number that is none stays a text, and is refused as such.

    >>> value_from("5e-4", Param(1.0, 1.0)), value_from("7", Param("a", "a")), value_from("x", Param(1, 1))
    (0.0005, '7', 'x')
    """
    if param is not None and param.kind == "bool":
        return text == "True"
    if param is None or param.kind == "str":
        return text
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


_shown: dict[str, Panel] = {}  # by session


def show(session: Session) -> Panel:
    """Show the panel of a session's simulation here; one that is shown elsewhere becomes a picture.

    Without anywidget it is a picture that is drawn anew now and then.

    Raises
    ------
    SteerError
        No simulation has come alive.
    """
    mirror = session.steer.mirror()
    former = _shown.pop(session.name, None)
    if former is not None:
        former.close()
    place = secrets.token_hex(6)
    fields = news_of(mirror).fields
    screen = NotebookScreen(place, bundle(mirror, fields[0] if fields else "", place))
    user = session.control_path().name.partition("#")[0]
    panel = _shown[session.name] = Panel(mirror, user, screen, place, session.steer.mirror)
    screen.listen(panel.receive)
    return panel


class Lookout:
    """Looks whether the simulation of a cell has come alive, and shows the panel then, below the cell's handle."""

    def __init__(self, cell: Cell) -> None:
        self._cell, self._rank = cell.id, cell.ranks[0]
        self._session = cast("Session", cell.session)  # it runs: it is no past one's
        self._told: dict[int, dict[str, Any]] | None = None
        self._looks, self._over = 0, False

    def look(self) -> None:
        """Look, and ask for the next time; it waits only where there is something to show."""
        self._looks += 1
        if self._over or (self._looks > OFTEN and self._looks % SELDOM):
            return
        try:
            told = (self._told or {}).get(self._rank, {})
            if told.get("alive") and news_of(self._session.steer.mirror()).cell == self._cell:
                self._over = True
                former = _shown.get(self._session.name)
                shown = None if former is None or former.closed else news_of(former.mirror)
                if shown is None or (shown.cell, shown.run) != (self._cell, told["run"]):
                    show(self._session)
            elif self._told is None or self._rank in self._told:
                self._told = self._session.control_path().simulations([self._rank])
        except HpcMagicError:  # it is over already, or the session is; whoever waits for it is told
            self._over = True


class NotebookScreen:
    """The cell's output, and a widget that finds its place there; it is never displayed itself.

    A widget's own view would be saved as one that nobody can draw; so what is saved is a page with a picture, and the
    widget puts itself over it (docs/how-it-works.md).
    """

    def __init__(self, place: str, shown: dict[str, str]) -> None:
        from IPython.display import display

        self._handle = display(shown, raw=True, display_id=True)
        self._widget = widgets.Unseen("PanelWidget", page_code(), place) if widgets.installed() else None
        self.live = self._widget is not None

    def listen(self, receive: Callable[[Mapping[str, Any]], None]) -> None:
        """Have messages from the pages taken; then ask them to say that they are there."""
        if self._widget is not None:
            self._widget.listen(receive)

    def send(self, message: dict[str, Any], buffers: list[Any]) -> None:
        """Tell the pages something."""
        if self._widget is not None:
            self._widget.send(message, buffers)

    def update(self, shown: dict[str, str]) -> None:
        """Put another picture into the output."""
        if self._handle is not None:
            self._handle.update(shown, raw=True)

    def close(self) -> None:
        """Take the widget away."""
        if self._widget is not None:
            self._widget.close()


@functools.cache
def page_code() -> str:
    """Give what runs in the page, as one text: the files come with the package, nothing is fetched from anywhere."""
    here = Path(__file__).parent
    style = f"const STYLE = {json.dumps((here / 'panel.css').read_text())};"
    return "\n".join([style, *((here / name).read_text() for name in PAGE_FILES)])
