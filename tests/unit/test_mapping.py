"""A function over a sequence: each item once, results in order, whichever rank is how fast, and whatever goes wrong."""

import functools
import linecache
import math
import pickle
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from two_lines import two_lines

from hpcmagic.engine import tracebacks
from hpcmagic.engine.tracebacks import know, raised_by
from hpcmagic.engine.transfers import FUNCTIONS_KEPT, Transfers
from hpcmagic.errors import CellError, DataError, RankError, SessionEnded
from hpcmagic.notebook import frontend, mapping, output
from hpcmagic.notebook.mapping import AHEAD, PARTS_A_RANK, Mapped
from hpcmagic.notebook.pickling import sources_of
from hpcmagic.wire.messages import Apply, Frame, Output, Pickled, Reply, from_frames, to_frames
from hpcmagic.wire.pending import Pending


class Ranks:
    """A session whose ranks work when the notebook looks at it: `next_rank` says who has finished a part."""

    ended = ""

    def __init__(self, size=3, next_rank=min):
        self.size = size
        self.next_rank = next_rank
        self.asked = []  # rank, message
        self.waiting = {rank: [] for rank in range(size)}
        self.most = 0  # requests that a rank had at a time
        self.withdrawn = []
        self.at_look = None
        self.prints = False
        self.transfers = [Transfers(SimpleNamespace(server_public=""), rank, None, {}, str) for rank in range(size)]

    def send_to(self, messages):
        """Note a request of one rank's."""
        ((rank, message),) = messages.items()
        pending = Pending([rank])
        self.asked.append((rank, message))
        self.waiting[rank].append((pending, from_frames([bytes(frame) for frame in to_frames(message)])))
        self.most = max(self.most, len(self.waiting[rank]))
        return pending

    def look(self, _now_s):
        """Let one rank do its next request."""
        if self.at_look is not None:
            self.at_look()
        rank = self.next_rank([rank for rank, waiting in self.waiting.items() if waiting])
        pending, message = self.waiting[rank].pop(0)
        pending.take(self.reply(rank, message))

    def reply(self, rank, message):
        """What a rank answers."""
        if self.transfers[rank].lacks(message):
            return Reply(rank, lacks_function=True)
        know(message.sources)
        outputs = (Output("stdout", f"rank {rank} at {message.first}\n"),) if self.prints else ()
        try:
            value = Pickled.of(self.transfers[rank].apply(message))
        except Exception as error:
            return Reply(rank, outputs, has_value=True, raised=raised_by(error))
        return Reply(rank, outputs, has_value=True, value=value)

    def answers(self, pending):
        """Give the replies, which have come."""
        assert not pending.missing()
        if pending.lost:
            raise SessionEnded("Rank 1 is gone.", "See `%hpc log`.")
        error = output.rank_error(pending.replies.values(), size=self.size)
        if error is not None:
            raise error
        return list(pending.replies.values())

    def control_path(self):
        """The way to the ranks."""
        return SimpleNamespace(withdraw=self.withdrawn.append)


@pytest.fixture(autouse=True)
def no_waiting_for_ranks(monkeypatch):
    """Have the notebook look at once when nothing has come."""
    monkeypatch.setattr(mapping, "LOOK_S", 0)


def squared(number):
    """A function of the user's."""
    return number * number


def mapped(function, items, ranks=None, key=1):
    """Map over ranks."""
    return Mapped(ranks or Ranks(), function, items, key).run()


def items_of(ranks):
    """The items that were sent, by request."""
    return [(rank, message.first, message.items.load()) for rank, message in ranks.asked]


# ---- what comes of it


