"""What your sessions have cost: this notebook's, those of this week, the account; what was paid while no cell ran.

sessions' directories ─► quote, journal ─┐
squeue, sacct ─► ran, what it had got   ─┼─► Bill: rows, a table, bars, a DataFrame
the association ─► what is left         ─┘
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, overload

from hpcmagic.cost import Quote, Unit, amount
from hpcmagic.errors import DataError
from hpcmagic.launch import charges
from hpcmagic.launch.base import AT_ITS_PACE, FRESH_S
from hpcmagic.launch.charges import Accounted, Balance
from hpcmagic.launch.slurm import QUERY_TIMEOUT_S
from hpcmagic.notebook import frontend
from hpcmagic.notebook.buying import left_in_words
from hpcmagic.notebook.found import ASK_AT_ONCE, Found, all_found, everywhere, put_aside, status_of_found
from hpcmagic.notebook.idle import busy_s
from hpcmagic.notebook.output import clock, count
from hpcmagic.notebook.spending import charged_minutes, quote_of
from hpcmagic.notebook.status import ran_here_s

WEEK_DAYS = 7
BAR = 40  # characters
BARS = 12  # at most


@dataclass(frozen=True, slots=True)
class Entry:
    """What one session has cost.

    Attributes
    ----------
    job
        The batch job's id; empty on this machine.
    ran_s
        How long its job has run; None where nobody tells.
    idle_s
        … of that while no cell ran.
    estimate
        By the quote and the time it ran, in `unit`.
    confirmed
        By accounting, once the job has ended; None until then.
    idle
        What was paid while no cell ran, in `unit`.
    ceiling
        Of one that runs: what it costs by its walltime; None = it has none, or is over.
    price
        Of one unit, in `currency`; None = the site names none.
    """

    session: str
    job: str
    state: str
    account: str
    ran_s: float | None
    idle_s: float | None
    estimate: float | None
    confirmed: float | None
    idle: float | None
    unit: str
    price: float | None = None
    currency: str = ""
    ceiling: float | None = None

    @property
    def spent(self) -> float | None:
        """What it has cost: accounting's word where there is one."""
        return self.estimate if self.confirmed is None else self.confirmed


@dataclass(frozen=True, slots=True)
class Week:
    """What accounting says of all jobs of hpcmagic's in the last seven days, in `unit`."""

    jobs: int
    spent: float
    unknown: int  # jobs whose tariff is not known any more
    unit: Unit


class Bill(Sequence[Entry]):
    """What your sessions have cost, the oldest first.

    Attributes
    ----------
    own
        The name of this notebook's session; empty = it has none.
    week
        Accounting's sum over this week; None where there is no accounting.
    balances
        What the account has left.
    """

    def __init__(
        self, entries: Sequence[Entry], own: str = "", week: Week | None = None, balances: Sequence[Balance] = ()
    ) -> None:
        self._entries = tuple(entries)
        self.own = own
        self.week = week
        self.balances = tuple(balances)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        """Give an entry by its place."""
        return self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def rows(self) -> list[dict[str, Any]]:
        """Give one dictionary for each session."""
        return [asdict(entry) for entry in self._entries]

    def to_frame(self) -> Any:
        """Give a pandas DataFrame, one row for each session.

        Raises
        ------
        DataError
            pandas is not installed.
        """
        try:
            pandas: Any = importlib.import_module("pandas")
        except ImportError:
            raise DataError("pandas is not installed here.", "`pip install pandas`, or take `.rows()`.") from None
        return pandas.DataFrame(self.rows(), columns=list(Entry.__dataclass_fields__))

    def __repr__(self) -> str:
        parts = [_table(self._entries, self.own), bars(self._entries), "\n".join(self._sums())]
        return "\n\n".join(filter(None, parts)) or "No session has cost anything yet."

    def _sums(self) -> Iterator[str]:
        own = [entry for entry in self._entries if entry.session == self.own and entry.spent is not None]
        if own:
            spent = sum(entry.spent or 0.0 for entry in own)
            of = f", {count(len(own), 'job')}" if len(own) > 1 and own[0].job else ""
            yield f"This notebook ({self.own}{of}): {amount(spent)} {own[0].unit}"
        if self.week is not None:
            unknown = f", without {count(self.week.unknown, 'job')} of unknown price" if self.week.unknown else ""
            jobs = count(self.week.jobs, "job")
            yield f"This week, by accounting: {amount(self.week.spent)} {self.week.unit.name}, {jobs}{unknown}"
        for one in self.balances:
            yield left_in_words(one, self.week.unit if self.week is not None else Unit())


