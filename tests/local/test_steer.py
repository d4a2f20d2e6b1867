"""Simulations that are watched and steered from here while they run on real ranks, and what can go wrong with them.

docs/faults.md lists the faults. Four ranks serve all tests that leave them alive.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from faults import SOON_S, eventually, in_thread, interrupt_after, raised, soon
from two_lines import two_lines

import hpcmagic
from hpcmagic import steer as alone
from hpcmagic.errors import SessionEnded, SteerError
from hpcmagic.wire import looks
from hpcmagic.wire.bulk import Invitation, connect
from hpcmagic.wire.moving import run_one

NAMED_S = 5.0  # within which a rank that has left is named
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

SCRIPT = """
import hashlib, sys, time
import numpy as np
from hpcmagic import steer

live = steer.live(comm)
u, total = np.linspace(0.0, 1.0, 64), hashlib.sha256()
for step in live.steps({steps}):
    dt = live.param("dt", 1e-3, min=0.0, max=1e-2)
    kick = live.param("kick", 1)
    u = u + dt * (np.roll(u, 1) - 2 * u + np.roll(u, -1)) + 1e-3 * kick
    total.update(u.tobytes() + repr((step, dt, kick)).encode())
    time.sleep({sleep})
    live.publish(mean=float(u.mean()), twice=2 * step)
    live.field("u", u, box=(slice(0, 64),) if rank == 0 else (slice(64 * rank, 64 * rank + 64),))
live.publish(last=float(u.sum()))
(step, total.hexdigest())
"""
HEALTHY = SCRIPT.format(steps=20, sleep=0.0)


def simulation(steps=100_000, sleep=0.002):
    """Source of one whose ranks give the last step, and a digest of all that they saw."""
    return SCRIPT.format(steps=steps, sleep=sleep)


@contextmanager
def running(session, source, **options):
    """Let a cell run meanwhile; it is cancelled if it is not over."""
    handle = session.run(source, block=False, **options)
    try:
        yield handle
    finally:
        if not handle.done():
            handle.cancel()
            with pytest.raises(hpcmagic.HpcMagicError):
                handle.result(timeout=SOON_S)


@pytest.fixture(autouse=True)
def place(request, tmp_path, monkeypatch):
    """Have the ranks work in a directory of the test's own: logs come there."""
    monkeypatch.chdir(tmp_path)
    if "session" in request.fixturenames:
        request.getfixturevalue("session").run(f"import os; os.chdir({str(tmp_path)!r})")
    yield tmp_path
    if "session" in request.fixturenames:
        request.getfixturevalue("session").steer.close()


def logs(place):
    """The steering logs there."""
    return sorted(place.glob("steering-*.jsonl"))


def works(session):
    """A cell, and another simulation, run to their ends and can be watched."""
    assert session.run("6 * 7", timeout=SOON_S).same() == 42
    assert session.run(HEALTHY, timeout=SOON_S).same()[0] == 19
    assert len(session.steer.series("mean")[0]) == 20


def mpiexec(program, ranks, place):
    """What a script says under plain mpiexec, the words of each rank in order."""
    script = place / "script.py"
    script.write_text(program)
    command = ["mpiexec", "--oversubscribe", "-n", str(ranks), sys.executable, str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=place, env={**os.environ, **AS_ROOT}, check=False
    )
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def as_program(source):
    """The same simulation as a script of its own."""
    return textwrap.dedent(
        f"""
        from mpi4py import MPI
        comm = MPI.COMM_WORLD
        rank, size = comm.rank, comm.size
        source = {source!r}
        last = source.strip().splitlines()[-1]
        exec(source.strip().removesuffix(last))
        assert not any(name.startswith("hpcmagic.engine") for name in sys.modules)
        said = " ".join(map(str, (rank, *eval(last))))
        sys.stdout.write(said + "\\n")  # at once, or two ranks' words mix
        """
    )


# ---- one script everywhere


def test_same_numbers_everywhere(session, place):
    """A script gives the same in a cell, under plain mpiexec, serially without MPI: to the bit, and opens no port."""
    here = session.run(HEALTHY)
    step, digest = here.same()
    assert mpiexec(as_program(HEALTHY), 2, place) == [f"{rank} {step} {digest}" for rank in range(2)]
    names = {"comm": None, "rank": 0}
    lines = HEALTHY.strip().splitlines()
    exec("\n".join(lines[:-1]), names)  # noqa: S102
    assert eval(lines[-1], names) == (step, digest)  # noqa: S307
    assert logs(place) == []


def test_unwatched_opens_no_port(own_session):
    """With nobody who looks no rank listens on anything that it did not before; the first who looks has one opened."""
    session = own_session(nodes=2)
    count = "import psutil; sum(c.status == 'LISTEN' for c in psutil.Process().net_connections('inet'))"
    before = list(session.run(count))
    session.run(HEALTHY)
    assert list(session.run(count)) == before
    assert session.steer.params()["dt"].value == 1e-3
    assert list(session.run(count)) == [before[0] + 1, before[1]]


# ---- changes