@given(st.integers(0, 120), st.integers(1, 7), st.randoms(use_true_random=False))
def test_in_order(count, size, random):
    """Results have the order of the items, whichever rank ends its part when; each item goes to one rank, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "LOOK_S", 0)
        ranks = Ranks(size, random.choice)
        assert mapped(squared, range(count), ranks) == [number * number for number in range(count)]
    sent = items_of(ranks)
    assert sorted(item for _, _, part in sent for item in part) == list(range(count))
    assert all(part == list(range(first, first + len(part))) for _, first, part in sent)
    assert ranks.most <= AHEAD
    assert ranks.withdrawn == []


@pytest.mark.parametrize("next_rank", [min, max])
def test_who_is_free_gets_more(next_rank):
    """A rank that is quick does what a slow one does not come to; nobody waits for that before the end."""
    ranks = Ranks(3, next_rank)
    mapped(squared, range(120), ranks)
    done = [rank for rank, _ in ranks.asked]
    assert done.count(next_rank(range(3))) == PARTS_A_RANK * 3 - 2 * AHEAD
    assert len(done) == PARTS_A_RANK * 3


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 11, 12, 13, 1000])
def test_requests(count):
    """Many items are few requests, of about the same size; few items are one each."""
    ranks = Ranks(3)
    assert mapped(squared, range(count), ranks) == [number * number for number in range(count)]
    sizes = [len(part) for _, _, part in items_of(ranks)]
    assert len(sizes) == math.ceil(count / max(1, count // (3 * PARTS_A_RANK)))
    assert len(sizes) < 2 * 3 * PARTS_A_RANK
    assert all(sizes)


def test_no_items():
    """Nothing to do is nothing to ask."""
    ranks = Ranks()
    assert mapped(squared, [], ranks) == []
    assert ranks.asked == []


def test_fewer_items_than_ranks():
    """Ranks for which there is no item are not asked."""
    ranks = Ranks(5)
    assert mapped(squared, [3, 4], ranks) == [9, 16]
    assert sorted(rank for rank, _ in ranks.asked) == [0, 1]


@pytest.mark.parametrize(
    "items",
    [
        (number for number in range(20)),
        "some text",
        {3: "a", 4: "b"},
        [None, [], {}, "x"],
        [np.zeros(3), np.ones(40_000)],
    ],
    ids=["generator", "text", "keys", "anything", "arrays"],
)
def test_items(items):
    """Items come from anything that gives them, and may be anything that pickles; so may results."""
    items = list(items)
    again = mapped(lambda item: item, iter(items))
    assert len(again) == len(items)
    for item, other in zip(items, again, strict=True):
        np.testing.assert_array_equal(other, item)


def test_nothing_as_result():
    """A function that gives nothing gives as many Nones as there are items."""
    assert mapped(lambda item: None, range(50)) == [None] * 50


def test_results_that_are_lists():
    """A result that is a sequence itself is one result."""
    assert mapped(lambda item: [item, item], range(30)) == [[item, item] for item in range(30)]


def test_prints(capsys):
    """What the function prints is shown as it comes, with its rank."""
    ranks = Ranks(2)
    ranks.prints = True
    mapped(squared, range(2), ranks)
    assert capsys.readouterr().out == "[0] rank 0 at 0\n[1] rank 1 at 1\n"


# ---- what travels


def test_function_travels_once(monkeypatch):
    """The function is pickled once, and goes to each rank once, with the first request; each rank loads it once."""
    pickled, loaded = [], []
    pickle_for_ranks = mapping.pickle_for_ranks
    monkeypatch.setattr(mapping, "pickle_for_ranks", lambda n, v: pickled.append(n) or pickle_for_ranks(n, v))
    load = Pickled.load
    monkeypatch.setattr(Pickled, "load", lambda self: loaded.append(bytes(self.body)) or load(self))
    ranks = Ranks(3)
    mapped(squared, range(200), ranks)
    assert pickled.count("squared") == 1
    with_function = [(rank, message.function) for rank, message in ranks.asked if message.function is not None]
    assert [rank for rank, _ in with_function] == [0, 1, 2]
    assert len({id(function) for _, function in with_function}) == 1
    for rank in range(3):
        own = [message for to, message in ranks.asked if to == rank]
        assert [message.function is None for message in own] == [False, *[True] * (len(own) - 1)]
    assert loaded.count(bytes(with_function[0][1].body)) == 3


def test_two_maps():
    """Two maps over the same ranks do not mistake one function for the other."""
    ranks = Ranks(2)
    assert mapped(squared, range(9), ranks, key=1) == [number**2 for number in range(9)]
    assert mapped(lambda number: -number, range(9), ranks, key=2) == [-number for number in range(9)]
    assert {message.key for _, message in ranks.asked} == {1, 2}


@pytest.mark.parametrize("others", [1, FUNCTIONS_KEPT - 1, FUNCTIONS_KEPT, 3 * FUNCTIONS_KEPT])
def test_many_maps_at_once(others):
    """A function that a rank has let go of, since other maps needed the room, goes to it again; no item is done twice."""
    ranks, keys, done = Ranks(2), iter(range(100, 10_000)), []

    def other_maps():
        for transfers in ranks.transfers:
            for _ in range(others):
                transfers.apply(Apply(next(keys), Pickled.of(abs), Pickled.of([-1]), 0))

    ranks.at_look = other_maps
    reply = ranks.reply
    ranks.reply = lambda rank, message: done.append((message.first, reply(rank, message))) or done[-1][1]
    assert mapped(squared, range(80), ranks) == [number * number for number in range(80)]
    assert sorted(first for first, one in done if not one.lacks_function) == list(range(0, 80, 10))
    assert any(one.lacks_function for _, one in done) == (others >= FUNCTIONS_KEPT)
    assert all(len(transfers._functions) <= FUNCTIONS_KEPT for transfers in ranks.transfers)


def test_few_requests_at_a_time():
    """No rank has more than two requests at a time, and while there is enough to do none has less."""
    seen = []
    ranks = Ranks(3, max)
    ranks.at_look = lambda: seen.append([len(waiting) for waiting in ranks.waiting.values()])
    mapped(squared, range(120), ranks)
    assert ranks.most == AHEAD == 2
    assert all(busy == AHEAD for counts in seen[: 3 * PARTS_A_RANK - 3 * AHEAD] for busy in counts)


def test_function_that_cannot_be_pickled():
    """A function that does not pickle is named with what in it does not, before any rank is asked."""
    ranks, lock = Ranks(), __import__("threading").Lock()
    with pytest.raises(DataError) as error:
        mapped(lambda item: lock, [1], ranks)
    assert "lock" in two_lines(error).message
    assert ranks.asked == []


@pytest.mark.parametrize(
    ("function", "items", "said"),
    [
        (squared, 5, "; 5 is none"),
        (squared, None, "; None is none"),
        (5, [1], "given 5 to call"),
        ("f", [1], "given 'f' to call"),
    ],
)
def test_what_is_no_map(function, items, said):
    """What cannot be called, or gone through, is refused before any rank is asked."""
    ranks = Ranks()
    with pytest.raises(DataError) as error:
        mapped(function, items, ranks)
    assert said in two_lines(error).message
    assert ranks.asked == []


def test_items_that_break():
    """What the user's own sequence raises, a TypeError too, is his to see."""

    def items():
        yield 1
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        mapped(squared, items())


