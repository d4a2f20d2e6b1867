"""What is kept of one simulation for those who watch it: numbers, pictures, how its ranks get on.

The main thread writes here without a lock, and readers read without one: each value is replaced as a whole. So a
simulation never waits for whoever watches.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hpcmagic.engine.fields import Collect, Part, whole
from hpcmagic.engine.params import Check
from hpcmagic.engine.patience import patience
from hpcmagic.engine.series import Series
from hpcmagic.engine.steerlog import SteeringLog
from hpcmagic.ranges import Param
from hpcmagic.wire.looks import Curve, Picture, Pulse

SERIES_KEPT = 500
WARNINGS_KEPT = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """A picture that a reader wants."""

    name: str
    pixels: int
    hz: float
    until_s: float


@dataclass
class Run:
    """One simulation, from `steer.live` on."""

    number: int
    cell: str = ""  # in which it came alive
    began_s: float = field(default_factory=time.time)
    over: str = ""
    step: int = 0
    steps: int = 0
    checks: dict[str, Check] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)  # that were set
    params_version: int = 0
    series: dict[str, Series] = field(default_factory=dict)
    fields: dict[str, tuple[int, ...]] = field(default_factory=dict)  # by name the whole's shape; () = not known yet
    pictures: dict[str, tuple[Collect, dict[int, Part]]] = field(default_factory=dict)
    pulses: dict[int, Pulse] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    dropped: int = 0
    share: float = 0.01  # of the time that watching may take
    watching_s: float = 0.0  # of the processor, that readers took in all
    log: SteeringLog = field(default_factory=SteeringLog)
    _composed: dict[str, Picture] = field(default_factory=dict)

    def warn(self, text: str) -> None:
        """Note something that whoever watches should know, once."""
        if text not in self.warnings and len(self.warnings) < WARNINGS_KEPT:
            self.warnings.append(text)

    def declare(self, name: str, check: Check) -> None:
        """Note a parameter."""
        self.checks[name] = check
        self.params_version += 1

    def publish(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Add a value to each of these series."""
        for name, value in numbers.items():
            number = value if type(value) is float else self._number(name, value)
            if number is None:
                continue
            series = self.series.get(name)
            if series is None:
                if len(self.series) >= SERIES_KEPT:
                    self.warn(f"not all numbers are kept: there are {SERIES_KEPT} series already")
                    continue
                series = self.series[name] = Series()
            with patience:
                series.add(step, number)

    def _number(self, name: str, value: Any) -> float | None:
        if not isinstance(value, (str, bytes)):
            with suppress(Exception):  # what a user's object raises when it is asked for its number
                return float(value.item() if hasattr(value, "item") else value)
        self.warn(f"{name} was not published: {type(value).__name__} is no number")
        return None

    def value(self, name: str) -> Any:
        """Give what a parameter holds."""
        check = self.checks.get(name)
        return self.values.get(name, check.param.default if check is not None else None)

    def params(self) -> dict[str, Param]:
        """Give all parameters as they are."""
        return {
            name: Param(self.value(name), c.param.default, c.param.min, c.param.max)
            for name, c in list(self.checks.items())
        }

    def curves(self, known: Mapping[str, tuple[int, int]]) -> dict[str, Curve]:
        """Give what is new of each series to one who has so much of it."""
        found = {name: series.since(*known.get(name, (0, 0))) for name, series in list(self.series.items())}
        return {name: curve for name, curve in found.items() if curve is not None}

    def has_more(self, known: Mapping[str, tuple[int, int]]) -> bool:
        """Whether there is anything new of a series."""
        return any(series.has_more(*known.get(name, (0, 0))) for name, series in list(self.series.items()))

    def picture(self, name: str, frame: int) -> Picture | None:
        """Give the newest picture of a field to one who has that frame (called by readers)."""
        found = self.pictures.get(name)
        if found is None or found[0].frame == frame:
            return None
        collect, parts = found
        made = self._composed.get(name)
        if made is None or made.frame != collect.frame:
            made = self._composed[name] = whole(collect, parts)
        return made
