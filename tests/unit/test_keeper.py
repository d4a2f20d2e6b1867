"""The keeper's decisions: which nodes, how to start the ranks, when a session ends."""

import importlib.util
import signal
import socket
import subprocess
from types import SimpleNamespace

import pytest

from hpcmagic.errors import HpcMagicError
from hpcmagic.keeper import ranks
from hpcmagic.keeper.__main__ import OWN_LIMITS, listen_address, others_job, status_words
from hpcmagic.keeper.ranks import expected_nodes, hosts, mpi_plugins, rank_environment, starters
from hpcmagic.keeper.watch import Allowance, Hold, Idle, Watch
from hpcmagic.rendezvous import KEEPER_GONE, NO_MPI, WRONG_WORLD, JobRecord, Request, SessionDirectory
from hpcmagic.testing import FakeClock


def request(**changes):
    """A session's request."""
    values = {
        "session": "demo", "launcher": "slurm", "ntasks": 4, "nodes": 2, "ntasks_per_node": 2, "cpus_per_task": 3,
        "mpi": "auto", "interface": "", "submit_host": "hub", "no_client_limit_s": 1200.0, "start_timeout_s": 300.0,
        "server_public": "", "client_public": "", "engine_public": "",
    }  # fmt: skip
    return Request(**{**values, **changes})


# ---- when a session ends for want of company


class Watched:
    """A watch with a clock beside it."""

    def __init__(self, limit_s):
        self.clock = FakeClock(1000.0)
        self.watch = Watch(limit_s, self.clock())

    def after(self, seconds, *, clients=0, busy=False):
        """Let time pass, then say what is there."""
        self.clock.advance(seconds)
        return self.watch.decide(self.clock(), clients=clients, busy=busy)


def test_nobody_comes():
    """A session that nobody connects to ends at its limit after the start, and not before."""
    watched = Watched(1200)
    assert watched.after(0) == ""
    assert watched.after(1199.9) == ""
    cause = watched.after(0.1)
    assert "20 min" in cause
    assert "no_client_limit" in cause


@pytest.mark.parametrize("company", [{"clients": 1}, {"busy": True}, {"clients": 2, "busy": True}])
def test_company_keeps_it(company):
    """A connected notebook keeps a session, and so does a running cell, however long."""
    watched = Watched(1200)
    for _ in range(100):
        assert watched.after(3600, **company) == ""


@pytest.mark.parametrize("company", [{"clients": 1}, {"busy": True}])
def test_limit_counts_from_the_last_company(company):
    """The limit begins when the last notebook has gone and the last cell has ended."""
    watched = Watched(1200)
    watched.after(1199)
    assert watched.after(0.5, **company) == ""
    assert watched.after(1000, **company) == ""
    assert watched.after(1) == ""
    assert watched.after(1199) == ""
    assert watched.after(1) != ""


def test_cell_outlives_its_notebook():
    """When the notebook goes while a cell runs, the limit begins with the end of the cell."""
    watched = Watched(60)
    watched.after(10, clients=1, busy=True)
    for _ in range(10):
        assert watched.after(60, busy=True) == ""
    assert watched.after(1) == ""
    assert watched.after(59) == ""
    assert watched.after(1) != ""


def test_coming_back_in_time():
    """A notebook that comes back before the limit finds its session, as often as it likes."""
    watched = Watched(60)
    for _ in range(20):
        assert watched.after(59) == ""
        assert watched.after(0.5, clients=1) == ""


def test_no_limit():
    """Without a limit a session lives as long as its job."""
    watched = Watched(0)
    for _ in range(100):
        assert watched.after(86400) == ""


def test_limit_in_words():
    """The cause names the limit as one would set it."""
    for limit_s, words in ((60, "1 min"), (90, "1.5 min"), (7200, "120 min")):
        assert words in Watched(limit_s).after(limit_s)


# ---- how long a job without ranks is held


def held(hold_s=300.0, alone_s=60.0):
    """A hold that begins now, on the clock that stands beside it."""
    clock = FakeClock(1000.0)
    return Hold(hold_s, alone_s, clock()), clock


def test_held_for_a_while():
    """A job without ranks is held for its time, to the second, though somebody is there all the while."""
    hold, clock = held()
    for _ in range(299):
        clock.advance(1)
        assert not hold.is_over(clock(), clients=2)
    clock.advance(1)
    assert hold.is_over(clock(), clients=2)


def test_held_for_nobody():
    """With nobody there it is given back sooner; who comes in time may leave again for as long."""
    hold, clock = held()
    clock.advance(59)
    assert not hold.is_over(clock(), clients=0)
    assert not hold.is_over(clock(), clients=1)
    clock.advance(59)
    assert not hold.is_over(clock(), clients=0)
    clock.advance(1)
    assert hold.is_over(clock(), clients=0)


