"""From start to end: found again by name, ended with a cause, nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
from faults import all_gone

import hpcmagic
from hpcmagic.notebook.found import find
from hpcmagic.profiles import resolve
from notebooks import notebook, text_of


def processes(session):
    """The keeper and the ranks of a session."""
    ranks = session.run("import os; os.getpid()")
    return [psutil.Process(pid) for pid in (session.keeper_state().keeper_pid, *ranks)]


def test_stop_leaves_nothing(home):
    """`stop` ends keeper and ranks, and removes the keys; the log stays readable."""
    session = hpcmagic.start(nodes=2, session="a")
    everyone = processes(session)
    session.stop()
    session.stop()
    assert all_gone(everyone)
    assert hpcmagic.sessions() == []
    assert not list(home.rglob("*.key"))
    assert list(home.rglob("job.log"))
    with pytest.raises(hpcmagic.SessionEnded):
        session.run("1")


def test_with_stops(home):
    """Leaving `with` stops the session, also after an error."""
    session = hpcmagic.start(nodes=2, session="a")
    everyone = processes(session)
    with pytest.raises(hpcmagic.RankError), session:
        session.run("1 / 0")
    assert all_gone(everyone)


def test_found_by_name(home, capsys):
    """A second start of the same name picks the session up with its variables, and starts no second one."""
    first = hpcmagic.start(nodes=2, session="a")
    first.run("kept = rank + 1")
    second = hpcmagic.start(session="a")
    assert list(second.run("kept")) == [1, 2]
    assert "picked up" in capsys.readouterr().out
    assert len(hpcmagic.sessions()) == 1
    first.control.close()
    assert list(second.run("kept")) == [1, 2]
    second.stop()


def test_found_by_another_process(home):
    """Another kernel finds the session by its name."""
    session = hpcmagic.start(nodes=2, session="a")
    session.run("kept = 'here'")
    code = "import hpcmagic; print(hpcmagic.start(session='a').run('kept').same())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "here", done.stderr
    session.stop()


def test_other_resources(home):
    """Asking for other resources than the session has names the difference and the mend."""
    session = hpcmagic.start(nodes=2, session="a")
    with pytest.raises(hpcmagic.ProfileError, match="--nodes 2, not --nodes 4") as caught:
        hpcmagic.start(session="a", nodes=4)
    assert "%hpc stop" in caught.value.mend
    with pytest.raises(hpcmagic.ProfileError, match="--nodes 2, not --nodes 1") as caught:
        hpcmagic.start(session="a", nodes=1)
    assert "--ranks 0-0" in caught.value.mend
    session.stop()


@pytest.mark.parametrize("mpi", ["auto", "none"])
@pytest.mark.parametrize("victim", ["keeper", "rank"])
def test_killed(home, monkeypatch, victim, mpi):
    """kill -9 of a rank or of the keeper ends the cell with the cause, and no rank stays behind, whatever starts them."""
    monkeypatch.setenv("HPCMAGIC_MPI", mpi)
    session = hpcmagic.start(nodes=2, session="a")
    everyone = processes(session)
    threading.Timer(1, everyone[0 if victim == "keeper" else 2].kill).start()
    begun = time.monotonic()
    with pytest.raises(hpcmagic.SessionEnded) as caught:
        session.run("import time; time.sleep(60)")
    assert time.monotonic() - begun < 15
    expected = "its keeper is gone (killed by SIGKILL)" if victim == "keeper" else "the ranks ended"
    assert expected in caught.value.message
    if victim == "rank":
        assert all_gone(everyone[1:])
        session.restart()
        assert list(session.run("rank")) == [0, 1]
        session.stop()
        return
    assert "%%remote --nodes 2" in caught.value.mend
    assert all_gone(everyone)
    with pytest.raises(hpcmagic.SessionEnded, match="Its variables are gone"):
        hpcmagic.start(session="a")
    again = hpcmagic.start(session="a", nodes=2)
    assert list(again.run("rank")) == [0, 1]
    again.stop()


def test_nobody_comes(home):
    """With no notebook connected and no cell running, a session ends after its limit, and says so."""
    code = "import hpcmagic, os; hpcmagic.start(session='a', nodes=2, no_client_limit='0:02'); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
    found = find(resolve({}), "a")
    keeper = psutil.Process(int(found.job.job_id.partition("@")[0]))
    assert all_gone([keeper], 20)
    with pytest.raises(hpcmagic.SessionEnded, match="no_client_limit"):
        hpcmagic.start(session="a")


def test_somebody_is_there(home):
    """A connected notebook, though it does nothing, keeps the session."""
    session = hpcmagic.start(session="a", nodes=1, no_client_limit="0:01")
    time.sleep(3)
    assert session.run("rank").same() == 0
    session.stop()


def test_a_running_cell_is_not_idle(home):
    """A running cell keeps a session though its notebook is gone."""
    code = """
        import hpcmagic, os, threading
        s = hpcmagic.start(session="a", nodes=1, no_client_limit="0:01")
        threading.Timer(1, os._exit, (0,)).start()
        s.run("import time; time.sleep(5); done = True")
    """
    subprocess.run([sys.executable, "-c", dedent(code)], timeout=60)
    time.sleep(3)
    session = hpcmagic.start(session="a")
    assert session.run("done").same() is True
    session.stop()


def test_stuck_ranks_keep_no_session(home):
    """Ranks that wait for ever in MPI do not keep a session that nobody is connected to."""
    code = """
        import hpcmagic, os, time
        s = hpcmagic.start(session="a", nodes=2, no_client_limit="0:02")
        if not s.keeper_state().world:
            os._exit(1)
        try:
            s.run("if rank == 0: 1 / 0\\ncomm.Barrier()")
        except hpcmagic.RankError as error:
            assert error.waiting
            time.sleep(1)
            os._exit(0)
    """
    if subprocess.run([sys.executable, "-c", dedent(code)], timeout=60).returncode:
        pytest.skip("there is no MPI here")
    found = find(resolve({}), "a")
    assert all_gone([psutil.Process(int(found.job.job_id.partition("@")[0]))], 30)
    assert "no_client_limit" in hpcmagic.attach("a").ended


def test_ranks_end_by_themselves(home):
    """Ranks that leave can be started anew."""
    session = hpcmagic.start(nodes=2, session="a")
    everyone = processes(session)
    with pytest.raises(hpcmagic.SessionEnded, match="the ranks ended"):
        session.run("import os; os._exit(3)")
    assert all_gone(everyone[1:])
    session.restart()
    assert list(session.run("rank")) == [0, 1]
    session.stop()


@pytest.mark.parametrize(
    ("mpi", "environment", "words"),
    [
        ("mpiexec", {"PATH": "/nowhere"}, "no way to start the ranks with mpi = 'mpiexec'"),
        ("mpiexec", {"MPI4PY_LIBMPI": "/nowhere/libmpi.so"}, "no MPI"),
    ],
)
def test_no_mpi_library(home, monkeypatch, mpi, environment, words):
    """Where MPI is asked for and is not there, the error says so and how to mend it."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(hpcmagic.LaunchError, match=words) as caught:
        hpcmagic.start(nodes=2, session="a", mpi=mpi)
    assert len(str(caught.value).splitlines()) == 2
    assert "mpi" in caught.value.mend
    assert hpcmagic.sessions() == []


