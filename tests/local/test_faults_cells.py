"""Cells that do their rank harm, and Ctrl-C where it is hard to hear: what is said, and that the next cell runs.

docs/faults.md lists them. Two ranks serve all tests here that leave them alive.
"""

import asyncio
import contextlib
import re
import resource
import signal
import time

import psutil
import pytest
from faults import (
    SOON_S,
    all_gone,
    everyone,
    held_without_ranks,
    interrupt_after,
    lines_by_rank,
    raised,
    soon,
)

import hpcmagic
from hpcmagic.notebook import interrupting

DONE = None  # the cell ends well
FOREVER = "import time\nwhile True: time.sleep(0.05)"


@pytest.fixture(scope="module")
def pair(session_dir):
    """Two ranks for all tests of this module."""
    held = hpcmagic.start(nodes=2, launcher="local", session="pair", session_dir=str(session_dir / "d"))
    yield held
    held.stop()


@pytest.fixture
def mended(pair):
    """The two ranks, which the test leaves in no state to go on."""
    yield pair
    pair.restart()


@pytest.fixture
def mpi(pair):
    """Whether there is MPI: a test about it is left out where there is none."""
    if not pair.keeper_state().world:
        pytest.skip("there is no MPI here")


# ---- what a cell does


HARM = {
    "sys.exit": ("import sys; sys.exit()", "SystemExit on all 2 ranks"),
    "exit": ("exit()", DONE),
    "SystemExit in str": ("class E(Exception):\n  def __str__(self): raise SystemExit\nraise E", "E on all 2 ranks"),
    "SystemExit in pickling": (
        "class V:\n  def __reduce__(self): raise SystemExit\nV()",
        "SystemExit on all 2 ranks",
    ),
    "SyntaxError of anything": ("raise SyntaxError(lambda: 1)", "SyntaxError on all 2 ranks:"),
    "str() of the cell's own class": (
        "class S(str): pass\nclass E(Exception):\n  def __str__(self): return S('hi')\nraise E",
        "E on all 2 ranks: hi",
    ),
    "a display of anything": ("display({'text/plain': lambda: 1}, raw=True)\nimport time; time.sleep(0.5)", DONE),
    "a display of the cell's own class": ("class S(str): pass\ndisplay({'text/plain': S('x')}, raw=True)", DONE),
    "1 and 2 closed": ("import os; os.close(1); os.close(2)", DONE),
    "sys.stdout replaced": ("import io, sys; sys.stdout = io.StringIO(); sys.stderr = None", DONE),
    "sys.stdout deleted": ("import sys; del sys.stdout", "AttributeError on all 2 ranks"),
    "directory removed": ("import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)", DONE),
    "sleep replaced": ("import time; real = time.sleep; time.sleep = None", DONE),
    "SIGINT's handler replaced": ("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);", DONE),
}


@pytest.mark.parametrize("harm", HARM)
def test_harm(pair, capfd, harm):
    """Whatever a cell does to its process and to the standard streams, the next cell runs and prints."""
    source, words = HARM[harm]
    if words is DONE:
        pair.run(source)
    else:
        assert raised(pair, source).text.startswith(words)
    capfd.readouterr()
    try:
        assert list(pair.run("import os\nprint('printed')\nos.system('echo from a child')\nrank")) == [0, 1]
        lines = lines_by_rank(capfd.readouterr().out)
        assert [lines[rank][0] for rank in (0, 1)] == ["printed"] * 2
        assert [lines[rank][-1] for rank in (0, 1)] == [
            "from a child"
        ] * 2  # before, the shell may miss its directory
    finally:
        pair.run("import os, signal, time\nos.chdir('/')\ntime.sleep = globals().pop('real', time.sleep)")


ODD = {
    "nbytes": "class V:\n  def nbytes(self): pass\nV()",
    "len": "class V(dict):\n  def __len__(self): raise ValueError\n  def __reduce__(self): raise TypeError\nV()",
    "SystemExit": "class V:\n  @property\n  def nbytes(self): raise SystemExit\nV()",
}


@pytest.mark.parametrize("source", ODD.values(), ids=ODD)
def test_odd_value(pair, capsys, source):
    """Whatever is odd about a cell's value, what the cell has printed is shown."""
    with contextlib.suppress(hpcmagic.RankError):
        pair.run(f"print('printed')\n{source}")
    assert "printed" in capsys.readouterr().out


