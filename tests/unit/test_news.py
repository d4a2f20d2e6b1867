"""News of a session are told once, and nothing that was no news."""

import pytest

from hpcmagic.notebook.news import News
from hpcmagic.rendezvous import KeeperState

OWN = "me@here:1#abc"


@pytest.fixture
def told(capsys):
    """Tell what a keeper says; give what is new on the screen, line by line."""
    news = News("demo")

    def tell(*clients, **kwargs):
        news.tell(KeeperState("ready", clients=clients, **kwargs), OWN)
        return capsys.readouterr().out.splitlines()

    return tell


def test_alone(told):
    """Who is alone hears nothing."""
    assert told() == told(OWN) == told() == []


def test_others(told):
    """Who else is connected is told when that changes, by names that people read; oneself is no news."""
    other, same_process = "you@there:2#def", "me@here:1#fed"
    assert told(OWN, other) == ["Session demo: also connected: you@there:2"]
    assert told(other, OWN) == []
    assert told(OWN, other, same_process) == []
    assert told(OWN) == ["Session demo: nobody else is connected any more"]
    assert told() == []
    assert told(other) == ["Session demo: also connected: you@there:2"]


def test_others_who_come_again(told):
    """A client that connects anew, under the same name to people, is no news."""
    assert len(told("you@there:2#1")) == 1
    assert told("you@there:2#2") == []


def test_warning(told):
    """A warning is told once; another one is, and the same again after it was over."""
    full = {"warning": "cells are not written down: No space left on device"}
    line = ["Session demo: cells are not written down: No space left on device."]
    assert told(**full) == line
    assert told(**full) == []
    assert told() == []
    assert told(**full) == line
    assert told(warning="the walltime is near") == ["Session demo: the walltime is near."]
    assert told() == []
    assert told(**full) == line


def test_restarted_elsewhere(told):
    """That the ranks were restarted by somebody else is told once; how often before one came is no news."""
    assert told(restarts=2) == []
    assert told(restarts=3) == ["Session demo: the ranks were restarted elsewhere; their variables are gone."]
    assert told(restarts=3) == []


def test_restarted_here(capsys):
    """A restart of one's own is no news."""
    news = News("demo")
    news.tell(KeeperState("ready", restarts=0), OWN)
    assert not news.knows_restarts(KeeperState("ready", restarts=1))
    assert news.knows_restarts(KeeperState("ready", restarts=1))
    news.tell(KeeperState("ready", restarts=1), OWN)
    assert capsys.readouterr().out == ""
