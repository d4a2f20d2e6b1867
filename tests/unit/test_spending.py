"""What a session costs and what is said of it: before it is bought, below a cell, in `%hpc` and in `%hpc cost`."""

import json
import os
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from two_lines import two_lines

import hpcmagic
from hpcmagic import rendezvous
from hpcmagic.cost import Cost, Quote
from hpcmagic.errors import DataError, ProfileError
from hpcmagic.launch import charges
from hpcmagic.launch.base import JobState
from hpcmagic.launch.charges import Accounted, Balance, Books
from hpcmagic.notebook import buying, frontend, magics, spending, start, verbs
from hpcmagic.notebook.bill import Bill, Entry, bars, bill
from hpcmagic.notebook.found import find, sessions, stop_found
from hpcmagic.notebook.idle import busy_s, covered_s
from hpcmagic.notebook.verbs import HPC, VERBS, table
from hpcmagic.profiles import resolve, user_file
from hpcmagic.rendezvous import KeeperState, Limits
from hpcmagic.testing import FakeClock
from hpcmagic.wire.history import append_record, cell_path


def profile(text):
    """Write the user's profile, and make it the default."""
    user_file().parent.mkdir(parents=True, exist_ok=True)
    user_file().write_text(f'default = "p"\n[profiles.p]\nlauncher = "slurm"\n{text}\n')


def forget(monkeypatch):
    """Let the books ask anew."""
    monkeypatch.setattr(charges, "BOOKS", Books(charges.BOOKS._run, wait_s=10.0))


# ---- before it is bought


def test_said_before(desk, says, capsys):
    """Before the job goes out one line says what is asked for, the rate, the ceiling and what is left."""
    desk.cell(nodes=2, cpus_per_task=4, gpus_per_node=1, time="30")
    before, _, after = capsys.readouterr().out.partition("\n")
    assert before == (
        "Asks for 2 nodes (8 CPUs, 2 GPUs): 1,440 billing-minutes an hour, at most 720 by its walltime of 30 min; "
        "account lab has 1,000 of 5,000 billing-minutes left, 100 of them for jobs that run."
    )
    assert "job 1" in after


@pytest.mark.parametrize("in_s", [0, 7200, None])
def test_expected_start(desk, says, capsys, monkeypatch, in_s):
    """When the job would start stands behind what it costs, where the batch system tells."""
    begins = time.localtime(time.time() + (in_s or 0))
    told = "" if in_s is None else time.strftime("%Y-%m-%d %H:%M:%S", begins)
    monkeypatch.setattr(type(desk.launcher), "expected_start", lambda *_: told)
    says["scontrol -o show assoc_mgr flags=assoc"] = "Account=lab UserName= GrpTRESMins=billing=5000(4000)"
    desk.cell(nodes=2, time="30")
    line = capsys.readouterr().out.splitlines()[in_s is not None]
    said = {0: "would start it at once.", 7200: "by what is in the queue now.", None: "left."}
    assert line.endswith(said[in_s])
    if in_s == 7200:
        assert time.strftime("%H:%M", begins) in line


def test_nothing_known_nothing_said(desk, capsys):
    """Where SLURM tells nothing of prices nothing is said of them, and the job goes out."""
    desk.cell(nodes=2)
    assert "Asks for" not in capsys.readouterr().out
    assert desk.alive == ["1"]
    assert not (desk.directory() / "quote.json").exists()


def test_nothing_said_here(laptop, says, capsys):
    """On this machine, where nobody charges, no price is said."""
    laptop.cell(nodes=2)
    assert "Asks for" not in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "words"), [
    ({"qos": "half", "cpus_per_task": 2}, "60 billing-minutes an hour (QOS half: × 0.5), at most 10 by"),
    ({"qos": "free"}, "1 node (1 CPU): free of charge (QOS free: × 0), for a walltime of 10 min"),
    ({"time": "infinite"}, "60 billing-minutes an hour, with no walltime to end it"),
    ({"nodes": 4, "cpus_per_task": 4, "time": "60"}, "left, 100 of them for jobs that run: that is less than this may use"),
    ({"nodes": 4, "gpus_per_node": 2, "time": "60"}, "left, 100 of them for jobs that run: that is less than this may use"),
    ({"cost_unit": "SBU", "cost_divisor": 60, "price": 0.5, "currency": "EUR", "cpus_per_task": 4},
     "4 SBU an hour (2 EUR), at most 0.667 (0.333 EUR) by its walltime of 10 min; account lab has 16.7 of 83.3 SBU left"),
])  # fmt: skip
def test_words_before(desk, says, asked, words):
    """QOS, a job that is free, none that ends, an account that has too little, and the site's unit are all told."""
    line = buying.quoted_line(resolve({"launcher": "slurm", "time": "10", **asked}, {}))
    assert words in line


