"""What ranks print, show and raise → folded output in the cell, in rank order."""

from __future__ import annotations

import html
import pickle
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hpcmagic.errors import RankError
from hpcmagic.notebook.folding import fold
from hpcmagic.notebook.perrank import PerRank, StaysOnRank, rank_set
from hpcmagic.wire.messages import Output, Raised, Reply

SHOWN_TEXTS = 8  # of one kind of error
FRAME_LINES = 12
NOT_DEFINED = re.compile(r"name '(\w+)' is not defined")


def show(outputs: Mapping[int, Sequence[Output]], *, labels: bool) -> None:
    """Print and display what ranks put out, in their order of text and displays."""
    sections = {rank: list(_sections(pieces)) for rank, pieces in outputs.items()}
    for number in range(max(map(len, sections.values()), default=0)):
        there = {rank: parts[number] for rank, parts in sections.items() if number < len(parts)}
        for kind, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            text = fold({rank: part[kind] for rank, part in there.items()}, labels=labels)
            if text:
                stream.write(text)
                stream.flush()
        _show_displays({rank: part["display"] for rank, part in there.items() if part["display"]}, labels=labels)


def _sections(outputs: Iterable[Output]) -> Iterable[dict[str, Any]]:
    """Cut a rank's outputs into texts, each with the display (or the clearing) that follows it."""
    section: dict[str, Any] = {"stdout": "", "stderr": "", "display": None}
    for output in outputs:
        if output.kind in ("stdout", "stderr"):
            section[output.kind] += output.text
        else:
            section["display"] = output
            yield section
            section = {"stdout": "", "stderr": "", "display": None}
    yield section


def _show_displays(displays: Mapping[int, Output], *, labels: bool) -> None:
    groups: dict[str, tuple[Output, list[int]]] = {}
    for rank, output in displays.items():
        name = f"{rank}/{output.display_id}" if output.display_id else ""
        groups.setdefault(f"{output.kind} {name} {output.data!r}", (output, []))[1].append(rank)
    for output, ranks in groups.values():
        if output.kind == "clear":
            _clear(wait=output.text == "wait")
            continue
        if labels and not output.update:
            print(f"[{rank_set(ranks)}]")
        name = f"hpcmagic-{ranks[0]}-{output.display_id}" if output.display_id else ""
        _publish(output.data, output.metadata, name, update=output.update)


def _clear(*, wait: bool) -> None:
    from IPython.display import clear_output

    clear_output(wait)


def _publish(data: Mapping[str, Any], metadata: Mapping[str, Any], name: str = "", *, update: bool = False) -> None:
    from IPython.core.getipython import get_ipython
    from IPython.display import publish_display_data

    if get_ipython() is None:
        print(data.get("text/plain", ""))
    elif name:
        publish_display_data(dict(data), metadata=dict(metadata), transient={"display_id": name}, update=update)
    else:
        publish_display_data(dict(data), metadata=dict(metadata))


def text_of(outputs: Mapping[int, Sequence[Output]], *, labels: bool) -> str:
    """Give what ranks printed, folded, with the plain form of what they displayed."""
    texts = {
        rank: "".join(
            str(piece.data.get("text/plain", "")) + "\n" if piece.kind == "display" else piece.text
            for piece in pieces
            if piece.kind != "clear"
        )
        for rank, pieces in outputs.items()
    }
    return fold(texts, labels=labels)


def values(replies: Sequence[Reply]) -> PerRank | None:
    """Give the ranks' last values; None where no rank had one."""
    if not any(reply.has_value for reply in replies):
        return None
    return PerRank({reply.rank: _value(reply) for reply in replies})


def _value(reply: Reply) -> Any:
    if not reply.has_value:
        return None
    if reply.value is None:
        return StaysOnRank(reply.rank, reply.described)
    try:
        return reply.value.load()
    except pickle.UnpicklingError as error:
        return StaysOnRank(reply.rank, f"a value that cannot be loaded here ({error})")


def rank_error(
    replies: Iterable[Reply], *, size: int, defined_here: Callable[[str], bool] = lambda _: False
) -> RankError | None:
    """Give the error of a cell: one short traceback per distinct error with its ranks; None if all went well.

    `defined_here` tells whether the notebook has a name that a rank lacks.
    """
    groups: dict[Any, list[tuple[int, Raised]]] = {}
    for reply in replies:
        if reply.raised is not None:
            raised = reply.raised
            groups.setdefault((raised.name, raised.frames), []).append((reply.rank, raised))
    if not groups:
        return None
    blocks = [_error_block(members, size) for members in groups.values()]
    ranks = sorted(rank for members in groups.values() for rank, _ in members)
    full = "\n".join(
        f"[{rank_set(rank for rank, _ in members)}]\n{members[0][1].full}" for members in groups.values()
    )
    missed = (raised.text for members in groups.values() for _, raised in members if raised.name == "NameError")
    unknown = dict.fromkeys(match[1] for match in map(NOT_DEFINED.search, missed) if match)
    blocks += [f"`{n}` is defined here, not on the ranks. → `--push {n}`" for n in unknown if defined_here(n)]
    return RankError("\n".join(blocks), ranks, full)


