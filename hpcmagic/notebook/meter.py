"""The visible meter: a thread reads how a session stands, and tells the pages; what a person clicks is done here.

readings.reading ─► Meter ─ a beat, or what changed ─► meter.js, in the page: it goes on counting by itself
stop · extend · keep ◄─ Meter ◄─ clicks ──────────────┘

One meter a session. The page takes a beat that is late for a kernel that is gone, and says so.
"""

from __future__ import annotations

import contextvars
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hpcmagic.errors import HpcMagicError, ProfileError
from hpcmagic.notebook import frontend, readings, widgets
from hpcmagic.notebook.queued import Queued
from hpcmagic.notebook.readings import Reading

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session

READ_S = 2.0
BEAT_S = 4.0
GRACE_S = 8.0  # a page that hears nothing for so much longer says since when
ALONE_BEAT_S = 30.0  # while no page is heard of: what is sent then the Jupyter server keeps
ATTENDED_S = 600.0  # a kernel that answers only between cells hears of no page while one runs
LINGERS_S, STAYS_S = 8.0, 3600.0  # how long the end is shown: of a session that was stopped, of any other
JUMP_S = 2.0  # a time left that differs by more has been changed
KEPT = ("unit", "spent", "rate_per_hour", "price", "currency", "idle_s", "elapsed_s")  # of the last word, at the end
STOPPED = "it was stopped"
LONGEST_S = 30 * 86400.0


class Verbs(Protocol):
    """What a person can do at the meter; in life a `Session`. Each may take its time, and raise."""

    def stop(self) -> None:
        """End the session."""

    def extend(self, seconds: float, /) -> str:
        """Ask for more time; say what came of it."""

    def keep(self) -> None:
        """Count idle time from now on anew."""


class Screen(Protocol):
    """Where a meter is shown."""

    def send(self, message: dict[str, Any]) -> None:
        """Tell the pages something."""

    def close(self) -> None:
        """Take it away."""


class Meter:
    """Keeps the pages up to date on one session, until it is closed or the session is long over.

    Parameters
    ----------
    read
        Gives how the session stands; it does not wait.
    verbs
        What a click does.
    screen
        Where it is shown.
    clock
        Gives monotonic seconds.
    """

    def __init__(
        self, read: Callable[[], Reading], verbs: Verbs, screen: Screen, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.read, self.verbs, self._screen, self._clock = read, verbs, screen, clock
        self._wake, self._over = threading.Event(), threading.Event()
        self._messages: deque[dict[str, Any]] = deque()
        self._anew = True
        self._told: tuple[Reading, float] | None = None  # the last reading that pages were told, and when
        self._end: tuple[Reading, float] | None = None  # how the session ended, and when that was seen
        self._heard_s = clock()  # of a page
        self._one_at_a_time = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Keep up in a thread from now on."""
        context = contextvars.copy_context()  # ipykernel finds the front end by it
        self._thread = threading.Thread(target=lambda: context.run(self._keep_up), name="hpcmagic-meter", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether it is shown no more."""
        return self._over.is_set()

    def close(self) -> None:
        """Take it away."""
        self._over.set()
        self._wake.set()
        if self._thread is None:
            self._screen.close()
        elif self._thread is not threading.current_thread():
            self._thread.join(5)

    def look(self) -> None:
        """Read now."""
        self._wake.set()

    def receive(self, message: Mapping[str, Any]) -> None:
        """Take what a page says; it never waits, whichever thread calls."""
        self._heard_s = self._clock()
        kind, verb = message.get("kind"), str(message.get("verb", ""))
        if kind == "hello":
            self._anew = True
        elif kind == "do" and verb in ("stop", "extend", "keep"):
            click = {"id": str(message.get("id", "")), "verb": verb}
            self._messages.append({"kind": "taken", **click})
            context = contextvars.copy_context()
            what = functools.partial(context.run, self._do, click, _seconds(message.get("seconds")))
            threading.Thread(target=what, name="hpcmagic-meter-does", daemon=True).start()
        elif kind == "close":
            self._over.set()
        self._wake.set()

    def turn(self) -> None:
        """Read, and tell the pages what is new, or that the kernel lives."""
        now = self._clock()
        while self._messages:
            self._screen.send(self._messages.popleft())
        try:
            reading = self._settled(self.read(), now)
        except (HpcMagicError, OSError):  # the files are not there for the moment: the pages go on counting
            return
        attended = now - self._heard_s < ATTENDED_S
        beat_s = BEAT_S if attended else ALONE_BEAT_S
        told = self._told
        if self._anew or told is None or now - told[1] >= beat_s or _differs(told[0], reading, now - told[1]):
            self._anew, self._told = False, (reading, now)
            self._screen.send({"kind": "news", "silent_s": beat_s + GRACE_S, "reading": compact(reading)})
        if self._end is not None and now - self._end[1] >= (LINGERS_S if STOPPED in reading.reason else STAYS_S):
            self._over.set()

    def _settled(self, reading: Reading, now: float) -> Reading:
        """Let nothing count on once the session is over; only accounting has more to say."""
        if reading.state != "ended":
            self._end = None
            return reading
        if self._end is None:
            last = self._told[0] if self._told is not None else reading
            missing = {name: getattr(last, name) for name in KEPT if not getattr(reading, name)}
            self._end = replace(reading, busy=False, **missing), now
        elif reading.confirmed and not self._end[0].confirmed:
            self._end = replace(reading, idle_s=self._end[0].idle_s), self._end[1]
        return self._end[0]

    def _keep_up(self) -> None:
        try:
            while not self._over.is_set():
                self.turn()
                self._wake.wait(READ_S)
                self._wake.clear()
        finally:
            self._over.set()
            self._screen.close()

    def _do(self, click: dict[str, str], seconds: float) -> None:
        """Do what was clicked; the pages are told what came of it."""
        with self._one_at_a_time:
            try:
                answer = {"done": self._called(click["verb"], seconds)}
            except HpcMagicError as error:
                answer = {"refused": error.message, "mend": error.mend}
            except OSError as error:
                answer = {"refused": f"It failed: {error}.", "mend": "Try again in a moment."}
        self._messages.append({"kind": "answer", **click, **answer})
        self._anew = True
        self._wake.set()

    def _called(self, verb: str, seconds: float) -> str:
        if verb == "extend":
            return self.verbs.extend(seconds)
        if verb == "keep":
            self.verbs.keep()
            return "Kept: idle time counts from now on."
        self.verbs.stop()
        return "Stopped; its variables are gone."


def _seconds(told: Any) -> float:
    """Give the seconds that a page asks for, within reason."""
    return min(LONGEST_S, max(60.0, float(told))) if isinstance(told, int | float) else 1800.0


def compact(reading: Reading) -> dict[str, Any]:
    """Give what is known of a session, for the page.

    >>> compact(Reading("waves", "ready", ranks=4, spent=1.23456789))
    {'session': 'waves', 'state': 'ready', 'ranks': 4, 'spent': 1.234568}
    """
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in asdict(reading).items()
        if value or (value == 0.0 and isinstance(value, float))
    }


