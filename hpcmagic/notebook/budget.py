"""Budgets: what a session, or a month, may cost; written down once, held by the walltime and by the keeper.

%budget 20 ─► budget.json ─┬─ at the start: what is left ÷ rate = the longest walltime ─► job script
                           └─ at the start, and when it changes: limits.json ─► the keeper, which ends the job

A session's budget counts all jobs under its name since it was set, the one that ran then included. A month's counts
what accounting says of every job of yours since the first, and for those that run what they may cost at most.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from hpcmagic.cost import S_PER_HOUR, S_PER_MINUTE, Quote, amount
from hpcmagic.errors import BudgetSpent, LaunchError, ProfileError
from hpcmagic.launch import charges
from hpcmagic.launch.board import Board
from hpcmagic.launch.slurm import QUERY_TIMEOUT_S
from hpcmagic.notebook.bill import Entry, entries
from hpcmagic.notebook.found import Found, all_found, everywhere, put_aside
from hpcmagic.notebook.output import clock
from hpcmagic.notebook.spending import Metered, charged_minutes, local_quote
from hpcmagic.profiles import Resources, walltime_s
from hpcmagic.rendezvous import Limits, SessionDirectory, require_private

MONTH = "month"
WARNED_AT = 0.8
END_S = (1.0, 5.0)  # so long before the last unit is spent the keeper ends the job: the least, and the most …
END_SHARE = 0.02  # … of this share of what it may run
TURN_S = 20.0  # how long to wait until another kernel has bought
LEAST_S = {"slurm": 60.0, "local": 10.0}  # less is no session: SLURM counts walltimes in minutes


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent.

    Attributes
    ----------
    limit
        In the site's unit; on this machine, where nobody charges, in core-hours.
    since
        Seconds since the epoch: earlier jobs do not count.
    spent
        By job: what those have cost that are over, as far as it was seen.
    """

    limit: float
    since: float
    spent: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Left:
    """How a budget stands before the session's own job."""

    what: str  # session | month
    limit: float
    spent: float

    @property
    def left(self) -> float:
        """What may still be spent."""
        return self.limit - self.spent

    def in_words(self, unit: str) -> str:
        """Say it."""
        whose = "this month's budget" if self.what == MONTH else "the session's budget"
        return f"{whose} of {amount(self.limit)} {unit}"


def budget_file() -> Path:
    """Give the file of your budgets: one for all profiles."""
    return Resources().directory / "budget.json"


def known() -> dict[str, Budget]:
    """Give the budgets that were set, by session; that of the month under an empty name.

    Raises
    ------
    LaunchError
        The file is damaged: a budget that cannot be read cannot be held.
    ProfileError
        Others may read or write it.
    """
    path = budget_file()
    try:
        require_private(path)
        return {name: Budget(**told) for name, told in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError):
        raise LaunchError(
            f"{path} is damaged: no budget can be read from it.", "Remove it, and set your budgets again."
        ) from None


def remember(name: str, budget: Budget | None) -> None:
    """Write a budget down, or forget it."""
    path = budget_file()
    budgets = {**known(), name: budget}
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = {key: asdict(one) for key, one in budgets.items() if one is not None}
    SessionDirectory(path.parent).write(path, json.dumps(kept, indent=1))


def checked(limit: object) -> float:
    """Give a budget's limit.

    Raises
    ------
    ProfileError
        It is no number above 0.
    """
    try:
        number = float(limit)  # type: ignore[arg-type]  # whatever a user has written
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf or isinstance(limit, bool):
        raise ProfileError(
            f"A budget of {limit!r} cannot be held.", "Give a number above 0, e.g. `%budget 20`; `off` takes it away."
        )
    return number


def left_of(name: str, quote: Quote | None, root: Path) -> list[Left]:
    """Say how the budgets stand that bind a session, without the job that it has now.

    Parameters
    ----------
    root
        Where the directories of such sessions lie.
    """
    budgets = known()
    found = []
    if (own := budgets.get(name)) is not None:
        own = _with_ended(name, own, root)
        found.append(Left("session", own.limit, sum(own.spent.values())))
    if (month := budgets.get("")) is not None and quote is not None and not _here(quote):
        found.append(Left(MONTH, month.limit, month_spent(name, quote)))
    return found


def quote_for(resources: Resources) -> Quote | None:
    """Give what a session of these resources would be charged; on this machine, in core-hours."""
    return local_quote(resources) if resources.launcher == "local" else charges.BOOKS.quote(resources)


def got(session: Metered) -> dict[str, float] | None:
    """Give what a session's job has got; None where nobody tells, or on this machine."""
    return None if session.request.launcher == "local" else charges.BOOKS.got(session.job.job_id)


def begin(session: Metered | None) -> float:
    """Give since when jobs count for a budget that is set now: the one that runs does."""
    return time.time() if session is None else session.job.submitted


def budgets_of(session: Metered, quote: Quote | None) -> list[Left]:
    """Say how the budgets stand that bind a session which is there, without its own job."""
    path = session.directory.path.parent
    return left_of(session.request.session, quote, path.parent if session.directory.is_aside() else path)


def _here(quote: Quote) -> bool:
    return not quote.partition  # nobody charges on this machine