def test_much_memory(desk, says):
    """Memory of many nodes is told in a number that people read."""
    says["scontrol -o show partition"] += " DefMemPerNode=524288"
    says["scontrol show config"] += "\nSelectTypeParameters = CR_CPU_MEMORY"
    resources = resolve({"launcher": "slurm", "nodes": 4, "time": "5"})
    assert "4 nodes (4 CPUs, 2,048G)" in buying.quoted_line(resources)


def test_lacking(desk, says):
    """What the price is without is told."""
    del says["sacctmgr -n -P show qos"]
    assert "without the QOS's factor" in buying.quoted_line(resolve({"launcher": "slurm", "qos": "half"}, {}))


def test_limits_on_other_minutes(desk, says):
    """Where billing is not limited, limits on what the job uses are told, each in its own minutes."""
    says["scontrol -o show assoc_mgr flags=assoc"] = (
        "Account=lab UserName= ParentAccount= GrpTRESMins=cpu=90(30),billing=N(0),gres/gpu=10(0) GrpTRESRunMins=cpu=N(0)"
    )
    line = buying.quoted_line(resolve({"launcher": "slurm", "time": "10", "cpus_per_task": 4}, {}))
    assert line.endswith("; account lab has 60 of 90 cpu-minutes left.")
    line = buying.quoted_line(resolve({"launcher": "slurm", "time": "20", "cpus_per_task": 4}, {}))
    assert line.endswith("; account lab has 60 of 90 cpu-minutes left: that is less than this may use.")


def test_gpu_minutes(desk, says):
    """A limit on GPU-minutes is compared with the GPUs that are asked for, not with what they weigh."""
    says["scontrol -o show assoc_mgr flags=assoc"] = (
        "Account=lab UserName= ParentAccount= GrpTRESMins=cpu=N(0),billing=N(0),gres/gpu=30(5) GrpTRESRunMins=cpu=N(0)"
    )
    for time_asked, ending in (("10", "left."), ("30", "left: that is less than this may use.")):
        line = buying.quoted_line(resolve({"launcher": "slurm", "time": time_asked, "gpus_per_node": 1}, {}))
        assert line.endswith(f"account lab has 25 of 30 gres/gpu-minutes {ending}")


def test_dry_run(desk, says, capsys):
    """A dry run says the same below the script, as a comment, and buys nothing."""
    shown = start.dry_run("demo", nodes=2, time="30")
    assert shown.startswith("# fake job of session demo\n# Asks for 2 nodes (2 CPUs): 120 billing-minutes an hour, ")
    assert shown.endswith(".\n")
    assert not desk.launcher.jobs


# ---- asked about


def answering(monkeypatch, answer):
    """Have a person sit at a terminal who answers so; give what was asked."""
    asked = []
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda words: asked.append(words) or answer)
    return asked


@pytest.mark.parametrize("answer", ["y", "Yes ", "YES"])
def test_yes(desk, says, monkeypatch, answer):
    """Above `confirm_above` a person is asked, and yes buys."""
    profile("confirm_above = 100")
    asked = answering(monkeypatch, answer)
    desk.cell(nodes=4, time="60")
    assert asked == ["This may cost 240 billing-minutes, and `confirm_above` is 100. Submit it? [y/N] "]
    assert desk.alive == ["1"]


@pytest.mark.parametrize("answer", ["", "n", "no", "yess", "why"])
def test_no(desk, says, monkeypatch, answer):
    """Anything else buys nothing, and leaves nothing behind."""
    profile("confirm_above = 100")
    answering(monkeypatch, answer)
    with pytest.raises(ProfileError, match="you said no, and no job was submitted") as error:
        desk.cell(nodes=4, time="60")
    two_lines(error)
    assert not desk.launcher.jobs
    assert not desk.directory().exists()


