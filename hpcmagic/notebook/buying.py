"""Before a job is bought: what it costs an hour and at most, what the account has left; asked about where it is much.

Resources ─► quote, balances (launch/charges) ─► one line ─► above `confirm_above`: yes or no ─► sbatch
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence

from hpcmagic.cost import BILLING_MINUTES, S_PER_MINUTE, Cost, Quote, Unit, amount
from hpcmagic.errors import ProfileError
from hpcmagic.launch import charges
from hpcmagic.launch.charges import Balance
from hpcmagic.launch.slurm import QUERY_TIMEOUT_S
from hpcmagic.notebook import frontend
from hpcmagic.notebook.output import clock, count
from hpcmagic.profiles import Resources

BALANCES_SHOWN = 2
AT_ONCE_S = 60.0


def offer(resources: Resources, *, yes: bool, expected_start: Callable[[], str] = str) -> Quote | None:
    """Say what is about to be bought, and ask whether to, where the profile wants that.

    Parameters
    ----------
    expected_start
        Asks when the job would start.
    yes
        Whether that was said already, by ``--yes``.

    Raises
    ------
    ProfileError
        It was refused, or nobody is there to be asked.
    """
    if resources.launcher != "slurm":
        return None
    quote = charges.BOOKS.quote(resources)
    if line := offer_line(resources, quote):
        print(line + _starts(expected_start()))
    if not yes and resources.confirm_above is not None:
        _confirm(resources.confirm_above, resources, quote)
    return quote


def _starts(expected: str) -> str:
    """Say when SLURM would start it: at once, or when; an estimate that other jobs can change."""
    if not expected:
        return ""
    begins = time.mktime(time.strptime(expected, "%Y-%m-%d %H:%M:%S"))
    if begins - time.time() < AT_ONCE_S:
        return "\nSLURM would start it at once."
    when = expected[11:16] if expected[:10] == time.strftime("%Y-%m-%d") else expected[:16]
    return f"\nSLURM would start it at {when}, by what is in the queue now."


def quoted_line(resources: Resources) -> str:
    """Say the same without buying; nothing for this machine, where nobody charges."""
    return "" if resources.launcher != "slurm" else offer_line(resources, charges.BOOKS.quote(resources))


def offer_line(resources: Resources, quote: Quote | None) -> str:
    """Say what is asked for, the rate, the ceiling and what is left; nothing where SLURM tells nothing of prices."""
    if quote is None:
        return ""
    cost = quote.cost(0.0)
    rate = f"{amount(cost.rate_per_hour)} {cost.unit} an hour{_money(cost.rate_per_hour, cost)}"
    if cost.rate_per_hour == 0 and not quote.lacks:
        rate = "free of charge"
    factor = f" (QOS {quote.qos}: × {quote.usage_factor:g})" if quote.qos and quote.usage_factor != 1 else ""
    lacks = f", without {', '.join(quote.lacks)}" if quote.lacks else ""
    balances = charges.BOOKS.balances(quote.account, quote.qos, wait_s=QUERY_TIMEOUT_S)
    left = "".join(f"; {_left(one, quote)}" for one in _telling(balances, quote))
    return f"Asks for {_in_words(resources, quote)}: {rate}{factor}, {_at_most(cost, quote)}{lacks}{left}."


def _in_words(resources: Resources, quote: Quote) -> str:
    parts = [f"{quote.tres['cpu']:.0f} CPUs" if quote.tres.get("cpu", 0) != 1 else "1 CPU"]
    if quote.tres.get("mem"):
        mem = quote.tres["mem"]
        parts.append(f"{amount(mem / 1024)}G" if mem >= 1024 else f"{mem:.0f}M")
    if quote.tres.get("gres/gpu"):
        parts.append(count(int(quote.tres["gres/gpu"]), "GPU"))
    return f"{count(resources.nodes, 'node')} ({', '.join(parts)})"


def _at_most(cost: Cost, quote: Quote) -> str:
    if cost.ceiling is None or quote.walltime_s is None:
        return "with no walltime to end it"
    if cost.ceiling == 0:
        return f"for a walltime of {clock(quote.walltime_s)}"
    return f"at most {amount(cost.ceiling)}{_money(cost.ceiling, cost)} by its walltime of {clock(quote.walltime_s)}"


def _money(units: float, cost: Cost) -> str:
    return "" if cost.price is None else f" ({amount(units * cost.price)} {cost.currency}".rstrip() + ")"


def _telling(balances: Sequence[Balance], quote: Quote) -> list[Balance]:
    """Give the limits that are worth telling: on billing, else on what the job uses."""
    billing = [one for one in balances if one.what == "billing"]
    return (billing or [one for one in balances if quote.tres.get(one.what)])[:BALANCES_SHOWN]


def left_in_words(one: Balance, unit: Unit) -> str:
    """Say what is left of a limit, in the site's unit where it is one on billing."""
    amounts, name = (one.left, one.limit, one.promised), f"{one.what}-minutes"
    if one.what == "billing":
        amounts, name = (unit.of(one.left), unit.of(one.limit), unit.of(one.promised)), unit.name
    left, limit, promised = map(amount, amounts)
    said = f"{one.whose} has {left} of {limit} {name} left"
    return f"{said}, {promised} of them for jobs that run" if one.promised else said


def _left(one: Balance, quote: Quote) -> str:
    """Say the same, and whether it is too little for this job."""
    a_minute = quote.tariff.rate(quote.tres)
    if one.what != "billing":
        a_minute = quote.tres.get(one.what, 0.0) * quote.usage_factor
    too_little = quote.walltime_s is not None and a_minute * quote.walltime_s / S_PER_MINUTE > one.left - one.promised
    return left_in_words(one, quote.units) + (": that is less than this may use" if too_little else "")


def _confirm(limit: float, resources: Resources, quote: Quote | None) -> None:
    """Have somebody say yes to a job that may cost more than a limit, in units of cost.

    Raises
    ------
    ProfileError
        Nobody did.
    """
    ceiling = None if quote is None or quote.lacks else quote.cost(0.0).ceiling
    if ceiling is not None and ceiling <= limit:
        return
    unit = quote.unit if quote is not None else resources.cost_unit or BILLING_MINUTES
    known = "What this costs at most is not known" if ceiling is None else f"This may cost {amount(ceiling)} {unit}"
    if not _can_ask():
        raise ProfileError(
            f"{known}, and `confirm_above` is {amount(limit)}: no job was submitted.",
            "Add `--yes` to submit it all the same, or ask for less, e.g. with `--time`.",
        )
    answer = ""
    with contextlib.suppress(EOFError):  # Ctrl-D
        answer = input(f"{known}, and `confirm_above` is {amount(limit)}. Submit it? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise ProfileError(
            f"{known}: you said no, and no job was submitted.", "Ask for less, e.g. with a shorter `--time`."
        )


def _can_ask() -> bool:
    """Whether a person sits here who can answer: at a kernel that may ask, or at a terminal."""
    if getattr(frontend.shell(), "kernel", None) is not None:
        return not frontend.unattended()
    return sys.stdin is not None and sys.stdin.isatty()
