"""Pictures of lines, written by hand: no plotting library needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 200, 44, 48  # margins; the legend stands in the right one
COLOURS = ("#2563eb", "#059669", "#d97706", "#7c3aed", "#dc2626", "#475569", "#0891b2")
INK, GRID = "#374151", "#e5e7eb"

Scale = Callable[[float], float]  # from a value to pixels


@dataclass(frozen=True, slots=True)
class Line:
    """points: (x, y), by x. Lines of one `key` share a colour; a `limit` is dashed."""

    name: str
    key: str
    points: tuple[tuple[float, float], ...]
    limit: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """Values that bear a label, with it."""

    scale: Scale
    ticks: Sequence[tuple[float, str]]
    label: str = ""


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    span = math.log(high / low) or 1.0  # a single value stands at the start
    return lambda value: start + (end - start) * math.log(value / low) / span


def linear(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (end - start) * (value - low) / ((high - low) or 1.0)


def chart(title: str, lines: Sequence[Line], x: Axis, y: Axis) -> str:
    colours = dict(zip(dict.fromkeys(line.key for line in lines), COLOURS, strict=False))
    parts = [_text(LEFT, 24, title, size=15)]
    for value, label in y.ticks:
        parts.append(_path([(LEFT, y.scale(value)), (WIDTH - RIGHT, y.scale(value))], GRID))
        parts.append(_text(LEFT - 8, y.scale(value) + 4, label, anchor="end"))
    for value, label in x.ticks:
        parts.append(_text(x.scale(value), HEIGHT - BOTTOM + 20, label, anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x.label, anchor="middle"))
    for number, line in enumerate(lines):
        colour = colours.get(line.key, INK)
        points = [(x.scale(a), y.scale(b)) for a, b in line.points]
        parts.append(_path(points, colour, dashed=line.limit, width=1.2 if line.limit else 2.2))
        if not line.limit:
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points
            ]
        at = TOP + 8 + 20 * number
        key = [(WIDTH - RIGHT + 16, at), (WIDTH - RIGHT + 40, at)]
        parts.append(_path(key, colour, dashed=line.limit, width=2.2))
        parts.append(_text(WIDTH - RIGHT + 48, at + 4, line.name))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif">\n<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n'
        f"{body}\n</svg>\n"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">'
        f"{escape(text)}</text>"
    )


def _path(
    points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False, width: float = 1.0
) -> str:
    where = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'
    )
