"""What Tab offers on the lines of the magics: options and their values, verbs, sessions, ranks, variables.

One matcher for all (IPython's matcher API): it cuts a line as the magic would, and nothing else is offered there.
Within the code behind `%remote`, and where a file's path is typed, IPython does what it does.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from IPython.core.completer import SimpleCompletion, context_matcher

from hpcmagic.errors import HpcMagicError
from hpcmagic.launch.offers import OFFERS, Offers
from hpcmagic.notebook import meter_line, steer_line
from hpcmagic.notebook.found import ended_names, session_names
from hpcmagic.notebook.handles import Cell
from hpcmagic.notebook.options import (
    OptionParser,
    add_resources,
    gather_parser,
    names_parser,
    remote_parser,
    scatter_parser,
)
from hpcmagic.notebook.variables import variables_of
from hpcmagic.notebook.verbs import VERBS, vars_parser
from hpcmagic.profiles import LAUNCHERS, profile_names
from hpcmagic.wire.pending import Pending

if TYPE_CHECKING:
    from hpcmagic.notebook.magics import HpcMagics
    from hpcmagic.notebook.session import Session

MAGIC = re.compile(r"(?:[\w., \t]+=)?\s*(?P<magic>%%?[a-z]+)\s+(?P<rest>.*)", re.DOTALL)
ELSEWHERE: tuple[str, list[str]] = ("", [])  # not on a line of ours, or within code: IPython offers what it does
OF_FILES = ("--from", "--to")  # whose values IPython completes: paths
ASK_RANKS_S = 0.5  # ranks that are idle answer at once
MOST_RANKS = 64  # of more ranks none is offered: nobody would read the list


def _start_parser() -> OptionParser:
    parser = OptionParser("%hpc start", "")
    add_resources(parser)
    return parser


class Completion:
    """Completes the lines of one notebook's magics."""

    def __init__(self, magics: HpcMagics, offers: Offers = OFFERS) -> None:
        self.magics = magics
        self._offers = offers
        self._on_ranks: tuple[str, int, list[str]] = ("", -1, [])  # session, requests made when it was asked, names
        self._parsers = {
            "%%remote": remote_parser("%%remote"), "%remote": remote_parser("%remote"),
            "%push": names_parser("%push", ""), "%pull": names_parser("%pull", ""),
            "%scatter": scatter_parser(), "%gather": gather_parser(),
            "%hpc start": (asking := _start_parser()), "%hpc doctor": asking, "%hpc vars": vars_parser(),
            "%steer": steer_line.PARSER, "%meter": meter_line.PARSER,
        }  # fmt: skip
        self._names: dict[str, Callable[[], Iterable[str]]] = {
            "%push": self._here, "%scatter": self._here, "%pull": self._there, "%gather": self._there,
            "%steer": lambda: steer_line.VERBS, "%meter": lambda: meter_line.WORDS,
        }  # fmt: skip
        self._values: dict[str, Callable[[], Iterable[str]]] = {
            "--profile": profile_names,
            "--launcher": lambda: LAUNCHERS,
            "--session": session_names,
            "--ranks": self._ranks,
            "--push": self._here,
            "--scatter": self._here,
            "--gather": self._there,
            **{f"--{what}": self._asked(what) for what in ("partition", "account", "qos", "constraint")},
        }
        self._arguments: dict[str, Callable[[], Iterable[str]]] = {
            "stop": lambda: [*session_names(), "--orphans"],
            "attach": lambda: [*session_names(), *ended_names()],
            "cancel": self._cells,
            "log": self._ranks,
            "hint": lambda: ("on", "off"),
        }

    @context_matcher(identifier="hpcmagic")  # type: ignore[untyped-decorator]  # IPython gives it no types
    def match(self, context: Any) -> Any:
        """Give what fits at the cursor, in IPython's form."""
        line = context.full_text.split("\n")[context.cursor_line][: context.cursor_position]
        begun, choices = found = self.choices(line, first_line=context.cursor_line == 0)
        fitting = list(dict.fromkeys(choice for choice in choices if choice.startswith(begun)))
        if not fitting and found is not ELSEWHERE:
            fitting = [begun]  # what stands there already: instead of nothing IPython would offer Python's names
        return {
            "completions": [SimpleCompletion(text=choice, type="param") for choice in fitting],
            "matched_fragment": begun,
            "suppress": bool(fitting),
            "ordered": True,
        }

    def choices(self, line: str, *, first_line: bool = True) -> tuple[str, list[str]]:
        """Give the word that is begun at the end of a line, and all that may stand in its place."""
        match = MAGIC.fullmatch(line)
        if match is None or (match["magic"].startswith("%%") and not first_line):
            return ELSEWHERE
        magic, rest = match["magic"], match["rest"]
        try:
            if magic == "%hpc":
                return self._of_hpc(rest)
            return self._of_options(magic, rest) if magic in self._parsers else ELSEWHERE
        except (HpcMagicError, OSError):  # of a profile, of a session: it is told when somebody uses it
            return "", []

    def _of_hpc(self, rest: str) -> tuple[str, list[str]]:
        verb, blank, behind = rest.partition(" ")
        if not blank:
            return verb, [*filter(None, VERBS), "--help"]
        if f"%hpc {verb}" in self._parsers:
            return self._of_options(f"%hpc {verb}", behind.lstrip())
        if verb not in self._arguments or " " in behind.strip():
            return behind.rpartition(" ")[2], ["-h"] if verb in VERBS and not behind.strip(" -h") else []
        return behind.lstrip(), list(self._arguments[verb]()) or ["-h"]

    def _of_options(self, magic: str, rest: str) -> tuple[str, list[str]]:
        """Complete an option, the value of one, or a name."""
        parser = self._parsers[magic]
        *words, begun = rest.split(" ")
        words = [word for word in words if word]
        open_option = ""
        for word in words:
            if not open_option and not word.startswith("-") and magic == "%remote":
                return ELSEWHERE  # its code
            open_option = word if not open_option and parser.takes_value(word) else ""
        if open_option:
            return self._value(parser, open_option, begun)
        if glued := re.fullmatch(r"(--[\w-]+)=(.*)|(-[A-Za-z])(.+)", begun):
            return self._value(parser, glued[1] or glued[3], glued[2] if glued[1] else glued[4])
        if magic == "%remote" and begun and not begun.startswith("-"):
            return ELSEWHERE
        if begun.startswith("-") or magic not in self._names:
            short = [begun] if parser.long_name(begun) != begun else []
            return begun, [option for option in short + parser.long_options() if option not in words]
        return _last(begun), [name for name in self._names[magic]() if name not in words]

    def _value(self, parser: OptionParser, option: str, begun: str) -> tuple[str, list[str]]:
        name = parser.long_name(option)
        if name not in self._values:
            return ELSEWHERE if name in OF_FILES else (begun, [])
        several = name in ("--push", "--scatter", "--gather", "--ranks", "--partition")
        return _last(begun, "-" if name == "--ranks" else "") if several else begun, list(self._values[name]())

    def _asked(self, what: str) -> Callable[[], Iterable[str]]:
        return lambda: self._offers.names(what)

    def _here(self) -> list[str]:
        """Give the names of this notebook's variables."""
        shell = self.magics.shell
        bound = {name: value for name, value in shell.user_ns.items() if name not in shell.user_ns_hidden}
        return sorted(
            name
            for name, value in bound.items()
            if not name.startswith("_") and not issubclass(type(value), types.ModuleType)  # runs no code of theirs
        )

    def _session(self) -> Session | None:
        return self.magics.held.get(self.magics.session_name or "")

    def _there(self) -> list[str]:
        """Give the names of the ranks' variables, as they were when they were asked last while a cell runs."""
        session = self._session()
        if session is None or session.control is None:
            return []
        name, made, names = self._on_ranks
        if (name, made) != (session.name, Pending.made) and not session.running_cells():
            names = variables_of(session.control, range(session.size), wait_s=ASK_RANKS_S).names()
            self._on_ranks = session.name, Pending.made, names
        return names if session.name == self._on_ranks[0] else []

    def _ranks(self) -> list[str]:
        session = self._session()
        return [] if session is None or session.size > MOST_RANKS else [str(rank) for rank in range(session.size)]

    def _cells(self) -> list[str]:
        """Give the handles of cells that are not over, and their numbers."""
        shell, session = self.magics.shell, self._session()
        handles = {name: value for name, value in shell.user_ns.items() if issubclass(type(value), Cell)}
        named = [name for name, cell in handles.items() if not name.startswith("_") and not cell.done()]
        return named + [str(place) for place, cell in enumerate(session.cells if session else ()) if not cell.done()]


def _last(begun: str, also: str = "") -> str:
    """Give what is begun behind the last comma."""
    return re.split(f"[,{re.escape(also)}]", begun)[-1]