def test_end_of_input_is_no(desk, says, monkeypatch):
    """Ctrl-D at the question buys nothing, and is no error of ours."""
    profile("confirm_above = 100")
    answering(monkeypatch, "")
    monkeypatch.setattr("builtins.input", lambda _words: (_ for _ in ()).throw(EOFError))
    with pytest.raises(ProfileError, match="you said no"):
        desk.cell(nodes=4, time="60")
    assert not desk.launcher.jobs


def test_unknown_factor_is_asked(desk, says, monkeypatch):
    """Without the QOS's factor, which may be any, the ceiling is not known: it is asked about."""
    profile("confirm_above = 1000000")
    del says["sacctmgr -n -P show qos"]
    asked = answering(monkeypatch, "y")
    desk.cell(nodes=1, time="5")
    assert asked[0].startswith("What this costs at most is not known")


def test_nobody_to_ask(desk, says, monkeypatch):
    """Where nobody can answer no job is submitted; the error names `--yes`, and that submits."""
    profile("confirm_above = 100")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ProfileError, match="may cost 240 billing-minutes, and `confirm_above` is 100") as error:
        desk.cell(nodes=4, time="60")
    assert "`--yes`" in two_lines(error).mend
    assert not desk.launcher.jobs
    desk.cell(nodes=4, time="60", yes=True)
    assert desk.alive == ["1"]


@pytest.mark.parametrize(("allows", "asks"), [(True, True), (False, False)])
def test_kernel(monkeypatch, allows, asks):
    """A kernel's person is asked where the front end takes answers, whatever stdin is."""
    monkeypatch.setattr(frontend, "shell", lambda: SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=allows)))
    assert buying._can_ask() is asks


def test_cheap_is_not_asked(desk, says, monkeypatch):
    """What costs no more than that is bought without a question; so is what is picked up."""
    profile("confirm_above = 240")
    monkeypatch.setattr("builtins.input", lambda _words: pytest.fail("asked"))
    desk.cell(nodes=4, time="60")
    desk.cell()
    assert desk.alive == ["1"]


def test_unknown_price_is_asked(desk, monkeypatch):
    """A price that is not known may be any: it is asked about."""
    profile("confirm_above = 1000000")
    asked = answering(monkeypatch, "y")
    desk.cell(nodes=1)
    assert asked[0].startswith("What this costs at most is not known, and `confirm_above` is 1,000,000.")


def test_endless_is_asked(desk, says, monkeypatch):
    """So is a job that no walltime ends."""
    profile("confirm_above = 1000000")
    asked = answering(monkeypatch, "y")
    desk.cell(nodes=1, time="infinite")
    assert len(asked) == 1


@pytest.mark.parametrize("line", ["--yes --nodes 4 --time 60", "--nodes 4 --time 60"])
def test_option(desk, says, monkeypatch, line):
    """`--yes` on the line of a cell, of `%hpc start` and of `%hpc doctor` is that answer."""
    profile("confirm_above = 100")
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(verbs, "examine", lambda _session: "looked")
    here = magics.HpcMagics(None)
    here.shell = SimpleNamespace(user_ns={}, var_expand=lambda text: text)
    monkeypatch.setattr(start, "wait_until_ready", lambda held, **_kw: Waited(held.request.session))
    for verb in ("start --session a", "doctor"):
        if "--yes" in line:
            VERBS[verb.split()[0]](here, f"{verb.partition(' ')[2]} {line}".strip())
        else:
            with pytest.raises(ProfileError, match="no job was submitted"):
                VERBS[verb.split()[0]](here, f"{verb.partition(' ')[2]} {line}".strip())
    assert len(desk.alive) == (2 if "--yes" in line else 0)


