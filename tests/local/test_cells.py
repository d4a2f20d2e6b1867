"""Cells on four local ranks: values, output, errors, interrupts, values there and back."""

import os
import signal
import threading
import time

import pytest

import hpcmagic
from hpcmagic.wire.messages import OUTPUT_LIMIT_NBYTES, RunCell

ALL = (0, 1, 2, 3)


def raised(session, source, **kwargs):
    """The RankError of a cell."""
    with pytest.raises(hpcmagic.RankError) as caught:
        session.run(source, **kwargs)
    return caught.value


def test_last_value_per_rank(session):
    """The last expression of a cell gives one value a rank, indexed by rank."""
    result = session.run("rank * 10")
    assert list(result) == [0, 10, 20, 30]
    assert session.run("rank", ranks="0,2-3").ranks == (0, 2, 3)
    assert session.run("rank", ranks=[1])[1] == 1
    assert session.run("x = 1") is None
    assert session.run("x;") is None


def test_builtins(session):
    """rank, size, comm are there on every rank; the user's own assignment wins and stays."""
    assert list(session.run("(rank, size)")) == [(r, 4) for r in ALL]
    session.run("size = 'mine'")
    assert session.run("size").same() == "mine"
    session.run("del size")
    assert session.run("size").same() == 4


def test_one_world(session):
    """The ranks are one MPI world where there is MPI; comm is None where there is none."""
    world = session.keeper_state().world
    expected = 6 if world else None
    assert session.run("comm.allreduce(rank) if comm else 'none'").same() == (expected or "none")


def test_output_folded(session, capsys, unhurried):
    """What ranks print comes in rank order, equal lines once; displays carry their rank."""
    session.run("print('mine', rank)\nprint('same')")
    assert capsys.readouterr().out == "[0] mine 0\n[1] mine 1\n[2] mine 2\n[3] mine 3\n[0-3] same\n"
    session.run("import sys; print('oops', file=sys.stderr)")
    assert capsys.readouterr().err == "[0-3] oops\n"
    session.run("display({'text/plain': 'shown'}, raw=True)", ranks=[2])
    assert capsys.readouterr().out == "[2]\nshown\n"


def test_output_of_c_code(session, capfd, unhurried):
    """What C code and subprocesses print appears in the cell too."""
    session.run("import ctypes, os; ctypes.CDLL(None).puts(b'from C'); os.system('echo from a shell');")
    out = capfd.readouterr().out
    assert "[0-3] from C\n" in out
    assert "[0-3] from a shell\n" in out


def test_much_output(session, capsys):
    """A rank that prints without end leaves at most 1 MB in the cell; the rest is in its log."""
    session.run("for i in range(300): print('x' * 9999)\nprint('the end')", ranks=[1])
    assert len(capsys.readouterr().out) <= 1.1 * OUTPUT_LIMIT_NBYTES
    assert "the end" in session.log(1)


def test_large_values_stay(session):
    """A value above 10 MB, or one that cannot be pickled, stays on its rank and is described."""
    shown = repr(session.run("import numpy; numpy.zeros((2, 1_000_000))", ranks=[0]))
    assert "numpy.ndarray, shape (2, 1000000), 16 MB" in shown
    assert "%pull" in shown
    assert "cannot be pickled" in repr(session.run("import threading; threading.Lock()"))


def test_errors_grouped(session):
    """One short traceback per distinct error, with its ranks and the cell's own line numbers."""
    error = raised(session, "def f(n):\n    return 1 / n\n\nif rank:\n    f(0)\nelse:\n    {}['k']")
    assert error.ranks == (0, 1, 2, 3)
    first, second = error.text.split("ZeroDivisionError")
    assert first.startswith("KeyError on rank 0: 'k'")
    assert "line 7" in first
    assert second.startswith(" on ranks 1-3: division by zero")
    assert "line 5" in second
    assert "line 2 in f:  return 1 / n" in second
    assert "site-packages" not in error.text
    assert "site-packages" in error.full


def test_function_of_an_earlier_cell(session):
    """A traceback names the cell in which a failing function was written."""
    session.run("def g():\n    raise ValueError('deep')")
    text = raised(session, "\ng()").text
    defined, called = session._cells - 1, session._cells
    assert f"cell {called}, line 2:  g()" in text
    assert f"cell {defined}, line 2 in g:" in text


def test_two_cells_of_one_name(session):
    """Each kernel counts its cells from 1: a function of an earlier one is shown with its own lines, not with later ones."""
    for source in ("0", "def h():\n    return 1 / 0", "'not'\n'these'"):
        session.run_cell(RunCell(source, "cell 3"))
    error = raised(session, "h()")
    assert "cell 3, line 2 in h:  return 1 / 0" in error.text
    assert '"<cell 3>", line 2, in h' in error.full


