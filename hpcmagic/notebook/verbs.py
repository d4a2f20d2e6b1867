"""The verbs of `%hpc`: parse what stands behind, call one method, show the answer."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hpcmagic.errors import LaunchError, ProfileError
from hpcmagic.notebook import frontend, meter, outgrown, output, start
from hpcmagic.notebook.bill import bill
from hpcmagic.notebook.causes import tail, whole_story
from hpcmagic.notebook.doctor import examine
from hpcmagic.notebook.found import ended_names, find_anywhere, find_ended, no_session, sessions, stop_found
from hpcmagic.notebook.handles import Cell
from hpcmagic.notebook.lifespan import extend_queued, waits
from hpcmagic.notebook.options import HelpAsked, OptionParser, add_resources, chosen_resources
from hpcmagic.notebook.orphans import orphans
from hpcmagic.notebook.perrank import choose_ranks
from hpcmagic.notebook.progress import nbytes_in_words
from hpcmagic.notebook.session import Session
from hpcmagic.notebook.status import Status
from hpcmagic.profiles import every

if TYPE_CHECKING:
    from hpcmagic.notebook.magics import HpcMagics

JUST_MADE_S = 60.0
PAST_SHOWN = 8  # ended sessions that are named
CELLS_SHOWN = 20  # of a session that one comes back to
HPC = """\
%hpc                      every session of yours: job, state, reason, nodes, ranks, time left
%hpc status               the same
%hpc start [options]      start this notebook's session; the options are those of %%remote
%hpc stop [NAME]          end a session: its job is cancelled, its variables are lost
%hpc stop --orphans       end what %hpc lists as belonging to no session
%hpc restart              new engine processes in the same job: no second wait, variables are lost
%hpc attach NAME          come back to a session: variables, running cells, finished results
%hpc cells                every cell of the session: state and source
%hpc cancel [CELL]        interrupt a cell: its number in %hpc cells, or the variable that holds its handle
%hpc vars [options]       the variables of the ranks: names, types, shapes, bytes; also while a cell runs
%hpc log [RANK]           the last lines of the job's log, or of one rank's
%hpc why                  the whole of the last error: full tracebacks, or how the session ended
%hpc doctor [options]     does everything hold? One line a check; with options of %%remote, on nodes bought for it
%hpc extend TIME          more time for the session's job, where SLURM allows it: minutes or H:MM:SS
%hpc profiles             every profile that you may use: its values, where each comes from, which is the default
%hpc cost                 what this notebook, this week and this account have cost; what was paid while no cell ran
%hpc hint [on|off]        whether a local cell that is too large for this machine is told so, once a notebook"""


def status(magics: HpcMagics, rest: str) -> None:
    """Show every session, and what belongs to none."""
    _nothing("status", rest)
    shown = sessions()
    print(table(shown, {name: session.data.channels.moved_nbytes for name, session in magics.held.items()}))
    listed = {one.session for one in shown}  # of two with one name the newer one is found by it
    over = [name for name in ended_names() if name not in listed]
    if over:
        named = ", ".join(over[:PAST_SHOWN]) + (" …" if len(over) > PAST_SHOWN else "")
        print(f"Ended, their cells can still be read (`%hpc attach NAME`): {named}")
    left = orphans()
    if left:
        print("\nBelonging to no session that your profiles know (`%hpc stop --orphans` ends them):")
        for one in left:
            print(f"  {one.what}")


def start_session(magics: HpcMagics, rest: str) -> None:
    """Start this notebook's session without a cell."""
    parser = OptionParser("%hpc start", "Start this notebook's session.")
    add_resources(parser)
    try:
        options, extra = magics.parsed(parser, rest)
    except HelpAsked as help_text:
        print(help_text)
        return
    if extra:
        raise ProfileError(f"%hpc start does not take {extra!r}.", "`%hpc start -h` shows the options.")
    if options.dry_run:
        print(start.dry_run(options.session or magics.session_name, **chosen_resources(options)), end="")
        return
    magics.ensure(options, None)


def stop(magics: HpcMagics, rest: str) -> None:
    """End a session, or what belongs to none."""
    if rest == "--orphans":
        left = orphans()
        for one in left:
            one.end()
            print(f"Ended: {one.what}")
        if not left:
            print("There is nothing that belongs to no session.")
        return
    name = _name(magics, rest)
    held, found = magics.held.pop(name, None), find_anywhere(name)
    if held is not None:
        held.stop()
    elif found is not None and found.half and found.directory.age_s() < JUST_MADE_S:
        raise ProfileError(f"Session {name} is just being started.", "Try again in a moment.")
    elif found is not None:
        stop_found(found)
    else:
        raise no_session(name)
    meter.look(name)
    print(f"Session {name} stopped; its variables are gone.")


