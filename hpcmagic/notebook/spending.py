"""What a session costs: its quote, what its job has got, how long it has run, and accounting's word → one Cost.

quote.json (written when the job was submitted) ─┐
what the job has got (scontrol)                 ─┼─► Cost ─► status().cost, the line under a cell, %hpc
elapsed, left (squeue) · the job's end (sacct)  ─┘

On this machine, where nobody charges, core-hours are counted.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from hpcmagic.cost import CORE_HOURS, S_PER_MINUTE, Cost, Quote, amount
from hpcmagic.errors import LaunchError
from hpcmagic.launch import charges
from hpcmagic.launch.charges import Accounted
from hpcmagic.profiles import Resources
from hpcmagic.rendezvous import JobRecord, Request, SessionDirectory

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session


class Metered(Protocol):
    """What is needed of a session."""

    directory: SessionDirectory
    request: Request
    job: JobRecord

    def elapsed_s(self) -> float:
        """Seconds since its job began."""

    def left_s(self) -> float | None:
        """Seconds until the walltime."""


def local_quote(asked: Request | Resources) -> Quote:
    """Give the quote of a session on this machine: its CPUs, in core-hours."""
    return Quote({"cpu": float(asked.ntasks * asked.cpus_per_task)}, unit=CORE_HOURS, divisor=60.0)


def quote_of(directory: SessionDirectory | None, request: Request) -> Quote | None:
    """Give what a session was expected to be charged when it was started; None where SLURM did not tell."""
    if request.launcher == "local":
        return local_quote(request) if request.ntasks else None
    try:
        return None if directory is None else directory.read_record(directory.quote, Quote)
    except (LaunchError, FileNotFoundError):  # damaged, or put aside: a session can do without a price
        return None


def cost_of(
    directory: SessionDirectory | None,
    request: Request,
    job: JobRecord,
    phase: str,
    *,
    elapsed_s: float,
    left_s: float | None,
) -> Cost | None:
    """Give a session's cost by its phase; None where nothing is known of what its job is charged."""
    quote = quote_of(directory, request)
    if quote is None:
        return None
    if request.launcher == "local":
        return quote.cost(elapsed_s)
    if phase == "ended":
        told = charges.BOOKS.accounted([job.job_id]).get(job.job_id)
        if told is not None and told.ended:
            minutes = charged_minutes(told, quote)
            return quote.cost(told.elapsed_s, tres=told.tres or None, confirmed_minutes=minutes)
        return quote.cost(elapsed_s)
    begun = phase != "pending" or elapsed_s > 0  # one that SLURM has suspended counts as pending, too
    got = charges.BOOKS.got(job.job_id) if begun else None
    if begun and directory is not None:
        quote = followed(directory, quote, elapsed_s)
    return quote.cost(elapsed_s, tres=got, left_s=left_s)


def charged_minutes(told: Accounted, quote: Quote | None = None) -> float | None:
    """Give the billing-minutes of a job that accounting knows; None where its tariff is not known any more."""
    same = quote is not None and (quote.partition, quote.qos) == (told.partition, told.qos)
    if quote is not None and same and not quote.lacks:
        return quote.minutes(told.elapsed_s, told.tres)  # by the prices that it was submitted, and has run, at
    tariff = charges.BOOKS.tariff(told.partition, told.qos) or (quote.tariff if quote is not None else None)
    return None if tariff is None else tariff.rate(told.tres) * told.elapsed_s / S_PER_MINUTE


def followed(directory: SessionDirectory, quote: Quote, elapsed_s: float) -> Quote:
    """Note when the QOS's factor has changed while the job runs: what it costs from now on is another.

    One that was not told when the job was bought is taken as it is told now.
    """
    now = charges.BOOKS.tariff(quote.partition, quote.qos)
    if now is None or (now.usage_factor == quote.tariff.usage_factor and not quote.lacks):
        return quote
    if quote.lacks:
        changed = replace(quote, usage_factor=now.usage_factor, lacks=())
    else:
        changed = replace(quote, changes=(*quote.changes, (elapsed_s, now.usage_factor)))
    with contextlib.suppress(LaunchError, FileNotFoundError):  # a full disk: it is noticed again
        directory.write_record(directory.quote, changed)
    return changed


def in_line(session: Session) -> str:
    """Say below a cell what the session has cost so far, and its rate; nothing where that is not known, or local."""
    if session.request.launcher == "local":
        return ""
    from hpcmagic.notebook import readings  # it reads what is here

    elapsed_s, left_s = session.elapsed_s(), session.left_s()
    cost = cost_of(session.directory, session.request, session.job, "ready", elapsed_s=elapsed_s, left_s=left_s)
    readings.reader(session).hold_budget(session, quote_of(session.directory, session.request))
    return "" if cost is None else f"{cost} so far, {amount(cost.rate_per_hour)} an hour"