class Waited:
    """A session that is not waited for."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


# ---- while it runs, and after


RUNNING = "JobId=1 JobState=RUNNING TRES=cpu=6,mem=1G,node=2 "


def running(desk, says, **asked):
    """A session whose job has run for ten minutes, and has got more than it asked for."""
    held = desk.cell(nodes=2, time="60", **asked)
    desk.launcher.jobs["1"] = JobState("running", "RUNNING", elapsed_s=600.0, left_s=3000.0)
    says["scontrol -o show job 1"] = RUNNING
    return held


def test_status(desk, says):
    """A session's status holds what it has cost, by what its job has got."""
    running(desk, says)
    (status,) = sessions()
    assert status.cost == Cost(60.0, 360.0, 360.0, "billing-minutes")
    assert status.cost.estimate


def test_status_pending(desk, says):
    """A job that waits costs nothing yet; rate and ceiling are those of what it asks for, and nobody asks for more."""
    desk.cell(nodes=2, time="60")
    says["scontrol -o show job 1"] = RUNNING  # a moment later
    (status,) = sessions()
    assert status.cost == Cost(0.0, 120.0, 120.0, "billing-minutes")


def test_status_suspended(desk, says):
    """A job that SLURM has suspended has cost what it has: that is not forgotten, nor left out of the ceiling."""
    running(desk, says)
    desk.launcher.jobs["1"] = JobState("pending", "SUSPENDED", elapsed_s=600.0, left_s=3000.0)
    says["scontrol -o show job 1"] = RUNNING.replace("RUNNING", "SUSPENDED")
    (status,) = sessions()
    assert (status.state, status.cost.spent, status.cost.ceiling) == ("pending", 60.0, 360.0)


def test_status_unknown(desk):
    """Where SLURM tells nothing there is no cost."""
    desk.cell(nodes=2, time="60")
    assert [status.cost for status in sessions()] == [None]


