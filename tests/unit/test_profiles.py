"""What you ask for: where each value comes from, what is refused, and how that is said."""

import os
from dataclasses import fields
from pathlib import Path

import pytest
from two_lines import two_lines

from hpcmagic import profiles
from hpcmagic.errors import ProfileError
from hpcmagic.forms import DURATIONS
from hpcmagic.profiles import CHECKS, KEYS, Resources, read_file, resolve, user_file, walltime_s


@pytest.fixture
def site():
    """Write the site's profiles."""
    return profiles.SITE_FILE.write_text


@pytest.fixture
def user():
    """Write the user's profiles."""
    user_file().parent.mkdir(parents=True)
    return user_file().write_text


def refused(*, match=None, environment=None, **options):
    """The error with which `resolve` refuses."""
    with pytest.raises(ProfileError, match=match) as error:
        resolve(options, environment or {})
    return two_lines(error)


def test_defaults():
    """Without any word there is one rank, and no walltime, partition or account is made up."""
    assert resolve({}, {}) == Resources()
    assert Resources().ntasks == 1
    assert resolve({}, {}).time == ""
    assert resolve({}, {}).origins == {}


LEVELS = ("site", "user", "sbatch", "environment", "option")


@pytest.mark.parametrize("highest", range(len(LEVELS)), ids=LEVELS)
def test_precedence(site, user, highest):
    """An option beats the environment, that beats sbatch's variables, the user's file and the site's."""
    environment, options = {}, {}
    for level, name in enumerate(LEVELS[: highest + 1]):
        if level < 2:
            content = f'default = "p"\n[profiles.p]\naccount = "{name}"\n'
            (site if name == "site" else user)(content)
        elif level < 4:
            environment[{"sbatch": "SBATCH_ACCOUNT", "environment": "HPCMAGIC_ACCOUNT"}[name]] = name
        else:
            options["account"] = name
    resources = resolve(options, environment)
    assert resources.account == LEVELS[highest]
    origins = {
        "site": f"profile p in {profiles.SITE_FILE}",
        "user": f"profile p in {user_file()}",
        "sbatch": "environment SBATCH_ACCOUNT",
        "environment": "environment HPCMAGIC_ACCOUNT",
        "option": "asked for",
    }
    assert resources.origins == {"account": origins[LEVELS[highest]]}


def test_levels_mix(site, user):
    """Each value comes from the highest level that has it; the others stay from below."""
    site('[profiles.cpu]\npartition = "main"\naccount = "site"\ntime = "1:00:00"\n')
    user('default = "cpu"\n[profiles.cpu]\naccount = "mine"\nnodes = 2\n')
    resources = resolve({"nodes": 4, "mem": None}, {"HPCMAGIC_MEM": "1G"})
    assert (resources.partition, resources.account, resources.time) == ("main", "mine", "1:00:00")
    assert (resources.nodes, resources.mem, resources.profile) == (4, "1G", "cpu")
    assert resources.origins == {
        "partition": f"profile cpu in {profiles.SITE_FILE}",
        "time": f"profile cpu in {profiles.SITE_FILE}",
        "account": f"profile cpu in {user_file()}",
        "nodes": "asked for",
        "mem": "environment HPCMAGIC_MEM",
    }


@pytest.mark.parametrize(("key", "variable"), profiles.SBATCH_ENVIRONMENT.items())
def test_sbatch_variables(key, variable):
    """Defaults that a user gave to sbatch itself hold here too."""
    value = "0:30:00" if key == "time" else "given"
    resources = resolve({}, {variable: value})
    assert getattr(resources, key) == value
    assert resources.origins == {key: f"environment {variable}"}


def test_own_environment_by_default(monkeypatch):
    """Without another environment it is this process's that counts."""
    monkeypatch.setenv("HPCMAGIC_NODES", "3")
    assert resolve({}).nodes == 3


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("ntasks", "env", "prologue")])
def test_every_key_from_everywhere(key, user):
    """Every key may stand in a file, in the environment and among the options, and means the same."""
    value = {
        "launcher": "local", "session_dir": "/scratch/s", "mem": "2G", "time": "20", "mpi": "pmix",
        "no_client_limit": "30", "idle_limit": "30", "start_timeout": "30", "python": "/opt/python", "cost_unit": "SBU", "currency": "€",
    }.get(key, "2")  # fmt: skip
    user(f'[profiles.p]\n{key} = "{value}"\n')
    field = f"{key}_s" if key in DURATIONS else key
    values = {
        getattr(resolve({key: value}, {}), field),
        getattr(resolve({}, {f"HPCMAGIC_{key.upper()}": value}), field),
        getattr(resolve({"profile": "p"}, {}), field),
    }
    assert len(values) == 1
    assert values != {getattr(Resources(), field)}