def test_change_at_one_step(session):
    """A change is answered with its step, and takes effect there on all ranks; several at once take effect together."""
    seen = """
    from hpcmagic import steer
    import time
    live, seen = steer.live(comm), []
    for step in live.steps(100_000):
        seen.append((live.param("a", 1), live.param("b", 2.0), live.param("c", "x"), live.param("d", False)))
        time.sleep(0.002 * (rank + 1))
    seen
    """
    with running(session, textwrap.dedent(seen)) as handle:
        first = session.steer.set(a=5, b=7, c="y", d=True)
        second = session.steer.set(a=6)
        stop = session.steer.stop()
        told = handle.result(timeout=SOON_S).same()
    assert first.step < second.step <= stop.step == len(told)
    assert str(first) == f"applied at step {first.step}"
    expected = [(1, 2.0, "x", False)] * first.step + [(5, 7.0, "y", True)] * (second.step - first.step)
    expected += [(6, 7.0, "y", True)] * (stop.step - second.step)
    assert told == expected
    assert type(told[-1][1]) is float


REFUSED = {
    "above its range": ({"dt": 1.0}, "dt = 1.0 is above its greatest value, 0.01"),
    "below its range": ({"dt": -1}, "dt = -1.0 is below its least value, 0.0"),
    "of another type": ({"dt": "fast"}, "dt takes a number, not 'fast'"),
    "not whole": ({"kick": 1.5}, "kick takes a whole number, not 1.5"),
    "truth for a number": ({"kick": True}, "kick takes a whole number, not True"),
    "not a number": ({"dt": float("nan")}, "dt takes a finite number, not nan"),
    "undeclared": ({"kik": 1}, "kik is no parameter of this simulation: did you mean kick?"),
    "one of two": ({"kick": 2, "dt": 5.0}, "dt = 5.0 is above its greatest value, 0.01"),
}


def test_refused(session):
    """What a parameter does not take is refused with the reason, and changes nothing."""
    with running(session, simulation()):
        for values, reason in REFUSED.values():
            with pytest.raises(SteerError) as caught:
                session.steer.set(**values)
            assert two_lines(caught).message.rstrip(".?") == f"Refused: {reason}".rstrip(".?")
        with pytest.raises(SteerError) as caught:
            session.steer.set(dt=[1.0])
        assert two_lines(caught).message == "dt cannot be set to a list."
        assert {name: param.value for name, param in session.steer.params().items()} == {"dt": 1e-3, "kick": 1}


def test_check_of_the_users(session):
    """A check that gives False, a text, or raises refuses; one that never ends is ended by an interrupt."""
    checks = """
    from hpcmagic import steer
    import time

    def check(value):
        if value == 3:
            raise RuntimeError("three")
        while value == 4:
            pass
        return {1: False, 2: "two"}.get(value)

    live = steer.live(comm)
    for step in live.steps(100_000):
        live.param("n", 0, check=check)
        time.sleep(0.002)
    """
    with running(session, textwrap.dedent(checks)) as handle:
        for value, reason in {1: "its check says no", 2: "two", 3: "RuntimeError: three"}.items():
            with pytest.raises(SteerError, match=f"n = {value}: {reason}"):
                session.steer.set(n=value)
        assert session.steer.set(n=5).step > 0
        waiting = in_thread(lambda: session.steer.set(n=4))
        time.sleep(0.3)
        handle.cancel()
        assert "interrupted" in waiting(SOON_S).message
    works(session)


def test_pause_step_resume_stop(session):
    """All ranks stand before the same step; one is let go by; a change takes effect meanwhile; stop ends the loop."""
    with running(session, simulation()) as handle:
        steer = session.steer
        at = steer.pause().step
        time.sleep(0.2)
        assert "paused, step" in repr(steer)
        assert steer.step().step == at
        assert steer.step().step == at + 1
        assert steer.set(kick=3).step == at + 2
        steps, _ = steer.series("mean")
        assert steps[-1] == at + 1
        assert steer.resume().step == at + 2
        eventually(lambda: steer.series("mean")[0][-1] > at + 5)
        stop = steer.stop().step
        assert handle.result(timeout=SOON_S).same()[0] == stop - 1
        with pytest.raises(SteerError, match="the simulation is over: it was stopped") as caught:
            steer.pause()
        two_lines(caught)
        assert steer.series("last")[0].tolist() == [stop]  # what stands behind the loop is done
    works(session)


