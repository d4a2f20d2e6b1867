"""What a rank raised → short frames with the cell's own lines, no library noise; the whole text for who asks."""

from __future__ import annotations

import ast
import linecache
import os
import re
import traceback
from collections import OrderedDict
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from hpcmagic.errors import HpcMagicError
from hpcmagic.wire.messages import Frame, Raised, Sources, Stand

CELL = "<cell "  # how the file names of cells begin
AGAIN = "#"  # behind it, how often the name was used, where it was used before
PACKAGE = f"{Path(__file__).parent.parent}{os.sep}"
LIBRARY = (
    f"{os.sep}site-packages{os.sep}",
    f"{os.sep}dist-packages{os.sep}",
    str(Path(os.__file__).parent),
    "<frozen",
)
MEMBERS = 4  # of an exception group, in its text
OWN_WAITS = {  # of hpcmagic's for other ranks: a variable there tells since when
    f"{PACKAGE}engine{os.sep}words.py": ("next", "live.steps"),
    f"{PACKAGE}engine{os.sep}communicators.py": ("_done", "steer.live"),
}
LINES_KEPT = 10_000

_lines: OrderedDict[tuple[str, int], tuple[str, str]] = OrderedDict()  # of the notebook's functions


def know(sources: Sources) -> None:
    """Note the lines of functions of the notebook's: pickled, a function has lost its file."""
    for line in sources:
        _lines[line] = sources[line]
        _lines.move_to_end(line)
    while len(_lines) > LINES_KEPT:
        _lines.popitem(last=False)


def raised_by(error: BaseException) -> Raised:
    """Give an exception as data."""
    entries = list(_down_to_ours(traceback.extract_tb(error.__traceback__)))
    own = [entry for entry in entries if _is_users(entry.filename)]
    frames = list(_folded(_frame(entry) for entry in own))
    last = entries[-1] if entries else None
    if last is not None and own and last is not own[-1] and not last.filename.startswith(PACKAGE):
        frames.append(_frame(last))
    if isinstance(error, SyntaxError) and isinstance(error.filename, str) and error.filename.startswith(CELL):
        frames = [Frame(f"{_file(error.filename)}, line {error.lineno}", "", _exact(error.text or "").strip())]
    return Raised(_exact(type(error).__name__), _text(error), tuple(frames), _full(error))


def in_short(error: BaseException) -> str:
    """Give an exception as a few lines."""
    raised = raised_by(error)
    frames = [f"  {frame.where}:  {frame.source}" for frame in raised.frames]
    return "\n".join([f"{raised.name}: {raised.text}".removesuffix(": "), *frames])


def users_frame(frame: Any) -> bool:
    """Whether a cell's code is on the stack of `frame`."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(CELL):
            return True
        frame = frame.f_back
    return False


def stand(rank: int, request: str, frame: Any) -> Stand:
    """Say where a thread stands whose innermost frame this is."""
    own, mark = frame, ""
    while own is not None and not own.f_code.co_filename.startswith(CELL):
        own = own.f_back
    if own is None:
        return Stand(rank, request)
    shown = frame
    while shown is not own and not _is_users(shown.f_code.co_filename):
        shown = shown.f_back
    line = _frame(traceback.FrameSummary(shown.f_code.co_filename, shown.f_lineno, shown.f_code.co_name))
    mark = f"{id(frame)}:{frame.f_lasti}:{id(frame.f_code)}"
    call, since_s = _own_wait(frame, own)
    return Stand(rank, request, line.where, line.source, call or _mpi_call(frame), since_s or mark)


def _own_wait(frame: Any, own: Any) -> tuple[str, str]:
    """Give in which call of `hpcmagic.steer` a thread waits for other ranks, and since when; else nothing."""
    while frame is not own:
        function, call = OWN_WAITS.get(frame.f_code.co_filename, ("", ""))
        if frame.f_code.co_name == function and "began_s" in frame.f_locals:
            return call, f"{call}:{frame.f_locals['began_s']}"
        frame = frame.f_back
    return "", ""


def _mpi_call(frame: Any) -> str:
    """Give the source of the call of mpi4py that a frame is in; nothing if it is in none, or that cannot be told."""
    if "mpi4py" in frame.f_code.co_filename:
        return f"mpi4py's {frame.f_code.co_name}()"
    try:
        begin, end, left, right = list(frame.f_code.co_positions())[frame.f_lasti // 2]
        lines = [linecache.getline(frame.f_code.co_filename, number).encode() for number in range(begin, end + 1)]
        lines[-1] = lines[-1][:right]
        lines[0] = lines[0][left:]
        source = b"".join(lines).decode()
        call = ast.parse(f"({source})", mode="eval").body
    except (TypeError, SyntaxError, ValueError, IndexError):
        return ""
    if not isinstance(call, ast.Call):
        return ""
    callee = _resolved(call.func, frame)
    return source if _is_mpis(callee) or _is_mpis(_plain(callee, "__self__")) else ""


def _resolved(node: ast.AST, frame: Any) -> Any:
    """Look a dotted name up where the frame would, without running any code of the user's."""
    if isinstance(node, ast.Name):
        for names in (frame.f_locals, frame.f_globals, frame.f_builtins):
            if node.id in names:
                return names[node.id]
        return None
    if not isinstance(node, ast.Attribute):
        return None
    owner = _resolved(node.value, frame)
    if owner is None:
        return None
    if _is_mpis(owner):
        return getattr(owner, node.attr, None)
    return (_plain(owner, "__dict__") or {}).get(node.attr)  # of modules and of plain objects


