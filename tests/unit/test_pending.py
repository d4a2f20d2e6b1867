"""Replies and pieces of output: in whichever order they come, they go on in the order they were made in."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmagic.wire.messages import Output, Reply
from hpcmagic.wire.pending import Pending


def line(text):
    """One piece's outputs."""
    return (Output("stdout", f"{text}\n"),)


def texts(fresh, rank):
    """What was given of a rank."""
    return [output.text.rstrip("\n") for output in fresh.get(rank, ())]


def schedule(counts):
    """Every arrival of ranks with so many pieces each: pieces by number, then the reply, in any order, looks between."""
    arrivals = [(rank, number) for rank, count in enumerate(counts) for number in range(count + 1)]
    looks = st.lists(st.just(None), max_size=6)
    return looks.flatmap(lambda between: st.permutations([*arrivals, *between]))


SCHEDULES = st.lists(st.integers(0, 5), min_size=1, max_size=3).flatmap(
    lambda counts: st.tuples(st.just(counts), schedule(counts))
)


def arrive(pending, counts, rank, number):
    """Let a piece come, or the reply: it is numbered like the piece behind the last."""
    if number < counts[rank]:
        pending.take_piece(rank, number, line(number))
    else:
        pending.take(Reply(rank, outputs=line("rest"), streamed=counts[rank]))


def due(counts, rank, came):
    """What may be given of a rank once so much has come: all up to the first gap."""
    numbers = []
    for number in range(counts[rank] + 1):
        if (rank, number) not in came:
            break
        numbers.append("rest" if number == counts[rank] else str(number))
    return numbers


@given(SCHEDULES)
def test_any_order(drawn):
    """At every look all is given that is there up to the first gap: in order, none twice, the reply's rest last."""
    counts, events = drawn
    pending = Pending(range(len(counts)))
    given_so_far = {rank: [] for rank in range(len(counts))}
    came = set()
    for event in [*events, None]:
        if event is not None:
            arrive(pending, counts, *event)
            came.add(event)
            continue
        lacking = {
            rank
            for rank, count in enumerate(counts)
            if (rank, count) in came and any((rank, number) not in came for number in range(count))
        }
        assert set(pending.lacks_pieces()) == lacking
        fresh = pending.new_output()
        for rank, seen in given_so_far.items():
            seen.extend(texts(fresh, rank))
            assert seen == due(counts, rank, came)
        assert set(pending.lacks_pieces()) == lacking
    assert pending.new_output() == {}
    assert pending.missing() == ()


@given(SCHEDULES, st.data())
def test_lost_pieces(drawn, data):
    """Giving up on gaps gives all that has come, in order and once; what comes again later changes nothing."""
    counts, events = drawn
    arrivals = [event for event in events if event is not None]
    came = data.draw(st.lists(st.sampled_from(arrivals), unique=True))
    pending = Pending(range(len(counts)))
    seen = {rank: [] for rank in range(len(counts))}

    def look(**kwargs):
        fresh = pending.new_output(**kwargs)
        for rank, told in seen.items():
            told.extend(texts(fresh, rank))

    for event in came:
        arrive(pending, counts, *event)
        if data.draw(st.booleans()):
            look()
    look(give_up=True)
    for rank, told in seen.items():
        numbers = sorted(number for owner, number in came if owner == rank)
        assert told == ["rest" if number == counts[rank] else str(number) for number in numbers]
    look(give_up=True)
    for event in came:
        arrive(pending, counts, *event)
    look()
    look(give_up=True)
    assert sum(map(len, seen.values())) == len(came)


def test_rest_not_given_twice():
    """A rank that was long over when the last pieces of others are given up on is not heard again."""
    pending = Pending([0, 1])
    pending.take(Reply(0, outputs=line("early")))
    assert texts(pending.new_output(), 0) == ["early"]
    pending.take(Reply(1, outputs=line("late"), streamed=1))
    fresh = pending.new_output(give_up=True)
    assert (texts(fresh, 0), texts(fresh, 1)) == ([], ["late"])


def test_piece_comes_twice():
    """A piece that comes over the wire and from the journal too is given once, whether before or after."""
    pending = Pending([0])
    pending.take_piece(0, 0, line("a"))
    pending.take_piece(0, 0, line("a"))
    assert texts(pending.new_output(), 0) == ["a"]
    pending.take_piece(0, 0, line("a"))
    pending.take_piece(0, 1, line("b"))
    assert texts(pending.new_output(), 0) == ["b"]


def test_first_reply_counts():
    """A reply that is read again from the journal does not take the first one's place."""
    pending = Pending([0])
    first = Reply(0, outputs=line("first"))
    pending.take(first)
    pending.take(Reply(0, outputs=line("again")))
    assert pending.replies == {0: first}


