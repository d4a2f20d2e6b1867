"""The laws of the house: who may import whom, what loads, how long a module is, what things are called."""

import inspect
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hpcmagic import errors

REPO = Path(__file__).parents[2]
PACKAGE = REPO / "hpcmagic"
PATHS = sorted(path for path in PACKAGE.rglob("*") if "__pycache__" not in path.parts)
HEAVY = {"ipyparallel", "dask", "distributed", "dask_jobqueue", "numpy", "zmq", "IPython", "cryptography"}
LONGEST = 420  # lines
VAGUE = {"utils", "common", "core", "helpers", "manager", "handler"}
MAY_REPEAT = {"__init__.py", "__main__.py"}

DOWNWARD = "Imports go downward only"
COMPUTE_NODES = "Keeper and engine never see launch or profiles"

BROKEN = {
    "upward": (DOWNWARD, {"wire/new.py": "import hpcmagic.launch"}),
    "upward, lazily": (DOWNWARD, {"rendezvous.py": "def later():\n    from hpcmagic.wire import crypto"}),
    "upward, round about": (DOWNWARD, {"wire/new.py": "import hpcmagic"}),
    "between the pure ones": (DOWNWARD, {"rendezvous.py": "import hpcmagic.profiles"}),
    "notebook to keeper": (DOWNWARD, {"notebook/new.py": "import hpcmagic.keeper"}),
    "keeper to engine": (DOWNWARD, {"keeper/new.py": "import hpcmagic.engine"}),
    "engine to notebook": (DOWNWARD, {"engine/new.py": "import hpcmagic.notebook"}),
    "a module without a layer": (DOWNWARD, {"new.py": ""}),
    "keeper to profiles": (COMPUTE_NODES, {"keeper/new.py": "import hpcmagic.profiles"}),
    "engine to launch": (COMPUTE_NODES, {"engine/new.py": "import hpcmagic.launch.base"}),
    "engine to profiles, round about": (
        COMPUTE_NODES,
        {"engine/new.py": "import hpcmagic.wire.new", "wire/new.py": "import hpcmagic.profiles"},
    ),
}


def lint_imports(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Hold the contracts of pyproject.toml against the package in that directory."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60)


def test_imports_lawful():
    """The three laws: downward only, three folders that never meet, compute nodes read no configuration."""
    done = lint_imports(REPO)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("law", "files"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_law_found(tmp_path, law, files):
    """Whoever breaks a law is told: a contract that nothing can break would guard nothing."""
    shutil.copytree(PACKAGE, tmp_path / "hpcmagic", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    for name, text in files.items():
        with (tmp_path / "hpcmagic" / name).open("a") as module:
            module.write(f"\n{text}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{law} BROKEN" in done.stdout


def test_import_light():
    """`import hpcmagic` costs next to nothing: what is heavy loads when it is first used."""
    code = "import sys, hpcmagic; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "hpcmagic" in loaded
    assert not loaded & HEAVY


def test_modules_short():
    """A module is one family of things: at most about 400 lines."""
    lengths = {str(path): len(path.read_text().splitlines()) for path in PATHS if path.suffix == ".py"}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_names_unique():
    """No file name twice: a name in a traceback or an editor's tab says which file it is."""
    names = Counter(path.name for path in PATHS if path.is_file() and path.name not in MAY_REPEAT)
    assert [name for name, count in names.items() if count > 1] == []


def test_names_say_something():
    """No folder and no file is called what could hold anything."""
    assert [str(path) for path in PATHS if path.stem in VAGUE] == []


def drawn_tree() -> dict[str, str]:
    """Child → parent, as drawn in the docstring of errors.py; the root's parent is Exception."""
    branch = re.compile(r"(?P<indent>[ │]*(?:[├└]── )?)(?P<name>[A-Z]\w+)(?:  |$)")
    lines = inspect.cleandoc(errors.__doc__).splitlines()
    rows = [row for row in map(branch.match, lines) if row]
    margin = len(rows[0]["indent"])
    parents, path = {}, ["Exception"]
    for row in rows:
        depth = (len(row["indent"]) - margin) // 4
        path[depth + 1 :] = [row["name"]]
        parents[row["name"]] = path[depth]
    return parents


def test_errors_drawn():
    """The tree at the top of errors.py is the tree of its classes."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert {c.__name__: c.__bases__[0].__name__ for c in classes} == drawn_tree()


def test_errors_documented():
    """Each error says what it means, and stands below the root that callers catch."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert [c.__name__ for c in classes if not vars(c).get("__doc__")] == []
    assert [c.__name__ for c in classes if not issubclass(c, errors.HpcMagicError)] == []
