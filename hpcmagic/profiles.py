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

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcmagic.errors import ProfileError
from hpcmagic.forms import (
    CHECKS,
    DURATIONS,
    FILE_KEYS,
    KEYS,
    LAUNCHERS,
    MPI_WAYS,
    UNLIMITED_S,
    canonical,
    guess,
    require_known,
    walltime_s,
)
from hpcmagic.profile_files import Files, all_names, origin_of, read_file
from hpcmagic.roles import may_use, require_role, role_of

__all__ = [
    "CHECKS", "FILE_KEYS", "KEYS", "LAUNCHERS", "MPI_WAYS", "SITE_FILE", "SIZES", "UNLIMITED_S", "Profiles",
    "Resources", "canonical", "every", "faults", "profile_names", "read_file", "resolve", "user_file",
    "walltime_s",
]  # fmt: skip

BUILT_IN: dict[str, Any] = {
    "default": "",
    "profiles": {"local": {"launcher": "local"}, "slurm": {"launcher": "slurm"}},
}
SITE_FILE = Path("/etc/hpcmagic/profiles.toml")
ENVIRONMENT = "HPCMAGIC_"  # HPCMAGIC_PARTITION=debug, HPCMAGIC_PROFILE=cpu …
SBATCH_ENVIRONMENT = {  # sbatch's own variables that a user may have set as a default
    "account": "SBATCH_ACCOUNT",
    "constraint": "SBATCH_CONSTRAINT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "time": "SBATCH_TIMELIMIT",
}
SIZES = ("nodes", "ntasks", "ntasks_per_node", "cpus_per_task", "mem", "gpus_per_node", "time")

KEY_WIDE = max(map(len, FILE_KEYS))
VALUE_WIDE = 60
REST = "A key that is not listed: the site's jobqueue.yaml, else SLURM's own default. `--dry-run` shows the script."


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
    idle_limit_s
        With no cell running or waiting for so long, the session ends; 0 = as long as the job.
    env
        Names of further environment variables that the job may see.
    prologue
        Shell lines before the keeper starts, e.g. ``module load openmpi``.
    allow_groups
        Unix groups whose members may use the profile; empty = everybody.
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
    gpus_per_node: int | str = 0
    time: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    mpi: str = "auto"
    interface: str = ""
    no_client_limit_s: float = 1200.0
    idle_limit_s: float = 0.0
    start_timeout_s: float = 300.0
    jobqueue: str = "slurm"  # section of dask-jobqueue's jobqueue.yaml, or FILE.yaml, or FILE.yaml:SECTION
    python: str = ""  # empty = this one
    env: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    cost_unit: str = ""  # what the site calls what it charges; empty = billing-minutes
    cost_divisor: float = 1.0  # billing-minutes in one unit
    price: float | None = None  # of one unit
    currency: str = ""
    confirm_above: float | None = None  # units: a job that may cost more is asked about
    allow_groups: tuple[str, ...] = ()
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


