"""What the keeper says every two seconds to whoever is connected: how long the job ran, how long idle, what is left.

keeper ─ Beat as JSON, over CURVE ─► each notebook's client ─► news, meter
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Beat:
    """The keeper's word at one moment, by its own monotonic clock.

    Attributes
    ----------
    warning
        What notebooks should be told.
    ran_s
        Since the keeper began.
    idle_s
        For how much of that no cell ran.
    busy
        Whether a cell runs or waits on any rank.
    idle_left_s
        Until the session ends for want of a cell; None = no `idle_limit`, or not idle.
    budget_left_s
        Until the session ends by its budget; None = it has none.
    """

    warning: str = ""
    ran_s: float = 0.0
    idle_s: float = 0.0
    busy: bool = False
    idle_left_s: float | None = None
    budget_left_s: float | None = None

    def aged(self, by_s: float) -> Self:
        """Give it as it stands so much later, if nothing else has happened; one that was never said does not age."""
        if not self.ran_s:
            return self
        return replace(
            self,
            ran_s=self.ran_s + by_s,
            idle_s=self.idle_s + (0.0 if self.busy else by_s),
            idle_left_s=None if self.idle_left_s is None else max(0.0, self.idle_left_s - by_s),
            budget_left_s=None if self.budget_left_s is None else max(0.0, self.budget_left_s - by_s),
        )

    def to_frame(self) -> bytes:
        """Give it as it travels."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_frame(cls, frame: bytes) -> Self:
        """Read it; what makes no sense is left out."""
        try:
            told = json.loads(frame)
        except ValueError:
            return cls()
        kept = {one.name: told[one.name] for one in fields(cls) if one.name in told} if isinstance(told, dict) else {}
        return cls(**{name: value for name, value in kept.items() if _fits(name, value)})


def _fits(name: str, value: Any) -> bool:
    if name == "warning":
        return isinstance(value, str)
    if name == "busy":
        return isinstance(value, bool)
    if value is None:
        return name in ("idle_left_s", "budget_left_s")
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
