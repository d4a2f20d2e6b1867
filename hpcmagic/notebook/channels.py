"""The notebook's end of the bulk channels: opened when first needed, kept, closed at the first fault.

All of a transfer moves at once, is watched, and is given up on Ctrl-C: then nothing is bound anywhere.

Ranks that wait for others in one transfer while those wait for them in another, or in a cell, would do so for ever:
if not all come together soon, those that have come are let go, and all are asked again a little later.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpcmagic.errors import CellError, HpcMagicError, PeerLost
from hpcmagic.notebook import output
from hpcmagic.notebook.progress import Progress, nbytes_in_words
from hpcmagic.wire import shared
from hpcmagic.wire.bulk import Channel, Invitation, connect
from hpcmagic.wire.messages import Forget, Reply
from hpcmagic.wire.moving import Moving, goes_through, run_all
from hpcmagic.wire.pending import Pending
from hpcmagic.wire.shared import Shared

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session

LOOK_S = 1.0  # how often, while something moves, to look whether the session lives
WORD_S = 3.0  # how long a rank's own word on what went wrong may take
LEAVE_S = 2.0  # how long ranks may take to give a transfer up
FEW = 16  # channels to so many ranks keep their frames' memory for the next transfer
MUCH_NBYTES = 8 << 20  # so much is moved by several threads …
THREADS = min(4, os.cpu_count() or 1)  # … one a core: they seal, open and copy outside of the GIL
AT_ONCE = 64  # connections that move at the same time: each holds two frames' memory
JOIN_S = (0.0005, 0.02)  # how often to look for a rank's answer: at first, and at most
TOGETHER_S = (0.2, 5.0)  # how long ranks that have come wait for those that have not: at first, and at most


@dataclass(frozen=True, slots=True)
class Invited:
    """A connection that a rank expects, and where."""

    invitation: Invitation
    host: str
    port: int
    shares: bool  # it has found the memory to be shared


class _Answered(Exception):  # no error: the ranks' answers tell what is
    """Some rank will not take part any more."""


class _Apart(Exception):  # no error: they are asked again
    """Some ranks have come and wait for others."""


class Channels:
    """The bulk channels of one session.

    Attributes
    ----------
    moved_nbytes
        What has passed over them since this notebook holds the session, in both directions.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._open: dict[int, tuple[str, Channel]] = {}  # by rank, with the engine that it leads to
        self._closed_nbytes = 0
        self._transfers = itertools.count(secrets.randbits(32) << 31)
        self.lock = threading.RLock()  # one transfer at a time

    @property
    def moved_nbytes(self) -> int:
        """Bytes that passed, both ways."""
        return self._closed_nbytes + sum(channel.moved_nbytes for _, channel in list(self._open.values()))

    def next_transfer(self) -> int:
        """Give a transfer's number; no two of a session's have the same."""
        return next(self._transfers)

    @contextlib.contextmanager
    def kept(self, transfer: int, ranks: Sequence[int], *, whole: bool = False) -> Iterator[None]:
        """Have ranks let go of what they keep for a transfer if it fails; and of what is `whole` in any case."""
        fetched = False
        try:
            yield
            fetched = not whole
        finally:
            if not fetched:
                with contextlib.suppress(HpcMagicError):  # of ranks that are gone nothing is left
                    self.session.send_to(dict.fromkeys(ranks, Forget(transfer)))

    def close(self, ranks: Sequence[int] | None = None) -> None:
        """Close the channels to these ranks, or all."""
        for rank in list(self._open) if ranks is None else ranks:
            if rank in self._open:
                channel = self._open[rank][1]
                channel.close()
                if self._open.pop(rank, None) is not None:
                    self._closed_nbytes += channel.moved_nbytes

    def open_to(self) -> tuple[int, ...]:
        """Give the ranks that channels are open to."""
        return tuple(self._open)

    def to(self, ranks: Sequence[int], nbytes: int) -> dict[int, Channel]:
        """Give channels to ranks, whose keys serve so many bytes more.

        Raises
        ------
        PeerLost
            A rank cannot be reached.
        """
        control = self.session.control_path()
        engines = {rank: control.engine(rank) for rank in ranks}
        worn = [r for r in ranks if r in self._open and not self._serves(self._open[r], engines[r], nbytes)]
        self.close(worn)
        missing = [rank for rank in ranks if rank not in self._open]
        memory: dict[int, Shared] = {}
        try:
            for rank in self._here().intersection(missing) if missing else ():
                if (made := Shared.create()) is not None:
                    memory[rank] = made
            where = self.invite({rank: Invitation.fresh(_name(memory.get(rank))) for rank in missing})
            for made in memory.values():
                made.unlink()
            for rank, told in where.items():
                try:
                    channel = connect(told.host, told.port, told.invitation, self.session.request.server_public)
                except PeerLost as error:
                    raise _of_rank(rank, error) from error
                if rank in memory and told.shares:
                    channel.shared = memory.pop(rank)
                self._open[rank] = (engines[rank], channel)  # at last: what is in here the rank knows alike
        finally:
            for unused in memory.values():
                unused.unlink()
                unused.close()
        return {rank: self._open[rank][1] for rank in ranks}

    @staticmethod
    def _serves(held: tuple[str, Channel], engine: str, nbytes: int) -> bool:
        led_to, channel = held
        keys = (channel.sealer, channel.opener)
        return led_to == engine and not channel.is_cut() and all(key.left_nbytes() > 2 * nbytes for key in keys)

    def _here(self) -> set[int]:
        """Give the ranks that seem to run on this host; they prove it by finding the memory to be shared."""
        here = socket.gethostname().partition(".")[0]
        return {rank for rank, node in enumerate(self.session.keeper_state().nodes) if node == here}

    def all_here(self) -> bool:
        """Whether all ranks share memory with this notebook, as far as is known."""
        shares = {rank for rank, (_, channel) in self._open.items() if channel.shared is not None}
        unknown = set(range(self.session.size)) - self._open.keys()
        if unknown and shared.ALLOWED:
            shares |= self._here() & unknown
        return len(shares) == self.session.size

    def invite(self, invitations: Mapping[int, Invitation]) -> dict[int, Invited]:
        """Announce connections to ranks, with fresh keys, over CURVE; wait for where they listen.

        Raises
        ------
        PeerLost
            A rank cannot listen, or is gone.
        """
        ranks, control = set(invitations), self.session.control_path()
        engines = {rank: control.engine(rank) for rank in ranks}
        try:
            answers = control.invite(invitations)
        except PeerLost:
            self.session.require_alive()  # if all ranks have ended the keeper knows why
            raise
        progress = Progress("bulk channel", len(ranks), str)
        pause_s, looked_s = JOIN_S[0], time.monotonic()
        try:
            while len(answers) < len(ranks):
                time.sleep(pause_s)
                pause_s = min(JOIN_S[1], pause_s * 1.5)
                progress.update(0, f"a word from {output.ranks_in_words(sorted(ranks - set(answers)))}")
                if time.monotonic() - looked_s > LOOK_S:
                    looked_s = time.monotonic()
                    self.session.look(looked_s)
                    gone = [rank for rank in ranks - set(answers) if control.engine(rank) != engines[rank]]
                    if gone:
                        raise PeerLost(
                            f"The engine of {output.ranks_in_words(sorted(gone))} is gone, with all variables there.",
                            "Run your cells again from where variables are made.",
                        )
        except KeyboardInterrupt:
            raise CellError("Stopped before anything had moved.", "Try again.") from None
        finally:
            progress.close()
        refused = {rank: told["cause"] for rank, told in answers.items() if "port" not in told}
        if refused:
            rank, cause = min(refused.items())
            raise PeerLost(f"Rank {rank} opens no bulk port: {' '.join(cause.split())}.", "See `%hpc log`.")
        return {
            rank: Invited(invitations[rank], told["host"], told["port"], told["shares"])
            for rank, told in answers.items()
        }

    def move(
        self,
        what: str,
        nbytes: int,
        ranks: Sequence[int],
        ask: Callable[[Mapping[int, str]], Mapping[int, Any]],
        *phases: Callable[[int, Channel], Moving],
        together: bool = False,
        ahead: bool = False,
        left: str = "Nothing was bound",
    ) -> list[Reply]:
        """Ask ranks for their part of a transfer and do ours; all of it, or nothing.

        Parameters
        ----------
        what
            Named in the progress line.
        nbytes
            All that will move.
        ask
            Makes what ranks are asked, by rank, each time that they are; takes the names of their channels.
        *phases
            Each makes our part with one rank; the next begins when all ranks are through.
        together
            In the first phase each rank says no more than that it has come, and then waits for all others.
        ahead
            What goes to ranks, in the only phase there is, may leave before they are asked to take it.
        left
            What Ctrl-C leaves behind.

        Raises
        ------
        CellError
            Ctrl-C.
        RankError, ChannelError, SessionEnded
            What went wrong, by rank.
        """
        progress = Progress(what, nbytes, nbytes_in_words)
        patience_s = TOGETHER_S[0] if together and len(ranks) > 1 else None
        try:
            while True:
                try:
                    return self._move(ranks, ask, phases, progress, patience_s, ahead=ahead)
                except _Apart:
                    assert patience_s is not None  # noqa: S101  # for the type checker: else none is raised
                    time.sleep(random.uniform(0, patience_s))  # noqa: S311  # another notebook may do the same
                    patience_s = min(2 * patience_s, TOGETHER_S[1])
        except KeyboardInterrupt:
            raise CellError(f"Stopped: {what}. {left}.", "Try again.") from None
        finally:
            progress.close()

    def _move(
        self,
        ranks: Sequence[int],
        ask: Callable[[Mapping[int, str]], Mapping[int, Any]],
        phases: Sequence[Callable[[int, Channel], Moving]],
        progress: Progress,
        patience_s: float | None,
        *,
        ahead: bool,
    ) -> list[Reply]:
        channels, pending = self.to(ranks, int(progress.total)), Pending(())  # nobody is asked yet
        try:
            asked = ask({rank: channel.name for rank, channel in channels.items()})
            begun = _what_waits(channels, phases[0]) if ahead else {}
            pending = self.session.send_to(asked)
            watch = _Watch(self.session, pending, channels, progress, patience_s)
            for phase in phases:
                moving = begun if ahead else {rank: phase(rank, channels[rank]) for rank in ranks}
                failed = self._run(channels, moving, watch, THREADS if progress.total > MUCH_NBYTES else 1)
                if failed:
                    self._fail(pending, failed, ranks)
                watch.patience_s = None
            return self.session.answers(pending)
        except _Answered:
            self._fail(pending, {}, ranks)
        except BaseException:  # also before all were asked: who has been must not wait for the others
            self.close(ranks)
            self._give_up(pending)
            raise
        finally:
            for channel in channels.values() if len(channels) > FEW else ():
                channel.rest()
        raise AssertionError("unreachable")  # `_fail` raises

    @staticmethod
    def _run(
        channels: Mapping[int, Channel], moving: dict[int, Moving], tick: Callable[[], None], threads: int
    ) -> dict[int, HpcMagicError]:
        """Move all, so many at a time that memory stays bounded."""
        ranks = list(moving)
        for start in range(0, len(ranks), AT_ONCE):
            part = ranks[start : start + AT_ONCE]
            failed = run_all(channels, {rank: moving[rank] for rank in part}, tick, threads=threads)
            if failed:
                return failed
            if len(ranks) > AT_ONCE:
                for rank in part:
                    channels[rank].rest()
        return {}

    def _fail(self, pending: Pending, failed: Mapping[int, HpcMagicError], ranks: Sequence[int]) -> None:
        """Raise what the ranks say went wrong, else what our end has seen."""
        self.close(ranks)
        deadline = time.monotonic() + WORD_S
        while not _has_word(pending) and not pending.lost and pending.missing() and time.monotonic() < deadline:
            self.session.require_alive()  # MPI ends all ranks when one is killed: the keeper knows which it was
            pending.wait(0.05)
        self._give_up(pending)
        if pending.lost:
            self.session.require_all(pending)
        self.session.raise_errors([reply for reply in pending.replies.values() if _is_word(reply)])
        rank, error = min(failed.items()) if failed else (min(ranks), PeerLost("The bulk channel is cut.", ""))
        raise _of_rank(rank, error)

    def _give_up(self, pending: Pending) -> None:
        """Have ranks that have not begun not begin."""
        if pending.missing() and not self.session.ended:
            self.session.control_path().withdraw(pending)
            pending.wait(LEAVE_S)