def _is_mpis(thing: Any) -> bool:
    """Whether mpi4py has made this object, or this class."""
    homes = [_home(kind) for kind in type.__dict__["__mro__"].__get__(type(thing))]
    return any(str(home).startswith("mpi4py") for home in (*homes, _plain(thing, "__module__")))


def _home(kind: type) -> Any:
    """Give a class's module; that of one made in C, as mpi4py's are, is not among its `vars`."""
    try:
        return type.__dict__["__module__"].__get__(kind)
    except AttributeError:
        return None


def _plain(thing: Any, name: str) -> Any:
    """Give an attribute, past what a class of the user's would do about it."""
    try:
        return object.__getattribute__(thing, name)
    except AttributeError:
        return None


def _down_to_ours(entries: Iterable[traceback.FrameSummary]) -> Iterable[traceback.FrameSummary]:
    """Give frames up to where the user's code calls ours, as `print` does: what is below is no concern of his."""
    seen = False
    for entry in entries:
        seen = seen or _is_users(entry.filename)
        if seen and entry.filename.startswith(PACKAGE):
            return
        yield entry


def _text(error: BaseException) -> str:
    try:
        text = _exact((error.msg if isinstance(error, SyntaxError) else error) or "")
    except BaseException as broken:  # a user's __str__ may raise anything
        text = f"<its str() raised {type(broken).__name__}>"
    if isinstance(error, BaseExceptionGroup):
        members = [f"{type(e).__name__}: {_text(e)}" for e in error.exceptions[:MEMBERS]]
        text += ": " + "; ".join(members)
    text += "".join(f" ({_exact(note)})" for note in _notes(error))
    if error.__cause__ is not None and not isinstance(error, HpcMagicError):  # ours say it themselves
        text += f" (caused by {type(error.__cause__).__name__}: {_text(error.__cause__)})"
    return text


def _notes(error: BaseException) -> list[Any]:
    """Give what was added to an error on its way (PEP 678)."""
    notes = _plain(error, "__notes__")
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def _full(error: BaseException) -> str:
    try:
        return re.sub(rf"({CELL}[^>{AGAIN}]*){AGAIN}\d+>", r"\1>", "".join(traceback.format_exception(error)))
    except BaseException as broken:  # it formats what a SyntaxError says of itself, which may be anything
        return f"<no traceback: {type(broken).__name__}>"


def _exact(text: Any) -> str:
    """Give a text as it loads anywhere: no class of the cell's, which only the rank has."""
    return str.__str__(str(text))


def _folded(frames: Iterable[Frame]) -> Iterable[Frame]:
    """Give frames that repeat, as in a recursion, once with their number."""
    for frame, repeated in groupby(frames):
        times = len(list(repeated))
        yield frame if times == 1 else Frame(frame.where, f"{frame.function} ({times} times)", frame.source)


def _is_users(filename: str) -> bool:
    if filename.startswith(CELL):
        return True
    return not filename.startswith(PACKAGE) and not any(part in filename for part in LIBRARY)


def _file(filename: str) -> str:
    return filename.removeprefix("<").removesuffix(">").partition(AGAIN)[0]


def _frame(entry: traceback.FrameSummary) -> Frame:
    source = (entry.line or linecache.getline(entry.filename, entry.lineno or 0)).strip()
    if entry.filename.startswith(CELL):
        return Frame(f"{_file(entry.filename)}, line {entry.lineno}", entry.name, source)
    line = _lines.get((entry.name, entry.lineno or 0))
    if line is not None and not Path(entry.filename).exists():
        return Frame(line[0], entry.name, line[1])
    return Frame(f"{'/'.join(Path(entry.filename).parts[-3:])}:{entry.lineno}", entry.name, source)
