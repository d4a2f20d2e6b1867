"""Limits that a session is given: a budget, a time in which no cell runs. They hold, whoever is connected or not."""

import time

import pytest
from faults import eventually

import hpcmagic
from hpcmagic.notebook import budget, fitting, lifespan
from hpcmagic.notebook.found import find
from hpcmagic.notebook.readings import reading
from hpcmagic.profiles import resolve

LITTLE = 0.004  # core-hours: of two ranks, 7.2 s
MORE = 0.012  # the last fifth takes some seconds, in which a warning is heard


def cause():
    """Give why session a has ended, or nothing."""
    return find(resolve({}), "a").ended()


def test_budget(home, capsys):
    """A session ends before its budget is overrun, warned before; results that were there can still be read."""
    session = hpcmagic.start(session="a", nodes=2)
    assert "of 0.012 core-hours spent" in session.budget(MORE)
    session.run("rank + 10")
    with pytest.raises(hpcmagic.SessionEnded, match=r"its budget of 0.012 core-hours is spent \(%budget\)"):
        session.run("import time; time.sleep(60)")
    assert "four fifths of its budget" in capsys.readouterr().out
    first, *_, last = hpcmagic.attach("a").cells
    assert list(first.result()) == [10, 11]
    assert last.state == "lost"
    (bill,) = hpcmagic.cost("a")
    assert 0.7 * MORE < bill.spent <= MORE
    with pytest.raises(hpcmagic.BudgetSpent, match="nothing was started"):
        hpcmagic.start(session="a", nodes=2)
    hpcmagic.budget(1.0, "a")
    again = hpcmagic.start(session="a", nodes=2)
    assert reading(again).budget_spent >= bill.spent
    again.stop()
    assert "No budget is set" in hpcmagic.budget(None, "a")


def test_budget_without_a_kernel(home, kernel):
    """It holds with the kernel dead and a cell running."""
    one = kernel(f"""
        s = hpcmagic.start(session="a", nodes=2)
        s.budget({LITTLE})
        h = s.run("import time; time.sleep(300)", block=False)
        print("runs")
    """)
    one.wait_for("runs")
    one.kill()
    eventually(lambda: "its budget of 0.004 core-hours is spent" in cause())
    assert hpcmagic.cost("a")[0].spent <= LITTLE


def test_budget_from_another_notebook(home, kernel):
    """Whoever holds the session may bound it; the keeper hears of it from the session's directory."""
    one = kernel("""
        s = hpcmagic.start(session="a", nodes=1)
        print("there")
        sys.stdin.readline()
        print(s.control.beat.budget_left_s)
    """)
    one.wait_for("there")
    hpcmagic.budget(1.0, "a")
    time.sleep(4)  # a look of the keeper's, and a beat
    one.go_on()
    one.wait_for("35")  # of 3,600 s
    hpcmagic.attach("a").stop()


@pytest.mark.parametrize("limit", [0, -1, "x", float("nan")])
def test_no_budget(own_session, home, limit):
    """What is no budget changes nothing."""
    session = own_session()
    with pytest.raises(hpcmagic.ProfileError, match="cannot be held"):
        session.budget(limit)
    assert session.run("rank").same() == 0


def test_spent_already(own_session, home):
    """A budget that is spent already does not end the session on the spot: it is refused."""
    session = own_session()
    session.run("import time; time.sleep(1)")
    with pytest.raises(hpcmagic.BudgetSpent, match="would end it at once"):
        session.budget(0.0001)
    assert "No budget is set" in lifespan.in_words(session.name, session)
    assert session.run("rank").same() == 0


def test_no_walltime_here(own_session, home):
    """On this machine there is nothing to extend."""
    with pytest.raises(hpcmagic.ProfileError, match="has no walltime"):
        own_session().extend("0:30:00")


def test_idle_limit(home):
    """A session in which no cell runs ends by itself, though a notebook is connected; a running cell keeps it."""
    session = hpcmagic.start(session="a", nodes=1, idle_limit="0:03")
    session.run("import time; time.sleep(5)")
    handle = session.run("time.sleep(5)", block=False)
    handle.result()
    eventually(lambda: "no cell ran for 0.05 min (idle_limit)" in cause(), 20)
    with pytest.raises(hpcmagic.SessionEnded, match="idle_limit"):
        session.run("1")


def test_short_cells_are_not_idle(home):
    """Cells that are over at once keep a session as well as long ones."""
    session = hpcmagic.start(session="a", nodes=1, idle_limit="0:03")
    for number in range(12):
        assert session.run(str(number)).same() == number
        time.sleep(0.5)
    assert session.run("rank").same() == 0
    session.stop()