def restart(magics: HpcMagics, rest: str) -> None:
    """Start new ranks in the same job."""
    _nothing("restart", rest)
    here(magics).restart()


def attach(magics: HpcMagics, rest: str) -> None:
    """Come back to a session."""
    name = _name(magics, rest)
    session = magics.held.get(name)
    if session is None or session.ended:
        session = magics.held[name] = start.attach(name)
    magics.session_name = session.name
    cells = session.cells
    if len(cells):
        print(cells.newest(CELLS_SHOWN))
    for cell in cells:
        if not cell.done():
            cell._ipython_display_()  # IPython's own protocol


def cells(magics: HpcMagics, rest: str) -> None:
    """Show every cell of the session."""
    _nothing("cells", rest)
    print(here(magics).cells)


def cancel(magics: HpcMagics, rest: str) -> None:
    """Interrupt a cell."""
    named = magics.shell.user_ns.get(rest)
    if isinstance(named, Cell):
        cell = named
    else:
        running = [one for one in here(magics).cells if not one.done()]
        listed = here(magics).cells
        if not rest and len(running) == 1:
            cell = running[0]
        elif rest.isdecimal() and int(rest) < len(listed):
            cell = listed[int(rest)]
        else:
            said = f"There is no cell {rest!r}" if rest else "Several cells run" if running else "No cell runs"
            raise ProfileError(f"{said}.", "Give a number of `%hpc cells`, or the variable that holds a handle.")
    print(f"{cell.name}: {'interrupted' if cell.cancel() else f'was over ({cell.state})'}.")


def vars_parser() -> OptionParser:
    """Make the parser of `%hpc vars`."""
    parser = OptionParser("%hpc vars", "Show the variables of the ranks, the largest first, also while a cell runs.")
    parser.add_argument("--all", action="store_true", help="modules, functions and IPython's own names as well")
    parser.add_argument("-r", "--ranks", metavar="0,2-3", help="of these ranks only")
    return parser


def show_variables(magics: HpcMagics, rest: str) -> None:
    """Show the variables of the ranks."""
    parser = vars_parser()
    options = parser.parse(parser.words(rest, magics.shell.var_expand))
    held = here(magics).vars(options.ranks, everything=options.all)
    if output.in_notebook():
        from IPython.display import display

        display(held)
    else:
        print(held)


def hint(magics: HpcMagics, rest: str) -> None:
    """Silence the hint after long cells for good, have it come again, or say how it stands."""
    if rest not in ("", "on", "off"):
        raise ProfileError(f"%hpc hint does not take {rest!r}.", "Write `%hpc hint on` or `%hpc hint off`.")
    if rest:
        outgrown.set_off(off=rest == "off")
        magics.hint = rest == "on"
    stands = "off" if outgrown.is_off() or not magics.hint else "on"
    print(f"The hint after long cells is {stands}.")


def look_around(magics: HpcMagics, rest: str) -> None:
    """Look whether everything holds that a session needs; resources on the line buy one for it, which then ends."""
    parser = OptionParser("%hpc doctor", "Look whether everything holds that a session needs, one line a check.")
    add_resources(parser)
    options, extra = magics.parsed(parser, rest)
    if extra:
        raise ProfileError(f"%hpc doctor does not take {extra!r}.", "`%hpc doctor -h` shows the options.")
    resources = chosen_resources(options)
    if resources:
        _examine_bought(f"doctor-{secrets.token_hex(2)}", yes=options.yes, **resources)
        return
    name = options.session or magics.session_name or frontend.session_name()[0]
    there = name in magics.held or find_anywhere(name) is not None
    print(examine(here(magics, name) if there else None))


def _examine_bought(name: str, *, yes: bool, **resources: Any) -> None:
    """Examine a session that is bought for it; whatever happens meanwhile, it ends."""
    try:
        session = start.start(name, yes=yes, **resources)
    except LaunchError as error:
        found = find_anywhere(name)
        if found is None:
            raise
        stop_found(found)
        raise LaunchError(
            f"The session to be examined did not begin: {error.message}", "Its job is cancelled. Try again."
        ) from error
    with session:
        print(examine(session))


def extend(magics: HpcMagics, rest: str) -> None:
    """Ask SLURM for more time."""
    if not rest:
        raise ProfileError("%hpc extend needs a time.", "Write how much more, e.g. `%hpc extend 0:30:00`.")
    found = find_anywhere(_name(magics, ""))
    queued = found is not None and not found.half and not found.ended() and waits(found)
    print(extend_queued(found, rest) if found is not None and queued else here(magics).extend(rest))


