"""A simulation whose ranks are in a session: what happens at its step boundaries, on all ranks at the same step.

    rank 0    takes what notebooks ask for (desk) ─► tells all ranks (words), at each boundary
    others    wait for rank 0's word ─► do the same

A rank that leaves the loop tells rank 0, which tells all others: whoever is at a boundary, or comes to the next one,
raises, and says which rank left, at which step, and why. The user's own communication is not ours: a rank that waits
in it for one that has left is found as in any cell (docs/remote-cells.md).
"""

from __future__ import annotations

import operator
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from hpcmagic.engine.desk import QUIET, Batch, Desk
from hpcmagic.engine.fields import Collect, Part, box_of, part_of
from hpcmagic.engine.gauge import Gauge
from hpcmagic.engine.params import Check
from hpcmagic.engine.patience import patience
from hpcmagic.engine.pictures import Pictures
from hpcmagic.engine.runs import Run
from hpcmagic.engine.words import BATCH, GO, LEFT, PART, PULSE, End, Words, nap
from hpcmagic.errors import SteerError
from hpcmagic.ranges import Schedule, declared, fitted, new_value, strays

PAUSED_LOOK_S = 0.05
BEFORE = -1  # the first step


@dataclass(frozen=True, slots=True)
class Given:
    """What a rank has given of a field, for whoever looks at it while the simulation is paused."""

    step: int
    box: Any
    array: Callable[[], Any]  # None once it is gone