def test_item_that_cannot_be_pickled():
    """So is an item, wherever it stands."""
    ranks = Ranks()
    with pytest.raises(DataError) as error:
        mapped(squared, [*range(50), __import__("threading").Lock()], ranks)
    assert "items" in two_lines(error).message
    assert ranks.asked == []


# ---- what goes wrong


class Stuck(Exception):
    """What the user's function raises."""


@pytest.mark.parametrize("number", [0, 1, 41, 99])
def test_error_names_the_item(number):
    """What the function raises ends the map, and says at which item, on which rank; the rest is withdrawn."""

    def breaks(item):
        if item == number:
            raise Stuck("that one")
        return item

    ranks = Ranks(2)
    with pytest.raises(RankError) as error:
        mapped(breaks, range(100), ranks)
    assert error.value.text.startswith("Stuck on rank ")
    assert f"that one (item {number})" in error.value.text
    assert error.value.ranks == (next(r for r, first, part in items_of(ranks) if number in part),)
    assert f"item {number}" in error.value.full
    left = [pending for waiting in ranks.waiting.values() for pending, _ in waiting]
    assert set(ranks.withdrawn) == set(left)
    assert len(ranks.withdrawn) == len(left)


def test_error_shows_the_line(monkeypatch):
    """Of a function of the notebook's the traceback shows the cell, its lines, and what it calls there."""
    monkeypatch.setattr(linecache, "cache", dict(linecache.cache))
    name, text = "/tmp/ipykernel_1/42.py", "def inner(n):\n    return 1 / n\n\ndef outer(n):\n    return inner(n)\n"
    names = {}
    exec(compile(text, name, "exec"), names)  # noqa: S102
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    compiler = SimpleNamespace(format_code_name=lambda filename: ("Cell", "In[7]") if filename == name else None)
    monkeypatch.setattr(frontend, "shell", lambda: SimpleNamespace(compile=compiler))
    sources = sources_of(names["outer"])
    assert sources["outer", 5] == ("cell 7, line 5", "return inner(n)")
    assert sources["inner", 2] == ("cell 7, line 2", "return 1 / n")
    assert sources_of(functools.partial(names["outer"], 3)) == sources
    assert sources_of(math.sqrt) == sources_of(squared) == {}
    tracebacks.know(sources)
    with pytest.raises(ZeroDivisionError) as error:
        pickle.loads(cloudpickle.dumps(names["outer"]))(0)
    assert raised_by(error.value).frames[-2:] == (
        Frame("cell 7, line 5", "outer", "return inner(n)"),
        Frame("cell 7, line 2", "inner", "return 1 / n"),
    )
    ranks = Ranks(1)
    mapped(names["outer"], range(1, 40), ranks)
    assert [bool(message.sources) for _, message in ranks.asked] == [True, *[False] * (len(ranks.asked) - 1)]


