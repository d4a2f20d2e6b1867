"""`%hpc doctor` and Tab on a real SLURM: all is well over two nodes, what is broken is found, the site's names are offered."""

import json
import shutil
from pathlib import Path
from textwrap import dedent

import pytest

DOCTOR = """
import json, time
import hpcmagic
from hpcmagic.notebook.doctor import THERE, examine

s = hpcmagic.start(session="t", launcher="slurm", nodes=2, time="10")
try:
    well = examine(s)
    journal = s.directory.path / "cells"
    s.run("rank")
    paths = [s.directory.log, next(journal.iterdir()), journal]
    modes = [path.stat().st_mode & 0o777 for path in paths]
    broken = []
    for path, mode in zip(paths, modes):
        path.chmod(mode | 0o040)
        broken.append([str(path), [[c.name, c.said, c.mend] for c in examine(s).bad]])
        path.chmod(mode)
    mended = [check.name for check in examine(s).bad]
finally:
    s.stop()
print("@" + json.dumps([sorted(THERE), [[c.name, c.state, c.said] for c in well], broken, mended]))
"""

TAB = """
import json
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "hpcmagic")

def offered(line):
    with provisionalcompleter():
        return sorted(one.text for one in shell.Completer.completions(line, len(line)))

lines = ["%%remote --partition ", "%%remote -p sh", "%%remote --account ", "%%remote --nodes 2 --qos ", "%%remote --qos=d"]
print("@" + json.dumps([offered(line) for line in lines]))
"""


@pytest.fixture
def alice(cluster):
    """Run Python as alice on the hub; give what it told. Her sessions start from nothing."""
    for folder in (".local/state/hpcmagic", ".config/hpcmagic", ".config/dask"):
        shutil.rmtree(Path("/home/alice", folder), ignore_errors=True)

    def run(code):
        done = cluster.as_user("alice", cluster.python, "-", input=dedent(code), timeout=90)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.partition("@")[2])

    return run


def test_doctor(alice):
    """Over two nodes each check is made and good; a file that others may read is found, with the line that mends it."""
    there, well, broken, mended = alice(DOCTOR)
    states = {name: state for name, state, _ in well}
    assert {
        name: states[name] for name in ("SLURM", "accounting", "session_dir", "the ranks", *there)
    } == dict.fromkeys(("SLURM", "accounting", "session_dir", "the ranks", *there), "good")
    said = {name: words for name, _, words in well}
    assert "on n1, n2 answered" in said["the ranks"]
    assert said["MPI's world"].startswith("2 ranks, started by srun --mpi=")
    for path, found in broken:
        ((name, words, mend),) = found
        assert name == "private files"
        assert path in words
        assert f"`chmod {700 if path.endswith('cells') else 600} {path}`" in mend
    assert mended == []


def test_tab(alice):
    """Tab offers the partitions, accounts and QOS that this SLURM has for this user."""
    partitions, short, accounts, qos, dear = alice(TAB)
    assert partitions == ["debug", "short"]
    assert short == ["short"]
    assert accounts == ["alice-lab"]
    assert qos == ["dear", "free", "half", "normal"]
    assert [one.removeprefix("--qos=") for one in dear] == ["dear"]
