"""What Tab offers on the lines of the magics, and that each magic shows its help."""

import atexit
from types import SimpleNamespace

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from hpcmagic import roles
from hpcmagic.launch.offers import Offers
from hpcmagic.notebook import completion, extension
from hpcmagic.notebook.completion import Completion
from hpcmagic.notebook.magics import MAGICS, HpcMagics
from hpcmagic.notebook.options import remote_parser
from hpcmagic.notebook.variables import Variables
from hpcmagic.notebook.verbs import VERBS
from hpcmagic.profiles import user_file
from hpcmagic.testing import FakeClock
from hpcmagic.wire.holdings import Variable
from hpcmagic.wire.pending import Pending


@pytest.fixture
def tab(said):
    """What may stand at the end of a line, of a notebook on a site with SLURM."""
    said["sinfo"] = "debug*|up|2|4000|1:00:00|intel\nlong|up|2|4000|1:00:00|amd\n"
    said["sacctmgr"] = "lab\nclass\n"
    magics = HpcMagics(None)
    magics.shell = SimpleNamespace(
        user_ns={"alpha": 1, "beta": 2, "_gamma": 3, "exit": 4, "pytest": pytest}, user_ns_hidden={"exit": 4}
    )
    completes = Completion(magics, Offers(FakeClock()))

    def press(line, **kwargs):
        begun, choices = completes.choices(line, **kwargs)
        assert line.endswith(begun)
        return [choice for choice in choices if choice.startswith(begun)]

    press.magics = magics
    return press


@pytest.fixture
def session(tab, monkeypatch):
    """The notebook's session of four ranks, which tell what they hold; asked counts how often."""
    session = SimpleNamespace(name="demo", size=4, control="control", running_cells=lambda: "", asked=[], cells=[])
    held = [Variable("small", "int", None, None, "", 28), Variable("rho", "numpy.ndarray", (9,), None, "f8", 72)]

    def variables_of(control, ranks, *, wait_s):
        assert wait_s <= 1
        session.asked.append(list(ranks))
        return Variables(dict.fromkeys(ranks, held))

    monkeypatch.setattr(completion, "variables_of", variables_of)
    tab.magics.held["demo"], tab.magics.session_name = session, "demo"
    return session


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("%%remote --partition ", ["debug", "long"]),
        ("%%remote --nodes 4 -p lo", ["long"]),
        ("%%remote --partition=d", ["debug"]),
        ("%%remote -pd", ["debug"]),
        ("%remote --partition debug,l", ["long"]),
        ("%hpc start -A ", ["class", "lab"]),
        ("%%remote --qos ", ["class", "lab"]),
        ("%%remote --constraint a", ["amd"]),
        ("%%remote --launcher ", ["local", "slurm"]),
        ("%%remote --profile ", ["local", "slurm"]),
        ("%%remote --dr", ["--dry-run"]),
        ("%%remote -p", ["-p"]),
        ("%%remote --keep --k", []),
        ("%%remote --mem ", []),
        ("%remote --loc", ["--local"]),
        ("%remote x + --loc", []),  # its code
        ("%remote -r 0 al", []),
        ("%push ", ["alpha", "beta"]),
        ("%push alpha ", ["beta"]),
        ("%push alpha,b", ["beta"]),
        ("  %scatter b", ["beta"]),
        ("%scatter --fr", ["--from"]),
        ("%%remote --push alpha,b", ["beta"]),
        ("%%remote --scatter=a", ["alpha"]),
        ("%hpc st", ["status", "start", "stop"]),
        ("%hpc hint ", ["on", "off"]),
        ("%hpc hint of", ["off"]),
        ("%hpc why ", ["-h"]),
        ("%hpc vars --a", ["--all"]),
        ("%hpc stop --", ["--orphans"]),
        ("%steer ", ["pause", "step", "resume", "stop"]),
        ("%steer --te", ["--text"]),
        ("%meter ", ["on", "off"]),
        ("y = %pull --ra", ["--ranks"]),
        ("%pull ", []),
        ("%time --", []),
        ("alpha % remote --", []),
        ("%remote", []),
    ],
)
def test_offered(tab, line, offered):
    """Each magic offers its options, their values, and the names that it takes; anywhere else nothing is offered."""
    assert tab(line) == offered


def test_every_option(tab):
    """Behind the magic every option is offered, in its long form."""
    options = remote_parser("%%remote")._option_string_actions
    assert set(tab("%%remote ")) == {option for option in options if option.startswith("--")}
    assert tab("%%remote --", first_line=False) == []


def test_verbs(tab):
    """Every verb is offered."""
    assert set(tab("%hpc ")) == {*VERBS, "--help"} - {""}