def test_every_key_checked():
    """No value of a request is without a check of its form, and no check is without a value."""
    set_by_code = {"profile", "origins", *(f"{key}_s" for key in DURATIONS)}
    named = {field.name for field in fields(Resources)} - set_by_code
    assert set(CHECKS) == named | {"ntasks", *DURATIONS}
    assert set(CHECKS) == {*KEYS, "allow_groups"}


def test_profile_named_thrice(site, user):
    """The profile is the one of the option, else of the environment, else the user's default, else the site's."""
    body = "".join(f'[profiles.{name}]\npartition = "{name}"\n' for name in ("a", "b", "c", "d"))
    site(f'default = "a"\n{body}')
    assert resolve({}, {}).profile == "a"
    user('default = "b"\n')
    assert resolve({}, {}).profile == "b"
    assert resolve({}, {"HPCMAGIC_PROFILE": "c"}).profile == "c"
    assert resolve({"profile": "d"}, {"HPCMAGIC_PROFILE": "c"}).partition == "d"


def test_other_profiles_silent(user):
    """A profile that is not used changes nothing."""
    user('[profiles.gpu]\ngpus_per_node = 4\npartition = "gpu"\n')
    assert resolve({}, {}) == Resources()


def test_session_dir(monkeypatch):
    """Sessions lie where the profile says, else below XDG_STATE_HOME, else below the home."""
    assert resolve({"session_dir": "/scratch/me"}, {}).directory == Path("/scratch/me")
    assert resolve({"session_dir": "~/s"}, {}).directory == Path(os.environ["HOME"], "s")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert resolve({}, {}).directory == Path("/state/hpcmagic")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert resolve({}, {}).directory == Path(os.environ["HOME"], ".local/state/hpcmagic")


def test_session_dir_of_nobody():
    """A home that does not exist is named as what it is."""
    with pytest.raises(ProfileError, match="~nobody-of-this-name") as error:
        assert resolve({"session_dir": "~nobody-of-this-name/s"}, {}).directory
    two_lines(error)


# ---- unknown names


def test_unknown_option():
    """An unknown option is named, the nearest guessed, the valid ones listed."""
    error = refused(nodse=4)
    assert "'nodse'" in error.message
    assert "Did you mean 'nodes'?" in error.mend
    assert "cpus_per_task" in error.mend


def test_unknown_key(site, user):
    """An unknown key in a file is named with the file, and the nearest guessed."""
    user('[profiles.cpu]\npartitoin = "debug"\n')
    error = refused(profile="cpu")
    assert "'partitoin'" in error.message
    assert str(user_file()) in error.message
    assert "Did you mean 'partition'?" in error.mend
    site('defualt = "cpu"\n')
    error = refused()
    assert str(profiles.SITE_FILE) in error.message
    assert "Did you mean 'default'?" in error.mend


@pytest.mark.parametrize("secret", ["profile", "origins", "no_client_limit_s"])
def test_fields_are_no_keys(user, secret):
    """What only the code sets cannot be set by a file."""
    user(f'[profiles.cpu]\n{secret} = "x"\n')
    assert f"'{secret}'" in refused(profile="cpu").message


def test_unknown_profile(site, user):
    """An unknown profile is named, the nearest guessed, those of both files listed."""
    site("[profiles.cpu]\n[profiles.gpu]\n")
    user("[profiles.mine]\n")
    for given in ({"profile": "cpuu"}, {"environment": {"HPCMAGIC_PROFILE": "cpuu"}}):
        error = refused(**given)
        assert "'cpuu'" in error.message
        assert "Did you mean 'cpu'?" in error.mend
        assert "mine" in error.mend


def test_no_profiles_yet():
    """Who names a profile before there is any is told which file to write."""
    assert str(user_file()) in refused(profile="cpu", match="'cpu'").mend


def test_default_without_profile(user):
    """A default that names no profile is an error, not nothing."""
    user('default = "gpu"\n[profiles.cpu]\n')
    assert "'gpu'" in refused().message


