"""What a job costs, by SLURM's own rule: pure arithmetic, nothing is asked here.

    TRES × weights ─► billing × the QOS's factor = billing-minutes a minute ─► × minutes ─► ÷ divisor: the site's unit

A TRES is what SLURM counts of a job: ``cpu``, ``mem``, ``node``, ``gres/gpu``, ``license/NAME``. A partition's
``TRESBillingWeights`` say what one of each is worth (slurm.conf(5)); their sum, or under ``PriorityFlags=MAX_TRES``
the largest, is what the account is charged a minute (``assoc_mgr_tres_weighted`` in SLURM's assoc_mgr.c), times the
QOS's ``UsageFactor``. The ``billing=`` that scontrol and sacct show is the same, cut to a whole number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hpcmagic.errors import ProfileError

BILLING_MINUTES = "billing-minutes"
CORE_HOURS = "core-hours"  # what is counted on this machine, where nobody charges
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}  # each 1024 of the one before
IN_MEGABYTES = ("mem", "bb")  # SLURM's base unit of these; of all others it is one
OF_A_NODE = ("cpu", "mem", "node")
S_PER_MINUTE, S_PER_HOUR = 60.0, 3600.0

Rule = Literal["sum", "max", "max and gres"]


@dataclass(frozen=True, slots=True)
class Tariff:
    """How a site charges jobs of one partition and QOS.

    Attributes
    ----------
    weights
        By TRES, for one of it (memory: one MB); None = the site has set none, and CPUs are counted.
    rule
        ``sum`` of all; ``max`` of those of a node, plus the others (MAX_TRES); ``max and gres``: the same, but the
        gres are summed as well (MAX_TRES_GRES of newer SLURM).
    usage_factor
        The QOS's; a job of one with 0 is free.
    """

    weights: Mapping[str, float] | None = None
    rule: Rule = "sum"
    usage_factor: float = 1.0

    def rate(self, tres: Mapping[str, float]) -> float:
        """Give the billing-minutes that a job of these TRES is charged a minute."""
        return billing(tres, self.weights, self.rule) * self.usage_factor


@dataclass(frozen=True, slots=True)
class Unit:
    """How a site counts what it charges.

    Attributes
    ----------
    name
        What it calls one unit.
    divisor
        Billing-minutes in one unit.
    price
        Of one unit, in `currency`; None = the site names none.
    """

    name: str = BILLING_MINUTES
    divisor: float = 1.0
    price: float | None = None
    currency: str = ""

    def of(self, billing_minutes: float) -> float:
        """Turn billing-minutes into this unit."""
        return billing_minutes / self.divisor


@dataclass(frozen=True, slots=True)
class Cost:
    """What a session has cost so far, and may cost.

    Attributes
    ----------
    spent
        Since the job began, whether a cell ran or not, in `unit`.
    rate_per_hour
        Units an hour while the job runs.
    ceiling
        What it costs if it runs to its walltime; None = it has none.
    confirmed
        What accounting says of the job that has ended, in `unit`; None until it does.
    price
        Of one unit, in `currency`; None = the site names none.
    """

    spent: float
    rate_per_hour: float
    ceiling: float | None
    unit: str = BILLING_MINUTES
    confirmed: float | None = None
    price: float | None = None
    currency: str = ""

    @property
    def estimate(self) -> bool:
        """Whether this is computed here, and accounting has not confirmed it yet."""
        return self.confirmed is None

    @property
    def money(self) -> float | None:
        """What was spent, in `currency`; None where the site names no price."""
        return None if self.price is None else self.spent * self.price

    def __str__(self) -> str:
        money = "" if self.money is None else f" ({amount(self.money)} {self.currency})".replace(" )", ")")
        return f"{amount(self.spent)} {self.unit}{money}"


@dataclass(frozen=True, slots=True)
class Quote:
    """What a session is expected to be charged: kept in its directory, so that whoever looks later knows.

    Attributes
    ----------
    tres
        What its job asks for, as far as SLURM says what comes of that.
    walltime_s
        None = there is no limit.
    lacks
        What SLURM does not tell, in words: the numbers are without it.
    changes
        Of the factor while the job runs: since how many seconds of it, and which one.
    """

    tres: dict[str, float]
    weights: dict[str, float] | None = None
    rule: Rule = "sum"
    usage_factor: float = 1.0
    walltime_s: float | None = None
    partition: str = ""
    account: str = ""
    qos: str = ""
    unit: str = BILLING_MINUTES
    divisor: float = 1.0
    price: float | None = None
    currency: str = ""
    lacks: tuple[str, ...] = field(default=())
    changes: tuple[tuple[float, float], ...] = ()

    @property
    def tariff(self) -> Tariff:
        """How its job is charged now."""
        factor = self.changes[-1][1] if self.changes else self.usage_factor
        return Tariff(self.weights, self.rule, factor)

    def minutes(self, elapsed_s: float, tres: Mapping[str, float]) -> float:
        """Give the billing-minutes of so long a run, by the factor that each part of it had."""
        since = [(0.0, self.usage_factor), *((begin, factor) for begin, factor in self.changes if begin < elapsed_s)]
        until = [*(begin for begin, _ in since[1:]), elapsed_s]
        weighted_s = sum(factor * (end - begin) for (begin, factor), end in zip(since, until, strict=True))
        return billing(tres, self.weights, self.rule) * weighted_s / S_PER_MINUTE

    @property
    def units(self) -> Unit:
        """How the site counts that."""
        return Unit(self.unit, self.divisor, self.price, self.currency)

    def cost(
        self,
        elapsed_s: float,
        *,
        tres: Mapping[str, float] | None = None,
        left_s: float | None = None,
        confirmed_minutes: float | None = None,
    ) -> Cost:
        """Give the cost after some time.

        Parameters
        ----------
        tres
            What the job has got, where that is known; else what it asked for.
        left_s
            Until the walltime, where the batch system says it: it may have been changed since the quote.
        confirmed_minutes
            The billing-minutes that accounting says of the job that has ended.
        """
        unit, has = self.units, self.tres if tres is None else tres
        rate, spent = self.tariff.rate(has), self.minutes(elapsed_s, has)
        limit_s = self.walltime_s if left_s is None else elapsed_s + left_s
        confirmed = None if confirmed_minutes is None else unit.of(confirmed_minutes)
        return Cost(
            unit.of(spent) if confirmed is None else confirmed,
            unit.of(rate * S_PER_HOUR / S_PER_MINUTE),
            None if limit_s is None else unit.of(spent + rate * (limit_s - elapsed_s) / S_PER_MINUTE),
            self.unit, confirmed, self.price, self.currency,
        )  # fmt: skip


def tres_of(text: str) -> dict[str, float]:
    """Read TRES as scontrol and sacct show them; memory in MB.

    >>> tres_of("cpu=4,mem=2G,node=1,billing=4,gres/gpu=2")
    {'cpu': 4.0, 'mem': 2048.0, 'node': 1.0, 'billing': 4.0, 'gres/gpu': 2.0}
    """
    return {name: number * 1024.0 ** (exponent or 0) for name, number, exponent in _pairs(text)}


def weights_of(text: str) -> dict[str, float]:
    """Read a partition's TRESBillingWeights; a weight with a unit is for so much: ``Mem=0.25G`` for one GB.

    >>> weights_of("CPU=1.0,Mem=0.25G")["mem"] * 2048
    0.5
    """
    return {name: weight / 1024.0 ** max(0, exponent or 0) for name, weight, exponent in _pairs(text)}


def _pairs(text: str) -> list[tuple[str, float, int | None]]:
    """Give name, number, and the exponent of its unit over SLURM's base unit, of each ``NAME=NUMBER[UNIT]``."""
    found = []
    for item in filter(None, text.strip().split(",")):
        match = re.fullmatch(r"\s*([^=\s]+)=(\d*\.?\d+(?:[eE][+-]?\d+)?)([KMGTP]?)\w*\s*", item, re.IGNORECASE)
        if match is None or text == "(null)":
            continue
        name, unit = match[1].lower(), match[3].upper()
        base = UNITS["M"] if name.partition("/")[0] in IN_MEGABYTES else 0
        found.append((name, float(match[2]), UNITS[unit] - base if unit else None))
    return found


