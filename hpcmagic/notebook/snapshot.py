"""The panel as one picture (PNG): what a saved notebook shows of a simulation."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
from collections.abc import Sequence
from typing import Any

from hpcmagic.notebook.colours import tables
from hpcmagic.notebook.mirror import Curve, Mirror
from hpcmagic.notebook.simulation import as_text, news_of
from hpcmagic.wire.looks import Picture

WIDTH, SIDE, MARGIN, LINE = 960, 400, 20, 19
CHART_HEIGHT, CHARTS, PARAMS = 116, 6, 12
INK, QUIET, RULE, BLUE, HOLE = "#1f2328", "#656d76", "#d8dee4", "#1f6feb", (225, 228, 232)
WIDEST_TEXT = 60
THINNEST = 24  # side of a field, in pixels


def bundle(mirror: Mirror, field: str, place: str) -> dict[str, str]:
    """Give what a notebook keeps: a page with the picture (or the text), the picture, the text.

    Parameters
    ----------
    mirror
        What is known of the simulation.
    field
        Which field to show.
    place
        The name under which the live panel finds the page.
    """
    news = news_of(mirror)
    with mirror.changed:
        text = as_text(news, mirror)
    picture = _png(mirror, field)
    body = f'<pre style="margin: 0">{html.escape(text)}</pre>'
    found = {"text/plain": text}
    if picture is not None:
        found["image/png"] = base64.b64encode(picture).decode()
        body = (
            f'<img src="data:image/png;base64,{found["image/png"]}" alt="{html.escape(text)}" '
            f'style="max-width: 100%; width: {WIDTH}px">'
        )
    return {**found, "text/html": f'<div class="hpcmagic-panel" data-place="{place}">{body}</div>'}


def _png(mirror: Mirror, field: str) -> bytes | None:
    """Draw it; None where there is no Pillow."""
    if importlib.util.find_spec("PIL") is None:
        return None
    with mirror.changed:
        words = [line.strip() for line in as_text(news_of(mirror), mirror).splitlines()[: 1 + PARAMS]]
        head, params = words[0], words[1 : 1 + len(news_of(mirror).params)]
        curves = {name: Curve(0, one.steps[:], one.values[:]) for name, one in list(mirror.curves.items())[:CHARTS]}
        picture = mirror.pictures.get(field)
    return _Drawing(head, params, curves, picture).png()


class _Drawing:
    """One picture while it is drawn: the field on the left, the curves on the right."""

    def __init__(self, head: str, params: Sequence[str], curves: dict[str, Curve], picture: Picture | None) -> None:
        from PIL import Image, ImageDraw, ImageFont

        left = MARGIN + SIDE + 2 * MARGIN if picture is not None else MARGIN
        top = 2 * MARGIN + LINE + LINE * len(params)
        height = max(top + CHART_HEIGHT * len(curves), top + SIDE + 2 * LINE if picture is not None else 0) + MARGIN
        self._image = Image.new("RGB", (WIDTH, height), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._font = ImageFont.load_default(size=14)
        self._small = ImageFont.load_default(size=12)
        self._text(MARGIN, MARGIN, head, INK)
        for number, param in enumerate(params):
            self._text(MARGIN, MARGIN + LINE * (number + 1), param[: 2 * WIDEST_TEXT], QUIET)
        if picture is not None and picture.rows and picture.columns:
            self._field(picture, top)
        for number, (name, curve) in enumerate(curves.items()):
            self._curve(name, curve, left, top + CHART_HEIGHT * number)

    def png(self) -> bytes:
        """Give it as a file."""
        file = io.BytesIO()
        self._image.save(file, "PNG")
        return file.getvalue()

    def _text(self, x: float, y: float, text: str, colour: str, *, small: bool = False) -> None:
        self._draw.text((x, y), text, fill=colour, font=self._small if small else self._font)

    def _field(self, picture: Picture, top: int) -> None:
        from PIL import Image

        colours = bytearray(next(iter(tables().values())))
        colours[-3:] = bytes(HOLE)
        image: Any = Image.frombytes("P", (picture.columns, picture.rows), picture.pixels)
        image.putpalette(bytes(colours))
        scale = SIDE / max(picture.rows, picture.columns)
        size = max(THINNEST, round(picture.columns * scale)), max(THINNEST, round(picture.rows * scale))
        self._text(MARGIN, top, f"{picture.name} at step {picture.step}", INK)
        self._image.paste(image.convert("RGB").resize(size, Image.Resampling.NEAREST), (MARGIN, top + LINE))
        ends = f"{picture.low:.4g} to {picture.high:.4g}"
        self._text(MARGIN, top + LINE + size[1] + 4, ends, QUIET, small=True)

    def _curve(self, name: str, curve: Curve, left: int, top: int) -> None:
        right, bottom, top_line = WIDTH - MARGIN, top + CHART_HEIGHT - 24, top + LINE
        points = [(s, v) for s, v in zip(curve.steps, curve.values, strict=True) if abs(v) < float("inf")]
        last = f" = {curve.values[-1]:.6g}" if curve.values else ""
        self._text(left, top, f"{name[:WIDEST_TEXT]}{last}", INK)
        self._draw.line([(left, bottom), (right, bottom)], fill=RULE)
        if not points:
            return
        low, high = min(v for _, v in points), max(v for _, v in points)
        begin, end = points[0][0], points[-1][0]
        wide, span = (right - left) / max(1, end - begin), (high / 2 - low / 2) or 1.0  # halves: else it may overflow
        tall = (bottom - top_line - 4) / span
        every = max(1, len(points) // (2 * (right - left)))
        line = [(left + (s - begin) * wide, bottom - 2 - (v / 2 - low / 2) * tall) for s, v in points[::every]]
        self._draw.line([*line, *line[-1:]], fill=BLUE, width=2)
        steps = f"steps {begin} to {end}; {low:.4g} to {high:.4g}"
        self._text(left, bottom + 3, steps, QUIET, small=True)
