"""One poll for all kernels of a user: how often SLURM is asked, what all are told meanwhile, and what can go wrong."""

import contextlib
import json
import math
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmagic.errors import LaunchError
from hpcmagic.launch import slurm
from hpcmagic.launch.base import AT_ITS_PACE, FRESH_S, JobState
from hpcmagic.launch.board import CLAIM_S, Board, default_folder
from hpcmagic.launch.poll import PACE_S, SLOWER, Poll
from hpcmagic.launch.slurm import SlurmLauncher, _from_squeue
from hpcmagic.notebook.found import sessions
from hpcmagic.notebook.orphans import orphans
from hpcmagic.notebook.session import Session
from hpcmagic.notebook.status import JobSeen
from hpcmagic.rendezvous import TERMINATED, JobRecord, KeeperState
from hpcmagic.testing import FakeClock

AWAY = LaunchError("SLURM does not answer: Unable to contact slurm controller.", "Try again in a minute.")
RUNNING = "RUNNING|None|N/A|1:00|9:00|n1|x"
PENDING = "PENDING|Priority|N/A|0:00|10:00||x"
ENDED = JobState("ended", "TIMEOUT", meaning="its walltime was reached")


class House:
    """Several kernels on one host, and the queue that they ask about."""

    def __init__(self, folder):
        self.folder = folder / "hpcmagic" / "login1"
        self.clock = FakeClock(1000.0)
        self.queue = {"7": RUNNING, "8": PENDING}  # or why it does not answer
        self.one_by_one = {}
        self.asked_at, self.decided = [], []
        self.takes_s = 0.0

    def kernel(self, boot="b1", folder=None):
        """A kernel's poll."""
        board = Board(folder or self.folder, clock=self.clock, boot=boot)
        return Poll(self.ask, _from_squeue, self.decide, board=board, pause=self.clock.advance)

    def ask(self):
        """What squeue says of all."""
        self.asked_at.append(self.clock())
        self.clock.advance(self.takes_s)
        if isinstance(self.queue, Exception):
            raise self.queue
        return [f"{job}|{rest}" for job, rest in self.queue.items()]

    def decide(self, job_id):
        """What is said of one alone."""
        self.decided.append(job_id)
        return self.one_by_one.get(job_id, ENDED)

    @property
    def note(self):
        """The file of the answer."""
        return self.folder / "jobs"

    @property
    def claim(self):
        """The file of who asks."""
        return self.folder / "jobs.claim"

    def pass_time(self, seconds, *kernels, step_s=2.0, max_age_s=AT_ITS_PACE):
        """Let kernels look every two seconds; give how often the queue was asked."""
        before, end_s = len(self.asked_at), self.clock() + seconds
        while self.clock() < end_s:
            for kernel in kernels:
                kernel.state("7", max_age_s)
            self.clock.advance(step_s)
        return len(self.asked_at) - before


@pytest.fixture
def house(tmp_path):
    """A host without notes."""
    return House(tmp_path)


# ---- how often


def test_one_answer_for_all(house):
    """Twenty sessions in five kernels are told of their jobs by one question."""
    kernels = [house.kernel() for _ in range(5)]
    seen = [kernel.state(job) for kernel in kernels for job in ("7", "8") * 2]
    assert len(house.asked_at) == 1
    assert {(one.phase, one.reason, one.nodes) for one in seen} == {
        ("running", "", "n1"),
        ("pending", "Priority", ""),
    }


def test_pace(house):
    """While nothing changes it is asked less and less often, each minute at last; time alone is no change."""
    kernels = [house.kernel() for _ in range(3)]
    house.pass_time(600, *kernels, step_s=0.5)
    gaps = [later - earlier for earlier, later in zip(house.asked_at, house.asked_at[1:], strict=False)]
    assert gaps[:4] == pytest.approx([PACE_S[0] * SLOWER**n for n in range(4)], abs=0.5)
    assert gaps[4:] == pytest.approx([PACE_S[1]] * len(gaps[4:]), abs=0.5)
    house.queue["7"] = "RUNNING|None|N/A|11:00|0:01|n1|x"
    before = len(house.asked_at)
    assert house.pass_time(180, *kernels) == 3
    assert len(house.asked_at) == before + 3


