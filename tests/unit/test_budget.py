"""Budgets: what is left of them, how they cut what is asked for, how they are written down."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from two_lines import two_lines

import hpcmagic
from hpcmagic.cost import Quote
from hpcmagic.errors import BudgetSpent, LaunchError, ProfileError
from hpcmagic.launch import charges
from hpcmagic.launch.base import AT_ITS_PACE
from hpcmagic.notebook import budget, budget_line
from hpcmagic.notebook import past as past_costs
from hpcmagic.notebook.budget import Budget, Left
from hpcmagic.notebook.magics import HpcMagics
from hpcmagic.profiles import resolve, user_file
from hpcmagic.rendezvous import JobRecord, KeeperState, Limits, Request, SessionDirectory

HOURLY = Quote({"cpu": 60.0}, partition="debug", walltime_s=3600.0)  # 3,600 billing-minutes an hour


def asked(**options):
    """Resources on SLURM; the fake partition charges one billing-minute a minute for a CPU."""
    return resolve({"launcher": "slurm", "nodes": 1, **options})


def past(name, ran_s, *, cpus=1, began=None, launcher="local", quote=None, aside=True, job="1"):
    """Make a session that ran here for so long, and ended just now; put it aside. Give its directory."""
    root = resolve({}).directory
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory = SessionDirectory.create(root / name)
    request = Request(
        session=name, launcher=launcher, ntasks=1, nodes=1, ntasks_per_node=1, cpus_per_task=cpus, mpi="none",
        interface="", submit_host="", no_client_limit_s=0.0, start_timeout_s=1.0, server_public="", client_public="",
        engine_public="",
    )  # fmt: skip
    directory.write_record(directory.request, request)
    began = time.time() - ran_s if began is None else began
    directory.write_record(directory.job, JobRecord(launcher, f"{job}@1", began))
    directory.write_record(directory.state, KeeperState("ended", cause="it was stopped"))
    if quote is not None:
        directory.write_record(directory.quote, quote)
    if aside:
        directory.put_aside()
    return directory


# ---- what a budget is


@pytest.mark.parametrize(
    "limit", ["x", "", 0, "0", -1, "-3", float("nan"), "inf", "1e999", "1e300", True, None, [], "20h"]
)
def test_no_budget(limit):
    """What is no number above 0 is refused in two lines, and nothing is written down."""
    with pytest.raises(ProfileError) as caught:
        budget.checked(limit) if limit in (None, "") else hpcmagic.budget(limit, "a")  # these say: none, and leave it
    assert "cannot be held" in str(two_lines(caught))
    assert not budget.budget_file().exists()


@pytest.mark.parametrize(("limit", "number"), [("20", 20.0), (" 2.5 ", 2.5), ("1e3", 1000.0), (7, 7.0)])
def test_budget(limit, number):
    """Numbers as people write them are taken."""
    assert budget.checked(limit) == number


def test_written_down():
    """Budgets are kept for all kernels of their user, and for nobody else."""
    budget.remember("a", Budget(20.0, 100.0))
    budget.remember("", Budget(300.0, 200.0))
    assert budget.known() == {"a": Budget(20.0, 100.0), "": Budget(300.0, 200.0)}
    assert budget.budget_file().stat().st_mode & 0o777 == 0o600
    budget.remember("a", None)
    assert budget.known() == {"": Budget(300.0, 200.0)}


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"a": 3}', '{"a": {"limits": 3}}', '{"a": {"limit": "20", "since": 0}}',
        '{"a": {"limit": 20, "since": null}}', '{"a": {"limit": 20, "since": 0, "spent": []}}',
        '{"a": {"limit": NaN, "since": 0}}', '{"a": {"limit": 0, "since": 0}}', '{"a": {"limit": 1, "since": 0, "unit": 5}}',
    ],
)  # fmt: skip
def test_damaged(text, says):
    """A file that cannot be read is no leave to spend: nothing is bought, and it is said what to do."""
    budget.remember("a", Budget(20.0, 100.0))
    budget.budget_file().write_text(text)
    with pytest.raises(LaunchError) as caught:
        budget.applied("a", asked())
    assert "damaged" in str(two_lines(caught))


def test_no_place(monkeypatch):
    """Where nothing can be written no budget is set, and it is said in two lines why."""

    def mkdir(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(LaunchError) as caught:
        hpcmagic.budget(5, "a")
    assert "budget.json: Permission denied" in str(two_lines(caught))


def test_open_to_others(says):
    """A file that others may write sets no budget, and its mode is named."""
    budget.remember("a", Budget(20.0, 100.0))
    budget.budget_file().chmod(0o666)
    with pytest.raises(ProfileError) as caught:
        budget.applied("a", asked())
    assert "chmod 600" in str(two_lines(caught))


# ---- how it cuts


def test_nothing_set(says, capsys):
    """Without a budget what is asked for stays as it is, and nobody is asked about prices."""
    says.clear()
    resources = asked(time="60")
    assert budget.applied("a", resources) == (resources, None)
    assert capsys.readouterr().out == ""


def test_walltime_cut(says, capsys):
    """A walltime that would overrun the budget is cut to whole minutes, and that is said."""
    budget.remember("a", Budget(20.5, 0.0))
    cut, limits = budget.applied("a", asked(time="60"))
    assert cut.time == "20"
    assert "budget of 20.5 billing-minutes allows a walltime of 20 min, instead of the 1 h that was asked for" in (
        capsys.readouterr().out
    )
    assert 20.5 * 60 * 0.97 < limits.run_s < 20.5 * 60
    assert limits.warn_s == pytest.approx(20.5 * 60 * 0.8)
    assert limits.budget == "20.5 billing-minutes"


def test_walltime_that_fits(says, capsys):
    """One that fits stays, and the keeper is told of the budget all the same."""
    budget.remember("a", Budget(100.0, 0.0))
    resources, limits = budget.applied("a", asked(time="60"))
    assert resources.time == "60"
    assert limits.run_s > 3600
    assert capsys.readouterr().out == ""


def test_no_walltime(says, capsys):
    """Where the partition sets none the budget does."""
    budget.remember("a", Budget(30.0, 0.0))
    assert budget.applied("a", asked(time="unlimited"))[0].time == "30"
    assert "instead of no limit" in capsys.readouterr().out


def test_too_little_left(says):
    """Of less than a minute no job is bought."""
    budget.remember("a", Budget(0.5, 0.0))
    with pytest.raises(BudgetSpent) as caught:
        budget.applied("a", asked(time="60"))
    said = str(two_lines(caught))
    assert "nothing was started" in said
    assert "%budget 1" in said


def test_free(says):
    """A QOS that is free of charge costs no budget anything."""
    budget.remember("a", Budget(0.001, 0.0))
    resources = asked(time="60", qos="free")
    assert budget.applied("a", resources) == (resources, None)


def test_price_not_known(says):
    """Where nobody tells what a job is charged a budget cannot be held, and says so rather than hope."""
    says.clear()
    budget.remember("a", Budget(20.0, 0.0))
    with pytest.raises(ProfileError) as caught:
        budget.applied("a", asked())
    said = str(two_lines(caught))
    assert "cannot be held" in said
    assert "%budget off" in said


def test_factor_not_known(says):
    """Nor where the QOS's factor is not told: it may be any."""
    del says["sacctmgr -n -P show qos"]
    budget.remember("a", Budget(20.0, 0.0))
    with pytest.raises(ProfileError) as caught:
        budget.applied("a", asked(qos="half"))
    assert "(the QOS's factor is missing): a budget cannot be held" in str(two_lines(caught))