def test_two_notebooks_at_once(session, kernel, session_dir):
    """Changes from two notebooks: no rank differs from another at any step, each is answered, both see all."""
    every = """
    from hpcmagic import steer
    import hashlib, time
    live, seen = steer.live(comm), hashlib.sha256()
    for step in live.steps(1_000_000):
        values = [live.param(name, 0, min=0, max=90) for name in "abc"]
        seen.update(repr((step, values)).encode())
        time.sleep(0.001)
    (step, values, seen.hexdigest())
    """
    changes = """
    import random
    s = hpcmagic.attach("module", session_dir={folder!r})
    chance, answers = random.Random({seed}), []
    for _ in range(500):
        try:
            answers.append(s.steer.set(**{{chance.choice("abc"): chance.randrange(100)}}).step)
        except hpcmagic.errors.SteerError as refused:
            assert "above its greatest value" in refused.message, refused
            answers.append(-1)
    print("answered", len(answers), min(answers), flush=True)
    sys.stdin.readline()
    print("events", len([e for e in s.steer.events() if e.verb == "set"]), flush=True)
    """
    with running(session, textwrap.dedent(every)) as handle:
        assert set(session.steer.params()) == set("abc")
        others = [kernel(changes.format(folder=str(session_dir / "d"), seed=seed)) for seed in (1, 2)]
        for other in others:
            other.wait_for("answered 500 -1")
        for other in others:
            other.go_on()
            other.wait_for("events 1000")
        events = [event for event in session.steer.events() if event.verb == "set"]
        assert len({event.command for event in events}) == len(events) == 1000
        assert len({event.user for event in events}) == 2
        last = {}
        for event in events:
            last.update({name: new for name, _, new in event.changes})
        session.steer.stop()
        assert handle.result(timeout=SOON_S).same()[1] == [last[name] for name in "abc"]  # the last one wins
        for other in others:
            other.end()


# ---- ranks that leave


LEAVES = {
    "break": ("if step == 5 and rank == {who}: break", "at step 5;"),
    "raise": ("if step == 5 and rank == {who}: raise RuntimeError('on purpose')", "at step 5;"),
    "fewer steps": ("", "at step 5 (it came to its end);"),
    "another step": ("", "at step 5, rank 0 at step 7"),
}


@pytest.mark.parametrize("who", [0, 1, 3])
@pytest.mark.parametrize("how", LEAVES)
def test_rank_leaves(session, who, how):
    """A rank that leaves the loop is named on all others, soon; later cells and simulations work."""
    line, said = LEAVES[how]
    steps = f"6 if rank == {who} else 1000" if how == "fewer steps" else "1000"
    if how == "another step":
        steps = f"[0, 1, 2, 3, 4, 5 if rank == {who} else 7]" if who else "[0, 1, 2, 3, 4, 7 if rank == 0 else 5]"
    source = f"""
    from hpcmagic import steer
    import time
    live = steer.live(comm)
    for step in live.steps({steps}):
        {line.format(who=who) or "pass"}
        time.sleep(0.005)
    """
    with soon(NAMED_S + 5):
        error = raised(session, textwrap.dedent(source))
    named = f"Rank {who} has left the loop of this simulation" if how != "another step" else "Rank "
    assert named in error.text
    assert said in error.text
    others = {0, 1, 2, 3} - {who}
    assert set(error.ranks) >= (others if how != "another step" else {who or 1})
    works(session)


@pytest.mark.parametrize("who", [0, 2])
def test_rank_never_comes(session, who):
    """A rank that raises before its loop is named likewise."""
    source = f"""
    from hpcmagic import steer
    import time
    live = steer.live(comm)
    if rank == {who}:
        raise RuntimeError("on purpose")
    for step in live.steps(1000):
        time.sleep(0.005)
    """
    with soon(NAMED_S + 5):
        error = raised(session, textwrap.dedent(source))
    assert error.ranks == (0, 1, 2, 3)
    assert error.text.count(f"Rank {who} has left the loop of this simulation before its first step") >= 1
    works(session)


def test_rank_leaves_behind_a_slow_one(own_session):
    """Of many ranks one leaves that would have passed words on; those behind it hear of it all the same."""
    session = own_session(nodes=7)
    source = """
    from hpcmagic import steer
    from hpcmagic.engine import words
    import time
    words.LINGER_S = 0.2
    live = steer.live(comm)
    for step in live.steps(100):
        if step == 3 and rank in (1, 2, 4):
            break
        time.sleep(1.0 if step == 3 and rank == 0 else 0.001)
    """
    with soon(NAMED_S + 5):
        error = raised(session, textwrap.dedent(source))
    assert set(error.ranks) == {0, 3, 5, 6}
    assert error.text.count("has left the loop of this simulation at step 3") >= 1
    works(session)


def test_rank_0_waits_for_the_slow(session):
    """Rank 0 is no more than a few steps ahead: what it answers to is done by all soon; no rank is behind for long."""
    source = """
    from hpcmagic import steer
    import time
    live, begun = steer.live(comm), []
    for step in live.steps(200):
        begun.append(time.time())
        time.sleep(0.005 * (rank == 1))
    begun
    """
    first, slow, *_ = session.run(textwrap.dedent(source))
    assert max(sum(begun < mine for begun in first) - step for step, mine in enumerate(slow)) <= 17


STUCK = {
    "live.steps": """
    live = steer.live(comm)
    for step in live.steps(100):
        if rank == 1:
            assert step < 3, "on purpose"
            comm.send(step, 0)
        if rank == 0:
            comm.recv(source=1)
    """,
    "steer.live": """
    assert rank != 1, "on purpose"
    live = steer.live(comm)
    """,
}