@pytest.mark.parametrize(
    ("state", "how", "goes_on"),
    [
        ("RUNNING\n", "rank 1 Killed", True),
        ("RUNNING\n", "n2 ran out of the memory that the job asked for (`--mem`)", True),
        ("", "rank 1 Killed", True),
        ("RUNNING\n", "node n2 failed", False),
        ("COMPLETING\n", "rank 0 Terminated", False),
        ("CANCELLED\n", "rank 0 Terminated", False),
    ],
)
def test_job_runs_on(monkeypatch, state, how, goes_on):
    """A job can be held while SLURM lets it run, or says nothing; one that it ends, or whose node failed, cannot."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    asked = []
    monkeypatch.setattr(ranks, "slurm", lambda *command: (asked.append(command), state)[1])
    assert ranks.job_runs_on(request(), how) is goes_on
    assert "--jobs=17" in asked[0]


def test_job_runs_on_here(monkeypatch):
    """On this machine the keeper is the job."""
    monkeypatch.setattr(ranks, "slurm", None)
    assert ranks.job_runs_on(request(launcher="local"), "rank 1 Killed")


# ---- nodes


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n1,n3", ["n1", "n3"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[1-3,07],login", ["n1", "n2", "n3", "n07", "login"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("n[5]", ["n5"]),
        ("a[1-2]b[3-4]", ["a1b3", "a1b4", "a2b3", "a2b4"]),
        ("n[1-2]-ib", ["n1-ib", "n2-ib"]),
        ("gpu-a[1,3],cpu-[09-10],x", ["gpu-a1", "gpu-a3", "cpu-09", "cpu-10", "x"]),
        ("node-1-2,node-1-3", ["node-1-2", "node-1-3"]),
        ("r1i0n[0-1],r2i0n[5-6]", ["r1i0n0", "r1i0n1", "r2i0n5", "r2i0n6"]),
        ("n1.site.org", ["n1.site.org"]),
    ],
)
def test_hosts(nodelist, names):
    """SLURM's lists of nodes are read as `scontrol show hostnames` reads them."""
    assert hosts(nodelist) == names


def test_hosts_of_a_large_job():
    """Nothing is lost of a job over a thousand nodes."""
    assert hosts("n[0001-1000,1002]") == [*(f"n{i:04d}" for i in range(1, 1001)), "n1002"]


@pytest.mark.parametrize(
    ("ntasks", "nodelist", "nodes"),
    [
        (4, "n[1-4]", ("n1", "n2", "n3", "n4")),
        (4, "n[1-2]", ("n1", "n1", "n2", "n2")),
        (3, "n1", ("n1", "n1", "n1")),
        (6, "n[1-3]", ("n1", "n1", "n2", "n2", "n3", "n3")),
        (3, "", ("here", "here", "here")),
        (1, "n[1-4]", ("n1",)),
    ],
)
def test_expected_nodes(ntasks, nodelist, nodes):
    """Ranks fill the nodes in order, as srun places them; without SLURM all are here."""
    environment = {"SLURM_JOB_NODELIST": nodelist} if nodelist else {}
    assert expected_nodes(request(ntasks=ntasks), environment, "here") == nodes


# ---- how to start the ranks


@pytest.fixture
def machine(monkeypatch):
    """Say what a machine has: mpiexec, mpi4py, srun's plugins."""

    def has(*, mpiexec=True, mpi4py=True, plugins=()):
        found = importlib.util.find_spec
        monkeypatch.setattr(ranks.shutil, "which", lambda name: f"/usr/bin/{name}" if mpiexec else None)
        monkeypatch.setattr(
            ranks.importlib.util, "find_spec", lambda name, *_: mpi4py or None if name == "mpi4py" else found(name)
        )
        monkeypatch.setattr(ranks, "mpi_plugins", lambda: set(plugins))

    has()
    return has


@pytest.fixture
def directory(tmp_path):
    """A session's directory, with a blank in its path."""
    return SessionDirectory(tmp_path / "my sessions" / "demo")


EVERYTHING = {"plugins": ("pmix", "pmi2", "none", "cray_shasta")}