def test_run_of_a_file(session, tmp_path):
    """What a file of `%run` raises is the cell's error, and what it had bound before is there."""
    (tmp_path / "script.py").write_text("bound = 5\nimport sys\nsys.exit(3) if rank else 1 / 0")
    error = raised(session, f"%run {tmp_path}/script.py")
    assert "ZeroDivisionError on rank 0" in error.text
    assert "script.py:3:  sys.exit(3) if rank else 1 / 0" in error.text
    assert "SystemExit on ranks 1-3: 3" in error.text
    assert session.run("bound").same() == 5


def test_syntax_error_bothers_no_rank(session):
    """A syntax error is found before any rank is bothered."""
    session.run("touched = 0")
    with pytest.raises(hpcmagic.CellError, match="line 2") as caught:
        session.run("touched = 1\ndef (:")
    assert not isinstance(caught.value, hpcmagic.RankError)
    assert session.run("touched").same() == 0


@pytest.mark.parametrize("ranks", ["4", "0-9", "x", "-1", [7], [], "3-1", 1.5])
def test_ranks_out_of_range(session, ranks):
    """Ranks that are not there, or not ranks, are a two-line error."""
    with pytest.raises(hpcmagic.ProfileError) as caught:
        session.run("rank", ranks=ranks)
    assert len(str(caught.value).splitlines()) == 2


def test_await(session):
    """A top-level await works on the ranks."""
    source = "import asyncio\nawait asyncio.sleep(0.05)\nrank + 1"
    assert list(session.run(source)) == [1, 2, 3, 4]
    assert list(session.run("rank")) == [0, 1, 2, 3]


def test_ipython_syntax(session, capsys, unhurried):
    """IPython's magics and shell escapes work on the ranks."""
    session.run("%env HPCMAGIC_SEEN=yes")
    session.run("!echo $HPCMAGIC_SEEN")
    assert "[0-3] yes" in capsys.readouterr().out


def test_help_of_ipython(session, capsys, unhurried):
    """`x?` on the ranks shows what it does here."""
    session.run("len?")
    assert "Return the number of items" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "silent"),
    [("1;", True), ("1; # hush", True), ("1 # note;", False), ("';'", False), ("%time 1;", True)],
)
def test_semicolon(session, source, silent):
    """A semicolon behind the last line keeps the value away, as here: no other one does."""
    assert (session.run(source) is None) == silent


def test_value_that_cannot_display_itself(session, capsys, unhurried):
    """What displaying a value raises is shown, and the cell goes on; a value without a repr spoils no display."""
    session.run("class W:\n    def _repr_html_(self): raise ValueError('no page')\ndisplay(W())")
    assert "[0-3] ValueError: no page" in capsys.readouterr().err
    value = session.run("class R:\n    def __repr__(self): raise ValueError\nR()")
    assert repr(value) == "[0-3] <R, its repr() raised ValueError>"


def test_input_raises(session):
    """input() on a rank raises at once: nobody sits there."""
    assert "input(" in raised(session, "input('name? ')").text


def test_push_and_pull(session):
    """Values go to all ranks or some, and come back one a rank; arrays arrive writable."""
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(12.0).reshape(3, 4)[:, ::2]
    session.push(a=array, b={"k": [1]})
    session.push(ranks=[2], b="other")
    session.run("a += rank")
    back, b = session.pull("a", "b")
    assert all((back[r] == array + r).all() and back[r].flags.writeable for r in ALL)
    assert [b[r] for r in ALL] == [{"k": [1]}, {"k": [1]}, "other", {"k": [1]}]
    assert session.pull("b", ranks="1").same() == {"k": [1]}


def test_push_function_and_class(session):
    """Functions and classes of the notebook's own travel by value."""

    class Local:
        def twice(self, n):
            return 2 * n

    session.push(f=lambda n: Local().twice(n) + 1)
    assert list(session.run("f(rank)")) == [1, 3, 5, 7]


def test_push_of_what_cannot_travel(session):
    """The path to the culprit inside the object is named, and nothing is bound."""
    with pytest.raises(hpcmagic.DataError, match=r"`model\['parts'\]\[1\]` is a _thread.lock"):
        session.push(model={"parts": [1, threading.Lock()]})
    assert "model" in raised(session, "model").text


def test_pull_of_unknown_name(session):
    """A name that ranks do not have is an error that names the ranks."""
    session.push(ranks=[0], only_here=1)
    error = raised_by_pull(session, "only_here")
    assert error.ranks == (1, 2, 3)


