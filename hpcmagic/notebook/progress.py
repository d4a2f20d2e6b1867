"""How far something is: a bar, the amount, the rate, the time left; from one second on, in place."""

from __future__ import annotations

import time
from collections.abc import Callable

from hpcmagic.notebook import output

SHOWN_AFTER_S = 1.0
SHOWN_EACH_S = 0.25
BAR = 20
EIGHTHS = " ▏▎▍▌▋▊▉"


class Progress:
    """One line that says how far something is.

    Parameters
    ----------
    what
        Said first: ``scatter x``.
    total
        Of what is counted.
    written
        Writes an amount with its unit, as `nbytes_in_words` does.
    """

    def __init__(self, what: str, total: float, written: Callable[[float], str]) -> None:
        self.what = what
        self.total = total
        self.written = written
        self.line = output.StatusLine()
        self.began_s = time.monotonic()
        self._shown_s = self.began_s + SHOWN_AFTER_S - SHOWN_EACH_S
        self._moves_since_s = self.began_s  # waiting before that is no part of the rate

    def update(self, amount: float, waits_for: str = "") -> None:
        """Say how far it is; `waits_for` says what keeps it from beginning."""
        now = time.monotonic()
        if not amount:
            self._moves_since_s = now
        if now - self._shown_s < SHOWN_EACH_S:
            return
        self._shown_s = now
        if waits_for:
            self.line.update(f"{self.what}: waits for {waits_for}, {output.clock(int(now - self.began_s))}")
        else:
            self.line.update(f"{self.what}: {how_far(amount, self.total, now - self._moves_since_s, self.written)}")

    def close(self) -> None:
        """Take the line away."""
        self.line.clear()


def how_far(amount: float, total: float, seconds: float, written: Callable[[float], str]) -> str:
    """Write a bar, the amount, the rate and the time left.

    >>> how_far(1.5e9, 3e9, 3, nbytes_in_words)
    '██████████           50 %  1.5 GB of 3.0 GB, 500 MB/s, 3 s left'
    """
    share = min(1.0, amount / total) if total else 1.0
    eighths = round(share * BAR * 8)
    bar = "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")
    rate = amount / seconds if seconds > 0 else 0.0
    left = f", {output.clock(int(max(0.0, total - amount) / rate + 0.5))} left" if rate else ""
    return (
        f"{bar:<{BAR}} {share:.0%}".replace("%", " %")
        + f"  {written(amount)} of {written(total)}, {written(rate)}/s{left}"
    )


def nbytes_in_words(nbytes: float) -> str:
    """Write a size.

    >>> nbytes_in_words(128), nbytes_in_words(2.5e6), nbytes_in_words(6.4e7), nbytes_in_words(3e9)
    ('128 B', '2.5 MB', '64 MB', '3.0 GB')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit * 0.9995:
            number = nbytes / unit
            return f"{number:.1f} {name}" if number < 9.95 else f"{number:.0f} {name}"
    return f"{nbytes:.0f} B"
