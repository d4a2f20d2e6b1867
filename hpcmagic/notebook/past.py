"""What jobs have cost that are over, as far as anybody tells: those of one session's name, or all of a month.

directories of ended sessions ─► quote, how long it ran ─┐
sacct ─► its word                                       ─┼─► what a budget has spent
sessions that run ─► all they may cost                  ─┘
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from hpcmagic.cost import S_PER_MINUTE, Unit
from hpcmagic.launch import charges
from hpcmagic.launch.base import AT_ITS_PACE
from hpcmagic.launch.charges import Accounted
from hpcmagic.launch.slurm import QUERY_TIMEOUT_S
from hpcmagic.notebook.bill import Entry, entries
from hpcmagic.notebook.found import Found, all_found, everywhere, find, put_aside
from hpcmagic.notebook.spending import charged_minutes, quote_of
from hpcmagic.notebook.status import ran_here_s
from hpcmagic.profiles import Resources, resolve
from hpcmagic.rendezvous import JobRecord


def past_of(root: Path, name: str = "") -> list[Found]:
    """Give the sessions that are over, of one name or of all, wherever your profiles keep them."""
    places = dict.fromkeys(map(str, (root, *(place.directory for place in everywhere()))))
    found = []
    for place in places:
        at = resolve({"session_dir": place}, roles=False)
        there = all_found(at) if not name else filter(None, [find(at, name)])
        found += [one for one in put_aside(session_dir=place) if name in ("", one.request.session)]
        found += [one for one in there if not one.half and _is_over(one)]
    return found


def _is_over(found: Found) -> bool:
    """Whether a session has ended, by its keeper or by what the batch system was asked last."""
    ended = found.keeper is not None and found.keeper.phase == "ended"
    return ended or found.job_state(AT_ITS_PACE).phase == "ended"


def cost_of_past(found: Found, entry: Entry) -> tuple[float, bool]:
    """Give what a session has cost that is over, and whether that is certain; if not, the most that it can have."""
    if entry.spent is not None and (entry.confirmed is not None or found.request.launcher == "local"):
        return entry.spent, True
    quote = quote_of(found.directory, found.request)
    if quote is None or found.job is None:
        return entry.spent or 0.0, False
    most_s = min(_ran_at_most_s(found, found.job), quote.walltime_s or math.inf)
    return max(entry.spent or 0.0, quote.cost(most_s).spent), False


def _ran_at_most_s(found: Found, job: JobRecord) -> float:
    """Give how long a session can have run: one whose keeper did not say its end, until it was put aside."""
    if found.keeper is None or found.keeper.phase == "ended":
        return ran_here_s(found.directory, job)
    until_s = found.directory.path.stat().st_ctime if found.directory.is_aside() else time.time()
    return max(0.0, until_s - job.submitted)


def since(found: Found) -> float:
    """Give when a session's job was submitted, in seconds since the epoch."""
    return found.job.submitted if found.job is not None else 0.0


def key_of(found: Found) -> str:
    """Give what tells a job from all others: SLURM's numbers begin anew one day."""
    return f"{found.request.launcher} {found.job.job_id if found.job is not None else ''} {since(found):.0f}"


def month_spent(name: str, units: Unit, *, lazily: bool = False) -> float:
    """Give what this month has cost, in units: jobs that are over, and of those that run all they may cost."""
    running = _running(lazily=lazily)
    own = next((entry.job for _, entry in running if entry.session == name), "")
    minutes = {one.job: _minutes(found, _ceiling(one)) for found, one in running if one.spent is not None}
    kept_s = charges.BALANCE_SHOWN_S if lazily else charges.ACCOUNTED_KEPT_S
    told = charges.BOOKS.jobs_from(first_of_month(), wait_s=QUERY_TIMEOUT_S, kept_s=kept_s) or []
    minutes |= {job.job_id: _accounted_minutes(job) for job in told if job.job_id not in minutes}
    past = [one for one in past_of(Resources().directory) if _in_month(one) and _job(one) not in minutes]
    minutes |= {  # what accounting does not know, or not yet
        _job(one): _minutes(one, cost)
        for one, (cost, _) in zip(past, map(cost_of_past, past, entries(past)), strict=True)
    }
    return units.of(sum(minutes.values()) - minutes.get(own, 0.0))


def _minutes(found: Found, cost: float) -> float:
    """Turn what a session costs, in its own unit, into billing-minutes: profiles may count in different units."""
    quote = quote_of(found.directory, found.request)
    return cost if quote is None else cost * quote.divisor


def _accounted_minutes(job: Accounted) -> float:
    """Give the billing-minutes of a job; where its tariff is not known, by SLURM's own whole number, rounded up."""
    known = charged_minutes(job)
    a_minute = job.tres.get("billing", job.tres.get("cpu", 0.0)) + 1
    return a_minute * job.elapsed_s / S_PER_MINUTE if known is None else known


def _job(found: Found) -> str:
    return found.job.job_id if found.job is not None else ""


def first_of_month() -> str:
    """Give when this month began, in a form of sacct's."""
    return time.strftime("%Y-%m-01")


def _running(*, lazily: bool) -> list[tuple[Found, Entry]]:
    found = [one for place in everywhere() for one in all_found(place) if not one.half]
    jobs = [one for one in found if one.request.launcher == "slurm"]
    return [
        (one, entry) for one, entry in zip(jobs, entries(jobs, lazily=lazily), strict=True) if entry.state != "ended"
    ]


def _ceiling(entry: Entry) -> float:
    return entry.ceiling if entry.ceiling is not None else entry.spent or 0.0


def _in_month(found: Found) -> bool:
    return found.request.launcher == "slurm" and time.localtime(since(found))[:2] == time.localtime()[:2]