def test_own_profiles(tab):
    """The user's profiles are offered; a file that cannot be read offers nothing, and raises nothing."""
    user_file().parent.mkdir(parents=True)
    user_file().write_text("[profiles.wide]\nnodes = 4\n")
    assert tab("%%remote --profile w") == ["wide"]
    user_file().write_text("[profiles.wide\n")
    assert tab("%%remote --profile w") == []


def test_profiles_for_others(tab, monkeypatch):
    """A profile of a role is offered to its members only."""
    user_file().parent.mkdir(parents=True)
    user_file().write_text('[profiles.gpu]\nallow_groups = "gpu-users"\n')
    for groups, offered in (("alice", []), ("gpu-users", ["gpu"])):
        monkeypatch.setattr(roles, "own_groups", lambda groups=groups: frozenset([groups]))
        assert tab("%%remote --profile g") == offered


def test_sessions(tab, desk):
    """Sessions are offered by their names, those that have ended where they can be read."""
    desk.cell("one", nodes=1), desk.cell("two", nodes=1)
    desk.directory("two").parent.joinpath("ended", "three~1").mkdir(parents=True)
    assert tab("%hpc attach ") == ["one", "two", "three"]
    assert tab("%hpc stop t") == ["two"]
    assert tab("%%remote --session t") == ["two"]


def test_names_on_the_ranks(tab, session):
    """Names on the ranks are asked for, once until something has been sent to them, and never while a cell runs."""
    for line in ("%pull ", "%gather ", "%%remote --gather "):
        assert tab(line) == ["rho", "small"]
    assert tab("%pull rho s") == ["small"]
    assert session.asked == [[0, 1, 2, 3]]
    Pending([0])
    session.running_cells = lambda: "cell 3"
    assert tab("%pull ") == ["rho", "small"]
    assert len(session.asked) == 1
    session.running_cells = lambda: ""
    tab("%pull ")
    assert len(session.asked) == 2


def test_session_that_ended(tab, session):
    """The ranks of a session that is over are not asked."""
    session.control = None
    assert tab("%pull ") == []


def test_ranks(tab, session):
    """Ranks are offered, also behind others; not a thousand."""
    assert tab("%hpc log ") == ["0", "1", "2", "3"]
    assert tab("%%remote -r 0,2-") == ["0", "1", "2", "3"]
    assert tab("%push alpha --ranks 3") == ["3"]
    session.size = 1000
    assert tab("%hpc log ") == ["-h"]


def test_cells(tab, session, monkeypatch):
    """Cells that run are offered by the names of their handles, and by their numbers."""
    monkeypatch.setattr(completion, "Cell", SimpleNamespace)
    over, runs = (SimpleNamespace(done=lambda done=done: done) for done in (True, False))
    session.cells = [over, runs]
    tab.magics.shell.user_ns.update(over=over, job=runs, _hidden=runs)
    assert tab("%hpc cancel ") == ["job", "1"]


class Hostile:
    """A value whose every answer is an error."""

    @property
    def __class__(self):
        raise SystemExit


def test_no_value_is_asked(tab):
    """No code of the user's values runs for a Tab."""
    tab.magics.shell.user_ns["hostile"] = Hostile()
    assert tab("%push h") == ["hostile"]
    assert tab("%hpc cancel h") == []


# ---- in IPython


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A shell of IPython's with the extension loaded."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "ipython").mkdir()
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config)
    shell.run_line_magic("load_ext", "hpcmagic")
    yield shell
    shell.run_line_magic("unload_ext", "hpcmagic")
    shell.atexit_operations()
    atexit.unregister(shell.atexit_operations)
    shell.restore_sys_module_state()


def completed(shell, text):
    """What IPython itself offers, with the place where it goes."""
    with provisionalcompleter():
        return [(text[: one.start] + one.text) for one in shell.Completer.completions(text, len(text))]


@pytest.mark.parametrize("use_jedi", [True, False])
@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("%hpc hi", ["%hpc hint"]),
        ("%%remote --launcher=s", ["%%remote --launcher=slurm"]),
        ("%%remote --push here,he", ["%%remote --push here,here"]),
        ("x = 1\n%push he", ["x = 1\n%push here"]),
    ],
)
def test_in_ipython(shell, use_jedi, text, offered):
    """IPython offers just that, with jedi and without, and puts it in the right place."""
    shell.Completer.use_jedi = use_jedi
    shell.user_ns["here"] = 1
    assert completed(shell, text) == offered


