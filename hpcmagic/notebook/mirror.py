"""What this notebook knows of a running simulation: a thread asks rank 0 for news, and keeps them here.

Mirror ─ Look ────► rank 0's desk        one bulk channel, in a thread of its own
       ◄─── News ─
       ─ Command ─►                      another one: a command never waits for news, which tell what became of it
"""

from __future__ import annotations

import secrets
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hpcmagic.errors import ChannelError, HpcMagicError
from hpcmagic.wire import looks
from hpcmagic.wire.bulk import Channel
from hpcmagic.wire.looks import Command, Event, Look, News, Picture, Poke, halved, receive, send
from hpcmagic.wire.moving import run_one

EVENTS_KEPT = 2000
OUTCOMES_KEPT = 20_000
WANTED_S = 5.0  # a picture that nobody has asked for again is not fetched any more
TELL_S = 60.0  # a command may take so long to leave: a rank in C code that holds the interpreter takes none
IDLE_S = 60.0  # without anybody who looks the thread lets go


@dataclass
class Curve:
    """A series of numbers, as far as it is here."""

    thinned: int = 0
    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))


class Mirror:
    """Holds the newest news of one simulation's desk.

    Parameters
    ----------
    news, commands
        Two channels to the desk; they are the mirror's from then on.
    """

    def __init__(self, news: Channel, commands: Channel) -> None:
        self._channel, self._commands = news, commands
        self.changed = threading.Condition()
        self.newest: News | None = None
        self.curves: dict[str, Curve] = {}
        self.pictures: dict[str, Picture] = {}
        self.events: list[Event] = []
        self.lost: HpcMagicError | None = None
        self._outcomes: OrderedDict[int, Event] = OrderedDict()  # by command
        self._last_event = self._sent = self._looks = self._pokes = 0
        self._name = secrets.token_hex(8)
        self._sending = threading.Lock()
        self._wanted: tuple[str, int, float, float] = ("", 0, 10.0, 0.0)  # name, pixels, hz, until
        self._shown = self._wanted  # by a panel; it gives way
        self._used_s = time.monotonic()
        self._closing = False
        self.watchers: list[Callable[[], None]] = []  # called in the thread, after news
        self._thread = threading.Thread(target=self._watch, name="hpcmagic-mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of the simulation; it runs on."""
        self._closing = True
        self._hang_up()
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def want(self, name: str, pixels: int = 512, hz: float = 10.0, seconds: float = WANTED_S) -> None:
        """Have pictures of a field fetched for a while."""
        self._used_s = time.monotonic()
        self._wanted = (name, pixels, hz, self._used_s + seconds)

    def show(self, name: str, pixels: int, hz: float) -> None:
        """Have pictures fetched likewise, while nobody wants others: a panel shows them."""
        self._used_s = time.monotonic()
        self._shown = (name, pixels, hz, self._used_s + WANTED_S)

    def tell(self, command: Command) -> int:
        """Send a command; give its number, by which `outcome` knows it.

        Raises
        ------
        PeerLost
            The connection is cut.
        """
        self._used_s = time.monotonic()
        command = replace(command, number=1 + secrets.randbits(62))
        self._send(command)
        return command.number

    def _send(self, what: Command | Poke) -> None:
        with self._sending:
            if self.lost is not None:
                raise self.lost
            try:
                run_one(self._commands, send(self._commands, self._sent, what), TELL_S)
            except BaseException:  # Ctrl-C too: half a frame may have left, and nothing can follow it
                self._hang_up()
                raise
            self._sent += 1

    def _hang_up(self) -> None:
        for channel in (self._channel, self._commands):
            channel.hang_up()

    def outcome(self, number: int) -> Event | None:
        """Give what became of a command, if it is known."""
        self._used_s = time.monotonic()
        return self._outcomes.get(number)

    def wait(self, condition: Callable[[], Any], timeout_s: float) -> bool:
        """Wait until a condition holds, which is looked at whenever there are news; False when the time is up."""
        self._used_s = time.monotonic()
        with self.changed:
            return bool(self.changed.wait_for(lambda: condition() or self.lost is not None, timeout_s))

    def refresh(self, timeout_s: float) -> None:
        """Have news that are no older than this call; leave it at those that are here when the time is up."""
        with self.changed:
            self._pokes += 1
            wanted = self._pokes
        self._send(Poke(self._name))
        self.wait(lambda: self.newest is not None and self.newest.pokes >= wanted, timeout_s)

    def _watch(self) -> None:
        try:
            while not self._closing and (self.watchers or time.monotonic() - self._used_s < IDLE_S):
                came: list[Any] = []
                run_one(self._channel, send(self._channel, self._looks, self._look()))
                run_one(self._channel, receive(self._channel, self._looks, came))
                self._take(came[0])
                self._call_watchers()
            lost = HpcMagicError("Nobody has looked at the simulation for a while.", "Look again.")
        except HpcMagicError as error:
            lost = error
        except Exception as error:  # news that cannot be loaded here: whoever waits must hear of it
            lost = ChannelError(f"News of the simulation cannot be read here: {error}.", "See `%hpc log`.")
        with self._sending, self.changed:
            self.lost = lost
            self.changed.notify_all()
            self._channel.close()
            self._commands.close()
        self._call_watchers()

    def _call_watchers(self) -> None:
        for watcher in list(self.watchers):
            try:
                watcher()
            except Exception:  # what one shows must not keep the others from their news
                self.watchers.remove(watcher)

    def _look(self) -> Look:
        now = time.monotonic()
        name, pixels, hz, until_s = self._wanted if now <= self._wanted[3] else self._shown
        here = {name: (curve.thinned, len(curve.values)) for name, curve in self.curves.items()}
        run = self.newest.run if self.newest is not None else 0
        params = self.newest.params_version if self.newest is not None else -1
        if now > until_s:
            name, pixels, hz = "", 1, 10.0
        frame = self.pictures[name].frame if name in self.pictures else 0
        pokes = self.newest.pokes if self.newest is not None else 0
        look = Look(self._last_event, here, run, params, name, frame, pixels, hz)
        return replace(look, name=self._name, pokes=pokes)

    def _take(self, news: News) -> None:
        with self.changed:
            former = self.newest
            if former is not None and news.run != former.run:
                self.curves, self.pictures, former = {}, {}, None
            if former is not None:
                as_they_were = news.params_version == former.params_version
                params = former.params if as_they_were else news.params
                news = replace(news, params=params, pulses=news.pulses or former.pulses)
            self.newest = news
            self._looks += 1
            for name, tail in news.series.items():
                self.curves[name] = _longer(self.curves.get(name, Curve()), tail)
            if news.picture is not None:
                self.pictures[news.picture.name] = news.picture
            for event in news.events:
                self._outcomes[event.command] = event
            self.events = [event for event in (*self.events, *news.events) if event.run == news.run][-EVENTS_KEPT:]
            self._last_event += news.missed_events + len(news.events)
            while len(self._outcomes) > OUTCOMES_KEPT:
                self._outcomes.popitem(last=False)
            self.changed.notify_all()


def _longer(curve: Curve, tail: looks.Curve) -> Curve:
    if tail.begin and tail.thinned > curve.thinned:
        curve = Curve(tail.thinned, halved(curve.steps), halved(curve.values))
    if tail.begin != len(curve.values):
        return Curve(tail.thinned, curve.steps[: tail.begin] + tail.steps, curve.values[: tail.begin] + tail.values)
    curve.thinned = tail.thinned
    curve.steps.extend(tail.steps)
    curve.values.extend(tail.values)
    return curve
