"""`%hpc doctor` with real ranks: all is well, and what is not is found."""

import os
import signal

from faults import SOON_S

from hpcmagic.notebook import doctor
from hpcmagic.notebook.doctor import THERE, examine
from notebooks import shown_by


def states(report):
    """How each check stands."""
    return {check.name: check.state for check in report}


def test_all_is_well(session):
    """Each check of a session is made and good, also while a cell runs; nothing is left in its directory."""
    before = sorted(path.name for path in session.directory.path.iterdir())
    handle = session.run("import time; time.sleep(1.0)", block=False)
    found = states(examine(session))
    assert not handle.done()
    handle.result(timeout=SOON_S)
    assert {name: found[name] for name in ("the ranks", *THERE)} == dict.fromkeys(("the ranks", *THERE), "good")
    assert sorted(path.name for path in session.directory.path.iterdir()) == before


def test_faults_are_found(session, monkeypatch):
    """A rank that is stopped, and a file that others may read, are found; then all is well again."""
    monkeypatch.setattr(doctor, "ANSWER_S", 0.5)
    pid = session.run("import os; os.getpid()")[2]
    session.directory.log.chmod(0o644)
    os.kill(pid, signal.SIGSTOP)
    try:
        found = {check.name: check for check in examine(session).bad}
    finally:
        os.kill(pid, signal.SIGCONT)
        session.directory.log.chmod(0o600)
    assert list(found) == ["the ranks", "private files"]
    assert found["the ranks"].said.startswith("rank 2 did not answer")
    monkeypatch.undo()
    assert not examine(session).bad


def test_in_a_notebook(home):
    """Without a session it says what only one could prove; with resources on its line it starts one and ends it."""
    alone, bought, none = shown_by(
        home, "%load_ext hpcmagic\n%hpc doctor", "%hpc doctor --nodes 2", "import hpcmagic\nhpcmagic.sessions()"
    )
    assert "– the nodes" in alone
    assert "✓ MPI's world         2 ranks" in bought
    assert "✗" not in bought
    assert none == "[]"
