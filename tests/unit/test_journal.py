"""The keeper writes every cell down, once, within its bounds, and a full disk stops no cell."""

import errno

import pytest

from hpcmagic.keeper import journal
from hpcmagic.keeper.journal import Journal
from hpcmagic.wire.history import Record, cell_paths, read_records

SOURCE = [b"source"]


@pytest.fixture
def notes(tmp_path):
    """A journal without cells."""
    return Journal(tmp_path)


def ask(notes, cell, ranks=(0,), times=None):
    """Send a cell: its request passes once a rank."""
    content = {"cell": cell, "name": "cell 1", "ranks": list(ranks), "client": "me@here:1#ab"}
    for _ in range(len(ranks) if times is None else times):
        notes.on_request(content, SOURCE)


def put_out(notes, cell, nbytes=100, rank=0, piece=0):
    """Let a rank put something out."""
    notes.on_output({"cell": cell, "rank": rank, "piece": piece}, [b"o" * nbytes])


def answer(notes, cell, rank=0, raised="", nbytes=10):
    """Let a rank end."""
    notes.on_reply({"status": "ok", "cell": cell, "rank": rank, "raised": raised}, [b"r" * nbytes])


def written(notes, cell):
    """A cell's records on disk."""
    return [record for record, _ in read_records(cell_paths(notes.folder)[cell][1])]


def kinds(notes, cell):
    """What a cell's records tell."""
    return [record.kind for record in written(notes, cell)]


def on_disk(notes):
    """How large all files are together, hidden ones too."""
    return sum(path.stat().st_size for path in notes.folder.iterdir())


def test_one_file_a_cell(notes):
    """However many ranks a cell is sent to, it is written down once, with its source, its ranks and who sent it."""
    ask(notes, "a1", ranks=range(4))
    ask(notes, "b2", ranks=[1])
    assert [(cell, number) for cell, (number, _) in cell_paths(notes.folder).items()] == [("a1", 1), ("b2", 2)]
    (first,) = written(notes, "a1")
    assert first.frames == (b"source",)
    told = ("kind", "number", "cell", "name", "ranks", "client")
    assert [first.head[name] for name in told] == ["cell", 1, "a1", "cell 1", [0, 1, 2, 3], "me@here:1#ab"]
    assert first.head["sent"] > 0


def test_what_passes_by(notes):
    """Output and replies are written as they come, frames unopened; who has answered is known."""
    ask(notes, "a1", ranks=[0, 3])
    put_out(notes, "a1", rank=3, piece=0)
    answer(notes, "a1", rank=3, raised="ValueError")
    assert notes.unfinished == ["a1"]
    answer(notes, "a1", rank=0)
    assert notes.unfinished == []
    _, output, failed, well = written(notes, "a1")
    assert (output.kind, output.head["rank"], output.head["piece"], output.frames) == ("output", 3, 0, (b"o" * 100,))
    assert (failed.kind, failed.head["rank"], failed.head["raised"]) == ("reply", 3, "ValueError")
    assert (well.kind, well.head["rank"], well.head["raised"], well.frames) == ("reply", 0, "", (b"r" * 10,))
    assert well.head["elapsed_s"] >= 0


def test_no_cell_of_ours(notes):
    """What belongs to no cell that was written down, a push say, leaves nothing on disk."""
    notes.on_request({}, [b"a push"])
    put_out(notes, "unknown")
    answer(notes, "unknown")
    notes.on_reply({"rank": 0}, [])
    assert list(notes.folder.iterdir()) == []
    assert (notes.nbytes, notes.trouble) == (0, "")


