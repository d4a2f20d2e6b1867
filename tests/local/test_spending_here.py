"""What a session on this machine costs: core-hours, and how much of it while no cell ran."""

import time

import pytest

import hpcmagic

IDLE_S = 1.5


def test_core_hours(own_session, tmp_path):
    """CPUs × time is counted, also of a session that has ended; what no cell ran for is idle."""
    held = own_session(nodes=2, cpus_per_task=3)
    where = {"session_dir": str(held.directory.path.parent)}
    held.run("import time; time.sleep(1.0)")
    time.sleep(IDLE_S)
    cost, elapsed_s = held.status().cost, held.elapsed_s()
    assert (cost.unit, cost.rate_per_hour, cost.ceiling, cost.estimate) == ("core-hours", 6, None, True)
    assert cost.spent == pytest.approx(6 * elapsed_s / 3600, rel=0.05)
    (running,) = hpcmagic.cost(held.name, **where)
    assert running.state == "ready"
    assert IDLE_S <= running.idle_s <= running.ran_s - 1.0
    assert running.idle == pytest.approx(6 * running.idle_s / 3600)
    held.stop()
    time.sleep(1.0)
    (ended,) = hpcmagic.cost(held.name, **where)
    assert ended.state == "ended"
    assert running.ran_s <= ended.ran_s + 1.0
    assert ended.ran_s - running.ran_s < 5.0
    assert ended.spent == pytest.approx(6 * ended.ran_s / 3600)
