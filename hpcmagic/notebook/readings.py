"""What the meter shows of a session at one moment: its state, its cost, what is left of time and money, idle waste.

status (squeue, state.json) ─┐
Cost, balance               ─┼─► Reading ─► meter.js, `%meter`, the line under a cell
the keeper's beat           ─┘
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from hpcmagic.cost import Quote
from hpcmagic.errors import HpcMagicError
from hpcmagic.launch import charges
from hpcmagic.launch.charges import Balance
from hpcmagic.notebook.budget import Left, budgets_of, known
from hpcmagic.notebook.lifespan import hold
from hpcmagic.notebook.spending import cost_of, followed, quote_of
from hpcmagic.rendezvous import KeeperState

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session

HELD = ("starting", "ready", "fallen")  # states that are paid for
LOOK_S = 10.0  # how often one looks whether prices have changed
BUDGET_KEPT_S = 120.0  # it takes reading other sessions, and asking accounting
SILENT_S = 6.0  # a keeper beats every two


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of one session; None = not known, or there is no such thing.

    Attributes
    ----------
    state
        ``pending``, ``starting``, ``ready``, ``fallen`` or ``ended``; `reason` says why, in words.
    job
        The job's id; empty on this machine.
    spent, ceiling, rate_per_hour
        In `unit`; the ceiling is what it costs if it runs to its walltime. `price` is that of one unit.
    confirmed
        Whether `spent` is accounting's word, and no estimate.
    elapsed_s, left_s
        Since the job began, and until its walltime.
    idle_s
        For how much of `elapsed_s` no cell ran.
    busy
        Whether a cell runs or waits now, or data are on their way.
    balance, balance_whose
        What the account has left, in `unit`, and which one (``account alice-lab``).
    budget, budget_spent, budget_what
        What was allowed by `%budget`, what of it is spent, in `unit`; ``session`` or ``month``.
    idle_limit_s, idle_left_s
        After so long without a cell the session ends; until then, while it is idle.
    stale_s
        For how long nobody has said how things stand: the numbers go on by themselves; 0 = they are fresh.
    warning
        What the keeper, or the batch system, warns of.
    """

    session: str
    state: str
    reason: str = ""
    job: str = ""
    nodes: int = 0
    ranks: int = 0
    unit: str = ""
    spent: float | None = None
    rate_per_hour: float | None = None
    ceiling: float | None = None
    price: float | None = None
    currency: str = ""
    confirmed: bool = False
    elapsed_s: float = 0.0
    left_s: float | None = None
    idle_s: float | None = None
    busy: bool = False
    balance: float | None = None
    balance_whose: str = ""
    budget: float | None = None
    budget_spent: float | None = None
    budget_what: str = ""
    idle_limit_s: float | None = None
    idle_left_s: float | None = None
    stale_s: float = 0.0
    warning: str = ""


