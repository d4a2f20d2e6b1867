"""Variables of real ranks, and a kernel as a person sits at it: the hint below a long cell, Tab, help."""

import os
import stat
import time

import pytest
from jupyter_client.manager import start_new_kernel

from notebooks import shown_by

LONG_S = 0.3  # a cell that takes longer is told so, in these tests
BUSY = f"""
import time
until = time.process_time() + {2 * LONG_S}
while time.process_time() < until:
    pass
"""


def test_vars(session):
    """`session.vars()` tells names, types, shapes and bytes by rank, and leaves out what is not the user's."""
    pytest.importorskip("numpy")
    session.run(
        "import numpy as np\nx = np.zeros((10 + (rank == 0), 100)); f = lambda: 1\nif rank == 2: only = 'here'"
    )
    held = session.vars()
    assert held.silent == ()
    assert [held[rank]["x"].shape for rank in held] == [(11, 100), (10, 100), (10, 100), (10, 100)]
    assert [held[rank]["x"].nbytes for rank in held] == [8800, 8000, 8000, 8000]
    assert [rank for rank in held if "only" in held[rank]] == [2]
    assert not {"f", "np", "In", "Out", "exit", "quit", "get_ipython", "open"} & set(held.names())
    assert list(session.vars("1,3")) == [1, 3]
    assert {"f", "np", "In"} <= set(session.vars(everything=True).names())
    session.run("del x, f; only = 0")


def test_vars_while_a_cell_runs(session):
    """Ranks tell what they hold while a cell runs."""
    cell = session.run("import time\nbefore = 1\ntime.sleep(1)\nafter = 2", block=False)
    deadline = time.monotonic() + 10
    while "before" not in session.vars().names() and time.monotonic() < deadline:
        pass
    names = session.vars().names()
    assert not cell.done()
    assert "before" in names
    assert "after" not in names
    cell.result()
    assert "after" in session.vars().names()
    session.run("del before, after")


def test_vars_verb(home):
    """`%hpc vars` shows a table; with a rank only that one; where there is no session it says so."""
    shown = shown_by(
        home, "%load_ext hpcmagic", "%%remote --nodes 2\ntext = 'x' * (1000 + rank)", "%hpc vars", "%hpc vars -r 1",
        "%hpc vars --all",
    )  # fmt: skip
    assert "text  str   length 1000  1.0 kB  0\ntext  str   length 1001  1.1 kB  1\n" in shown[2]
    assert "length 1000" not in shown[3]
    assert "get_ipython" in shown[4]
    assert "get_ipython" not in shown[2]


@pytest.fixture
def site(home, monkeypatch):
    """A site with SLURM, as far as its commands tell: 8 cores and 64 GB a node."""
    folder = home / "bin"
    folder.mkdir()
    for name, says in (("sbatch", ""), ("sinfo", "debug*|up|8|64000|1:00:00|(null)"), ("sacctmgr", "lab")):
        (folder / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("HPCMAGIC_LAUNCHER")
    return home


@pytest.fixture
def person(site):
    """A kernel that somebody sits at, the extension loaded: ``person(code)`` runs a cell and gives what it shows."""
    manager, client = start_new_kernel(cwd=str(site))

    def type_in(code, **how):
        shown = []

        def note(message):
            content = message["content"]
            shown.append(
                content.get("text") or content.get("data", {}).get("text/plain") or content.get("evalue", "")
            )

        client.execute_interactive(code, output_hook=note, timeout=60, **{"allow_stdin": True, **how})
        return "".join(shown)

    type_in.client = client
    type_in(f"%load_ext hpcmagic\n%config HpcMagics.hint_after_s = {LONG_S}")
    yield type_in
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


def test_hint(person):
    """Below the first long cell of a kernel that somebody sits at stands the line that fits; not below others."""
    assert person("1 + 1") == "2"
    assert "%%remote" not in person(BUSY, allow_stdin=False)
    assert "%%remote" not in person(f"import time; time.sleep({2 * LONG_S})")
    assert "%%remote" not in person(f"{BUSY}\n1 / 0")
    said = person(BUSY)
    assert said.startswith("This cell took ")
    assert " on one core and " in said
    assert "%%remote -a --nodes 1 --cpus-per-task 1 --mem 2G --time 0:15:00 · never again: %hpc hint off" in said
    assert "%%remote" not in person(BUSY)


def test_hint_silenced(person, site):
    """Silenced by one command, it stays silent in other kernels, too."""
    assert person("%hpc hint off") == "The hint after long cells is off.\n"
    assert stat.S_IMODE((site / "config" / "hpcmagic" / "hint-off").stat().st_mode) == 0o600
    assert person("%config HpcMagics.hint = True") == ""
    assert "%%remote" not in person(BUSY)


def test_hint_gone_with_the_extension(person):
    """Unloaded, the extension says nothing more; loaded again, it does, once."""
    person("%unload_ext hpcmagic")
    assert person(BUSY) == ""
    person("%load_ext hpcmagic")
    person("%reload_ext hpcmagic")
    assert person(BUSY).count("%%remote") == 1
    assert person("import threading; print(sum(t.name == 'hpcmagic-hint' for t in threading.enumerate()))") == "1\n"


def test_tab(person):
    """A front end that asks the kernel is offered options, and SLURM's names."""

    def offered(code):
        return person.client.complete(code, reply=True, timeout=30)["content"]["matches"]

    assert offered("%%remote --part") == ["--partition"]
    assert offered("%%remote --partition ") == ["debug"]
    assert offered("%%remote --nodes 2 -A ") == ["lab"]
    assert offered("%hpc att") == ["attach"]
    person("mine = 1")
    assert offered("%push mi") == ["mine"]
    assert "--partition" in person.client.inspect("%%remote", reply=True, timeout=30)["content"]["data"]["text/plain"]
