"""How long a session lives, as its user decides: keep it though it is idle, extend its walltime, bound its cost."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from hpcmagic.cost import S_PER_MINUTE, Unit, amount, unit_of
from hpcmagic.errors import BudgetSpent, HpcMagicError, LaunchError, ProfileError, SessionEnded
from hpcmagic.forms import CHECKS
from hpcmagic.launch import slurm
from hpcmagic.notebook import budget as budgets
from hpcmagic.notebook import frontend
from hpcmagic.notebook.found import Found, find_anywhere
from hpcmagic.notebook.output import clock, time_of_day
from hpcmagic.notebook.past import month_spent
from hpcmagic.notebook.spending import quote_of
from hpcmagic.profiles import profile_names, resolve, walltime_s
from hpcmagic.rendezvous import JobRecord, Limits
from hpcmagic.wire.messages import KEEP

if TYPE_CHECKING:
    from hpcmagic.notebook.readings import Reader
    from hpcmagic.notebook.session import Session
    from hpcmagic.wire.control import Control


_holding = threading.Lock()  # a meter holds budgets in a thread of its own: what was set last must be written last


class Lifespan:
    """The verbs of a session that decide how long it lives; a part of `Session`."""

    if TYPE_CHECKING:
        name: str
        job: JobRecord
        control: Control | None

        def left_s(self) -> float | None:
            """Seconds until the walltime."""

        def control_path(self) -> Control:
            """Give the way to the ranks."""

        def require_alive(self, *, fallen: bool = False) -> None:
            """Raise if the session has ended."""

    def ends(self) -> tuple[float | None, str]:
        """Give the seconds until the job ends by its walltime or its budget, and which in words, with the mend."""
        left_s, by_budget_s = self.left_s(), self.control.beat.budget_left_s if self.control is not None else None
        if by_budget_s is not None:
            _reader(cast("Session", self)).hold_budget(cast("Session", self))
        if by_budget_s is not None and (left_s is None or by_budget_s < left_s):
            return by_budget_s, "its budget is spent (`%budget` allows more)"
        return left_s, f"job {self.job.job_id} ends (`%hpc extend` asks for more)"

    def keep(self) -> None:
        """Begin the countdown of a session that is idle anew (`idle_limit`).

        Raises
        ------
        SessionEnded
            It is over.
        """
        self.require_alive(fallen=True)
        self.control_path().ask_keeper(KEEP)

    def extend(self, time: str | float) -> str:
        """Give the session's job more time; say until when.

        Parameters
        ----------
        time
            How much more: seconds, or text in one of sbatch's forms (``"30"`` minutes, ``"1:00:00"``).

        Raises
        ------
        LaunchError
            SLURM does not allow it: at most sites only an administrator may, once a job runs.
        BudgetSpent
            A budget would be overrun.
        ProfileError
            There is no walltime: the session runs on this machine.
        """
        return _extended(cast("Session", self), _seconds(time))

    def budget(self, limit: float | str | None) -> str:
        """Bound what the session may cost, its jobs so far included; None takes the bound away. Say how it stands.

        The keeper ends the job when the budget is spent, whether this notebook is open or not.

        Parameters
        ----------
        limit
            In the site's unit; on this machine in core-hours.

        Raises
        ------
        ProfileError
            It is no number above 0, or nobody tells what the job is charged.
        BudgetSpent
            The session has cost as much already.
        """
        return set_budget(self.name, limit, cast("Session", self))


def _reader(session: Session) -> Reader:
    from hpcmagic.notebook import readings  # it reads what is here

    return readings.reader(session)


def _seconds(time: str | float) -> float:
    if isinstance(time, str):
        seconds = float(walltime_s(CHECKS["time"]("time", time, "asked for")) or 0)
    else:
        seconds = float(time)
    if not 0 < seconds < math.inf:
        raise ProfileError(
            f"{time!r} is no time to extend by.", "Give minutes or H:MM:SS, e.g. `%hpc extend 0:30:00`."
        )
    return seconds


def extend_queued(found: Found, time: str | float) -> str:
    """Give the job of a session that waits in the queue more time; say how much it has then."""
    from hpcmagic.notebook.session import Session

    job = found.job or JobRecord(found.request.launcher, "", 0.0)
    return _extended(Session(found.directory, found.request, found.launcher, job, None), _seconds(time))


def _extended(session: Session, by_s: float) -> str:
    if session.request.launcher == "local":
        raise ProfileError(
            f"Session {session.name} runs on this machine: it has no walltime to extend.", "`%hpc stop` ends it."
        )
    session.require_alive(fallen=True)
    session.seen.look()
    left_s, job = session.left_s(), session.job.job_id
    if left_s is None:
        raise LaunchError(f"SLURM tells of no walltime of job {job}.", "`%hpc` shows how it stands.")
    until_s = session.elapsed_s() + left_s + by_s
    _require_allowed(session, until_s)
    slurm.set_time_limit(job, math.ceil(until_s / S_PER_MINUTE), ends=time_of_day(left_s))
    session.seen.look()
    if budgets.known():  # the keeper knows of what was left when the job was bought, of the month's as well
        hold(session, may_end=True, of_month=True)
    now_left_s = session.left_s() or left_s + by_s
    if session.seen.state.phase == "pending":
        return f"Job {job} of session {session.name} waits, and may now run for {clock(now_left_s)}."
    return f"Job {job} of session {session.name} now ends at {time_of_day(now_left_s)}, in {clock(now_left_s)}."


def _require_allowed(session: Session, until_s: float) -> None:
    """Refuse a walltime that the session's budgets do not allow."""
    quote = quote_of(session.directory, session.request)
    if quote is None:
        return
    got, elapsed_s = budgets.got(session), session.elapsed_s()
    ceiling = quote.cost(elapsed_s, tres=got, left_s=until_s - elapsed_s).ceiling or 0.0
    for one in budgets.budgets_of(session, quote):
        if ceiling > one.left:
            raise BudgetSpent(
                f"With so much time the job may cost {amount(ceiling)} {quote.unit}, and "
                f"{one.in_words()} has {amount(max(0.0, one.left))} for it.",
                "Extend by less, or allow more with `%budget`.",
            )


