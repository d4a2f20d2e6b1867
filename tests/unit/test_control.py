"""The control path: what becomes of a request that is broken off."""

from types import SimpleNamespace

import pytest

from hpcmagic.wire.control import Control


def test_broken_off_while_ranks_are_asked():
    """Ctrl-C when some ranks have been asked takes back what they have got: nobody would wait for it."""
    taken_back = []

    def submit(_message, _pending):
        raise KeyboardInterrupt

    client = SimpleNamespace(
        _engines={0: 1, 1: 2},
        submit=submit,
        unanswered=lambda _pending: {"request": 0},
        interrupt=lambda ranks, what, _pending: taken_back.append((ranks, what)),
    )
    with pytest.raises(KeyboardInterrupt):
        Control(lambda: client).send("a message", [0, 1])
    assert taken_back == [([0], {"request": "request"})]