def billing(tres: Mapping[str, float], weights: Mapping[str, float] | None, rule: Rule = "sum") -> float:
    """Give the billing of TRES, exactly: what SLURM charges a minute, before the QOS's factor.

    With ``max`` the larger of CPUs, memory, nodes and gres counts, and what belongs to no node, such as licences,
    comes on top. Without weights CPUs are counted.
    """
    if weights is None:
        return tres.get("cpu", 0.0)
    of_a_node, others = [0.0], 0.0
    for name, count in tres.items():
        weighted = 0.0 if name == "billing" else count * weights.get(name, 0.0)
        gres = name.startswith("gres/")
        if (rule != "sum" and name in OF_A_NODE) or (rule == "max" and gres):
            of_a_node.append(weighted)
        else:
            others += weighted
    return max(of_a_node) + others


def rule_of(priority_flags: str) -> Rule:
    """Give the rule that slurm.conf's PriorityFlags choose."""
    flags = {flag.strip().upper() for flag in priority_flags.split(",")}
    return "max and gres" if "MAX_TRES_GRES" in flags else "max" if "MAX_TRES" in flags else "sum"


def with_typed_gpus(tres: Mapping[str, float], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Add as many of the dearest where a site weighs GPUs by type and none was asked for: no estimate is too low."""
    typed = [name for name in weights or () if name.startswith("gres/gpu:")]
    if not typed or not tres.get("gres/gpu") or any(name.startswith("gres/gpu:") for name in tres):
        return dict(tres)
    dearest = max(typed, key=lambda name: (weights or {})[name])
    return {**tres, dearest: tres["gres/gpu"]}


def unit_of(name: str, divisor: float, price: float | None, currency: str) -> Unit:
    """Give a site's unit by what a profile says of it; nothing said = billing-minutes.

    Raises
    ------
    ProfileError
        A divisor without a name for what comes of it.
    """
    if divisor != 1 and not name:
        raise ProfileError(
            f"cost_divisor {divisor:g} gives a unit that has no name.",
            "Name it in the same profile with `cost_unit`.",
        )
    return Unit(name or BILLING_MINUTES, divisor, price, currency)


def amount(number: float) -> str:
    """Write an amount for people: three digits, more only before the point.

    >>> amount(0.01234), amount(12.345), amount(12345.6)
    ('0.0123', '12.3', '12,346')
    """
    if abs(number) >= 999.5:
        return f"{number:,.0f}"
    text = f"{number:.3g}"
    return f"{number:.7f}".rstrip("0").rstrip(".") if "e" in text else text
