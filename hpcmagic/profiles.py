"""What you ask for: site + request, from TOML, environment and options → one frozen `Resources`.

    magic line / keyword  >  environment  >  user's TOML  >  site's TOML  >  built in  >  default

Every value remembers where it came from (`Resources.origins`). Resolved once, on the notebook's side;
compute nodes read no configuration.

A file of profiles::

    default = "cpu"                  # the profile of who names none

    [profiles.cpu]
    launcher = "slurm"
    partition = "debug"
    account = "alice-lab"
    time = "1:00:00"
    session_dir = "~/.local/state/hpcmagic"
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hpcmagic.errors import ProfileError

BUILT_IN = {"default": "", "profiles": {"local": {"launcher": "local"}, "slurm": {"launcher": "slurm"}}}
SITE_FILE = Path("/etc/hpcmagic/profiles.toml")
ENVIRONMENT = "HPCMAGIC_"  # HPCMAGIC_PARTITION=debug, HPCMAGIC_PROFILE=cpu …
SBATCH_ENVIRONMENT = {  # sbatch's own variables that a user may have set as a default
    "account": "SBATCH_ACCOUNT",
    "constraint": "SBATCH_CONSTRAINT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "time": "SBATCH_TIMELIMIT",
}
LAUNCHERS = ("local", "slurm")
MPI_WAYS = ("auto", "pmix", "pmi2", "mpiexec", "none")
UNLIMITED_S = 1e9
SIZES = ("nodes", "ntasks", "ntasks_per_node", "cpus_per_task", "mem", "gpus_per_node", "time")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a session asks for. Names and forms are sbatch's own.

    Attributes
    ----------
    mem
        Memory a node, e.g. ``16G``; empty = the partition's default.
    time
        Walltime in one of sbatch's forms; empty = the partition's default.
    no_client_limit_s
        With no notebook connected and no cell running for so long, the session ends; 0 = as long as the job.
    env
        Names of further environment variables that the job may see.
    prologue
        Shell lines before the keeper starts, e.g. ``module load openmpi``.
    origins
        For each field, where its value came from.
    """

    profile: str = ""
    launcher: str = ""  # empty = what is there
    session_dir: str = ""
    nodes: int = 1
    ntasks_per_node: int = 1
    cpus_per_task: int = 1
    mem: str = ""
    gpus_per_node: int = 0
    time: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    mpi: str = "auto"
    interface: str = ""
    no_client_limit_s: float = 1200.0
    start_timeout_s: float = 300.0
    jobqueue: str = "slurm"  # section of dask-jobqueue's jobqueue.yaml
    python: str = ""  # empty = this one
    env: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def ntasks(self) -> int:
        """Number of ranks."""
        return self.nodes * self.ntasks_per_node

    @property
    def directory(self) -> Path:
        """Where the directories of sessions lie."""
        if self.session_dir:
            try:
                return Path(self.session_dir).expanduser()
            except RuntimeError:
                raise ProfileError(
                    f"session_dir {self.session_dir!r}: no such home.", "Write the path in full."
                ) from None
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return Path(state).expanduser() / "hpcmagic"

    def asked(self) -> dict[str, Any]:
        """Give what identifies a session's resources: two requests that agree here share a session."""
        names = (*SIZES, "partition", "account", "qos", "constraint", "launcher", "profile")
        return {name: getattr(self, name) for name in names}

    def with_origin(self, origin: str, **values: Any) -> Resources:
        """Give a copy with some values, and where they came from."""
        return replace(self, **values, origins={**self.origins, **dict.fromkeys(values, origin)})


KEYS = (
    *(
        f.name
        for f in fields(Resources)
        if f.name not in ("profile", "origins", "no_client_limit_s", "start_timeout_s")
    ),
    "ntasks",
    "no_client_limit",
    "start_timeout",
)