def show_profiles(_magics: HpcMagics, rest: str) -> None:
    """Show every profile with its values, and where each comes from."""
    _nothing("profiles", rest)
    print(every())


def show_cost(magics: HpcMagics, rest: str) -> None:
    """Show what your sessions have cost."""
    _nothing("cost", rest)
    print(bill(magics.session_name))


def log(magics: HpcMagics, rest: str) -> None:
    """Show the end of a log."""
    if rest and not rest.isdecimal():
        raise ProfileError(f"%hpc log {rest!r}: not a rank.", "Write e.g. `%hpc log 0`, or `%hpc log` for the job's.")
    name = _name(magics, "")
    found = magics.held.get(name) or find_anywhere(name) or find_ended(name)
    if found is None:
        raise no_session(name, past=True)
    ranks = choose_ranks([int(rest)], found.request.ntasks) if rest else ()
    path = found.directory.rank_log(ranks[0]) if ranks else found.directory.log
    print(tail(path, 40) or f"{path.name} is empty.")


def why(magics: HpcMagics, rest: str) -> None:
    """Show the whole of the last error."""
    _nothing("why", rest)
    name = _name(magics, "")
    held = magics.held.get(name)
    if held is not None:
        print(held.why())
        return
    past = find_anywhere(name) or find_ended(name)
    if past is None:
        print("No error yet: this notebook has no session.")
    elif past.fallen and not past.ended():
        print(whole_story(name, past.fallen.cause, past.directory, over=False))
    else:
        print(whole_story(name, past.ended() or "it was stopped", past.directory))


VERBS: dict[str, Callable[[HpcMagics, str], None]] = {
    "": status, "status": status, "start": start_session, "stop": stop, "restart": restart, "attach": attach,
    "cells": cells, "cancel": cancel, "vars": show_variables, "log": log, "why": why, "doctor": look_around,
    "hint": hint, "profiles": show_profiles, "cost": show_cost, "extend": extend,
}  # fmt: skip


def here(magics: HpcMagics, name: str = "") -> Session:
    """Give this notebook's session, or the named one; start none.

    Raises
    ------
    ProfileError
        It has none.
    """
    name = _name(magics, name)
    session = magics.held.get(name)
    if session is None and find_anywhere(name) is not None:
        session = magics.held[name] = start.attach(name)
        magics.session_name = name
    if session is None:
        raise ProfileError(
            "This notebook has no session.", "`%hpc attach NAME` takes one of those that `%hpc` lists."
        )
    return session


def _name(magics: HpcMagics, rest: str) -> str:
    """Give the session that is meant: the named one, else this notebook's.

    Raises
    ------
    ProfileError
        It has none, and no path that would name one.
    """
    name, by_path = frontend.session_name()
    if not (rest or magics.session_name or by_path):
        raise ProfileError(
            "This notebook has no session.",
            "`%hpc` lists yours, by whose names they are found; `%%remote --nodes 2` starts one.",
        )
    return rest or magics.session_name or name


def _nothing(verb: str, rest: str) -> None:
    if rest:
        raise ProfileError(f"%hpc {verb} does not take {rest!r}.", "`%hpc -h` shows the verbs.")


def table(rows: list[Status], moved: Mapping[str, int] | None = None) -> str:
    """Write sessions as a table, with the bytes that this notebook has moved to and from their ranks, if any."""
    if not rows:
        return "No sessions. `%%remote --nodes 4` starts one."
    moved = moved or {}
    lines: list[tuple[str, ...]] = [("session", "state", "job", "nodes", "ranks", "runs", "left", "why")]
    for s in rows:
        left = output.clock(s.left_s) if s.left_s is not None else "–"
        job = s.job_id if s.launcher == "slurm" else "this machine"
        nodes = ",".join(s.nodes[:4]) + (" …" if len(s.nodes) > 4 else "") or "–"
        runs = output.clock(int(s.elapsed_s))
        lines.append((s.session, s.state, job, nodes, str(s.ranks), runs, left, s.reason or ""))
    if any(s.cost is not None for s in rows):
        costs = ["cost", *("–" if s.cost is None else str(s.cost) for s in rows)]
        lines = [(*line[:-1], cost, line[-1]) for line, cost in zip(lines, costs, strict=True)]
    if any(moved.values()):
        sizes = ["moved", *(nbytes_in_words(moved.get(s.session, 0)) for s in rows)]
        lines = [(*line[:-1], size, line[-1]) for line, size in zip(lines, sizes, strict=True)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
