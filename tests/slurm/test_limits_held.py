"""Limits on a real SLURM: budgets that cut walltimes and end jobs, more time where SLURM gives it, factors that change."""

import json
import shutil
import threading
import time
from pathlib import Path
from textwrap import dedent

import pytest

HEAD = """
import hpcmagic, json, subprocess, sys, time
def told(**what):
    print("@" + json.dumps(what, default=str), flush=True)
def start(name="t", **options):
    return hpcmagic.start(session=name, launcher="slurm", **{"nodes": 1, "time": "10", **options})
def limit(s):
    said = subprocess.run(["squeue", "-h", "-o", "%l", "-j", s.job.job_id], capture_output=True, text=True).stdout
    return said.strip()
def attempt(call):
    try:
        return call()
    except hpcmagic.HpcMagicError as error:
        return f"{type(error).__name__}: {error}"
"""


@pytest.fixture
def alice(cluster):
    """Run Python as alice on the hub; give what it told. Her sessions and budgets begin from nothing."""
    for folder in (".local/state/hpcmagic", ".cache/hpcmagic", ".config/hpcmagic", ".config/dask"):
        shutil.rmtree(Path("/home/alice", folder), ignore_errors=True)

    def run(code, *, timeout=120):
        done = cluster.as_user("alice", cluster.python, "-", input=HEAD + dedent(code), timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("@")]

    return run


def charged(cluster, job):
    """Seconds that accounting says the job ran, and its state."""
    for _ in range(100):
        row = cluster.hub("sacct", "-X", "-n", "-P", f"--jobs={job}", "--format=ElapsedRaw,State").stdout.strip()
        if row and row.split("|")[1] not in ("RUNNING", "PENDING"):
            return int(row.split("|")[0]), row.split("|")[1]
        time.sleep(0.2)
    raise AssertionError(row)


def test_walltime_is_cut(cluster, alice):
    """A job asks for no more time than the budget pays for, whatever was asked; asking the same again is no other job."""
    said, (told,) = alice("""
        hpcmagic.budget(2.5, "t")
        s = start(time="2:00:00")
        again = start(time="2:00:00")
        told(limit=limit(s), job=s.job.job_id, again=again.job.job_id, ceiling=s.status().cost.ceiling)
        s.stop()
    """)
    assert "budget of 2.5 billing-minutes allows a walltime of 2 min, instead of the 2 h" in said
    assert told["limit"] == "2:00"
    assert told["again"] == told["job"]
    assert told["ceiling"] <= 2.5


def test_ends_without_a_kernel(cluster, alice):
    """With the kernel gone and a cell running the job ends before the budget is overrun, as accounting has it."""
    _, (told,) = alice("""
        import os
        s = start()
        a_minute = s.status().cost.rate_per_hour / 60
        s.run("1 + 1")
        s.budget(a_minute * 0.25)
        h = s.run("import time; time.sleep(300)", block=False)
        while len(os.listdir(s.directory.cells)) < 2:  # the keeper has it
            time.sleep(0.1)
        told(job=s.job.job_id)
        os._exit(0)  # as a kernel that is killed: nothing is said to anybody
    """)
    ran_s, state = charged(cluster, told["job"])
    assert 10 <= ran_s <= 15
    assert state == "COMPLETED"
    _, (after,) = alice("""
        s = hpcmagic.attach("t")
        told(cause=s.ended, first=s.cells[0].result().same(), last=s.cells[1].state,
             refused=attempt(lambda: start(time="10")))
    """)
    assert "is spent (%budget)" in after["cause"]
    assert (after["first"], after["last"]) == (2, "lost")
    assert after["refused"].startswith("BudgetSpent: The session's budget of")


def test_month(cluster, alice):
    """What runs counts with all it may cost, what is over with what accounting says; a job is cut to what is left."""
    said, (told,) = alice("""
        spent = sum(e.spent or 0 for e in hpcmagic.cost())
        first = start("a", time="10")
        a_minute = first.status().cost.rate_per_hour / 60
        week = hpcmagic.cost().week.spent  # of this month's first days nothing else is there
        from hpcmagic.notebook.past import month_spent
        from hpcmagic.notebook.spending import quote_of
        before = month_spent("b", quote_of(first.directory, first.request).units)
        hpcmagic.budget(before + 4.5 * a_minute, month=True)
        second = start("b", time="10")
        third = attempt(lambda: start("c", time="10"))
        told(before=before, ceiling=first.status().cost.ceiling, limit=limit(second), third=third)
        first.stop(); second.stop()
    """)
    assert told["before"] >= told["ceiling"] * 0.99
    assert told["limit"] == "4:00"
    assert "this month's budget of" in said.lower()
    assert told["third"].startswith("BudgetSpent: This month's budget of")