@pytest.mark.parametrize(
    ("job", "now"),
    [
        ("8", "RUNNING|None|N/A|0:01|10:00|n2|x"),
        ("8", "PENDING|Resources|N/A|0:00|10:00||x"),
        ("7", "RUNNING|None|N/A|1:00|9:00|n3|x"),
        ("9", PENDING),
    ],
    ids=["state", "reason", "nodes", "a new job"],
)
def test_change(house, job, now):
    """After a change it is asked as often as at first, by whichever kernel."""
    kernels = [house.kernel() for _ in range(2)]
    house.pass_time(400, *kernels)
    house.queue[job] = now
    house.pass_time(62, *kernels)  # it is noticed
    house.pass_time(40, *kernels)
    gaps = [later - earlier for earlier, later in zip(house.asked_at, house.asked_at[1:], strict=False)]
    assert min(gaps) >= PACE_S[0]
    assert min(gaps[-3:]) <= PACE_S[0] + 2


def test_hurry(house):
    """A kernel that has submitted or cancelled asks at once when somebody wants to know, and soon else."""
    kernel, other = house.kernel(), house.kernel()
    house.pass_time(400, kernel, other)
    kernel.state("7", FRESH_S)
    house.clock.advance(0.5)
    kernel.hurry()
    house.clock.advance(0.5)
    before = len(house.asked_at)
    kernel.state("7")
    other.state("7", FRESH_S)
    assert len(house.asked_at) == before
    kernel.state("7", FRESH_S)
    kernel.state("7", FRESH_S)
    assert len(house.asked_at) == before + 1
    house.pass_time(14, kernel)
    kernel.hurry()
    assert house.pass_time(16, kernel) == 1


def test_young_answer(house):
    """Who wants to know now gets what was asked two seconds ago, by whomever, and no older."""
    kernel, other = house.kernel(), house.kernel()
    kernel.state("7", FRESH_S)
    house.clock.advance(2.0)
    other.state("7", FRESH_S)
    assert len(house.asked_at) == 1
    house.clock.advance(0.1)
    other.state("7", FRESH_S)
    kernel.state("8", 0.001)
    assert len(house.asked_at) == 2


LOOKS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 0.5, 1.9, 2.0, 5.0, 14.9, 15.0, 40.0]),
        st.integers(0, 3),
        st.sampled_from(["7", "8", "9"]),
        st.sampled_from([AT_ITS_PACE, AT_ITS_PACE, 15.0, FRESH_S, 0.5]),
        st.sampled_from(["", "", "", "away", "back", "change", "gone"]),
    ),
    max_size=120,
)


@given(looks=LOOKS, at_its_pace=st.booleans(), takes_s=st.sampled_from([0.0, 0.3, 8.0]), shared=st.booleans())
@settings(max_examples=150)
def test_never_more(tmp_path_factory, looks, at_its_pace, takes_s, shared):
    """Whatever the kernels do and SLURM says: four questions a minute, and thirty if somebody wants to know always."""
    house = House(tmp_path_factory.mktemp("house"))
    house.takes_s = takes_s
    kernels = [
        house.kernel(folder=None if shared else house.folder / str(n) / "h") for n in range(4 if shared else 1)
    ]
    for wait_s, number, job, max_age_s, happens in looks:
        house.clock.advance(wait_s)
        if happens == "change" and isinstance(house.queue, dict):
            house.queue["8"] = f"PENDING|R{len(house.asked_at)}|N/A|0:00|10:00||x"
        else:
            house.queue = {"away": AWAY, "back": {"7": RUNNING}, "gone": {}}.get(happens, house.queue)
        kernels[number % len(kernels)].state(job, AT_ITS_PACE if at_its_pace else max_age_s)
    most = 4 if at_its_pace else 60 / FRESH_S
    for at_s in house.asked_at:
        assert len([one for one in house.asked_at if at_s <= one < at_s + 60]) <= most
    assert len(house.decided) <= 3 * len(kernels) * max(1, len(house.asked_at))


def test_known(house):
    """What is known is told without a question: until it is time to ask again, and of a job that has not ended."""
    kernel, other = house.kernel(), house.kernel()
    assert kernel.known("7") is None
    other.state("7")
    house.clock.advance(14.9)
    assert kernel.known("7") == kernel.state("7")
    assert kernel.known("99") is None
    with kernel._lock:
        assert kernel.known("7") is None
    house.clock.advance(0.2)
    assert kernel.known("7") is None
    house.queue = AWAY
    kernel.state("7")
    assert (kernel.known("7").phase, kernel.known("7").stale) == ("running", True)
    assert kernel.known("99").phase == "unknown"
    assert (len(house.asked_at), house.decided) == (2, [])