def set_budget(
    name: str, limit: float | str | None, session: Session | None = None, queued: Found | None = None
) -> str:
    """Set the budget of a session, whether it runs, waits in the queue or not, or take it away; say how it stands."""
    number = None if limit is None else budgets.checked(limit)
    session = _living(session)
    there = session or queued
    name = name if there is None else there.request.session  # its notebook may have another name by now
    known = budgets.known().get(name)
    began = known.since if known is not None else budgets.begin(there)

    def changed(now: budgets.Budget | None) -> budgets.Budget | None:
        if number is None:
            return None
        return budgets.Budget(number, began) if now is None else replace(now, limit=number)

    budgets.change(name, changed)
    try:
        if there is not None:
            with _holding:
                _hold(there)
    except HpcMagicError:
        budgets.remember(name, known)
        raise
    if session is not None:
        _reader(session).forget_budget()
    return in_words(name, session)


def _living(session: Session | None) -> Session | None:
    """Give a session unless it is over."""
    if session is not None:
        with contextlib.suppress(SessionEnded):
            session.require_alive(fallen=True)
            return session
    return None


def budget_of(name: str | None, limit: float | str | None, **options: object) -> str:
    """Set the budget of a session by its name, whether it runs or is still to be started; say how it stands.

    Parameters
    ----------
    name
        None = this notebook's.
    limit
        "" = leave it as it is.
    """
    from hpcmagic.notebook.start import attach, require_name

    chosen = name if name is not None else own_name()
    require_name(chosen)
    found = find_anywhere(chosen, **options)
    there = found is not None and not found.half and not found.ended()
    queued = found if there and waits(found) else None
    session = attach(chosen, **options) if there and queued is None else None
    return in_words(chosen, session) if limit == "" else set_budget(chosen, limit, session, queued)


def waits(found: Found | None) -> bool:
    """Whether a session's job is still in the queue: nobody waits for it who only sets a budget."""
    return found is not None and found.keeper is None and found.seen.phase == "pending"


def own_name() -> str:
    """Give the name of this notebook's session.

    Raises
    ------
    ProfileError
        It has none yet, and no path that would name one.
    """
    name, by_path = frontend.session_name()
    own = frontend.held_name() or (name if by_path else "")
    if not own:
        raise ProfileError(
            "This notebook has no session yet, nor a name for one: its budget could not be found again.",
            "Start it with `--session NAME` first, or bound the month with `--month`.",
        )
    return own


