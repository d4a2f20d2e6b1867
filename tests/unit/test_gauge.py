"""What of a step is hpcmagic's own: neither waiting for others, nor what the processor did for somebody else."""

import time

import pytest

from hpcmagic.engine.gauge import FIRST_S, PULSE_S, Gauge


@pytest.mark.parametrize(("waited_s", "work_s"), [(0.0, 1e-3), (9e-3, 10e-3), (9e-3, 1e-3)],
                         ids=["another process had the core", "waits and looks", "waits asleep"])  # fmt: skip
def test_own_time(waited_s, work_s):
    """Of ten milliseconds at a boundary one is ours, whatever the others were."""
    gauge = Gauge(2)
    gauge.is_due(time.perf_counter())
    for _ in range(5):
        gauge.boundary(10e-3, waited_s, work_s)
    pulse = gauge.pulse(5, time.perf_counter())
    assert pulse.ours_s == pytest.approx(1e-3)
    assert pulse.wait_s == waited_s


def test_pulses():
    """A pulse has the means since the last one, and they come no more often than rank 0 can take them in."""
    gauge, now = Gauge(2), time.perf_counter()
    gauge.boundary(9.0, 8.0, 1.0)  # what was before the first step is no step
    assert not gauge.is_due(now)
    assert not gauge.is_due(now + 0.9 * FIRST_S)
    for _ in range(4):
        gauge.boundary(2e-3, 1e-3, 1e-3)
    assert gauge.is_due(now + FIRST_S)
    first = gauge.pulse(4, now + FIRST_S)
    assert (first.step_s, first.wait_s, first.ours_s) == pytest.approx((FIRST_S / 4, 1e-3, 1e-3))
    now += FIRST_S
    assert not gauge.is_due(now + 0.9 * PULSE_S)
    for _ in range(10):
        gauge.boundary(2e-3, 1e-3, 1e-3)
    pulse = gauge.pulse(10, now + PULSE_S)
    assert (pulse.step, pulse.step_s, pulse.wait_s, pulse.ours_s) == pytest.approx((10, PULSE_S / 10, 1e-3, 1e-3))
    assert gauge.pulse(10, now + 2 * PULSE_S).ours_s == 0
    many = Gauge(1000)
    many.is_due(now)
    many.pulse(0, now)
    assert not many.is_due(now + 9.9)