def user_file() -> Path:
    """Give the path of the user's own profiles."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "hpcmagic" / "profiles.toml"


def profile_names(*, roles: bool = True) -> list[str]:
    """Give the names of all profiles that this user may use; without roles, of all that there are."""
    files = _files()
    return sorted(name for name in all_names(files) if not roles or may_use(files, name))


def resolve(
    options: Mapping[str, Any], environment: Mapping[str, str] | None = None, *, roles: bool = True
) -> Resources:
    """Resolve options into resources.

    Parameters
    ----------
    options
        What the magic line or the call gave, by option name with underscores; None = not given.
    roles
        Whether a profile's `allow_groups` count: not for who only looks for sessions that there are.

    Raises
    ------
    ProfileError
        An unknown key or profile, or one that is for others; a file that cannot be read; a malformed or impossible
        value.
    """
    environment = os.environ if environment is None else environment
    given = {k: v for k, v in options.items() if v is not None}
    files = _files()
    name = str(given.pop("profile", "") or _default(files, environment))
    if roles:
        require_role(files, name)
    values: dict[str, tuple[Any, str]] = {}
    for path, content in files:
        for key, value in _profile(content, path, name, files).items():
            values[key] = (value, origin_of(path, name))
    if said := role_of(files, name):
        values["allow_groups"] = said
    for key in KEYS:
        variable = f"{ENVIRONMENT}{key.upper()}"
        for candidate in (SBATCH_ENVIRONMENT.get(key), variable):
            if candidate and environment.get(candidate):
                values[key] = (environment[candidate], f"environment {candidate}")
    for key, value in given.items():
        require_known(key, "option", KEYS)
        values[key] = (value, "asked for")
    return _checked(values, name)


@dataclass(frozen=True, slots=True)
class Profiles:
    """All profiles that this user may use; shown as a table of their values, and where each comes from.

    Attributes
    ----------
    default
        The profile of who names none, or empty.
    resolved
        By name: its resources, with `origins`; or what is wrong with it.
    """

    default: str
    resolved: dict[str, Resources | ProfileError]

    def __repr__(self) -> str:
        lines: list[str] = []
        for name, one in self.resolved.items():
            lines.append(f"{name} (default)" if name == self.default else name)
            if isinstance(one, ProfileError):
                lines += [f"  ✗ {one.message}", f"    → {one.mend}", ""]
                continue
            known = {**one.origins, **({"ntasks_per_node": ""} if "ntasks" in one.origins else {})}
            rows = [(key, _in_words(key, one), known[key]) for key in FILE_KEYS if known.get(key)]
            wide = max((len(value) for _, value, _ in rows), default=0)
            lines += [f"  {key:{KEY_WIDE}}  {value:{wide}}  {_whose(origin)}" for key, value, origin in rows]
            lines.append("")
        if not self.default:
            lines.append("No default.")
        elif self.default not in self.resolved:
            lines.append(f"The default, {self.default}, is none of these.")
        return "\n".join([*lines, f"site file: {_place(SITE_FILE)} · your file: {_place(user_file())}", REST])


def every(environment: Mapping[str, str] | None = None) -> Profiles:
    """Give all profiles that this user may use, resolved as a bare request would be.

    >>> from hpcmagic import profiles
    >>> profiles.every().resolved["local"].launcher
    'local'
    """
    environment = os.environ if environment is None else environment
    resolved: dict[str, Resources | ProfileError] = {}
    for name in profile_names():
        try:
            resolved[name] = resolve({"profile": name}, environment)
        except ProfileError as error:
            resolved[name] = error
    return Profiles(_default(_files(), environment), resolved)


def _in_words(key: str, resources: Resources) -> str:
    value = getattr(resources, f"{key}_s" if key in DURATIONS else key)
    if key in DURATIONS:
        value = f"{value / 60:g} min" if 0 < value < UNLIMITED_S else "off"
    text = " ; ".join(value) if key == "prologue" else ", ".join(value) if isinstance(value, tuple) else str(value)
    return text if len(text) <= VALUE_WIDE else f"{text[: VALUE_WIDE - 1]}…"


def _whose(origin: str) -> str:
    """Say in short where a value comes from."""
    whose = {str(SITE_FILE): "site file", str(user_file()): "your file", "built-in": "built in"}
    return next((words for place, words in whose.items() if place in origin), origin)


def _place(path: Path) -> str:
    return str(path) if path.exists() else f"{path} (not there)"


def _files() -> Files:
    return [(Path("hpcmagic"), BUILT_IN), *((path, read_file(path)) for path in (SITE_FILE, user_file()))]


def _default(files: Files, environment: Mapping[str, str]) -> str:
    """Give the profile of who names none: the site's only to those who may use it."""
    if named := environment.get(f"{ENVIRONMENT}PROFILE"):
        return named
    for path, content in reversed(files):
        name = content.get("default", "")
        if name and (path != SITE_FILE or may_use(files, name)):
            return str(name)
    return ""


def _profile(content: Mapping[str, Any], path: Path, name: str, files: Files) -> dict[str, Any]:
    """Give one file's part of a profile; an error when no file has it."""
    if name and name not in all_names(files):
        names = [n for n in all_names(files) if may_use(files, n)]
        mend = f"{guess(name, names)} Yours go into {user_file()} as `[profiles.NAME]`."
        raise ProfileError(f"There is no profile {name!r}.", mend)
    part: dict[str, Any] = content.get("profiles", {}).get(name, {})
    for key, value in part.items():
        require_known(key, f"key in profile {name} of {path}:", FILE_KEYS, value)
    return part


def faults(name: str, part: Mapping[str, Any], path: Path) -> Iterator[tuple[str, ProfileError]]:
    """Give all that is wrong with one file's part of a profile, by key; "" = keys that do not go together."""
    values = {key: (value, origin_of(path, name)) for key, value in part.items()}
    right = True
    for key, (value, origin) in values.items():
        try:
            require_known(key, "key", FILE_KEYS, value)
            CHECKS[key](key, value, origin)
        except ProfileError as error:
            right = False
            yield key, error
    try:
        if right:
            _checked(values, name)
    except ProfileError as error:
        yield "", error


def _checked(values: Mapping[str, tuple[Any, str]], profile: str) -> Resources:
    """Check every value's form, then whether they can go together."""
    checked = {key: CHECKS[key](key, value, origin) for key, (value, origin) in values.items()}
    origins = {key: origin for key, (_, origin) in values.items()}
    ntasks = checked.pop("ntasks", None)
    if ntasks is not None and _rank(values, "ntasks_per_node") > _rank(values, "ntasks"):
        ntasks = None  # what was said nearer to the cell counts
    for seconds in DURATIONS:
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
