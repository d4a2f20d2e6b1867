"""The hint below a local cell that is too large for this machine: the line that fits, once, and only where it helps."""

import shlex
import stat
import threading
import time
from types import SimpleNamespace

import pytest
from two_lines import two_lines

from hpcmagic.errors import ProfileError
from hpcmagic.launch.offers import Offers
from hpcmagic.notebook import frontend, outgrown
from hpcmagic.notebook.machine import Room
from hpcmagic.notebook.options import chosen_resources, remote_parser
from hpcmagic.notebook.outgrown import Use, Watch, fitting_line
from hpcmagic.profiles import Resources, resolve
from hpcmagic.testing import FakeClock
from hpcmagic.wire.pending import Pending

GB = 1 << 30
SINFO = "debug*|up|16|128000|4:00:00|(null)\n"


class Notebook:
    """A notebook on a machine of 8 cores and 32 GB, whose cells use what the test says."""

    def __init__(self, monkeypatch, said):
        self.clock = FakeClock()
        self.magics = SimpleNamespace(hint=True, hint_after_s=60.0, hint_memory=0.7, held={})
        self.shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True))
        self.now = [GB // 2, GB // 2, 0.0, 4 * GB]  # resident, highest so far, CPU seconds, in use by all
        self.queued_s = 100.0
        self.children = {}  # by pid: resident, CPU seconds, when it began
        self.lines = []
        said["sinfo"] = SINFO
        machine = SimpleNamespace(
            room=lambda: SimpleNamespace(nbytes=32 * GB, group=None, used_nbytes=lambda: self.now[3]),
            cores=lambda: 8.0,
            started=lambda: list(self.children),
            resident_nbytes=lambda pid="self": self.now[0] if pid == "self" else self.children[pid][0],
            cpu_of=lambda pid: self.children[pid][1:],
            queued_s=lambda: self.queued_s,
            Room=Room,
        )
        monkeypatch.setattr(outgrown, "machine", machine)
        monkeypatch.setattr(outgrown, "os", SimpleNamespace(times=lambda: (self.now[2], 0.0, 0.0, 0.0, 0.0)))
        monkeypatch.setattr(outgrown, "_highest", lambda: self.now[1])
        monkeypatch.setattr(outgrown.shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(outgrown.output, "quiet", self.lines.append)
        monkeypatch.setattr(frontend, "shell", lambda: self.shell)
        self.watch = Watch(self.magics, self.clock, Offers(self.clock))

    def begin(self, **info):
        """Begin a cell."""
        info = SimpleNamespace(**{"store_history": True, **info})
        self.watch.begin(info)
        return info

    def pass_time(self, took_s, cores=0.0, grown=0):
        """Let a cell compute."""
        self.clock.advance(took_s)
        self.now[2] += took_s * cores
        self.now[0] += grown
        self.now[1] = max(self.now[1], self.now[0])
        self.now[3] += grown

    def cell(self, took_s=240.0, cores=1.0, grown=0, *, success=True, **info):
        """Run a cell from its begin to its end; give what was said so far."""
        info = self.begin(**info)
        self.pass_time(took_s, cores, grown)
        self.watch.over(SimpleNamespace(success=success, info=info))
        return self.lines


@pytest.fixture
def notebook(monkeypatch, said):
    """A notebook whose cells are watched; its thread is ended."""
    notebook = Notebook(monkeypatch, said)
    yield notebook
    notebook.watch.close()


def test_line(notebook):
    """The line says what the cell took and what would fit, with room to spare, and how to have peace."""
    (line,) = notebook.cell(250.0, cores=8, grown=int(20.5 * GB))
    assert line == (
        "This cell took 4 min on all 8 cores and 21 GB of this machine's 32 GB. On the cluster: "
        "%%remote --nodes 1 --cpus-per-task 16 --mem 48G --time 0:15:00 · never again: %hpc hint off"
    )


def test_one_core(notebook):
    """A cell of one core is no faster elsewhere: it is offered to run beside what is done here."""
    (line,) = notebook.cell(65.0)
    assert line.startswith("This cell took 1 min 5 s on one core and 512 MB of this machine's 32 GB. ")
    assert "while you work on here: %%remote -a --nodes 1 --cpus-per-task 1 --mem 2G --time 0:15:00 " in line


def test_some_cores(notebook):
    """A cell that keeps some of the cores busy gets as many."""
    (line,) = notebook.cell(100.0, cores=3.1)
    assert " on 3 of 8 cores " in line
    assert " --cpus-per-task 4 " in line


def test_crowded_machine(notebook):
    """A cell that waited for a core while others had them all computes, too: there it is welcome most."""
    info = notebook.begin()
    notebook.pass_time(100.0, cores=0.2)
    notebook.queued_s += 75.0
    notebook.watch.over(SimpleNamespace(success=True, info=info))
    assert " on one core " in notebook.lines[0]


def test_once_a_notebook(notebook):
    """It is said once, however many such cells there are."""
    assert len(notebook.cell()) == 1
    assert len(notebook.cell()) == 1


def test_full_memory(notebook):
    """A short cell that fills the memory is told; one beside it that adds little is not."""
    assert notebook.cell(2.0, grown=21 * GB, success=False) == []
    assert notebook.cell(0.1) == []
    assert notebook.cell(2.0, cores=0.1, grown=4 * GB)[0].startswith("This cell took 2 s and 26 GB of this machine's")


def test_memory_of_a_moment(notebook):
    """Memory that a cell has given back by its end counts: the process's high-water mark tells it."""
    info = notebook.begin()
    notebook.pass_time(2.0, grown=23 * GB)
    notebook.pass_time(0.1, grown=-23 * GB)
    notebook.now[3] += 23 * GB
    notebook.watch.over(SimpleNamespace(success=True, info=info))
    assert " 24 GB of this machine's 32 GB" in notebook.lines[0]


def test_memory_of_others(notebook):
    """Where it is others who fill the memory, a cell that adds its part is told how much is in use."""
    notebook.now[3] = 18 * GB
    (line,) = notebook.cell(5.0, grown=6 * GB)
    assert " and 6.5 GB of this machine's 32 GB, 24 GB of which are in use. On the cluster: " in line


def test_children(notebook):
    """What a cell has started counts: memory, as far as it is in use at all, and processor time since it began."""
    notebook.children = {7: (2 * GB, 500.0, 0.0)}
    info = notebook.begin()
    notebook.pass_time(10.0)
    notebook.watch.look()
    notebook.children[8] = (GB, 0.0, time.clock_gettime(time.CLOCK_BOOTTIME) + 5)
    notebook.pass_time(90.0)
    notebook.children = {7: (2 * GB, 590.0, 0.0), 8: (GB, 95.0, time.clock_gettime(time.CLOCK_BOOTTIME) + 5)}
    notebook.watch.over(SimpleNamespace(success=True, info=info))
    assert " on 2 of 8 cores and 3.5 GB of " in notebook.lines[0]


def test_shared_pages_count_once(notebook):
    """Forks that share their parent's memory do not seem to use more than is in use."""
    notebook.now[:2] = [8 * GB] * 2
    notebook.now[3] = 9 * GB
    info = notebook.begin()
    notebook.children = dict.fromkeys(range(4), (8 * GB, 50.0, 1e9))
    notebook.pass_time(100.0, cores=1)
    notebook.watch.over(SimpleNamespace(success=True, info=info))
    assert " and 9.0 GB of " in notebook.lines[0]


@pytest.mark.parametrize(
    "cell",
    [
        {"took_s": 59.0, "cores": 8},
        {"took_s": 3600.0, "cores": 0.1},  # it waits for something
        {"success": False},
        {"store_history": False},
        {"took_s": 1.0, "grown": 2 * GB},
    ],
)
def test_no_reason(notebook, cell):
    """Nothing is said below a cell that is short, waits, failed, or was not typed by a person."""
    assert notebook.cell(**cell) == []
    assert notebook.cell() != []


def switch_off(notebook, monkeypatch, said):
    """Each way in which there is nobody to tell, or nothing to say."""
    return {
        "by the user": lambda: outgrown.set_off(off=True),
        "by configuration": lambda: setattr(notebook.magics, "hint", False),
        "nobody sits there": lambda: setattr(notebook.shell.kernel, "_allow_stdin", False),
        "a session is at hand": lambda: notebook.magics.held.update(a=SimpleNamespace(ended="")),
        "no SLURM": lambda: monkeypatch.setattr(outgrown.shutil, "which", lambda name: None),
        "SLURM is away": lambda: said.update(sinfo=(1, "", "Unable to contact")),
        "no partition is up": lambda: said.update(sinfo=SINFO.replace("|up|", "|down|")),
        "nodes are too small": lambda: said.update(sinfo="debug*|up|16|400|4:00:00|(null)\n"),
        "nodes have fewer cores": lambda: said.update(sinfo="debug*|up|4|128000|4:00:00|(null)\n"),
        "no partition allows the time": lambda: said.update(sinfo="debug*|up|16|128000|2:00|(null)\n"),
        "a profile cannot be read": lambda: monkeypatch.setenv("HPCMAGIC_NODES", "many"),
    }


@pytest.mark.parametrize("way", list(switch_off(None, None, None)))
def test_silent(notebook, monkeypatch, said, way):
    """Nothing is said where it would not help."""
    switch_off(notebook, monkeypatch, said)[way]()
    assert notebook.cell(cores=6) == []


def test_session_that_ended(notebook):
    """Who had a session that is over may be told."""
    notebook.magics.held["a"] = SimpleNamespace(ended="it was stopped")
    assert len(notebook.cell()) == 1


def test_remote_cell(notebook):
    """A cell that has asked ranks for anything is no local one, whatever it took here."""
    info = notebook.begin()
    Pending([0])
    notebook.pass_time(300.0, cores=4, grown=28 * GB)
    notebook.watch.over(SimpleNamespace(success=True, info=info))
    assert notebook.lines == []


def test_cell_within_a_cell(notebook):
    """What a cell itself runs as a cell is part of it."""
    info = notebook.begin()
    notebook.cell(50.0, store_history=False)
    notebook.pass_time(50.0, cores=1)
    assert notebook.lines == []
    notebook.watch.over(SimpleNamespace(success=True, info=info))
    assert "1 min 40 s" in notebook.lines[0]


def test_broken_off(notebook):
    """IPython tells no result of a cell that was broken off: it is forgotten."""
    notebook.begin()
    notebook.pass_time(300.0, cores=1)
    notebook.watch.over(None)
    notebook.watch.over(None)
    assert notebook.lines == []


def test_cell_beside_another(notebook):
    """A cell of a subshell, which runs in a thread of its own, is left alone."""
    info = notebook.begin()
    beside = threading.Thread(target=notebook.begin)
    beside.start()
    beside.join()
    notebook.pass_time(100.0, cores=1)
    notebook.watch.over(SimpleNamespace(success=True, info=info))
    assert len(notebook.lines) == 1


def test_thread_looks(notebook, monkeypatch):
    """One thread for all cells looks at those that are long; it ends with the watch, and is never started unattended."""
    notebook.shell.kernel._allow_stdin = False
    notebook.cell()
    assert notebook.watch._thread is None
    notebook.shell.kernel._allow_stdin = True
    looked = threading.Event()
    monkeypatch.setattr(outgrown, "SHORT_S", 0.01)
    monkeypatch.setattr(outgrown, "EACH_S", 0.01)
    monkeypatch.setattr(notebook.watch, "_look_at", lambda cell: looked.set())
    for _ in range(3):
        notebook.begin()
    thread = notebook.watch._thread
    assert not looked.wait(0.05)
    notebook.clock.advance(1.0)
    assert looked.wait(5)
    notebook.watch.close()
    assert not thread.is_alive()


# ---- the line that fits


def use(**how):
    """What a cell used: 3 GB and one core for 5 minutes, unless said otherwise."""
    usual = {"took_s": 300.0, "cores": 1.0, "cores_here": 8.0, "peak_nbytes": 3 * GB, "used_nbytes": 5 * GB}
    return Use(**{**usual, "room": Room(32 * GB), "full": False, **how})


def kinds(said, *rows):
    """The site's nodes, by lines of sinfo."""
    said["sinfo"] = "".join(f"{row}|(null)\n" for row in rows)
    return Offers().node_kinds()


def asked(line):
    """What the line's `%%remote` asks for, once parsed and checked as the magic does it."""
    words = shlex.split(line.partition("%%remote ")[2].partition(" ·")[0])
    return resolve(chosen_resources(remote_parser("%%remote").parse(words)))


@pytest.mark.parametrize(
    ("how", "cpus", "mem", "time"),
    [
        ({}, 1, "6G", "0:15:00"),
        ({"peak_nbytes": GB // 8}, 1, "2G", "0:15:00"),
        ({"peak_nbytes": 21 * GB, "full": True}, 1, "48G", "0:15:00"),
        ({"took_s": 600.0}, 1, "6G", "0:30:00"),
        ({"took_s": 3000.0, "cores": 2.1}, 2, "6G", "1:45:00"),
        ({"took_s": 5000.0, "cores": 5.0}, 8, "6G", "3:00:00"),
        ({"cores": 7.5}, 16, "6G", "0:15:00"),
        ({"cores": 1.9, "cores_here": 2.0}, 4, "6G", "0:15:00"),
    ],
)
def test_what_fits(said, how, cpus, mem, time):
    """Cores as it kept busy, more where it used all; memory and time with room to spare; and the magic takes it."""
    line = fitting_line(use(**how), kinds(said, "debug*|up|64|512000|4:00:00"), Resources())
    fits = asked(line)
    assert (fits.nodes, fits.cpus_per_task, fits.mem, fits.time) == (1, cpus, mem, time)
    assert "--partition" not in line


def test_held_to_the_node(said):
    """No more is asked for than a node has, and its partition allows."""
    line = fitting_line(use(cores=8.0), kinds(said, "debug*|up|12|4000|10:00"), Resources())
    fits = asked(line)
    assert (fits.cpus_per_task, fits.mem, fits.time) == (12, "4000M", "0:10:00")


def test_another_partition(said):
    """Where the usual partition has no such nodes, another is named; the one that the profile names is the usual."""
    rows = ("debug*|up|4|16000|1:00:00", "big|up|64|512000|1:00:00", "long|up|4|16000|infinite")
    large, long = use(peak_nbytes=20 * GB, full=True), use(took_s=36000.0)
    assert asked(fitting_line(large, kinds(said, *rows), Resources())).partition == "big"
    assert asked(fitting_line(long, kinds(said, *rows), Resources())).partition == "long"
    assert "--partition" not in fitting_line(use(), kinds(said, *rows), Resources(partition="big"))


def test_profile_of_many_ranks(said):
    """Where a profile has several ranks a node, or runs on this machine, the line says otherwise."""
    line = fitting_line(
        use(), kinds(said, "debug*|up|4|16000|1:00:00"), Resources(ntasks_per_node=8, launcher="local")
    )
    fits = asked(line)
    assert (fits.ntasks_per_node, fits.launcher) == (1, "slurm")


def test_control_group(said):
    """Where a control group sets the limit, the machine is not blamed."""
    line = fitting_line(use(room=Room(8 * GB, "group")), kinds(said, "debug*|up|4|16000|1:00:00"), Resources())
    assert " and 3.0 GB of the 8.0 GB that you may use here. " in line


# ---- silenced for good


def test_off_for_good():
    """`off` leaves a private file that every notebook sees; `on` takes it away; both may be said twice."""
    for _ in range(2):
        outgrown.set_off(off=True)
    path = outgrown.off_file()
    assert outgrown.is_off()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for _ in range(2):
        outgrown.set_off(off=False)
    assert not outgrown.is_off()


def test_off_cannot_be_kept(tmp_path, monkeypatch):
    """Where the file cannot be written, that is said, and what helps for this notebook."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(ProfileError) as error:
        outgrown.set_off(off=True)
    assert "`%config HpcMagics.hint = False`" in two_lines(error).mend