# ---- files that cannot be used


@pytest.mark.parametrize(
    "content",
    [
        b"[profiles.cpu\n",
        b"[profiles.cpu]\npartition = debug\n",
        b"[profiles.cpu]\nnodes = 1\nnodes = 2\n",
        b"\xff\xfe\x00",
        b"profiles = 3\n",
        b"[profiles]\ncpu = 3\n",
        b'profiles = ["cpu"]\n',
    ],
    ids=["open table", "bare word", "twice", "not UTF-8", "number", "no table", "list"],
)
def test_malformed_file(user, content):
    """A file that is no TOML, or not of the right shape, is named; nothing of it is used."""
    user("")
    user_file().write_bytes(content)
    assert str(user_file()) in refused().message


def test_unreadable_file():
    """A file that cannot be read is named, whichever of the two it is."""
    user_file().mkdir(parents=True)
    assert str(user_file()) in refused(match="Cannot read").message
    user_file().rmdir()
    profiles.SITE_FILE.mkdir()
    assert str(profiles.SITE_FILE) in refused(match="Cannot read").message


def test_missing_and_empty_file():
    """A file that is not there, or empty, says nothing."""
    assert read_file(Path("/nowhere/profiles.toml")) == {}
    profiles.SITE_FILE.touch()
    assert read_file(profiles.SITE_FILE) == {}


# ---- malformed and impossible values


COUNTS = ["0", "-1", "1.5", "four", "", " ", "1e3", "0x10", "1_0", "٣", 0, -4, 2.0, True, [1], {}, b"4"]
SIZES = ["lots", "16 G", "16X", "-16G", "1.5G", "G", "", "16G\n", "٣G", True, 1.5, ["16G"]]
TIMES = [
    "soon", "1:2:3:4", "1:00:00:00", "-1", "-1:00", "1h", "1:0", "1-", "-", ":30", "1:00:", "1 00", "", "0.5",
    "1:00:00\n", "٣", True, 1.5, ["1"],
]  # fmt: skip
NAMES = [
    "two words",
    "a;b",
    "a\nb",
    "a\tb",
    "$(id)",
    "`id`",
    "a'b",
    'a"b',
    "a|b",
    "a&b",
    "a#b",
    "a=b",
    "",
    True,
    1.5,
    [],
]
AMOUNTS = ["0", "-1", "1e9", "nan", "inf", "", ".", "1,5", "much", "1 0", "٣", 0, -0.5, True, [1], {}]
MALFORMED = {
    "nodes": COUNTS,
    "ntasks": COUNTS,
    "ntasks_per_node": COUNTS,
    "cpus_per_task": COUNTS,
    "gpus_per_node": [value for value in COUNTS if value not in ("0", 0)],
    "mem": SIZES,
    "time": TIMES,
    "partition": NAMES,
    "account": NAMES,
    "qos": NAMES,
    "interface": NAMES,
    "jobqueue": NAMES,
    "constraint": ["two words", "a;b", "a\nb", "$(id)", "`id`", "a'b", 'a"b', "a#b", "", True, []],
    "mpi": ["", "openmpi", "PMIX", "pmix ", 1, True, []],
    "launcher": ["", "pbs", "SLURM", "slurm\n", 1, []],
    "session_dir": ["", "state", "./state", "a\n/b", "/a\nb", "/a\0b", 1, True, []],
    "no_client_limit": ["never", "-1", "on", "1h", "", True, False, ["20"], "20\n"],
    "idle_limit": ["never", "-1", "1h", "", True, ["20"]],
    "start_timeout": ["soon", "-1", "1h", "", True, ["20"]],
    "python": ["/opt/py\nthon", "/opt/py\0thon", True, [], {}],
    "env": [["A-B"], ["A B"], ["A=1"], ["A\nB"], ["1A"], "A;B", [""], [1.5], {"A": 1}, 3],
    "prologue": [["module load x\nrm -r y"], ["a\0b"], ["a\rb"], [1.5], [True], {"a": 1}, 3],
    "cost_unit": ["", "7", "2 hours", "a;b", "a\nb", "€", "a" * 40, True, 1.5, []],
    "cost_divisor": AMOUNTS,
    "price": AMOUNTS,
    "currency": ["", "US $", "7", "EUR2", "EUR\n", "currencies", True, 1.5, []],
    "confirm_above": AMOUNTS,
}