def raised_by_pull(session, name):
    with pytest.raises(hpcmagic.RankError, match=name) as caught:
        session.pull(name)
    return caught.value


def interrupt_after(seconds):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_interrupt(session, capsys):
    """Ctrl-C raises KeyboardInterrupt on the ranks; the session lives and keeps its variables."""
    session.run("kept = rank")
    interrupt_after(1)
    begun = time.monotonic()
    error = raised(session, "import time\nprint('begun')\ntime.sleep(60)")
    assert time.monotonic() - begun < 10
    assert error.text.startswith("KeyboardInterrupt on all 4 ranks")
    assert "begun" in capsys.readouterr().out
    assert list(session.run("kept")) == [0, 1, 2, 3]


def test_interrupt_of_await(session):
    """Ctrl-C ends a cell that awaits."""
    interrupt_after(1)
    assert "KeyboardInterrupt" in raised(session, "import asyncio\nawait asyncio.sleep(60)").text
    assert session.run("1").same() == 1


def test_interrupt_twice_lets_go(session):
    """Twice: the cell lets go and says so; the ranks run on and answer the next cell when they are done."""
    interrupt_after(0.5)
    interrupt_after(1.5)
    source = "import time\nend = time.time() + 4\nwhile time.time() < end:\n    try: time.sleep(9)\n"
    with pytest.raises(hpcmagic.CellError, match=r"Let go of cell \d+; ranks 0-3 run on"):
        session.run(source + "    except KeyboardInterrupt: pass")
    assert session.run("2").same() == 2


def test_timeout(session):
    """A cell over its timeout is interrupted, and the ranks are free again."""
    with pytest.raises(hpcmagic.CellError, match="--timeout"):
        session.run("import time; time.sleep(60)", timeout=1)
    assert session.run("3").same() == 3


def test_timeout_counts_from_the_begin(session):
    """The time that a cell waits behind another does not count; that of the cell itself does."""
    earlier = session.run("import time; time.sleep(2.5)", block=False)
    assert session.run("time.sleep(0.5); rank", timeout=1).ranks == (0, 1, 2, 3)
    assert earlier.state == "done"
    earlier = session.run("time.sleep(2.5)", block=False)
    handle = session.run("time.sleep(60)", timeout=1, block=False)
    assert handle.wait(15)
    assert (earlier.state, handle.state) == ("done", "interrupted")
    with pytest.raises(hpcmagic.CellError, match="ran longer than its --timeout of 1 s on ranks 0-3"):
        handle.result()


def test_no_reply_is_lost(session):
    """A thousand cells give a thousand replies: none waits for an event that somebody else has taken."""
    for _ in range(1000):
        session.run("", timeout=30)


def interrupt_all(session):
    for cell in session._own.live():
        session.interrupt(cell)


def test_interrupts_lose_no_reply(session):
    """Interrupts that come at the very end of cells lose no reply."""
    for wait in range(40):
        timer = threading.Timer(0.002 + wait % 8 * 0.001, interrupt_all, (session,))
        timer.start()
        try:
            session.run("import time; time.sleep(0.005)", timeout=30)
        except hpcmagic.RankError as error:
            assert "KeyboardInterrupt" in error.text  # noqa: PT017
        timer.join()
    assert session.run("4").same() == 4


def test_stock_client(session):
    """s.client is a whole ipyparallel client: views, load balancing, stdout, errors."""
    view = session.client[:]
    assert view.apply_sync(lambda n: n + 1, 1) == [2] * 4
    result = view.execute("print('stock'); 6 * 7", silent=False, block=True)
    assert result.stdout == ["stock\n"] * 4
    assert session.client.load_balanced_view().map_sync(lambda n: n * n, range(8)) == [n * n for n in range(8)]


def test_prints_between_cells(session):
    """What a thread prints while no cell runs is in the rank's log."""
    session.run("import threading\nthreading.Timer(0.5, print, ('between the cells',)).start()", ranks=[3])
    time.sleep(1.5)
    assert "between the cells" in session.log(3)


def test_exit_has_no_effect(session, capsys):
    """exit() in a cell would take all ranks along: it says so and does nothing."""
    session.run("exit()")
    assert "no effect" in capsys.readouterr().err
    assert session.run("5").same() == 5


def test_text_that_cannot_travel(session, capsys):
    """Text that is no Unicode is shown escaped, and loses nothing around it."""
    session.run("print('before \\ud800 after')")
    assert "before \\ud800 after" in capsys.readouterr().out


def test_recursion_in_few_lines(session):
    """A recursion is one line with its depth, not a thousand."""
    text = raised(session, "def f(): f()\nf()", ranks=[0]).text
    assert text.startswith("RecursionError")
    assert len(text.splitlines()) < 6