# ---- what is told


def test_times_go_on(house):
    """Elapsed and remaining time are as of now, of jobs that run; a job that waits keeps its walltime."""
    kernel = house.kernel()
    kernel.state("7")
    house.clock.advance(10)
    runs, waits = kernel.state("7"), kernel.state("8")
    assert (runs.elapsed_s, runs.left_s, runs.age_s) == (70, 530, 10)
    assert (waits.elapsed_s, waits.left_s, waits.age_s) == (0, 600, 10)


def test_job_that_has_left(house):
    """Of a job that is not in the answer the other commands tell, once; of one that has just ended as well."""
    kernel = house.kernel()
    house.queue = {"8": "CANCELLED|None|N/A|0:05|1:00||x"}
    for _ in range(5):
        assert kernel.state("7") == ENDED
        assert kernel.state("8") == ENDED
        house.clock.advance(100)
    assert house.decided == ["7", "8"]
    assert len(house.asked_at) == 1


@pytest.mark.parametrize("word", ["GONE", "COMPLETING"])
def test_end_that_is_not_settled(house, word):
    """Where nobody knows yet how a job has ended, it is asked again with each answer, until somebody does."""
    kernel = house.kernel()
    house.queue, house.one_by_one = {}, {"7": JobState("ended", word)}
    house.pass_time(14, kernel)
    assert house.decided == ["7"]
    house.one_by_one = {}
    house.pass_time(100, kernel)
    assert house.decided == ["7", "7"]
    assert kernel.state("7") == ENDED


def test_job_just_submitted(house):
    """A job that is younger than the answer is not taken for ended, and soon in the next one."""
    kernel = house.kernel()
    house.pass_time(400, kernel)
    house.queue["9"], house.one_by_one = PENDING, {"9": JobState("pending", "PENDING")}
    for _ in range(5):
        assert kernel.state("9").phase == "pending"
        house.clock.advance(2)
    assert house.decided == ["9"]
    house.clock.advance(PACE_S[0])
    assert kernel.state("9").reason == "Priority"


def test_slurm_away(house):
    """While SLURM is away what was seen last stands, as stale; it ends nothing, and is asked less and less often."""
    kernels = [house.kernel() for _ in range(2)]
    house.pass_time(14, *kernels)
    told_s, house.queue = house.asked_at[-1], AWAY
    house.pass_time(10, *kernels)
    for kernel in kernels:
        seen = kernel.state("7", FRESH_S)
        assert (seen.phase, seen.nodes, seen.stale) == ("running", "n1", True)
        assert seen.elapsed_s == 60 + seen.age_s == 60 + house.clock() - told_s
        assert kernel.state("99").phase == "unknown"
        assert kernel.state("99").meaning == AWAY.message
    assert house.decided == []
    assert house.pass_time(600, *kernels) <= 600 / PACE_S[1] + 3
    house.queue = {"7": RUNNING}
    since_s = house.clock()
    while kernels[0].state("7").stale:
        house.clock.advance(1)
    assert house.clock() - since_s <= PACE_S[1]
    assert not kernels[1].state("7").stale
    assert house.pass_time(17, *kernels) == 1


def test_slurm_away_from_the_beginning(house):
    """Where it has never answered nothing is known, and it is stale."""
    house.queue = AWAY
    kernel = house.kernel()
    assert kernel.state("7") == JobState("unknown", meaning=AWAY.message, stale=True)
    assert kernel.jobs() == {}
    assert house.pass_time(14, kernel, max_age_s=FRESH_S) == 0


def test_odd_lines(house):
    """What a site's squeue says beside what it was asked is passed over."""
    house.queue["slurm_load_jobs"] = "warning"
    house.queue[""] = ""
    assert set(house.kernel().jobs()) == {"7", "8"}


# ---- the board


def test_private(house):
    """The answer can be read by its owner only, and lies in directories that nobody else may enter."""
    house.kernel().state("7")
    assert [path.stat().st_mode & 0o777 for path in (house.note, house.folder, house.folder.parent)] == [
        0o600,
        0o700,
        0o700,
    ]
    assert [path.name for path in house.folder.iterdir()] == ["jobs"]