def test_month_of_two_at_once(cluster, alice):
    """Two notebooks that buy at the same moment do not both get what one of them could have."""
    _, (told,) = alice("""
        from hpcmagic.cost import Unit
        from hpcmagic.notebook.past import month_spent
        hpcmagic.budget(month_spent("", Unit()) + 6, month=True)  # alice's other jobs have cost something, too
        code = (
            "import hpcmagic, sys\\n"
            "try:\\n    s = hpcmagic.start(session=sys.argv[1], launcher='slurm', nodes=1, time='4')\\n"
            "    print('@', s.status().cost.ceiling)\\n"
            "except hpcmagic.BudgetSpent:\\n    print('@', 0.0)"
        )
        both = [subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
        ceilings = [float(one.communicate(timeout=80)[0].partition("@ ")[2]) for one in both]
        told(ceilings=ceilings)
        for one in hpcmagic.sessions():
            hpcmagic.attach(one.session).stop()
    """)
    assert 4.0 < max(told["ceilings"]) <= 6.0
    assert sum(told["ceilings"]) <= 6.0


def test_more_time(cluster, alice):
    """An ordinary user is told plainly that SLURM gives a running job no more time; nothing of the session is lost."""
    _, (told,) = alice("""
        s = start(time="10")
        s.run("x = 5")
        told(said=attempt(lambda: s.extend("0:30:00")), limit=limit(s), x=s.run("x").same())
        s.stop()
    """)
    first, second = told["said"].splitlines()
    assert first.startswith("LaunchError: SLURM does not give job")
    assert "It ends at" in first
    assert second.startswith("→ ")
    assert (told["limit"], told["x"]) == ("10:00", 5)


def test_more_time_while_it_waits(cluster, alice):
    """A job that waits is given more time, up to what its budget allows, by a click on the meter."""
    _, (told,) = alice("""
        import os, signal, threading
        from hpcmagic.notebook.found import find
        from hpcmagic.notebook.queued import Queued
        from hpcmagic.profiles import resolve
        first = start("a", nodes=4, ntasks_per_node=4)
        threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()
        waits = attempt(lambda: start("b", nodes=4, ntasks_per_node=4, time="10"))
        found = find(resolve({}), "b")
        held = Queued(found)
        told(waits=waits, said=held.extend(600), limit=limit(found), refused=attempt(lambda: held.extend(-1)),
             budget=hpcmagic.budget(400, "b"), dear=attempt(lambda: held.extend(3600)))
        held.stop(); first.stop()
    """)
    assert "stays in the queue" in told["waits"]
    assert "waits, and may now run for 20 min." in told["said"]
    assert told["limit"] == "20:00"
    assert "0 of 400 billing-minutes spent" in told["budget"]  # nobody waited for the job to set it
    assert told["dear"].startswith("BudgetSpent: With so much time")
    assert told["refused"].startswith("ProfileError: -1 is no time")


def test_administrator_gives_more(cluster, alice):
    """What an administrator has changed is seen: the time left, and the ceiling that comes of it."""
    _, (told,) = alice("""
        s = start(time="10")
        before = s.status()
        told(job=s.job.job_id, before=before.cost.ceiling, left=before.left_s)
        sys.stdout.flush()
        s._let_go()
    """)
    done = cluster.hub("scontrol", "update", f"JobId={told['job']}", "TimeLimit=20")
    assert done.returncode == 0, done.stderr
    _, (after,) = alice("""
        s = hpcmagic.attach("t")
        until = time.monotonic() + 20
        while (status := s.status()).left_s < 700 and time.monotonic() < until:
            time.sleep(0.5)
        told(ceiling=status.cost.ceiling, left=status.left_s)
        s.stop()
    """)
    assert after["left"] > told["left"] + 500
    assert after["ceiling"] == pytest.approx(2 * told["before"], rel=0.02)


