"""What SLURM tells of prices, in the words of a real one; and what is made of it where it tells less."""

import threading

import pytest

from hpcmagic.cost import Tariff
from hpcmagic.errors import LaunchError
from hpcmagic.launch import charges
from hpcmagic.launch.board import Board
from hpcmagic.launch.charges import NO_FACTOR, Accounted, Balance, Books
from hpcmagic.launch.expected import asked_tres
from hpcmagic.profiles import Resources
from hpcmagic.testing import FakeClock

PARTITION = (
    "PartitionName={name} AllowGroups=ALL Default={default} QoS=N/A DefaultTime=00:10:00 OverSubscribe={shared} "
    "MaxTime=01:00:00 TotalCPUs=16 TotalNodes=4 SelectTypeParameters=NONE DefMemPerNode=UNLIMITED "
    "MaxMemPerNode=UNLIMITED TRES=cpu=16,mem=20000M,node=4,billing=84,gres/gpu=8{weights}"
)
WEIGHTS = " TRESBillingWeights=CPU=1.0,Mem=0.25G,GRES/gpu=8.0"
CONFIG = """\
Configuration data as of 2026-11-25T09:00:00
AccountingStorageType   = accounting_storage/slurmdbd
DefMemPerCPU            = 500
PriorityFlags           = {flags}
SelectType              = select/cons_tres
SelectTypeParameters    = CR_CORE_MEMORY
"""
ASSOC = (
    "ClusterName=bed Account={account} UserName={user} Partition= Priority=0 ID=3 UsageRaw/Norm/Efctv=0.00/0.00/0.00 "
    "ParentAccount={parent} GrpJobs=N(0) GrpTRES=cpu=N(0) GrpTRESMins={limits} GrpTRESRunMins={runs} MaxTRESMinsPJ="
)
NO_LIMIT = "cpu=N(0),mem=N(0),billing=N(0),gres/gpu=N(0)"
JOB = "JobId=7 JobName=hpcmagic Priority=1 Account=lab QOS=half JobState={state} NumNodes=2 {tres} Power="


class Site:
    """A SLURM of the test's: what it says, by the beginning of a command; what it was asked."""

    def __init__(self, **says):
        partitions = [PARTITION.format(name="debug", default="YES", shared="NO", weights=WEIGHTS)]
        self.says = {
            "scontrol -o show partition": partitions,
            "scontrol show config": CONFIG.format(flags="").splitlines(),
            "sacctmgr -n -P show qos": ["normal|1.000000", "half|0.500000", "free|0.000000"],
            "sacctmgr -n -P show user": ["lab|lab|half|half,normal", "lab|other||normal,half", "lab|third||free"],
            "sinfo": ["1"],
        } | {key.replace("_", " "): value for key, value in says.items()}
        self.asked = []

    def __call__(self, command):
        line = " ".join(command)
        self.asked.append(line)
        said = next((said for begin, said in self.says.items() if line.startswith(begin)), None)
        if isinstance(said, Exception):
            raise said
        return said(line) if callable(said) else said


@pytest.fixture
def site():
    """A site as the test bed is."""
    return Site()


@pytest.fixture
def books(site):
    """Its answers, with nobody in a hurry."""
    return Books(site, wait_s=10.0)


def resources(**asked):
    """What somebody asks for, for ten minutes."""
    return Resources(**{"launcher": "slurm", "time": "10", **asked})


# ---- the quote


@pytest.mark.parametrize(("asked", "rate"), [
    ({}, 0.5 * (1 + 500 / 4096)),
    ({"qos": "normal"}, 1 + 500 / 4096),
    ({"qos": "free"}, 0.0),
    ({"nodes": 4, "ntasks_per_node": 2, "cpus_per_task": 2, "qos": "normal"}, 16 + 16 * 500 / 4096),
    ({"nodes": 2, "mem": "3G", "gpus_per_node": 1, "qos": "normal"}, 2 * (1 + 0.75 + 8)),
    ({"mem": "0", "qos": "normal"}, 1 + 5000 / 4096),
    ({"account": "other"}, 1 + 500 / 4096),
    ({"account": "third"}, 0.0),
])  # fmt: skip
def test_quote(books, asked, rate):
    """What is asked for is charged by the partition's weights and the QOS's factor, an account's default if need be."""
    quote = books.quote(resources(**asked))
    assert quote.tariff.rate(quote.tres) == pytest.approx(rate)
    assert quote.walltime_s == 600
    assert quote.lacks == ()