def test_directives_of_the_site(says, monkeypatch):
    """What the site's jobqueue.yaml asks for besides is paid for: a budget lasts less long."""
    monkeypatch.setattr(charges, "site_extras", lambda _resources: {"--gres": "gpu:1"})
    budget.remember("a", Budget(90.0, 0.0))
    assert budget.applied("a", asked(time="60"))[0].time == "10"


def test_name_that_is_none(says):
    """Where the price is not told of a name that was misspelt, that is looked at first, not the budget given up."""
    del says["scontrol -o show partition"]
    budget.remember("a", Budget(20.0, 0.0))
    with pytest.raises(ProfileError) as caught:
        budget.applied("a", asked(partition="debgu", qos="half"))
    assert two_lines(caught).mend.startswith("Check `--partition debgu --qos half`. `%budget off` takes")


def test_other_sessions_budget(says):
    """A session's budget binds no other session."""
    budget.remember("b", Budget(1.0, 0.0))
    assert budget.applied("a", asked(time="60"))[1] is None


def test_here():
    """On this machine a budget is in core-hours, and there is no walltime to cut."""
    budget.remember("a", Budget(2.0, 0.0))
    resources = resolve({"launcher": "local", "nodes": 4})
    same, limits = budget.applied("a", resources)
    assert same == resources
    assert limits.run_s == pytest.approx(1800, rel=0.03)


