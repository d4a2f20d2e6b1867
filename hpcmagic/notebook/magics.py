"""The magics: parse a line, call one method of the session, show the answer. Nothing else."""

from __future__ import annotations

import argparse
import keyword
import time
from collections.abc import Sequence
from typing import Any

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from traitlets import Bool, Float

from hpcmagic.errors import BudgetSpent, CellError, DataError, HpcMagicError, ProfileError, SessionEnded
from hpcmagic.files import File
from hpcmagic.forms import did_you_mean
from hpcmagic.notebook import budget_line, frontend, meter_line, output, spending, start, steer_line
from hpcmagic.notebook.found import find_anywhere
from hpcmagic.notebook.options import (
    HelpAsked,
    OptionParser,
    chosen_resources,
    gather_parser,
    names_parser,
    remote_parser,
    scatter_parser,
)
from hpcmagic.notebook.perrank import choose_ranks
from hpcmagic.notebook.session import Session
from hpcmagic.notebook.syntax import check_syntax
from hpcmagic.notebook.timeout import require_time
from hpcmagic.notebook.verbs import HPC, VERBS
from hpcmagic.profiles import resolve
from hpcmagic.wire.messages import RunCell

MAGICS = {
    "line": ("remote", "push", "pull", "scatter", "gather", "hpc", "steer", "meter", "budget"),
    "cell": ("remote",),
}
CELL = remote_parser("%%remote")
LINE = remote_parser("%remote")
PUSH = names_parser("%push", "Send variables of the notebook to the ranks, under the same names.")
PULL = names_parser("%pull", "Fetch variables from the ranks: each becomes a PerRank here.")
SCATTER = scatter_parser()
GATHER = gather_parser()


