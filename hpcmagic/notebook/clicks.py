"""What a person does at the panel, on its way to the simulation: of a slider that is dragged the newest value only.

page ─► put() ─► waits here ─ a thread ─► Mirror.tell ─► …
told() ◄───────── look() ◄──────────────── Mirror.outcome
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hpcmagic.errors import HpcMagicError
from hpcmagic.wire.looks import Command, Event


class Told(Protocol):
    """Takes commands, and knows what became of them; in life a `Mirror`."""

    lost: HpcMagicError | None

    def tell(self, command: Command) -> int:
        """Send a command; give its number."""

    def outcome(self, number: int) -> Event | None:
        """Give what became of a command, if it is known."""


@dataclass(frozen=True, slots=True)
class Click:
    """One thing that somebody wants."""

    id: str  # the page's, by which it knows the answer
    verb: str
    name: str = ""  # of the parameter to be set
    value: Any = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of it."""

    click: Click
    step: int = 0
    refused: str = ""


class Clicks:
    """Sends commands in a thread of its own: a page, and the kernel, never wait for a step boundary.

    A value waits while an older one of the same parameter is on its way, and is then the newest. Pause, step, resume
    and stop go at once, behind what was set before them.

    Parameters
    ----------
    mirror
        The way to the simulation.
    user
        Who clicks, for the log.
    told
        Called with each answer, in whichever thread it came.
    """

    def __init__(self, mirror: Told, user: str, told: Callable[[Answer], None]) -> None:
        self._mirror, self._user, self._told = mirror, user, told
        self._changed = threading.Condition()
        self._waiting: list[Click] = []
        self._flying: dict[int, Click] = {}  # by the command's number
        self._closed = False
        threading.Thread(target=self._send, name="hpcmagic-clicks", daemon=True).start()

    def turn_to(self, mirror: Told) -> None:
        """Go on by another way to the simulation; what was on the other is answered."""
        self.look()
        self._mirror = mirror

    def put(self, click: Click) -> None:
        """Take a click; it never waits."""
        superseded = None
        with self._changed:
            if click.verb == "set":
                for place in range(len(self._waiting) - 1, -1, -1):
                    former = self._waiting[place]
                    if former.verb != "set":
                        break
                    if former.name == click.name:
                        superseded = self._waiting.pop(place)
                        break
            self._waiting.append(click)
            self._changed.notify()
        if superseded is not None:
            self._told(Answer(superseded, refused="another value came behind it"))

    def look(self) -> None:
        """See what has become of those on their way; call it upon news."""
        with self._changed:
            there = {number: self._mirror.outcome(number) for number in self._flying}
            over = {number: event for number, event in there.items() if event is not None or self._mirror.lost}
            clicks = {number: self._flying.pop(number) for number in over}
            self._changed.notify()
        for number, event in over.items():
            if event is None:
                self._told(Answer(clicks[number], refused=str(self._mirror.lost and self._mirror.lost.message)))
            else:
                self._told(Answer(clicks[number], event.step, event.refused))

    def close(self) -> None:
        """Send nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _next(self) -> list[Click]:
        """Give what can go now: all up to the last verb; else values of parameters of which none is on its way."""
        verbs = [place for place, click in enumerate(self._waiting) if click.verb != "set"]
        busy = {click.name for click in self._flying.values()}
        ready = self._waiting[: verbs[-1] + 1] if verbs else [c for c in self._waiting if c.name not in busy]
        self._waiting = [click for click in self._waiting if click not in ready]
        return ready

    def _send(self) -> None:
        while True:
            ready: list[Click] = []
            with self._changed:
                while not self._closed and not (ready := self._next()):
                    self._changed.wait()
                if self._closed:
                    return
            for click in ready:
                values = {click.name: click.value} if click.verb == "set" else {}
                try:
                    number = self._mirror.tell(Command(click.verb, self._user, values))
                except HpcMagicError as error:
                    self._told(Answer(click, refused=error.message))
                    continue
                with self._changed:
                    self._flying[number] = click
            self.look()
