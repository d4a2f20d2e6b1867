"""What a step of a simulation takes, and what of it hpcmagic does."""

from __future__ import annotations

import math

from hpcmagic.wire.looks import Pulse

PULSE_S = 0.5
FIRST_S = 0.1  # until the first pulse: of the few steps before one cannot tell how long they take
PULSES_A_SECOND = 100  # that rank 0 takes in, of all ranks together


class Gauge:
    """Measures one rank's steps, and gives means now and then.

    Parameters
    ----------
    size
        How many ranks there are.
    """

    def __init__(self, size: int) -> None:
        self.ours_s = 0.0  # of the processor
        self.step_s = 0.0  # of late
        self._every_s = max(PULSE_S, size / PULSES_A_SECOND)
        self._due_s = self._since_s = float("inf")  # the first boundary begins the first step
        self._waits_s, self._steps = 0.0, 0

    def boundary(self, took_s: float, waited_s: float, work_s: float) -> None:
        """Count a boundary: what it took, how much of that was waiting for others, or paused; the processor's time.

        Who waits may keep the processor busy or not, and another process may have it meanwhile: neither is ours.
        """
        self._steps += 1
        self._waits_s += waited_s
        self.ours_s += min(took_s - waited_s, work_s)

    def is_due(self, now: float) -> bool:
        """Whether it is time for a pulse."""
        if math.isinf(self._due_s):
            self._since_s, self._due_s = now, now + FIRST_S
            self._waits_s, self._steps, self.ours_s = 0.0, 0, 0.0
        return now >= self._due_s

    def pulse(self, step: int, now: float) -> Pulse:
        """Give means since the last time, for a step."""
        steps = max(1, self._steps)
        self.step_s = (now - self._since_s) / steps
        pulse = Pulse(step, self.step_s, self._waits_s / steps, self.ours_s / steps)
        self._since_s, self._due_s = now, now + self._every_s
        self._waits_s, self._steps, self.ours_s = 0.0, 0, 0.0
        return pulse