@magics_class
class HpcMagics(Magics):
    """The magics of one notebook, and the session that it holds."""

    hint = Bool(
        True, help="Tell once below a local cell that is too large for this machine which `%%remote` line would fit."
    ).tag(config=True)
    hint_after_s = Float(60.0, help="A cell that takes longer, and computes, is too large …").tag(config=True)
    hint_memory = Float(0.7, help="… or one that fills this share of the memory here.").tag(config=True)
    meter = Bool(
        True, help="Show the visible meter by itself when a session is started, or when one comes back to it."
    ).tag(config=True)

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.held: dict[str, Session] = {}  # by name
        self.session_name: str | None = None

    @no_var_expand
    @cell_magic("remote")
    def remote_cell(self, line: str, cell: str) -> Any:
        """Run a cell on the ranks. `%%remote -h` shows the options."""
        try:
            options, rest = self.parsed(CELL, line)
        except HelpAsked as help_text:
            print(help_text)
            return None
        if rest:
            raise ProfileError(
                f"%%remote does not take {rest!r} on its line.",
                "Write the code below; `%%remote -h` shows the options.",
            )
        return self._remote(options, cell, first_line=2)

    @no_var_expand
    @line_magic("remote")
    def remote_line(self, line: str) -> Any:
        """Run an expression or a statement on the ranks. `%remote -h` shows the options."""
        try:
            options, rest = self.parsed(LINE, line)
        except HelpAsked as help_text:
            print(help_text)
            return None
        return self._remote(options, rest, first_line=1)

    @no_var_expand
    @line_magic
    def push(self, line: str) -> None:
        """Send variables of the notebook to the ranks. `%push -h` shows the options."""
        options = self._named(PUSH, line)
        if options is None:
            return
        values = self._values(options.names)  # before anything is started
        session = self._held()
        session.push(values, ranks=options.ranks)
        output.quiet(f"{', '.join(options.names)} → {output.ranks_in_words(session.chosen(options.ranks))}")

    @no_var_expand
    @line_magic
    def pull(self, line: str) -> Any:
        """Fetch variables from the ranks. `%pull -h` shows the options."""
        options = self._named(PULL, line)
        if options is None:
            return None
        pulled = self._held().pull(*options.names, ranks=options.ranks)
        self._bind(options.names, pulled if len(options.names) > 1 else (pulled,))
        return pulled

    @no_var_expand
    @line_magic
    def scatter(self, line: str) -> None:
        """Cut variables of the notebook over the ranks. `%scatter -h` shows the options."""
        options = self._named(SCATTER, line)
        if options is None:
            return
        if options.source is not None:
            values = dict.fromkeys(options.names, File(options.source))
        else:
            values = self._values(options.names)
        session = self._held()
        session.scatter(values, axis=options.axis)
        output.quiet(f"{', '.join(options.names)} cut over {output.count(session.size, 'rank')}")

    @no_var_expand
    @line_magic
    def gather(self, line: str) -> None:
        """Join shards from the ranks, and bind them here. `%gather -h` shows the options."""
        options = self._named(GATHER, line)
        if options is None:
            return
        if options.as_name is not None and len(options.names) > 1:
            raise ProfileError("`--as` names one variable, and several are gathered.", "Gather them one by one.")
        _require_name("--as", options.as_name)
        session = self._held()
        if options.target is not None:
            session.gather(*options.names, axis=options.axis, to=options.target)
            output.quiet(f"{', '.join(options.names)} → {options.target}")
            return
        joined = session.gather(*options.names, axis=options.axis)
        self._bind(
            [options.as_name or name for name in options.names], joined if len(options.names) > 1 else (joined,)
        )

    def _bind(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """Bind names here, and say what they were bound to before."""
        user_ns = self.shell.user_ns
        replaced = [f"{name} (was {_in_short(user_ns[name])})" for name in names if name in user_ns]
        user_ns.update(zip(names, values, strict=True))
        if replaced:
            output.quiet(f"{', '.join(replaced)}: replaced here by what came from the ranks")

    @no_var_expand
    @line_magic
    def hpc(self, line: str) -> None:
        """Look after sessions. `%hpc -h` shows the verbs."""
        verb, _, rest = line.strip().partition(" ")
        if verb in ("-h", "--help", "help"):
            print(HPC)
            return
        if verb not in VERBS:
            there = [*filter(None, VERBS)]
            mend = f"{did_you_mean(verb, there)}There are {', '.join(there)}."
            raise ProfileError(f"%hpc has no verb {verb!r}.", mend)
        rest = rest.strip()
        if rest in ("-h", "--help") and verb not in ("start", "vars", "doctor"):
            print("\n".join(known for known in HPC.splitlines() if known.startswith(f"%hpc {verb} ")))
            return
        try:
            VERBS[verb](self, rest)
        except HelpAsked as help_text:
            print(help_text)

    @no_var_expand
    @line_magic
    def steer(self, line: str) -> None:
        """Watch and steer the simulation that runs. `%steer -h` shows what it takes."""
        steer_line.steer(self, line)

    @no_var_expand
    @line_magic
    def budget(self, line: str) -> None:
        """Bound what this session, or a month, may cost. `%budget -h` shows what it takes."""
        budget_line.budget(self, line)

    @no_var_expand
    @line_magic("meter")
    def turn_meter(self, line: str) -> None:
        """Show the visible meter or take it away, and say the same as text. `%meter -h` shows what it takes."""
        meter_line.turn(self, line)

    def _remote(self, options: argparse.Namespace, source: str, first_line: int) -> Any:
        """Run source on the ranks; start the session if need be."""
        if options.dry_run:
            print(start.dry_run(options.session or self.session_name, **chosen_resources(options)), end="")
            return None
        _require_sense(options)
        cell = RunCell(source, f"cell {self._cell_number()}", first_line, bool(options.out))
        pushed, scattered = (self._values(_listed(names or "")) for names in (options.push, options.scatter))
        if options.ranks is not None and (resources := chosen_resources(options)):
            choose_ranks(options.ranks, resolve(resources).ntasks)
        session = self.ensure(options, cell)  # nothing is started for a line that cannot work
        if pushed:
            session.push(pushed, ranks=options.ranks)
        if scattered:
            session.scatter(scattered)
        if options.asynchronous:
            handle = session.send_cell(cell, options.ranks, options.timeout)
            if options.out:
                self.shell.user_ns[options.out] = handle
            return handle
        return self._run(options, session, cell)

    def _run(self, options: argparse.Namespace, session: Session, cell: RunCell) -> Any:
        """Run a cell to its end, and do what shall follow."""
        begun_s = time.monotonic()
        try:
            replies = session.run_cell(cell, options.ranks, options.timeout)
        finally:
            output.quiet(_quiet_line(session, options.ranks, time.monotonic() - begun_s))
        values = output.values(replies)
        if options.out:
            self.shell.user_ns[options.out] = values
        if options.gather:
            names = _listed(options.gather)
            joined = session.gather(*names)
            self._bind(names, joined if len(names) > 1 else (joined,))
        if options.local:
            here = self.shell.run_cell(cell.source)
            if not here.success:
                error = here.error_before_exec or here.error_in_exec
                raise CellError(
                    f"It ran on the ranks; here (`--local`) it raised {type(error).__name__}.",
                    "The error stands above; names that only the ranks have are fetched with `%pull`.",
                )
        return values

    def _cell_number(self) -> int:
        """Give the number that stands beside the cell that runs."""
        running = self.shell.displayhook.exec_result
        return int(getattr(running, "execution_count", None) or self.shell.execution_count)

    def ensure(self, options: argparse.Namespace, cell: RunCell | None) -> Session:
        """Give the session that the options mean; start it when there is none."""
        if cell is not None and check_syntax(cell) and options.local:  # this kernel's loop runs the magic itself
            raise ProfileError("`--local` cannot run a cell with a top-level `await` here.", "Leave `--local` out.")
        resources = chosen_resources(options)
        name = options.session or self.session_name or frontend.session_name()[0]
        session = self.held.get(name)
        if session is not None and self._is_alive(session, asked=bool(resources)):
            start.require_same(session.request, resolve(resources))
        else:
            session = self._started(name, options, resources)
        self.session_name = session.name
        return session

    def _started(self, name: str, options: argparse.Namespace, resources: dict[str, Any]) -> Session:
        """Start or pick up a session; one that the user stopped waiting for stays this notebook's."""
        try:
            with budget_line.taken_along(self, name):
                session = start.start(session=name, keep=options.keep, unasked=False, yes=options.yes, **resources)
        except HpcMagicError as error:
            if isinstance(error, BudgetSpent) or find_anywhere(name) is not None:
                self.session_name = name
            raise
        self.held[session.name] = session
        return session

    def _is_alive(self, session: Session, *, asked: bool) -> bool:
        """Whether a session that we hold still lives; if not, only who asks for resources gets another."""
        try:
            session.require_alive()
        except SessionEnded:
            if not asked or not session.ended:  # its job is held
                raise
            del self.held[session.name]
            return False
        return True

    def _held(self) -> Session:
        """Give the session of this notebook; start it like a bare `%%remote` when there is none."""
        return self.ensure(LINE.parse([]), None)

    def parsed(self, parser: OptionParser, line: str) -> tuple[argparse.Namespace, str]:
        """Give a line's options, values expanded, and what stands behind them."""
        tokens, rest = parser.split(line, self.shell.var_expand)
        return parser.parse(tokens), rest

    def _named(self, parser: OptionParser, line: str) -> argparse.Namespace | None:
        """Give a line's options, its names listed; None where it only asks for help."""
        try:
            # `;` silences the value: IPython reads it too
            options = parser.parse(parser.words(line.rstrip("; "), self.shell.var_expand))
        except HelpAsked as help_text:
            print(help_text)
            return None
        options.names = [name for text in options.names for name in _listed(text)]
        if not options.names:
            raise ProfileError(f"{parser.prog} needs the name of a variable.", f"Write e.g. `{parser.prog} x`.")
        return options

    def _values(self, names: list[str]) -> dict[str, Any]:
        """Give the notebook's variables of these names."""
        missing = [name for name in names if name not in self.shell.user_ns]
        if missing:
            raise DataError(
                f"{', '.join(f'`{name}`' for name in missing)} is not defined here.",
                "Bind it in this notebook first.",
            )
        return {name: self.shell.user_ns[name] for name in names}


def _document() -> None:
    """Have `%%remote?` and its like show what `-h` shows."""
    helps = {
        "remote_cell": CELL.format_help(), "remote_line": LINE.format_help(), "push": PUSH.format_help(),
        "pull": PULL.format_help(), "scatter": SCATTER.format_help(), "gather": GATHER.format_help(), "hpc": HPC,
        "budget": budget_line.HELP,
        "steer": steer_line.HELP, "turn_meter": meter_line.HELP,
    }  # fmt: skip
    for name, text in helps.items():
        function = getattr(HpcMagics, name)
        function.__doc__ = f"{function.__doc__}\n\n{text}"


_document()


def _require_sense(options: argparse.Namespace) -> None:
    """Refuse options of a cell that do not make sense."""
    _require_name("--out", options.out)
    require_time(options.timeout)
    if options.asynchronous and options.local:
        raise ProfileError("`-a` and `--local` do not go together.", "Leave one of them out.")
    if options.asynchronous and options.gather:
        raise ProfileError("`-a` and `--gather` do not go together.", "`%gather` when the cell is over.")


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _require_name(option: str, name: str | None) -> None:
    if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        raise ProfileError(f"{option} {name!r} is not a name for a variable.", f"Write e.g. `{option} result`.")


def _in_short(value: Any) -> str:
    """Name a value's type, and its shape if it tells one."""
    shape = getattr(value, "shape", None)
    return type(value).__qualname__ + (f" {shape}" if isinstance(shape, tuple) else "")


def _quiet_line(session: Session, ranks: str | None, elapsed_s: float) -> str:
    """Write the line under each remote cell: ranks × elapsed, the cost so far, when the job ends."""
    count = len(session.chosen(ranks))
    parts = [f"{output.count(count, 'rank')} × {output.clock(elapsed_s)}"]
    parts.append(spending.in_line(session) or f"{session.node_seconds / 3600:.2g} node-hours so far")
    left = session.left_s()
    if left is not None:
        parts.append(f"job {session.job.job_id} ends at {output.time_of_day(left)}, in {output.clock(left)}")
    elif session.request.launcher == "local":
        parts.append("on this machine")
    return " · ".join(parts)
