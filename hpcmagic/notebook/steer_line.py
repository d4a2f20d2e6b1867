"""`%steer`: parse the line, show the panel or do what it says, show the answer."""

from __future__ import annotations

import ast
import keyword
import re
from typing import TYPE_CHECKING, Any

from hpcmagic.errors import ProfileError
from hpcmagic.forms import did_you_mean
from hpcmagic.notebook import frontend, output, panel, start, widgets
from hpcmagic.notebook.found import find_anywhere, no_session
from hpcmagic.notebook.options import HelpAsked, OptionParser
from hpcmagic.notebook.session import Session
from hpcmagic.notebook.verbs import here

if TYPE_CHECKING:
    from hpcmagic.notebook.magics import HpcMagics

VERBS = ("pause", "step", "resume", "stop")
HELP = """\
%steer                     the simulation that runs: the live panel; without anywidget a picture, else text
%steer dt=5e-4 nu=0.1      set parameters, all at the same step
%steer pause               have all ranks wait before the same step
%steer step                do one step, then wait
%steer resume              go on
%steer stop                end the loop on all ranks
%steer --text              its state as text
%steer --session NAME …    of another session than this notebook's"""
SETTING = re.compile(r"""(?P<name>[^\s=]+)\s*=\s*(?P<value>"[^"]*"|'[^']*'|[^\s"']+)(?:\s+|$)""")


def _parser() -> OptionParser:
    parser = OptionParser("%steer", "Watch and steer the simulation that runs in the session.")
    parser.add_argument("--session", metavar="NAME", help="another session than this notebook's")
    parser.add_argument("--text", action="store_true", help="its state as text")
    return parser


PARSER = _parser()


def steer(magics: HpcMagics, line: str) -> None:
    """Do what the line says.

    Raises
    ------
    ProfileError
        The line cannot be read, or there is no session.
    SteerError
        There is no simulation, or it refuses.
    """
    try:
        options, rest = magics.parsed(PARSER, line)
    except HelpAsked:
        print(HELP)
        return
    rest = rest.rstrip("; ")
    values = {} if rest in ("", *VERBS) else settings(magics.shell.var_expand(rest))
    session = _session(magics, options.session)
    if rest in VERBS:
        print(f"{rest} {getattr(session.steer, rest)()}")
    elif values:
        print(session.steer.set(**values))
    elif output.in_notebook() and not frontend.unattended() and not options.text:
        panel.show(session)
        if not widgets.installed():
            output.quiet(
                "A picture, drawn anew every two seconds; the live panel needs `pip install 'hpcmagic[widgets]'`."
            )
    else:
        print(session.steer)


def settings(text: str) -> dict[str, Any]:
    """Read ``name=value …``: Python's literals, and plain words as texts.

    >>> settings("dt=5e-4 on=True scheme=upwind title='two words'")
    {'dt': 0.0005, 'on': True, 'scheme': 'upwind', 'title': 'two words'}

    Raises
    ------
    ProfileError
        It is none.
    """
    values: dict[str, Any] = {}
    at = 0
    while at < len(text):
        match = SETTING.match(text, at)
        if match is None:
            word = text[at:].split(maxsplit=1)[0]
            raise ProfileError(
                f"%steer does not take {word!r}.",
                f"{did_you_mean(word, VERBS)}Write e.g. `%steer dt=5e-4`, or one of {', '.join(VERBS)}; "
                "`%steer -h` shows all.",
            )
        name = match["name"]
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ProfileError(f"{name!r} is not a name of a parameter.", "Write e.g. `%steer dt=5e-4`.")
        if name in values:
            raise ProfileError(f"{name} is set twice on one line.", "Leave one of them out.")
        values[name] = _literal(match["value"])
        at = match.end()
    return values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _session(magics: HpcMagics, name: str | None) -> Session:
    """Give the session that is meant; none is started for this."""
    if name is None:
        return here(magics)
    if name not in magics.held:
        if find_anywhere(name) is None:
            raise no_session(name)
        magics.held[name] = start.attach(name)
    return magics.held[name]
