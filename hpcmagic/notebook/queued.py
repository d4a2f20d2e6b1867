"""A session before its ranks answer, for the meter: its job waits in the queue, or has just begun."""

from __future__ import annotations

import functools
from dataclasses import replace

from hpcmagic.errors import ProfileError
from hpcmagic.notebook.found import Found, stop
from hpcmagic.notebook.lifespan import extend_queued
from hpcmagic.notebook.readings import Reading
from hpcmagic.notebook.status import JobSeen
from hpcmagic.rendezvous import KeeperState


class Queued:
    """What there is of such a session; it stays so when nobody waits for the ranks any more.

    Parameters
    ----------
    found
        Its files; its job is submitted.
    """

    def __init__(self, found: Found) -> None:
        self._found = found
        self.name = found.request.session

    def read(self) -> Reading:
        """Give how its job stands; what it has cost, once it runs."""
        found, directory = self._found, self._found.directory
        self._seen.glance()
        try:
            keeper = directory.read_record(directory.state, KeeperState)
        except FileNotFoundError:
            keeper = KeeperState("ended", cause="it was stopped")
        status = self._seen.status(directory, found.request, keeper)
        reading = Reading(
            self.name, status.state, status.reason, status.job_id, found.request.nodes, status.ranks,
            elapsed_s=status.elapsed_s, left_s=status.left_s, stale_s=self._seen.stale_s(),
        )  # fmt: skip
        cost = status.cost
        if cost is None:
            return reading
        return replace(
            reading, unit=cost.unit, spent=cost.spent, rate_per_hour=cost.rate_per_hour, ceiling=cost.ceiling,
            price=cost.price, currency=cost.currency, confirmed=not cost.estimate,
        )  # fmt: skip

    def stop(self) -> None:
        """Take the job out of the queue."""
        stop(self._found.directory, self._found.launcher, self._found.job)

    def extend(self, seconds: float, /) -> str:
        """Ask for more time: while a job waits most sites let its owner have it."""
        return extend_queued(self._found, seconds)

    def keep(self) -> None:
        """Refuse: nothing counts down.

        Raises
        ------
        ProfileError
            Always.
        """
        raise self._not_yet()

    def _not_yet(self) -> ProfileError:
        return ProfileError(
            f"Session {self.name} is not ready yet: nothing was changed.", "Try again when its ranks are there."
        )

    @functools.cached_property
    def _seen(self) -> JobSeen:
        """How the job stands; whoever looks first may wait for the batch system."""
        job = self._found.job
        if job is None:
            raise self._not_yet()
        return JobSeen(self._found.launcher, job)
