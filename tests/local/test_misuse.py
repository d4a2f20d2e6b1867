"""What a user may do wrong, or at an odd moment, with real ranks: it is told in two lines, and the session lives on."""

import re
import sys
import threading

import cloudpickle
import pytest
from faults import eventually, in_thread, interrupt_after
from two_lines import two_lines

import hpcmagic
from hpcmagic.notebook import following
from notebooks import shown_by


def test_client_closed(own_session):
    """A client that its user has closed is made anew for the next cell; not while cells are under way over it."""
    session = own_session(nodes=4)
    handle = session.run("import time; time.sleep(1); rank", block=False)
    with pytest.raises(hpcmagic.ChannelError) as error:
        session.client.close()
    assert "4 requests" in two_lines(error).message
    assert handle.result().ranks == (0, 1, 2, 3)
    with session.client as client:
        assert client.ids == [0, 1, 2, 3]
    client.close()
    assert session.run("rank").ranks == (0, 1, 2, 3)
    assert session.client is not client
    assert session.client[:].pull("rank", block=True) == [0, 1, 2, 3]
    session.client.close()
    assert list(session.map(abs, [-1, 2])) == [1, 2]


@pytest.mark.parametrize(
    ("what", "arguments", "instead"),
    [
        ("shutdown", (), "session.stop()"),
        ("send_signal", (2,), "session.restart()"),
        ("become_dask", (), "keys"),
        ("become_distributed", (), "keys"),
        ("stop_dask", (), "keys"),
    ],
)
def test_not_for_a_session(session, what, arguments, instead):
    """What would end the ranks, or open a door beside the encrypted one, is refused with what to use."""
    with pytest.raises(hpcmagic.ChannelError) as error:
        getattr(session.client, what)(*arguments)
    assert instead in two_lines(error).mend
    with pytest.raises(hpcmagic.ChannelError):
        session.client[:].shutdown()
    assert session.run("rank").ranks == (0, 1, 2, 3)


def power(base, exponent=1):
    """A function of the test's."""
    return base**exponent


def test_call(session, capsys):
    """A function is called once on every rank, with its arguments; what it gives, prints and raises is told by rank."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        assert session.call(power, 2, exponent=5).same() == 32
        assert list(session.call(lambda: rank * 10)) == [0, 10, 20, 30]  # noqa: F821  # a rank's own name
        assert session.call(lambda: comm.allreduce(rank)).same() == 6  # noqa: F821
        assert list(session.call(print, "hello")) == [None] * 4
        assert capsys.readouterr().out == "[0-3] hello\n"
        with pytest.raises(hpcmagic.RankError) as error:
            session.call(lambda: 1 / (rank - 2))  # noqa: F821
        assert error.value.text.startswith("ZeroDivisionError on rank 2: division by zero")
        big = session.call(bytes, 20_000_000)
        assert "stays on its rank" in repr(big)
        for what, said in ((5, "given 5 to call"), (threading.Lock().acquire, "cannot be pickled")):
            with pytest.raises(hpcmagic.DataError) as error:
                session.call(what)
            assert said in two_lines(error).message
        with pytest.raises(hpcmagic.DataError, match=r"arguments\[0\]\[1\]"):
            session.call(power, 2, threading.Lock())
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_lines_of_the_notebook(home):
    """What a notebook's function raises on a rank is shown with the notebook's cell and line, by `call` and `map`."""
    *_, called, mapped = shown_by(
        home,
        "%load_ext hpcmagic\nimport hpcmagic\ns = hpcmagic.start(nodes=2)",
        "def f(x):\n    return 1 / x",
        "try:\n    s.call(f, 0)\nexcept hpcmagic.RankError as error:\n    print(error)\n",
        "try:\n    s.map(f, [1, 0])\nexcept hpcmagic.RankError as error:\n    print(error)\n",
    )
    assert called == "ZeroDivisionError on all 2 ranks: division by zero\n  cell 2, line 2 in f:  return 1 / x\n"
    assert re.fullmatch(
        r"ZeroDivisionError on rank \d: division by zero \(item 1\)\n  cell 2, line 2 in f:  return 1 / x\n", mapped
    )


def test_ctrl_c_while_a_picture_is_waited_for(session):
    """Ctrl-C while the notebook waits for a simulation is told in two lines; the simulation runs on."""
    source = "from hpcmagic import steer\nlive = steer.live(comm)\nimport time\nfor _ in live.steps(10000):\n    time.sleep(0.01)"
    handle = session.run(source, block=False)
    interrupt_after(1.0)
    with pytest.raises(hpcmagic.CellError) as error:
        session.steer.field("T")
    assert "Stopped waiting for the simulation of session module" in two_lines(error).message
    assert not handle.done()
    with pytest.raises(hpcmagic.SteerError) as error:
        session.steer.set(5)
    assert two_lines(error).message == "5 has no name."
    with pytest.raises(hpcmagic.SteerError, match="dt is no parameter"):
        session.steer.set({"dt": 5})
    session.steer.stop()
    handle.result(timeout=20)
    session.steer.close()


def test_behind_a_paused_simulation(session, lines, monkeypatch):
    """A cell that waits behind a simulation which somebody has paused says so, with what lets both go on."""
    monkeypatch.setattr(following, "STANDS_S", 0.3)
    monkeypatch.setattr(following, "LOOK_S", 0.2)
    source = "from hpcmagic import steer\nlive = steer.live(comm)\nfor _ in live.steps(10**9): pass"
    handle = session.run(source, block=False)
    session.steer.pause()
    waits = in_thread(lambda: session.run("rank"))
    said = f"waits behind {handle.name}, whose simulation is paused → `%steer resume`"
    try:
        eventually(lambda: any(said in line for line in lines))
    finally:
        session.steer.resume()
        eventually(lambda: "whose simulation is paused" not in lines[-1])
        session.steer.stop()
    assert waits().ranks == handle.ranks == (0, 1, 2, 3)
    session.steer.close()


def test_call_that_waits_for_ever(own_session, lines):
    """While ranks wait for one that has raised, the line names it; Ctrl-C ends the call with its error."""
    session = own_session(nodes=2)

    def fails():
        if rank == 0:  # noqa: F821
            raise ValueError("mine")
        comm.Barrier()  # noqa: F821

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    interrupt_after(3.0)
    with pytest.raises(hpcmagic.RankError) as error:
        session.call(fails)
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert error.value.text.startswith("ValueError on rank 0: mine")
    assert any("waiting for rank 1 (rank 0 raised ValueError)" in line for line in lines)
    session.restart()
    assert session.run("rank").ranks == (0, 1)
