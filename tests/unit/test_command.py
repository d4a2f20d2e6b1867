"""The command `hpcmagic`: what it says of a file of profiles, and the example that it prints."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hpcmagic import profiles
from hpcmagic.__main__ import GOOD, NO_FILE, WRONG, example, main
from hpcmagic.forms import FILE_KEYS
from hpcmagic.profile_files import line_of
from hpcmagic.profiles import every, resolve, user_file

REPO = Path(__file__).parents[2]
SWITCH = re.compile(r"^#(?=[a-z\[])", re.MULTILINE)


@pytest.fixture
def check(tmp_path, capsys, monkeypatch):
    """Check a file of this content; give the exit status and what was said, its path left out."""
    monkeypatch.setattr("hpcmagic.launch.jobqueue._sections", lambda _file: {"slurm": {}, "gpu": {"queue": "gpu"}})

    def checked(content):
        path = tmp_path / "draft.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        status = main(["profile", "check", str(path)])
        said = capsys.readouterr()
        return status, (said.out + said.err).replace(str(path), "FILE")

    return checked


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[profiles.cpu]\nnodes = 2\n[profiles.gpu]\n", ["FILE: profile cpu: OK", "FILE: profile gpu: OK"]),
        ("", ["FILE: nothing in it"]),
        ("\ufeff[profiles.cpu]\nnodes = 2\n", ["FILE: profile cpu: OK"]),
        ('default = "local"\n', []),
        ('[profiles.cpu]\nallow_groups = ["rooot"]\n', ["no group 'rooot'", "Did you mean 'root'?", "cpu: OK"]),
        ('[profiles.cpu]\njobqueue = "gpuu"\n', ["note: jobqueue.yaml has no section 'gpuu'", "slurm, gpu"]),
        ('[profiles.cpu]\njobqueue = "gpu"\nallow_groups = "root"\n', ["FILE: profile cpu: OK\n"]),
    ],
)
def test_right(check, content, said):
    """Of each profile that is right that is said; what only this machine does not know is a note."""
    status, words = check(content)
    assert status == GOOD
    assert [text for text in said if text not in words] == []
    assert ("note" in words) == any("no " in text for text in said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[profiles.cpu]\npartitoin = "x"\n', ["FILE:2: profile cpu: Unknown key 'partitoin'", "mean 'partition'?"]),
        ("[profiles.a]\n\n[profiles.'b']\n\"nodes\" = 0\n", ["profile a: OK", "FILE:4: profile b: --nodes 0"]),
        ("[profiles.a]\nnodes = 'x'\nmem = 'y'\n", ["FILE:2: profile a: --nodes", "FILE:3: profile a: --mem"]),
        ("[profiles.a]\nnodes = 2\nntasks = 3\n", ["FILE:1: profile a: --ntasks 3 does not divide"]),
        (
            "[profiles.a]\nmem = '1G'\n[profiles.a.big]\nmem = '2G'\n",
            ["FILE:3: profile a: Unknown key 'big'", "nest"],
        ),
        ("[profiles.a.env]\nA = 1\n", ["FILE:1: profile a: --env {'A': 1}"]),
        ("[profiles.a]\nenv.A = 1\n", ["FILE:2: profile a: --env {'A': 1}"]),
        ("[profiles.a]\nallow_groups = []\n", ["FILE:2: profile a: --allow-groups []"]),
        ('default = "cpuu"\n[profiles.cpu]\n', ["default 'cpuu': there is no such", "mean 'cpu'?", "cpu: OK"]),
        ("default = 3\n", ["FILE: `default` 3 is no name"]),
        ("defualt = 'a'\n", ["FILE: unknown key 'defualt'", "Did you mean 'default'?"]),
        ("[profile.cpu]\n", ["FILE: unknown key 'profile'", "Did you mean 'profiles'?"]),
        ("[cpu]\nnodes = 1\n", ["FILE: unknown key 'cpu'", "`[profiles.cpu]`"]),
        ("partitoin = 'a'\n", ["FILE: unknown key 'partitoin'", "`partition` goes below a line `[profiles.NAME]`"]),
        ("[profiles.cpu\n", ["FILE is not TOML", "line 1"]),
        ("[profiles.cpu]\nmem = 16G\n", ["FILE is not TOML", "line 2", 'in quotes: `mem = "16G"`']),
        ("[profiles.cpu]\ntime = 01:30:00\n", ["FILE:2: profile cpu: --time 01:30:00 (", "Write it in quotes, as"]),
        ("[profiles.cpu]\nidle_limit = '1 h'\n", ["FILE:2: profile cpu: --idle-limit '1 h'", "H:MM:SS or `off`"]),
        ("[profiles.cpu]\nnodes = 1\nnodes = 2\n", ["FILE is not TOML", "line 3"]),
        ('[profiles.cpu]\nx = """\n', ["FILE is not TOML", "at the end, line 2"]),
        ("profiles = 3\n", ["`profiles` must hold tables"]),
    ],
)
def test_wrong(check, content, said):
    """Each thing that is wrong is said with its line, its key and the nearest guess; the exit status tells."""
    status, words = check(content)
    assert status == WRONG
    assert [text for text in said if text not in words] == []
    assert "→" in words


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_unreadable(check, tmp_path, capsys, content):
    """A file that is not there, or no text, is another exit status."""
    status = check(content)[0] if content else main(["profile", "check", str(tmp_path / "none.toml")])
    assert status == NO_FILE


