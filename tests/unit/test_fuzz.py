"""Whatever is typed or stands in a profile: a right run, or an error in two lines; no traceback of ours, and no job.

Lines are drawn from what people type: our options and near misses, values with quotes, braces and all kinds of
characters. A batch system in memory counts the jobs.
"""

import re
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.utils.text import DollarFormatter

from hpcmagic import profiles
from hpcmagic.errors import HpcMagicError
from hpcmagic.launch.base import JobSpec
from hpcmagic.launch.slurm import SlurmLauncher
from hpcmagic.notebook import magics, start, verbs
from hpcmagic.notebook.magics import CELL, MAGICS, HpcMagics
from hpcmagic.notebook.verbs import VERBS
from hpcmagic.rendezvous import SessionDirectory

TIMES = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
ASKING = ("--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node", "--cpus-per-task", "-c", "--mem", "--gpus-per-node",
          "--time", "-t", "--partition", "-p", "--account", "-A", "--qos", "--constraint", "--profile")  # fmt: skip
OPTIONS = sorted(set(CELL._option_string_actions) - {"-h", "--help"})


class Bought(Exception):
    """A job was submitted."""


def bought(*_, **__):
    """Stand in for waiting for the ranks."""
    raise Bought


METHODS = {"meter": "turn_meter"}  # a magic's method that has another name than its magic
anything = st.text(max_size=12)
typed = st.text(st.sampled_from("ab01,;:=-_$/\\'\"{}[]()%!? #~*\tä²٣\N{ZERO WIDTH SPACE}\N{SNOWMAN}"), max_size=10)
values = st.one_of(
    st.sampled_from(["4", "0", "-1", "1e3", "16G", "1:00:00", "0", "off", "debug", "{n}", "$n", "{1/0}", "{", "'", '"']),
    st.integers(-3, 10**10).map(str), typed, anything,
)  # fmt: skip
right = st.sampled_from(
    ["--nodes 2", "-N1", "--mem=1G", "-a", "-o y", "--push x", "--scatter x", "-t 5", "--dry-run", "-r 0"]
)
options = st.one_of(
    st.sampled_from(OPTIONS), st.sampled_from(["--node", "--Nodes", "-x", "--", "-", "---", "-N4x", "--mem=", "-a-a"])
)
words = st.one_of(
    right, right, options, values, st.tuples(options, st.sampled_from(["=", " ", ""]), values).map("".join)
)
lines = st.lists(words, max_size=5).map(" ".join)
sources = st.one_of(
    st.just("rank * 10"), anything, st.lists(st.sampled_from(["x", "=", "(", ")", ":", "\n", "    ", "%", "!", "?", "'", '"', "\0", "\\",
                                        "def f", "await", "return", "%%remote", "é", "1"]), max_size=9).map("".join)
)  # fmt: skip


def alright(act, *arguments):
    """Do it; what is wrong with it is said in two lines. Give what came of it."""
    try:
        return act(*arguments)
    except HpcMagicError as error:
        told = str(error).split("\n")
        assert len(told) == 2, told
        assert told[1].startswith("→ ")
        assert len(told[1]) > 2
        return error
    except Bought as job:
        return job


@pytest.fixture
def typing(desk, monkeypatch):
    """The magics of a notebook where SLURM answers; no session outlives a line."""
    monkeypatch.setattr(start, "wait_until_ready", bought)
    monkeypatch.setattr(magics.frontend, "session_name", lambda: ("demo", True))
    monkeypatch.setattr(verbs, "orphans", list)  # not this machine's real ones
    names = {"n": 4, "x": [1, 2], "data": range(9)}

    def expand(text):
        try:
            return DollarFormatter().format(text, **names)
        except Exception:  # as IPython's shell does
            return text

    def type_(act, *arguments):
        typist = HpcMagics(None)
        typist.shell = SimpleNamespace(user_ns=dict(names), var_expand=expand, execution_count=1,
                                       displayhook=SimpleNamespace(exec_result=None))  # fmt: skip
        came = alright(getattr(typist, METHODS.get(act, act)), *arguments)
        jobs = len(desk.launcher.jobs)
        desk.launcher.jobs.clear()
        shutil.rmtree(desk.directory(), ignore_errors=True)
        shutil.rmtree(desk.directory().parent, ignore_errors=True)
        return came, jobs

    return type_