def test_lines_kept():
    """A rank keeps the lines that it was told of last."""
    for number in range(tracebacks.LINES_KEPT + 5):
        tracebacks.know({("f", number): (f"cell {number}", "x")})
    assert len(tracebacks._lines) == tracebacks.LINES_KEPT
    assert ("f", 4) not in tracebacks._lines
    tracebacks._lines.clear()


def test_error_of_others_in_its_text():
    """It does so beside what a function says of items itself."""

    def breaks(item):
        error = Stuck("item 3")
        error.add_note("item 4")
        raise error

    with pytest.raises(RankError) as error:
        mapped(breaks, ["only"])
    assert "item 3 (item 4) (item 0)" in error.value.text


def test_nothing_sent_after_an_error():
    """Once a function has raised no rank is asked for anything more."""
    ranks = Ranks(2)
    with pytest.raises(RankError):
        mapped(lambda item: 1 / item, range(100), ranks)
    assert len(ranks.asked) == 2 * AHEAD


def test_printed_before_it_raised(capsys):
    """What the function had printed before it raised is shown."""
    ranks = Ranks(2)
    ranks.prints = True
    with pytest.raises(RankError):
        mapped(lambda item: 1 / item, range(1), ranks)
    assert capsys.readouterr().out == "[0] rank 0 at 0\n"


def test_result_that_cannot_be_pickled():
    """A result that does not pickle is the rank's error, as one of the function's own."""
    with pytest.raises(RankError) as error:
        mapped(lambda item: __import__("threading").Lock(), range(3))
    assert "lock" in error.value.text


def test_result_that_cannot_be_loaded(monkeypatch):
    """A result that only ranks can load is said to be one; the rest is withdrawn."""
    ranks = Ranks(2)
    monkeypatch.setattr(
        ranks, "reply", lambda rank, _: Reply(rank, has_value=True, value=Pickled(b"\x80\x05cnone\nsuch\n."))
    )
    with pytest.raises(DataError) as error:
        mapped(squared, range(80), ranks)
    assert "rank 0" in two_lines(error).message
    assert "No module named 'none'" in error.value.message
    assert len(ranks.withdrawn) == 2 * AHEAD - 1


def test_function_that_cannot_be_loaded():
    """A function that the ranks cannot load is an error of theirs, which says what they lack."""
    ranks = Ranks(1)
    job = Mapped(ranks, squared, range(3), 1)
    job.function = Pickled(b"\x80\x05cnone\nsuch\n.")
    with pytest.raises(RankError) as error:
        job.run()
    assert "No module named 'none'" in error.value.text


@pytest.mark.parametrize("after", [0, 1, 5])
def test_stopped(after):
    """Ctrl-C says how far it was, and has the ranks leave the rest."""
    ranks = Ranks(2)
    looks = []

    def stop():
        looks.append(1)
        if len(looks) > after:
            raise KeyboardInterrupt

    ranks.at_look = stop
    with pytest.raises(CellError) as error:
        mapped(squared, range(80), ranks)
    assert f"Stopped after {after * 10} of 80" in two_lines(error).message
    assert set(ranks.withdrawn) == {pending for waiting in ranks.waiting.values() for pending, _ in waiting}


def test_rank_lost():
    """A rank that is gone ends it, though others go on."""
    ranks = Ranks(2)
    ranks.at_look = lambda: ranks.waiting[1][0][0].lose(1)
    with pytest.raises(SessionEnded):
        mapped(squared, range(80), ranks)


def test_session_ended():
    """Of a session that has ended nobody is asked to leave anything."""
    ranks = Ranks(2)

    def end():
        ranks.ended = "the walltime is over"
        raise SessionEnded("It is over.", "Start another.")

    ranks.at_look = end
    with pytest.raises(SessionEnded):
        mapped(squared, range(80), ranks)
    assert ranks.withdrawn == []


def test_progress(monkeypatch):
    """The line tells how many items are done, and is taken away whatever comes of it."""
    told = []
    bar = SimpleNamespace(update=told.append, close=lambda: told.append("closed"))
    monkeypatch.setattr(mapping, "Progress", lambda what, total, _: told.append((what, total)) or bar)
    mapped(squared, range(24), Ranks(3))
    assert told[0] == ("map", 24)
    assert told[-1] == "closed"
    assert told[1:-1] == sorted(told[1:-1])
    assert told[-2] == 24
    told.clear()
    with pytest.raises(RankError):
        mapped(lambda item: 1 / 0, range(24), Ranks(3))
    assert told[-1] == "closed"