@pytest.mark.parametrize("use_jedi", [True, False])
@pytest.mark.parametrize(
    "text", ["%hpc stop pri", "%hpc why pri", "%%remote --nodes ", "%%remote --out pri", "%push nothing_of_mi"]
)
def test_nothing_to_offer(shell, use_jedi, text, monkeypatch):
    """Where there is nothing to offer on a line of ours, IPython offers no names of Python's instead."""
    monkeypatch.setattr("hpcmagic.notebook.completion.session_names", list)
    shell.Completer.use_jedi = use_jedi
    assert completed(shell, text) == [text]
    assert completed(shell, "%hpc stop ") == ["%hpc stop --orphans"]
    assert completed(shell, "%hpc why ") == ["%hpc why -h"]


@pytest.mark.parametrize("use_jedi", [True, False])
def test_elsewhere(shell, use_jedi, tmp_path, monkeypatch):
    """Anywhere else IPython completes as ever: in code, and where a path is typed."""
    shell.Completer.use_jedi = use_jedi
    shell.user_ns["here_too"] = 1
    assert "here_too" in completed(shell, "here_t")
    assert "%%remote\nhere_too" in completed(shell, "%%remote\nhere_t")
    if not use_jedi:  # which knows nothing of magics
        assert "%remote here_too" in completed(shell, "%remote here_t")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rho.npy").touch()
    assert "%scatter x --from rho.npy" in completed(shell, "%scatter x --from rh")


def attachments(shell):
    """How often each thing of ours is in the shell."""
    ours = (extension.Watch, Completion, HpcMagics)
    callbacks = [call for calls in shell.events.callbacks.values() for call in calls]
    hooked = [call for call in (*callbacks, *shell.Completer.custom_matchers) if hasattr(call, "__self__")]
    known = {"line": shell.magics_manager.magics["line"], "cell": shell.magics_manager.magics["cell"]}
    return (
        sum(isinstance(call.__self__, ours) for call in hooked),
        sum(isinstance(one, ours) for one in shell.configurables),
        sum(name in known[kind] for kind, names in MAGICS.items() for name in names),
    )


def test_loaded_again_and_taken_away(shell):
    """Loaded again, everything is there once; unloaded, nothing is left; the sessions that it held are kept."""
    all_magics = sum(map(len, MAGICS.values()))
    held = shell.magics_manager.registry["HpcMagics"].held
    assert attachments(shell) == (3, 1, all_magics)
    for again in ("reload_ext", "load_ext", "reload_ext"):
        shell.run_line_magic(again, "hpcmagic")
        assert attachments(shell) == (3, 1, all_magics)
    shell.run_line_magic("unload_ext", "hpcmagic")
    assert attachments(shell) == (0, 0, 0)
    shell.run_line_magic("load_ext", "hpcmagic")
    assert attachments(shell) == (3, 1, all_magics)
    assert shell.magics_manager.registry["HpcMagics"].held is held


def test_unloaded_twice(shell):
    """What is not loaded is unloaded without a word."""
    for _ in range(2):
        extension.unload(shell)
    assert attachments(shell) == (0, 0, 0)


def test_config(shell, capsys):
    """`%config HpcMagics` shows what can be configured, and sets it."""
    shell.run_line_magic("config", "HpcMagics")
    assert "HpcMagics.hint=<Bool>" in capsys.readouterr().out
    shell.run_line_magic("config", "HpcMagics.hint = False")
    assert shell.magics_manager.registry["HpcMagics"].hint is False


@pytest.mark.parametrize("kind", ["line", "cell"])
def test_question_mark(shell, kind):
    """`%%remote?` and its like show what `-h` shows."""
    for name in MAGICS[kind]:
        text = shell.object_inspect(f"{'%' if kind == 'line' else '%%'}{name}")["docstring"]
        assert "usage: %" in text or f"%{name} " in text
        assert len(text.splitlines()) > 5
    if kind == "cell":
        assert all(option in text for option in remote_parser("%%remote")._option_string_actions)


def test_help_of_a_verb(shell, capsys):
    """`-h` behind a verb shows its lines, or its options."""
    for verb in filter(None, VERBS):
        shell.run_line_magic("hpc", f"{verb} -h")
        assert f"%hpc {verb} " in capsys.readouterr().out


def test_hint_verb(shell, capsys):
    """`%hpc hint off` silences the hint for good, `on` brings it back, and without a word it says how it stands."""
    for said in ("on", "off", "on"):
        shell.run_line_magic("hpc", f"hint {said}")
        shell.run_line_magic("hpc", "hint")
        assert capsys.readouterr().out == f"The hint after long cells is {said}.\n" * 2
    with pytest.raises(Exception, match="'maybe'"):
        shell.run_line_magic("hpc", "hint maybe")