def test_kept(home):
    """Who says so keeps a session that is idle for as long again; the countdown is there to see."""
    session = hpcmagic.start(session="a", nodes=1, idle_limit="0:06")
    for _ in range(3):
        time.sleep(3)
        session.keep()
    eventually(lambda: (reading(session).idle_left_s or 0) > 3, 5)
    now = reading(session)
    assert (now.idle_limit_s, now.busy, now.state) == (6.0, False, "ready")
    assert now.idle_s == pytest.approx(now.elapsed_s, abs=2.5)
    session.stop()


def test_transfers_are_not_idle(home):
    """While values are on their way to the ranks or back, a session is not idle."""
    numpy = pytest.importorskip("numpy")
    session = hpcmagic.start(session="a", nodes=2, idle_limit="0:02")
    until = time.monotonic() + 5
    while time.monotonic() < until:
        session.push(x=numpy.zeros(20_000_000))
    assert session.run("x.size").same() == 20_000_000
    session.stop()


def test_reading(own_session, home):
    """What the meter shows is what runs: state, cost, and for how long no cell did."""
    session = own_session(nodes=2)
    session.run("import time; time.sleep(2.5)")
    eventually(lambda: reading(session).idle_s is not None)
    now = reading(session)
    assert (now.session, now.state, now.job, now.ranks, now.unit) == (session.name, "ready", "", 2, "core-hours")
    assert now.rate_per_hour == 2
    assert now.spent == pytest.approx(2 * now.elapsed_s / 3600, rel=0.05)
    assert now.idle_s < now.elapsed_s - 1.5
    assert now.stale_s == 0
    session.stop()
    assert reading(session).state == "ended"


BAR = """
import time
for percent in range(1, 40):
    print(f"\\r{percent / 10:.1f}%|", end="", flush=True)
    time.sleep(0.1)
print()
"""
SIMULATION = """
import time
from hpcmagic import steer
live = steer.live(comm)
for step in live.steps(1000):
    time.sleep(0.1)
    if step == 50:
        break
"""


@pytest.mark.parametrize("source", [BAR, SIMULATION], ids=["bar", "steps"])
def test_will_not_be_over(own_session, home, monkeypatch, capsys, source):
    """A cell that will not be over before its job, at the pace that it reports, says so once."""
    monkeypatch.setattr(fitting, "SEEN_S", 1.0)
    monkeypatch.setattr(fitting, "SEEN_SHARE", 0.005)
    monkeypatch.setattr(fitting, "PACE_S", 0.5)
    session = own_session()
    session.budget(30 / 3600)
    eventually(lambda: session.ends()[0])
    session.run(source)
    said = capsys.readouterr().out
    assert said.count("at this pace the cell takes 1 min") == 1
    assert "its budget is spent (`%budget` allows more) in 2" in said


def test_took_longer_before(own_session, home, capsys):
    """A cell that took longer the last time than the job has left says so; one that fits says nothing."""
    session = own_session()
    session.budget(30 / 3600)
    eventually(lambda: session.ends()[0])
    source = "import time; time.sleep(1.5)"
    session.run(source)
    session.run(source)
    assert "the last time" not in capsys.readouterr().out
    fitting.remember(source, 100.0)
    session.run(source)
    assert "the last time this cell took 1 min 40 s, and its budget is spent" in capsys.readouterr().out


def test_set_by_several_at_once(home, kernel):
    """No budget is lost when several kernels set theirs at the same moment."""
    kernels = [
        kernel(f"""
            from hpcmagic.notebook import budget
            sys.stdin.readline()
            for number in range(1, 21):
                budget.remember("s{which}", budget.Budget(float(number), 0.0))
            print("set")
        """)
        for which in range(4)
    ]
    for one in kernels:
        one.go_on()
    for one in kernels:
        one.wait_for("set")
    assert {name: one.limit for name, one in budget.known().items()} == {f"s{which}": 20.0 for which in range(4)}


def test_clock_jumps(home, monkeypatch):
    """A clock that is set a day on, or back, changes neither what is counted nor when a limit is reached."""
    session = hpcmagic.start(session="a", nodes=1, idle_limit="1:00:00")
    session.budget(1.0)
    eventually(lambda: session.ends()[0])
    session.run("1")
    real = time.time
    before = reading(session)
    for jump_s in (86_400.0, -86_400.0):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
        now = reading(session)
        assert now.spent == pytest.approx(before.spent, abs=0.01)
        assert now.elapsed_s == pytest.approx(before.elapsed_s, abs=10)
        assert now.idle_left_s is None or now.idle_left_s > 3000
        assert session.status().cost.spent < 0.01
        assert session.ends()[0] > 3000
        assert session.run("rank").same() == 0
    monkeypatch.setattr(time, "time", real)
    session.stop()