def user_file() -> Path:
    """Give the path of the user's own profiles."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "hpcmagic" / "profiles.toml"


def profile_names() -> list[str]:
    """Give the names of all profiles there are."""
    files = (BUILT_IN, read_file(SITE_FILE), read_file(user_file()))
    return sorted({name for content in files for name in content.get("profiles", {})})


def resolve(options: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Resources:
    """Resolve options into resources.

    Parameters
    ----------
    options
        What the magic line or the call gave, by option name with underscores; None = not given.

    Raises
    ------
    ProfileError
        An unknown key or profile, a file that cannot be read, a malformed or impossible value.
    """
    environment = os.environ if environment is None else environment
    given = {k: v for k, v in options.items() if v is not None}
    files = [(Path("hpcmagic"), BUILT_IN), *((path, read_file(path)) for path in (SITE_FILE, user_file()))]
    name = str(given.pop("profile", "") or environment.get(f"{ENVIRONMENT}PROFILE") or _default(files))
    values: dict[str, tuple[Any, str]] = {}
    for path, content in files:
        for key, value in _profile(content, path, name, files).items():
            values[key] = (value, f"profile {name} in {path}" if path.suffix else f"built-in profile {name}")
    for key in KEYS:
        variable = f"{ENVIRONMENT}{key.upper()}"
        for candidate in (SBATCH_ENVIRONMENT.get(key), variable):
            if candidate and environment.get(candidate):
                values[key] = (environment[candidate], f"environment {candidate}")
    for key, value in given.items():
        _known(key, "option")
        values[key] = (value, "asked for")
    return _checked(values, name)


def read_file(path: Path) -> dict[str, Any]:
    """Read one file of profiles; empty when there is none."""
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"Cannot read {path}: {error}.", "Mend or remove that file.") from error
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{path} is not TOML: {error}.", "Mend that line.") from error
    for key in content:
        if key not in ("default", "profiles"):
            raise ProfileError(f"{path}: unknown key {key!r}.", _guess(key, ("default", "profiles")))
    profiles = content.get("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise ProfileError(f"{path}: `profiles` must hold tables.", "Write `[profiles.NAME]` above the keys.")
    return content


def _default(files: Iterable[tuple[Path, Mapping[str, Any]]]) -> str:
    return next((str(c["default"]) for _, c in reversed(list(files)) if c.get("default")), "")


def _profile(content: Mapping[str, Any], path: Path, name: str, files: Any) -> dict[str, Any]:
    """Give one file's part of a profile; an error when no file has it."""
    names = sorted({n for _, c in files for n in c.get("profiles", {})})
    if name and name not in names:
        mend = f"{_guess(name, names)} Yours go into {user_file()} as `[profiles.NAME]`."
        raise ProfileError(f"There is no profile {name!r}.", mend)
    part: dict[str, Any] = content.get("profiles", {}).get(name, {})
    for key in part:
        _known(key, f"key in profile {name} of {path}:")
    return part


def _known(key: str, what: str) -> None:
    if key not in KEYS:
        raise ProfileError(f"Unknown {what} {key!r}.", _guess(key, KEYS))


def _guess(word: str, valid: Iterable[str]) -> str:
    choices = list(valid)
    near = difflib.get_close_matches(word, choices, 1, 0.5)
    listed = ", ".join(choices)
    return f"Did you mean {near[0]!r}? Valid: {listed}." if near else f"Valid: {listed}."


def _checked(values: Mapping[str, tuple[Any, str]], profile: str) -> Resources:
    """Check every value's form, then whether they can go together."""
    checked = {key: CHECKS[key](key, value, origin) for key, (value, origin) in values.items()}
    origins = {key: origin for key, (_, origin) in values.items()}
    ntasks = checked.pop("ntasks", None)
    if ntasks is not None and _rank(values, "ntasks_per_node") > _rank(values, "ntasks"):
        ntasks = None  # what was said nearer to the cell counts
    for seconds in ("no_client_limit", "start_timeout"):
        if seconds in checked:
            checked[f"{seconds}_s"] = checked.pop(seconds)
    if ntasks is not None:
        checked.update(_spread(ntasks, checked, origins))
        origins["ntasks_per_node"] = origins["ntasks"]
    return Resources(profile=profile, **checked, origins=origins)


def _rank(values: Mapping[str, tuple[Any, str]], key: str) -> int:
    """Say how near to the cell a value was given: by option, environment, the user, the site; -1 if not at all."""
    origin = values[key][1] if key in values else "nowhere"
    nearness = ("nowhere", "built-in", f"in {SITE_FILE}", "in ", "environment", "asked for")
    return max(n for n, words in enumerate(nearness) if words in origin) - 1