def test_lost(notes):
    """Ranks that are gone are noted in every cell that waits for them, and in no other, with the cause."""
    ask(notes, "over", ranks=[0])
    answer(notes, "over")
    ask(notes, "both", ranks=[0, 1, 2])
    answer(notes, "both", rank=1)
    ask(notes, "other", ranks=[2])
    notes.on_lost([0, 1], "a node failed")
    assert kinds(notes, "over") == ["cell", "reply"]
    assert kinds(notes, "other") == ["cell"]
    lost = written(notes, "both")[-1].head
    assert (lost["kind"], lost["ranks"], lost["cause"]) == ("lost", [0], "a node failed")
    assert notes.unfinished == ["both", "other"]
    notes.on_lost([0, 2], "the rest, too")
    assert written(notes, "both")[-1].head["ranks"] == [2]
    assert notes.unfinished == []


def test_knows_its_size(notes):
    """What the journal believes to take on disk is what it takes."""
    ask(notes, "a1", ranks=[0, 1])
    put_out(notes, "a1")
    answer(notes, "a1")
    notes.on_lost([1], "gone")
    assert notes.nbytes == on_disk(notes) > 0


def test_oldest_give_way(tmp_path):
    """Beyond the limit the oldest finished cells keep their source and how they ended; younger ones keep all."""
    notes = Journal(tmp_path, limit_nbytes=12_000)
    for number in range(4):
        ask(notes, f"c{number}")
        put_out(notes, f"c{number}", 4000)
        answer(notes, f"c{number}", raised="KeyError", nbytes=500)
    assert kinds(notes, "c0") == kinds(notes, "c1") == ["cell", "reply", "dropped"]
    assert kinds(notes, "c2") == kinds(notes, "c3") == ["cell", "output", "reply"]
    first, reply, _ = written(notes, "c0")
    assert first.frames == (b"source",)
    assert (reply.head["raised"], reply.frames) == ("KeyError", ())
    assert notes.nbytes == on_disk(notes) <= 12_000
    assert list(cell_paths(tmp_path)) == ["c0", "c1", "c2", "c3"]


def test_running_cells_give_nothing(tmp_path):
    """A cell that some rank still works on is kept whole, however old and large it is."""
    notes = Journal(tmp_path, limit_nbytes=1000)
    ask(notes, "runs", ranks=[0, 1])
    put_out(notes, "runs", 5000)
    answer(notes, "runs", rank=0)
    ask(notes, "young")
    put_out(notes, "young", 200)
    answer(notes, "young")
    assert kinds(notes, "runs") == ["cell", "output", "reply"]
    assert kinds(notes, "young") == ["cell", "reply", "dropped"]
    answer(notes, "runs", rank=1)
    assert kinds(notes, "runs") == ["cell", "reply", "reply", "dropped"]


def test_lost_cells_give_way_too(tmp_path):
    """A cell whose ranks are gone is over: it gives way, and that it was lost stays written."""
    notes = Journal(tmp_path, limit_nbytes=1000)
    ask(notes, "old")
    put_out(notes, "old", 5000)
    notes.on_lost([0], "gone")
    ask(notes, "young")
    assert kinds(notes, "old") == ["cell", "lost", "dropped"]


def test_late_output_of_a_cell_that_gave_way(tmp_path):
    """What comes late of a cell that has given way is not written any more."""
    notes = Journal(tmp_path, limit_nbytes=100)
    ask(notes, "a1")
    answer(notes, "a1", nbytes=500)
    put_out(notes, "a1", 500)
    assert kinds(notes, "a1") == ["cell", "reply", "dropped"]
    assert notes.nbytes == on_disk(notes)


def test_as_many_cells_as_the_limit(notes, monkeypatch):
    """So many cells are kept as the limit says, no fewer and no more; the oldest go, with their files."""
    monkeypatch.setattr(journal, "LIMIT_CELLS", 10)
    for number in range(10):
        ask(notes, f"c{number}")
        answer(notes, f"c{number}")
    assert list(cell_paths(notes.folder)) == [f"c{number}" for number in range(10)]
    for number in range(10, 13):
        ask(notes, f"c{number}")
        answer(notes, f"c{number}")
    assert list(cell_paths(notes.folder)) == [f"c{number}" for number in range(3, 13)]
    assert notes.nbytes == on_disk(notes)