def test_factor_changes(cluster, alice):
    """A QOS whose factor is changed while the job runs: from then on it costs the other rate, and the budget ends sooner.

    No meter is shown: the line below a cell tells.
    """
    code = """
        from hpcmagic.launch import charges
        from hpcmagic.notebook.spending import in_line
        charges.KEPT_S = 1.0
        s = start(qos="half")
        first = s.status().cost
        s.budget(first.rate_per_hour)  # an hour's worth
        time.sleep(2.5)
        left = s.control.beat.budget_left_s
        print("#", flush=True)
        subprocess.run(["sleep", "4"])
        until = time.monotonic() + 30
        while in_line(s).endswith(f"{first.rate_per_hour:.1f} an hour") and time.monotonic() < until:
            time.sleep(0.5)
        now = s.status().cost
        time.sleep(4)
        told(before=first.rate_per_hour, now=now.rate_per_hour, left=left, later=s.control.beat.budget_left_s,
             spent=s.status().cost.spent, elapsed=s.elapsed_s())
        s.stop()
    """
    changed = threading.Timer(9, cluster.hub, ("sacctmgr", "-i", "modify", "qos", "half", "set", "UsageFactor=1"))
    changed.start()
    try:
        _, (told,) = alice(code)
    finally:
        changed.join()
        cluster.hub("sacctmgr", "-i", "modify", "qos", "half", "set", "UsageFactor=0.5")
    assert told["now"] == pytest.approx(2 * told["before"])
    assert told["later"] < 0.6 * told["left"]
    flat, double = (rate * told["elapsed"] / 3600 for rate in (told["before"], told["now"]))
    assert flat < told["spent"] < double


def test_meter(cluster, alice):
    """What the meter shows of a job is what SLURM has of it: rate, ceiling, balance, budget, time left; and its end."""
    cluster.hub("sacctmgr", "-i", "modify", "account", "alice-lab", "set", "GrpTRESMins=billing=5000")
    try:
        _, (told,) = alice("""
            from dataclasses import asdict
            from hpcmagic.notebook.meter_line import in_words
            from hpcmagic.notebook.readings import reading
            s = start(nodes=2, idle_limit="5")
            s.budget(9.0)
            s.run("import time; time.sleep(2)")
            until = time.monotonic() + 20
            while (now := reading(s)).idle_s is None or now.balance is None or now.budget is None:
                assert time.monotonic() < until, now
                time.sleep(0.5)
            cost, words = s.status().cost, in_words(now)
            s.stop()
            told(now=asdict(now), rate=cost.rate_per_hour, ceiling=cost.ceiling, words=words, after=asdict(reading(s)))
        """)
    finally:
        cluster.hub("sacctmgr", "-i", "modify", "account", "alice-lab", "set", "GrpTRESMins=billing=-1")
    now = told["now"]
    assert (now["state"], now["ranks"], now["nodes"], now["unit"]) == ("ready", 2, 2, "billing-minutes")
    assert now["rate_per_hour"] == pytest.approx(told["rate"])
    assert now["ceiling"] == pytest.approx(told["ceiling"], rel=0.01)
    assert now["spent"] == pytest.approx(now["rate_per_hour"] * now["elapsed_s"] / 3600, rel=0.01)
    assert 4000 < now["balance"] <= 5000
    assert now["balance_whose"] == "account alice-lab"
    assert (now["budget"], now["budget_what"]) == (9.0, "session")
    assert 500 < now["left_s"] < 600
    assert 0 < now["idle_s"] < now["elapsed_s"] - 1.0
    assert now["stale_s"] == 0
    assert f"job {now['job']}" in told["words"]
    assert "of 9 left" in told["words"]
    assert told["after"]["state"] == "ended"
    second = now["rate_per_hour"] / 3600  # accounting counts whole ones
    assert told["after"]["budget_spent"] > now["spent"] - second  # its own job counts among those that are over


@pytest.mark.parametrize(
    "line", ["%budget x", "%budget -3", "%budget 0", "%budget 3 4", "%hpc extend", "%hpc extend x"]
)
def test_bad_lines(cluster, alice, line):
    """A line that cannot be is two lines, and no job."""
    _, (told,) = alice(f"""
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        shell.run_line_magic("load_ext", "hpcmagic")
        name, _, rest = {line!r}[1:].partition(" ")
        told(said=attempt(lambda: shell.run_line_magic(name, rest)))
    """)
    assert len(told["said"].splitlines()) == 2
    assert cluster.jobs() == []
