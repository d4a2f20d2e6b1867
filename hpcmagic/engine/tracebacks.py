"""What a rank raised → short frames with the cell's own lines, no library noise; the whole text for who asks."""

from __future__ import annotations

import ast
import linecache
import os
import traceback
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from hpcmagic.wire.messages import Frame, Raised, Stand

CELL = "<cell "  # how the file names of cells begin
PACKAGE = f"{Path(__file__).parent.parent}{os.sep}"
LIBRARY = (
    f"{os.sep}site-packages{os.sep}",
    f"{os.sep}dist-packages{os.sep}",
    str(Path(os.__file__).parent),
    "<frozen",
)
MEMBERS = 4  # of an exception group, in its text


def raised_by(error: BaseException) -> Raised:
    """Give an exception as data."""
    entries = traceback.extract_tb(error.__traceback__)
    own = [entry for entry in entries if _is_users(entry.filename)]
    frames = list(_folded(_frame(entry) for entry in own))
    last = entries[-1] if entries else None
    if last is not None and own and last is not own[-1] and not last.filename.startswith(PACKAGE):
        frames.append(_frame(last))
    if isinstance(error, SyntaxError) and (error.filename or "").startswith(CELL):
        where = f"{_file(error.filename or '')}, line {error.lineno}"
        frames = [Frame(where, "", (error.text or "").strip())]
    return Raised(type(error).__name__, _text(error), tuple(frames), "".join(traceback.format_exception(error)))


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
    return Stand(rank, request, line.where, line.source, _mpi_call(frame), mark)


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
    module = getattr(type(getattr(callee, "__self__", None)), "__module__", "") or ""
    home = getattr(callee, "__module__", "") or ""
    return source if any(str(name).startswith("mpi4py") for name in (module, home)) else ""


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
    if str(type(owner).__module__).startswith("mpi4py"):
        return getattr(owner, node.attr, None)
    return getattr(owner, "__dict__", {}).get(node.attr)  # of modules and of plain objects


def _text(error: BaseException) -> str:
    try:
        text = (error.msg if isinstance(error, SyntaxError) else str(error)) or ""
    except Exception as broken:  # a user's __str__ may raise anything
        text = f"<its str() raised {type(broken).__name__}>"
    if isinstance(error, BaseExceptionGroup):
        members = [f"{type(e).__name__}: {_text(e)}" for e in error.exceptions[:MEMBERS]]
        text += ": " + "; ".join(members)
    if error.__cause__ is not None:
        text += f" (caused by {type(error.__cause__).__name__}: {_text(error.__cause__)})"
    return text


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
    return filename.removeprefix("<").removesuffix(">")


def _frame(entry: traceback.FrameSummary) -> Frame:
    source = (entry.line or linecache.getline(entry.filename, entry.lineno or 0)).strip()
    if entry.filename.startswith(CELL):
        return Frame(f"{_file(entry.filename)}, line {entry.lineno}", entry.name, source)
    return Frame(f"{'/'.join(Path(entry.filename).parts[-3:])}:{entry.lineno}", entry.name, source)