def _with_ended(name: str, budget: Budget, root: Path) -> Budget:
    """Add what jobs of a session have cost that are over by now, and write it down: their directories do not stay."""
    past = [
        one for one in put_aside(session_dir=str(root)) if one.request.session == name and _since(one) >= budget.since
    ]
    told = {_key(one): entry.spent or 0.0 for one, entry in zip(past, entries(past), strict=True)}
    if not told.keys() - budget.spent.keys():
        return budget
    budget = replace(budget, spent={**budget.spent, **told})
    remember(name, budget)
    return budget


def _since(found: Found) -> float:
    return found.job.submitted if found.job is not None else 0.0


def _key(found: Found) -> str:
    return f"{found.request.launcher} {found.job.job_id if found.job is not None else ''} {_since(found):.0f}"


def month_spent(name: str, quote: Quote) -> float:
    """Give what this month has cost, in units: jobs that are over, and of those that run all they may cost."""
    running = {entry.job: entry for entry in _running() if entry.session != name and entry.job}
    own = next((entry.job for entry in _running() if entry.session == name), "")
    ceilings = {job: _ceiling(entry) for job, entry in running.items()}
    first = time.strftime("%Y-%m-01")
    told = charges.BOOKS.jobs_from(first, wait_s=QUERY_TIMEOUT_S)
    if told is None:  # no accounting: what is known here
        past = [one for one in put_aside() if one.request.launcher == "slurm" and _in_month(one)]
        return sum(entry.spent or 0.0 for entry in entries(past)) + sum(ceilings.values())
    over = (job for job in told if job.job_id not in ceilings and job.job_id != own)
    return sum(quote.units.of(charged_minutes(job) or 0.0) for job in over) + sum(ceilings.values())


def _running() -> list[Entry]:
    found = [one for place in everywhere() for one in all_found(place) if not one.half]
    jobs = [one for one in found if one.request.launcher == "slurm"]
    return [entry for entry in entries(jobs) if entry.state != "ended"]


def _ceiling(entry: Entry) -> float:
    return entry.ceiling if entry.ceiling is not None else entry.spent or 0.0


def _in_month(found: Found) -> bool:
    return time.localtime(_since(found))[:2] == time.localtime()[:2]


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Where a month's budget binds, let one kernel of this host buy at a time: what it buys counts for the next."""
    if "" not in known():
        yield
        return
    board, until_s = Board(), time.monotonic() + TURN_S
    while not board.claim("buying") and time.monotonic() < until_s:
        time.sleep(0.1)
    try:
        yield
    finally:
        board.release("buying")


def applied(name: str, resources: Resources) -> tuple[Resources, Limits | None]:
    """Cut the walltime that is asked for, so that the job cannot overrun a budget, and say so.

    Raises
    ------
    BudgetSpent
        Too little is left for even a minute.
    ProfileError
        Nobody tells what the job is charged.
    """
    if not known():
        return resources, None
    quote = quote_for(resources)
    stands = left_of(name, quote, resources.directory)
    if not stands:
        return resources, None
    if quote is None:
        raise ProfileError(
            "SLURM does not tell what a job is charged here: a budget cannot be held.",
            "`%budget off` takes the session's away, `%budget off --month` the month's.",
        )
    a_second = rate(quote)
    if not a_second:
        return resources, None
    tight = min(stands, key=lambda one: one.left)
    run_s = tight.left / a_second
    if run_s < LEAST_S[resources.launcher]:
        raise BudgetSpent(
            f"{_sentence(tight.in_words(quote.unit))} has {amount(max(0.0, tight.left))} left, "
            f"and this session costs {amount(a_second * S_PER_HOUR)} an hour: nothing was started.",
            f"Allow more, e.g. `%budget {amount(2 * tight.limit)}{_flag(tight)}`, or ask for less.",
        )
    asked_s = walltime_s(resources.time) if resources.launcher == "slurm" else None
    if resources.launcher == "slurm" and (asked_s is None or asked_s > run_s):
        minutes = int(run_s // S_PER_MINUTE)
        of = f"the {clock(asked_s)} that was asked for" if asked_s else "no limit"
        allowed = clock(minutes * S_PER_MINUTE)
        print(f"{_sentence(tight.in_words(quote.unit))} allows a walltime of {allowed}, instead of {of}.")
        resources = resources.with_origin("by the budget", time=str(minutes))
    return resources, limits(tight, quote.unit, run_s)


def rate(quote: Quote, tres: Mapping[str, float] | None = None) -> float:
    """Give the units that a job costs a second."""
    return quote.cost(0.0, tres=tres).rate_per_hour / S_PER_HOUR


def limits(stand: Left, unit: str, run_s: float, ahead_s: float = 0.0) -> Limits:
    """Give what the keeper is told.

    Parameters
    ----------
    run_s
        How long the job may run, by SLURM's count.
    ahead_s
        How far SLURM's count is ahead of the keeper's.
    """
    left_s = max(0.0, WARNED_AT * stand.limit - stand.spent) / stand.left * run_s if stand.left > 0 else 0.0
    least_s, most_s = END_S
    end_s = run_s - max(least_s, min(most_s, END_SHARE * run_s))
    return Limits(max(0.0, end_s - ahead_s), max(0.0, left_s - ahead_s), f"{amount(stand.limit)} {unit}")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _flag(stand: Left) -> str:
    return " --month" if stand.what == MONTH else ""