def _spread(ntasks: int, checked: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, int]:
    """Turn a number of tasks into nodes × tasks a node."""
    nodes = checked.get("nodes", 1)
    if ntasks % nodes or ntasks < nodes:
        raise ProfileError(
            f"--ntasks {ntasks} does not divide over --nodes {nodes}.",
            f"Ask for a multiple of {nodes}, or for `--ntasks-per-node`.",
        )
    per_node = checked.get("ntasks_per_node")
    if per_node is not None and per_node * nodes != ntasks:
        if origins.get("ntasks") != origins.get("ntasks_per_node"):
            return {"ntasks_per_node": ntasks // nodes}
        raise ProfileError(
            f"--ntasks {ntasks} is not --nodes {nodes} × --ntasks-per-node {per_node}.",
            "Leave one of them out.",
        )
    return {"ntasks_per_node": ntasks // nodes}


def _malformed(key: str, value: Any, origin: str, form: str) -> ProfileError:
    option = f"--{key.replace('_', '-')}"
    return ProfileError(f"{option} {value!r} ({origin}) is malformed.", f"Write it as {form}.")


def _count(least: int) -> Callable[[str, Any, str], int]:
    def check(key: str, value: Any, origin: str) -> int:
        digits = re.fullmatch(r"[0-9]{1,9}", str(value).strip())
        if digits is None or int(digits[0]) < least:
            raise _malformed(key, value, origin, f"a whole number of at least {least}")
        return int(digits[0])

    return check


def _matching(pattern: str, form: str) -> Callable[[str, Any, str], str]:
    def check(key: str, value: Any, origin: str) -> str:
        if (
            not isinstance(value, str | int)
            or isinstance(value, bool)
            or not re.fullmatch(pattern, str(value), re.ASCII)
        ):
            raise _malformed(key, value, origin, form)
        return str(value)

    return check


def _one_of(*choices: str) -> Callable[[str, Any, str], str]:
    def check(key: str, value: Any, origin: str) -> str:
        if value not in choices:
            raise _malformed(key, value, origin, " or ".join(choices))
        return str(value)

    return check


def _texts(pattern: str, form: str, *, between: str | None) -> Callable[[str, Any, str], tuple[str, ...]]:
    one = _matching(pattern, form)

    def check(key: str, value: Any, origin: str) -> tuple[str, ...]:
        items = value.split(between) if between and isinstance(value, str) else value
        items = [items] if isinstance(items, str) else items
        if not isinstance(items, list | tuple):
            raise _malformed(key, value, origin, f"a list of {form}")
        return tuple(one(key, item, origin) for item in items)

    return check


def _duration(key: str, value: Any, origin: str) -> float:
    """Read seconds from `off`, a number of minutes, or one of sbatch's forms."""
    if str(value).lower() in ("off", "0"):
        return 0.0
    return float(walltime_s(_walltime(key, value, origin)) or 0)


def walltime_s(text: str) -> int | None:
    """Read one of sbatch's forms of a time: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None = unlimited.

    >>> walltime_s("90"), walltime_s("1:30:00"), walltime_s("1-12")
    (5400, 5400, 129600)
    """
    if text.lower() in ("infinite", "unlimited", ""):
        return None
    days, dash, rest = text.rpartition("-")
    numbers = [int(n) for n in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, minutes, seconds = {1: (0, *numbers, 0), 2: (0, *numbers)}.get(len(numbers), tuple(numbers))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def canonical(name: str, value: Any) -> Any:
    """Give a resource's value in one form, so that the same in other words is the same.

    >>> canonical("time", "60") == canonical("time", "1:00:00")
    True
    """
    if name == "time" and value:
        return walltime_s(value)
    if name == "mem" and value:
        number, unit = re.fullmatch(r"(\d+)([KMGT]?)B?", str(value).upper()).groups()  # type: ignore[union-attr]
        return int(number) << {"K": 10, "": 20, "M": 20, "G": 30, "T": 40}[unit]
    return value


_walltime = _matching(
    r"(?![0:-]+$)(\d+|\d+:[0-5]\d|\d+:[0-5]\d:[0-5]\d|\d+-\d+(:[0-5]\d){0,2})|(?i:infinite|unlimited)",
    "minutes, H:MM:SS or D-HH:MM:SS, e.g. `--time 1:30:00`",
)
_name = _matching(r"[A-Za-z0-9_.,@+-]+", "a name without blanks")
_line = _matching(r"[^\n\r\0]*", "one line of text")

CHECKS: dict[str, Callable[[str, Any, str], Any]] = {
    "launcher": _one_of(*LAUNCHERS),
    "session_dir": _matching(r"[~/][^\n\r\0$]*", "an absolute path, or one below ~, without `$`"),
    "nodes": _count(1),
    "ntasks": _count(1),
    "ntasks_per_node": _count(1),
    "cpus_per_task": _count(1),
    "mem": _matching(r"\d+(?i:[KMGT]B?)?", "a size, e.g. `--mem 16G`"),
    "gpus_per_node": _count(0),
    "time": _walltime,
    "partition": _name,
    "account": _name,
    "qos": _name,
    "constraint": _matching(r"[A-Za-z0-9_.,&|*()\[\]!+-]+", "a constraint without blanks, e.g. `intel&gpu`"),
    "mpi": _one_of(*MPI_WAYS),
    "interface": _name,
    "no_client_limit": _duration,
    "start_timeout": lambda key, value, origin: _duration(key, value, origin) or UNLIMITED_S,
    "jobqueue": _name,
    "python": _line,
    "env": _texts(r"[A-Za-z_][A-Za-z0-9_]*", "names of environment variables", between=","),
    "prologue": _texts(r"[^\n\r\0]*", "shell lines", between=None),
}
