"""Where a simulation and those who watch it meet, at the rank that answers for it: its rank 0.

    notebooks ─► serve() ─┬─ Command ─► waits here ─► take()   ◄─ the step boundary (main thread)
    (a thread each)       └─ Look ◄── News ◄───────── run      ◄─ publish, field, pulses

What is here is bounded: commands that wait, events, numbers, one picture a field. A reader who does not come
costs nothing, and one who comes late finds all that is kept, also when the simulation is over.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

from hpcmagic.engine.fields import Collect
from hpcmagic.engine.params import accepted
from hpcmagic.engine.runs import Run, Wanted
from hpcmagic.errors import HpcMagicError
from hpcmagic.ranges import Refused, Scheduled
from hpcmagic.wire.bulk import Channel
from hpcmagic.wire.looks import VERBS, Command, Event, Look, News, Poke, receive, send
from hpcmagic.wire.moving import run_one

EVENTS_KEPT = 20_000
EVENTS_AT_FIRST = 2000
COMMANDS_KEPT = 20_000
READER_S = 3.0  # who has not looked for so long does not want pictures any more
POKED_KEPT = 1000
PULSES_S = 1.0  # a reader is told so often how the ranks get on
SLOWEST_S = 1.0
LOWEST_HZ, HIGHEST_HZ = 0.1, 100.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What happens at one step boundary, on all ranks alike."""

    changes: tuple[tuple[str, Any], ...] = ()  # name, new value
    paused: bool = False
    stop: bool = False
    collect: Collect | None = None


QUIET = Batch()