@pytest.mark.parametrize(
    ("asked", "there", "names"),
    [
        ("slurm auto", EVERYTHING, ["srun --mpi=pmix", "srun --mpi=pmi2", "mpiexec", "srun"]),
        ("slurm auto", {"plugins": ("pmi2", "none")}, ["srun --mpi=pmi2", "mpiexec", "srun"]),
        ("slurm auto", {"plugins": ("none",), "mpiexec": False}, ["srun"]),
        ("slurm auto", {**EVERYTHING, "mpi4py": False}, ["srun"]),
        ("slurm pmix", EVERYTHING, ["srun --mpi=pmix"]),
        ("slurm pmi2", EVERYTHING, ["srun --mpi=pmi2"]),
        ("slurm mpiexec", EVERYTHING, ["mpiexec"]),
        ("slurm none", EVERYTHING, ["srun"]),
        ("slurm pmix", {"plugins": ("pmi2", "none")}, []),
        ("slurm mpiexec", {"mpiexec": False}, []),
        ("local auto", {}, ["mpiexec", "processes"]),
        ("local auto", {"mpiexec": False}, ["processes"]),
        ("local auto", {"mpi4py": False}, ["processes"]),
        ("local mpiexec", {}, ["mpiexec"]),
        ("local none", {}, ["processes"]),
        ("local pmix", EVERYTHING, []),
    ],
)
def test_starters(machine, directory, asked, there, names):
    """The ways to start ranks are those that are there and that the profile allows, the best first."""
    machine(**there)
    launcher, mpi = asked.split()
    ways = starters(request(launcher=launcher, mpi=mpi), directory)
    assert [way.name for way in ways] == names
    for way in ways:
        assert way.mpi is (way.name not in ("srun", "processes"))
        assert ("--no-mpi" in way.command) is not way.mpi
        assert way.command[-2 - (not way.mpi) :][:2] == ("hpcmagic.engine", str(directory.path))


def test_srun_commands(machine, directory):
    """srun gets the sizes of the session, ends all ranks with one that fails, and passes the environment on."""
    machine(**EVERYTHING)
    for way in starters(request(), directory):
        if way.name.startswith("srun"):
            assert {"--nodes=2", "--ntasks=4", "--cpus-per-task=3", "--kill-on-bad-exit=1", "--export=ALL"} < set(
                way.command
            )
            assert sum(word.startswith("--mpi=") for word in way.command) == 1
        else:
            assert way.command[:3] == ("/usr/bin/mpiexec", "-n", "4")


def test_nothing_asked_of_srun_here(machine, directory, monkeypatch):
    """On this machine nobody asks for srun: it may not be there."""
    monkeypatch.setattr(ranks, "mpi_plugins", lambda: pytest.fail("srun was asked"))
    starters(request(launcher="local"), directory)


@pytest.mark.parametrize(
    ("stdout", "stderr", "plugins"),
    [
        ("MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions available: pmix_v4\n", "",
         {"none", "pmi2", "pmix"}),
        ("", "srun: MPI types are...\nsrun: none\nsrun: pmi2\n", {"none", "pmi2"}),
        ("", "", set()),
    ],
)  # fmt: skip
def test_mpi_plugins(monkeypatch, stdout, stderr, plugins):
    """srun's list of plugins is read as every version prints it."""
    answer = subprocess.CompletedProcess([], 0, stdout, stderr)
    monkeypatch.setattr(ranks.subprocess, "run", lambda *_, **__: answer)
    assert mpi_plugins() & {"none", "pmi2", "pmix"} == plugins


def test_environment_of_ranks_here():
    """Here MPI is told to run as any user, on more ranks than cores, on one host; the user's own word wins."""
    told = rank_environment({"OMPI_MCA_btl": "tcp,self", "A": "b"}, request(launcher="local"))
    assert told["OMPI_MCA_btl"] == "tcp,self"
    assert told["OMPI_MCA_rmaps_base_oversubscribe"] == "1"
    assert told["A"] == "b"


def test_environment_of_ranks_in_a_job():
    """In a job MPI is left to the site."""
    told = rank_environment({"A": "b"}, request(launcher="slurm"))
    assert told["A"] == "b"
    assert not any(name.startswith(("OMPI_", "PRTE_", "PMIX_")) for name in told)


# ---- words


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit status 0"),
        (1, "exit status 1"),
        (WRONG_WORLD, "MPI's world had the wrong size"),
        (NO_MPI, "no MPI: mpi4py or its library cannot be loaded"),
        (-9, "killed by SIGKILL"),
        (-signal.SIGSEGV, "killed by SIGSEGV"),
        (-35, "killed by signal 35"),
    ],
)
def test_status_words(status, words):
    """How ranks ended is said in words; a signal without a name by its number."""
    assert status_words(status) == words


def test_own_statuses_told_apart():
    """A rank's own exit statuses are none that a shell, a signal or MPI gives."""
    own = {WRONG_WORLD, NO_MPI, KEEPER_GONE}
    assert len(own) == 3
    assert all(2 < status < 126 for status in own)


# ---- where to listen


def test_listens_on_loopback_here():
    """On this machine nothing listens on the network."""
    assert listen_address(request(launcher="local", interface="eth0")) == "127.0.0.1"