def test_default_from_another_file(check):
    """A default that another of the two files has is right, and that is said."""
    profiles.SITE_FILE.write_text("[profiles.cpu]\n")
    assert check('default = "cpu"\n') == (
        GOOD,
        "FILE: default cpu: OK, though the profile stands in another file\n",
    )


@pytest.mark.parametrize("line", [[], ["profile"], ["profil"], ["profile", "check"], ["profile", "chekc", "x"]])
def test_wrong_line(line, capsys):
    """A line that says nothing to do is argparse's affair: exit status 2, with the usage."""
    with pytest.raises(SystemExit) as left:
        main(line)
    assert left.value.code == NO_FILE
    assert "usage: hpcmagic" in capsys.readouterr().err


def test_list(capsys):
    """In a terminal the list is the one that `%hpc profiles` shows; a file that cannot be read is told in two lines."""
    assert main(["profile", "list"]) == GOOD
    assert capsys.readouterr().out == f"{every()}\n"
    user_file().parent.mkdir(parents=True)
    user_file().write_text("[")
    assert main(["profile", "list"]) == WRONG
    assert "→" in capsys.readouterr().err


def test_command_starts():
    """The console script and `python -m hpcmagic` are this command."""
    target = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]["hpcmagic"]
    module, _, name = target.partition(":")
    assert getattr(importlib.import_module(module), name).__code__ == main.__code__
    command = [sys.executable, "-m", "hpcmagic", "--version"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout), done.stderr


# ---- the example


def test_example_whole(check):
    """The example is right as it is, and with every line of it switched on; then no key is missing."""
    assert check(example())[0] == GOOD
    full = SWITCH.sub("", example())
    assert check(full)[0] == GOOD
    named = {key for part in tomllib.loads(full)["profiles"].values() for key in part}
    assert named == set(FILE_KEYS)


def test_example_explains():
    """Every key of the example says on its line, or on the one above it, what it is for."""
    lines = example().splitlines()
    keys = [n for n, line in enumerate(lines) if re.match(r"#?[a-z_]+ = ", line)]
    groups = [n for n, line in enumerate(lines) if line.startswith("# ")]
    assert [
        lines[n] for n in keys if "#" not in lines[n][1:] and not any(n - 8 < above < n for above in groups)
    ] == []


def test_example_works(capsys):
    """What the command prints serves as the site's file."""
    assert main(["profile", "example"]) == GOOD
    profiles.SITE_FILE.write_text(capsys.readouterr().out)
    resources = resolve({}, {})
    assert (resources.profile, resources.launcher, resources.time) == ("compute", "slurm", "1:00:00")


def test_line_of():
    """A line is found by its profile and key, not by the key in another profile or in a comment."""
    text = "default = 'b'\n[profiles.a]\nmem = '1G'\n[profiles.b]\n# mem = '2G'\nmem = '3G'\n[profiles.b.c]\n"
    assert [line_of(text, *words) for words in (("b",), ("b", "mem"), ("b", "c"), ("a", "time"), ("x",))] == [
        4, 6, 7, 0, 0,
    ]  # fmt: skip