@pytest.mark.parametrize(
    "damage",
    [
        "", "{", "[]", "null", '{"boot": "b1"}', '{"boot": "b1", "at_s": 1000, "value": null}',
        '{"boot": "b1", "at_s": "x", "value": {}}', '{"boot": "b1", "at_s": 1e9, "value": {}}', "\0" * 100,
        '{"boot": "b1", "at_s": 1000, "value": {"asked_s": NaN, "told_s": 1, "pace_s": 15, "lines": [], "words": ""}}',
        '{"boot": "b1", "at_s": 1000, "value": {"asked_s": 1e9, "told_s": 1, "pace_s": 15, "lines": [], "words": ""}}',
        '{"boot": "b1", "at_s": 1000, "value": {"asked_s": 1000, "told_s": 1, "pace_s": 15, "lines": 7, "words": ""}}',
    ],
)  # fmt: skip
def test_damaged(house, damage):
    """A note that makes no sense, or is of a time to come, is as good as none; the next answer replaces it."""
    house.kernel().state("7")
    house.note.write_text(damage)
    assert house.kernel().state("7").phase == "running"
    assert len(house.asked_at) == 2
    assert house.kernel().state("7").phase == "running"
    assert len(house.asked_at) == 2


def test_pace_from_a_note(house):
    """A note cannot make kernels ask more often than they may, nor keep them from asking."""
    for written, least_s, most_s in ((0.0, 14, 17), (1e9, 59, 63)):
        house.kernel().state("7")
        told = json.loads(house.note.read_text())
        told["value"]["pace_s"] = written
        house.note.write_text(json.dumps(told))
        began_s, kernel, before = house.clock(), house.kernel(), len(house.asked_at)
        while len(house.asked_at) == before:
            kernel.state("7")
            house.clock.advance(1)
        assert least_s <= house.clock() - began_s <= most_s


def test_other_boot(house):
    """What was written before the machine's last start is not of this monotonic clock."""
    house.kernel().state("7")
    house.queue["7"] = PENDING
    assert house.kernel(boot="b2").state("7").phase == "pending"
    house.clock.now_s = 5.0  # begins anew
    assert house.kernel(boot="b2").state("7").phase == "pending"
    assert len(house.asked_at) == 3


@pytest.mark.parametrize("open_one", ["note", "folder", "above"])
def test_open_to_others(house, open_one):
    """What others could have written is not read; each kernel keeps its own pace then."""
    house.kernel().state("7")
    path = {"note": house.note, "folder": house.folder, "above": house.folder.parent}[open_one]
    path.chmod(0o666 if open_one == "note" else 0o777)
    house.queue["7"] = PENDING
    kernel = house.kernel()
    assert kernel.state("7").phase == "pending"
    assert house.pass_time(14, kernel) == 0
    if open_one == "note":
        assert house.note.stat().st_mode & 0o777 == 0o600


def test_symbolic_link(house, tmp_path):
    """A link that leads elsewhere is not followed, whoever made it."""
    elsewhere = House(tmp_path / "other")
    elsewhere.queue = {"7": PENDING}
    elsewhere.kernel().state("7")
    house.folder.mkdir(parents=True, mode=0o700)
    house.folder.parent.chmod(0o700)
    house.note.symlink_to(elsewhere.note)
    assert house.kernel().state("7").phase == "running"
    assert not house.note.is_symlink()


def test_no_disk(house, tmp_path):
    """Where nothing can be written each kernel goes by what it has asked itself."""
    (tmp_path / "file").write_text("")
    kernel = house.kernel(folder=tmp_path / "file" / "b")
    assert house.pass_time(600, kernel) <= 14
    assert kernel.state("7").phase == "running"


def test_folder_removed(house):
    """Who clears his cache loses nothing."""
    kernel, other = house.kernel(), house.kernel()
    kernel.state("7")
    house.note.unlink()
    house.folder.rmdir()
    assert house.pass_time(14, kernel) == 0
    assert other.state("7").phase == "running"
    assert len(house.asked_at) == 2


