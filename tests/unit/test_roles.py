"""Profiles for a role, and the list of all profiles: who sees and uses which, and where each value comes from."""

import contextlib
import os

import pytest
from two_lines import two_lines

from hpcmagic import profiles, roles
from hpcmagic.errors import ProfileError
from hpcmagic.notebook.found import everywhere
from hpcmagic.profiles import every, profile_names, resolve, user_file

SITE = """
default = "compute"
[profiles.compute]
partition = "compute"
[profiles.gpu]
partition = "gpu"
session_dir = "/gpu"
allow_groups = ["gpu-users", "domain staff"]
"""


@pytest.fixture
def groups(monkeypatch):
    """Say which groups this user is in."""

    def be_in(*names):
        monkeypatch.setattr(roles, "own_groups", lambda: frozenset(names))

    be_in("alice")
    return be_in


@pytest.fixture
def user():
    """Write the user's profiles."""
    user_file().parent.mkdir(parents=True)
    return user_file().write_text


@pytest.mark.parametrize("member", ["gpu-users", "domain staff"])
def test_member(groups, member):
    """A member of any of the groups sees the profile and uses it."""
    profiles.SITE_FILE.write_text(SITE)
    groups("alice", member)
    assert "gpu" in profile_names()
    assert resolve({"profile": "gpu"}, {}).partition == "gpu"


@pytest.mark.parametrize("way", ["option", "environment", "user's default"])
def test_outsider_refused(groups, user, way):
    """Who is in none of the groups is told for whom the profile is, what he is in, and which he may use."""
    profiles.SITE_FILE.write_text(SITE)
    user('default = "gpu"\n' if way == "user's default" else "")
    options = {"profile": "gpu"} if way == "option" else {}
    environment = {"HPCMAGIC_PROFILE": "gpu"} if way == "environment" else {}
    with pytest.raises(ProfileError, match="'gpu' is for members of gpu-users or domain staff") as error:
        resolve(options, environment)
    said = two_lines(error)
    assert "you are in alice" in said.message
    assert "compute, local, slurm." in said.mend


def test_outsider_does_not_see(groups):
    """Tab, lists and guesses show an outsider no profile of a role; the others stay."""
    profiles.SITE_FILE.write_text(SITE)
    assert profile_names() == ["compute", "local", "slurm"]
    assert set(every({}).resolved) == {"compute", "local", "slurm"}
    assert "gpu" not in repr(every({}))
    with pytest.raises(ProfileError) as error:
        resolve({"profile": "gpuu"}, {})
    assert "gpu," not in two_lines(error).mend


def test_default_for_a_role(groups):
    """A site's default for a role is the default of its members; others have none, and no error."""
    profiles.SITE_FILE.write_text(SITE.replace('default = "compute"', 'default = "gpu"'))
    assert resolve({}, {}).profile == ""
    groups("gpu-users")
    assert resolve({}, {}).profile == "gpu"


def test_role_is_the_sites_word(groups, user):
    """The user's file neither opens nor closes what the site's file says; of his own profiles it decides."""
    profiles.SITE_FILE.write_text(SITE)
    user('[profiles.gpu]\nallow_groups = ["alice"]\n[profiles.mine]\nallow_groups = "bob"\n')
    assert profile_names() == ["compute", "local", "slurm"]
    groups("gpu-users")
    assert resolve({"profile": "gpu"}, {}).allow_groups == ("gpu-users", "domain staff")


def test_sessions_stay_found(groups):
    """Who has left a group finds the sessions that he started with its profile: they cost money."""
    profiles.SITE_FILE.write_text(SITE)
    assert "/gpu" in {str(resources.directory) for resources in everywhere()}


@pytest.mark.parametrize("value", ["[]", "3", '["a,b"]', '[""]', '" "', '["a\\nb"]', "true", "{}"])
def test_malformed_groups(groups, value):
    """Malformed groups are an error of whoever uses the profile, and hide no other."""
    profiles.SITE_FILE.write_text(f"[profiles.gpu]\nallow_groups = {value}\n")
    assert profile_names() == ["gpu", "local", "slurm"]
    with pytest.raises(ProfileError, match="allow-groups") as error:
        resolve({"profile": "gpu"}, {})
    two_lines(error)
    assert resolve({"profile": "local"}, {}).launcher == "local"


@pytest.mark.parametrize("given", [({"allow_groups": ["alice"]}, {}), ({}, {"HPCMAGIC_ALLOW_GROUPS": "alice"})])
def test_roles_only_in_files(given):
    """Neither an option nor the environment makes a role."""
    with pytest.raises(ProfileError, match="allow_groups") if given[0] else contextlib.nullcontext():
        assert resolve(*given).allow_groups == ()


def test_own_groups():
    """A user's groups are those that the process has and those that the directory knows, by name."""
    roles.own_groups.cache_clear()
    names = roles.own_groups()
    assert {roles.grp.getgrgid(os.getegid()).gr_name} <= names
    assert all(isinstance(name, str) for name in names)


def test_list(groups, user):
    """Every profile is shown with its values and whose they are, the default marked, broken ones with the mend."""
    profiles.SITE_FILE.write_text(
        'default = "cpu"\n[profiles.cpu]\npartition = "main"\nntasks = 8\nno_client_limit = 15\n'
        'prologue = ["module purge", "module load x"]\n'
    )
    user('[profiles.cpu]\naccount = "mine"\n[profiles.odd]\npartitoin = "x"\n')
    text = repr(every({"HPCMAGIC_TIME": "0:30:00", "SBATCH_QOS": "short"}))
    rows = [line.split(None, 1) for line in text.splitlines() if line.startswith("  ")]
    assert [name for name in text.splitlines() if name and not name.startswith((" ", "site file", "A key"))] == [
        "cpu (default)", "local", "odd", "slurm",
    ]  # fmt: skip
    said = {key: " ".join(rest.split()) for key, rest in rows[:7]}
    assert said == {
        "ntasks": "8 site file", "time": "0:30:00 environment HPCMAGIC_TIME", "partition": "main site file",
        "account": "mine your file", "qos": "short environment SBATCH_QOS", "no_client_limit": "15 min site file",
        "prologue": "module purge ; module load x site file",
    }  # fmt: skip
    assert "launcher         local    built in" in text
    assert "✗ Unknown key" in text
    assert "→ Did you mean 'partition'?" in text
    assert f"site file: {profiles.SITE_FILE} · your file: {user_file()}" in text


def test_list_of_nothing():
    """Without files there are the built-in profiles, no default, and where files would lie."""
    said = repr(every({}))
    assert "No default." in said
    assert f"{profiles.SITE_FILE} (not there)" in said


def test_list_with_a_default_that_is_none():
    """A default that names no profile which the user may use is said to be none."""
    assert "The default, nope, is none of these." in repr(every({"HPCMAGIC_PROFILE": "nope"}))


def test_long_values_cut(user):
    """A long value keeps to its column, on one line."""
    user(f'[profiles.cpu]\nprologue = ["{"x" * 500}"]\n')
    assert max(map(len, repr(every({})).splitlines()[:3])) < 120
