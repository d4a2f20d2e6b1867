"""`%budget`: parse the line, set what may be spent or take it away, show how it stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hpcmagic.cost import amount
from hpcmagic.notebook import frontend
from hpcmagic.notebook.budget import checked, known, remember
from hpcmagic.notebook.found import find_anywhere, find_ended
from hpcmagic.notebook.lifespan import in_words, own_name, set_budget, set_month, waits
from hpcmagic.notebook.options import HelpAsked, OptionParser
from hpcmagic.notebook.verbs import here

if TYPE_CHECKING:
    from hpcmagic.notebook.magics import HpcMagics

HELP = """\
%budget                    what may be spent, and what is
%budget 20                 this notebook's session may cost 20 units at most, its jobs so far included; then it ends
%budget off                no bound
%budget 200 --month        what all your sessions may cost in a month; those that run count with all they may cost
%budget off --month        no bound on the month"""


def _parser() -> OptionParser:
    parser = OptionParser("%budget", "Bound what this session, or a month, may cost.")
    parser.add_argument("limit", nargs="?", help="units of cost, or `off`")
    parser.add_argument("--month", action="store_true", help="of all your sessions in a month")
    return parser


PARSER = _parser()


def budget(magics: HpcMagics, line: str) -> None:
    """Do what the line says.

    Raises
    ------
    ProfileError
        The line cannot be read.
    BudgetSpent
        What is allowed is spent already.
    """
    try:
        options = PARSER.parse(magics.shell.var_expand(line).rstrip("; ").split())
    except HelpAsked:
        print(HELP)
        return
    limit = None if (options.limit or "").lower() == "off" else options.limit
    if limit is not None:
        checked(limit)
    if options.month:
        print(set_month("" if options.limit is None else limit))
        return
    name = magics.session_name or (own_name() if options.limit is not None else frontend.session_name()[0])
    held = magics.held.get(name)
    lives = held is not None and not held.ended
    found = None if lives else find_anywhere(name)
    there = found is not None and not found.half and not found.ended()
    queued = found if there and waits(found) else None
    session = here(magics, name) if lives or (there and queued is None) else None
    print(in_words(name, session) if options.limit is None else set_budget(name, limit, session, queued))


@contextmanager
def taken_along(magics: HpcMagics, name: str) -> Iterator[None]:
    """Let a budget that was set before the notebook's first session bind the one that begins in here by another name.

    If the notebook has had a session, its budget is that one's, and the new one has none: that is said.
    """
    own = magics.session_name or frontend.session_name()[0]
    budgets = known()
    mine = None if own == name or name in budgets else budgets.get(own)
    if mine is None or find_anywhere(name) is not None:
        yield
        return
    if mine.spent or own in magics.held or find_anywhere(own) is not None or find_ended(own) is not None:
        print(f"Session {name} has no budget: the {amount(mine.limit)} allowed are session {own}'s.")
        yield
        return
    print(f"The budget of {amount(mine.limit)} that was set for this notebook binds session {name}.")
    remember(name, mine)
    try:
        yield
    except BaseException:
        if find_anywhere(name) is None:  # nothing was begun
            remember(name, None)
        raise
    remember(own, None)