def _error_block(members: Sequence[tuple[int, Raised]], size: int) -> str:
    name, frames = members[0][1].name, members[0][1].frames
    ranks = [rank for rank, _ in members]
    where = "" if size == 1 else f" on rank {ranks[0]}" if len(ranks) == 1 else f" on ranks {rank_set(ranks)}"
    if len(ranks) == size > 1:
        where = f" on all {size} ranks"
    texts: dict[str, list[int]] = {}
    for rank, raised in members:
        texts.setdefault(raised.text, []).append(rank)
    if len(texts) == 1:
        lines = [f"{name}{where}: {next(iter(texts))}".removesuffix(": ")]
    else:
        lines = [f"{name}{where}:", *(f"  [{rank_set(r)}] {text}" for text, r in list(texts.items())[:SHOWN_TEXTS])]
        if len(texts) > SHOWN_TEXTS:
            lines.append(f"  … and {len(texts) - SHOWN_TEXTS} more")
    for frame in frames[-FRAME_LINES:]:
        inside = f" in {frame.function}" if frame.function not in ("<module>", "") else ""
        lines.append(f"  {frame.where}{inside}:  {frame.source}")
    return "\n".join(lines)


def fault_in_words(replies: Mapping[int, Reply]) -> str:
    """Say which ranks have raised what so far, in brackets; nothing while all goes well."""
    raised = {rank: reply.raised.name for rank, reply in list(replies.items()) if reply.raised is not None}
    return f" ({ranks_in_words(raised)} raised {' '.join(sorted(set(raised.values())))})" if raised else ""


class StatusLine:
    """One line that is updated in place: in a notebook, in a terminal, and sparingly where neither is."""

    def __init__(self) -> None:
        self._shown = ""
        self._handle: Any = None
        self._tty = sys.stdout.isatty()

    def update(self, text: str) -> None:
        """Show a text instead of the last one."""
        if text == self._shown:
            return
        self._shown = text
        if in_notebook():
            from IPython.display import display

            if self._handle is None:
                self._handle = display({"text/plain": text}, raw=True, display_id=True)
            else:
                self._handle.update({"text/plain": text}, raw=True)
        elif self._tty:
            width = shutil.get_terminal_size().columns - 1
            shown = text if len(text) <= width else text[: width - 1] + "…"
            sys.stdout.write(f"\r\x1b[2K{shown}")
            sys.stdout.flush()

    def make_room(self) -> None:
        """Let others print: in a terminal the line would stand in their way until its next update."""
        if self._shown and self._tty and not in_notebook():
            sys.stdout.write("\r\x1b[2K")
            sys.stdout.flush()
            self._shown = ""

    def forget(self) -> None:
        """Begin anew below: the line was cleared away with what else the cell had shown."""
        self._handle, self._shown = None, ""

    def clear(self) -> None:
        """Take the line away."""
        if self._handle is not None:
            self._handle.update({"text/plain": "", "text/html": "<span></span>"}, raw=True)
        elif self._shown and self._tty:
            sys.stdout.write("\r\x1b[2K")
            sys.stdout.flush()
        self._shown = ""

    def finish(self, text: str) -> None:
        """Show the last text, for good."""
        if in_notebook():
            self.update(text)
        else:
            sys.stdout.write(f"\r\x1b[2K{text}\n" if self._tty else f"{text}\n")
            sys.stdout.flush()


def quiet(text: str) -> None:
    """Show one line in grey."""
    if in_notebook():
        page = f'<span style="color: var(--jp-ui-font-color2, gray); font-size: 85%">{html.escape(text)}</span>'
        _publish({"text/plain": text, "text/html": page}, {})
    else:
        print(f"\x1b[2m{text}\x1b[0m" if sys.stdout.isatty() else text)


def in_notebook() -> bool:
    """Whether an ipykernel runs us: it can update displays."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def clock(seconds: float) -> str:
    """Write a duration as people read it.

    >>> clock(0.25), clock(75), clock(7265)
    ('0.25 s', '1 min 15 s', '2 h 1 min')
    """
    if round(seconds) < 60:
        return f"{seconds:.2f} s" if seconds < 10 and isinstance(seconds, float) else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    days, hours = divmod(minutes // 60, 24)
    parts = (
        f"{days} d" if days else "",
        f"{hours} h" if hours else "",
        f"{minutes % 60} min" if minutes % 60 else "",
    )
    return " ".join([part for part in parts if part][:2])


def count(number: int, what: str) -> str:
    """Write a number of things.

    >>> count(1, "rank"), count(4, "rank")
    ('1 rank', '4 ranks')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def ranks_in_words(ranks: Iterable[int]) -> str:
    """Name ranks: `rank 2`, `ranks 0-1,3`."""
    listed = list(ranks)
    return f"rank{'' if len(listed) == 1 else 's'} {rank_set(listed)}"


def time_of_day(in_s: float) -> str:
    """Give the local time in so many seconds."""
    when = time.localtime(time.time() + in_s)
    return time.strftime("%H:%M" if in_s < 72000 else "%a %H:%M", when)