def test_rank_leaves_others_stuck(own_session):
    """Where a rank has left, and rank 0 waits for it in MPI or in `steer.live`, those that wait with it are named too."""
    session = own_session(nodes=3)
    for number, (call, source) in enumerate(STUCK.items()):
        if number:
            session.restart()
        with soon():
            error = raised(session, f"from hpcmagic import steer\n{textwrap.dedent(source)}")
        assert error.ranks == (1,)
        assert "on purpose" in error.text
        assert error.waiting[2].startswith(f"{call}, cell ")
        assert set(error.waiting) == {0, 2}


def test_nested_and_second(session):
    """A simulation inside another's loop, and a second loop of one, are refused; one after another is not."""
    nested = """
    from hpcmagic import steer
    live = steer.live(comm)
    for step in live.steps(10):
        {}
    """
    text = raised(session, textwrap.dedent(nested.format("steer.live(comm)"))).text
    assert "A simulation is live already in this cell." in text
    text = raised(session, textwrap.dedent(nested.format("next(live.steps(3))"))).text
    assert "The steps of this simulation are being gone through already." in text
    twice = "from hpcmagic import steer\nlive = steer.live(comm)\nlist(live.steps(2))\nlist(live.steps(2))"
    assert "This simulation is over." in raised(session, twice).text
    assert session.run(f"{HEALTHY}\n{HEALTHY}").same()[0] == 19
    assert session.run("from hpcmagic import steer\nlive = steer.live(comm); step = 0") is None
    assert (
        session.run("for step in live.steps(3): pass\nstep").same() == 2
    )  # begun in one cell, gone through in another
    for odd in ("[0.5]", "['a']"):
        text = raised(session, f"from hpcmagic import steer\nfor step in steer.live(comm).steps({odd}): pass").text
        assert "Steps are whole numbers" in text
    works(session)


def test_abandoned_by_all(session):
    """Ranks that all break off alike are over with it; whoever waits for an answer gets one."""
    source = simulation().replace("time.sleep(0.002)", "time.sleep(0.002)\n    if step == 400: break")
    with running(session, source) as handle:
        session.steer.pause()
        eventually(lambda: "paused" in repr(session.steer))
        resumed = session.steer.resume().step
        assert resumed < 400
        assert handle.result(timeout=SOON_S).same()[0] == 400
        eventually(lambda: "over: the ranks have left the loop" in repr(session.steer))
    works(session)


# ---- interrupts


def test_interrupt_while_paused(session):
    """Ctrl-C ends a paused simulation on all ranks."""
    session.run("paused_at = None")
    waiting = in_thread(lambda: eventually(lambda: _paused(session)))
    interrupt_after(3.0)
    with soon(), pytest.raises(hpcmagic.CellError) as caught:
        session.run(simulation())
    assert waiting() is True
    assert "KeyboardInterrupt" in str(caught.value)
    works(session)


def _paused(session):
    try:
        return bool(session.steer.pause())
    except SteerError:
        return False


def test_cancel_at_a_boundary(session):
    """A handle's cancel ends it, whether ranks are paused, wait for rank 0 in its step, or are at no boundary."""
    for slow in ("0.001", "60 if rank == 0 else 0", "60 if rank == 2 else 0"):
        with running(session, simulation().replace("time.sleep(0.002)", f"time.sleep({slow})")) as handle:
            eventually(session.steer.params)
            if slow == "0.001":
                session.steer.pause()
            with soon():
                handle.cancel()
                with pytest.raises(hpcmagic.RankError):
                    handle.result(timeout=SOON_S)
    works(session)


def test_interrupts_while_changes_pour_in(session):
    """Interrupts that hit our own code leave nothing half done: no answer is missing, later changes are taken."""
    for after in (0.05, 0.08, 0.11):
        with running(session, simulation(sleep=0.0)) as handle:
            mirror = session.steer.mirror()
            eventually(lambda m=mirror: m.newest.params)
            until = time.monotonic() + after
            told = []
            while time.monotonic() < until:
                told.append(mirror.tell(looks.Command("set", "me", {"kick": len(told)})))
            handle.cancel()
            with pytest.raises(hpcmagic.RankError):
                handle.result(timeout=SOON_S)
            eventually(lambda m=mirror, numbers=told: all(m.outcome(number) for number in numbers))
    works(session)


def test_interrupted_anywhere(session):
    """Interrupts at any moment, on all ranks at slightly other moments: nothing is half done, no rank is left behind."""
    source = """
    import random, signal, threading, time
    from hpcmagic import steer
    from hpcmagic.engine import steering
    from hpcmagic.engine.patience import patience
    from hpcmagic.errors import SteerError

    desk, chance, torn, ended = steering.here().desk, random.Random(rank), 0, []

    def lock_is_free():
        got = []
        def take():
            got.append(desk._changed.acquire(timeout=5))
            if got[0]:
                desk._changed.release()
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        return got[0]

    for turn in range({turns}):
        live = steer.live({comm})
        timer = threading.Timer(chance.uniform(0, 0.01), signal.pthread_kill, (threading.main_thread().ident, 2))
        try:
            timer.start()
            for step in live.steps(10**9):
                live.param(f"p{{step % 9}}", 0)
                live.publish(a=step, b=1.0, **{{f"c{{step % 9}}": 2}})
        except (KeyboardInterrupt, SteerError) as error:
            ended.append(type(error).__name__)
        try:
            timer.join()
            time.sleep(0.05)
        except KeyboardInterrupt:
            pass
        for series in live._run.series.values():
            _, steps, values = series._now
            torn += len(steps) != len(values)
        comm.Barrier()
    (torn, patience._depth, lock_is_free(), len(ended))
    """
    for own, turns in (("None", 25), ("comm", 20)):
        told = session.run(textwrap.dedent(source.format(comm=own, turns=turns)), timeout=60)
        assert told.same() == (0, 0, True, turns)
    works(session)