def test_quote_names_what_it_is_for(books):
    """Partition, account and QOS stand in the quote also where nobody named them."""
    quote = books.quote(resources())
    assert (quote.partition, quote.account, quote.qos, quote.usage_factor) == ("debug", "lab", "half", 0.5)


def test_quote_in_the_sites_unit(books):
    """The profile's unit and price are the quote's."""
    quote = books.quote(resources(cost_unit="SBU", cost_divisor=60.0, price=2.0, currency="€"))
    assert (quote.unit, quote.divisor, quote.price, quote.currency) == ("SBU", 60, 2, "€")


def test_max_tres(site, books):
    """The rule is read from PriorityFlags."""
    site.says["scontrol show config"] = CONFIG.format(flags="MAX_TRES").splitlines()
    quote = books.quote(resources(nodes=2, gpus_per_node=1, qos="normal"))
    assert quote.tariff.rate(quote.tres) == 16


def test_no_weights(site, books):
    """A partition without weights is charged by CPUs."""
    site.says["scontrol -o show partition"] = [PARTITION.format(name="d", default="YES", shared="NO", weights="")]
    quote = books.quote(resources(ntasks_per_node=3, gpus_per_node=2, qos="normal"))
    assert quote.weights is None
    assert quote.tariff.rate(quote.tres) == 3


def test_dearest_of_several_partitions(site, books):
    """Of several partitions, of which SLURM takes any, the dearest is told."""
    site.says["scontrol -o show partition"] = lambda line: [
        PARTITION.format(name=line.split()[-1], default="NO", shared="NO", weights=weights)
        for weights in ([WEIGHTS] if line.endswith("dear") else [""])
    ]
    assert books.quote(resources(partition="cheap,dear")).partition == "dear"


def test_no_factor(site, books):
    """Where the QOS's factor is not told, the quote says that it is without it."""
    site.says["sacctmgr -n -P show qos"] = None
    quote = books.quote(resources(qos="half"))
    assert (quote.usage_factor, quote.lacks) == (1.0, (NO_FACTOR,))
    site.says["scontrol show config"] = None
    quote = Books(site, wait_s=10.0).quote(resources(qos="half"))
    assert quote.lacks == (NO_FACTOR,)


def test_no_accounting(site, books):
    """Without slurmdbd there are no QOS: nothing is lacking, and nothing of it is asked after."""
    config = CONFIG.format(flags="").replace("slurmdbd", "none").splitlines()
    site.says |= {"scontrol show config": config, "sacctmgr": None}
    site.says["sacctmgr -n -P show user"] = site.says["sacctmgr -n -P show qos"] = None
    quote = books.quote(resources())
    assert (quote.usage_factor, quote.lacks, quote.account) == (1.0, (), "")
    assert quote.tariff.rate(quote.tres) == pytest.approx(1 + 500 / 4096)


@pytest.mark.parametrize("said", [None, [], ["No partitions in the system"], LaunchError("away")])
def test_no_partition(site, books, said):
    """Where SLURM tells nothing of the partition there is no quote."""
    site.says["scontrol -o show partition"] = said
    assert books.quote(resources()) is None


# ---- what will be allocated


NODES = {"TotalNodes": "4", "TRES": "cpu=128,mem=1000000M,node=4,gres/gpu=16"}
BY_CORE = {"SelectType": "select/cons_tres", "SelectTypeParameters": "CR_CORE_MEMORY", "DefMemPerCPU": "1000"}


