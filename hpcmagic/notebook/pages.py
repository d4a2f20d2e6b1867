"""What the panel's pages are told: the newest news as one message, and how many of these may be on their way.

Mirror ─► Told.message() ─► {…}, [curves, ranks, picture] ─ comm ─► page
Window.ack() ◄──────────────────────────────── how far it is ─────┘
"""

from __future__ import annotations

import math
from array import array
from dataclasses import replace
from typing import Any

from hpcmagic.notebook.colours import tables
from hpcmagic.notebook.mirror import Mirror
from hpcmagic.notebook.simulation import event_in_words, news_of
from hpcmagic.ranges import Param
from hpcmagic.wire.looks import Event, Picture

ON_THEIR_WAY = 15  # messages; a page that stalls makes neither the kernel nor the Jupyter server grow
SLOW_S = 2.0  # so often without a word from a page: a kernel that answers only between cells hears none
SLOW_MOST = 300  # so many, and without pictures
SILENT_S = 10.0  # a page that was silent so long while another was not is gone
EVENTS_AT_FIRST = 100
PULSES_S = 0.5


class Window:
    """How many messages may be on their way to the pages that show the panel."""

    def __init__(self) -> None:
        self.sent = 0
        self._pages: dict[str, tuple[int, float]] = {}  # how far each is, when it said so
        self._slow, self._sent_s = 0, 0.0

    def heard(self, page: str, seq: int | None, now: float) -> None:
        """Note how far a page is; None = it has just come."""
        known = self._pages.get(page, (0, 0.0))[0]
        self._pages[page] = self.sent if seq is None else max(known, min(seq, self.sent)), now
        self._slow = 0
        for other, (_, when) in list(self._pages.items()):
            if now - when > SILENT_S:
                del self._pages[other]

    def may_send(self, now: float) -> str:
        """Give ``all``; ``few`` where pictures would be too much; or nothing: nobody listens."""
        if not self._pages:
            return ""
        if self.sent - min(seq for seq, _ in self._pages.values()) < ON_THEIR_WAY:
            return "all"
        if self._slow < SLOW_MOST and now - self._sent_s >= SLOW_S:
            return "few"
        return ""

    def note_sent(self, now: float) -> int:
        """Count a message; give its number."""
        if self.may_send(now) == "few":
            self._slow += 1
        self._sent_s = now
        self.sent += 1
        return self.sent

    def silent_s(self, now: float) -> float:
        """Give how long nothing was sent."""
        return now - self._sent_s

    def attended(self, now: float, seconds: float) -> bool:
        """Whether a page has been heard of within so many seconds."""
        return any(now - when < seconds for _, when in self._pages.values())


class Messages:
    """Makes messages that tell what has changed since the last one.

    Parameters
    ----------
    mirror
        Where the news come from.
    """

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self.start_anew()

    def start_anew(self) -> None:
        """Have the next message tell everything: a page has come."""
        self._full = True
        self._run = 0
        self._curves: dict[str, tuple[int, int]] = {}
        self._events = 0
        self._params: list[dict[str, Any]] = []
        self._warnings: list[str] = []
        self._frame = ("", 0)
        self._pulses_s = 0.0
        self._head: dict[str, Any] = {}

    def message(self, field: str, now: float, *, pictures: bool) -> tuple[dict[str, Any], list[Any], bool]:
        """Give a message, its buffers, and whether it tells anything new."""
        mirror = self._mirror
        with mirror.changed:
            news, lost = news_of(mirror), mirror.lost
            if news.run != self._run and not self._full:
                self.start_anew()
            self._run = news.run
            tails = self._tails()
            events = [event for event in mirror.events if event.number > self._events][-EVENTS_AT_FIRST:]
            picture = mirror.pictures.get(field)
        head = {
            "run": news.run, "over": news.over, "step": news.step, "steps": news.steps, "paused": news.paused,
            "fields": list(news.fields), "log": news.log, "dropped": news.dropped,
            "lost": lost.message if lost is not None else "",
        }  # fmt: skip
        message, buffers = {"kind": "news", **head}, []
        if self._full:
            message["full"] = True
            message["maps"] = list(tables())
            buffers.append(b"".join(tables().values()))
        if params := self._changed_params(news.params):
            message["params"] = params
        if events:
            self._events = events[-1].number
            message["events"] = [_event(event) for event in events]
        if list(news.warnings) != self._warnings:
            message["warnings"] = self._warnings = list(news.warnings)
        if tails:
            message["curves"] = [head for head, _, _ in tails]
            buffers.append(b"".join(part for _, steps, values in tails for part in (steps, values)))
        if news.pulses and now - self._pulses_s >= PULSES_S:
            self._pulses_s = now
            flat = array("d")
            for rank, pulse in sorted(news.pulses.items()):
                flat.extend((rank, pulse.step, pulse.step_s, pulse.wait_s, pulse.ours_s))
            message["pulses"] = len(news.pulses)
            buffers.append(flat.tobytes())
        if picture is not None and pictures and (picture.name, picture.frame) != self._frame:
            self._frame = picture.name, picture.frame
            message["picture"] = _head_of(picture)
            buffers.append(picture.pixels)
        new = head != self._head or len(message) > len(head) + 1
        self._head, self._full = head, False
        return message, buffers, new

    def _tails(self) -> list[tuple[dict[str, Any], bytes, bytes]]:
        """Give what is new of the curves."""
        tails = []
        for name, curve in self._mirror.curves.items():
            thinned, count = self._curves.get(name, (curve.thinned, 0))
            begin = count if thinned == curve.thinned else 0
            here = len(curve.values)
            if begin < here:
                steps, values = array("d", curve.steps[begin:]), curve.values[begin:]
                head = {"name": name, "begin": begin, "count": here - begin}
                tails.append((head, steps.tobytes(), values.tobytes()))
            self._curves[name] = curve.thinned, here
        return tails

    def _changed_params(self, params: dict[str, Param]) -> list[dict[str, Any]]:
        told = [_param(name, param) for name, param in params.items()]
        if told == self._params:
            return []
        self._params = told
        return told


def _param(name: str, param: Param) -> dict[str, Any]:
    texts = [one if isinstance(one, str) else repr(one) for one in (param.value, param.default)]
    ends = [None if end is None or not math.isfinite(end) else end for end in (param.min, param.max)]
    return {
        "name": name, "kind": param.kind, "value": texts[0], "default": texts[1], "min": ends[0], "max": ends[1],
    }  # fmt: skip


def _event(event: Event) -> dict[str, Any]:
    who = event.user.rpartition(":")[0] or event.user  # without its process
    return {
        "number": event.number,
        "step": event.step,
        "refused": event.refused,
        "time": event.time,
        "text": event_in_words(replace(event, user=who)),
        "names": [name for name, _, _ in event.changes],
    }


def _head_of(picture: Picture) -> dict[str, Any]:
    return {
        "name": picture.name, "frame": picture.frame, "step": picture.step, "shape": list(picture.shape),
        "stride": picture.stride, "rows": picture.rows, "columns": picture.columns,
        "low": picture.low, "high": picture.high,
    }  # fmt: skip
