"""Real ranks on this machine, and a watch on what tests leave behind."""

import pytest

import hpcmagic


@pytest.fixture(scope="module")
def session_dir(tmp_path_factory):
    """A private place for sessions."""
    return tmp_path_factory.mktemp("s", numbered=True)


@pytest.fixture(scope="module")
def session(session_dir):
    """Four local ranks, for all tests of a module."""
    held = hpcmagic.start(nodes=4, launcher="local", session="module", session_dir=str(session_dir / "d"))
    yield held
    held.stop()