def test_month_is_slurms():
    """A month's budget is of what sites charge: on this machine it binds nothing."""
    budget.remember("", Budget(0.001, 0.0))
    resources = resolve({"launcher": "local", "nodes": 4})
    assert budget.applied("a", resources) == (resources, None)


# ---- what counts


def test_earlier_jobs_count():
    """Jobs under the session's name since the budget was set count; those before it, and others' jobs, do not."""
    budget.remember("a", Budget(2.0, time.time() - 7200))
    past("a", 1800)
    past("a", 3600)
    past("a", 600, began=time.time() - 90_000)
    past("b", 3600)
    (stands,) = budget.left_of("a", None, resolve({}).directory)
    assert stands.spent == pytest.approx(1.5, rel=0.01)
    assert stands.left == pytest.approx(0.5, rel=0.03)


def test_earlier_jobs_stay_counted():
    """What was counted once stays so when the directories of ended sessions have gone."""
    budget.remember("a", Budget(2.0, time.time() - 7200))
    past("a", 1800)
    root = resolve({}).directory
    assert budget.left_of("a", None, root)[0].spent == pytest.approx(0.5, rel=0.01)
    for path in (root / "ended").iterdir():
        path.rename(path.with_name("gone~1"))
    (root / "ended" / "gone~1" / "request.json").unlink()
    assert budget.left_of("a", None, root)[0].spent == pytest.approx(0.5, rel=0.01)


def test_earlier_job_of_unknown_cost(says):
    """A job that accounting does not know of yet counts with the most that it can have cost, and is looked at again."""
    budget.remember("a", Budget(1000.0, time.time() - 7200))
    past("a", 1200, launcher="slurm", quote=Quote({"cpu": 2.0}, partition="debug", qos="normal", walltime_s=600.0))
    root = resolve({}).directory
    assert budget.left_of("a", None, root)[0].spent == pytest.approx(20.0)
    assert budget.known()["a"].spent == {}
    says["sacct"] = sacct("1@1", "COMPLETED", 300, 2)
    forget()
    assert budget.left_of("a", None, root)[0].spent == pytest.approx(10.0)
    assert list(budget.known()["a"].spent.values()) == [pytest.approx(10.0)]


def test_settled_with_every_start():
    """What the jobs of a budget have cost is written down whenever a session is started, before directories go."""
    budget.remember("a", Budget(2.0, time.time() - 7200))
    past("a", 1800)
    budget.applied("another", resolve({"launcher": "local"}))
    assert list(budget.known()["a"].spent.values()) == [pytest.approx(0.5, rel=0.01)]


