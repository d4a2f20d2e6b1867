"""The verbs of `%hpc`: what is shown of sessions, and what is refused."""

import os
import re
from types import SimpleNamespace

import pytest
from two_lines import two_lines

from hpcmagic.errors import LaunchError, ProfileError
from hpcmagic.launch.base import JobState
from hpcmagic.notebook import start, verbs
from hpcmagic.notebook.magics import HpcMagics
from hpcmagic.notebook.orphans import Orphan
from hpcmagic.notebook.status import Status
from hpcmagic.notebook.steer_line import settings
from hpcmagic.notebook.verbs import HPC, VERBS, table
from hpcmagic.profiles import every


def status(**kwargs):
    """How a session stands that runs on four nodes."""
    nodes = ("n1", "n2", "n3", "n4")
    stands = {"session": "demo", "state": "ready", "launcher": "slurm", "job_id": "17", "reason": "", "nodes": nodes,
              "ranks": 8, "elapsed_s": 75.5, "left_s": 3600.0}  # fmt: skip
    return Status(**{**stands, **kwargs})


@pytest.fixture
def magics():
    """The magics of a notebook that has no session."""
    magics = HpcMagics(None)
    magics.shell = SimpleNamespace(user_ns={})
    return magics


@pytest.fixture
def there(monkeypatch):
    """The sessions and the orphans that there are; at first none."""
    there = SimpleNamespace(sessions=[], orphans=[])
    monkeypatch.setattr(verbs, "sessions", lambda: there.sessions)
    monkeypatch.setattr(verbs, "orphans", lambda: there.orphans)
    return there


def test_table():
    """Every session has a line, its words under their heads; what is unknown or endless is a dash."""
    pending = status(session="a-long-name", state="pending", nodes=(), left_s=None, reason="Priority")
    local = status(launcher="local", job_id="4711", nodes=("here",), ranks=1, elapsed_s=0.0, left_s=None)
    lines = table([status(), pending, local]).splitlines()
    starts = [lines[0].index(head) for head in lines[0].split()]
    cells = [
        [line[begin:end].strip() for begin, end in zip(starts, [*starts[1:], None], strict=True)] for line in lines
    ]
    assert cells == [
        ["session", "state", "job", "nodes", "ranks", "runs", "left", "why"],
        ["demo", "ready", "17", "n1,n2,n3,n4", "8", "1 min 15 s", "1 h", ""],
        ["a-long-name", "pending", "17", "–", "8", "1 min 15 s", "–", "Priority"],
        ["demo", "ready", "this machine", "here", "1", "0 s", "–", ""],
    ]
    assert all(line == line.rstrip() for line in lines)


def test_many_nodes():
    """Of many nodes the first are named."""
    assert " n0,n1,n2,n3 … " in table([status(nodes=tuple(f"n{n}" for n in range(100)))])


def test_no_sessions():
    """Where there is no session the table says how to start one."""
    assert "%%remote --nodes" in table([])


@pytest.mark.parametrize("verb", ["", "status"])
def test_status(magics, there, capsys, verb):
    """`%hpc` shows every session; of what belongs to none it says nothing where there is nothing."""
    there.sessions.append(status())
    magics.hpc(verb)
    assert capsys.readouterr().out == table([status()]) + "\n"
    there.orphans.append(Orphan("job 18, running, for 1:00", lambda: None))
    magics.hpc(verb)
    said = capsys.readouterr().out
    assert "`%hpc stop --orphans`" in said
    assert said.endswith("  job 18, running, for 1:00\n")


def test_stop_orphans(magics, there, capsys):
    """What belongs to no session is ended, each said; where there is nothing that is said."""
    magics.hpc("stop --orphans")
    assert capsys.readouterr().out == "There is nothing that belongs to no session.\n"
    ended = []
    there.orphans += [Orphan(what, lambda what=what: ended.append(what)) for what in ("job 18", "process 7")]
    magics.hpc("stop  --orphans ")
    assert ended == ["job 18", "process 7"]
    assert capsys.readouterr().out == "Ended: job 18\nEnded: process 7\n"


@pytest.mark.parametrize("word", ["stat", "STOP", "--orphans", "-x", "stop;"])
def test_unknown_verb(magics, there, word):
    """A word that is no verb is refused with the verbs that there are."""
    with pytest.raises(ProfileError) as error:
        magics.hpc(f"{word} demo")
    said = two_lines(error)
    assert repr(word) in said.message
    assert all(verb in said.mend for verb in VERBS)


@pytest.mark.parametrize(("word", "meant"), [("stats", "status"), ("stp", "stop"), ("atach", "attach"), ("foo", "")])
def test_verb_guessed(magics, word, meant):
    """Of a verb that is misspelt the nearest is guessed; of a word that is far from all none is."""
    with pytest.raises(ProfileError) as error:
        magics.hpc(word)
    assert (f"Did you mean `{meant}`? " in two_lines(error).mend) == bool(meant)
    assert ("Did you mean" in error.value.mend) == bool(meant)


@pytest.mark.parametrize(("word", "meant"), [("puase", "pause"), ("resum", "resume"), ("zzz", "")])
def test_word_of_steer_guessed(word, meant):
    """So is a word of `%steer`."""
    with pytest.raises(ProfileError) as error:
        settings(word)
    assert (f"Did you mean `{meant}`? " in two_lines(error).mend) == bool(meant)