def test_without_mpi_library_by_default(home, monkeypatch, capsys):
    """Where nobody asked for MPI and it is not there, the ranks start without, and it is said."""
    monkeypatch.setenv("MPI4PY_LIBMPI", "/nowhere/libmpi.so")
    session = hpcmagic.start(nodes=2, session="a")
    assert session.run("comm is None").same() is True
    assert "no MPI" in capsys.readouterr().out
    session.stop()


@pytest.mark.parametrize("name", ["../x", "a b", "ended", "x" * 65, ".hidden"])
def test_malformed_name(home, name):
    """A session's name that could not be a directory's is refused."""
    with pytest.raises(hpcmagic.ProfileError, match="not a name"):
        hpcmagic.start(session=name, nodes=1)


def test_two_starts_at_once(home):
    """Two kernels that start one session at the same moment: one session, and both say what happened."""
    code = """
        import hpcmagic
        try:
            print("got", hpcmagic.start(session="a", nodes=2).run("rank").ranks)
        except hpcmagic.HpcMagicError as e:
            print("refused", e)
    """
    run = [sys.executable, "-c", dedent(code)]
    both = [subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    out = [process.communicate(timeout=60)[0].splitlines() for process in both]
    outcomes = sorted(lines[-1] if lines[-1].startswith("got") else lines[-2] for lines in out)
    assert outcomes[0] == "got (0, 1)"
    assert outcomes[1] == "got (0, 1)" or "another kernel" in outcomes[1]
    assert len(hpcmagic.sessions()) == 1
    hpcmagic.start(session="a").stop()


def test_notebook_that_nobody_sits_at(home):
    """Under nbclient the magics work, values are Out[n], and the session stops when the kernel exits."""
    cells = notebook(
        home,
        "%load_ext hpcmagic",
        "%%remote --nodes 2\nprint('hello', rank)\nrank * 10",
        "n = 3\nword = 'x'\nf = lambda r: r + 40",
        "%remote --ranks {n - 2} f'{rank} {{braces}} $n'",
        "%push n word",
        "%%remote --out got\nword * (n + rank)",
        "assert list(got) == ['xxx', 'xxxx']\n%pull word",
        "%remote --push f f(rank)",
        "%%remote --local\nseen = 'here too'",
        "assert seen == 'here too'\n%hpc log 0",
        "%hpc start --dry-run",
        "%hpc status",
        "before = _\nOut[2][1]",
    )
    shown = text_of(cells[1])
    assert "[0] hello 0\n[1] hello 1\n" in shown
    assert "2 ranks × " in shown
    assert "[0] 0\n[1] 10" in shown
    assert "'1 {braces} $n'" in text_of(cells[3])
    assert "[0] 40\n[1] 41" in text_of(cells[7])
    assert "rank-0.log" in text_of(cells[9])
    assert "hpcmagic.keeper" in text_of(cells[10])
    assert "ready" in text_of(cells[11])
    assert text_of(cells[12]) == "10"
    end = time.monotonic() + 10
    while hpcmagic.sessions() and time.monotonic() < end:
        time.sleep(0.1)
    assert hpcmagic.sessions() == []


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("%%remote --nodes 2\nx = 1\n1 / 0", "line 3:  1 / 0"),
        ("%%remote --nodse 2\n1", "Did you mean `--nodes`?"),
        ("%%remote --nodes 2\ndef (:", "No rank was bothered"),
        ("%%remote --nodes two\n1", "'two'"),
        ("%%remote --profile nope\n1", "no profile 'nope'"),
        ("%%remote 4\n1", "does not take '4'"),
        ("%push nope", "not defined here"),
        ("%hpc dance", "no verb 'dance'"),
        ("%hpc stop nope", "no session 'nope'"),
    ],
)
def test_failed_cell_raises(home, cell, words):
    """A failed remote cell raises, so that run-all stops there; our own errors are two lines without frames."""
    cells = notebook(home, "%load_ext hpcmagic", cell, fails=True)
    (error,) = [output for output in cells[1].outputs if output.output_type == "error"]
    assert words in "\n".join(error.traceback)
    assert "Traceback" not in "\n".join(error.traceback)
    assert len(error.traceback) <= 4


