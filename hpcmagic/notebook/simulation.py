"""`session.steer`: the simulation that runs in the session, its parameters, curves and pictures.

params, series, field ─► Mirror ◄─ news ─┐
set, pause, step, …   ─► Mirror ─ command ─► rank 0's desk ─► all ranks, at the same step boundary
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpcmagic.errors import CellError, ChannelError, SteerError
from hpcmagic.notebook import output
from hpcmagic.notebook.cell_list import OwnCells
from hpcmagic.notebook.mirror import Mirror
from hpcmagic.ranges import KINDS, Param, plain
from hpcmagic.wire.bulk import Invitation, connect
from hpcmagic.wire.looks import Command, Event, News, Picture

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session

COMES_S = 10.0  # how long a simulation may take to come alive after its cell has begun
ASK_S = 0.1
ANSWER_S = 5.0
CAUSE_S = 3.0
GLANCE_S = 0.3
FIRST_S = 1.0
LOOK_S = 1.0
PICTURE_S = 10.0
STILL_S = 2.0  # in which a paused simulation gives a picture of what is still there


@dataclass(frozen=True, slots=True)
class Applied:
    """A change that has taken effect, on all ranks before this step."""

    step: int

    def __str__(self) -> str:
        return f"applied at step {self.step}"


class Steer:
    """Watches and steers the newest simulation of a session (`hpcmagic.steer.live`)."""

    def __init__(self, session: Session, cells: OwnCells) -> None:
        self._session = session
        self._cells = cells
        self._mirror: Mirror | None = None
        self._engine = ""  # that the mirror leads to
        self._pixels: dict[str, int] = {}  # of each field's picture, as they were asked for last
        self._connecting = threading.Lock()  # a handle's thread may ask as well, for the panel

    def __repr__(self) -> str:
        with self._watched(fresh=True) as mirror:
            return as_text(news_of(mirror), mirror)

    def params(self) -> dict[str, Param]:
        """Give the parameters by name: value, default, min, max.

        Raises
        ------
        SteerError
            No simulation has come alive.
        """
        with self._watched(fresh=True) as mirror:
            return dict(news_of(mirror).params)

    def set(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> Applied:
        """Set parameters, by name or in a dictionary, all at the same step; return once they have taken effect.

        Raises
        ------
        SteerError
            Refused, with the reason: no such parameter, another type, out of its range, or its check says no.
        """
        if not isinstance(values or {}, Mapping) or not all(isinstance(name, str) for name in values or {}):
            raise SteerError(f"{values!r} has no name.", "Name parameters: `steer.set(dt=5e-4)`.")
        own = {name: plain(value) for name, value in {**(values or {}), **named}.items()}
        if not own:
            raise SteerError("Nothing to set.", "Name parameters: `steer.set(dt=5e-4)`.")
        for name, value in own.items():
            if not isinstance(value, KINDS):
                raise SteerError(
                    f"{name} cannot be set to a {type(value).__name__}.", "Set numbers, True and False, or texts."
                )
        return self._do("set", own)

    def pause(self) -> Applied:
        """Have all ranks wait before the same step."""
        return self._do("pause")

    def step(self) -> Applied:
        """Let one step be done, then pause."""
        return self._do("step")

    def resume(self) -> Applied:
        """Go on."""
        return self._do("resume")

    def stop(self) -> Applied:
        """End the loop on all ranks, before the same step; what stands behind it is done."""
        return self._do("stop")

    def series(self, name: str) -> tuple[Any, Any]:
        """Give a curve from the start of the run: its steps and its values, as NumPy arrays (else `array.array`)."""
        with self._watched(fresh=True) as mirror:
            mirror.wait(lambda: mirror.curves or news_of(mirror).over, COMES_S)  # it may only be about to begin
            mirror.wait(lambda: name in mirror.curves or news_of(mirror).over, LOOK_S)
            if name not in mirror.curves:
                raise SteerError(
                    f"No numbers were published as {name!r}; there is {', '.join(mirror.curves) or 'nothing'}"
                    f"{_said_over(news_of(mirror))}.",
                    f"In the simulation: `live.publish({name}=…)`.",
                )
            with mirror.changed:
                curve = mirror.curves[name]
                steps, values = curve.steps[:], curve.values[:]
        try:
            import numpy as np
        except ImportError:
            return steps, values
        return np.array(steps), np.array(values)

    def names(self) -> tuple[str, ...]:
        """Give the names of all curves."""
        with self._watched(fresh=True) as mirror:
            return tuple(mirror.curves)

    def fields(self) -> tuple[str, ...]:
        """Give the names of all fields."""
        with self._watched(fresh=True) as mirror:
            return news_of(mirror).fields

    def field(self, name: str, pixels: int = 512, timeout: float = PICTURE_S) -> Any:
        """Give the newest picture of a field: (rows, columns), thinned to `pixels`, NaN where nobody has any.

        Raises
        ------
        SteerError
            There is no such field, or none came within `timeout` seconds.
        """
        if not isinstance(pixels, int) or isinstance(pixels, bool) or pixels < 1:
            raise SteerError(f"pixels = {pixels!r} is no size of a picture.", "Give a whole number: `pixels=512`.")
        with self._watched() as mirror:
            mirror.wait(lambda: news_of(mirror).fields or news_of(mirror).over, COMES_S)
            mirror.wait(lambda: name in news_of(mirror).fields or news_of(mirror).over, LOOK_S)
            if name not in news_of(mirror).fields:
                raise SteerError(
                    f"There is no field {name!r}; there is {', '.join(news_of(mirror).fields) or 'none'}"
                    f"{_said_over(news_of(mirror))}.",
                    "In the simulation: `live.field(…)`.",
                )
            frames = {former.frame for former in [mirror.pictures.get(name)] if former is not None}
            wanted = len(frames) + (1 if self._pixels.get(name, pixels) == pixels else 3)  # two may be on their way
            self._pixels[name] = pixels
            mirror.want(name, pixels)

            def came(still_s: float = time.monotonic() + STILL_S) -> bool:
                if (picture := mirror.pictures.get(name)) is not None:
                    frames.add(picture.frame)
                return len(frames) >= wanted or _stands(news_of(mirror), picture, pixels, still_s)

            mirror.wait(came, timeout)
            picture = mirror.pictures.get(name)
            if picture is None:
                raise _no_picture(name, news_of(mirror), timeout)
            thin = -(-max(1, picture.rows, picture.columns) // pixels)  # another may look, and finer
            return picture.as_array()[::thin, ::thin]

    def events(self) -> list[Event]:
        """Give what became of commands, this notebook's and others'."""
        with self._watched(fresh=True) as mirror:
            return list(mirror.events)

    def mirror(self) -> Mirror:
        """Give what holds the newest news; for the panel."""
        with self._watched() as mirror:
            return mirror

    def close(self) -> None:
        """Let go of the simulation; it runs on."""
        mirror, self._mirror = self._mirror, None
        if mirror is not None:
            mirror.close()

    def _do(self, verb: str, values: dict[str, Any] | None = None) -> Applied:
        command = Command(verb, self._session.control_path().name.partition("#")[0], values or {})
        with self._watched() as mirror:
            event = self._answer(mirror, command)
            if event.refused and news_of(mirror).over:
                with self._connecting:
                    newer = self._newer(mirror)
                if not news_of(newer).over:
                    mirror = newer  # noqa: PLW2901  # the one to go on with
                    event = self._answer(mirror, command)
            if event.refused:
                full_stop = "" if event.refused.endswith("?") else "."
                raise SteerError(f"Refused: {event.refused}{full_stop}", mend_of(mirror))
            return Applied(event.step)

    def _answer(self, mirror: Mirror, command: Command) -> Event:
        """Send a command, and wait for what becomes of it."""
        number = mirror.tell(command)
        line, began_s = output.StatusLine(), time.monotonic()
        try:
            while not mirror.wait(lambda: mirror.outcome(number), LOOK_S):
                self._session.look(time.monotonic())
                waited = output.clock(int(time.monotonic() - began_s))
                line.update(f"{command.verb}: waiting for the next step boundary, {waited}")
        except KeyboardInterrupt:
            raise SteerError(
                f"Stopped waiting for {command.verb}; it takes effect at the next step boundary all the same.",
                "`%steer` shows what became of it.",
            ) from None
        finally:
            line.clear()
        event = mirror.outcome(number)
        if event is None:
            assert mirror.lost is not None  # noqa: S101  # `wait` says so
            raise mirror.lost
        return event

    @contextmanager
    def _watched(self, *, fresh: bool = False) -> Iterator[Mirror]:
        """Give the mirror of the simulation; a connection that is cut is told as what cut it, Ctrl-C in two lines."""
        self._session.require_alive()
        try:
            with self._connecting:
                mirror = self._mirror
                known = self._session.control_path().engines()
                if mirror is None or mirror.lost is not None or self._engine not in known:
                    self.close()
                    mirror = self._mirror = self._connected(self._rank())
                if fresh:
                    mirror.refresh(LOOK_S)
                if news_of(mirror).over:
                    mirror = self._newer(mirror)
            yield mirror
        except KeyboardInterrupt:
            raise CellError(
                f"Stopped waiting for the simulation of session {self._session.name}; it runs on.", "Try again."
            ) from None
        except ChannelError:
            deadline = time.monotonic() + CAUSE_S
            while time.monotonic() < deadline:  # if ranks have ended, the keeper will know why
                self._session.look(time.monotonic())
                time.sleep(ASK_S)
            raise

    def _newer(self, mirror: Mirror) -> Mirror:
        """Go on to the next simulation, if there is one; wait a little if a cell has begun that may bring one."""
        deadline, over = time.monotonic() + COMES_S, news_of(mirror).run
        while True:
            rank = _leader(self._asked(range(self._session.size), within_s=GLANCE_S))
            if rank is not None and self._session.control_path().engine(rank) != self._engine:
                self.close()
                self._mirror = self._connected(rank)
                return self._mirror
            mirror.refresh(LOOK_S)
            running = [one.id for one in self._cells.live()]
            comes = bool(running) and news_of(mirror).cell not in running and time.monotonic() < deadline
            if news_of(mirror).run != over or mirror.lost is not None or not comes:
                return mirror
            mirror.wait(lambda: news_of(mirror).run != over, ASK_S)

    def _connected(self, rank: int) -> Mirror:
        channels = self._session.data.channels
        invitations = [Invitation.fresh(), Invitation.fresh()]
        opened = []
        try:
            for invitation in invitations:
                told = channels.invite({rank: invitation})[rank]
                opened.append(connect(told.host, told.port, invitation, self._session.request.server_public))
            self._asked([rank], channels=[invitation.channel for invitation in invitations])
        except BaseException:
            for channel in opened:
                channel.close()
            raise
        self._engine = self._session.control_path().engine(rank)
        mirror = Mirror(*opened)
        if not mirror.wait(lambda: mirror.newest is not None, ANSWER_S) or mirror.newest is None:
            mirror.close()
            raise mirror.lost or ChannelError(f"Rank {rank} tells nothing of its simulation.", "See `%hpc log`.")
        return mirror

    def _rank(self) -> int:
        """Find the rank that answers for the newest simulation; wait for it a little while a cell runs."""
        began_s = time.monotonic()
        while True:
            answers = self._asked(range(self._session.size))
            rank = _leader(answers)
            busy = bool(self._cells.live()) and time.monotonic() < began_s + COMES_S
            if rank is not None and answers[rank]["alive"]:
                by_itself = rank > 0 and answers[rank]["size"] == 1  # so may be a lower one, in a moment
                if not by_itself or time.monotonic() > began_s + FIRST_S:
                    return rank
            elif rank is not None and not busy:
                return rank
            elif not busy:
                raise self._nobody(answers)
            time.sleep(ASK_S)

    def _nobody(self, answers: Mapping[int, Any]) -> SteerError:
        if silent := [rank for rank in range(self._session.size) if rank not in answers]:
            return SteerError(
                f"Rank {silent[0]} does not say whether a simulation runs there (waited {ANSWER_S:g} s).",
                "It is in C code that holds the interpreter. Wait for its end, and try again.",
            )
        return SteerError(
            f"No simulation has come alive in session {self._session.name}.",
            "In a cell that runs (`%%remote -a`): `from hpcmagic import steer`, `live = steer.live(comm)`.",
        )

    def _asked(self, ranks: Sequence[int], within_s: float = ANSWER_S, **what: Any) -> dict[int, dict[str, Any]]:
        """Ask ranks, and wait a little for those that answer; one in C code that holds the interpreter does not."""
        answers = self._session.control_path().simulations(list(ranks), **what)
        deadline = time.monotonic() + within_s
        while len(answers) < len(ranks) and time.monotonic() < deadline and not answers.get(0, {}).get("alive"):
            time.sleep(0.002)
            self._session.look(time.monotonic())
        refused = [told["cause"] for told in list(answers.values()) if told.get("cause")]
        if refused:
            raise SteerError(f"{refused[0]}.", "Close other notebooks that watch it.")
        return dict(answers)


def _leader(answers: Mapping[int, Mapping[str, Any]]) -> int | None:
    """Give the first rank that leads a simulation that is alive, else the one of the newest cell that had one."""
    led = {rank: told for rank, told in sorted(answers.items()) if told["run"]}
    newest = max(led.values(), key=lambda told: told["began"], default={"cell": ""})["cell"]
    alive = [rank for rank, told in led.items() if told["alive"]]
    return next(iter([*alive, *(rank for rank, told in led.items() if told["cell"] == newest)]), None)


def _stands(news: News, picture: Picture | None, pixels: int, still_s: float) -> bool:
    """Whether there will be no other picture: it is over, or paused and this is its last or only one."""
    if not news.paused or picture is None:
        return bool(news.over)
    fine = picture.stride <= max(1, -(-max(picture.shape[-2:]) // pixels))
    return (fine and picture.step == news.step - 1) or time.monotonic() > still_s


def news_of(mirror: Mirror) -> News:
    """Give the newest news."""
    assert mirror.newest is not None  # noqa: S101  # a mirror is handed out once they have come
    return mirror.newest


def mend_of(mirror: Mirror) -> str:
    """Say what can be done about a refusal."""
    if news_of(mirror).over:
        return "Run its cell again."
    return "`%steer` shows the parameters and their ranges."


def as_text(news: News, mirror: Mirror) -> str:
    """Say how a simulation stands, its parameters and the ends of its curves."""
    of = f" of {news.steps}" if news.steps else ""
    state = f"over: {news.over}" if news.over else "paused" if news.paused else "running"
    rate = news.pulses.get(0)
    speed = f", {1 / rate.step_s:,.3g} steps/s" if rate is not None and rate.step_s > 0 and not news.over else ""
    lines = [f"Simulation {state}, step {news.step}{of}{speed}"]
    for name, param in news.params.items():
        bounds = f"  [{_bound(param.min)}, {_bound(param.max)}]" if (param.min, param.max) != (None, None) else ""
        changed = "" if param.value == param.default else f"  (default {param.default!r})"
        lines.append(f"  {name} = {param.value!r}{bounds}{changed}")
    for name, curve in mirror.curves.items():
        if curve.values:
            lines.append(f"  {name}: {curve.values[-1]:.6g} at step {curve.steps[-1]}")
    if news.fields:
        lines.append(f"  fields: {', '.join(news.fields)}")
    lines += [f"  {event_in_words(event)}" for event in mirror.events[-3:]]
    lines += [f"  ! {warning}" for warning in news.warnings]
    return "\n".join(lines)


def event_in_words(event: Event) -> str:
    """Say what became of a command."""
    what = ", ".join(f"{name}: {old!r} → {new!r}" for name, old, new in event.changes) or event.verb
    if event.refused:
        return f"{event.user}: {event.verb} refused: {event.refused}"
    return f"{what} applied at step {event.step} ({event.user})"


def _no_picture(name: str, news: News, timeout: float) -> SteerError:
    """Say why: pictures are made at steps, of fields that somebody looks at."""
    said = [warning for warning in news.warnings if warning.startswith(f"the field {name} is not shown")]
    if said:
        return SteerError(
            f"No picture of {name!r} came within {timeout:g} s: {said[-1]}.",
            "Mend what the simulation gives to `live.field`, on all ranks at the same steps.",
        )
    if news.over:
        return SteerError(
            f"The simulation is over ({news.over}), and nobody had looked at {name!r}: no picture of it was made.",
            "Run it again, and look while it runs.",
        )
    if news.paused:
        return SteerError(
            f"The simulation is paused, and what it gave of {name!r} is gone: there is no picture of it yet.",
            "It comes as the simulation goes on: `session.steer.resume()`, or `%steer resume`.",
        )
    return SteerError(
        f"No picture of {name!r} came within {timeout:g} s.",
        "The simulation must go on, and call `live.field` on all ranks at the same steps.",
    )


def _said_over(news: News) -> str:
    return f", and the simulation is over: {news.over}" if news.over else ""


def _bound(value: float | None) -> str:
    return "…" if value is None else f"{value:g}"
