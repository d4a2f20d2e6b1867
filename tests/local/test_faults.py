"""Kernels, keepers and ranks that die or stand still, for real: what is said, how soon, and what survives.

docs/faults.md lists them. Who dies is killed as `kill -9` or the system's memory killer would do it.
"""

import json
import os
import re
import signal
import threading
import time

import psutil
import pytest
from faults import (
    SOON_S,
    all_gone,
    engines_below,
    eventually,
    everyone,
    held_without_ranks,
    in_thread,
    interrupt_after,
    keeper_of,
    lines_by_rank,
    raised,
    soon,
)
from two_lines import two_lines

import hpcmagic
from hpcmagic.notebook import following, start
from hpcmagic.notebook.found import find, stop_found
from hpcmagic.profiles import resolve
from notebooks import shown_by

SLEEP = "import time; time.sleep(120)"
GONE = "its keeper is gone (killed by SIGKILL)"


@pytest.fixture
def directory(home):
    """The directory of session a."""
    return home / "state" / "hpcmagic" / "a"


# ---- the kernel


def test_kernel_killed_in_a_cell(home, kernel):
    """The ranks run on without their kernel; who attaches finds variables, output so far, then the rest."""
    other = kernel("""
        s = hpcmagic.start(session="a", nodes=2)
        s.run("kept = rank + 1")
        s.run("import time\\nprint('first')\\ntime.sleep(5)\\nprint('last')\\nkept * 10")
    """)
    other.wait_for("] first")
    other.kill()
    session = hpcmagic.attach("a")
    cell = session.cells[-1]
    eventually(lambda: cell.output == "[0-1] first\n")
    assert cell.state == "running"
    assert list(cell.result(SOON_S)) == [10, 20]
    assert cell.output == "[0-1] first\n[0-1] last\n"
    assert list(session.pull("kept")) == [1, 2]
    session.stop()