def test_keep(home):
    """--keep lets the session of an unattended notebook run on."""
    notebook(home, "%load_ext hpcmagic", "%%remote --nodes 2 --session kept --keep\nx = 5")
    session = hpcmagic.start(session="kept")
    assert session.run("x").same() == 5
    session.stop()


def test_renamed_notebook(home, monkeypatch):
    """A notebook that was renamed finds its session again."""
    path = Path(home, "plan.ipynb")
    path.write_text("{}")
    monkeypatch.setenv("JPY_SESSION_NAME", str(path))
    session = hpcmagic.start(nodes=1)
    assert session.name.startswith("plan-")
    renamed = path.rename(path.with_name("better.ipynb"))
    monkeypatch.setenv("JPY_SESSION_NAME", str(renamed))
    assert hpcmagic.start().name == session.name
    session.stop()


def test_tokens_stay_here(home, monkeypatch):
    """The hub's tokens do not reach the ranks' environment."""
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")
    session = hpcmagic.start(nodes=1, session="a")
    assert session.run("import os; 'JUPYTERHUB_API_TOKEN' in os.environ").same() is False
    session.stop()


def test_directory_removed(home):
    """A session whose directory somebody removed ends: nobody could find it again."""
    session = hpcmagic.start(nodes=2, session="a")
    everyone = processes(session)
    deadline = time.monotonic() + 10
    while session.directory.path.exists():  # the keeper may write into it meanwhile
        shutil.rmtree(session.directory.path, ignore_errors=True)
        assert time.monotonic() < deadline
    assert all_gone(everyone, 30)
    with pytest.raises(hpcmagic.SessionEnded, match="its directory is gone"):
        session.run("1")
    assert session.status().state == "ended"


def test_interrupt_is_ones_own(home):
    """Ctrl-C in one notebook leaves the running cell of another alone, and withdraws only what waits behind it."""
    one, two = hpcmagic.start(nodes=1, session="a"), hpcmagic.start(session="a")
    long = threading.Thread(target=one.run, args=("import time; time.sleep(3); ended = True",))
    long.start()
    time.sleep(1)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(hpcmagic.RankError, match="before the cell began"):
        two.run("two_ran = True")
    long.join()
    assert one.run("ended, 'two_ran' in dir()").same() == (True, False)
    two.control.close()
    one.stop()


def test_children_of_ranks_end(home):
    """What ranks forked, or started in sessions of their own, does not outlive the session."""
    session = hpcmagic.start(nodes=1, session="a")
    source = "import subprocess\n[subprocess.Popen(['sleep', '300'], start_new_session=new).pid for new in (0, 1)]"
    children = [psutil.Process(pid) for pid in session.run(source).same()]
    session.stop()
    assert all_gone(children)


def test_no_session_within_a_session(home):
    """A rank starts no sessions of its own."""
    with (
        pytest.raises(hpcmagic.RankError, match="rank of a session"),
        hpcmagic.start(nodes=1, session="a") as session,
    ):
        session.run("import hpcmagic; hpcmagic.start(session='b')")
    assert hpcmagic.sessions() == []