class Desk:
    """Takes commands for the newest simulation, and tells readers what became of them, and how it goes."""

    def __init__(self) -> None:
        self.run = Run(0, over="no simulation has come alive yet")
        self._changed = threading.Condition()
        self._commands: deque[Command] = deque()
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._last_event = 0
        self._paused = self._one_step = False
        self._wanted: dict[int, Wanted] = {}  # by reader
        self._pulsed_s: dict[int, float] = {}  # by reader: when it was told how the ranks get on
        self._pokes: dict[str, int] = {}  # by the name of who looks
        self._pauses_s: dict[int, float] = {}  # by reader: so long after its last news come the next
        self._readers = count(1)

    # ── from the simulation, in the main thread ──────────────────────────────────────────────

    def begin(self, cell: str = "") -> Run:
        """Begin a run."""
        with self._changed:
            self._refuse_waiting("the simulation was started anew meanwhile")
            self.run = Run(self.run.number + 1, cell)
            self._paused = self._one_step = False
            self._changed.notify_all()
            return self.run

    def end(self, why: str) -> None:
        """End the run; commands that wait are refused."""
        with self._changed:
            self.run.over = self.run.over or why
            self._paused = self._one_step = False
            self._refuse_waiting(f"the simulation is over: {why}")
            self._warn(self.run.log.write())
            self._changed.notify_all()

    def _refuse_waiting(self, why: str) -> None:
        while self._commands:
            self._note_event(self._commands.popleft(), refused=why)

    @property
    def paused(self) -> bool:
        """Whether the run is paused, or will be before its next step."""
        return self._paused

    def has_commands(self) -> bool:
        """Whether anything waits."""
        return bool(self._commands)

    def wait_for_command(self, timeout_s: float) -> None:
        """Wait until something does."""
        with self._changed:
            self._changed.wait_for(self.has_commands, timeout_s)

    def take(self, step: int, scheduled: Sequence[Scheduled] = ()) -> Batch:
        """Do what waits, before this step: give what changes, for all ranks; whoever asked is told."""
        self.run.step = step
        if not (self._commands or scheduled or self._one_step):
            return Batch(paused=True) if self._paused else QUIET
        with self._changed:
            changes: list[tuple[str, Any]] = []
            if self._one_step:
                self._one_step, self._paused = False, True
            stop = self._replay(scheduled, changes)
            while self._commands and not (stop or self._one_step):
                stop = self._do(self._commands.popleft(), changes)
            self._changed.notify_all()
            return Batch(tuple(changes), self._paused and not stop, stop)

    def _do(self, command: Command, changes: list[tuple[str, Any]]) -> bool:
        """Do one command; whether it stops the simulation."""
        try:
            own = [(name, accepted(name, value, self.run.checks)) for name, value in command.values.items()]
        except Refused as refused:
            self._note_event(command, refused=str(refused))
            return False
        except BaseException:
            self._note_event(command, refused="the simulation was interrupted meanwhile")
            raise
        self._change(command, own, changes)
        if command.verb != "set":
            self._paused, self._one_step = command.verb == "pause", command.verb == "step"
        return command.verb == "stop"

    def _change(self, command: Command, own: Sequence[tuple[str, Any]], changes: list[tuple[str, Any]]) -> None:
        old = tuple((name, self.run.value(name), new) for name, new in own)
        changes += own
        self.run.values.update(own)
        self.run.params_version += bool(own)
        self._note_event(command, changes=old)

    def _replay(self, scheduled: Sequence[Scheduled], changes: list[tuple[str, Any]]) -> bool:
        own = [(name, value) for name, value, _ in scheduled if name]
        if own:
            self._change(Command("set", "replay"), own, changes)
        if len(own) < len(scheduled):
            self._note_event(Command("stop", "replay"))
        return len(own) < len(scheduled)

    def _note_event(
        self, command: Command, *, changes: tuple[tuple[str, Any, Any], ...] = (), refused: str = ""
    ) -> None:
        self._last_event += 1
        event = Event(
            self._last_event,
            command.number,
            self.run.step,
            command.verb,
            command.user,
            time.time(),
            self.run.number,
            changes,
            refused,
        )
        self._events.append(event)
        if not refused and event.verb in ("set", "stop"):
            self._warn(self.run.log.note(event))

    def _warn(self, text: str) -> None:
        if text:
            self.run.warn(text)

    def wanted(self) -> list[Wanted]:
        """Give the pictures that somebody wants, one a field, as finely and as often as anybody wants it."""
        if not self._wanted:
            return []
        now, found = time.monotonic(), dict[str, Wanted]()
        for reader, one in list(self._wanted.items()):
            if one.until_s < now:
                self._wanted.pop(reader, None)
            elif one.name in self.run.fields:
                other = found.get(one.name, one)
                found[one.name] = replace(one, pixels=max(one.pixels, other.pixels), hz=max(one.hz, other.hz))
        return list(found.values())

    # ── for readers, in a thread each ────────────────────────────────────────────────────────

    def serve(self, channel: Channel, close: Callable[[Channel], None]) -> None:
        """Answer one reader until it goes."""
        reader, number = next(self._readers), 0
        try:
            while True:
                came: list[Any] = []
                began_s = time.thread_time()
                run_one(channel, receive(channel, number, came))
                match came[0]:
                    case Command() as command:
                        self.accept(command)
                    case Poke(name):
                        self.poke(name)
                    case Look() as look:
                        run_one(channel, send(channel, number, self.news(look, reader)))
                        self._pay(reader, time.thread_time() - began_s)
                number += 1
        except HpcMagicError:  # it has gone
            pass
        finally:
            self._wanted.pop(reader, None)
            self._pulsed_s.pop(reader, None)
            self._pauses_s.pop(reader, None)
            with contextlib.suppress(OSError):
                close(channel)

    def _pay(self, reader: int, cost_s: float) -> None:
        """Let all readers together take half of what watching may, so that pictures can; but events come at once."""
        self.run.watching_s += cost_s
        self._pauses_s[reader] = min(SLOWEST_S, cost_s * max(1, len(self._pauses_s)) / (self.run.share / 2))

    def accept(self, command: Command) -> None:
        """Let a command wait for the next step boundary, if there will be one."""
        with self._changed:
            if command.verb not in VERBS:
                self._note_event(command, refused=f"there is no {command.verb}")
            elif self.run.over:
                over = f"the simulation is over: {self.run.over}" if self.run.number else self.run.over
                self._note_event(command, refused=over)
            elif len(self._commands) >= COMMANDS_KEPT:
                self._note_event(command, refused="too many commands wait already")
            else:
                self._commands.append(command)
            self._changed.notify_all()

    def poke(self, name: str) -> None:
        """Have one who looks told at once."""
        with self._changed:
            if len(self._pokes) > POKED_KEPT:
                self._pokes.clear()
            self._pokes[name] = self._pokes.get(name, 0) + 1
            self._changed.notify_all()

    def news(self, look: Look, reader: int = 0) -> News:
        """Give what is new, once there is something or the time is up."""
        hz = min(HIGHEST_HZ, max(LOWEST_HZ, look.hz))
        if look.field:
            until_s = time.monotonic() + READER_S + look.wait_s
            self._wanted[reader] = Wanted(look.field, max(1, look.pixels), hz, until_s)
        else:
            self._wanted.pop(reader, None)
        deadline = time.monotonic() + look.wait_s
        with self._changed:
            pause_s = max(1 / hz, self._pauses_s.get(reader, 0.0))
            self._changed.wait_for(lambda: self._is_urgent(look), min(look.wait_s, pause_s))
            while not self._has_news(look) and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left_s, 1 / hz))
            events = self._since(look.events) if look.run else self._lately()
            news = self._standing(look, events)
        return self._filled(news, look, reader)

    def _is_urgent(self, look: Look) -> bool:
        return self._last_event > look.events or self._pokes.get(look.name, 0) != look.pokes

    def _has_news(self, look: Look) -> bool:
        picture = self.run.pictures.get(look.field)
        return (
            self._is_urgent(look)
            or look.run != self.run.number
            or (picture is not None and picture[0].frame != look.frame)
            or self.run.has_more(look.series)
        )

    def _standing(self, look: Look, events: tuple[Event, ...]) -> News:
        """Give how things stand at this moment: what belongs together."""
        run = self.run
        version = run.params_version  # before what it is the version of: more may be declared meanwhile
        same = look.run == run.number and look.params == version
        return News(
            run=run.number,
            cell=run.cell,
            over=run.over,
            step=run.step,
            steps=run.steps,
            paused=self._paused,
            params={} if same else run.params(),
            params_version=version,
            events=events,
            missed_events=self._last_event - look.events - len(events),
            series={},
            fields=tuple(run.fields),
            picture=None,
            pulses={},
            dropped=run.dropped,
            warnings=tuple(run.warnings),
            log=run.log.path,
            pokes=self._pokes.get(look.name, 0),
        )

    def _filled(self, news: News, look: Look, reader: int) -> News:
        """Add what takes its time; nobody waits for it."""
        run, now = self.run, time.monotonic()
        if run.number != news.run:  # another has begun: the next look tells of it
            return news
        same = look.run == run.number
        told = self._pulsed_s.get(reader, float("-inf")) + PULSES_S > now and same and not news.over
        if not told:
            self._pulsed_s[reader] = now
        try:
            picture = run.picture(look.field, look.frame if same else 0)
        except Exception as error:  # an oddity of a field must not cut off who wants to see other things
            run.warn(f"the field {look.field} is not shown: {type(error).__name__}: {error}")
            picture = None
        return replace(
            news,
            series=run.curves(look.series if same else {}),
            picture=picture,
            pulses={} if told else dict(run.pulses),
        )

    def _lately(self) -> tuple[Event, ...]:
        """Give the last events of this run, to one who has none yet."""
        last = list(
            islice((event for event in reversed(self._events) if event.run == self.run.number), EVENTS_AT_FIRST)
        )
        return tuple(reversed(last))

    def _since(self, number: int) -> tuple[Event, ...]:
        events: list[Event] = []
        for event in reversed(self._events):
            if event.number <= number:
                break
            events.append(event)
        return tuple(reversed(events))
