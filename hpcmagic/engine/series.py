"""Numbers that a simulation publishes, step after step: all while they are few, then fewer the older they are."""

from __future__ import annotations

from array import array

from hpcmagic.wire.looks import HALF, Curve, halved

ROOM = 2 * HALF  # values of one series; when it is full, of the older half every second one goes


class Series:
    """One curve from the start of the run, in bounded memory. One thread adds, others read meanwhile."""

    def __init__(self) -> None:
        self._now = 0, array("q"), array("d")  # how often it was thinned, steps, values: replaced as a whole

    def add(self, step: int, value: float) -> None:
        """Add a value."""
        thinned, steps, values = self._now
        steps.append(step)
        values.append(value)
        if len(values) >= ROOM:
            self._now = thinned + 1, halved(steps), halved(values)

    def has_more(self, thinned: int, count: int) -> bool:
        """Whether there is more than so many values, thinned so often."""
        now, _, values = self._now
        return thinned != now or count != len(values)

    def since(self, thinned: int, count: int) -> Curve | None:
        """Give what is new to one who has so many values, thinned so often; None if nothing is."""
        now, steps, values = self._now
        end = len(values)
        if thinned == now - 1 and HALF <= count <= ROOM:
            count -= HALF // 2  # so many he has once he has thinned his own
        elif thinned != now or count > end:
            count = 0
        elif count == end:
            return None
        return Curve(now, count, steps[count:end], values[count:end])
