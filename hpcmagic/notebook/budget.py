"""Budgets: what a session, or a month, may cost; written down once, held by the walltime and by the keeper.

%budget 20 ─► budget.json ─┬─ at the start: what is left ÷ rate = the longest walltime ─► job script
                           └─ at the start, and when it changes: limits.json ─► the keeper, which ends the job

A session's budget counts all jobs under its name since it was set, the one that ran then included. A month's counts
what accounting says of every job of yours since the first, and for those that run what they may cost at most.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from hpcmagic.cost import S_PER_HOUR, S_PER_MINUTE, Quote, amount
from hpcmagic.errors import BudgetSpent, LaunchError, ProfileError
from hpcmagic.launch import charges
from hpcmagic.launch.board import Board, default_folder
from hpcmagic.notebook.bill import entries
from hpcmagic.notebook.found import Found
from hpcmagic.notebook.output import clock
from hpcmagic.notebook.past import cost_of_past, key_of, month_spent, past_of, since
from hpcmagic.notebook.spending import Metered, local_quote
from hpcmagic.profiles import Resources
from hpcmagic.rendezvous import Limits, SessionDirectory, disk_errors, require_private

MONTH = "month"
MONTH_KEY = ""  # of its budget, among those of sessions
WARNED_AT = 0.8
END_S = (3.0, 10.0)  # so long before the last unit is spent the keeper ends the job: the least, and the most …
END_SHARE = 0.02  # … of this share of what it may run
TURN_S = 20.0  # how long to wait until another kernel has bought …
WRITE_S = 5.0  # … or has written
LONGEST_MIN = 10 * 365 * 1440  # of a walltime: SLURM's number has an end
MOST = 1e12  # a budget; more is no bound
LEAST_S = {"slurm": 60.0, "local": 10.0}  # less is no session: SLURM counts walltimes in minutes


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent.

    Attributes
    ----------
    limit
        In `unit`: the site's; on this machine, where nobody charges, core-hours.
    since
        Seconds since the epoch: earlier jobs do not count.
    spent
        By job: what those have cost that are over, as far as that is certain.
    unit
        Empty until a job tells it.
    """

    limit: float
    since: float
    spent: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""

    def __post_init__(self) -> None:
        numbers = (self.limit, self.since, *self.spent.values())
        sound = all(isinstance(one, int | float) and math.isfinite(one) for one in numbers)
        if not sound or self.limit <= 0 or not isinstance(self.unit, str):
            raise ValueError(self)


@dataclass(frozen=True, slots=True)
class Left:
    """How a budget stands before the session's own job."""

    what: str  # session | month
    limit: float
    spent: float
    unit: str = ""

    @property
    def left(self) -> float:
        """What may still be spent."""
        return self.limit - self.spent

    def in_words(self) -> str:
        """Say it."""
        whose = "this month's budget" if self.what == MONTH else "the session's budget"
        return f"{whose} of {amount(self.limit)} {self.unit or 'units'}"


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


def change(name: str, how: Callable[[Budget | None], Budget | None]) -> None:
    """Write a budget down as it is to be after what it is now; None = there is none. Kernels take turns."""
    path = budget_file()
    with _alone("budgets", WRITE_S):
        budgets = known()
        budgets_after = {**budgets, name: how(budgets.get(name))}
        kept = {key: asdict(one) for key, one in budgets_after.items() if one is not None}
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        SessionDirectory(path.parent).write(path, json.dumps(kept, indent=1))


def remember(name: str, budget: Budget | None) -> None:
    """Write a budget down, or forget it."""
    change(name, lambda _before: budget)


@contextlib.contextmanager
def _alone(what: str, most_s: float) -> Iterator[None]:
    """Let one kernel of this host do something at a time; who has waited for too long goes on all the same."""
    board, until_s = _board(default_folder()), time.monotonic() + most_s
    while not board.claim(what) and time.monotonic() < until_s:
        time.sleep(0.05)
    try:
        yield
    finally:
        board.release(what)


@functools.lru_cache(maxsize=4)  # one that is kept notices a claim whose owner is dead
def _board(folder: Path) -> Board:
    return Board(folder)


def in_turn() -> contextlib.AbstractContextManager[None]:
    """Where a month's budget binds, let one kernel of this host buy at a time: what it buys counts for the next."""
    return _alone("buying", TURN_S) if MONTH_KEY in known() else contextlib.nullcontext()


def checked(limit: object) -> float:
    """Give a budget's limit.

    Raises
    ------
    ProfileError
        It is no number above 0.
    """
    try:
        number = float(str(limit))  # as text, so that what float() takes besides numbers, True say, is none
    except ValueError:
        number = math.nan
    if not 0 < number <= MOST:
        raise ProfileError(
            f"A budget of {limit!r} cannot be held.", "Give a number above 0, e.g. `%budget 20`; `off` takes it away."
        )
    return number