def test_builtins_deleted(mended):
    """A builtin that a cell has deleted is missed by later cells, in words; a restart brings it back."""
    mended.run("import builtins; del builtins.print, builtins.rank")
    assert raised(mended, "print(1)").text.startswith("NameError on all 2 ranks: name 'print' is not defined")
    mended.restart()
    mended.run("print(rank)")


def test_no_memory(mended):
    """A rank that gets no more memory raises MemoryError; the session lives, and so do its variables."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    mended.run(
        f"""
        import os, resource
        used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), {hard}))
    """.replace("\n        ", "\n")
    )
    error = raised(mended, "kept = rank\nhog = []\nwhile True: hog.append(bytearray(20 << 20))")
    assert error.text.startswith("MemoryError on all 2 ranks")
    assert "line 3" in error.text
    assert list(mended.run("del hog; kept")) == [0, 1]


@pytest.mark.parametrize("end", ["os._exit(0)", "pass", "1 / 0", "sys.exit()"])
def test_fork(pair, capsys, end):
    """A child that a cell forks, however it ends, answers for nobody: one reply a rank, and no second rank."""
    source = f"import os, sys\npid = os.fork()\nif pid == 0:\n    {end}\nelse: os.waitpid(pid, 0)\nprint('one')\nrank"
    assert list(pair.run(source)) == [0, 1]
    times = 2 if end == "pass" else 1  # a child that runs on prints, too
    assert lines_by_rank(capsys.readouterr().out) == {0: ["one"] * times, 1: ["one"] * times}
    assert len(set(pair.run("import os; os.getpid()"))) == 2


def test_forked_children_print(pair, capsys):
    """What children of a cell print is shown, forked ones too, and the cell may be printing meanwhile."""
    pair.run(
        """
import multiprocessing
def work(number): print(f"child {number}", flush=True)
children = [multiprocessing.get_context("fork").Process(target=work, args=(n,)) for n in range(3)]
for child in children:
    child.start()
    child.join()
print("parent")
""",
        ranks=[0],
    )
    assert sorted(capsys.readouterr().out.splitlines()) == ["[0] child 0", "[0] child 1", "[0] child 2", "[0] parent"]


def test_thread_prints_for_ever(pair, capsys, unhurried):
    """A thread that prints without end disturbs no later cell, and what it prints while none runs is in the log."""
    pair.run("""
import threading, time
over = False
def noise():
    while not over:
        print("noise")
        time.sleep(0.001)
threading.Thread(target=noise).start()
""")
    time.sleep(0.5)
    with soon():
        assert list(pair.run("rank + 1")) == [1, 2]
    pair.run("over = True")
    time.sleep(0.1)
    capsys.readouterr()
    pair.run("print('quiet')")
    assert capsys.readouterr().out == "[0-1] quiet\n"
    assert "noise" in pair.log(0)


def test_deaf_to_sigterm(own_session):
    """Ranks that ignore SIGTERM are ended nevertheless."""
    session = own_session(nodes=2)
    all_of_it = everyone(session)
    session.run("import faulthandler, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);")
    with soon():
        session.stop()
    assert all_gone(all_of_it)


# ---- Ctrl-C


def test_interrupt_of_a_loop(pair):
    """Ctrl-C ends a loop in Python at once, with the line where it was."""
    interrupt_after(0.7)
    with soon(5):
        error = raised(pair, "n = 0\nwhile True: n += 1")
    assert error.text.startswith("KeyboardInterrupt on all 2 ranks")
    assert "line 2:  while True: n += 1" in error.text


def test_interrupt_in_a_barrier(mended, mpi):
    """A rank in an MPI call cannot hear Ctrl-C: it is named with its line, and that it waits for ever is said."""
    interrupt_after(1)
    with soon():
        error = raised(mended, f"if rank == 0:\n    comm.Barrier()\nelse: exec({FOREVER!r})")
    number = mended.cells[-1].name
    assert error.text.startswith("KeyboardInterrupt on rank 1")
    assert f"Rank 0 waits in comm.Barrier(), {number}, line 2: for ever." in error.text
    assert error.waiting == {0: f"comm.Barrier(), {number}, line 2"}
    refused = raised(mended, "1", hpcmagic.CellError)
    assert "would never come to this cell" in refused.message
    assert mended.run("'free'", ranks="1")[1] == "free"


def test_interrupt_in_c_code(pair, capsys, monkeypatch):
    """C code that holds the interpreter hears nothing and answers nobody; within 5 s its line is said all the same."""
    source = """import time