def test_claimed_by_another(house):
    """While another kernel asks, who is in no hurry has the old answer, and who is waits for the new one."""
    kernel, other = house.kernel(), house.kernel()
    kernel.state("7")
    house.clock.advance(20)
    other._board.claim("jobs")
    assert kernel.state("7").age_s == 20
    assert len(house.asked_at) == 1
    waited = []

    def pause(seconds):
        waited.append(seconds)
        house.clock.advance(seconds)
        if len(waited) == 5:
            other._asked(other._known())
            other._board.release("jobs")

    kernel._pause = pause
    assert kernel.state("7", FRESH_S).age_s == 0
    assert (len(waited), len(house.asked_at)) == (5, 2)
    assert not house.claim.exists()


@pytest.mark.parametrize("max_age_s", [FRESH_S, AT_ITS_PACE])
def test_all_at_once(tmp_path, max_age_s):
    """Of kernels that want to know at the same moment one asks, and all are told."""
    for number in range(10):
        asked, told, together = [], [], threading.Barrier(8)

        def ask(asked=asked):
            asked.append(1)
            time.sleep(0.02)
            return [f"7|{RUNNING}"]

        def look(asks=ask, folder=tmp_path / str(number) / "h", told=told, together=together):
            poll = Poll(asks, _from_squeue, lambda _: ENDED, board=Board(folder), pause=lambda _: time.sleep(0.002))
            together.wait(10)
            told.append(poll.state("7", max_age_s).phase)

        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert (len(asked), told) == (1, ["running"] * 8)


def test_stale_claim(house):
    """The claim of a kernel that died over it holds the others up for some seconds only."""
    house.kernel()._board.claim("jobs")
    kernel, began_s = house.kernel(), house.clock()
    assert kernel.state("7").phase == "running"
    assert CLAIM_S <= house.clock() - began_s <= CLAIM_S + 1
    assert not house.claim.exists()


def test_slow_kernel_spares_anothers_claim(house):
    """A kernel that stood still for so long that its claim was taken over does not give up the other's."""
    slow, quick = (house.kernel()._board for _ in range(2))
    assert slow.claim("jobs")
    assert not quick.claim("jobs")
    house.clock.advance(CLAIM_S)
    assert quick.claim("jobs")
    slow.release("jobs")
    assert house.claim.exists()
    quick.release("jobs")
    assert not house.claim.exists()


def test_claim_that_is_alive(house):
    """Claims of others that come and go are no stale one, however long that goes on."""
    mine, other = (house.kernel()._board for _ in range(2))
    for _ in range(10):
        assert other.claim("jobs")
        assert not mine.claim("jobs")
        house.clock.advance(CLAIM_S / 2)
        other.release("jobs")
        house.claim.write_text("x" * (len(house.asked_at) + 1))  # another inode, another time
        house.claim.unlink()


def test_no_boot_id(tmp_path):
    """Where nobody tells since when the clock runs, nothing is kept, and everybody may ask."""
    board = Board(tmp_path / "a" / "b", boot="")
    assert board.claim("jobs")
    board.post("jobs", {}, 0.0)
    assert board.read("jobs") is None
    board.release("jobs")
    assert not (tmp_path / "a").exists()


def test_default_folder(tmp_path, monkeypatch):
    """Notes lie in the user's cache, in a directory of the host; a relative XDG_CACHE_HOME is none."""
    host = default_folder().name
    assert default_folder() == tmp_path / "home" / ".cache" / "hpcmagic" / host
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_folder() == tmp_path / "x" / "hpcmagic" / host
    monkeypatch.setenv("XDG_CACHE_HOME", "x")
    assert default_folder() == tmp_path / "home" / ".cache" / "hpcmagic" / host


def test_user_without_a_home(tmp_path, monkeypatch):
    """In a container that knows neither home nor user nothing is kept, and nothing fails."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pathlib.Path.home", home)
    board = Board()
    assert board.claim("jobs")
    board.post("jobs", {}, 0.0)
    assert list(tmp_path.iterdir()) == []


# ---- SLURM's commands, and a session's state


def test_squeue_asked_for_all(said):
    """One squeue, of the user's own jobs of our name, those that have just ended too, is read as that of one job."""
    said["squeue"] = lambda command: f"17|{RUNNING}\n" if "--me" in command else RUNNING
    launcher = SlurmLauncher()
    shared, alone = launcher.state("17", max_age_s=FRESH_S), launcher.state("17")
    assert (shared.phase, shared.nodes, shared.left_s) == (alone.phase, alone.nodes, alone.left_s + shared.age_s * -1)
    asked = [command for command, _ in said["asked"]]
    assert {"--me", "--name=hpcmagic", "--states=all"} <= set(asked[0])
    assert "--jobs=17" in asked[1]