@pytest.mark.parametrize("line", ["stop lng", "attach lng", "log"])
@pytest.mark.parametrize("kept", [False, True])
def test_session_guessed(magics, laptop, line, kept):
    """Of a session's name that is misspelt the nearest is guessed; where cells of the past will do, of those as well."""
    laptop.cell("long")
    if kept:
        laptop.directory("long").rename(shelf(laptop) / "long~1")
    magics.session_name = "lng"
    with pytest.raises(ProfileError) as error:
        magics.hpc(line)
    assert "'lng'" in two_lines(error).message
    guessed = error.value.mend == "Did you mean `long`? `%hpc` lists yours."
    assert guessed == (not kept or not line.startswith("stop"))


def shelf(laptop):
    """The folder of sessions that have ended."""
    folder = laptop.directory("ended")
    folder.mkdir(mode=0o700)
    return folder


def test_each_name_once(magics, there, monkeypatch, capsys):
    """A name that a session has, running or just ended, does not stand among those that ended earlier as well."""
    there.sessions += [status(), status(session="other", state="ended")]
    monkeypatch.setattr(verbs, "ended_names", lambda: ["demo", "other", "older"])
    magics.hpc("status")
    said = capsys.readouterr().out
    assert said.count("demo") == said.count("other") == 1
    assert said.endswith("(`%hpc attach NAME`): older\n")
    monkeypatch.setattr(verbs, "ended_names", lambda: ["demo"])
    magics.hpc("status")
    assert "Ended" not in capsys.readouterr().out


@pytest.mark.parametrize("word", ["-h", "--help", "help"])
def test_help(magics, capsys, word):
    """The help names every verb."""
    magics.hpc(word)
    said = capsys.readouterr().out
    assert said == HPC + "\n"
    assert set(re.findall(r"^%hpc ([a-z]+)", said, re.MULTILINE)) == set(VERBS) - {""}


@pytest.mark.parametrize("verb", ["status", "restart", "cells", "why", "profiles"])
def test_verb_that_takes_nothing(magics, there, verb):
    """What stands behind a verb that takes nothing is refused, and not ignored."""
    with pytest.raises(ProfileError) as error:
        magics.hpc(f"{verb} demo")
    assert "'demo'" in two_lines(error).message


def test_profiles(magics, capsys):
    """`%hpc profiles` shows what its twin in Python gives."""
    magics.hpc("profiles")
    assert capsys.readouterr().out == f"{every()}\n"


@pytest.mark.parametrize("line", ["stop demo", "log", "attach demo"])
def test_no_such_session(magics, laptop, line):
    """A session that is not there is refused by each verb that needs one."""
    magics.session_name = "demo"
    with pytest.raises(ProfileError) as error:
        magics.hpc(line)
    assert "demo" in two_lines(error).message


@pytest.mark.parametrize("path", ["../mine", "{home}/mine", "ended", "."])
def test_stop_takes_no_path(magics, laptop, path):
    """A folder of the user's that is no session's stays where it is, whatever is typed."""
    laptop.cell("demo")
    home = laptop.directory().parent.parent
    home.chmod(0o700)
    for folder in (home / "mine", laptop.directory("ended")):
        folder.mkdir(0o700)
        os.utime(folder, (0, 0))
    with pytest.raises(ProfileError, match="There is no session"):
        magics.hpc(f"stop {path.format(home=home)}")
    assert (home / "mine").is_dir()
    assert sorted(path.name for path in laptop.directory().parent.iterdir()) == ["demo", "ended"]


def test_cancel_by_a_number_of_another_script(magics, monkeypatch):
    """What looks like a number and is none is no cell."""
    monkeypatch.setattr(verbs, "here", lambda _: SimpleNamespace(cells=[]))
    with pytest.raises(ProfileError, match="There is no cell '²'"):
        magics.hpc("cancel ²")


@pytest.mark.parametrize("line", ["cells", "restart", "cancel", "cancel 3"])
def test_notebook_without_a_session(magics, laptop, line):
    """A verb for the notebook's own session says that there is none."""
    with pytest.raises(ProfileError, match="no session"):
        magics.hpc(line)


def test_log_of_no_rank(magics):
    """A rank is a number."""
    with pytest.raises(ProfileError) as error:
        magics.hpc("log zero")
    assert "'zero'" in two_lines(error).message


@pytest.mark.parametrize("rank", ["4", "77"])
def test_log_of_a_rank_that_is_not_there(magics, rank):
    """A rank beyond the session's is refused, with those that there are."""
    magics.session_name = "demo"
    magics.held["demo"] = SimpleNamespace(request=SimpleNamespace(ntasks=4))
    with pytest.raises(ProfileError) as error:
        magics.hpc(f"log {rank}")
    assert f"There is no rank {rank}: the session has 4 ranks." in two_lines(error).message
    assert "0-3" in error.value.mend


def test_doctor_that_gets_no_nodes(desk, magics, monkeypatch):
    """Where the session that doctor buys does not begin, for Ctrl-C in the queue say, its job does not stay there."""

    def stopped(*_, **__):
        raise LaunchError("Stopped waiting; job 1 stays in the queue.", "")

    monkeypatch.setattr(start, "wait_until_ready", stopped)
    magics.parsed = lambda parser, line: (parser.parse(line.split()), "")
    with pytest.raises(LaunchError, match="did not begin: Stopped waiting") as error:
        verbs.look_around(magics, "--nodes 2 --yes")
    two_lines(error)
    assert desk.alive == []
    assert desk.launcher.jobs


def test_extend_a_job_that_waits(desk, magics, monkeypatch):
    """More time for a job in the queue does not wait until it runs."""
    desk.cell(nodes=1, time="60")
    desk.launcher.jobs["1"] = JobState("pending", "PENDING", "Resources", "the nodes are busy")
    magics.session_name = "demo"
    asked = []
    monkeypatch.setattr(verbs, "extend_queued", lambda found, time: asked.append((found.request.session, time)))
    verbs.extend(magics, "0:30:00")
    assert asked == [("demo", "0:30:00")]
