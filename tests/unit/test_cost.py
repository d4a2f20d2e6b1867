"""What a job costs, by SLURM's rule, against tables worked out by hand; then the site's unit, and its price."""

import doctest
import sys
from dataclasses import replace

import pytest
from two_lines import two_lines

from hpcmagic.cost import (
    Cost,
    Quote,
    Tariff,
    Unit,
    amount,
    billing,
    rule_of,
    tres_of,
    unit_of,
    weights_of,
    with_typed_gpus,
)
from hpcmagic.errors import ProfileError

SITE = "CPU=1.0,Mem=0.25G,GRES/gpu=8.0"  # the test bed's
DEAR = "cpu=1,mem=0.5G,node=3,gres/gpu=8,gres/gpu:a100=16,license/matlab=10"


def test_examples():
    """The examples in the docstrings hold."""
    tried = doctest.testmod(sys.modules["hpcmagic.cost"])  # the name in the package is the function's
    assert tried.attempted == 3
    assert tried.failed == 0


@pytest.mark.parametrize(("text", "read"), [
    ("cpu=4,mem=2000M,node=1,billing=4", {"cpu": 4, "mem": 2000, "node": 1, "billing": 4}),
    ("cpu=4,mem=16G,gres/gpu=2,gres/gpu:a100=2", {"cpu": 4, "mem": 16384, "gres/gpu": 2, "gres/gpu:a100": 2}),
    ("mem=1.50T", {"mem": 1.5 * 1024**2}),
    ("mem=512K", {"mem": 0.5}),
    ("mem=100", {"mem": 100}),
    ("bb/datawarp=2G,license/iop1=3", {"bb/datawarp": 2048, "license/iop1": 3}),
    ("", {}), ("(null)", {}), ("N/A", {}),
])  # fmt: skip
def test_tres(text, read):
    """TRES are read as SLURM writes them, memory and burst buffers in MB."""
    assert tres_of(text) == pytest.approx(read)


@pytest.mark.parametrize(("text", "read"), [
    ("CPU=1.0,Mem=0.25G,GRES/gpu=8.0", {"cpu": 1, "mem": 0.25 / 1024, "gres/gpu": 8}),
    ("mem=0.001", {"mem": 0.001}),
    ("Mem=0.5M", {"mem": 0.5}),
    ("mem=1T", {"mem": 1 / 1024**2}),
    ("node=36,license/matlab=2.5", {"node": 36, "license/matlab": 2.5}),
    ("cpu=.5", {"cpu": 0.5}),
    ("mem=2K", {"mem": 2}),  # below SLURM's own unit nothing is converted
])  # fmt: skip
def test_weights(text, read):
    """A weight with a unit is for so much of it: `Mem=0.25G` is a quarter for each GB."""
    assert weights_of(text) == pytest.approx(read)


TABLE = [  # TRES, weights, sum, max, max and gres
    ("cpu=4,mem=2000M,node=2,billing=20,gres/gpu=2", SITE, 20.48828125, 16, 20),
    ("cpu=1,mem=1500M,node=1", SITE, 1.3662109375, 1, 1),
    ("cpu=1,mem=40G,node=1", SITE, 11, 10, 10),
    ("cpu=16,mem=8G,node=4", SITE, 18, 16, 16),
    ("cpu=1,mem=8G", "CPU=1,Mem=0.25G,GRES/gpu=2", 3, 2, 2),  # slurm.conf(5)'s own example
    ("cpu=8,mem=32G,node=2,gres/gpu=4,gres/gpu:a100=4,license/matlab=1", DEAR, 8 + 16 + 6 + 32 + 64 + 10, 74, 122),
    ("cpu=2,license/matlab=3", DEAR, 32, 32, 32),
    ("cpu=2,mem=1G,gres/shard=7", SITE, 2.25, 2, 2),
    ("cpu=0,mem=0,billing=99", "CPU=1,Billing=5", 0, 0, 0),
    ("", SITE, 0, 0, 0),
]


@pytest.mark.parametrize(("tres", "weights", "summed", "most", "most_and_gres"), TABLE)
def test_billing(tres, weights, summed, most, most_and_gres):
    """What a job is charged a minute: the sum, or the largest of what is a node's and the others on top."""
    read, by = tres_of(tres), weights_of(weights)
    assert billing(read, by) == pytest.approx(summed)
    assert billing(read, by, "max") == pytest.approx(most)
    assert billing(read, by, "max and gres") == pytest.approx(most_and_gres)


@pytest.mark.parametrize("rule", ["sum", "max"])
def test_no_weights(rule):
    """Without weights CPUs are counted, whatever else a job has got."""
    assert billing(tres_of("cpu=12,mem=64G,node=3,gres/gpu=4"), None, rule) == 12
    assert billing({"mem": 4.0}, None, rule) == 0


def test_weights_of_nothing_used():
    """Weights that name nothing of what a job has got make it free: that is not the same as no weights."""
    assert billing({"cpu": 4.0}, {"gres/gpu": 8.0}) == 0


@pytest.mark.parametrize(("flags", "rule"), [
    ("", "sum"), ("FAIR_TREE", "sum"), ("MAX_TRES", "max"), ("ACCRUE_ALWAYS,max_tres", "max"),
    ("MAX_TRES_GRES", "max and gres"), ("NO_FAIR_TREE, MAX_TRES", "max"),
])  # fmt: skip
def test_rule(flags, rule):
    """The rule is chosen by PriorityFlags, among others that do not matter here."""
    assert rule_of(flags) == rule