@pytest.mark.parametrize("away", [(1, "", "slurm_load_jobs error: Unable to contact slurm controller"), AWAY])
def test_squeue_that_does_not_answer(said, away):
    """Where squeue fails, whichever way, the job is unknown, with SLURM's words."""
    said["squeue"] = away
    for max_age_s in (0.0, FRESH_S, AT_ITS_PACE):
        seen = SlurmLauncher().state("17", max_age_s=max_age_s)
        assert (seen.phase, seen.stale) == ("unknown", True)
        assert "Unable to contact slurm controller" in seen.meaning
    assert len(said["asked"]) == 2


def test_each_cluster_its_own(monkeypatch):
    """Kernels that mean different clusters do not take each other's jobs for their own."""
    names = {slurm.shared_poll()._name}
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/other.conf")
    names.add(slurm.shared_poll()._name)
    assert len(names) == 2


def test_list_of_sessions(desk, said, monkeypatch):
    """A list of sessions, and of what belongs to none, takes one squeue, however many there are; the next another."""
    for number in range(12):
        held = desk.cell(f"s{number}", nodes=1)
        held.directory.write_record(held.directory.state, KeeperState("ready"))
    said["squeue"] = "".join(f"{number}|{RUNNING}\n" for number in range(1, 13))
    monkeypatch.setattr(desk, "launcher", SlurmLauncher())
    for times in (1, 2):
        assert [one.state for one in sessions()] == ["ready"] * 12
        assert orphans() == []
        assert len([command for command, _ in said["asked"] if command[0] == "squeue"]) == times


def test_what_a_session_asks(desk, monkeypatch):
    """A script's question is answered by what was asked a moment ago, a cell that is followed goes by the shared pace;
    where the keeper is silent the job is asked for at once."""
    held, asked, ask = desk.cell(nodes=1), [], desk.launcher.state
    held.directory.write_record(held.directory.state, KeeperState("ready"))
    desk.launcher.jobs[held.job.job_id] = JobState("running", "RUNNING")
    monkeypatch.setattr(desk.launcher, "state", lambda job, *, max_age_s=0.0: (asked.append(max_age_s), ask(job))[1])
    session = Session(held.directory, held.request, desk.launcher, held.job, None)
    session.status()
    session.look(0.0)
    session.look(14.0)
    session.control = SimpleNamespace(silent_s=lambda: 60.0, name="", beat=SimpleNamespace(warning=""))
    session.look(16.0)
    assert asked == [FRESH_S, FRESH_S, AT_ITS_PACE, 0.0]


class Queue:
    """A launcher whose answers the test gives."""

    def __init__(self, *answers):
        self.answers, self.asked, self.gate = list(answers), [], threading.Event()
        self.gate.set()

    def state(self, _job_id, *, max_age_s=0.0):
        """The next answer, or the last one again."""
        self.asked.append(max_age_s)
        self.gate.wait(10)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def known(self, _job_id):
        """Nothing without a question."""


def seen_by(*answers, clock=None, monkeypatch=None):
    """How a job is seen whose launcher answers so."""
    queue = Queue(*answers)
    if clock is not None:
        monkeypatch.setattr("hpcmagic.notebook.status.time", SimpleNamespace(monotonic=clock, time=clock))
    seen = JobSeen(queue, JobRecord("slurm", "7", 0.0))
    return seen, queue


def looked(seen):
    """Look, and wait until that is over."""
    seen.glance()
    with contextlib.suppress(AttributeError):
        seen._asking.join(10)


def test_glance_never_waits():
    """A glance asks at the shared pace, in a thread; while that is at it no other is begun."""
    seen, queue = seen_by(JobState("running", "RUNNING"))
    queue.gate.clear()
    for _ in range(5):
        seen.glance()
    assert queue.asked == [FRESH_S, AT_ITS_PACE]
    queue.gate.set()
    seen._asking.join(10)


