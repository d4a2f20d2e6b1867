"""Will a running cell be over before its job is? By how long the same cell took before, or by the pace it reports.

same source, earlier            ─┐
steps of its simulation, of all ─┼─► when it will be over ─► later than the job ends: said once
a bar of progress: 45%          ─┘
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from hpcmagic.notebook.output import clock

if TYPE_CHECKING:
    from hpcmagic.notebook.handles import Cell
    from hpcmagic.notebook.session import Session

REMEMBERED = 500  # cells of this kernel
SEEN_S = 20.0  # pace is believed after so long …
SEEN_SHARE = 0.02  # … and so much of the way
PACE_S = 15.0  # how often a simulation is asked how far it is
SPARE = 1.02  # … and said when it is this much too long
PERCENT = re.compile(r"(?<![\d.])(\d{1,3}(?:\.\d+)?)\s?%")

_took: OrderedDict[bytes, float] = OrderedDict()  # seconds, by source


def took(source: str) -> float | None:
    """Give how long this very cell took when it ran last in this kernel."""
    return _took.get(_key(source))


def remember(source: str, elapsed_s: float) -> None:
    """Note how long a cell took that came to its end."""
    key = _key(source)
    _took.pop(key, None)
    _took[key] = elapsed_s
    while len(_took) > REMEMBERED:
        _took.popitem(last=False)


def _key(source: str) -> bytes:
    return blake2b(source.encode(errors="surrogatepass"), digest_size=16).digest()


def percent(text: str) -> float | None:
    """Give the share that a bar of progress shows; None where there is none.

    >>> percent("epoch 3:  45%|####      | 45/100 [00:10<00:12]"), percent("no bar")
    (0.45, None)
    """
    found = PERCENT.search(text)
    share = float(found[1]) / 100 if found else 0.0
    return share if 0 < share <= 1 else None


@dataclass(slots=True)
class Fitting:
    """Foresees the end of one cell.

    Parameters
    ----------
    began_s
        When it began, on the monotonic clock of all methods.
    before_s
        How long the same cell took before; None = it did not run yet.
    """

    began_s: float
    before_s: float | None = None
    said: bool = False
    _first: dict[str, tuple[float, float]] = field(default_factory=dict)  # by what tells it: when, share
    _last: dict[str, tuple[float, float]] = field(default_factory=dict)

    def note(self, what: str, now_s: float, share: float) -> None:
        """Take what share of the way the cell says it has gone."""
        first = self._first.get(what)
        if first is None or share < self._last[what][1]:  # another bar
            self._first[what] = (now_s, share)
        self._last[what] = (now_s, share)

    def paced_s(self, now_s: float) -> float | None:
        """Give the seconds until the cell is over, by the pace that it reports; None = it reports none yet."""
        ends = []
        for what, (first_s, before) in self._first.items():
            last_s, share = self._last[what]
            if last_s - first_s >= SEEN_S and share - before >= SEEN_SHARE:
                ends.append(last_s + (1 - share) * (last_s - first_s) / (share - before) - now_s)
        return max(0.0, *ends) if ends else None

    def warning(self, now_s: float, left_s: float | None, ends: str) -> str:
        """Say, once, that the job ends before the cell is over; else nothing.

        Parameters
        ----------
        left_s
            Until the job ends; None = nothing ends it.
        ends
            What ends it, and how it can be given more, in words.
        """
        if left_s is None or self.said:
            return ""
        paced_s = self.paced_s(now_s)
        if paced_s is not None:
            foreseen_s, why = paced_s, f"at this pace the cell takes {clock(paced_s)} more"
        elif self.before_s is not None:
            foreseen_s = self.before_s - (now_s - self.began_s)
            why = f"the last time this cell took {clock(self.before_s)}"
        else:
            return ""
        if foreseen_s <= left_s * SPARE:
            return ""
        self.said = True
        return f"{why}, and {ends} in {clock(left_s)}"


class Foresight:
    """Looks, while a cell runs, whether it will be over before its session's job ends, by walltime or budget.

    Parameters
    ----------
    began_s
        When it began, on the monotonic clock of `look`.
    """

    def __init__(self, session: Session, cell: Cell, began_s: float) -> None:
        self._session, self._cell, self._rank = session, cell, cell.ranks[0]
        self.fitting = Fitting(began_s, took(cell.source))
        self._ask_at_s = began_s
        self._told: dict[int, dict[str, Any]] = {}

    def look(self, now_s: float, partial: str = "") -> str:
        """Give the warning, once; else nothing.

        Parameters
        ----------
        partial
            What stands in the newest line of its output, a bar of progress perhaps.
        """
        left_s, ends = self._session.ends()
        if left_s is None or self.fitting.said:
            return ""
        share = percent(partial)
        if share is not None:
            self.fitting.note("bar", now_s, share)
        else:
            self._look_at_steps(now_s)
        return self.fitting.warning(now_s, left_s, ends)

    def _look_at_steps(self, now_s: float) -> None:
        """Take what the rank has answered meanwhile, and ask it again now and then."""
        told = self._told.pop(self._rank, {})
        if told.get("alive") and told.get("cell") == self._cell.id and told.get("steps"):
            self.fitting.note("steps", now_s, told["step"] / told["steps"])
        if now_s >= self._ask_at_s:
            self._ask_at_s = now_s + PACE_S
            self._told = self._session.control_path().simulations([self._rank])
