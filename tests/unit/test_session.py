"""A session in the notebook's hands: a cell's syntax before any rank is bothered, how it stands, its logs."""

import time

import pytest
from two_lines import two_lines

from hpcmagic.errors import CellError
from hpcmagic.launch.base import JobState
from hpcmagic.notebook.causes import tail
from hpcmagic.notebook.status import status_of
from hpcmagic.notebook.syntax import check_syntax
from hpcmagic.rendezvous import KeeperState
from hpcmagic.wire.messages import RunCell


@pytest.mark.parametrize(
    "source",
    [
        "", "\n\n", "# only a comment", "x = 1\nx", "await f()", "async with a as b:\n    await c", "%time x",
        "%%time\nx = 1", "!ls -l (", "files = !ls", "?print", "print?", "%%bash\nif [ (", "def f():\n    return 1",
        "  indented = 1", "f'{x:>{n}} {{}}'", "lambda: (yield)", "x;", ">>> x = 1", "In [1]: x = 1",
        "match x:\n    case 1: pass",
    ],
)  # fmt: skip
def test_good_syntax(source):
    """Whatever IPython runs passes: its magics and shell lines, await outside of functions, pasted prompts."""
    for first_line in (1, 2):
        check_syntax(RunCell(source, "cell 1", first_line))


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = = 1", 1),
        ("a = 1\n\nx = = 1", 3),
        ("\n\nx = = 1", 3),
        ("a = 1\nif a\n    b", 2),
        ("'abc", 1),
        ("a = 1\nprint('b'", 2),
        ("a\n  b", 2),
        ("return 1", 1),
        ("for x in y:\n    pass\nelse\n", 3),
        ("a = 1\nbreak", 2),
        ("%time x\ny = = 1", 2),
    ],
)
@pytest.mark.parametrize("first_line", [1, 2, 5])
def test_syntax_error(source, line, first_line):
    """A syntax error is found here, with its line as the notebook's cell counts it and the text that stands there."""
    with pytest.raises(CellError) as error:
        check_syntax(RunCell(source, "cell 1", first_line))
    message = two_lines(error).message
    assert f"line {line + first_line - 1}" in message, message
    assert "Error" in message


@pytest.mark.parametrize(
    "source", ["a\0b", "x = '\ud800'", "(" * 1000, "-" * 100_000 + "1", "x = 1\n\tif y:\n        z"]
)
def test_source_that_cannot_be_compiled(source):
    """Source that Python refuses in other ways than by a SyntaxError is refused alike."""
    with pytest.raises(CellError) as error:
        check_syntax(RunCell(source, "cell 1"))
    two_lines(error)


def test_no_warning_twice(recwarn):
    """What Python warns of in the cell is said where the cell runs, and not here as well."""
    check_syntax(RunCell("x = 1\nx is 1\n'\\d'", "cell 1"))
    assert not recwarn


@pytest.mark.parametrize(
    ("keeper", "seen", "state", "reason"),
    [
        (None, JobState("pending", "PENDING", "Priority", "others first"), "pending", "Priority – others first"),
        (None, JobState("pending", "PENDING"), "pending", ""),
        (None, JobState("running", "RUNNING"), "starting", ""),
        (None, JobState("unknown"), "pending", ""),
        (KeeperState("starting"), JobState("running", "RUNNING"), "starting", ""),
        (KeeperState("ready"), JobState("running", "RUNNING"), "ready", ""),
        (KeeperState("ready"), JobState("unknown"), "ready", ""),
        (KeeperState("ended", cause="a node failed"), JobState("running", "RUNNING"), "ended", "a node failed"),
        (KeeperState("ended", cause="a node failed"), JobState("ended", "FAILED"), "ended", "a node failed"),
        (KeeperState("ready"), JobState("ended", "TIMEOUT", meaning="it was too long"), "ended", "it was too long"),
        (KeeperState("ready"), JobState("ended", "BOOT_FAIL"), "ended", "BOOT_FAIL"),
        (None, JobState("ended", "GONE"), "ended", "GONE"),
        (KeeperState("fallen", cause="the ranks ended: x"), JobState("ended", "TIMEOUT", meaning="late"), "ended", "late"),
    ],
)  # fmt: skip
def test_status(desk, keeper, seen, state, reason):
    """The state is put together from the keeper's word and the batch system's."""
    held = desk.cell(nodes=2)
    status = status_of(held.request, held.job, keeper, seen, elapsed_s=1.0, left_s=None)
    assert (status.state, status.reason) == (state, reason)
    assert (status.session, status.job_id, status.launcher, status.ranks) == ("demo", "1", "slurm", 2)
    assert status.cost is None


@pytest.mark.parametrize(("left_s", "until"), [(None, 300), (3600.0, 300), (60.0, 60)])
def test_status_of_a_held_job(desk, left_s, until):
    """A session without ranks says so, and until when its job is held: no longer than its walltime."""
    held, now = desk.cell(nodes=2), time.time()
    keeper = KeeperState("fallen", cause="the ranks ended: rank 1 Killed", held_until=now + 300)
    seen = JobState("running", "RUNNING")
    status = status_of(held.request, held.job, keeper, seen, elapsed_s=1.0, left_s=left_s)
    times = {time.strftime("%H:%M", time.localtime(now + until + late_s)) for late_s in (0, 1)}
    said = "the ranks ended: rank 1 Killed; job held until {}: `%hpc restart` or `%hpc stop`"
    assert status.state == "fallen"
    assert status.reason in {said.format(one) for one in times}


def test_tail(tmp_path):
    """The end of a log is read without the rest of it, whatever bytes are there; of none, nothing."""
    path = tmp_path / "job.log"
    assert tail(path, 3) == ""
    path.write_bytes(b"a\nb\xff\nc\nd")
    assert tail(path, 2) == "c\nd"
    assert tail(path, 9).splitlines() == ["a", "b�", "c", "d"]
    path.write_text("line\n" * 1_000_000)
    assert tail(path, 3) == "line\nline\nline"