def bill(own: str | None = None, **options: object) -> Bill:
    """Give what your sessions have cost.

    Parameters
    ----------
    own
        The name of this notebook's session; None = by the notebook's file.
    **options
        `session_dir` or `profile`, where the sessions' directories are not where your profiles say.
    """
    found = [*put_aside(**options), *(one for place in everywhere(**options) for one in all_found(place))]
    found = [one for one in found if not one.half]
    jobs = [one.job.job_id for one in found if one.job is not None and one.job.launcher == "slurm"]
    name = own or frontend.session_name()[0]
    quotes = {one.request.session: quote for one in found if (quote := _slurm_quote(one)) is not None}
    quote = quotes.get(name) or next(reversed(quotes.values()), None)
    account, qos = (quote.account, quote.qos) if quote else ("", "")
    if jobs:  # nobody shall wait for one answer after the other while SLURM is away
        charges.BOOKS.jobs_since(WEEK_DAYS, wait_s=0.0)
        charges.BOOKS.balances(account, qos, wait_s=0.0)
    shown = entries(found)
    if not jobs:  # nobody charges here
        return Bill(shown, name)
    balances = charges.BOOKS.balances(account, qos, wait_s=QUERY_TIMEOUT_S)
    return Bill(shown, name, _week(quote.units if quote else Unit()), balances)


def entries(found: Sequence[Found], *, lazily: bool = False) -> list[Entry]:
    """Give what sessions have cost, one entry for each.

    Parameters
    ----------
    lazily
        Whether answers of some minutes ago will do: for a meter, which reads again and again.
    """
    jobs = [one.job.job_id for one in found if one.job is not None and one.request.launcher == "slurm"]
    kept_s = charges.BALANCE_SHOWN_S if lazily else charges.ACCOUNTED_KEPT_S
    told = charges.BOOKS.accounted(jobs, wait_s=QUERY_TIMEOUT_S, kept_s=kept_s) if jobs else {}
    max_age_s = AT_ITS_PACE if lazily else FRESH_S
    with ThreadPoolExecutor(ASK_AT_ONCE) as pool:
        return list(pool.map(lambda one: _entry(one, told, max_age_s), found))


def _slurm_quote(found: Found) -> Quote | None:
    return quote_of(found.directory, found.request) if found.request.launcher == "slurm" else None


def _entry(found: Found, told: Mapping[str, Accounted], max_age_s: float) -> Entry:
    """Give one session's entry."""
    quote = quote_of(found.directory, found.request)
    job_id = found.job.job_id if found.job is not None else ""
    if found.request.launcher == "local":
        state, ran_s = _local_run(found)
        return _made(found, quote, "", state=state, ran_s=ran_s)
    known = told.get(job_id)
    if known is not None and known.ended:
        minutes = charged_minutes(known, quote)
        confirmed = None if minutes is None else (quote.units if quote else Unit()).of(minutes)
        return _made(found, quote, job_id, state="ended", ran_s=known.elapsed_s, confirmed=confirmed)
    if found.directory.is_aside():  # accounting does not know it, or not yet that it is over
        return _made(found, quote, job_id, state="ended", ran_s=known.elapsed_s if known is not None else None)
    status = status_of_found(found, max_age_s)
    spent, ceiling = (None, None) if status.cost is None else (status.cost.spent, status.cost.ceiling)
    state, ran_s = status.state, status.elapsed_s
    return _made(found, quote, job_id, state=state, ran_s=ran_s, estimate=spent, ceiling=ceiling)