def _differs(told: Reading, now: Reading, after_s: float) -> bool:
    """Whether a page that goes on counting by itself would show anything else than is so."""
    if _steady(told) != _steady(now):
        return True
    idle = told.idle_left_s, now.idle_left_s
    left = told.left_s, now.left_s
    return any(
        a is not None and b is not None and abs(a - after_s - b) > JUMP_S and now.state != "pending"
        for a, b in (idle, left)
    )


def _steady(reading: Reading) -> Reading:
    """Give the part of a reading that does not change by time alone."""

    def known(value: float | None) -> float | None:
        return None if value is None else 0.0

    return replace(
        reading,
        spent=known(reading.spent),
        elapsed_s=0.0,
        left_s=known(reading.left_s),
        idle_s=known(reading.idle_s),
        budget_spent=known(reading.budget_spent),
        idle_left_s=known(reading.idle_left_s),
        stale_s=float(reading.stale_s > 0),
    )


_shown: dict[str, Meter] = {}  # by session


def appear(session: Session | Queued) -> None:
    """Show the meter of a session that is being started or come back to, unless that is not wanted."""
    if widgets.can_be_shown() and _wanted():
        show(session)


def _wanted() -> bool:
    """Whether the user, or his configuration, has not turned meters off."""
    magics = frontend.shell().magics_manager.registry.get("HpcMagics")
    return bool(getattr(magics, "meter", True))


def show(session: Session | Queued, *, anew: bool = False) -> None:
    """Show the meter of a session; one that is shown already stays, unless it is to be put into the pages anew.

    Raises
    ------
    ProfileError
        There is no anywidget.
    """
    if not widgets.installed():
        raise ProfileError("The meter needs anywidget.", "`pip install 'hpcmagic[widgets]'`.")
    former = _shown.get(session.name)
    if former is not None and former.verbs is session and not former.closed and not anew:
        return
    screen = widgets.Unseen("MeterWidget", page_code(), session.name)
    meter = _shown[session.name] = Meter(functools.partial(_read, session), session, screen)
    screen.listen(meter.receive)
    meter.begin()
    if former is not None:  # its row goes behind the new one's
        former.close()


def _read(session: Session | Queued) -> Reading:
    """Read a session; how it ended this kernel may know better than its keeper, which was only told to end."""
    if isinstance(session, Queued):
        return session.read()
    reading = readings.reading(session)
    return replace(reading, reason=session.ended) if session.ended and reading.state == "ended" else reading


def others(names: Collection[str]) -> list[Reading]:
    """Read the sessions that are shown here and are none of these: of a job that nobody waits for any more."""
    return [one.read() for name, one in _shown.items() if name not in names and not one.closed]


def look(name: str) -> None:
    """Have a session's meter look at once: something was done that the pages should know before the kernel goes."""
    if name in _shown:
        _shown[name].look()


def hide() -> None:
    """Take all meters away."""
    while _shown:
        _shown.popitem()[1].close()


@functools.cache
def page_code() -> str:
    """Give what runs in the page; the file comes with the package, nothing is fetched from anywhere."""
    return Path(__file__).with_suffix(".js").read_text()
