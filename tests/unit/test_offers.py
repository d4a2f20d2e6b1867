"""What a SLURM site offers: asked once in ten minutes through the one runner, and never waited for longer than agreed."""

import threading

import pytest

from hpcmagic.errors import LaunchError
from hpcmagic.launch import offers, slurm
from hpcmagic.launch.offers import NodeKind, Offers
from hpcmagic.testing import FakeClock

SINFO = (
    "debug*|up|2|4000|1:00:00|(null)\n"
    "big|up|64|512000+|2-00:00:00|intel,gpu\n"
    "old|inact|8|16000|infinite|intel\n"
    "a line that nobody expects\n"
)


@pytest.fixture
def clock():
    """A clock that moves only when told to."""
    return FakeClock()


@pytest.fixture
def site(said, clock):
    """A site with three partitions, asked through the runner."""
    said["sinfo"] = SINFO
    return Offers(clock)


def test_node_kinds(site):
    """Each line of sinfo is one kind of node; what makes no sense is left out."""
    assert site.node_kinds() == (
        NodeKind("debug", True, True, 2, 4000 << 20, 3600.0),
        NodeKind("big", False, True, 64, 512000 << 20, 172800.0, ("intel", "gpu")),
        NodeKind("old", False, False, 8, 16000 << 20, None, ("intel",)),
    )
    assert site.names("partition") == ("debug", "big", "old")
    assert site.names("constraint") == ("gpu", "intel")


def test_asked_once_in_ten_minutes(site, said, clock):
    """Within ten minutes nothing is asked again, also where the answer was none."""
    said["sacctmgr"] = (1, "", "accounting is away")
    said["sshare"] = (1, "", "and so is this")
    for _ in range(3):
        site.names("partition"), site.names("account")
    assert [command[0] for command, _ in said["asked"]] == ["sinfo", "sacctmgr", "sshare"]
    clock.advance(offers.ASK_AGAIN_S - 1)
    site.names("partition")
    assert len(said["asked"]) == 3
    clock.advance(1)
    said["sinfo"] = "new*|up|2|4000|1:00:00|(null)\n"
    assert site.names("partition") == ("new",)


def test_accounts(site, said):
    """Accounts and QOS are those of this user's associations."""
    said["sacctmgr"] = lambda command: "lab\nlab\n\nclass\n" if command[-1] == "format=account" else "normal,high\n"
    assert site.names("account") == ("class", "lab")
    assert site.names("qos") == ("high", "normal")
    assert any(word.startswith("user=") for word in said["asked"][0][0])


def test_accounts_without_accounting(site, said, monkeypatch):
    """Where accounting says nothing, sshare's lines of this user do."""
    monkeypatch.setattr(offers.pwd, "getpwuid", lambda uid: type("User", (), {"pw_name": "alice"}))
    said["sacctmgr"] = (1, "", "Problem talking to the database")
    said["sshare"] = "root|\n lab|\n  lab|alice\n  other|bob\n"
    assert site.names("account") == ("lab",)


def test_no_slurm(site, said):
    """Where there is no SLURM, or it fails, there are no names, and no error."""
    said["sinfo"] = LaunchError("SLURM's sinfo is not on this machine.")
    assert site.names("partition") == ()


def test_never_waited_for_long(clock, monkeypatch):
    """A SLURM that does not answer is left alone after the agreed time; its late answer serves the next who asks."""
    answer = threading.Event()

    def hang(command, **_kwargs):
        answer.wait(5)
        return type("Answer", (), {"returncode": 0, "stdout": SINFO})

    monkeypatch.setattr(slurm, "run", hang)
    monkeypatch.setattr(offers, "WAIT_S", 0.01)
    site = Offers(clock)
    asking = [thread for thread in threading.enumerate() if thread.name == "hpcmagic-offers"]
    assert site.names("partition") == ()
    (asking,) = [t for t in threading.enumerate() if t.name == "hpcmagic-offers" and t not in asking]
    monkeypatch.setattr(offers, "WAIT_S", 60)
    assert site.names("partition") == ()  # who asks meanwhile does not wait at all
    answer.set()
    asking.join(5)
    assert site.names("partition") == ("debug", "big", "old")