@pytest.mark.parametrize(("asked", "partition", "config", "threads", "tres"), [
    ({"ntasks_per_node": 3}, {}, {}, 2, {"cpu": 4, "mem": 4000, "node": 1}),
    ({"nodes": 2, "cpus_per_task": 3}, {}, {}, 1, {"cpu": 6, "mem": 6000, "node": 2}),
    ({}, {"DefMemPerNode": "8000"}, {}, 1, {"cpu": 1, "mem": 8000, "node": 1}),
    ({}, {"DefMemPerCPU": "2000", "DefMemPerNode": "UNLIMITED"}, {}, 1, {"cpu": 1, "mem": 2000, "node": 1}),
    ({}, {}, {"DefMemPerCPU": "UNLIMITED"}, 1, {"cpu": 1, "mem": 250000, "node": 1}),
    ({}, {}, {"SelectTypeParameters": "CR_CORE"}, 1, {"cpu": 1, "node": 1}),
    ({"mem": "10G"}, {"MaxMemPerCPU": "2000"}, {}, 1, {"cpu": 6, "mem": 10240, "node": 1}),
    ({"mem": "10G"}, {"MaxMemPerCPU": "2000"}, {}, 4, {"cpu": 8, "mem": 10240, "node": 1}),
    ({"mem": "2G", "nodes": 2}, {"OverSubscribe": "EXCLUSIVE"}, {}, 1,
     {"cpu": 64, "mem": 4096, "node": 2, "gres/gpu": 8}),
    ({"mem": "2G"}, {}, {"SelectType": "select/linear"}, 1, {"cpu": 32, "mem": 2048, "node": 1, "gres/gpu": 4}),
    ({"gpus_per_node": 2, "nodes": 2}, {}, {}, 1, {"cpu": 2, "mem": 2000, "node": 2, "gres/gpu": 4}),
    ({"gpus_per_node": "A100:2", "nodes": 2}, {}, {}, 1,
     {"cpu": 2, "mem": 2000, "node": 2, "gres/gpu": 4, "gres/gpu:a100": 4}),
])  # fmt: skip
def test_asked_tres(asked, partition, config, threads, tres):
    """SLURM gives whole cores, whole nodes where none is shared, and memory by its defaults."""
    assert asked_tres(resources(**asked), NODES | partition, BY_CORE | config, threads) == tres


@pytest.mark.parametrize(("extras", "asked", "tres"), [
    ({"--gres": "gpu:4"}, {"nodes": 2}, {"cpu": 2, "mem": 2000, "node": 2, "gres/gpu": 8}),
    ({"--gres": "gpu:A100:2,shard:3"}, {},
     {"cpu": 1, "mem": 1000, "node": 1, "gres/gpu": 2, "gres/gpu:a100": 2, "gres/shard": 3}),
    ({"--gres": "gpu"}, {}, {"cpu": 1, "mem": 1000, "node": 1, "gres/gpu": 1}),
    ({"--gpus-per-node": "v100:2"}, {}, {"cpu": 1, "mem": 1000, "node": 1, "gres/gpu": 2, "gres/gpu:v100": 2}),
    ({"--gpus": "4"}, {"nodes": 2}, {"cpu": 2, "mem": 2000, "node": 2, "gres/gpu": 4}),
    ({"--gpus-per-task": "1"}, {"ntasks_per_node": 4}, {"cpu": 4, "mem": 4000, "node": 1, "gres/gpu": 4}),
    ({"--exclusive": ""}, {"mem": "2G"}, {"cpu": 32, "mem": 2048, "node": 1, "gres/gpu": 4}),
    ({"--exclusive": "user"}, {}, {"cpu": 1, "mem": 1000, "node": 1}),
    ({"--mem-per-cpu": "2G"}, {"cpus_per_task": 3}, {"cpu": 3, "mem": 6144, "node": 1}),
    ({"--mem-per-cpu": "2G"}, {"mem": "5G"}, {"cpu": 1, "mem": 5120, "node": 1}),
    ({"--gres": "none", "--mail-type": "END"}, {}, {"cpu": 1, "mem": 1000, "node": 1}),
    ({}, {"mem": "512K"}, {"cpu": 1, "mem": 1, "node": 1}),
])  # fmt: skip
def test_sites_directives(extras, asked, tres):
    """What a site's own directives ask for is paid for, too: GPUs, whole nodes, memory for each CPU."""
    assert asked_tres(resources(**asked), NODES, BY_CORE, 1, extras) == tres


def test_whole_minutes(books):
    """SLURM counts a walltime in whole minutes: the ceiling is that of the minute that was begun."""
    assert books.quote(resources(time="0:30")).walltime_s == 60
    assert books.quote(resources(time="10:01")).walltime_s == 660