def addresses(family, address):
    """What psutil says of an interface."""
    return [
        SimpleNamespace(family=socket.AF_INET6, address="fe80::1"),
        SimpleNamespace(family=family, address=address),
    ]


def test_listens_on_the_interface(monkeypatch):
    """A profile's interface is the one that is listened on."""
    import psutil

    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"ib0": addresses(socket.AF_INET, "10.1.0.7")})
    assert listen_address(request(interface="ib0")) == "10.1.0.7"


def test_interface_not_there(monkeypatch):
    """An interface that a node does not have, or that has no address, is named: the session cannot start there."""
    import psutil

    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"ib0": addresses(socket.AF_INET6, "fe80::2")})
    for interface in ("ib0", "ib7"):
        with pytest.raises(HpcMagicError, match=interface):
            listen_address(request(interface=interface))


# ---- when a session ends because nothing is done in it, or its budget is spent


class Idling:
    """A count of idle time with a clock beside it."""

    def __init__(self, limit_s):
        self.clock = FakeClock(500.0)
        self.idle = Idle(limit_s, self.clock())

    def after(self, seconds, *, busy=False):
        """Let time pass, then say whether a cell runs; give the cause of the end, if it is one."""
        self.clock.advance(seconds)
        self.idle.note(self.clock(), busy=busy)
        return self.idle.cause(self.clock())


def test_idle_limit():
    """A session in which no cell runs ends at its limit, counted from the last cell's end."""
    watched = Idling(600)
    assert watched.after(599) == ""
    assert watched.after(0.5, busy=True) == ""
    assert watched.after(5000, busy=True) == ""
    assert watched.after(1) == ""
    assert watched.after(599) == ""
    assert watched.after(1) == "no cell ran for 10 min (idle_limit)"


def test_no_idle_limit():
    """Without a limit no idle session ends, nor is anything counted down."""
    watched = Idling(0)
    assert watched.after(1e9) == ""
    assert watched.idle.left_s(watched.clock()) is None


def test_idle_time_adds_up():
    """Pauses add up, cells do not; the count goes on within a pause."""
    watched = Idling(0)
    for pause, cell in ((10, 3), (20, 500), (0.25, 1)):
        watched.after(pause, busy=True)
        watched.after(cell)
    watched.clock.advance(7)
    assert watched.idle.total_s(watched.clock()) == pytest.approx(37.25)


def test_kept():
    """Who keeps a session has its countdown begin anew; what was idle stays counted."""
    watched = Idling(600)
    watched.after(590)
    assert watched.idle.left_s(watched.clock()) == 10
    watched.idle.keep(watched.clock())
    assert watched.after(599) == ""
    assert watched.idle.left_s(watched.clock()) == 1
    assert watched.after(1) != ""
    assert watched.idle.total_s(watched.clock()) == 1190


def test_allowance():
    """A job is warned at four fifths of its budget, and ends with it."""
    allowance = Allowance(1000.0, 800.0, "20 core-hours")
    assert (allowance.left_s(799.0), allowance.warning(799.0), allowance.cause(799.0)) == (201.0, "", "")
    assert "four fifths of its budget of 20 core-hours" in allowance.warning(800.0)
    assert allowance.cause(999.9) == ""
    assert allowance.cause(1000.0) == "its budget of 20 core-hours is spent (%budget)"


def test_no_allowance():
    """Without a budget nothing is warned of, and nothing ends."""
    allowance = Allowance()
    assert (allowance.left_s(1e9), allowance.warning(1e9), allowance.cause(1e9)) == (None, "", "")


def test_own_limits_are_no_failure():
    """A session that ends by a limit of its own has not failed: the batch system is told so."""
    causes = [Watched(1).after(1), Idling(1).after(1), Allowance(1.0, 0.0, "1").cause(1.0)]
    assert all(cause.endswith(OWN_LIMITS) for cause in causes)


@pytest.mark.parametrize(
    ("recorded", "launcher", "own", "other"),
    [
        ("8", "slurm", "7", "8"),
        ("7", "slurm", "7", ""),
        (None, "slurm", "7", ""),
        ("8", "local", "7", ""),
        ("8", "slurm", "", ""),
    ],
)
def test_job_of_a_session_begun_anew(tmp_path, recorded, launcher, own, other):
    """A job that sbatch queued without an answer leaves the session alone that was begun after it."""
    directory = SessionDirectory.create(tmp_path / "sessions" / "demo")
    if recorded:
        directory.write_record(directory.job, JobRecord(launcher, recorded, 0.0))
    environment = {"SLURM_JOB_ID": own} if own else {}
    assert others_job(directory, request(launcher=launcher), environment) == other
