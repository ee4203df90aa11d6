"""A result of bench.engine as a picture: decode tokens/s against batch, and the machine's limit.

    python -m bench.plot bench/results/engine.json docs/engine.svg

One solid line per engine and dtype, one dashed line per dtype for what the machine allows (from
bench.engine_roofline). Both axes are logarithmic.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Line, chart, logarithmic


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
    """By (batch, tokens/s)."""
    batches = sorted({batch for line in lines for batch, _ in line.points})
    values = [value for line in lines for _, value in line.points]
    low, high = min(values) / 1.3, max(values) * 1.3
    x = Axis(
        logarithmic(batches[0], batches[-1], LEFT, WIDTH - RIGHT),
        [(batch, f"{batch:g}") for batch in batches],
        "sequences decoded together",
    )
    ticks = [(float(value), f"{value:,}") for value in _round_numbers(low, high)]
    return chart(title, lines, x, Axis(logarithmic(low, high, HEIGHT - BOTTOM, TOP), ticks))


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


def _round_numbers(low: float, high: float) -> list[int]:
    """1, 2, 5, 10, 20, 50, … inside the range."""
    candidates = [factor * 10**power for power in range(7) for factor in (1, 2, 5)]
    return [value for value in candidates if low <= value <= high]


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
