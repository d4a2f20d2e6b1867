"""The steering log of a run: what was changed, when, by whom; `hpcmagic.steer.replay` applies it again."""

from __future__ import annotations

import contextlib
import json
import os
import time
from itertools import count
from pathlib import Path

from hpcmagic.wire.looks import Event


class SteeringLog:
    """A file in the directory that rank 0 runs in, made with the first change: one line a change, in JSON.

    What cannot be written is kept, and written with the next one: a log has no holes.
    """

    def __init__(self) -> None:
        self.path = ""
        self.unwritten: list[str] = []

    def note(self, event: Event) -> str:
        """Write a change down; give why that cannot be, or nothing."""
        for name, old, new in event.changes or (("", None, None),):
            line = {"step": event.step, "verb": event.verb, "name": name, "old": old, "new": new}
            when = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(event.time))
            self.unwritten.append(json.dumps({**line, "user": event.user, "time": when}) + "\n")
        return self.write()

    def write(self) -> str:
        """Write what is not written yet; give why that cannot be, or nothing."""
        if not self.unwritten:
            return ""
        try:
            self.path = self.path or _fresh()
            _append(self.path, "".join(self.unwritten).encode())
        except OSError as error:
            return f"the steering log cannot be written: {error.strerror}"
        self.unwritten.clear()
        return ""


def _append(path: str, lines: bytes) -> None:
    """Add lines to a file, all or none."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        size, left = os.fstat(file).st_size, memoryview(lines)
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def _fresh() -> str:
    """Make a file for it."""
    stem = time.strftime("steering-%Y%m%d-%H%M%S")
    for number in count():
        path = Path.cwd() / f"{stem}{f'_{number}' if number else ''}.jsonl"  # sorted by name, the newest is last
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            return str(path)
    raise AssertionError("unreachable")
