"""A result of bench.engine as a picture: decode tokens/s against batch, and the machine's limit.

    python -m bench.plot bench/results/engine.json docs/engine.svg

One solid line per engine and dtype, one dashed line per dtype for what the machine allows (from
bench.engine_roofline). Both axes are logarithmic. Written by hand: no plotting library needed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 200, 44, 48  # margins; the legend stands in the right one
COLOURS = ("#2563eb", "#059669", "#d97706", "#7c3aed", "#dc2626", "#475569", "#0891b2")
INK, GRID = "#374151", "#e5e7eb"


@dataclass(frozen=True, slots=True)
class Line:
    """points: (batch, tokens/s), by batch. `limit` lines belong to the solid line of `key`."""

    name: str
    key: str
    points: tuple[tuple[int, float], ...]
    limit: bool = False


def lines_of(result: Mapping[str, Any]) -> list[Line]:
    """Ours by dtype, each followed by its limit, then the peers."""
    rows = sorted(
        (row for row in result["rows"] if row["phase"] == "decode"), key=lambda row: row["batch"]
    )
    lines = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        own = [row for row in rows if row["dtype"] == dtype]
        points = tuple((row["batch"], row["tokens_s"]) for row in own)
        limit = tuple((row["batch"], row["tokens_s"] / row["roofline"]) for row in own)
        lines.append(Line(f"Triptych {dtype}", dtype, points))
        lines.append(Line(f"limit of {dtype}", dtype, limit, limit=True))
    for peer in dict.fromkeys(name for row in rows for name in row["peers"]):
        own = [row for row in rows if peer in row["peers"]]
        points = tuple((row["batch"], row["peers"][peer]) for row in own)
        lines.append(Line(f"{peer} {own[0]['dtype']}", peer, points))
    return lines


def svg_of(lines: Sequence[Line], title: str) -> str:
    batches = sorted({batch for line in lines for batch, _ in line.points})
    values = [value for line in lines for _, value in line.points]
    x = _axis(batches[0], batches[-1], LEFT, WIDTH - RIGHT)
    y = _axis(min(values) / 1.3, max(values) * 1.3, HEIGHT - BOTTOM, TOP)
    colours = dict(zip(dict.fromkeys(line.key for line in lines), COLOURS, strict=False))
    parts = [_text(LEFT, 24, title, size=15)]
    for value in _round_numbers(min(values) / 1.3, max(values) * 1.3):
        parts.append(_path([(LEFT, y(value)), (WIDTH - RIGHT, y(value))], GRID))
        parts.append(_text(LEFT - 8, y(value) + 4, f"{value:,}", anchor="end"))
    for batch in batches:
        parts.append(_text(x(batch), HEIGHT - BOTTOM + 20, str(batch), anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 8, "sequences decoded together", anchor="middle"))
    for number, line in enumerate(lines):
        colour = colours.get(line.key, INK)
        points = [(x(batch), y(value)) for batch, value in line.points]
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


def markdown_of(result: Mapping[str, Any]) -> str:
    """Decode and prefill: one row each, ours with the share of the limit, and the peers' ratios."""
    peers = list(dict.fromkeys(name for row in result["rows"] for name in row["peers"]))
    heads = ["", "weights", "tokens/s", "of the limit", *(f"against {name}" for name in peers)]
    lines = [heads, ["---"] * len(heads)]
    for row in result["rows"]:
        if row["phase"] not in ("decode", "prefill"):
            continue
        size = row["batch"] if row["phase"] == "decode" else row["tokens"]
        what = f"decode, batch {size}" if row["phase"] == "decode" else f"prompt of {size:,} tokens"
        own = row["tokens_s"]
        theirs = [
            f"{own / row['peers'][name]:.1f}×" if name in row["peers"] else "" for name in peers
        ]
        share = f"{100 * row['roofline']:.0f} %"
        lines.append([what, row["dtype"], f"{own:,.0f}", share, *theirs])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _axis(low: float, high: float, start: float, end: float) -> Any:
    """A function from values to pixels, logarithmic."""
    span = math.log(high / low) or 1.0  # a single value stands at the start
    return lambda value: start + (end - start) * math.log(value / low) / span


def _round_numbers(low: float, high: float) -> list[int]:
    """1, 2, 5, 10, 20, 50, … inside the range."""
    candidates = [factor * 10**power for power in range(7) for factor in (1, 2, 5)]
    return [value for value in candidates if low <= value <= high]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    machine = result["machine"]
    title = f"Decode tokens/s, SmolLM2-135M, {machine['cores']} cores"
    options.picture.write_text(svg_of(lines_of(result), title))
    print(markdown_of(result))


if __name__ == "__main__":
    main()