@pytest.mark.parametrize(
    ("key", "value"),
    [pytest.param(key, value, id=f"{key}={value!r}") for key, values in MALFORMED.items() for value in values],
)
def test_malformed_value(key, value):
    """A malformed or impossible value is named as an option, with where it came from and the right form."""
    error = refused(**{key: value})
    assert f"--{key.replace('_', '-')}" in error.message
    assert "asked for" in error.message


def test_origin_of_a_malformed_value(site):
    """A malformed value is traced to the file or variable that it came from."""
    site('[profiles.cpu]\nnodes = "many"\n')
    assert str(profiles.SITE_FILE) in refused(profile="cpu").message
    assert "HPCMAGIC_NODES" in refused(environment={"HPCMAGIC_NODES": "many"}).message
    assert "SBATCH_TIMELIMIT" in refused(environment={"SBATCH_TIMELIMIT": "soon"}).message


def test_every_key_has_malformed_values():
    """No key is left out of the table above."""
    assert set(MALFORMED) == set(KEYS)


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("env", "prologue")])
@pytest.mark.parametrize("poison", ["\n#SBATCH --uid=0", "\r\nrm -rf ~", "\0"])
def test_no_second_line(key, poison):
    """No value brings a line of its own into a job's script."""
    well_formed = {"time": "20", "mem": "1G", "session_dir": "/s", "mpi": "none", "launcher": "local"}
    refused(**{key: well_formed.get(key, "2") + poison})


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("nodes", ["1", 4, "10000"]),
        ("gpus_per_node", [0, "0", 8, "a100:2"]),
        ("mem", ["16G", "16g", 2000, "2000", "100M", "1T", "512K", "0"]),
        ("time", ["30", 30, "1:30", "1:00:00", "100:00:00", "1-0", "2-12:30", "1-00:00:00", "infinite", "UNLIMITED"]),
        ("partition", ["debug", "cpu_p1", "a,b", "gpu@v100", "x.y", "7", 7]),
        ("account", ["abc@v100", "PXYZ-123", "p_00_1"]),
        ("qos", ["qos_gpu-t3", "debug"]),
        ("constraint", ["haswell", "intel&gpu", "[rack1|rack2]", "[a*2&b*4]", "!old", "a,b"]),
        ("interface", ["ib0", "eth0.12", "enp1s0f0"]),
        ("session_dir", ["/scratch/a b", "~/s", "~"]),
        ("python", ["/opt/my python/bin/python", "python3"]),
    ],
)
def test_well_formed_values(key, values):
    """SLURM's own forms of values pass."""
    for value in values:
        resources = resolve({key: value}, {})
        assert str(getattr(resources, key)) == str(value)


def test_python_below_home():
    """A Python below one's home may be written as a shell would take it: a job's script would look for a folder `~`."""
    assert resolve({"python": "~/env/bin/python"}, {}).python == f"{Path.home()}/env/bin/python"


def test_lists(site):
    """Lists are lists in a file, and names with commas between them in the environment."""
    site('[profiles.cpu]\nenv = ["A", "B"]\nprologue = ["module purge", "export X=1; cd"]\n')
    resources = resolve({"profile": "cpu"}, {})
    assert (resources.env, resources.prologue) == (("A", "B"), ("module purge", "export X=1; cd"))
    assert resolve({}, {"HPCMAGIC_ENV": "A,B"}).env == ("A", "B")
    assert resolve({"env": ("A",)}, {}).env == ("A",)


def test_prologue_of_one_line(site):
    """A prologue that is one text is one shell line, whatever commas it holds."""
    site('[profiles.cpu]\nprologue = "export OMP_PLACES={0,1}"\n')
    assert resolve({"profile": "cpu"}, {}).prologue == ("export OMP_PLACES={0,1}",)


# ---- ranks over nodes


@pytest.mark.parametrize(
    ("options", "nodes", "per_node"),
    [
        ({"ntasks": 4}, 1, 4),
        ({"ntasks": "4", "nodes": "2"}, 2, 2),
        ({"ntasks": 4, "nodes": 4}, 4, 1),
        ({"ntasks": 8, "nodes": 2, "ntasks_per_node": 4}, 2, 4),
        ({"nodes": 3, "ntasks_per_node": 4}, 3, 4),
        ({"ntasks_per_node": 4}, 1, 4),
        ({"ntasks": 1}, 1, 1),
    ],
)
def test_spread(options, nodes, per_node):
    """Ranks are spread evenly over the nodes."""
    resources = resolve(options, {})
    assert (resources.nodes, resources.ntasks_per_node, resources.ntasks) == (nodes, per_node, nodes * per_node)


