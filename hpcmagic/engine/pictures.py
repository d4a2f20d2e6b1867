"""Pictures of fields, at rank 0: when to ask all ranks for their parts, and what became of them.

    desk: who wants which ─► wish() ─► Collect ═ all ranks ═► take(part) … ─► desk: a picture

Watching takes at most a share of the time: after a picture that cost c seconds, on the slowest rank, at rank 0 to ask
for it and take it in, and for those who read there, none is asked for within c / share; what counts is time of the
processor. Where that is too rare, pictures become coarser.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Protocol

from hpcmagic.engine.fields import Box, Collect, Part, fault_of, middle, stride_for, whole_shape
from hpcmagic.engine.runs import Run, Wanted

STALE_S = 5.0  # a picture whose parts have not come by then …
STALE_STEPS = 20  # … and by so many steps never will
FAULTY_S = 1.0  # until a field that cannot be shown is looked at again
SLOWEST_HZ = 1.0  # rather than show fewer pictures, thin more …
COARSEST = 64  # … as far as so many pixels on the longer side: of very many ranks the number of parts is what costs
LONGEST_S, LONGEST_COARSE_S = 2.0, 10.0  # without a picture, whatever the last cost: somebody may have come just now
QUIET_STEPS = 16  # of so many boundaries the mean is what one takes


class Readers(Protocol):
    """Whoever wants pictures."""

    def wanted(self) -> Sequence[Wanted]:
        """Give the pictures that somebody wants."""


class Pictures:
    """Those of one simulation.

    Parameters
    ----------
    run
        What is kept of it.
    desk
        Knows who wants what.
    size
        How many ranks give parts.
    """

    def __init__(self, run: Run, desk: Readers, size: int) -> None:
        self._run = run
        self._desk = desk
        self._size = size
        self._watching_s = 0.0  # as far as it is paid for
        self._quiet_s = 0.0  # what a boundary takes without any picture, of late
        self._frames = count(1)
        self._asked: tuple[Collect, float] | None = None
        self._hz = 1.0
        self._parts: dict[int, Part] = {}
        self._boxes: dict[str, dict[int, Box]] = {}
        self._due_s: dict[str, float] = {}  # by field: when its next picture is
        self._paid_s = 0.0  # when the last one that is paid for was asked for …
        self._free_s = 0.0  # … and until when it is
        self._coarser = 1

    def wish(self, step_s: float, still: Mapping[str, int] | None = None) -> Collect | None:
        """Ask for the picture that has been due longest, if one is.

        While the simulation is paused, `still` has the fields that there are, by the step that they are of: of these
        only what nobody has seen is asked for.
        """
        now = time.perf_counter()
        if self._asked is not None:
            if now - self._asked[1] < STALE_S + STALE_STEPS * step_s:
                return None
            self._give_up(self._asked[0])
        if now < self._free_s:  # at most steps that is all
            return None
        wanted = self._desk.wanted()
        if still is not None:
            wanted = [one for one in wanted if one.name in still and not self._seen(one, still[one.name])]
        if not wanted:
            return None
        first = min(wanted, key=lambda one: self._due_s.get(one.name, 0.0))
        if now < self._due_s.get(first.name, 0.0):
            return None
        shape = self._run.fields.get(first.name, ())
        collect = Collect(next(self._frames), first.name, self._stride(first), middle(shape))
        self._asked, self._parts, self._hz = (collect, now), {}, first.hz
        self._due_s[first.name] = now + 1 / first.hz
        return collect

    @property
    def busy(self) -> bool:
        """Whether one is on its way."""
        return self._asked is not None

    def note_boundary(self, work_s: float, *, busy: bool) -> None:
        """Count what a boundary took of the processor at rank 0; what a picture adds to it is paid for likewise."""
        if busy:
            self._run.watching_s += work_s - self._quiet_s
        else:
            self._quiet_s += (work_s - self._quiet_s) / QUIET_STEPS

    def _stride(self, wanted: Wanted) -> int:
        """Give how much a field is thinned; 0 = its size is not known yet."""
        shape = self._run.fields.get(wanted.name, ())
        finest = stride_for(shape, wanted.pixels)
        return min(finest * self._coarser, max(finest, stride_for(shape, COARSEST))) if shape else 0

    def _seen(self, wanted: Wanted, step: int) -> bool:
        """Whether the newest picture is of this step, and as fine as it is wanted."""
        collect, parts = self._run.pictures.get(wanted.name, (None, {}))
        return collect is not None and parts[0].step == step and collect.stride <= self._stride(wanted)

    def _give_up(self, collect: Collect) -> None:
        self._asked = None
        self._run.dropped += 1
        missing = [rank for rank in range(self._size) if rank not in self._parts]
        if 0 in self._parts:
            self._run.warn(f"the field {collect.name} is not shown: no part of it came from rank {missing[0]}")
        self._due_s[collect.name] = time.perf_counter() + FAULTY_S

    def take(self, rank: int, part: Part) -> None:
        """Take a rank's part; once all are there, let them be looked at."""
        if self._asked is None or part.frame != self._asked[0].frame:
            return
        self._parts[rank] = part
        if len(self._parts) == self._size:
            began_s = time.thread_time()
            (collect, asked_s), self._asked = self._asked, None
            self._complete(collect)
            cost_s = max(part.cost_s for part in self._parts.values()) + time.thread_time() - began_s
            self._pay(cost_s, asked_s, collect)

    def _complete(self, collect: Collect) -> None:
        parts, name = self._parts, collect.name
        faults = {rank: part.fault for rank, part in parts.items() if part.fault}
        if faults:
            rank, fault = min(faults.items())
            self._run.warn(f"the field {name} is not shown: rank {rank}: {fault}")
            self._due_s[name] = time.perf_counter() + FAULTY_S
            return
        boxes = {rank: part.box for rank, part in parts.items()}
        if len({len(box) for box in boxes.values()}) > 1:
            self._run.warn(f"the field {name} is not shown: its parts have different numbers of dimensions")
            self._due_s[name] = time.perf_counter() + FAULTY_S
            return
        if boxes != self._boxes.get(name):
            self._boxes[name] = boxes
            if fault := fault_of(boxes):
                self._run.warn(f"the field {name} is not shown whole: {fault}")
        shape = whole_shape(list(boxes.values()))
        if not collect.stride:
            self._due_s[name] = 0.0  # now that its size is known
        elif collect.plane == middle(shape):
            self._run.pictures[name] = collect, dict(parts)
        self._run.fields[name] = shape

    def _pay(self, cost_s: float, asked_s: float, collect: Collect) -> None:
        watching_s = self._run.watching_s
        pause_s = (cost_s + watching_s - self._watching_s) / self._run.share
        self._watching_s = watching_s
        coarsest = collect.stride >= stride_for(self._run.fields.get(collect.name, ()), COARSEST)
        self._free_s = asked_s + min(pause_s, LONGEST_COARSE_S if coarsest else LONGEST_S)
        since_s, self._paid_s = asked_s - self._paid_s, asked_s
        if not collect.stride:
            return
        if pause_s > max(1 / SLOWEST_HZ, since_s):  # what readers took in a long time without any is not this one's
            self._coarser *= 1 if coarsest else 2
        elif self._coarser > 1 and pause_s * 8 < 1 / SLOWEST_HZ:
            self._coarser //= 2
