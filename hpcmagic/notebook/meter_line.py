"""`%meter`: show the visible meter or take it away; and the same facts in a few lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcmagic.cost import S_PER_HOUR, amount
from hpcmagic.errors import ProfileError
from hpcmagic.notebook import meter, output, readings, widgets
from hpcmagic.notebook.options import HelpAsked, OptionParser
from hpcmagic.notebook.output import clock, count
from hpcmagic.notebook.readings import Reading

if TYPE_CHECKING:
    from hpcmagic.notebook.magics import HpcMagics

WORDS = ("on", "off")
HELP = """\
%meter           what this notebook's sessions cost, and how long they last; the visible meter, if it is hidden
%meter off       take the visible meter away; none comes by itself in this kernel
%meter on        have it again

For good, in IPython's configuration: c.HpcMagics.meter = False"""
PARSER = OptionParser("%meter", "The visible meter: state, cost, time left, idle waste.")


def turn(magics: HpcMagics, line: str) -> None:
    """Do what the line says.

    Raises
    ------
    ProfileError
        It takes no such word.
    """
    try:
        _, rest = magics.parsed(PARSER, line)
    except HelpAsked:
        print(HELP)
        return
    word = rest.strip("; ")
    if word not in ("", *WORDS):
        raise ProfileError(f"%meter does not take {word!r}.", "Write `%meter on`, `%meter off`, or `%meter` alone.")
    if word == "off":
        magics.meter = False
        meter.hide()
        print("No meter is shown in this notebook; `%meter on` shows it again.")
        return
    magics.meter = True
    held = list(magics.held.values())
    for session in held:
        if widgets.can_be_shown() and not session.ended:
            meter.show(session, anew=word == "on")
    told = [*map(readings.reading, held), *meter.others(magics.held)]
    print("\n\n".join(map(in_words, told)) or "This notebook has no session. `%hpc` lists yours.")
    if held and output.in_notebook() and not widgets.installed():
        output.quiet("The visible meter needs anywidget: `pip install 'hpcmagic[widgets]'`.")


def in_words(reading: Reading) -> str:
    """Say in two or three lines, and in one more if need be, what the meter shows.

    >>> print(in_words(Reading("waves", "ready", ranks=4, nodes=1, unit="core-hours", spent=0.5, rate_per_hour=4.0,
    ...                        elapsed_s=450.0, idle_s=225.0)))
    waves: ready, 4 ranks on this machine, for 7 min 30 s
    0.5 core-hours spent, 4 an hour
    idle waste: 0.25 core-hours, 3 min 45 s (50%)
    """
    lines = [_standing(reading), _money(reading), _idle(reading), _stale(reading), reading.warning]
    return "\n".join(filter(None, lines))


def _standing(one: Reading) -> str:
    on = f" on {count(one.nodes, 'node')}" if one.nodes else ""
    where = f"{on}, job {one.job}" if one.job else " on this machine"
    parts = [f"{one.session}: {one.state}", f"{count(one.ranks, 'rank')}{where}"]
    if one.left_s is not None and one.state != "ended":
        until = f", until {output.time_of_day(one.left_s)}" if one.state != "pending" else ""
        parts.append(f"{clock(int(one.left_s))} left{until}")
    elif one.elapsed_s > 0:
        parts.append(f"for {clock(int(one.elapsed_s))}")
    said = ", ".join(parts)
    return f"{said}: {one.reason}" if one.reason else said


def _money(one: Reading) -> str:
    parts = []
    if one.spent is not None:
        money = "" if one.price is None else f" ({amount(one.spent * one.price)} {one.currency}".rstrip() + ")"
        estimate = " by accounting" if one.confirmed else ""
        parts.append(f"{amount(one.spent)} {one.unit}{money} spent{estimate}")
    if one.rate_per_hour is not None and one.state != "ended":
        parts.append(f"{amount(one.rate_per_hour)} an hour")
        if one.ceiling is not None:
            parts.append(f"at most {amount(one.ceiling)} by its walltime")
    if one.balance is not None:
        parts.append(f"{one.balance_whose or 'the account'} has {amount(one.balance)} left")
    if one.budget is not None:
        left = max(0.0, one.budget - (one.budget_spent or 0.0))
        parts.append(f"budget of the {one.budget_what or 'session'}: {amount(left)} of {amount(one.budget)} left")
    return ", ".join(parts)


def _idle(one: Reading) -> str:
    parts = []
    if one.idle_s is not None:
        rate = one.rate_per_hour
        paid = "" if rate is None else f"{amount(one.idle_s * rate / S_PER_HOUR)} {one.unit}, "
        share = f" ({min(100.0, 100 * one.idle_s / one.elapsed_s):.0f}%)" if one.elapsed_s > 0 else ""
        parts.append(f"idle waste: {paid}{clock(int(one.idle_s))}{share}")
    if one.idle_left_s is not None and one.state != "ended":
        parts.append(f"ends in {clock(int(one.idle_left_s))} if no cell runs")
    return ", ".join(parts)


def _stale(one: Reading) -> str:
    if one.stale_s <= 0:
        return ""
    return f"stale since {output.time_of_day(-one.stale_s)}: SLURM is not heard; what stands here is estimated"