def test_damaged_quote(desk, says, monkeypatch):
    """A damaged quote hides no session; its cost is not known then."""
    held = running(desk, says)
    monkeypatch.setattr(rendezvous, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    for text in ("{", "[]", '{"weights": null}'):
        held.directory.write(held.directory.quote, text)
        assert [(one.state, one.cost) for one in sessions()] == [("starting", None)]


def test_status_here(laptop, monkeypatch):
    """On this machine core-hours are counted: CPUs and time."""
    laptop.cell(nodes=2, cpus_per_task=3)
    laptop.launcher.jobs["1"] = JobState("running", "RUNNING", elapsed_s=1800.0)
    (status,) = sessions()
    assert status.cost.unit == "core-hours"
    assert status.cost.spent == pytest.approx(3.0, rel=0.01)
    assert status.cost.rate_per_hour == 6
    assert status.cost.ceiling is None


SACCT = "1|TIMEOUT|3660|cpu=6,mem=1G,node=2,billing=6|debug|normal|lab|2026-11-25T09:00:00"


def test_confirmed(desk, says, monkeypatch):
    """When the job has ended accounting's word is the cost, and no estimate any more; the ceiling may be passed."""
    running(desk, says)
    desk.launcher.jobs["1"] = JobState("ended", "TIMEOUT", elapsed_s=3600.0)
    (status,) = sessions()
    assert status.cost.estimate
    assert status.cost.spent == 120
    says["sacct"] = SACCT
    forget(monkeypatch)
    (status,) = sessions()
    assert status.cost.confirmed == status.cost.spent == 366
    assert not status.cost.estimate


def test_prices_as_when_bought(desk, says, monkeypatch):
    """A session is charged by the weights that it was bought at; a job that went elsewhere, by those there."""
    running(desk, says)
    quote = spending.quote_of(desk.waited[0].directory, desk.waited[0].request)
    says["scontrol -o show partition"] = says["scontrol -o show partition"].replace("CPU=1.0", "CPU=9.0")
    forget(monkeypatch)
    told = Accounted("1", "COMPLETED", 60.0, {"cpu": 2.0}, "debug", "normal", "lab", "")
    assert spending.charged_minutes(told, quote) == 2
    elsewhere = Accounted("1", "COMPLETED", 60.0, {"cpu": 2.0}, "other", "half", "lab", "")
    assert spending.charged_minutes(elsewhere, quote) == 9
    assert spending.charged_minutes(told, replace(quote, lacks=("the factor",))) == 18


def held_session(desk, says, **asked):
    """A session as the line below a cell sees it."""
    held = running(desk, says, **asked)
    return Held(
        name="demo", ended="", control=None, directory=held.directory, request=held.request, job=held.job,
        node_seconds=1200.0, chosen=lambda _ranks: (0, 1), elapsed_s=lambda: 600.0, left_s=lambda: 3000.0,
    )  # fmt: skip


class Held(SimpleNamespace):
    """What is asked of a session."""

    __hash__ = object.__hash__


def test_line_below_a_cell(desk, says):
    """The line below a cell tells what is spent, and the rate."""
    line = magics._quiet_line(held_session(desk, says), None, 2.0)
    assert " · 60 billing-minutes so far, 360 an hour · job 1 ends at " in line
    assert "node-hours" not in line


def test_line_without_prices(desk, says):
    """Where no price is known it counts node-hours."""
    says.clear()
    line = magics._quiet_line(held_session(desk, says), None, 2.0)
    assert "0.33 node-hours so far" in line


def test_table(desk, says):
    """`%hpc` has a column for the cost, where any is known."""
    running(desk, says)
    head, row = table(sessions()).splitlines()
    place = head.index("cost")
    assert row[place:].startswith("60 billing-minutes")
    assert head.split().index("cost") == len(head.split()) - 2


# ---- idle waste


@pytest.mark.parametrize(("spans", "length"), [
    ([], 0), ([(0, 5)], 5), ([(0, 5), (5, 7)], 7), ([(3, 4), (0, 10)], 10), ([(0, 2), (8, 9), (1, 4)], 5),
    ([(5, 5), (6, 4)], 0),
])  # fmt: skip
def test_covered(spans, length):
    """Cells at the same time count once."""
    assert covered_s(spans) == length


def write_cell(folder, number, sent, ranks, replies, *, lost=()):
    """Write a cell into a journal, as a keeper does."""
    path = cell_path(folder, number, f"ce11{number}")
    append_record(
        path, {"kind": "cell", "cell": f"ce11{number}", "name": "cell", "ranks": ranks, "client": "", "sent": sent}
    )
    for rank, elapsed_s in replies.items():
        append_record(path, {"kind": "reply", "rank": rank, "elapsed_s": elapsed_s})
    if lost:
        append_record(path, {"kind": "lost", "ranks": list(lost)})
    return path


def test_busy(tmp_path):
    """A cell runs until its last rank has answered; one that is lost, until that was written down."""
    now = time.time()
    write_cell(tmp_path, 1, now - 1000, [0, 1], {0: 10.0, 1: 30.0})
    write_cell(tmp_path, 2, now - 980, [0], {0: 20.0})
    assert busy_s(tmp_path, over=False) == pytest.approx(40, abs=0.1)
    path = write_cell(tmp_path, 3, now - 500, [0, 1], {0: 5.0}, lost=[1])
    os.utime(path, (now - 400, now - 400))
    assert busy_s(tmp_path, over=False) == pytest.approx(140, abs=0.1)


def test_busy_now(tmp_path):
    """A cell that runs is busy until now; in a session that has ended, until something was written of it."""
    now = time.time()
    path = write_cell(tmp_path, 1, now - 100, [0, 1], {0: 5.0})
    os.utime(path, (now - 60, now - 60))
    assert busy_s(tmp_path, over=False) == pytest.approx(100, abs=1)
    assert busy_s(tmp_path, over=True) == pytest.approx(40, abs=1)
    (tmp_path / "000002~abc").write_bytes(b"[99]\n{")
    assert busy_s(tmp_path, over=True) == pytest.approx(40, abs=1)


def test_nothing_ran(tmp_path):
    """Where no cell ever ran, or the journal is gone, nothing was busy."""
    assert busy_s(tmp_path, over=True) == 0
    assert busy_s(tmp_path / "gone", over=True) == 0


# ---- the bill


def test_bill(desk, says, monkeypatch):
    """The bill holds each session: what it has cost, by the quote and by accounting, and what of it was idle."""
    held = running(desk, says)
    write_cell(held.directory.cells, 1, time.time() - 400, [0], {0: 150.0})
    (entry,) = bill("demo")
    assert entry == Entry("demo", "1", "starting", "lab", 600.0, pytest.approx(450, abs=1), 60.0, None,
                          pytest.approx(45, abs=0.1), "billing-minutes", ceiling=360.0)  # fmt: skip
    desk.launcher.jobs["1"] = JobState("ended", "CANCELLED")
    stop_found(find(resolve({}, {}), "demo"))
    says["sacct"] = f"{SACCT}\n2|CANCELLED by 1000|0||debug|normal|lab|None"
    forget(monkeypatch)
    made = bill("demo")
    (entry,) = made
    assert (entry.state, entry.ran_s, entry.estimate, entry.confirmed, entry.spent) == ("ended", 3660, 122, 366, 366)
    assert entry.idle == pytest.approx(366 * (3660 - 150) / 3660)
    assert (made.week.jobs, made.week.spent) == (1, 366)
    assert made.balances == (Balance("account lab", "billing", 5000, 4000, 100),)


def test_bill_in_words(desk, says, monkeypatch):
    """It is shown as a table, as bars, and as the sums of the notebook, the week and the account."""
    running(desk, says)
    says["sacct"] = SACCT
    forget(monkeypatch)
    said = repr(bill("demo"))
    assert "demo *   1    ended  1 h 1 min  122       366            366 (100%)  billing-minutes" in said
    assert f"demo  {'░' * 40} 366\n" in said
    assert "This notebook (demo): 366 billing-minutes\n" in said
    assert "This week, by accounting: 366 billing-minutes, 1 job\n" in said
    assert said.endswith("account lab has 1,000 of 5,000 billing-minutes left, 100 of them for jobs that run")


def test_bill_without_accounting(desk, says):
    """With less it says less: a stopped session's time is not known then, and there is no week."""
    running(desk, says)
    stop_found(find(resolve({}, {}), "demo"))
    made = bill("demo")
    assert [(entry.state, entry.ran_s, entry.estimate, entry.confirmed) for entry in made] == [
        ("ended", None, None, None)
    ]
    assert made.week is None
    assert "by accounting:" not in repr(made)


def test_accounting_lags_behind(desk, says, monkeypatch):
    """A job that accounting still takes for running counts for so long, until it says more; it is asked anew soon."""
    running(desk, says)
    clock = FakeClock()
    monkeypatch.setattr(charges, "BOOKS", Books(charges.BOOKS._run, clock=clock, wait_s=10.0))
    stop_found(find(resolve({}, {}), "demo"))
    says["sacct"] = SACCT.replace("TIMEOUT|3660", "RUNNING|3000")
    (entry,) = bill("demo")
    assert (entry.state, entry.estimate, entry.confirmed) == ("ended", 100, None)
    says["sacct"] = SACCT
    clock.advance(6)
    (entry,) = bill("demo")
    assert (entry.estimate, entry.confirmed) == (122, 366)


def test_bill_of_an_ended_session_here(laptop):
    """A session on this machine that has ended ran until its keeper's last word."""
    held = laptop.cell(nodes=2)
    held.directory.write_record(held.directory.job, replace(held.job, submitted=time.time() - 7200))
    held.directory.write_record(held.directory.state, KeeperState("ended", cause="it was stopped"))
    os.utime(held.directory.state, (time.time() - 3600, time.time() - 3600))
    laptop.launcher.jobs["1"] = JobState("ended", "ENDED")
    (entry,) = bill("demo")
    assert (entry.state, entry.ran_s) == ("ended", pytest.approx(3600, abs=5))
    stop_found(find(resolve({}, {}), "demo"))
    assert [(one.state, one.ran_s) for one in bill("demo")] == [("ended", pytest.approx(3600, abs=5))]


def test_bill_here(laptop, monkeypatch):
    """On this machine it counts core-hours, and asks no SLURM for anything."""
    monkeypatch.setattr(charges, "BOOKS", Books(lambda _command: pytest.fail("asked"), wait_s=10.0))
    laptop.cell(nodes=2)
    laptop.launcher.jobs["1"] = JobState("running", "RUNNING", elapsed_s=3600.0)
    (entry,) = bill()
    assert (entry.job, entry.unit, entry.confirmed) == ("", "core-hours", None)
    assert entry.spent == pytest.approx(2, rel=0.01)
    assert entry.idle == pytest.approx(2, rel=0.01)
    assert "this machine" in repr(bill())


def test_empty_bill(laptop):
    """Before the first session there is nothing to show."""
    assert repr(bill()) == "No session has cost anything yet."
    assert bill().rows() == []


def test_bars():
    """The longest bar is whole, the others in proportion; a session of another unit has none."""

    def entry(name, spent, idle, unit="u"):
        return Entry(name, "1", "ended", "", 60.0, 0.0, spent, None, idle, unit)

    drawn = bars(
        [entry("a", 100.0, 25.0), entry("long", 50.0, 50.0), entry("c", 0.0, 0.0), entry("d", 7.0, 0.0, "v")]
    )
    assert drawn.splitlines() == [
        f"a     {'█' * 30}{'░' * 10} 100", f"long  {'░' * 20} 50", "in u; ░ = paid while no cell ran",
    ]  # fmt: skip
    assert bars([]) == ""


def test_frame(desk, says):
    """`hpcmagic.cost()` gives the bill, and the bill a DataFrame with a column for each field."""
    running(desk, says)
    made = hpcmagic.cost("demo")
    assert isinstance(made, Bill)
    frame = made.to_frame()
    assert list(frame.columns) == list(Entry.__dataclass_fields__)
    assert frame.loc[0, "estimate"] == 60
    assert json.dumps(made.rows())
    assert Bill([]).to_frame().empty


def test_no_pandas(monkeypatch):
    """Without pandas the rows are offered."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DataError, match="pandas is not installed") as error:
        Bill([]).to_frame()
    assert "`.rows()`" in two_lines(error).mend


def test_verb(desk, says, capsys):
    """`%hpc cost` shows the bill, of this notebook's session first of all."""
    running(desk, says)
    capsys.readouterr()
    here = SimpleNamespace(session_name="demo")
    VERBS["cost"](here, "")
    assert "demo *" in capsys.readouterr().out
    with pytest.raises(ProfileError):
        VERBS["cost"](here, "all")
    assert "%hpc cost" in HPC


def test_factor_that_changes(desk, says, monkeypatch):
    """A factor that SLURM changes while the job runs is noticed, once, and written down with the session."""
    held = running(desk, says)
    before = held.directory.read_record(held.directory.quote, Quote)
    assert spending.followed(held.directory, before, 100.0) == before
    says["sacctmgr -n -P show qos"] = "normal|2.000000"
    forget(monkeypatch)
    after = spending.followed(held.directory, before, 300.0)
    assert after.changes == ((300.0, 2.0),)
    assert spending.quote_of(held.directory, held.request) == after
    assert spending.followed(held.directory, after, 400.0) == after
    assert after.cost(600.0).spent == pytest.approx(1.5 * before.cost(600.0).spent)


def test_budget_without_a_meter(desk, says, monkeypatch):
    """Without a meter, too, the keeper is told how long the job may run: by what it got, and anew by each factor."""
    hpcmagic.budget(1000, "demo")
    held = held_session(desk, says)
    assert "360 an hour" in spending.in_line(held)  # it has got three times what it asked for
    first = held.directory.read_record(held.directory.limits, Limits)
    assert first.run_s == pytest.approx(1000 / 6 * 60 - 10)
    says["sacctmgr -n -P show qos"] = "normal|2.000000"
    forget(monkeypatch)
    spending.in_line(held)
    assert held.directory.read_record(held.directory.limits, Limits).run_s == pytest.approx(600 + 940 / 12 * 60 - 10)


def test_factor_told_later(desk, says, monkeypatch):
    """A factor that SLURM did not tell when the job was bought is taken as soon as it does, from the job's begin on."""
    told = says.pop("sacctmgr -n -P show qos")
    held = running(desk, says, qos="half")
    assert spending.quote_of(held.directory, held.request).lacks
    says["sacctmgr -n -P show qos"] = told
    forget(monkeypatch)
    (status,) = sessions()
    assert status.cost.spent == 30.0
    quote = spending.quote_of(held.directory, held.request)
    assert (quote.usage_factor, quote.lacks, quote.changes) == (0.5, (), ())


def test_factor_not_told(desk, says, monkeypatch):
    """Where SLURM does not answer, nothing has changed."""
    held = running(desk, says)
    quote = spending.quote_of(held.directory, held.request)
    says.clear()
    forget(monkeypatch)
    assert spending.followed(held.directory, quote, 300.0) == quote
