"""The client that a user may have in hand: whatever comes in between, it is closed as a whole."""

import ipyparallel
import pytest

from hpcmagic.wire.lent import LINGER_MS, Lent


@pytest.mark.parametrize("moment", ["flush", "close_presence"])
def test_interrupted_as_it_hangs_up(monkeypatch, moment):
    """Ctrl-C while it lets go leaves no thread and no socket: the keeper would count it as connected for ever."""
    closed = []
    monkeypatch.setattr(ipyparallel.Client, "close", lambda _self, linger=None: closed.append(linger))

    def interrupted():
        raise KeyboardInterrupt

    client = Lent.__new__(Lent)
    client.flush = client.close_presence = lambda: None
    setattr(client, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.hang_up()
    assert closed == [LINGER_MS]