class _Watch:
    """Called now and then while bytes move: shows how far it is, and looks whether it goes on at all."""

    def __init__(
        self,
        session: Session,
        pending: Pending,
        channels: Mapping[int, Channel],
        progress: Progress,
        patience_s: float | None,
    ) -> None:
        self.session = session
        self.pending = pending
        self.channels = channels
        self.progress = progress
        self.patience_s = patience_s  # None: nobody waits for others
        self._began = {rank: channel.moved_nbytes for rank, channel in channels.items()}
        self._looked_s = self._alone_s = time.monotonic()

    def __call__(self) -> None:
        moved = {rank: channel.moved_nbytes - self._began[rank] for rank, channel in self.channels.items()}
        waits = [rank for rank, nbytes in moved.items() if not nbytes]
        if sum(moved.values()) >= self.progress.total:  # on its way to ranks that may be busy
            waits = waits or list(self.pending.missing())
        self.progress.update(sum(moved.values()), self._in_words(waits) if waits else "")
        if self.pending.lost or any(reply.raised is not None for reply in list(self.pending.replies.values())):
            raise _Answered
        now = time.monotonic()
        if len(waits) in {0, len(moved)}:
            self._alone_s = now
        elif self.patience_s is not None and now - self._alone_s > self.patience_s:
            raise _Apart
        if now - self._looked_s >= LOOK_S:
            self._looked_s = now
            self.session.look(now)

    def _in_words(self, ranks: Sequence[int]) -> str:
        busy = self.session.running_cells()
        return f"{output.ranks_in_words(ranks)}{f', busy with {busy}' if busy else ''}"


def _what_waits(channels: Mapping[int, Channel], phase: Callable[[int, Channel], Moving]) -> dict[int, Moving]:
    """Let go out what sockets take at once; give what is left to do."""
    moving = {rank: phase(rank, channel) for rank, channel in channels.items()}
    return {rank: part for rank, part in moving.items() if not goes_through(part)}


def _name(shared: Shared | None) -> str:
    return "" if shared is None else shared.name


def _is_word(reply: Reply) -> bool:
    """Whether a rank says what went wrong with it, rather than that we have given up."""
    return reply.raised is not None and reply.raised.name not in ("PeerLost", "KeyboardInterrupt")


def _has_word(pending: Pending) -> bool:
    return any(_is_word(reply) for reply in list(pending.replies.values()))


def _of_rank(rank: int, error: HpcMagicError) -> HpcMagicError:
    named = type(error)(f"Rank {rank}: {error.message[:1].lower()}{error.message[1:]}", error.mend)
    named.__cause__ = error
    return named