def test_one_of_several_clusters(site, books):
    """Where one accounting serves several clusters, the user's defaults are those of this one."""
    site.says["scontrol show config"] = [*CONFIG.format(flags="").splitlines(), "ClusterName             = bed"]
    site.says["sacctmgr -n -P show user"] = lambda line: (
        ["lab|lab|half|half"] if " cluster=bed " in line else ["x|x|x|x"]
    )
    quote = books.quote(resources())
    assert (quote.account, quote.qos) == ("lab", "half")


# ---- what a job has got, and was charged


@pytest.mark.parametrize(("state", "tres", "got"), [
    ("RUNNING", "TRES=cpu=4,mem=2000M,node=2,billing=20,gres/gpu=2",
     {"cpu": 4, "mem": 2000, "node": 2, "billing": 20, "gres/gpu": 2}),
    ("RUNNING", "ReqTRES=cpu=1,mem=1M AllocTRES=cpu=8,mem=4G", {"cpu": 8, "mem": 4096}),
    ("SUSPENDED", "TRES=cpu=8,mem=4G", {"cpu": 8, "mem": 4096}),
    ("PENDING", "TRES=cpu=4,mem=2000M", None),
    ("RUNNING", "", None),
])  # fmt: skip
def test_got(site, books, state, tres, got):
    """What a job has got is read in the words of old and new SLURM, once it runs."""
    site.says["scontrol -o show job 7"] = [JOB.format(state=state, tres=tres)]
    assert books.got("7") == got


SACCT = "7|COMPLETED|75|cpu=4,mem=2000M,node=2,billing=20|debug|half|lab|2026-11-25T09:37:36"


def test_accounted(site, books):
    """Accounting's word of several jobs comes with one question, and of one that has ended it is asked but once."""
    site.says["sacct"] = [SACCT, SACCT.replace("7|COMPLETED", "8|RUNNING")]
    first = books.accounted(["8", "7", "9"])
    assert set(first) == {"7", "8"}
    tres = {"cpu": 4, "mem": 2000, "node": 2, "billing": 20}
    assert first["7"] == Accounted("7", "COMPLETED", 75.0, tres, "debug", "half", "lab", "2026-11-25T09:37:36")
    assert first["7"].ended
    assert not first["8"].ended
    assert len(site.asked) == 1
    site.says["sacct"] = [SACCT.replace("7|COMPLETED", "8|TIMEOUT")]
    assert books.accounted(["8"])["8"].ended
    site.asked.pop()
    assert "--jobs=7,8,9" in site.asked[0]
    books.accounted(["7"])
    assert len(site.asked) == 1


def test_no_sacct(site, books):
    """Without accounting nothing is known of a job, nor of the week; no job is not the same as not knowing."""
    assert books.accounted(["7"]) == {}
    assert books.jobs_since(7) is None
    site.says["sacct"] = []
    assert Books(site, wait_s=10.0).jobs_since(7) == []


def test_tariff(books):
    """A tariff is found by partition and QOS; there is none where the factor is not known, nor of a partition gone."""
    assert books.tariff("debug", "half").usage_factor == 0.5
    assert isinstance(books.tariff("debug", "normal"), Tariff)
    assert books.tariff("debug", "gone") is None


# ---- what is left


def limited(billing="N(0)", cpu="N(0)"):
    """The limits of an association."""
    return f"cpu={cpu},mem=N(0),billing={billing},gres/gpu=N(0)"


def associations(**limits):
    """scontrol's words of accounts with limits, and of this user in each."""

    def say(line):
        account = line.rpartition("accounts=")[2]
        if account not in limits:
            return None
        parent, of_account, of_user = limits[account]
        runs = "cpu=N(25),billing=N(65)"
        return [
            "Association Records",
            ASSOC.format(account=account, user="", parent=parent, limits=of_account, runs=runs),
            ASSOC.format(account=account, user="me(1001)", parent="", limits=of_user, runs="billing=N(5)"),
        ]

    return say


def test_balances(site, books):
    """The limits of the account, of those above it and of the user all bind; the least on billing comes first."""
    site.says["scontrol -o show assoc_mgr flags=assoc"] = associations(
        lab=("dept(1)", limited("5000(1200)", "900(10)"), NO_LIMIT), dept=("root(1)", limited("4000(3999)"), NO_LIMIT),
        root=("", NO_LIMIT, NO_LIMIT),
    )  # fmt: skip
    found = books.balances("lab")
    assert found == [
        Balance("account dept", "billing", 4000, 3999, 65),
        Balance("account lab", "billing", 5000, 1200, 65),
        Balance("account lab", "cpu", 900, 10, 25),
    ]
    assert [one.left for one in found] == [1, 3800, 890]


