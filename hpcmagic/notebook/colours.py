"""Colour maps, each 256 colours from low to high in steps that look alike, as red, green and blue bytes.

>>> sorted(tables()), len(tables()["gray"])
(['blue–red', 'gray', 'viridis'], 768)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

COLOURS = 256
VIRIDIS = (  # polynomials that follow matplotlib's viridis within 5 of 255, for red, green and blue
    (0.274, 0.108, -0.327, -4.6, 6.204, 4.752, -5.432),
    (0.006, 1.396, 0.215, -5.758, 14.154, -13.749, 4.642),
    (0.333, 1.387, 0.092, -19.292, 56.656, -65.321, 26.272),
)
DARK, LIGHT = 0.42, 0.96  # the ends and the middle of the diverging map, by Oklab's lightness
CHROMA, BLUE, RED = 0.15, math.radians(258), math.radians(28)


@functools.cache
def tables() -> dict[str, bytes]:
    """Give all maps by name, the usual one first."""
    return {"viridis": _table(_viridis), "blue–red": _table(_diverging), "gray": _table(_gray)}


def _table(colour: Callable[[float], tuple[float, ...]]) -> bytes:
    return bytes(round(255 * min(1.0, max(0.0, part))) for n in range(COLOURS) for part in colour(n / (COLOURS - 1)))


def _viridis(at: float) -> tuple[float, ...]:
    return tuple(sum(factor * at**power for power, factor in enumerate(factors)) for factors in VIRIDIS)


def _gray(at: float) -> tuple[float, ...]:
    return _from_oklab(0.12 + 0.86 * at, 0.0, 0.0)


def _diverging(at: float) -> tuple[float, ...]:
    away = abs(2 * at - 1)
    hue, chroma = RED if at > 0.5 else BLUE, CHROMA * away**0.85
    return _from_oklab(LIGHT + (DARK - LIGHT) * away, chroma * math.cos(hue), chroma * math.sin(hue))


def _from_oklab(lightness: float, a: float, b: float) -> tuple[float, ...]:
    """Give sRGB of a colour in Björn Ottosson's Oklab, in which equal steps look equal."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return tuple(12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in linear)