@pytest.mark.parametrize(
    "options",
    [
        {"ntasks": 5, "nodes": 2},
        {"ntasks": 2, "nodes": 4},
        {"ntasks": 8, "nodes": 2, "ntasks_per_node": 2},
        {"ntasks": 4, "ntasks_per_node": 2},
    ],
)
def test_impossible_spread(options):
    """Ranks that do not go into the nodes are refused, with the numbers."""
    error = refused(**options)
    assert f"--ntasks {options['ntasks']}" in error.message
    assert str(options.get("nodes", 1)) in error.message


def test_spread_by_precedence(site):
    """A number of ranks that was asked for replaces the profile's ranks a node, and the other way round."""
    site("[profiles.a]\nntasks_per_node = 4\n[profiles.b]\nntasks = 8\n[profiles.c]\nnodes = 2\nntasks = 8\n")
    assert resolve({"profile": "a", "ntasks": 6, "nodes": 2}, {}).ntasks_per_node == 3
    assert resolve({"profile": "b", "ntasks_per_node": 2, "nodes": 2}, {}).ntasks_per_node == 2
    assert resolve({"profile": "c", "ntasks_per_node": 3}, {}).ntasks == 6
    assert resolve({"profile": "b"}, {"HPCMAGIC_NTASKS_PER_NODE": "2", "HPCMAGIC_NODES": "2"}).ntasks == 4


# ---- times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90 * 60),
        ("1:30", 90),
        ("90:00", 90 * 60),
        ("0:00:30", 30),
        ("1:30:00", 5400),
        ("48:00:00", 2 * 86400),
        ("1-0", 86400),
        ("1-12", 36 * 3600),
        ("1-12:30", 36 * 3600 + 1800),
        ("2-00:00:05", 2 * 86400 + 5),
        ("infinite", None),
        ("UNLIMITED", None),
        ("", None),
    ],
)
def test_walltime(text, seconds):
    """All of sbatch's forms of a time are read as sbatch reads them."""
    assert walltime_s(text) == seconds


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("20", 1200),
        (20, 1200),
        ("0:20:00", 1200),
        ("90:00", 5400),
        ("1-0", 86400),
        ("off", 0),
        ("OFF", 0),
        ("0", 0),
        (0, 0),
        ("unlimited", 0),
    ],
)
def test_no_client_limit(given, seconds):
    """The limit is minutes, one of sbatch's forms, or off, which is none."""
    assert resolve({"no_client_limit": given}, {}).no_client_limit_s == seconds
    assert resolve({}, {}).no_client_limit_s == 1200


def test_start_timeout_is_never_nothing():
    """A limit to the start that is off means no limit, and not that every start fails at once."""
    for given in ("off", "0", "unlimited"):
        try:
            resources = resolve({"start_timeout": given}, {})
        except ProfileError:
            continue
        assert resources.start_timeout_s > 0, given


# ---- the result


def test_frozen():
    """What was resolved once stays so."""
    with pytest.raises(AttributeError):
        resolve({}, {}).nodes = 2


def test_with_origin():
    """A value that is filled in later says where it came from; the request before it is unchanged."""
    before = resolve({"nodes": 2}, {})
    after = before.with_origin("the default of partition debug", time="1:00:00")
    assert (after.time, after.nodes) == ("1:00:00", 2)
    assert after.origins == {"nodes": "asked for", "time": "the default of partition debug"}
    assert (before.time, before.origins) == ("", {"nodes": "asked for"})


def test_asked():
    """What makes two requests the same session's is sizes and place, not where they came from."""
    asked = resolve({"nodes": 4, "ntasks_per_node": 2}, {}).asked()
    assert asked == resolve({}, {"HPCMAGIC_NODES": "4", "HPCMAGIC_NTASKS": "8"}).asked()
    assert asked["ntasks"] == 8
    assert asked != resolve({"nodes": 4}, {}).asked()
    assert asked != resolve({"nodes": 4, "ntasks_per_node": 2, "qos": "short"}, {}).asked()
