"""The options of the magics: parsed as sbatch's and the shell's are, errors in two lines."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hpcmagic.errors import ProfileError
from hpcmagic.forms import did_you_mean

Expand = Callable[[str], str]


class HelpAsked(Exception):  # not an error: `-h` was given
    """Somebody asked for help; holds the text."""


class OptionParser(argparse.ArgumentParser):
    """argparse, with errors of ours and no abbreviated options."""

    def __init__(self, prog: str, description: str, usage: str = "[options]") -> None:
        super().__init__(
            prog=prog, usage=f"{prog.replace('%', '%%')} {usage}", description=description,
            allow_abbrev=False, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        self.add_argument("-h", "--help", action="store_true", help="show this")

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the interpreter."""
        raise ProfileError(f"{self.prog}: {message}.", f"`{self.prog} -h` shows the options.")

    def parse(self, tokens: Sequence[str]) -> argparse.Namespace:
        """Parse tokens.

        Raises
        ------
        ProfileError
            An unknown or malformed option; the nearest is guessed.
        HelpAsked
            ``-h`` was among them.
        """
        if "-h" in tokens or "--help" in tokens:
            raise HelpAsked(self.format_help())
        try:
            namespace, unknown = self.parse_known_args(list(tokens))
        except argparse.ArgumentError as error:  # pragma: no cover  # exit_on_error is on: error() was called
            self.error(str(error))
        if unknown:
            self._refuse(unknown[0])
        return namespace

    def _refuse(self, token: str) -> NoReturn:
        option = token.partition("=")[0]
        known = [o for o in self._option_string_actions if o.startswith("--")]
        if not option.startswith("-"):
            raise ProfileError(f"{self.prog} does not take {token!r}.", f"`{self.prog} -h` shows what it takes.")
        guessed = did_you_mean(option, known)
        raise ProfileError(f"{self.prog} has no option {option!r}.", f"{guessed}`{self.prog} -h` shows all.")

    def takes_value(self, option: str) -> bool:
        """Whether a value belongs to an option, written as it stands on the line."""
        action = self._option_string_actions.get(option)
        return action is not None and action.nargs is None

    def long_options(self) -> list[str]:
        """Give the long form of every option, in the order of the help."""
        return [self.long_name(action.option_strings[0]) for action in self._actions if action.option_strings]

    def long_name(self, option: str) -> str:
        """Give the long form of an option; of what is none, itself."""
        action = self._option_string_actions.get(option)
        return option if action is None else action.option_strings[-1]

    def split(self, line: str, expand: Expand) -> tuple[list[str], str]:
        """Cut a line into its leading options, values expanded, and the rest as it was written.

        ``$name`` and ``{expr}`` are expanded in option values only.
        """
        tokens: list[str] = []
        rest = line.strip()
        while match := re.match(r"(--[A-Za-z][\w-]*)(=\s*|\s+|$)|(-[A-Za-z])(=\s*|\s*)", rest):
            name, behind = match[1] or match[3], match[2] or match[4] or ""
            rest = rest[match.end() :]
            if not behind.startswith("=") and not self.takes_value(name):
                if match[3] and rest and not behind:  # -Nx of a flag, or of nothing we know
                    name += rest.partition(" ")[0]
                    rest = rest[len(name) - 2 :].lstrip()
                tokens.append(name)
                continue
            value, rest = self._first_word(name, rest)
            tokens.append(f"{name}={expand(value)}" if match[1] else f"{name}{expand(value)}")
        return tokens, rest

    def words(self, line: str, expand: Expand) -> list[str]:
        """Cut a line of names and options, in any order, as `split` cuts the options before a cell's code."""
        words: list[str] = []
        while line := line.strip():
            options, line = self.split(line, expand)
            name, _, line = line.partition(" ")
            words += [*options, name] if name else options
        return words

    def _first_word(self, option: str, text: str) -> tuple[str, str]:
        """Cut the first word off, quotes and braces kept together."""
        match = re.match(r"""(?:\{[^}]*\}|[^\s"'{]|\{|"[^"]*"|'[^']*')+""", text)
        if match is None and text[:1] in ("'", '"'):
            raise _unclosed(option, text)
        if match is None or re.match(r"--?[A-Za-z]", text):
            raise ProfileError(
                f"{self.prog}: {option} lacks its value.",
                f"Write it behind the option; `{self.prog} -h` shows its form.",
            )
        word, rest = match[0], text[match.end() :]
        if rest[:1] in ("'", '"'):
            raise _unclosed(option, text)
        return re.sub(
            r"""(\{[^}]*\})|"([^"]*)"|'([^']*)'""", lambda m: m[1] or m[2] or m[3] or "", word
        ), rest.lstrip()


def _unclosed(option: str, text: str) -> ProfileError:
    return ProfileError(f"The quote behind {option} is never closed: {' '.join(text.split())[:60]}.", "Close it.")


