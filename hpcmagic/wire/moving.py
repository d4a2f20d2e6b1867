"""Threads that move connections: what waits for its socket is let wait, what can go on goes on.

What happens on a connection is written as a generator, which yields what it waits for:

    READ, WRITE    its socket to have, or to take, bytes
    GO_ON          nothing; but others may have their turn
"""

from __future__ import annotations

import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Protocol

from hpcmagic.errors import HpcMagicError, PeerLost

READ, WRITE, GO_ON = selectors.EVENT_READ, selectors.EVENT_WRITE, 0
Moving = Generator[int, None, None]


class Connected(Protocol):
    """What has a socket of its own."""

    sock: socket.socket


def goes_through(moving: Moving) -> bool:
    """Go on until it has to wait; whether it came to its end."""
    return all(wanted == GO_ON for wanted in moving)


def run_one(channel: Connected, moving: Moving, timeout_s: float | None = None) -> None:
    """Move one connection to its end in this thread.

    Raises
    ------
    PeerLost
        It was not done in time.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    waits_for = {READ: select.POLLIN, WRITE: select.POLLOUT}
    for wanted in moving:
        if wanted == GO_ON:
            continue
        poll = select.poll()
        poll.register(channel.sock, waits_for[wanted])
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not poll.poll(None if left_s is None else left_s * 1000):
            raise lost(f"no answer within {timeout_s:g} s")


def run_all(
    channels: Mapping[int, Connected],
    moving: Mapping[int, Moving],
    tick: Callable[[], None],
    tick_s: float = 0.1,
    threads: int = 1,
) -> dict[int, HpcMagicError]:
    """Move many connections to their ends; give what went wrong, by rank, as soon as anything has.

    Parameters
    ----------
    tick
        Called every `tick_s` seconds in this thread; what it raises comes through, and so does Ctrl-C.
    threads
        How many are at it; with one it is this thread.
    """
    failed: dict[int, HpcMagicError] = {}
    if threads < 2:
        _run_part(channels, moving, failed, tick, tick_s)
        return failed
    ranks, given_up = list(moving), threading.Event()
    with ThreadPoolExecutor(threads, "hpcmagic-bulk") as pool:
        try:  # Ctrl-C while a thread is being started leaves one of which the pool does not know: it too gives up
            parts = [
                pool.submit(
                    _run_part,
                    channels,
                    {r: moving[r] for r in ranks[n::threads]},
                    failed,
                    None,
                    tick_s,
                    given_up=given_up,
                )
                for n in range(min(threads, len(ranks)))
            ]
            while wait(parts, tick_s, FIRST_EXCEPTION).not_done and not _broken(parts):
                tick()
        finally:
            given_up.set()
    for part in parts:
        part.result()
    return failed


def _broken(parts: Iterable[Future[None]]) -> bool:
    """Whether one has ended with an error that is none of a connection's."""
    return any(part.done() and part.exception() is not None for part in parts)


def _run_part(
    channels: Mapping[int, Connected],
    moving: Mapping[int, Moving],
    failed: dict[int, HpcMagicError],
    tick: Callable[[], None] | None,
    tick_s: float,
    *,
    given_up: threading.Event | None = None,
) -> None:
    """Move connections in this thread until all are through, or anything has failed, here or elsewhere."""
    ready, tick_at_s = list(moving), time.monotonic() + tick_s
    with selectors.DefaultSelector() as waiting:
        while given_up is None or not given_up.is_set():
            again: list[int] = []
            for rank in ready:
                wanted = _move_on(moving[rank], rank, failed)
                if wanted == GO_ON:
                    again.append(rank)
                elif wanted is not None:
                    waiting.register(channels[rank].sock, wanted, rank)
            if failed or not (again or waiting.get_map()):
                return
            for key, _ in waiting.select(0 if again else max(0.0, tick_at_s - time.monotonic())):
                waiting.unregister(key.fileobj)
                again.append(key.data)
            ready = again
            if time.monotonic() >= tick_at_s:
                tick_at_s = time.monotonic() + tick_s
                if tick is not None:
                    tick()


def _move_on(moving: Moving, rank: int, failed: dict[int, HpcMagicError]) -> int | None:
    """Go on until it waits; None when it is over."""
    try:
        return next(moving)
    except StopIteration:
        return None
    except HpcMagicError as error:
        failed[rank] = error
        return None


def lost(why: str | None) -> PeerLost:
    """Give the error of a connection that is cut."""
    return PeerLost(f"The bulk channel is cut: {why or 'no reason is known'}.", "See `%hpc` and `%hpc log`.")