def test_waiting_interrupted(session):
    """Ctrl-C while a change waits for its boundary says that it takes effect all the same; so it does."""
    with running(session, simulation().replace("time.sleep(0.002)", "time.sleep(2.0)")):
        eventually(session.steer.params)
        interrupt_after(0.5)
        with pytest.raises(SteerError, match="Stopped waiting for set") as caught:
            session.steer.set(kick=7)
        two_lines(caught)
        eventually(lambda: session.steer.params()["kick"].value == 7)


# ---- watching


def test_watched_from_the_start(session):
    """Curves begin at the first step, whenever somebody begins to look; numbers that are none are told of."""
    source = simulation().replace(
        "live.publish(", "live.publish(text='1', none=None, many=np.ones(3), z=1j, big=10**400, one=np.ones(1), "
    )
    with running(session, source):
        eventually(lambda: session.steer.series("mean")[0].size > 50)
        steps, values = session.steer.series("twice")
        assert steps.tolist() == list(range(len(steps)))
        assert (values == 2.0 * steps).all()
        assert session.steer.series("one")[1][0] == 1.0
        with pytest.raises(SteerError, match="No numbers were published as 'text'") as caught:
            session.steer.series("text")
        two_lines(caught)
        shown = repr(session.steer)
        for name, kind in {
            "text": "str",
            "none": "NoneType",
            "many": "ndarray",
            "z": "complex",
            "big": "int",
        }.items():
            assert f"{name} was not published: {kind} is no number" in shown


def test_long_curve_is_thinned(session):
    """Of a long curve all steps are there in bounded memory; here and at the rank it is the same curve."""
    with running(session, simulation(steps=12_000, sleep=0.0)) as handle:
        eventually(lambda: session.steer.series("twice")[0].size > 10)
        handle.result(timeout=60)
        steps, values = session.steer.series("twice")
        assert steps[0] == 0
        assert steps[-1] == 11_999
        assert 4096 <= len(steps) <= 8192
        assert (np.diff(steps) > 0).all()
        assert (values == 2.0 * steps).all()
        session.steer.close()
        again, _ = session.steer.series("twice")
        assert (again == steps).all()


FIELDS = """
import time
import numpy as np
from hpcmagic import steer
live, parts = steer.live(comm), {{}}
for name, whole in {wholes}.items():
    n = whole.shape[0]
    lo, hi = rank * n // size, (rank + 1) * n // size
    parts[name] = whole[lo:hi].copy(), (slice(lo, hi), *(slice(0, m) for m in whole.shape[1:]))
for step in live.steps(1_000_000):
    for name, (mine, box) in parts.items():
        live.field(name, mine, box=box)
    time.sleep(0.002)
"""


def fields(**wholes):
    """Source of a simulation with such fields, cut over the ranks by rows."""
    return FIELDS.format(wholes=f"{{{', '.join(f'{name!r}: {whole}' for name, whole in wholes.items())}}}")


SHAPES = {
    "1-D": "np.arange(400.0)",
    "2-D": "np.add.outer(np.arange(90.0), np.arange(70.0))",
    "3-D": "np.add.outer(np.add.outer(100 * np.arange(13.0), 10 * np.arange(11.0)), np.arange(7.0))",
    "4-D": "np.arange(3 * 4 * 5 * 6).reshape(8, 3, 3, 5)",
    "complex": "np.add.outer(np.arange(20), 1j * np.arange(30))",
    "int8": "np.arange(-100, 100, dtype='i1').reshape(20, 10)",
    "constant": "np.full((9, 9), 5.0)",
    "bool": "np.eye(8, dtype=bool)",
    "huge": "np.linspace(-1, 1, 64).reshape(8, 8) * 1.7e308",
    "NaN": "np.where(np.arange(64).reshape(8, 8) % 5, np.arange(64.0).reshape(8, 8), np.nan)",
    "one rank all NaN": "np.where(np.arange(64).reshape(8, 8) < 16, np.nan, 1000 + np.arange(64.0).reshape(8, 8))",
}