def set_month(limit: float | str | None) -> str:
    """Set what all sessions may cost in a month, or take the bound away; say how it stands.

    Parameters
    ----------
    limit
        "" = leave it as it is.

    Raises
    ------
    ProfileError
        It is no number above 0.
    """
    if limit == "":
        fresh = budgets.known().get(budgets.MONTH_KEY)
    else:
        fresh = None if limit is None else budgets.Budget(budgets.checked(limit), budgets.begin(None))
        budgets.remember(budgets.MONTH_KEY, fresh)
    return "No bound on what a month costs." if fresh is None else _month(fresh)


def _month(month: budgets.Budget) -> str:
    """Say how the month's budget stands, what runs counted with all it may still cost."""
    units = next(filter(lambda one: month.unit in ("", one.name), _units()), None)
    spent = None if units is None else month_spent("", units)
    told = "" if spent is None else f" {amount(spent)} are spent, or may be by what runs ({spent / month.limit:.0%})."
    return f"This month: at most {amount(month.limit)} {month.unit or (units or Unit()).name} on SLURM.{told}"


def _units() -> Iterator[Unit]:
    """Give the units of all profiles, that of the default first."""
    for named in ({}, *({"profile": name} for name in profile_names(roles=False))):
        one = resolve(named, roles=False)
        yield unit_of(one.cost_unit, one.cost_divisor, one.price, one.currency)


def hold(session: Session, *, may_end: bool = False, of_month: bool = False) -> None:
    """Tell the keeper how long the session's job may run by its budget.

    Parameters
    ----------
    may_end
        Whether that may be no longer at all, since what the job costs has risen; else a budget so low is refused.
    of_month
        Whether the month's budget binds as well; that of a job which runs already does not change.
    """
    with _holding:
        _hold(session, may_end=may_end, of_month=of_month)


def _hold(session: Session | Found, *, may_end: bool = False, of_month: bool = False) -> None:
    name, job = session.request.session, session.job.job_id if session.job is not None else ""
    quote, elapsed_s, ran_s, got = quote_of(session.directory, session.request), 0.0, 0.0, None
    if not isinstance(session, Found):
        elapsed_s, got = session.elapsed_s(), budgets.got(session)
        ran_s = session.control.beat.ran_s if session.control is not None else 0.0
    stands = budgets.budgets_of(session, quote, of_month=of_month)
    if not stands:
        session.directory.write_record(session.directory.limits, Limits())
        return
    if quote is None or quote.lacks:
        raise ProfileError(
            f"SLURM does not tell what job {job} is charged: a budget cannot be held.",
            "Its walltime bounds what it costs; `%hpc` shows it.",
        )
    stand = min(stands, key=lambda one: one.left)
    a_second, spent = budgets.rate(quote, got), quote.cost(elapsed_s, tres=got).spent
    if not a_second:
        session.directory.write_record(session.directory.limits, Limits())
        return
    run_s = elapsed_s + max(0.0, stand.left - spent) / a_second
    ahead_s = max(0.0, elapsed_s - ran_s) if ran_s else 0.0
    told = budgets.limits(stand, quote.unit, run_s, ahead_s)
    if (told.run_s or 0.0) + ahead_s <= elapsed_s and not may_end:
        raise BudgetSpent(
            f"Session {name} has cost {amount(stand.spent + spent)} {quote.unit} already: "
            f"a budget of {stand.limit:.6g} would end it at once.",
            "`%hpc stop` ends it, its variables are lost; or allow more.",
        )
    session.directory.write_record(session.directory.limits, told)


def in_words(name: str, session: Session | None = None) -> str:
    """Say how the budgets stand that bind a session."""
    session = _living(session)
    quote = quote_of(session.directory, session.request) if session is not None else None
    if session is not None:
        stands = budgets.budgets_of(session, quote)
    else:
        stands = budgets.left_of(name, None, resolve({}).directory)
    lines = []
    for one in (stand for stand in stands if stand.what != budgets.MONTH):
        spent = one.spent
        if session is not None and quote is not None:
            spent += quote.cost(session.elapsed_s(), tres=budgets.got(session)).spent
        of = f"{amount(one.limit)} {one.unit or 'units'}"
        lines.append(f"Session {name}: {amount(spent)} of {of} spent ({spent / one.limit:.0%}).")
    month = budgets.known().get(budgets.MONTH_KEY)
    if month is not None:
        lines.append(_month(month))
    return "\n".join(lines) or "No budget is set. `%budget 20` bounds what this session may cost."