def test_ended_where_it_was(says):
    """A session that has ended counts before its directory is put aside, too, and once only after that."""
    budget.remember("a", Budget(2.0, time.time() - 7200))
    directory = past("a", 1800, aside=False)
    root = resolve({}).directory
    assert budget.left_of("a", None, root)[0].spent == pytest.approx(0.5, rel=0.01)
    directory.put_aside()
    assert budget.left_of("a", None, root)[0].spent == pytest.approx(0.5, rel=0.01)


def test_unit(says):
    """A budget is in the unit of the first job that it binds; a job in another is refused, not mixed with it."""
    hpcmagic.budget(20, "a")
    budget.applied("a", asked(time="5"))
    assert "of 20 billing-minutes spent" in hpcmagic.budget(session="a")
    with pytest.raises(ProfileError) as caught:
        budget.applied("a", resolve({"launcher": "local"}))
    assert "billing-minutes, and this job is charged in core-hours" in str(two_lines(caught))


@pytest.mark.parametrize("name", ["", "a b", "a/b", "budget.json", "ended"])
def test_no_such_name(name):
    """No budget is set for what no session can be called."""
    with pytest.raises(ProfileError) as caught:
        hpcmagic.budget(5, name)
    assert "not a name for a session" in str(two_lines(caught))


def test_nobodys_budget():
    """Where the notebook has neither a session nor a path, a budget would never be found again."""
    with pytest.raises(ProfileError) as caught:
        hpcmagic.budget(5)
    assert "`--session NAME`" in str(two_lines(caught))


def test_month_looked_at():
    """The month's budget can be looked at without a session, and is not changed by that."""
    assert hpcmagic.budget(month=True) == "No bound on what a month costs."
    hpcmagic.budget(50, month=True)
    assert hpcmagic.budget(month=True).startswith("This month: at most 50 billing-minutes on SLURM.")
    assert budget.known()[""].limit == 50.0


def test_month_of_no_session():
    """A month's budget is no session's."""
    with pytest.raises(ProfileError) as caught:
        hpcmagic.budget(5, "a", month=True)
    two_lines(caught)


def forget():
    """Let the books ask anew."""
    charges.BOOKS = charges.Books(charges.BOOKS._run, wait_s=10.0)


def sacct(job, state, elapsed_s, cpus):
    """One line of accounting."""
    return f"{job}|{state}|{elapsed_s}|cpu={cpus},node=1|debug|normal|lab|2026-11-02T10:00:00"


def test_month(says):
    """A month has cost what accounting says of every job in it."""
    says["sacct"] = "\n".join([sacct(1, "COMPLETED", 3600, 2), sacct(2, "TIMEOUT", 600, 1)])
    budget.remember("", Budget(200.0, 0.0))
    (stands,) = budget.left_of("a", HOURLY, resolve({}).directory)
    assert (stands.what, stands.spent) == ("month", pytest.approx(130.0))
    assert budget.limits(stands, "billing-minutes", 600.0).budget == "200 billing-minutes a month"


def test_month_of_unknown_prices(says):
    """A job whose partition is gone, or whose factor nobody tells, counts by SLURM's own number, rounded up."""
    says["sacct"] = "1|COMPLETED|3600|cpu=2,billing=7|gone|gone|lab|2026-11-02T10:00:00"
    assert past_costs.month_spent("a", HOURLY.units) == pytest.approx(480.0)


def test_month_without_accounting(says):
    """Without accounting what is over counts by its directory, put aside or not; of another unit, in that one's size."""
    budget.remember("", Budget(2000.0, 0.0))
    past("b", 600, launcher="slurm", quote=replace(HOURLY, unit="core-hours", divisor=60.0))
    assert past_costs.month_spent("a", HOURLY.units) == pytest.approx(600.0, rel=0.01)
    past("c", 600, launcher="slurm", quote=HOURLY, aside=False, job="2")
    assert past_costs.month_spent("a", HOURLY.units) == pytest.approx(1200.0, rel=0.01)
    assert past_costs.month_spent("c", HOURLY.units) == pytest.approx(1200.0, rel=0.01)