def test_fields(session):
    """Fields of all kinds look as they are, to half a level; of more than two dimensions the plane in the middle."""
    with running(session, fields(**SHAPES)):
        for kind, source in SHAPES.items():
            whole = eval(source)  # noqa: S307
            picture = session.steer.field(kind, timeout=SOON_S)
            plane = np.atleast_2d(whole[tuple(n // 2 for n in whole.shape[:-2])])
            expected = np.abs(plane) if plane.dtype.kind == "c" else plane.astype(float)
            span = np.nanmax(expected) / 2 - np.nanmin(expected) / 2
            assert picture.shape == expected.shape, kind
            assert (np.isnan(picture) == np.isnan(expected)).all(), kind
            assert np.nanmax(np.abs(picture / 2 - expected / 2)) <= span * 0.009, kind
        assert session.steer.fields() == tuple(SHAPES)


def test_field_thinned(session):
    """Of a large field each rank sends what the picture shows, of every so-manieth row and column."""
    with running(session, fields(f="np.add.outer(1000 * np.arange(101.0), np.arange(130.0))")):
        picture = session.steer.field("f", pixels=20, timeout=SOON_S)
        expected = np.add.outer(1000 * np.arange(101.0), np.arange(130.0))[::7, ::7]
        assert picture.shape == expected.shape
        assert np.abs(picture - expected).max() <= 101_000 * 0.005


FAULTY = {
    "overlap": ("mine, ((0, 20), (0, 5))", "shown whole: the boxes of ranks 0 and 1 overlap"),
    "holes": ("mine, ((40 * rank, 40 * rank + 20), (0, 5))", "shown whole: the boxes leave holes"),
    "misfit": ("mine[1:], box", "shown: rank 0: a part of shape (19, 5) does not fit its box ((0, 20), (0, 5))"),
    "negative": (
        "mine, ((20 * rank - 20, 20 * rank), (0, 5))",
        "shown: rank 0: a part of shape (20, 5) does not fit",
    ),
    "no_box": ("mine", "shown: rank 0: each rank must say with box= which part it has"),
    "odd_box": ("mine, 7", "shown: rank 0: box must have a slice, or begin and end, of each dimension, not 7"),
    "gaps": ("mine, (slice(0, 40, 2), slice(0, 5))", "shown: rank 0: box must have a slice"),
    "list": ("mine.tolist(), box", "shown: rank 0: it is no array but a list"),
    "scalar": ("mine[0, 0], box", "shown: rank 0: it has no dimensions"),
    "texts": ("mine.astype(str).astype(object) + 'x', box", "shown: rank 0: could not convert string"),
    "missing": ("mine, box) if rank != 2 else (", "shown: no part of it came from rank 2"),
    "unlike": ("*((mine, box) if rank else (mine[0], box[1:]))", "shown: its parts have different numbers of dimen"),
}


def test_fields_at_fault(session):
    """A field that cannot be shown, or not whole, is told of; the simulation goes on, and shows others."""
    session.run("from hpcmagic.engine import pictures; pictures.STALE_S = pictures.FAULTY_S = 0.1")
    calls = "".join(f"    live.field('{fault}', {call})\n" for fault, (call, _) in FAULTY.items())
    with running(session, f"import warnings\n{fields(f='np.ones((80, 5))')}{calls}"):
        for fault, (_, said) in FAULTY.items():
            eventually(lambda f=fault, s=f"! the field {fault} is not {said}": _told_of(session, f, s))
        assert (session.steer.field("f", timeout=SOON_S) == 1).all()
        assert session.steer.mirror().newest.dropped >= 1
    session.run("pictures.STALE_S, pictures.FAULTY_S = 5.0, 1.0")


def _told_of(session, field, said):
    with suppress(SteerError):
        session.steer.field(field, timeout=0.2)
    return said in repr(session.steer)


def test_field_as_fine_as_asked(session):
    """Each call gives a picture as fine as it asks for, not one that was on its way; a size that is none is refused."""
    with running(session, simulation()):
        for pixels in (64, 256, 16, 256):
            assert session.steer.field("u", pixels=pixels, timeout=SOON_S).shape == (1, pixels)
        for wrong in (0, -5, 2.5, "x", None, True):
            with pytest.raises(SteerError, match="is no size of a picture"):
                session.steer.field("u", pixels=wrong)


def test_no_such_field(session):
    """Asking for a field that is not there, or for a simulation that is not, says so."""
    with running(session, HEALTHY.replace("20", "100_000").replace("time.sleep(0.0)", "time.sleep(0.002)")):
        with pytest.raises(SteerError, match="There is no field 'T'; there is u") as caught:
            session.steer.field("T")
        two_lines(caught)


PAUSED = SCRIPT.replace(
    'live.field("u"', 'live.field("gone", u + 0.0, box=(slice(64 * rank, 64 * rank + 64),))\n    live.field("u"'
)


def test_field_of_a_paused_simulation(session):
    """Paused, it is drawn from what was given last, and as finely as is asked now; what is gone by then is not."""
    with running(
        session, PAUSED.format(steps=10**6, sleep=0.002).replace("box=(slice(0, 64),) if rank == 0 else ", "box=")
    ) as handle:
        assert session.steer.field("u", pixels=64, timeout=SOON_S).shape == (1, 64)
        time.sleep(0.5)
        step = session.steer.pause().step
        with soon(5):
            u = session.steer.field("u", timeout=SOON_S)
            assert session.steer.field("u", pixels=16, timeout=SOON_S).shape == (1, 16)
        assert u.shape == (1, 256)
        assert np.isfinite(u).all()
        assert session.steer.mirror().pictures["u"].step == step - 1
        frame = session.steer.mirror().pictures["u"].frame
        time.sleep(0.5)
        assert session.steer.mirror().pictures["u"].frame == frame  # nothing is drawn again while it stands
        with pytest.raises(SteerError, match="is paused, and what it gave of 'gone' is gone") as caught:
            session.steer.field("gone", timeout=1.0)
        two_lines(caught)
        session.steer.resume()
        assert session.steer.field("gone", timeout=SOON_S).shape == (1, 256)
        session.steer.stop()
        handle.result(timeout=SOON_S)


def test_field_that_nobody_looked_at(session):
    """Pictures are made at steps: what was seen last is kept, and of what was not it is said that there is none."""
    with running(session, simulation()) as handle:
        session.steer.field("u", timeout=SOON_S)
        session.steer.stop()
        handle.result(timeout=SOON_S)
    assert session.steer.field("u").size
    session.steer.close()  # or it would look at the next one too
    session.run(HEALTHY)
    with pytest.raises(SteerError, match=r"over \(.*\), and nobody had looked at 'u'") as caught:
        session.steer.field("u")
    two_lines(caught)


def test_no_simulation(own_session):
    """Without a simulation there is nothing to steer, with or without MPI; without it each rank has its own."""
    session = own_session(nodes=2, mpi="none")
    session.run("import numpy")  # ranks that have just begun may be slow to answer
    with pytest.raises(SteerError, match="No simulation has come alive") as caught:
        session.steer.params()
    two_lines(caught)
    source = simulation().replace("100000", "100_000 if rank == 0 else 300").replace("(step,", "(step, kick,")
    with running(session, source) as handle:
        session.steer.set(kick=5)
        stop = session.steer.stop().step
        (at, kick, _), (last, other, _) = handle.result(timeout=SOON_S)
    assert (at, kick) == (stop - 1, 5)
    assert (last, other) == (299, 1)  # that of rank 0 alone was steered


def test_hundreds(session):
    """Hundreds of parameters, and of curves."""
    source = """
    from hpcmagic import steer
    import time
    live = steer.live(comm)
    for step in live.steps(1_000_000):
        values = [live.param(f"p{n}", n) for n in range(300)]
        live.publish(**{f"s{n}": n * step for n in range(300)})
        time.sleep(0.002)
    values
    """
    with running(session, textwrap.dedent(source)) as handle:
        assert eventually(lambda: len(session.steer.params())) == 300
        session.steer.set(p299=-1, p7=-2)
        assert session.steer.params()["p7"].value == -2
        assert session.steer.params()["p299"].value == -1
        assert eventually(lambda: len(session.steer.names())) == 300
        steps, values = session.steer.series("s299")
        assert (values == 299.0 * steps).all()
        session.steer.stop()
        assert handle.result(timeout=SOON_S).same()[7] == -2


def test_some_of_the_ranks(session):
    """A simulation of some ranks is led by the first of them; communicators that come and go are no trouble."""
    source = """
    half = comm.Split(rank >= 2, {key})
    if rank >= 2:
        from hpcmagic import steer
        import time
        live = steer.live(half)
        for step in live.steps({steps}):
            kick = live.param("kick", 1)
            time.sleep(0.002)
        half.Free()
    """
    for key, steps in (("rank", 5), ("-rank", 5), ("rank", 100_000)):
        with running(session, textwrap.dedent(source.format(key=key, steps=steps))) as handle:
            if steps == 100_000:
                assert session.steer.set(kick=2).step >= 0
                session.steer.stop()
            handle.result(timeout=SOON_S)
    works(session)


def test_next_cell_is_waited_for(session):
    """Whoever steers right after a second cell was sent steers that cell's simulation."""
    session.run(HEALTHY)
    assert "over" in repr(session.steer)
    with running(session, f"import time\ntime.sleep(0.5)\n{simulation()}"):
        assert session.steer.set(kick=9).step >= 0
        assert "running" in repr(session.steer)


# ---- coming and going


def test_notebook_killed(session, kernel, session_dir, place):
    """A notebook that is killed in mid-run changes no number; another finds curves from the start, and what it set."""
    source = simulation(steps=1000)
    other = kernel(
        f"""
        s = hpcmagic.attach("module", session_dir={str(session_dir / "d")!r})
        h = s.run({source!r}, block=False)
        print("applied", s.steer.set(kick=4).step, s.steer.field("u").shape, flush=True)
        while True:
            s.steer.field("u"); s.steer.series("mean")
        """
    )
    other.wait_for("(1, 256)")
    step = int(other.said.split("applied ")[1].split()[0])
    other.kill()
    assert session.steer.params()["kick"].value == 4
    steps, _ = session.steer.series("mean")
    assert steps[0] == 0
    assert [event.step for event in session.steer.events() if event.verb == "set"] == [step]
    cell = eventually(lambda: [cell for cell in session.cells if "live.steps(1000)" in cell.source])[-1]
    killed = cell.result(timeout=60).same()
    (log,) = logs(place)
    assert json.loads(log.read_text())["user"].count("@") == 1
    replayed = f"from hpcmagic import steer\nsteer.replay({str(log)!r})\n{source.replace('0.002', '0')}"
    assert session.run(replayed).same() == killed


def test_reader_that_does_not_read(session):
    """One who asks for pictures and never reads them costs the simulation nothing; others are served."""
    source = """
    import time
    import numpy as np
    from hpcmagic import steer
    live, u, slowest, before = steer.live(comm), np.random.default_rng(0).random((512, 512)), 0.0, time.perf_counter()
    for step in live.steps(1_000_000):
        live.field("u", u, box=((512 * rank, 512 * rank + 512), (0, 512)))
        time.sleep(0.002)
        now = time.perf_counter()
        slowest, before = max(slowest, now - before), now
    slowest
    """
    with running(session, textwrap.dedent(source)) as handle:
        session.steer.params()
        stalled = [invited(session) for _ in range(3)]
        for channel in stalled:
            run_one(channel, looks.send(channel, 0, looks.Look(field="u", pixels=2048, hz=100.0)))
        eventually(lambda: len(select.select([one.sock for one in stalled], [], [], 0)[0]) == len(stalled))
        time.sleep(1.0)
        assert np.isfinite(session.steer.field("u", pixels=64, timeout=SOON_S)).all()
        for channel in stalled:
            channel.close()
        session.steer.stop()
        slowest = max(handle.result(timeout=SOON_S))
    assert slowest < 1.0


def invited(session):
    """A connection to the desk at rank 0 that can hold little of what comes."""
    invitation = Invitation.fresh()
    told = session.data.channels.invite({0: invitation})[0]
    channel = connect(told.host, told.port, invitation, session.request.server_public)
    channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    session.steer._asked([0], channels=[invitation.channel])
    return channel


def test_restart_then_steer(own_session):
    """After a restart of the ranks the next simulation is steered like the first."""
    session = own_session(nodes=2)
    with running(session, simulation()):
        assert session.steer.set(kick=2).step >= 0
    session.restart()
    with running(session, simulation()) as handle:
        assert session.steer.set(kick=3).step >= 0
        session.steer.stop()
        handle.result(timeout=SOON_S)


def test_rank_0_killed(own_session):
    """When rank 0 is killed, whoever waits for an answer hears how the ranks ended."""
    session = own_session(nodes=2)
    pid = session.run("import os; os.getpid()")[0]
    handle = session.run(simulation().replace("time.sleep(0.002)", "time.sleep(0.5)"), block=False)
    eventually(session.steer.params)
    waiting = in_thread(lambda: [session.steer.set(kick=n) for n in range(100)])
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    with soon():
        error = waiting()
    assert isinstance(error, SessionEnded), error
    assert "rank 0 exited on signal 9 (Killed)" in error.message
    with pytest.raises(SessionEnded):
        handle.result(timeout=SOON_S)


# ---- log and replay


def test_log_and_replay(session, place):
    """The log has what was changed, where, by whom; applied again it gives the same numbers, under mpiexec too."""
    with running(session, simulation()) as handle:
        session.steer.set(dt=5e-3)
        session.steer.pause()
        session.steer.set(kick=2, dt=1 / 3e3)
        session.steer.resume()
        with pytest.raises(SteerError):
            session.steer.set(dt=1.0)
        session.steer.set(kick=-7)
        stop = session.steer.stop().step
        watched = handle.result(timeout=SOON_S).same()
    (log,) = logs(place)
    assert oct(log.stat().st_mode)[-3:] == "600"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["name"], line["old"], line["new"]) for line in lines] == [
        ("dt", 1e-3, 5e-3),
        ("kick", 1, 2),
        ("dt", 5e-3, 1 / 3e3),
        ("kick", 2, -7),
        ("", None, None),
    ]
    assert lines[-1]["step"] == stop
    source = f"from hpcmagic import steer\nsteer.replay({str(log)!r})\n{simulation(sleep=0)}"
    assert session.run(source).same() == watched
    assert mpiexec(as_program(source), 2, place) == [f"{rank} {watched[0]} {watched[1]}" for rank in range(2)]
    assert session.steer.params()["kick"].value == -7
    assert len(logs(place)) == 2  # what was applied again is written down again
    assert alone.live()  # and in this process nothing was left over


def test_log_that_cannot_be_written(session, place):
    """A directory that takes no log does not keep changes from being made; it is told of."""
    session.run("os.mkdir('gone') if rank == 0 else None; comm.Barrier(); os.chdir('gone'); comm.Barrier()")
    (place / "gone").rmdir()
    with running(session, simulation()) as handle:
        session.steer.set(kick=5)
        eventually(lambda: "the steering log cannot be written: No such file or directory" in repr(session.steer))
        session.steer.stop()
        handle.result(timeout=SOON_S)
    session.run(f"os.chdir({str(place)!r})")
