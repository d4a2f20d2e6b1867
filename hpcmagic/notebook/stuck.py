"""Notice a cell that can never end: some ranks have raised, all others wait for them in MPI.

replies ─► some raised ─► where do the others stand? ─┬─ they say it, from their control thread
                                                      └─ C code holds their interpreter ─► a signal asks
so often in the same MPI calls ─► they wait for ever: the cell waits for them no more, the keeper writes it down
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcmagic.errors import CellError, RankError
from hpcmagic.notebook import output
from hpcmagic.notebook.perrank import rank_set
from hpcmagic.wire.messages import ABANDON, DUMP, Stand

if TYPE_CHECKING:
    from hpcmagic.notebook.handles import Cell
    from hpcmagic.notebook.session import Session

LOOK_S = 1.0
ANSWER_S = 0.8  # how long ranks may take to say where they stand
STUCK_LOOKS = 3  # so often in the same MPI call, while another rank has raised: it waits for ever
FEW_RANKS = 64  # where ranks stand is asked of about so many
DUMP_S = 1.0
DUMP_AGAIN_S = 30.0  # of ranks whose C code is none of MPI's: each dump makes a file longer
# mpi4py holds the interpreter in the first of these on a communicator, and can then not be asked what it calls
HOLDING = re.compile(r"(?<![\w.])(?!(?:functools|np|numpy)\.)[\w.]+\.(?:(?:all)?reduce|(?:ex)?scan)\(.*?\)")
IN_C_CODE = "in C code that holds the interpreter"


class Whereabouts:
    """Where the ranks stand that a cell waits for, and whether they wait for ever."""

    def __init__(self) -> None:
        self.stands: dict[int, Stand] = {}
        self._still_looks = 0
        self._look_at_s = self._dump_at_s = 0.0

    def ask(self, cell: Cell, *, dump: bool = False) -> None:
        """Ask the ranks that are missing; with `dump`, by a signal where some do not answer."""
        self.stands = stands_of(cell, dump=dump)

    def look(self, cell: Cell, now_s: float) -> bool:
        """Whether the ranks wait for ever; if they do, the cell is given up. Asks once a second at most."""
        if now_s < self._look_at_s or not cell.raised() or not cell.missing():
            return False
        self._look_at_s = now_s + LOOK_S
        before = self.stands
        self.ask(cell, dump=now_s >= self._dump_at_s)
        if any(stand.source == IN_C_CODE and not stand.call for stand in self.stands.values()):
            self._dump_at_s = now_s + DUMP_AGAIN_S
        self._still_looks = self._still_looks + 1 if self._all_still(cell, before) else 0
        if self._still_looks < STUCK_LOOKS - 1:
            return False
        give_up(cell, self._waiting(cell))
        return True

    def _all_still(self, cell: Cell, before: Mapping[int, Stand]) -> bool:
        """Whether all that were asked are in MPI, and where they were."""
        asked = _sample(cell.missing())
        still = [r for r, s in self.stands.items() if s.call and r in before and before[r].mark == s.mark]
        return bool(asked) and set(asked) <= set(still)

    def _waiting(self, cell: Cell) -> dict[int, str]:
        """Say of every rank where it waits; who was not asked does what the one before him does."""
        waiting: dict[int, str] = {}
        said = ""
        for rank in cell.missing():
            stand = self.stands.get(rank)
            said = said if stand is None else f"{stand.call}, {stand.where}"
            waiting[rank] = said
        return waiting


def give_up(cell: Cell, waiting: Mapping[int, str]) -> None:
    """Wait no more for ranks that wait for ever; whoever looks at the cell, in any kernel, learns it."""
    told = {str(rank): said for rank, said in waiting.items()}
    cell.session.control_path().ask_keeper(ABANDON, cell=cell.id, waiting=told)
    if cell.pending is not None:
        cell.session.given_up.append(cell.pending)
        cell.pending.give_up(waiting)


def stuck_error(error: RankError, waiting: Mapping[int, str]) -> RankError:
    """Add to what ranks have raised who waits for them."""
    if not waiting:
        return error
    told = (
        f"{capital(waiting_in_words(waiting))}: for ever.\n"
        "→ `%hpc restart` gives new ranks in the same job; their variables are lost."
    )
    return RankError(f"{error.text}\n{told}", error.ranks, f"{error.full}\n{told}", dict(waiting))


def waiting_in_words(waiting: Mapping[int, str]) -> str:
    """Say who waits where, those at one place together."""
    places: dict[str, list[int]] = {}
    for rank in sorted(waiting):
        places.setdefault(waiting[rank], []).append(rank)
    return "; ".join(
        f"{output.ranks_in_words(ranks)} wait{'s' if len(ranks) == 1 else ''} in {place}"
        for place, ranks in places.items()
    )


def require_not_stuck(session: Session, ranks: Sequence[int]) -> None:
    """Refuse to send a cell to ranks that wait for ever in an earlier one.

    Raises
    ------
    CellError
        Names them, and the cell they wait in.
    """
    waiting = _still_waiting(session)
    stuck = sorted(set(ranks) & set(waiting))
    if stuck:
        free = [rank for rank in range(session.size) if rank not in waiting]
        instead = f", or run this with `--ranks {rank_set(free)}`" if free else ""
        raise CellError(
            f"{capital(output.ranks_in_words(stuck))} still wait{'s' if len(stuck) == 1 else ''} in "
            f"{waiting[stuck[0]]}, and would never come to this cell.",
            f"`%hpc restart` gives new ranks in the same job (their variables are lost){instead}.",
        )


def _still_waiting(session: Session) -> dict[int, str]:
    """Give the ranks that wait for ever: as the keeper tells, and as this kernel knows of its own cells sooner."""
    waiting = {int(rank): where for rank, where in session.told.stuck.items()}
    for pending in session.given_up:
        for rank in pending.stuck:
            waiting.pop(rank, None)
        waiting |= pending.waiting()
    return waiting


def stands_of(cell: Cell, *, dump: bool = True) -> dict[int, Stand]:
    """Ask the ranks that are missing, or some of many, where they stand."""
    asked = _sample(cell.missing())
    stands = cell.session.control_path().stands(asked, ANSWER_S)
    deaf = [rank for rank in asked if rank not in stands][:FEW_RANKS]
    return stands | dumped_stands(cell, deaf) if deaf and dump else stands


def _sample(ranks: Sequence[int]) -> list[int]:
    """Give some of many ranks, spread evenly: what all of them do, the others do too."""
    return list(ranks[:: 1 + len(ranks) // FEW_RANKS])


def standing(stands: Iterable[Stand]) -> str:
    """Say where ranks stand, those at one place together."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for stand in stands:
        groups.setdefault((stand.where, stand.source, stand.call), []).append(stand.rank)
    said = []
    for (where, source, call), ranks in groups.items():
        who = output.ranks_in_words(ranks)
        verb = "waits" if len(ranks) == 1 else "wait"
        if call:
            said.append(f"{who} {verb} in {call}, {where}")
        elif where:
            said.append(f"{who} {'is' if len(ranks) == 1 else 'are'} at {where}: {source}")
        else:
            said.append(f"{who} {'does' if len(ranks) == 1 else 'do'} not say where")
    return "; ".join(said)


