"""`%steer` where there is no page: its state as text, parameters set from the line."""

import re

from notebooks import shown_by

SIMULATION = """\
%%remote --nodes 2 -a -o handle
import time
from hpcmagic import steer
live = steer.live(comm)
for step in live.steps(100_000):
    dt = live.param("dt", 1e-3, min=0.0, max=1e-2)
    scheme = live.param("scheme", "upwind")
    live.publish(dt=dt)
    time.sleep(0.002)
(dt, scheme)
"""
REFUSED = """\
try:
    get_ipython().run_line_magic("steer", "dt=3")
except Exception as error:
    print(error)
"""


def test_steer_as_text(home):
    """The line shows the simulation as text, sets parameters, and stops it; the ranks saw what was set."""
    shown = shown_by(
        home, "%load_ext hpcmagic", SIMULATION, "%steer", "%steer dt=5e-4 scheme=central", REFUSED, "%steer pause",
        "%steer step", "%steer resume", "%steer", "%steer stop", "handle.result()", "%hpc stop",
    )  # fmt: skip
    assert re.search(r"Simulation running, step \d+ of 100000", shown[2])
    assert "dt = 0.001  [0, 0.01]" in shown[2]
    assert re.fullmatch(r"applied at step \d+\n?", shown[3])
    assert "above" in shown[4]
    assert "→ `%steer`" in shown[4]
    for number, verb in ((5, "pause"), (6, "step"), (7, "resume"), (9, "stop")):
        assert re.fullmatch(rf"{verb} applied at step \d+\n?", shown[number]), shown[number]
    assert "scheme = 'central'  (default 'upwind')" in shown[8]
    assert "(0.0005, 'central')" in shown[10]


def test_no_simulation(home):
    """Where no simulation has come alive the line says so, and what begins one."""
    shown = shown_by(home, "%load_ext hpcmagic", "%remote --nodes 2 1 + 1", "%steer", fails=True)
    assert "SteerError: No simulation has come alive" in shown[2]
    assert "steer.live(comm)" in shown[2]