def test_balance_of_the_user(site, books):
    """A limit of the user's own is named so."""
    site.says["scontrol -o show assoc_mgr flags=assoc"] = associations(lab=("", NO_LIMIT, limited("100(120)")))
    (found,) = books.balances("lab")
    assert (found.whose, found.left) == ("you in account lab", 0)


def test_balance_of_the_qos(site, books):
    """A limit of the QOS binds as well."""
    site.says["scontrol -o show assoc_mgr flags=assoc"] = associations(lab=("", NO_LIMIT, NO_LIMIT))
    site.says["scontrol -o show assoc_mgr flags=qos"] = [
        f"QOS=half(2) UsageRaw=0.0 GrpTRES=cpu=N(4) GrpTRESMins={limited('60(12)')} GrpTRESRunMins={NO_LIMIT}"
    ]
    assert books.balances("lab", "half") == [Balance("QOS half", "billing", 60, 12)]


def test_account_above_is_hidden(site, books):
    """Where the account above is hidden from this user, those limits that are seen are told, and sshare is not asked."""
    site.says["scontrol -o show assoc_mgr flags=assoc"] = associations(lab=("dept(1)", limited("60(1)"), NO_LIMIT))
    assert [one.whose for one in books.balances("lab")] == ["account lab"]
    assert not any(line.startswith("sshare") for line in site.asked)


def test_no_limits(site, books):
    """Where nothing is limited nothing is left to tell, and sshare is not asked."""
    site.says["scontrol -o show assoc_mgr flags=assoc"] = associations(lab=("", NO_LIMIT, NO_LIMIT))
    assert books.balances("lab") == []
    assert not any(line.startswith("sshare") for line in site.asked)


def test_assoc_mgr_refused(site, books):
    """Where scontrol is refused, sshare tells the limit on billing; where that is, too, nothing is told."""
    assert books.balances("lab") == []
    site.says["sshare"] = ["lab||7200|billing=5000,cpu=3", " lab|me|7200|", "lab2||1|billing=1"]
    assert Books(site, wait_s=10.0).balances("lab") == [Balance("account lab", "billing", 5000, 120)]


def test_default_account(site, books):
    """Without an account the user's default is looked at; where that is not known nobody is asked in vain."""
    site.says["scontrol -o show assoc_mgr flags=assoc"] = associations(lab=("", limited("50(0)"), NO_LIMIT))
    assert [one.whose for one in books.balances("")] == ["account lab"]
    site.says["sacctmgr -n -P show user"] = None
    assert Books(site, wait_s=10.0).balances("") == []


@pytest.fixture
def kernels(site, tmp_path):
    """Two kernels of one user, on a clock of the test's."""
    clock = FakeClock()
    site.says["scontrol -o show assoc_mgr flags=assoc"] = associations(lab=("", limited("50(0)"), NO_LIMIT))
    folder = tmp_path / "hpcmagic" / "login1"
    made = [Books(site, clock=clock, wait_s=10.0, board=Board(folder, clock=clock, boot="b")) for _ in range(2)]
    return made, clock, folder


def settled(books):
    """Wait for what is asked just now."""
    for thread in list(books._asking.values()):
        thread.join(10)


def test_balances_shared(site, kernels):
    """One kernel asks for the balance every two minutes, for all that show it."""
    (first, second), clock, _ = kernels
    assert first.balances("lab") == second.balances("lab") == [Balance("account lab", "billing", 50, 0, 65)]
    assert len(site.asked) == 2  # the account's, and the QOS's
    for _ in range(119):
        clock.advance(1)
        first.balances("lab")
        second.balances("lab")
    assert len(site.asked) == 2
    clock.advance(2)
    for books in (first, second):
        books.balances("lab")
        settled(books)
    assert len(site.asked) == 4


