"""Watch and steer a running simulation from the notebook: what a user calls inside the simulation.

    from hpcmagic import steer

    live = steer.live(comm)
    for step in live.steps(10_000):
        dt = live.param("dt", 1e-3, min=0.0, max=1e-2)
        …
        live.publish(energy=E)
        live.field("T", T_local, box=box)

In a cell of a session (`%%remote -a`) the notebook sees it (`%steer`, `session.steer`). Under plain mpiexec, serially
or with no session at all the same script runs by itself: nobody listens, no port is open, and each call costs next to
nothing.
"""

from __future__ import annotations

import json
import operator
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from hpcmagic.errors import SteerError
from hpcmagic.ranges import Schedule, Scheduled, declared, fitted, new_value, strays

__all__ = ["Live", "live", "replay"]

SHARE = 0.01

_replayed: list[Schedule] = []  # what the next `live` applies


class Live(Protocol):
    """A simulation that can be watched and steered; made by `live`."""

    def steps(self, steps: int | Iterable[int]) -> Iterator[int]:
        """Give the steps: 0, 1, …, or those of an iterable, the same on all ranks.

        Before each, on all ranks at once: changed parameters take effect; the simulation pauses, or stops.

        Raises
        ------
        SteerError
            A rank has left the loop while others go on; it is named.
        """

    def param(
        self,
        name: str,
        default: Any,
        *,
        min: float | None = None,  # noqa: A002  # what users type
        max: float | None = None,  # noqa: A002
        check: Any = None,
    ) -> Any:
        """Give a parameter's value, the same on every rank at the same step: the default until somebody sets another.

        Parameters
        ----------
        name
            By which the notebook sets it, one that a variable may have. All ranks call it; the first call declares.
        default
            A number, True or False, or a text; what is set must be of its type.
        min, max
            The range.
        check
            Called on rank 0 with a value that somebody wants to set; refuses it by giving False or a text that says
            why, or by raising.
        """

    def publish(self, **numbers: Any) -> None:
        """Add numbers to the curves, one each by its name; those of rank 0 count. It never waits."""

    def field(self, name: str, array: Any, box: Sequence[Any] | None = None) -> None:
        """Show a field as a picture; call it on all ranks at the same steps.

        Parameters
        ----------
        name
            Of the field.
        array
            This rank's part, in one, two or more dimensions (of which the plane through the middle is shown).
        box
            Where the part lies in the whole: one slice, or pair of begin and end, a dimension. None on one rank.
        """


def live(comm: Any = None, *, share: float = SHARE) -> Live:
    """Begin a simulation that can be watched and steered; all ranks of `comm` call it together.

    Parameters
    ----------
    comm
        mpi4py's communicator of all ranks that compute; None for one process.
    share
        The part of a step's time that watching may take at most; pictures become coarser and fewer to keep it.

    Raises
    ------
    SteerError
        A simulation is live already in this cell, or what is given is no communicator, or no share.
    """
    _require_communicator(comm)
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise SteerError(
            f"share = {share!r} is no part of a step's time.", "Give more than 0, at most 1: `share=0.01`."
        )
    schedule = _replayed.pop() if _replayed else {}
    steering = sys.modules.get("hpcmagic.engine.steering")
    here = steering.here() if steering is not None else None
    if here is not None:
        simulation: Live = here.live(comm, schedule, share)
        return simulation
    return _Replayed(schedule) if schedule else _Alone()


def replay(file: str | Path) -> None:
    """Apply a steering log again: the next `live` makes the same changes at the same steps. Call it on all ranks.

    Raises
    ------
    SteerError
        The file cannot be read, or is no steering log.
    """
    _replayed[:] = [_read(str(file))]


def _read(file: str) -> Schedule:
    """Read the changes of a steering log, by step; no name stands for stop."""
    schedule: dict[int, list[Scheduled]] = {}
    number = 0
    try:
        for number, line in enumerate(Path(file).read_text("utf-8").splitlines(), 1):
            if not line.strip():
                continue
            step, change = _change(json.loads(line))
            schedule.setdefault(step, []).append((*change, f"{file}, line {number}"))
    except OSError as error:
        raise SteerError(f"The steering log {file} cannot be read: {error.strerror}.", "Give its path.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise SteerError(
            f"{file} is no steering log, or is damaged: line {number}: {error}.",
            "hpcmagic writes it beside the run: steering-….jsonl.",
        ) from error
    return schedule


def _change(line: Any) -> tuple[int, tuple[str, Any]]:
    step, verb, name, new = (line[key] for key in ("step", "verb", "name", "new"))
    if type(step) is not int or verb not in ("set", "stop") or bool(name) != (verb == "set"):
        raise ValueError(f"there is {line}")
    if not isinstance(new, (bool, int, float, str) if name else type(None)):
        raise TypeError(f"{name!r} is set to {new!r}")
    return step, (name, new)


def _require_communicator(comm: Any) -> None:
    if comm is not None and not (hasattr(comm, "size") and hasattr(comm, "Idup")):
        raise SteerError(
            f"`steer.live` takes a communicator of mpi4py's, not a {type(comm).__name__}.",
            "Write `steer.live(comm)`; `steer.live()` is for one process.",
        )


class _Alone:
    """A simulation that nobody can watch: each call does as little as can be."""

    _gone_through = False

    def __init__(self) -> None:
        self._declared: set[str] = set()

    def steps(self, steps: int | Iterable[int]) -> Iterator[int]:
        if self._gone_through:  # as in a session
            raise SteerError("This simulation is over.", "Begin another with `steer.live`.")
        self._gone_through = True
        try:
            return iter(steps if isinstance(steps, Iterable) else range(operator.index(steps)))
        except TypeError:
            raise SteerError(
                f"The number of steps is {steps!r}.",
                "Steps are whole numbers: `live.steps(1000)`, or an iterable of them.",
            ) from None

    def param(
        self,
        name: str,
        default: Any,
        *,
        min: float | None = None,  # noqa: A002
        max: float | None = None,  # noqa: A002
        check: Any = None,  # noqa: ARG002  # nobody sets it
    ) -> Any:
        if name not in self._declared:  # what a session would refuse is refused here too
            declared(name, default, min, max)
            self._declared.add(name)
        return default

    def publish(self, **numbers: Any) -> None:
        pass

    def field(self, name: str, array: Any, box: Sequence[Any] | None = None) -> None:
        pass


class _Replayed(_Alone):
    """Such a one to which a log is applied again."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self._schedule = schedule
        self._values: dict[str, Any] = {}

    def steps(self, steps: int | Iterable[int]) -> Iterator[int]:
        step = -1
        try:
            for step in super().steps(steps):
                for name, value, _ in self._schedule.get(step, ()):
                    if not name:
                        return
                    self._values[name] = value
                yield step
        finally:
            for stray in strays(self._schedule, self._declared, step):
                warnings.warn(stray, stacklevel=2)

    def param(
        self,
        name: str,
        default: Any,
        *,
        min: float | None = None,  # noqa: A002
        max: float | None = None,  # noqa: A002
        check: Any = None,  # noqa: ARG002  # it was asked when the log was written
    ) -> Any:
        if name not in self._declared:
            param = declared(name, default, min, max)
            self._schedule = fitted(name, param, self._schedule)
            if name in self._values:  # by a log that sets it before it is declared
                self._values[name] = new_value(name, self._values[name], param)
            self._declared.add(name)
        return self._values.get(name, default)