class Reader:
    """Reads one session again and again, cheaply: the batch system is asked by the shared poll, at its own pace."""

    def __init__(self) -> None:
        self._budget: Left | None = None
        self._budget_at_s = self._look_at_s = float("-inf")
        self._held_by: Quote | None = None  # the prices that the keeper's allowance was computed by
        self._over = False

    def read(self, session: Session) -> Reading:
        """Give how the session stands now."""
        session.seen.glance()
        keeper = session.last_word()
        status = session.seen.status(session.directory, session.request, keeper)
        quote = quote_of(session.directory, session.request)
        reading = Reading(
            session.name, status.state, status.reason, status.job_id if status.launcher == "slurm" else "",
            max(1, len(status.nodes)) if status.state in HELD else 0, status.ranks,
            elapsed_s=status.elapsed_s, left_s=status.left_s,
        )  # fmt: skip
        if quote is not None:
            reading = self._with_money(session, reading, quote)
        return _with_beat(session, reading, keeper)

    def _with_money(self, session: Session, reading: Reading, quote: Quote) -> Reading:
        """Add what it costs, and what is left."""
        cost = cost_of(
            session.directory, session.request, session.job, reading.state,
            elapsed_s=reading.elapsed_s, left_s=reading.left_s,
        )  # fmt: skip
        self.hold_budget(session, quote)
        if cost is not None:
            reading = replace(
                reading, spent=cost.spent, rate_per_hour=cost.rate_per_hour, ceiling=cost.ceiling, price=cost.price,
                currency=cost.currency, unit=cost.unit, confirmed=not cost.estimate,
            )  # fmt: skip
        balance = next(iter(balance_of(session, quote)), None)
        if balance is not None:
            reading = replace(reading, balance=quote.units.of(balance.left), balance_whose=balance.whose)
        if reading.state == "ended" and not self._over:  # its own job counts among those that are over by now
            self._over = True
            self.forget_budget()
        budget = self._standing(session, quote)
        if budget is not None and reading.spent is not None:
            spent = budget.spent + (0.0 if reading.state == "ended" else reading.spent)
            reading = replace(reading, budget=budget.limit, budget_spent=spent, budget_what=budget.what)
        return reading

    def _standing(self, session: Session, quote: Quote) -> Left | None:
        """Give the budget of which the least is left, looked at now and then: it takes reading other sessions."""
        now = time.monotonic()
        if now >= self._budget_at_s + BUDGET_KEPT_S:
            self._budget_at_s = now
            with contextlib.suppress(HpcMagicError):
                stands = budgets_of(session, quote, lazily=True)
                self._budget = min(stands, key=lambda one: one.left, default=None)
        return self._budget

    def hold_budget(self, session: Session, quote: Quote | None = None) -> None:
        """Tell the keeper anew how long the job may run, where the QOS's factor has changed, or nobody has yet.

        Its budget may have been written down before the job had begun, by what it would most likely get.

        Parameters
        ----------
        quote
            The session's, just read; None = look now and then whether prices have changed.
        """
        now = time.monotonic()
        if session.ended or now < self._look_at_s:
            return
        if quote is None:
            self._look_at_s = now + LOOK_S
            quote = quote_of(session.directory, session.request)
            if quote is not None and session.request.launcher != "local":
                quote = followed(session.directory, quote, session.elapsed_s())
        if quote is None or quote == self._held_by or session.elapsed_s() <= 0:
            return
        try:
            if session.name in known():
                hold(session, may_end=True)
        except HpcMagicError:
            self._look_at_s = now + LOOK_S
        else:
            self._held_by = quote

    def forget_budget(self) -> None:
        """Look at the budgets again the next time: one was just set."""
        self._budget_at_s = float("-inf")


def _with_beat(session: Session, reading: Reading, keeper: KeeperState) -> Reading:
    """Add what the keeper says every two seconds, and for how long nobody has said anything."""
    control = session.control
    if reading.state == "ended":
        return reading
    if control is None or reading.state not in HELD:
        return replace(reading, warning=keeper.warning)
    beat, silent_s = control.beat, control.silent_s()
    stale_s = max(session.seen.stale_s(), silent_s if silent_s > SILENT_S else 0.0)
    idle_left_s = beat.idle_left_s
    return replace(
        reading, idle_s=beat.idle_s if beat.ran_s else None, busy=beat.busy, stale_s=stale_s,
        idle_limit_s=session.request.idle_limit_s or None, idle_left_s=idle_left_s,
        warning=beat.warning or keeper.warning,
    )  # fmt: skip


def balance_of(session: Session, quote: Quote) -> list[Balance]:
    """Give what is left of the limits on billing that bind the session's account."""
    if session.request.launcher == "local":
        return []
    return [one for one in charges.BOOKS.balances(quote.account, quote.qos) if one.what == "billing"]


_readers: WeakKeyDictionary[Session, Reader] = WeakKeyDictionary()


def reader(session: Session) -> Reader:
    """Give the one that reads a session; it does not hold it."""
    return _readers.setdefault(session, Reader())


def reading(session: Session) -> Reading:
    """Give what the meter shows of a session now."""
    return reader(session).read(session)