begun = time.perf_counter(); sum(range(10**7)); n = int(10**7 * 9 / (time.perf_counter() - begun))
sum(range(n))
time.sleep(60)"""
    asked, said = [], []
    interrupt, not_stopped = pair.interrupt, interrupting.not_stopped
    monkeypatch.setattr(pair, "interrupt", lambda cell: (asked.append(time.monotonic()), interrupt(cell)))
    monkeypatch.setattr(
        interrupting, "not_stopped", lambda cell: (not_stopped(cell), said.append(time.monotonic()))[0]
    )
    interrupt_after(2)
    error = raised(pair, source, ranks=[1])
    number = pair.cells[-1].name
    where = rf"Not stopped: rank 1 is at {number}, line 3: (in C code that holds the interpreter|sum\(range\(n\)\))\."
    assert re.search(where, capsys.readouterr().out)  # now and then such code may let others in
    assert said[0] - asked[0] < 5
    assert error.text.startswith("KeyboardInterrupt on rank 1")
    assert list(pair.run("rank")) == [0, 1]


STUBBORN = """import time
end = time.monotonic() + 7
while time.monotonic() < end:
    try: time.sleep(1)
    except KeyboardInterrupt: pass
rank + 10"""


def test_interrupt_twice(pair, session_dir):
    """Twice: the cell is let go of, and its result is there for whoever asks for it with the line that was said."""
    interrupt_after(0.5, 1.5)
    with soon(6):
        error = raised(pair, STUBBORN, hpcmagic.CellError)
    place = len(pair.cells) - 1
    assert f"Let go of {pair.cells[place].name}; ranks 0-1 run on." in error.message
    assert f"`hpcmagic.attach('pair').cells[{place}].result()` comes back to it" in error.mend
    other = hpcmagic.attach("pair", session_dir=str(session_dir / "d"))
    assert list(other.cells[place].result(SOON_S)) == [10, 11]
    other.control.close()


WAITS = {
    "result": lambda handle: handle.result(),
    "wait": lambda handle: handle.wait(),
    "await": lambda handle: asyncio.run(awaited(handle)),
}


async def awaited(handle):
    return await handle


@pytest.mark.parametrize("waits", WAITS.values(), ids=WAITS)
def test_interrupt_of_a_handle(pair, capsys, waits):
    """Ctrl-C while a handle is waited for interrupts its ranks, and raises what the cell then ends with."""
    before = signal.getsignal(signal.SIGINT)
    handle = pair.run(FOREVER, block=False)
    interrupt_after(0.7)
    with soon(8), pytest.raises(hpcmagic.RankError, match="KeyboardInterrupt on all 2 ranks"):
        waits(handle)
    assert handle.state == "interrupted"
    assert "Interrupting the ranks" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("waits", WAITS.values(), ids=WAITS)
def test_interrupt_of_a_handle_twice(pair, capsys, waits):
    """Ranks that do not stop are named, and let go of at the second Ctrl-C; the cell runs on."""
    handle = pair.run(STUBBORN, block=False)
    interrupt_after(0.5, 5.5)
    with soon(10), pytest.raises(hpcmagic.CellError, match=r"Let go of cell \d+; ranks 0-1 run on"):
        waits(handle)
    assert re.search(r"Not stopped: ranks 0-1 are at cell \d+, line \d: ", capsys.readouterr().out)
    assert list(handle.result(SOON_S)) == [10, 11]


def test_children_of_a_killed_rank(own_session):
    """What a rank has started is ended with it, also when the rank is killed."""
    session = own_session(nodes=2)
    children = [
        psutil.Process(pid) for pid in session.run("import subprocess\nsubprocess.Popen(['sleep', '300']).pid")
    ]
    all_of_it = everyone(session)
    raised(
        session, "import os\nif rank: os.kill(os.getpid(), 9)\nelse: comm and comm.Barrier()", hpcmagic.SessionEnded
    )
    assert held_without_ranks(session, [*children, *all_of_it])