@pytest.mark.parametrize(("factor", "rate"), [(1, 20), (0.5, 10), (3, 60), (0, 0)])
def test_factor(factor, rate):
    """The QOS's factor multiplies; one of 0 makes a job free."""
    assert Tariff({"cpu": 1.0, "gres/gpu": 8.0}, "sum", factor).rate({"cpu": 4, "gres/gpu": 2}) == rate


def test_gpus_by_type():
    """Where GPUs are weighed by type and none was asked for, the dearest is assumed; else nothing is added."""
    weights = {"gres/gpu:a100": 16.0, "gres/gpu:v100": 8.0}
    assert with_typed_gpus({"cpu": 1, "gres/gpu": 2}, weights) == {"cpu": 1, "gres/gpu": 2, "gres/gpu:a100": 2}
    assert with_typed_gpus({"cpu": 1}, weights) == {"cpu": 1}
    assert with_typed_gpus({"gres/gpu": 2}, {"gres/gpu": 8.0}) == {"gres/gpu": 2}
    assert with_typed_gpus({"gres/gpu": 2}, None) == {"gres/gpu": 2}
    asked = {"gres/gpu": 2, "gres/gpu:v100": 2}
    assert with_typed_gpus(asked, weights) == asked


# ---- a session's cost


QUOTE = Quote({"cpu": 10.0}, {"cpu": 1.0}, walltime_s=3600.0)


def test_while_it_runs():
    """Spent, rate and ceiling are those of the exact sum, in billing-minutes, and an estimate."""
    assert QUOTE.cost(90.0) == Cost(15.0, 600.0, 600.0, "billing-minutes")
    assert QUOTE.cost(90.0).estimate


def test_what_it_has_got():
    """What the job has got counts, not what was asked for."""
    assert QUOTE.cost(60.0, tres={"cpu": 16.0}).spent == 16


def test_walltime_was_changed():
    """The ceiling follows what the batch system says is left."""
    assert QUOTE.cost(600.0, left_s=600.0).ceiling == 200


def test_no_walltime():
    """Without a walltime there is no ceiling."""
    assert Quote({"cpu": 1.0}).cost(60.0).ceiling is None


def test_confirmed():
    """Accounting's word takes the place of the estimate, and says that it is one no more."""
    said = QUOTE.cost(90.0, confirmed_minutes=16.0)
    assert (said.spent, said.confirmed, said.estimate) == (16, 16, False)


def test_sites_unit():
    """A site's unit divides everything alike, and its price is of one unit."""
    quote = Quote({"cpu": 60.0}, None, walltime_s=7200.0, unit="core-hours", divisor=60.0, price=0.02, currency="EUR")
    said = quote.cost(3600.0, confirmed_minutes=3600.0)
    assert said == Cost(60.0, 60.0, 120.0, "core-hours", 60.0, 0.02, "EUR")
    assert said.money == pytest.approx(1.2)
    assert str(said) == "60 core-hours (1.2 EUR)"


def test_in_words():
    """Without a price no money is named; without a currency the number stands alone."""
    assert str(QUOTE.cost(90.0)) == "15 billing-minutes"
    assert QUOTE.cost(90.0).money is None
    assert str(Cost(2.0, 1.0, None, "SBU", price=3.0)) == "2 SBU (6)"


@pytest.mark.parametrize(("number", "text"), [
    (0, "0"), (0.012345, "0.0123"), (0.00001234, "0.0000123"), (1.5, "1.5"), (12.345, "12.3"), (999.4, "999"),
    (999.9, "1,000"), (1234.5, "1,234"), (1234567.8, "1,234,568"),
])  # fmt: skip
def test_amount(number, text):
    """An amount has three digits, more only before the point, and no exponent."""
    assert amount(number) == text


def test_unit():
    """A profile's words make the unit; nothing said is billing-minutes."""
    assert unit_of("", 1.0, None, "") == Unit("billing-minutes", 1.0, None, "")
    assert unit_of("SBU", 30.0, 0.5, "€") == Unit("SBU", 30.0, 0.5, "€")
    with pytest.raises(ProfileError, match="cost_divisor 60 gives a unit that has no name") as error:
        unit_of("", 60.0, None, "")
    assert "`cost_unit`" in two_lines(error).mend


def test_quote_survives_the_directory(tmp_path):
    """A quote comes back from the session's directory as it was written."""
    from hpcmagic.rendezvous import SessionDirectory

    directory = SessionDirectory.create(tmp_path / "sessions" / "demo")
    for quote in (QUOTE, Quote({"cpu": 1.0, "gres/gpu": 2.0}, None, "max", 0.5, None, "p", "a", "q", "SBU", 2.0, 1.0,
                               "€", ("the QOS's factor",))):  # fmt: skip
        directory.write_record(directory.quote, quote)
        assert directory.read_record(directory.quote, Quote) == quote


# ---- a QOS whose factor changes under way


def test_factor_changes():
    """Each part of a run is charged by the factor that it had; the rate, and what is still to come, by the last."""
    quote = replace(QUOTE, usage_factor=0.5, changes=((600.0, 1.0), (1200.0, 0.0), (1800.0, 3.0)))
    assert quote.cost(600.0).spent == pytest.approx(50.0)
    assert quote.cost(900.0).spent == pytest.approx(100.0)
    assert quote.cost(1800.0).spent == pytest.approx(150.0)
    cost = quote.cost(2400.0)
    assert cost.spent == pytest.approx(450.0)
    assert cost.rate_per_hour == pytest.approx(1800.0)
    assert cost.ceiling == pytest.approx(450.0 + 600.0)
    assert quote.cost(2400.0, confirmed_minutes=440.0).spent == 440.0


def test_no_change_is_as_before():
    """Without a change the parts are one."""
    assert QUOTE.minutes(90.0, QUOTE.tres) == pytest.approx(QUOTE.tariff.rate(QUOTE.tres) * 1.5)