def _made(
    found: Found,
    quote: Quote | None,
    job: str,
    *,
    state: str,
    ran_s: float | None = None,
    estimate: float | None = None,
    confirmed: float | None = None,
    ceiling: float | None = None,
) -> Entry:
    """Put an entry together; without an estimate, the quote's."""
    if estimate is None and quote is not None and ran_s is not None:
        estimate = quote.cost(ran_s).spent
    spent, idle_s, idle = estimate if confirmed is None else confirmed, None, None
    if ran_s is not None:
        idle_s = max(0.0, ran_s - busy_s(found.directory.cells, over=state == "ended"))
        idle = spent * idle_s / ran_s if spent is not None and ran_s else None
    unit = quote.units if quote is not None else Unit()
    account = quote.account if quote is not None else ""
    return Entry(
        found.request.session, job, state, account, ran_s, idle_s, estimate, confirmed, idle,
        unit.name, unit.price, unit.currency, ceiling,
    )  # fmt: skip


def _local_run(found: Found) -> tuple[str, float]:
    """Give the state of a session on this machine, and how long it ran: an ended one until its keeper's last word."""
    if found.directory.is_aside():
        return "ended", ran_here_s(found.directory, found.job) if found.job is not None else 0.0
    status = status_of_found(found)
    return status.state, status.elapsed_s


def _week(unit: Unit) -> Week | None:
    jobs = charges.BOOKS.jobs_since(WEEK_DAYS, wait_s=QUERY_TIMEOUT_S)
    if jobs is None:
        return None
    minutes = [charged_minutes(job) for job in jobs if job.elapsed_s]
    known = [one for one in minutes if one is not None]
    return Week(len(minutes), unit.of(sum(known)), len(minutes) - len(known), unit)


def _table(entries: Sequence[Entry], own: str) -> str:
    if not entries:
        return ""
    lines: list[tuple[str, ...]] = [("session", "job", "state", "ran", "estimate", "by accounting", "idle", "unit")]
    for entry in entries:
        idle = "–" if entry.idle is None else amount(entry.idle)
        if entry.idle_s and entry.ran_s:
            idle += f" ({entry.idle_s / entry.ran_s:.0%})"
        lines.append((
            entry.session + (" *" if entry.session == own else ""), entry.job or "this machine", entry.state,
            "–" if entry.ran_s is None else clock(int(entry.ran_s)),
            *("–" if number is None else amount(number) for number in (entry.estimate, entry.confirmed)),
            idle, entry.unit,
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def bars(entries: Sequence[Entry]) -> str:
    """Draw a bar for each session: what was paid while a cell ran is full, what was paid while none did is light.

    Bars are drawn for the unit that most sessions have, the longest first.
    """
    drawn = [entry for entry in entries if entry.spent]
    units = [entry.unit for entry in drawn]
    unit = max(units, key=units.count, default="")
    drawn = sorted((e for e in drawn if e.unit == unit), key=lambda e: -(e.spent or 0.0))[:BARS]
    longest = max((entry.spent or 0.0 for entry in drawn), default=0.0)
    width = max((len(entry.session) for entry in drawn), default=0)
    lines = []
    for entry in drawn:
        spent, idle = entry.spent or 0.0, entry.idle or 0.0
        whole = max(1, round(BAR * spent / longest))
        light = round(whole * idle / spent)
        lines.append(f"{entry.session:{width}}  {'█' * (whole - light)}{'░' * light} {amount(spent)}")
    return "\n".join([*lines, f"in {unit}; ░ = paid while no cell ran"] if lines else [])