DIE = "(lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))"
MOMENTS = {
    "before its job": f"local.LocalLauncher.submit = {DIE}",
    "before its job is noted": f"was = local.LocalLauncher.submit\nlocal.LocalLauncher.submit = lambda *a: {DIE}(was(*a))",
    "while it waits": f"start.wait_until_ready = {DIE}",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_kernel_killed_while_it_starts(home, kernel, directory, moment):
    """A start that died halfway is said to be one, and can be cleared away; a job that is noted is found."""
    other = kernel(f"""
        from hpcmagic.launch import local
        from hpcmagic.notebook import start
        {MOMENTS[moment].replace(chr(10), chr(10) + 8 * " ")}
        start.start(session="a", nodes=2)
    """)
    other.end()
    assert other.process.returncode == -signal.SIGKILL, other.said
    if moment == "while it waits":
        session = hpcmagic.attach("a")
        assert list(session.run("rank")) == [0, 1]
        session.stop()
        return
    with pytest.raises(hpcmagic.LaunchError, match="being started by another kernel") as half:
        hpcmagic.start(session="a", nodes=2)
    assert "`%hpc stop a` clears it away" in two_lines(half).mend
    stop_found(find(resolve({}), "a"))
    assert hpcmagic.sessions() == []  # and its keeper goes: the fixtures look


def test_kernel_stands_still(home, kernel, capsys):
    """A second notebook whose kernel is stopped hinders nobody, and works on when it goes on."""
    session = hpcmagic.start(session="a", nodes=2)
    other = kernel("""
        s = hpcmagic.attach("a")
        print("there", s.run("mine = 7"))
        sys.stdin.readline()
        print("again", s.run("mine").same())
    """)
    other.wait_for("there")
    os.kill(other.pid, signal.SIGSTOP)
    with soon():
        assert session.run("mine").same() == 7
        session.run("mine = 8; print('x' * 500_000)")
    capsys.readouterr()
    os.kill(other.pid, signal.SIGCONT)
    other.go_on()
    other.wait_for("again 8")
    session.stop()


# ---- the keeper


@pytest.mark.parametrize("moment", ["idle", "in a cell", "as the ranks start", "as they restart"])
def test_keeper_killed(home, directory, moment):
    """Whenever the keeper is killed, it is said, all of its ranks leave, and a new session can be had."""
    if moment == "as the ranks start":
        starting = in_thread(lambda: hpcmagic.start(session="a", nodes=2))
        keeper = eventually(lambda: keeper_in(directory, "starting"))
        ranks = eventually(lambda: engines_below(keeper))
        keeper.kill()
        with soon():
            error = starting()
        assert isinstance(error, hpcmagic.LaunchError)
        assert f"Session a did not start: {GONE}" in error.message
        assert all_gone(ranks)
        return
    session = hpcmagic.start(session="a", nodes=2)
    keeper, *ranks = everyone(session)
    works = {"in a cell": lambda: session.run(SLEEP), "as they restart": session.restart}
    if moment == "idle":
        keeper.kill()
        working = in_thread(lambda: eventually(lambda: session.status().state == "ended") and session.run("1"))
    else:
        working = in_thread(works[moment])
        time.sleep(0.3)
        eventually(lambda: keeper_in(directory, "ready" if moment == "in a cell" else "starting"))
        keeper.kill()
    with soon():
        error = working()
    assert isinstance(error, hpcmagic.SessionEnded)
    assert f"Session a has ended: {GONE}. Its variables are gone." in error.message
    assert "%%remote --nodes 2" in error.mend
    assert all_gone(ranks)


def keeper_in(directory, phase):
    """The keeper's process, once it has said that it is in a phase."""
    try:
        said = json.loads((directory / "state.json").read_text())
    except FileNotFoundError:
        return None
    return psutil.Process(said["keeper_pid"]) if said["phase"] == phase else None


def test_keeper_stands_still(home, lines, monkeypatch):
    """A keeper from which nothing is heard is said to be silent, not dead; when it goes on, so does all else."""
    monkeypatch.setattr(following, "SILENT_S", 3.0)
    session = hpcmagic.start(session="a", nodes=2)
    working = in_thread(lambda: session.run("import time; time.sleep(3); rank"))
    time.sleep(0.5)
    keeper = keeper_of(session)
    keeper.suspend()
    silent = eventually(lambda: next((line for line in lines if "no word" in line), ""))
    assert "no word from the session's keeper for " in silent
    assert "the ranks run on" in silent
    keeper.resume()
    assert list(working()) == [0, 1]
    session.stop()


# ---- the ranks


@pytest.mark.parametrize("moment", ["idle", "in a cell", "in Barrier", "as they start"])
def test_rank_killed(home, directory, moment):
    """Whenever a rank is killed, its number and the signal are said, all ranks end, and the job is held for others."""
    if moment == "as they start":
        starting = in_thread(lambda: hpcmagic.start(session="a", nodes=2))
        keeper = eventually(lambda: keeper_in(directory, "starting"))
        eventually(lambda: engines_below(keeper))[-1].kill()
        with soon(30):
            outcome = starting()
        if isinstance(outcome, hpcmagic.Session):  # so early that the next way to start them was tried
            assert outcome.keeper_state().note.startswith("mpiexec: ")
            outcome.stop()
        else:
            assert "Session a did not start: " in outcome.message
            assert "signal 9" in outcome.message
        return
    session = hpcmagic.start(session="a", nodes=2)
    all_of_it = everyone(session)
    pid = session.run("import os; os.getpid()")[1]
    if moment == "idle":
        os.kill(pid, signal.SIGKILL)
        working = in_thread(lambda: eventually(lambda: session.status().state == "fallen") and session.run("1"))
    else:
        source = SLEEP if moment == "in a cell" else f"comm.Barrier() if rank == 0 else exec({SLEEP!r})"
        working = in_thread(lambda: session.run(source))
        time.sleep(1)
        os.kill(pid, signal.SIGKILL)
    with soon():
        error = working()
    assert isinstance(error, hpcmagic.SessionEnded)
    assert error.message == (
        "In session a the ranks ended: rank 1 exited on signal 9 (Killed). Their variables are gone."
    )
    assert re.match(
        r"`%hpc restart` starts new ranks in the same job, which is held until \d\d:\d\d; `%hpc stop` ", error.mend
    )
    assert "`hpcmagic.attach('a').cells`" in error.mend
    assert held_without_ranks(session, all_of_it)
    assert session.cells[0].result()[1] == pid
    restarted(session, pid)
    session.stop()
    assert all_gone(all_of_it)


def restarted(session, *former):
    """Restart ranks that are gone: the job is the same, the processes are others, and the new ones work."""
    keeper = keeper_of(session)
    with soon(30):
        session.restart()
    assert keeper_of(session) == keeper
    assert session.keeper_state().cause == ""
    assert not set(session.run("import os; os.getpid()")) & set(former)
    assert session.run("comm.allreduce(1) if comm else size").same() == 2


def test_mpiexec_killed(home):
    """An mpiexec that is killed ends the ranks, and what it leaves in /tmp and /dev/shm is removed."""
    session = hpcmagic.start(session="a", nodes=2)
    all_of_it = everyone(session)
    working = in_thread(lambda: session.run(SLEEP))
    time.sleep(0.5)
    keeper_of(session).children()[0].kill()
    with soon():
        error = working()
    assert "the ranks ended: mpiexec: killed by SIGKILL" in error.message
    assert held_without_ranks(session, all_of_it)
    restarted(session)
    session.stop()


WAYS = {
    "SIGKILL": ("import os; os.kill(os.getpid(), 9)", r"rank 1 exited on signal 9 \(Killed\)"),
    "segmentation fault": (
        "import ctypes; ctypes.string_at(0)",
        r"rank 1 exited on signal 11 \(Segmentation fault\)",
    ),
    "os._exit": ("import os; os._exit(3)", "rank 1 Exit code: 3"),
    "Abort": (
        "from mpi4py import MPI; MPI.COMM_WORLD.Abort(7)",
        r"rank 1 called Abort\(7\)|mpiexec: exit status 7\b",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_rank_ends_itself(home, way, capsys):
    """A rank that ends itself ends the others; how it ended is said, what it had flushed is shown, and kept.

    Open MPI 4.1 loses the rank's number of some calls of Abort; the status is always said.
    """
    session = hpcmagic.start(session="a", nodes=2)
    all_of_it = everyone(session)
    source, words = WAYS[way]
    with soon():
        error = raised(
            session,
            f"print('before', flush=True)\nif comm: comm.Barrier()\nif rank: {source}\nimport time; time.sleep(9)",
            hpcmagic.SessionEnded,
        )
    assert re.search(words, error.message)
    assert lines_by_rank(capsys.readouterr().out) == {0: ["before"], 1: ["before"]}
    assert session.cells[0].output == "[0-1] before\n"
    assert held_without_ranks(session, all_of_it)
    restarted(session)
    session.stop()


# ---- a job without ranks


KILL = "import os\nif rank == size - 1: os.kill(os.getpid(), 9)\nimport time; time.sleep(60)"


def fallen(**options):
    """A session whose ranks have been killed."""
    session = hpcmagic.start(session="a", nodes=2, **options)
    session.run("kept = rank")
    with soon():
        raised(session, KILL, hpcmagic.SessionEnded)
    return session


def test_held_job(home):
    """While its ranks are gone a session says so to whoever asks, refuses cells and data, and is restarted by nobody."""
    session = fallen()
    handle = session.cells[-1]
    said = "In session a the ranks ended: rank 1 exited on signal 9 (Killed). Their variables are gone."
    refused = {
        "run": lambda: session.run("1"),
        "handle": lambda: session.run("1", block=False),
        "push": lambda: session.push(x=1),
        "scatter": lambda: session.scatter(x=[1, 2]),
        "gather": lambda: session.gather("kept"),
        "result": handle.result,
        "start": lambda: hpcmagic.start(session="a"),
        "buy": lambda: hpcmagic.start(session="a", nodes=2),
    }
    for what, call in refused.items():
        with pytest.raises(hpcmagic.SessionEnded) as error:
            call()
        assert (what, two_lines(error).message) == (what, said)
    assert (handle.state, handle.done()) == ("lost", True)
    assert [cell.state for cell in session.cells] == ["done", "lost"]
    assert session.why().startswith("In session a the ranks ended: rank 1 exited on signal 9 (Killed).\n")
    (status,) = hpcmagic.sessions()
    assert status.state == session.status().state == "fallen"
    assert re.search(r"rank 1 exited.*; job held until \d\d:\d\d: `%hpc restart` or `%hpc stop`$", status.reason)
    time.sleep(2)
    assert (session.keeper_state().restarts, engines_below(keeper_of(session))) == (0, [])
    restarted(session)
    assert session.status().reason == ""
    session.stop()
    assert hpcmagic.attach("a").ended == "it was stopped"


def test_held_job_stopped(home):
    """A job that is held without ranks can be stopped: nothing is left, its cells can be read, and how its ranks ended."""
    session = fallen()
    keeper = keeper_of(session)
    with soon():
        stop_found(find(resolve({}), "a"))
    assert all_gone([keeper])
    assert hpcmagic.sessions() == []
    with pytest.raises(
        hpcmagic.SessionEnded, match="Session a has ended: the ranks ended: rank 1 exited on signal 9"
    ):
        session.run("1")
    past = hpcmagic.attach("a")
    assert "the ranks ended: rank 1" in past.ended
    assert list(past.cells[0].ranks) == [0, 1]


def test_held_job_restarted_twice(home):
    """Ranks that fall again are started again, by the same kernel and in the same job."""
    session = fallen()
    for _ in range(2):
        restarted(session)
        with soon():
            raised(session, KILL, hpcmagic.SessionEnded)
    assert session.keeper_state().restarts == 2
    session.stop()


def test_held_job_restarted_by_another(home, kernel, capsys):
    """Another kernel comes to ranks that are gone, and restarts them; the first one is told, and works on."""
    session = fallen()
    other = kernel("""
        s = hpcmagic.attach("a")
        try:
            s.run("1")
        except hpcmagic.SessionEnded as error:
            print("refused:", error.message)
        s.restart()
        print("there", list(s.run("rank")))
        sys.stdin.readline()
    """)
    other.wait_for("there [0, 1]")
    assert "In session a the ranks ended: rank 1 exited on signal 9 (Killed); job held until " in other.said
    assert "refused: In session a the ranks ended: rank 1 exited" in other.said
    assert session.run("'kept' in globals()").same() is False
    assert "the ranks were restarted elsewhere; their variables are gone" in capsys.readouterr().out
    other.go_on()
    other.end()
    session.stop()


def test_held_job_while_the_killed_cell_is_awaited_elsewhere(home, kernel):
    """A kernel that waits for another's cell is told the same when the ranks die."""
    session = hpcmagic.start(session="a", nodes=2)
    other = kernel("""
        s = hpcmagic.attach("a")
        print("there")
        while not len(s.cells):
            time.sleep(0.1)
        try:
            s.cells[0].result()
        except hpcmagic.SessionEnded as error:
            print("told:", error)
    """)
    other.wait_for("there")
    handle = session.run(f"import time; time.sleep(3)\n{KILL}", block=False)
    with soon(), pytest.raises(hpcmagic.SessionEnded, match="rank 1 exited on signal 9"):
        handle.result()
    assert "told: In session a the ranks ended: rank 1 exited on signal 9 (Killed)." in other.end()
    session.stop()


def test_hold_expires(home, monkeypatch):
    """A job that nobody restarts is given back when its time is up, with the cause that the ranks had."""
    monkeypatch.setattr(start, "HOLD_S", 3.0)
    session = fallen()
    assert all_gone([keeper_of(session)])
    with soon(5), pytest.raises(hpcmagic.SessionEnded) as error:
        session.run("1")
    assert two_lines(error).message == (
        "Session a has ended: the ranks ended: rank 1 exited on signal 9 (Killed). Its variables are gone."
    )
    assert "`%%remote --nodes 2`" in error.value.mend
    with pytest.raises(hpcmagic.SessionEnded, match="has ended"):
        session.restart()
    again = hpcmagic.start(session="a", nodes=2)
    assert list(again.run("rank")) == [0, 1]
    again.stop()


def test_not_held_at_all(home, monkeypatch):
    """Where jobs are not held the ranks' end is the session's."""
    monkeypatch.setattr(start, "HOLD_S", 0.0)
    session = hpcmagic.start(session="a", nodes=2)
    everything = everyone(session)
    with soon():
        error = raised(session, KILL, hpcmagic.SessionEnded)
    assert "Session a has ended: the ranks ended: rank 1 exited on signal 9 (Killed)." in error.message
    assert all_gone(everything)


def test_hold_ends_with_the_kernel(home, kernel):
    """A job without ranks that nobody is connected to is given back soon, long before its time is up."""
    other = kernel(f"""
        from hpcmagic.notebook import start
        start.HOLD_ALONE_S = 2.0
        s = hpcmagic.start(session="a", nodes=2)
        try:
            s.run({KILL!r})
        except hpcmagic.SessionEnded:
            print("held", s.keeper_state().keeper_pid, flush=True)
        time.sleep(60)
    """)
    other.wait_for("held")
    keeper = psutil.Process(int(other.said.split()[-1]))
    time.sleep(4)
    assert keeper.is_running()  # while somebody is there
    other.kill()
    assert all_gone([keeper], 10)
    assert "the ranks ended: rank 1 exited on signal 9 (Killed)" in hpcmagic.attach("a").ended


def test_keeper_of_a_held_job_killed(home):
    """A keeper that is killed while it holds a job without ranks is missed by the restart."""
    session = fallen()
    keeper_of(session).kill()
    with soon(), pytest.raises(hpcmagic.SessionEnded, match=re.escape(GONE)):
        session.restart()
    with pytest.raises(hpcmagic.SessionEnded, match="has ended"):
        session.run("1")


def test_held_job_in_a_notebook(home):
    """In a notebook a cell is refused, with resources on its line too, `%hpc` says how it stands, `%hpc restart` mends it."""
    attempt = "try:\n    get_ipython().run_cell_magic('remote', {line!r}, {cell!r})\nexcept Exception as error:\n    print(error)"
    shown = shown_by(
        home,
        "%load_ext hpcmagic",
        "%hpc start --nodes 2 --session a",
        attempt.format(line="", cell=KILL),
        attempt.format(line="--nodes 2", cell="rank"),
        "%hpc",
        "%hpc why",
        "%hpc restart",
        "x = list(range(10))\n%scatter x",
        "%gather x\nx == list(range(10))",
        "%hpc",
    )
    for refused in shown[2:4]:
        assert (
            "In session a the ranks ended: rank 1 exited on signal 9 (Killed). Their variables are gone." in refused
        )
        assert "→ `%hpc restart` starts new ranks in the same job, which is held until " in refused
    row = next(line for line in shown[4].splitlines() if line.startswith("a "))
    assert row.split()[1] == "fallen"
    assert re.search(r"job held until \d\d:\d\d: `%hpc restart` or `%hpc stop`", row)
    assert "In session a the ranks ended" in shown[5]
    assert "2 new ranks in the same job" in shown[6]
    assert "True" in shown[8]
    assert "ready" in shown[9]
    assert "job held" not in shown[9]


def test_rank_stands_still(home, capsys, lines):
    """Ctrl-C names a rank that is stopped, and twice lets go of it; when it goes on, it hears the interrupt."""
    session = hpcmagic.start(session="a", nodes=2)
    pid = session.run("import os; os.getpid()")[1]
    threading.Timer(0.7, os.kill, (pid, signal.SIGSTOP)).start()
    try:
        interrupt_after(1, 8)
        with soon():
            error = raised(session, "import time; time.sleep(60)", hpcmagic.CellError)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "Not stopped: rank 1 does not say where." in capsys.readouterr().out
    assert "rank 1 runs on" in error.message
    assert "`hpcmagic.attach('a').cells[1].result()`" in error.mend
    with soon(), pytest.raises(hpcmagic.RankError, match="KeyboardInterrupt on all 2 ranks"):
        hpcmagic.attach("a").cells[1].result(SOON_S)
    assert list(session.run("rank")) == [0, 1]
    session.stop()