def test_month_in_its_own_unit(says):
    """The month is told in the unit of the jobs that it binds, whichever profile is the default."""
    user_file().parent.mkdir(parents=True)
    user_file().write_text('[profiles.cpu]\nlauncher = "slurm"\ncost_unit = "core-hours"\ncost_divisor = 60\n')
    says["sacct"] = sacct(1, "COMPLETED", 3600, 2)
    budget.remember("", Budget(10.0, 0.0, unit="core-hours"))
    assert "at most 10 core-hours on SLURM. 2 are spent, or may be by what runs (20%)" in hpcmagic.budget(month=True)
    budget.remember("", Budget(10.0, 0.0, unit="SBU"))
    assert hpcmagic.budget(month=True) == "This month: at most 10 SBU on SLURM."


def test_keeper_that_said_nothing(says, monkeypatch):
    """A session whose keeper was killed may have run until it was put aside, whenever its keeper wrote something last."""
    budget.remember("a", Budget(1000.0, time.time() - 7200))
    directory = past("a", 1200, launcher="slurm", quote=replace(HOURLY, tres={"cpu": 1.0}), aside=False)
    directory.write_record(directory.state, KeeperState("ready"))
    os.utime(directory.state, (time.time() - 1100, time.time() - 1100))
    directory.put_aside()
    assert budget.left_of("a", None, resolve({}).directory)[0].spent == pytest.approx(20.0, rel=0.02)


def test_meter_asks_nobody(desk, says, monkeypatch):
    """A meter that shows a month's budget has no squeue of its own: it takes what all notebooks have asked last."""
    budget.remember("", Budget(2000.0, 0.0))
    desk.cell(nodes=1, time="10")
    ages = []
    state = desk.launcher.state
    monkeypatch.setattr(desk.launcher, "state", lambda job, *, max_age_s=0.0: ages.append(max_age_s) or state(job))
    (stands,) = budget.left_of("b", HOURLY, resolve({}).directory, lazily=True)
    assert stands.spent == pytest.approx(10.0)
    assert set(ages) == {AT_ITS_PACE}


# ---- while its job waits


def test_job_that_waits(desk, says, capsys):
    """A budget can be set while the job waits in the queue: nobody waits for it, its keeper will know."""
    held = desk.cell(nodes=1, time="60")
    assert "0 of 30 billing-minutes spent" in hpcmagic.budget(30, "demo")
    limits = held.directory.read_record(held.directory.limits, Limits)
    assert limits.run_s == pytest.approx(30 * 60 - 10)
    assert budget.known()["demo"].since == held.job.submitted
    assert desk.waited == [held]
    hpcmagic.budget(None, "demo")
    assert held.directory.read_record(held.directory.limits, Limits) == Limits()


def test_job_that_waits_refused(desk, says):
    """Where what was spent before leaves it nothing the budget is refused, and stays what it was."""
    budget.remember("demo", Budget(30.0, 0.0, {"x": 20.0}))
    held = desk.cell(nodes=1, time="5")
    with pytest.raises(BudgetSpent) as caught:
        hpcmagic.budget(15, "demo")
    two_lines(caught)
    assert budget.known()["demo"].limit == 30.0
    assert held.directory.read_record(held.directory.limits, Limits).run_s > 500


def test_month_asks_from_the_first(monkeypatch, says):
    """Accounting is asked from the first of the month on."""
    lines = []
    run = charges.BOOKS._run
    monkeypatch.setattr(charges.BOOKS, "_run", lambda command: lines.append(" ".join(command)) or run(command))
    says["sacct"] = ""
    past_costs.month_spent("a", HOURLY.units)
    assert any(re.search(r"sacct .*--starttime=\d{4}-\d\d-01( |$)", line) for line in lines)


# ---- what the keeper is told