def dumped_stands(cell: Cell, ranks: Sequence[int]) -> dict[int, Stand]:
    """Ask by a signal where ranks stand that do not answer: C code holds their interpreter."""
    paths = {rank: cell.session.directory.where(rank) for rank in ranks}
    sizes = {rank: _size(path) for rank, path in paths.items()}
    cell.session.control_path().ask_keeper(DUMP)
    deadline = time.monotonic() + DUMP_S
    while True:  # it is written in pieces
        stands = {rank: dumped_stand(cell, rank, _read(path, sizes[rank])) for rank, path in paths.items()}
        if all(stand.where for stand in stands.values()) or time.monotonic() >= deadline:
            return stands
        time.sleep(0.05)


def dumped_stand(cell: Cell, rank: int, text: str) -> Stand:
    """Read a stack as faulthandler writes it, the innermost frame first."""
    frames = re.findall(r'File "([^"]*)", line (\d+)', text)
    own = next(((name, int(line)) for name, line in frames if name.startswith("<cell ")), None)
    if own is None:
        return Stand(rank)
    name, line = own[0].strip("<>").partition("#")[0], own[1]  # "#2": an earlier notebook had a cell of that name
    call = HOLDING.search(cell.line(line)) if name == cell.name and frames[0][0] == own[0] else None
    return Stand(rank, "", f"{name}, line {line}", IN_C_CODE, call[0] if call else "", f"{name}:{line}")


def _read(path: Path, begin: int) -> str:
    try:
        with path.open(errors="replace") as file:
            file.seek(begin)
            return file.read()
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def capital(text: str) -> str:
    """Begin with a capital letter, and leave the rest as it is."""
    return text[:1].upper() + text[1:]