def add_resources(parser: OptionParser) -> None:
    """Add the options that ask for resources: SLURM's own names and forms."""
    group = parser.add_argument_group("resources (SLURM's names and forms)")
    for flags, metavar, text in (
        (("-N", "--nodes"), "N", "nodes"),
        (("-n", "--ntasks"), "N", "ranks in all"),
        (("--ntasks-per-node",), "T", "ranks a node"),
        (("-c", "--cpus-per-task"), "C", "CPUs a rank"),
        (("--mem",), "16G", "memory a node"),
        (("--gpus-per-node",), "G", "GPUs a node, of a type as in a100:2"),
        (("-t", "--time"), "1:00:00", "walltime"),
        (("-p", "--partition"), "P", "partition"),
        (("-A", "--account"), "A", "account that pays"),
        (("--qos",), "Q", "quality of service"),
        (("--constraint",), "C", "node features"),
        (("--profile",), "NAME", "profile to start from"),
        (("--session",), "NAME", "session's name; stays the notebook's for later cells"),
        (("--launcher",), "local|slurm", "where to run; without it: SLURM where it answers"),
        (
            ("--no-client-limit",),
            "20",
            "end after so long (minutes, H:MM:SS or off) with no notebook and no cell",
        ),
        (("--idle-limit",), "30", "end after so long (minutes, H:MM:SS or off) in which no cell ran"),
    ):
        group.add_argument(*flags, metavar=metavar, help=text)
    group.add_argument("--keep", action="store_true", help="let the session run on when an unattended kernel exits")
    group.add_argument("--dry-run", action="store_true", help="show the exact script and its cost, submit nothing")
    group.add_argument("--yes", action="store_true", help="submit without asking what may cost a lot (confirm_above)")


RESOURCE_NAMES = (
    "nodes", "ntasks", "ntasks_per_node", "cpus_per_task", "mem", "gpus_per_node", "time", "partition", "account",
    "qos", "constraint", "profile", "launcher", "no_client_limit", "idle_limit",
)  # fmt: skip


def chosen_resources(options: argparse.Namespace) -> dict[str, Any]:
    """Give the options that ask for resources, those that were given."""
    return {name: value for name in RESOURCE_NAMES if (value := getattr(options, name)) is not None}


def remote_parser(prog: str) -> OptionParser:
    """Make the parser of `%%remote` and `%remote`."""
    parser = OptionParser(
        prog,
        "Run a cell on the ranks of this notebook's session; start the session when there is none.\n"
        "The last value of each rank becomes Out[n]; what ranks print is folded, lowest rank first.\n"
        "On every rank: rank, size, comm (mpi4py's COMM_WORLD, or None without MPI).",
    )
    add_resources(parser)
    cell = parser.add_argument_group("the cell")
    cell.add_argument("-r", "--ranks", metavar="0,2-3", help="run on these ranks only")
    cell.add_argument("-a", "--async", dest="asynchronous", action="store_true", help="do not wait: give a handle")
    cell.add_argument("-o", "--out", metavar="NAME", help="bind the value (a PerRank) to a name here")
    cell.add_argument("--push", metavar="a,b", help="first send these variables of the notebook to the ranks")
    cell.add_argument("--scatter", metavar="x", help="first cut these over the ranks: each gets its rows")
    cell.add_argument("--gather", metavar="y", help="afterwards join these from the ranks, and bind them here")
    cell.add_argument(
        "--timeout", metavar="S", type=float, help="interrupt the cell when it has run for so many seconds"
    )
    cell.add_argument("--local", action="store_true", help="run the cell here as well, after the ranks")
    return parser


def names_parser(prog: str, description: str) -> OptionParser:
    """Make the parser of `%push` and `%pull`."""
    parser = _takes_names(prog, description)
    parser.add_argument("-r", "--ranks", metavar="0,2-3", help="these ranks only")
    return parser


def scatter_parser() -> OptionParser:
    """Make the parser of `%scatter`."""
    parser = _takes_names(
        "%scatter",
        "Cut variables over the ranks, in order: each rank then holds its own rows under the same name.\n"
        "Arrays, tables (pandas, Polars, Arrow), lists and other sequences.",
    )
    parser.add_argument("--axis", metavar="K", type=int, default=0, help="cut arrays along this axis (default 0)")
    parser.add_argument(
        "--from", dest="source", metavar="FILE[:/path]",
        help="each rank reads its own rows of this file: .npy, HDF5, Zarr, Parquet",
    )  # fmt: skip
    return parser


def gather_parser() -> OptionParser:
    """Make the parser of `%gather`."""
    parser = _takes_names(
        "%gather",
        "Join what the ranks hold under a name, in order, and bind it here.\n"
        "What was scattered comes back as it was cut.",
    )
    parser.add_argument("--axis", metavar="K", type=int, help="join arrays along this axis; else as they were cut")
    parser.add_argument("--as", dest="as_name", metavar="NAME", help="bind it here under another name")
    parser.add_argument(
        "--to", dest="target", metavar="FILE[:/path]",
        help="the ranks write it into this file, each its own rows; nothing comes here",
    )  # fmt: skip
    return parser


def _takes_names(prog: str, description: str) -> OptionParser:
    parser = OptionParser(prog, description, "NAME … [options]")
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of variables")
    return parser