def test_glance_at_what_is_known():
    """A glance at what is known takes no thread."""
    seen, queue = seen_by(JobState("pending", "PENDING"))
    queue.known = lambda _job_id: JobState("running", "RUNNING")
    before = seen._asking
    seen.glance()
    assert seen.state.phase == "running"
    assert seen._asking is before


def test_urgent_look_is_its_own():
    """Who looks now does not take the answer to a glance that was there before."""
    seen, queue = seen_by(JobState("running", "RUNNING"))
    queue.gate.clear()
    seen.glance()
    threading.Timer(0.1, queue.gate.set).start()
    seen.look()
    assert queue.asked == [FRESH_S, AT_ITS_PACE, 0.0]


def test_glance_at_the_end():
    """A job that is over is not asked for any more, unless nobody knows yet how it ended."""
    seen, queue = seen_by(JobState("ended", "GONE"), JobState("ended", "TIMEOUT"))
    looked(seen)
    looked(seen)
    looked(seen)
    assert seen.state.word == "TIMEOUT"
    assert queue.asked == [FRESH_S, AT_ITS_PACE]
    ended = JobSeen(queue, JobRecord("slurm", "7", 0.0), ended=True)
    ended.glance()
    assert len(queue.asked) == 2


def test_keeper_has_ended(desk):
    """Once the keeper has ended SLURM, which may know better why, is asked before it is due, until it says so too."""
    held = desk.cell(nodes=1)
    seen, queue = seen_by(JobState("running", "RUNNING"), JobState("running", "RUNNING"), ENDED)
    told = [seen.status(held.directory, held.request, KeeperState("ready"))]
    for _ in range(5):
        told.append(seen.status(held.directory, held.request, KeeperState("ended", cause=TERMINATED)))
        seen._asking.join(10)
    assert queue.asked == [FRESH_S] * 3
    assert [one.state for one in told] == ["ready"] + ["ended"] * 5
    assert told[-1].reason == ENDED.meaning


def test_older_answer_changes_nothing(monkeypatch):
    """What was asked before the walltime was changed does not bring the old one back."""
    clock = FakeClock(100.0)
    new = JobState("running", "RUNNING", left_s=900.0)
    old = JobState("running", "RUNNING", left_s=300.0, age_s=20.0)
    seen, _ = seen_by(new, old, clock=clock, monkeypatch=monkeypatch)
    clock.advance(5)
    looked(seen)
    assert seen.left_s() == 895.0


def test_stale(monkeypatch):
    """How long SLURM has not answered is told; what was seen last stands and its times go on, until it is back."""
    clock = FakeClock(100.0)
    first = JobState("running", "RUNNING", elapsed_s=10.0, left_s=600.0)
    away = first.after(30.0, stale=True)
    unknown = JobState("unknown", meaning="it does not answer", stale=True)
    back = JobState("running", "RUNNING", elapsed_s=72.0, left_s=538.0)
    seen, _ = seen_by(first, away, unknown, back, clock=clock, monkeypatch=monkeypatch)
    assert seen.stale_s() == 0.0
    clock.advance(30)
    assert seen.stale_s() == 0.0
    looked(seen)
    assert (seen.stale_s(), seen.elapsed_s(), seen.left_s()) == (30.0, 40.0, 570.0)
    clock.advance(30)
    looked(seen)
    assert (seen.state.phase, seen.stale_s(), seen.elapsed_s()) == ("running", 60.0, 70.0)
    clock.advance(2)
    looked(seen)
    assert (seen.stale_s(), seen.elapsed_s(), seen.left_s()) == (0.0, 72.0, 538.0)


@pytest.mark.parametrize("phase", ["pending", "ended"])
def test_time_of_a_job_that_does_not_run(monkeypatch, phase):
    """A job that waits, or is over, neither has run longer a minute later, nor has it less left."""
    clock = FakeClock(100.0)
    seen, _ = seen_by(JobState(phase, "X", elapsed_s=5.0, left_s=60.0), clock=clock, monkeypatch=monkeypatch)
    clock.advance(60)
    assert (seen.elapsed_s(), seen.left_s()) == (5.0, 60.0)


def test_infinite_is_a_number():
    """The pace is the oldest age of all: whatever compares ages may take it."""
    assert math.inf == AT_ITS_PACE > PACE_S[1] > PACE_S[0] > FRESH_S