def left_of(name: str, quote: Quote | None, root: Path, *, lazily: bool = False, of_month: bool = True) -> list[Left]:
    """Say how the budgets stand that bind a session, without the job that it has now.

    Parameters
    ----------
    root
        Where the directories of such sessions lie.
    lazily
        Whether answers of some minutes ago will do.
    of_month
        Whether the month's counts: it takes looking at all of your sessions.

    Raises
    ------
    ProfileError
        A budget is in another unit than the session's job is charged in.
    """
    budgets, found = known(), []
    if (own := budgets.get(name)) is not None:
        unit = _unit(name, own, quote)
        found.append(Left("session", own.limit, _spent(name, own, root), unit))
    month = budgets.get(MONTH_KEY) if of_month else None
    if month is not None and quote is not None and not _here(quote):
        found.append(Left(MONTH, month.limit, month_spent(name, quote.units, lazily=lazily), _unit("", month, quote)))
    return found


def _unit(name: str, budget: Budget, quote: Quote | None) -> str:
    """Give the unit that a budget is in; the first job that it binds tells it."""
    if quote is None or budget.unit == quote.unit:
        return budget.unit
    if budget.unit:
        raise ProfileError(
            f"The budget of {amount(budget.limit)} is in {budget.unit}, and this job is charged in {quote.unit}.",
            f"`%budget off{'' if name else ' --month'}` takes it away; then set it anew.",
        )
    change(name, lambda now: None if now is None else replace(now, unit=quote.unit))
    return quote.unit


def quote_for(resources: Resources) -> Quote | None:
    """Give what a session of these resources would be charged; on this machine, in core-hours."""
    return local_quote(resources) if resources.launcher == "local" else charges.BOOKS.quote(resources)


def got(session: Metered) -> dict[str, float] | None:
    """Give what a session's job has got; None where nobody tells, or on this machine."""
    return None if session.request.launcher == "local" else charges.BOOKS.got(session.job.job_id)


def begin(session: Metered | Found | None) -> float:
    """Give since when jobs count for a budget that is set now: the one that runs, or waits, does."""
    return time.time() if session is None or session.job is None else session.job.submitted


def budgets_of(
    session: Metered | Found, quote: Quote | None, *, lazily: bool = False, of_month: bool = True
) -> list[Left]:
    """Say how the budgets stand that bind a session which is there, without its own job while that runs."""
    path = session.directory.path.parent
    root = path.parent if session.directory.is_aside() else path
    return left_of(session.request.session, quote, root, lazily=lazily, of_month=of_month)


def _here(quote: Quote) -> bool:
    return not quote.partition  # nobody charges on this machine


def settle() -> None:
    """Write down what the jobs of every budget have cost that are over: their directories do not stay for ever."""
    for name, budget in known().items():
        if name:
            _spent(name, budget, Resources().directory)


def _spent(name: str, budget: Budget, root: Path) -> float:
    """Give what jobs of a session have cost that are over; what is certain of that is written down."""
    past = [one for one in past_of(root, name) if since(one) >= budget.since]
    costs = dict(zip(map(key_of, past), map(cost_of_past, past, entries(past)), strict=True))
    certain = {key: cost for key, (cost, sure) in costs.items() if sure}
    if certain.items() - budget.spent.items():
        change(name, lambda now: None if now is None else replace(now, spent={**now.spent, **certain}))
    return sum({**budget.spent, **{key: cost for key, (cost, _) in costs.items()}}.values())


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
    settle()
    quote = quote_for(resources)
    stands = left_of(name, quote, resources.directory)
    if not stands:
        return resources, None
    if quote is None or quote.lacks:
        lacking = "" if quote is None else " (the QOS's factor is missing)"
        named = [f"--{name} {it}" for name in ("partition", "account", "qos") if (it := getattr(resources, name))]
        check = f"Check `{' '.join(named)}`. " if named else ""
        raise ProfileError(
            f"SLURM does not tell what a job is charged here{lacking}: a budget cannot be held.",
            f"{check}`%budget off` takes the session's away, `%budget off --month` the month's.",
        )
    a_second = rate(quote)
    if not a_second:
        return resources, None
    tight = min(stands, key=lambda one: one.left)
    run_s = tight.left / a_second
    if run_s < LEAST_S[resources.launcher]:
        raise BudgetSpent(
            f"{_sentence(tight.in_words())} has {amount(max(0.0, tight.left))} left, "
            f"and this session costs {amount(a_second * S_PER_HOUR)} an hour: nothing was started.",
            f"Allow more, e.g. `%budget {2 * tight.limit:.6g}{_flag(tight)}`, or ask for less.",
        )
    asked_s = quote.walltime_s
    if resources.launcher == "slurm" and (asked_s is None or asked_s > run_s):
        minutes = int(min(run_s // S_PER_MINUTE, LONGEST_MIN))
        of = f"the {clock(asked_s)} that was asked for" if asked_s else "no limit"
        allowed = clock(minutes * S_PER_MINUTE)
        print(f"{_sentence(tight.in_words())} allows a walltime of {allowed}, instead of {of}.")
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
    of = f"{amount(stand.limit)} {unit}{' a month' if stand.what == MONTH else ''}"
    return Limits(max(0.0, end_s - ahead_s), max(0.0, left_s - ahead_s), of)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _flag(stand: Left) -> str:
    return " --month" if stand.what == MONTH else ""