def test_count_spares_running_cells(notes, monkeypatch):
    """The limit of cells removes none that runs."""
    monkeypatch.setattr(journal, "LIMIT_CELLS", 2)
    ask(notes, "runs")
    for number in range(4):
        ask(notes, f"c{number}")
        answer(notes, f"c{number}")
    assert list(cell_paths(notes.folder)) == ["runs", "c3"]
    assert notes.unfinished == ["runs"]


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full while its list holds something."""
    full = []
    real = journal.append_record

    def append(path, head, frames=()):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, head, frames)

    monkeypatch.setattr(journal, "append_record", append)
    return full


def test_full_disk(notes, disk):
    """A full disk is said and raises nothing; who has answered is known all the same."""
    ask(notes, "a1", ranks=[0, 1])
    disk.append("full")
    put_out(notes, "a1")
    assert "No space left" in notes.trouble
    answer(notes, "a1")
    notes.on_lost([1], "gone")
    ask(notes, "b2")
    assert notes.unfinished == ["b2"]
    assert "No space left" in notes.trouble
    assert kinds(notes, "a1") == ["cell"]
    assert notes.nbytes == on_disk(notes)


def test_room_again(notes, disk):
    """Once writing works again the trouble is over, and what comes is written."""
    ask(notes, "a1")
    disk.append("full")
    put_out(notes, "a1", piece=0)
    disk.clear()
    put_out(notes, "a1", piece=1)
    assert notes.trouble == ""
    assert [record.head.get("piece") for record in written(notes, "a1")] == [None, 1]


def test_full_disk_while_making_room(tmp_path, disk):
    """A cell that cannot even be written smaller gives way altogether: that makes room."""
    notes = Journal(tmp_path, limit_nbytes=1000)
    ask(notes, "a1")
    put_out(notes, "a1", 5000)
    disk.append("full")
    answer(notes, "a1")
    assert "No space left" in notes.trouble
    assert list(tmp_path.iterdir()) == []
    assert notes.nbytes == 0
    disk.clear()
    ask(notes, "b2")
    assert notes.trouble == ""


def test_no_folder(tmp_path):
    """A folder that is not there, as when the session's directory was put aside, raises nothing."""
    notes = Journal(tmp_path / "gone")
    ask(notes, "a1")
    answer(notes, "a1")
    assert notes.trouble
    assert notes.unfinished == []


def test_stuck(notes):
    """Ranks that wait for ever are noted with where, until they answer after all or are gone."""
    ask(notes, "a1", ranks=[0, 1, 2])
    answer(notes, "a1", rank=0)
    notes.on_stuck("a1", {"0": "nowhere", "1": "comm.Barrier()", "2": "comm.recv()"})
    notes.on_stuck("b2", {"1": "no such cell"})
    assert notes.stuck == {"1": "comm.Barrier()", "2": "comm.recv()"}
    assert notes.unfinished == ["a1"]
    answer(notes, "a1", rank=1)
    assert notes.stuck == {"2": "comm.recv()"}
    notes.on_lost([2], "restarted")
    assert notes.stuck == {}
    assert kinds(notes, "a1") == ["cell", "reply", "stuck", "reply", "lost"]


def test_last_words(notes):
    """What a rank that died had flushed is noted behind its output, unless it came, or the rank has answered."""
    ask(notes, "a1", ranks=[0, 1, 2])
    put_out(notes, "a1", rank=0, piece=0)
    put_out(notes, "a1", rank=1, piece=0)
    answer(notes, "a1", rank=2)
    for rank, piece in ((0, 0), (1, 1), (2, 5)):
        notes.on_last_words(rank, Record({"cell": "a1", "piece": piece}, (b"last",)))
    notes.on_last_words(0, Record({"cell": "none", "piece": 0}, (b"last",)))
    last = [(r.head["rank"], r.head["piece"]) for r in written(notes, "a1") if r.frames == (b"last",)]
    assert last == [(1, 1)]