class Live:
    """One simulation; made by `hpcmagic.steer.live`, whose documentation says what each method does."""

    def __init__(
        self,
        words: Words,
        desk: Desk,
        schedule: Schedule,
        share: float,
        cell: str = "",
    ) -> None:
        self._words = words
        self._desk = desk
        self._schedule = schedule
        self.rank, self.size = words.rank, words.size
        self._run = desk.begin(cell) if self.rank == 0 else Run(0)
        self._values: dict[str, Any] = {}
        self._declared: set[str] = set()
        self._step = BEFORE
        self.in_loop = self.left = False
        self._collect: Collect | None = None
        self._given: dict[str, Given] = {}  # by field: in the step that is being done, or was before a pause
        self._ended = False  # whether all know that the loop is over
        self._gauge = Gauge(words.size)
        self._run.share = share
        self._pictures = Pictures(self._run, desk, words.size)

    # ── what a simulation calls ──────────────────────────────────────────────────────────────

    def steps(self, steps: int | Iterable[int]) -> Iterator[int]:
        """Give the steps, each at its boundary."""
        if self.in_loop:
            raise SteerError("The steps of this simulation are being gone through already.", "Make one loop of it.")
        if self.left:
            raise SteerError("This simulation is over.", "Begin another with `steer.live`.")
        numbers = steps if isinstance(steps, Iterable) else range(_number_of(steps))
        if isinstance(numbers, range) and numbers:
            self._run.steps = 1 + max(numbers[0], numbers[-1])
        self.in_loop, why = True, ""
        try:
            for step in numbers:
                if not self._boundary(step):
                    why = "it was stopped"
                    return
                yield step
            why = "it came to its end"
        except KeyboardInterrupt:
            why = "it was interrupted"
            raise
        finally:
            self.leave(why)

    def param(self, name: str, default: Any, *, min: Any = None, max: Any = None, check: Any = None) -> Any:  # noqa: A002  # what users type
        """Give a parameter's value: the same on every rank at the same step."""
        if name not in self._declared:
            param = declared(name, default, min, max)
            self._schedule = fitted(name, param, self._schedule)
            if self._schedule and name in self._values:  # by a log that sets it before it is declared
                self._values[name] = new_value(name, self._values[name], param)
            self._declared.add(name)
            if self.rank == 0:
                with patience:
                    self._run.declare(name, Check(param, check))
        return self._values.get(name, default)

    def publish(self, **numbers: Any) -> None:
        """Add numbers to the curves."""
        if self.rank == 0:
            work_s = time.thread_time()
            self._run.publish(self._step, numbers)
            self._gauge.ours_s += time.thread_time() - work_s

    def field(self, name: str, array: Any, box: Any = None) -> None:
        """Show this rank's part of a field, if somebody looks."""
        name = str(name)
        if self.rank == 0 and name not in self._run.fields:
            self._run.fields[name] = ()
        self._given[name] = Given(self._step, box, _kept(array))
        if self._collect is None or self._collect.name != name:
            return
        work_s = time.thread_time()
        with patience:
            self._show(self._collect, self._step, array, box)
        self._gauge.ours_s += time.thread_time() - work_s

    def _show(self, collect: Collect, step: int, array: Any, box: Any) -> None:
        """Give rank 0 this rank's part of a picture."""
        self._collect = None
        work_s = time.thread_time()
        part = self._part(collect, array, box)
        part = replace(part, step=step, cost_s=time.thread_time() - work_s)
        if self.rank == 0:
            self._pictures.take(0, part)
        else:
            self._words.tell_root(PART, part)

    def _part(self, collect: Collect, array: Any, box: Any) -> Part:
        if not hasattr(array, "shape"):
            return Part(collect.frame, (), self._step, fault=f"it is no array but a {type(array).__name__}")
        if box is None and self.size > 1:
            return Part(collect.frame, (), self._step, fault="each rank must say with box= which part it has")
        try:
            return part_of(collect, array, box_of(array, box), self._step)
        except Exception as error:  # an object of the user's that only looks like an array may raise anything
            return Part(collect.frame, (), self._step, fault=str(error) or type(error).__name__)

    # ── the boundary ─────────────────────────────────────────────────────────────────────────

    def _boundary(self, step: int) -> bool:
        """Do, before a step, what all ranks do; whether the simulation goes on."""
        with patience:
            began_s, waited_s, work_s = time.perf_counter(), self._words.waited_s, time.thread_time()
            busy = self._pictures.busy
            try:
                self._step = operator.index(step)
            except TypeError:
                raise SteerError(
                    f"A step is {step!r}.", "Steps are whole numbers: `live.steps(1000)`, or an iterable of them."
                ) from None
            goes_on = self._lead() if self.rank == 0 else self._follow()
            self._given.clear()
            now = time.perf_counter()
            waited_s = self._words.waited_s - waited_s
            work_s = time.thread_time() - work_s
            self._gauge.boundary(now - began_s, waited_s, work_s)
            if self.rank == 0 and not waited_s:
                self._pictures.note_boundary(work_s, busy=busy or self._pictures.busy)
            if self._gauge.is_due(now):
                self._send_pulse(now)
        return goes_on

    def _lead(self) -> bool:
        self._hear()
        if self._words.too_far_ahead():
            self._wait()
        batch = self._desk.take(self._step, self._schedule.get(self._step, ()))
        if (collect := self._pictures.wish(self._gauge.step_s)) is not None:
            batch = replace(batch, collect=collect)
        self._words.tell(*((GO, self._step) if batch == QUIET else (BATCH, self._step, batch)))
        self._do(batch)
        while batch.paused:
            began_s = time.perf_counter()
            while not self._desk.has_commands():
                self._hear()
                self._look()
                patience.let_through()
                self._desk.wait_for_command(PAUSED_LOOK_S)
            self._words.waited_s += time.perf_counter() - began_s
            batch = self._desk.take(self._step)
            if batch.changes or not batch.paused:
                self._words.tell(BATCH, self._step, batch)
                self._do(batch)
        return not batch.stop

    def _look(self) -> None:
        """Ask, while it is paused, for a picture that somebody has not seen."""
        still = {name: given.step for name, given in self._given.items() if given.array() is not None}
        if (collect := self._pictures.wish(self._gauge.step_s, still)) is not None:
            batch = Batch(paused=True, collect=collect)
            self._words.tell(BATCH, self._step, batch)
            self._do(batch)

    def _wait(self) -> None:
        """Let the other ranks catch up."""
        began_s = now = time.perf_counter()
        while self._words.too_far_ahead():
            patience.let_through()
            nap(now - began_s)
            self._hear()
            now = time.perf_counter()
        self._words.waited_s += now - began_s

    def _follow(self) -> bool:
        while True:
            word = self._words.next()
            if isinstance(word, End):
                raise self._deserted(word)
            if word.step != self._step:
                raise SteerError(
                    f"Rank {self.rank} is at step {self._step}, rank 0 at step {word.step}.",
                    "All ranks must go through the same steps.",
                )
            batch = word.what or QUIET
            self._do(batch)
            if not batch.paused:
                return not batch.stop

    def _do(self, batch: Batch) -> None:
        self._values.update(batch.changes)
        self._collect = batch.collect or self._collect
        given = self._given.get(self._collect.name) if batch.paused and self._collect is not None else None
        if self._collect is not None and given is not None and (array := given.array()) is not None:
            self._show(self._collect, given.step, array, given.box)

    def _hear(self) -> None:
        """Take what other ranks have said.

        Raises
        ------
        SteerError
            One has left the loop.
        """
        end: End | None = None
        for rank, tag, what in self._words.hear():
            if tag == PULSE:
                self._run.pulses[rank] = what
            elif tag == PART:
                self._pictures.take(rank, what)
            elif tag == LEFT:
                end = end or End(rank, *what)
        if end is not None:
            self._words.tell_end(end)
            raise self._deserted(end)

    def _deserted(self, end: End) -> SteerError:
        self._ended = True
        at = f"at step {end.step}" if end.step != BEFORE else "before its first step"
        return SteerError(
            f"Rank {end.rank} has left the loop of this simulation {at}{f' ({end.why})' if end.why else ''}; "
            f"rank {self.rank} was about to begin step {self._step}.",
            "All ranks must go through the same steps; if one has raised, its error stands with the cell.",
        )

    def leave(self, why: str) -> None:
        """Leave the loop, or never come to it: let the others know, and stay a little to hear that they do."""
        if self.left:
            return
        with patience.until_later():
            self.left, self.in_loop = True, False
            self._given.clear()
            if self.rank == 0:
                for stray in strays(self._schedule, self._declared, self._step):
                    self._run.warn(stray)
                if not self._ended:
                    self._words.tell_end(End(0, self._step, why))
                self._desk.end(why or "the ranks have left the loop")
            elif not self._ended:
                self._words.tell_root(LEFT, (self._step, why))
            self._words.finish()

    def _send_pulse(self, now: float) -> None:
        pulse = self._gauge.pulse(self._step, now)
        if self.rank == 0:
            self._run.pulses[0] = pulse
        else:
            self._words.tell_root(PULSE, pulse)


def _number_of(steps: Any) -> int:
    try:
        return operator.index(steps)
    except TypeError:
        raise SteerError(
            f"The number of steps is {steps!r}.",
            "Steps are whole numbers: `live.steps(1000)`, or an iterable of them.",
        ) from None


def _kept(array: Any) -> Callable[[], Any]:
    """Give a way to come back to an array: of a view the owner is there anyway; any other lives no longer for us."""
    if getattr(array, "base", None) is not None:
        return lambda: array
    try:
        return weakref.ref(array)
    except TypeError:
        return lambda: None