def test_balance_for_a_buyer(site, kernels):
    """Who is about to buy gets a balance that is no older than half a minute, whoever has asked for it."""
    (first, second), clock, _ = kernels
    first.balances("lab")
    clock.advance(29)
    second.balances("lab", wait_s=8.0)
    assert len(site.asked) == 2
    clock.advance(31)
    site.says["scontrol -o show assoc_mgr flags=assoc"] = associations(lab=("", limited("50(49)"), NO_LIMIT))
    assert [one.left for one in second.balances("lab", wait_s=8.0)] == [1]
    assert len(site.asked) == 4


@pytest.mark.parametrize("value", ["null", "7", "[7]", '[{"whose": "x"}]', '[{"whose": 1, "limit": "x"}]'])
def test_damaged_balance(site, kernels, value):
    """What makes no sense on the board is asked for anew."""
    (first, second), _, folder = kernels
    first.balances("lab")
    (note,) = folder.iterdir()
    note.write_text('{"boot": "b", "at_s": 0, "value": ' + value + "}")
    assert [one.left for one in second.balances("lab")] == [50]
    assert len(site.asked) == 4


# ---- how often, and how long


def test_asked_seldom(site):
    """An answer is kept for ten minutes, and then asked anew; meanwhile the old one is given."""
    clock = FakeClock()
    books = Books(site, clock=clock, wait_s=10.0)
    assert books.tariff("debug", "half").usage_factor == 0.5
    asked = len(site.asked)
    clock.advance(599)
    books.tariff("debug", "half")
    assert len(site.asked) == asked
    site.says["sacctmgr -n -P show qos"] = ["half|0.25"]
    clock.advance(2)
    books.tariff("debug", "half")
    for thread in list(books._asking.values()):
        thread.join(10)
    assert books.tariff("debug", "half").usage_factor == 0.25
    assert len(site.asked) == 2 * asked


def test_slurm_away(site):
    """While SLURM does not answer what was known stands, and it is asked again but twice a minute."""
    clock = FakeClock()
    books = Books(site, clock=clock, wait_s=10.0)
    assert books.tariff("debug", "half") is not None
    site.says = dict.fromkeys(site.says, LaunchError("SLURM's scontrol did not answer within 8 s."))
    clock.advance(700)
    for _ in range(3):
        assert books.tariff("debug", "half") is not None
        for thread in list(books._asking.values()):
            thread.join(10)
    assert sum(line.startswith("scontrol -o show partition") for line in site.asked) == 2
    clock.advance(29)
    books.tariff("debug", "half")
    assert sum(line.startswith("scontrol -o show partition") for line in site.asked) == 2
    clock.advance(2)
    books.tariff("debug", "half")
    books._asking["partition debug"].join(10)
    assert sum(line.startswith("scontrol -o show partition") for line in site.asked) == 3


def test_nobody_waits(site):
    """An answer that takes long is waited for shortly, and serves the next who asks."""
    told = threading.Event()
    site.says["scontrol -o show job 7"] = lambda _line: (
        told.wait(10) and [JOB.format(state="RUNNING", tres="TRES=cpu=4")]
    )
    books = Books(site, wait_s=0.01)
    assert books.got("7") is None
    told.set()
    books._asking["job 7"].join(10)
    assert books.got("7") == {"cpu": 4}


def test_old_answer_at_once(site):
    """Who asks when an answer is old gets the old one, and does not wait for the new."""
    clock, told = FakeClock(), threading.Event()
    books = Books(site, clock=clock, wait_s=10.0)
    site.says["scontrol -o show job 7"] = [JOB.format(state="RUNNING", tres="TRES=cpu=4")]
    assert books.got("7") == {"cpu": 4}
    site.says["scontrol -o show job 7"] = lambda _line: (
        told.wait(5) and [JOB.format(state="RUNNING", tres="TRES=cpu=8")]
    )
    clock.advance(601)
    assert books.got("7") == {"cpu": 4}
    assert not told.is_set()
    told.set()
    books._asking["job 7"].join(10)
    assert books.got("7") == {"cpu": 8}


def test_runs_slurms_commands(said):
    """What is asked goes through the one runner of SLURM's commands; one that fails says nothing."""
    said["scontrol"] = "PartitionName=a Default=YES TRES=cpu=1\n"
    assert charges._lines(("scontrol", "-o")) == ["PartitionName=a Default=YES TRES=cpu=1"]
    said["scontrol"] = (1, "half a word", "Access/permission denied")
    assert charges._lines(("scontrol", "-o")) is None