def test_silent_ranks():
    """Who put nothing out is not among what is new."""
    pending = Pending([0, 1])
    pending.take(Reply(0))
    pending.take_piece(1, 0, line("x"))
    assert list(pending.new_output()) == [1]


def test_missing():
    """Missing is who has neither answered nor gone, in the order of the ranks that were asked."""
    pending = Pending([3, 0, 5])
    assert pending.missing() == (3, 0, 5)
    pending.lose(0)
    assert pending.missing() == (3, 5)
    pending.take(Reply(3))
    pending.take(Reply(5))
    assert pending.missing() == ()
    assert pending.lost == {0}


def test_speaking():
    """More may come of a rank that runs, and of one whose reply was faster than its last pieces."""
    pending = Pending([0, 1, 2])
    pending.lose(2)
    pending.take(Reply(1, streamed=1))
    assert pending.speaking() == (0, 1)
    pending.take_piece(1, 0, line("late"))
    assert pending.speaking() == (0,)


def test_lost_rank_lacks_nothing():
    """Nobody waits for pieces of a rank that is gone; what had come of it, beyond gaps too, is not lost."""
    pending = Pending([0])
    pending.take_piece(0, 0, line(0))
    pending.take_piece(0, 2, line(2))
    pending.lose(0)
    assert pending.lacks_pieces() == ()
    assert texts(pending.new_output(), 0) == ["0"]
    assert texts(pending.new_output(give_up=True), 0) == ["2"]


@given(st.permutations([("take", 0), ("take", 1), ("lose", 2), ("take", 1), ("lose", 2), ("lose", 0), ("ask", 0)]))
def test_at_end_once(events):
    """Whoever asks is told once that nothing is missing any more: not before, and at once if it is so already."""
    pending, told, asked = Pending([0, 1, 2]), [], False
    for what, rank in events:
        if what == "ask":
            asked = True
            pending.at_end(lambda: told.append(pending.missing()))
        elif what == "take":
            pending.take(Reply(rank))
        else:
            pending.lose(rank)
        assert told == ([()] if asked and not pending.missing() else [])


def test_at_end_of_nobody():
    """A request to nobody is over at once."""
    told = []
    Pending([]).at_end(lambda: told.append(1))
    assert told == [1]


def test_callback_that_raises(caplog):
    """A callback of the user's that raises is told to the log; it keeps no other from being called, nor the reply."""
    pending, told = Pending([0]), []
    pending.at_end(lambda: 1 / 0)
    pending.at_end(lambda: told.append(1))
    pending.take(Reply(0))
    pending.at_end(lambda: 1 / 0)
    assert told == [1]
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError] * 2


def test_callback_may_look():
    """A callback may ask for all that a handle shows: nothing is locked while it runs, for other threads neither."""
    pending, seen = Pending([0]), []

    def look():
        other = threading.Thread(target=lambda: seen.append(pending.new_output()))
        other.start()
        other.join(5)
        assert not other.is_alive()

    pending.at_end(look)
    pending.take(Reply(0, outputs=line("x")))
    assert [texts(fresh, 0) for fresh in seen] == [["x"]]


def test_wait():
    """Waiting ends when nothing is missing, not when some have answered; else when the time is up."""
    pending = Pending([0, 1])
    assert not pending.wait(0)
    pending.take(Reply(0))
    assert not pending.wait(0.01)
    timer = threading.Timer(0.02, lambda: pending.lose(1))
    timer.start()
    assert pending.wait(10)
    timer.join()


@pytest.mark.parametrize(("number", "news"), [(0, True), (1, False)])
def test_wait_for_news(number, news):
    """News is a piece that can be given, not one behind a gap."""
    pending = Pending([0])
    assert not pending.wait_for_news(0)
    pending.take_piece(0, number, line("x"))
    assert pending.wait_for_news(0) is news
    pending.new_output()
    assert not pending.wait_for_news(0)
    pending.take(Reply(0, streamed=2))
    assert pending.wait_for_news(0)


def test_given_up():
    """Ranks that wait for ever are waited for no more; one that answers all the same has answered."""
    pending, told = Pending([0, 1, 2]), []
    pending.at_end(lambda: told.append("over"))
    pending.take(Reply(0))
    pending.give_up({1: "comm.Barrier()", 2: "comm.recv()"})
    assert (pending.missing(), told) == ((), ["over"])
    pending.take(Reply(1))
    assert pending.waiting() == {2: "comm.recv()"}
    pending.lose(2)
    assert (pending.waiting(), told) == ({}, ["over"])