@TIMES
@given(lines, sources)
def test_cells(typing, line, source):
    """A cell's line and text: only a line that asks for something gets a job, and never two."""
    came, jobs = typing("remote_cell", line, source)
    assert jobs == isinstance(came, Bought)
    if jobs:
        asked = re.findall(r"(--[a-z-]+|-[A-Za-z])", line)
        assert set(asked) & set(ASKING) or any(one[:2] in ASKING for one in asked)
        assert "--dry-run" not in line.split()


@TIMES
@given(lines)
def test_expressions(typing, line):
    """The same of `%remote` with an expression, behind whatever options."""
    came, jobs = typing("remote_line", line)
    assert jobs == isinstance(came, Bought)


@TIMES
@given(st.sampled_from([name for name in MAGICS["line"] if name != "remote"]), lines)
def test_other_lines(typing, name, line):
    """The magics that need a session buy none."""
    came, jobs = typing(name, line)
    assert jobs == 0
    assert not isinstance(came, Bought)


@TIMES
@given(st.sampled_from(sorted(VERBS)), lines)
def test_verbs(typing, verb, line):
    """Of the verbs only `start` buys, what its line asks for, and `doctor`, to look around on it."""
    _, jobs = typing("hpc", f"{verb} {line}")
    assert jobs <= (verb in ("start", "doctor"))


FORMS = st.one_of(anything, typed, st.integers(), st.floats(), st.booleans(), st.none(), st.lists(anything, max_size=3),
                  st.dictionaries(anything, anything, max_size=2), values)  # fmt: skip


@TIMES
@given(
    st.dictionaries(st.sampled_from(profiles.KEYS), st.one_of(values, FORMS), max_size=5), st.one_of(anything, FORMS)
)
def test_scripts(said, tmp_path, asked, session):
    """The same from Python: what comes of it is a script with the lines that our own options make, or no script."""
    resources = alright(profiles.resolve, asked, {})
    if not isinstance(resources, profiles.Resources):
        return
    assert min(resources.nodes, resources.ntasks, resources.cpus_per_task) >= 1
    named = alright(start.require_name, session)
    name = "demo" if isinstance(named, HpcMagicError) else session
    resources = resources.with_origin("test", launcher="slurm", session_dir=str(tmp_path))
    script = alright(SlurmLauncher().script, JobSpec(name, SessionDirectory(tmp_path / name), resources))
    if isinstance(script, str):
        prologue = {line.strip() for text in resources.prologue for line in text.splitlines()}
        for line in script.splitlines():
            if line.startswith("#SBATCH") and line.strip() not in prologue:
                assert re.fullmatch(r"#SBATCH -?-[A-Za-z-]+([= ][!-~]+( [!-~]+)*)?", line), line


toml = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from(
        ["[profiles.cpu]\n", "[profiles.cpu]\nmem = '1G'\n", "[profiles]\n", "default = ", '"cpu"\n', "nodes = 2\n", "nodes = ", "partition = ", "'a'\n",
         "[[profiles]]\n", "profiles = 3\n", "cpu = 1\n", "mem = nan\n", "\N{SNOWMAN}", '"""', "[profiles.cpu.nodes]\n",
         "time = 07:32:00\n", "env = ['A', 3]\n", "prologue = [[1]]\n", "mpi = true\n", "default = [1]\n", "= \n"]
    ), max_size=6).map(lambda parts: "".join(parts).encode()),
)  # fmt: skip


@TIMES
@given(toml, st.sampled_from(["", "cpu"]))
def test_files(content, profile):
    """A file of profiles that says anything whatever."""
    path = profiles.user_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    alright(profiles.resolve, {"profile": profile}, {})
    alright(profiles.profile_names)
