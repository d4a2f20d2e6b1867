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
    in_thread,
    interrupt_after,
    keeper_of,
    lines_by_rank,
    raised,
    soon,
)
from two_lines import two_lines

import hpcmagic
from hpcmagic.notebook import following
from hpcmagic.notebook.found import find, stop_found
from hpcmagic.profiles import resolve

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
    other.wait_for("[0-1] first")
    other.kill()
    session = hpcmagic.attach("a")
    cell = session.cells[-1]
    assert (cell.state, cell.output) == ("running", "[0-1] first\n")
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
    """Whenever a rank is killed, its number and the signal are said, and the session ends."""
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
        working = in_thread(lambda: eventually(lambda: session.status().state == "ended") and session.run("1"))
    else:
        source = SLEEP if moment == "in a cell" else f"comm.Barrier() if rank == 0 else exec({SLEEP!r})"
        working = in_thread(lambda: session.run(source))
        time.sleep(1)
        os.kill(pid, signal.SIGKILL)
    with soon():
        error = working()
    assert isinstance(error, hpcmagic.SessionEnded)
    assert "the ranks ended: rank 1 exited on signal 9 (Killed)" in error.message
    assert "`hpcmagic.attach('a').cells`" in error.mend
    assert all_gone(all_of_it)
    assert hpcmagic.attach("a").cells[0].result()[1] == pid


def test_mpiexec_killed(home):
    """An mpiexec that is killed ends the session, and what it leaves in /tmp and /dev/shm is removed."""
    session = hpcmagic.start(session="a", nodes=2)
    all_of_it = everyone(session)
    working = in_thread(lambda: session.run(SLEEP))
    time.sleep(0.5)
    keeper_of(session).children()[0].kill()
    with soon():
        error = working()
    assert "the ranks ended: mpiexec: killed by SIGKILL" in error.message
    assert all_gone(all_of_it)


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
    """A rank that ends itself ends the session; how it ended is said, what it had flushed is shown, and kept.

    Open MPI 4.1 loses the rank's number of some calls of Abort; the status is always said.
    """
    session = hpcmagic.start(session="a", nodes=2)
    all_of_it = everyone(session)
    source, words = WAYS[way]
    with soon():
        error = raised(
            session,
            f"print('before', flush=True)\nif rank: {source}\nimport time; time.sleep(9)",
            hpcmagic.SessionEnded,
        )
    assert re.search(words, error.message)
    assert lines_by_rank(capsys.readouterr().out) == {0: ["before"], 1: ["before"]}
    assert session.cells[0].output == "[0-1] before\n"
    assert all_gone(all_of_it)


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
