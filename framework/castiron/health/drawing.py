"""A few shapes, drawn once and shown twice: as a PNG for TensorBoard, as SVG in a page.

PNGs are drawn by Pillow, which tensorboard brings along; a plotting library would cost a second to import.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np

Anchor = Literal["start", "middle", "end"]

INK, MUTED, RULE, PAPER = "#1c2733", "#64707d", "#d9dfe5", "#ffffff"


@dataclass(frozen=True, slots=True)
class _Shape:
    kind: Literal["rect", "line", "path", "text"]
    points: tuple[tuple[float, float], ...]
    fill: str
    width: float = 1.0
    text: str = ""
    size: int = 11
    anchor: Anchor = "start"
    opacity: float = 1.0


@dataclass(slots=True)
class Canvas:
    """A drawing of so many pixels; the origin is at the top left."""

    width: int
    height: int
    title: str = ""
    _shapes: list[_Shape] = field(default_factory=list)

    def rect(self, x: float, y: float, w: float, h: float, fill: str, opacity: float = 1.0) -> None:
        self._shapes.append(_Shape("rect", ((x, y), (x + w, y + h)), fill, opacity=opacity))

    def line(self, x0: float, y0: float, x1: float, y1: float, fill: str = RULE, width: float = 1.0) -> None:
        self._shapes.append(_Shape("line", ((x0, y0), (x1, y1)), fill, width))

    def path(self, points: Sequence[tuple[float, float]], fill: str, width: float = 1.5) -> None:
        if len(points) > 1:
            self._shapes.append(_Shape("path", tuple(points), fill, width))

    def text(
        self, x: float, y: float, text: str, fill: str = INK, size: int = 11, anchor: Anchor = "start"
    ) -> None:
        """Text whose baseline is at y."""
        self._shapes.append(_Shape("text", ((x, y),), fill, text=text, size=size, anchor=anchor))

    def svg(self) -> str:
        """An `<svg>` element that scales with its page."""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'role="img" aria-label="{escape(self.title)}" font-family="system-ui, sans-serif">'
            f"<title>{escape(self.title)}</title>"
        ]
        for s in self._shapes:
            (x0, y0), (x1, y1) = s.points[0], s.points[-1]
            if s.kind == "rect":
                clear = f' fill-opacity="{s.opacity:g}"' if s.opacity < 1 else ""
                parts.append(
                    f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.2f}" height="{y1 - y0:.2f}" '
                    f'fill="{s.fill}"{clear}/>'
                )
            elif s.kind == "text":
                parts.append(
                    f'<text x="{x0:.1f}" y="{y0:.1f}" font-size="{s.size}" fill="{s.fill}" '
                    f'text-anchor="{s.anchor}">{escape(s.text)}</text>'
                )
            else:
                points = " ".join(f"{x:.1f},{y:.1f}" for x, y in s.points)
                parts.append(
                    f'<polyline points="{points}" fill="none" stroke="{s.fill}" stroke-width="{s.width:g}" '
                    'stroke-linejoin="round"/>'
                )
        return "".join(parts) + "</svg>"

    def png(self, scale: int = 1) -> bytes:
        """The bytes of a PNG file, so many pixels to one of the drawing."""
        from PIL import Image, ImageDraw

        # Areas first, as slices: a heatmap has thousands, and Pillow takes its time over each.
        area = np.full((self.height * scale, self.width * scale, 3), 255, np.uint8)
        for s in self._shapes:
            if s.kind == "rect":
                (x0, y0), (x1, y1) = ((round(x * scale), round(y * scale)) for x, y in s.points)
                area[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = _colour(_mixed(s.fill, s.opacity))
        picture = Image.fromarray(area)
        pen = ImageDraw.Draw(picture)
        for s in self._shapes:
            points = [(x * scale, y * scale) for x, y in s.points]
            if s.kind == "text":
                pen.text(
                    points[0],
                    s.text,
                    fill=s.fill,
                    font=_font(s.size * scale),
                    anchor={"start": "ls", "middle": "ms", "end": "rs"}[s.anchor],
                )
            elif s.kind != "rect":
                pen.line(points, fill=s.fill, width=max(round(s.width * scale), 1), joint="curve")
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        return file.getvalue()


def prepare() -> None:
    """Load what drawing needs now, so that no training step does."""
    for size in (9, 10, 11, 13):
        _font(size)


_FONTS: dict[int, Any] = {}


def _font(size: int) -> Any:
    """Pillow's own font, which it carries with it."""
    if size not in _FONTS:
        from PIL import ImageFont

        _FONTS[size] = ImageFont.load_default(size)
    return _FONTS[size]


@functools.lru_cache(maxsize=4096)
def _colour(code: str) -> tuple[int, ...]:
    return tuple(int(code[i : i + 2], 16) for i in (1, 3, 5))


@functools.lru_cache(maxsize=4096)
def _mixed(colour: str, opacity: float) -> str:
    """A colour laid over the paper."""
    if opacity >= 1:
        return colour
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - v) * opacity):02x}" for v in (r, g, b))


def shade(share: float, dark: str = "#0b4f8a") -> str:
    """A colour between paper and `dark`, in steps of a hundredth."""
    return _mixed(dark, round(max(share, 0.0), 2)) if share < 0.995 else dark