@given(
    limit=st.floats(0.01, 1e6), share=st.floats(0.0, 0.99), a_second=st.floats(1e-6, 10.0), ahead=st.floats(0.0, 60.0)
)
def test_limits(limit, share, a_second, ahead):
    """The keeper ends the job before the last unit is spent, not much earlier, and warns at four fifths of all."""
    stand = Left("session", limit, share * limit)
    run_s = stand.left / a_second
    told = budget.limits(stand, "units", run_s, ahead)
    spent = stand.spent + (told.run_s + ahead) * a_second
    assert told.run_s == 0 or spent <= limit * (1 + 1e-9)
    assert told.run_s + ahead >= min(run_s - 10.0, 0.98 * run_s - 3.0) - 1e-6
    assert told.warn_s <= max(told.run_s, 0.8 * run_s)
    if told.warn_s > 0:
        assert stand.spent + (told.warn_s + ahead) * a_second == pytest.approx(0.8 * limit, rel=1e-6)


def test_no_session_yet():
    """A budget may be set before its session is there; what it is then stands written."""
    said = hpcmagic.budget(20, "later")
    assert "Session later: 0 of 20 units spent (0%)." in said
    assert budget.known()["later"].limit == 20.0
    assert "No budget is set" in hpcmagic.budget(None, "later")


def test_raised_keeps_what_was_spent():
    """A budget that is raised still counts what was spent under it."""
    hpcmagic.budget(20, "a")
    first = budget.known()["a"]
    budget.remember("a", Budget(20.0, first.since, {"x": 3.0}))
    hpcmagic.budget(30, "a")
    assert budget.known()["a"] == Budget(30.0, first.since, {"x": 3.0})


def test_limits_file(tmp_path):
    """What the keeper reads is a plain record."""
    directory = SessionDirectory.create(tmp_path / "d" / "s")
    directory.write_record(directory.limits, Limits(3.5, 2.0, "20 units"))
    assert json.loads(directory.limits.read_text()) == {"run_s": 3.5, "warn_s": 2.0, "budget": "20 units"}
    assert directory.read_record(directory.limits, Limits) == Limits(3.5, 2.0, "20 units")


# ---- a notebook whose session gets a name of its own


@pytest.fixture
def told(notebook):
    """The magics of a notebook that has had no session, and a budget of 20 set in it."""
    magics = HpcMagics(None)
    magics.shell = SimpleNamespace(var_expand=lambda line: line)
    magics.budget("20")
    return magics


def test_budget_goes_with_the_name(desk, says, told, capsys):
    """A budget that was set before `--session NAME` began the notebook's session binds that one."""
    with budget_line.taken_along(told, "seen"):
        held = desk.cell("seen", nodes=1, time="60")
    assert "The budget of 20 that was set for this notebook binds session seen." in capsys.readouterr().out
    assert [(name, one.limit) for name, one in budget.known().items()] == [("seen", 20.0)]
    assert held.directory.read_record(held.directory.limits, Limits).run_s == pytest.approx(20 * 60 - 10)


def test_budget_stays_where_nothing_began(desk, told):
    """It stays with the notebook where the session of another name did not begin, or has a budget of its own."""
    own = list(budget.known())
    with pytest.raises(LaunchError), budget_line.taken_along(told, "seen"):
        raise LaunchError("refused", "")
    assert list(budget.known()) == own
    hpcmagic.budget(5, "seen")
    with budget_line.taken_along(told, "seen"):
        pass
    assert budget.known()["seen"].limit == 5.0
    assert budget.known()[own[0]].limit == 20.0


def test_budget_of_another_session(desk, says, told, capsys):
    """A budget of a session that the notebook has had is that one's: the new one's lack is said."""
    (own,) = budget.known()
    told.session_name = own
    desk.cell(own, nodes=1, time="5")
    capsys.readouterr()
    with budget_line.taken_along(told, "seen"):
        pass
    assert capsys.readouterr().out == f"Session seen has no budget: the 20 allowed are session {own}'s.\n"
    assert list(budget.known()) == [own]
