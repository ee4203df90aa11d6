"""Measurements into rows: medians, share of the machine's limit, ratios; as table and as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

SIZE_NAMES = {"decode": "batch", "prefill": "tokens", "verify": "rows", "attention": "rows"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to measure."""

    # decode: one row of each of `size` sequences; prefill: one prompt of `size` tokens; verify:
    # `size` rows of one sequence; attention: the same, the kernel alone over a long context
    phase: str
    size: int


@dataclass(frozen=True, slots=True)
class Row:
    """What our engine reached in one dtype, and what others did with the same work."""

    cell: Cell
    dtype: str
    tokens_s: float  # of verify and attention: rows per second
    roofline: float  # 0–1: share of the least time that the machine allows
    peers: dict[str, float] = field(default_factory=dict)  # tokens/s by name
    ratio: float | None = None  # verify, attention: time of this step / time of a step with one row

    def to_json(self) -> dict[str, Any]:
        found = {
            "phase": self.cell.phase,
            "dtype": self.dtype,
            SIZE_NAMES[self.cell.phase]: self.cell.size,
            "tokens_s": round(self.tokens_s, 2),
            "roofline": round(self.roofline, 4),
            "peers": {name: round(value, 2) for name, value in self.peers.items()},
        }
        return found if self.ratio is None else {**found, "ratio": round(self.ratio, 3)}


class Samples:
    """tokens/s by engine and cell, one for each round."""

    def __init__(self) -> None:
        self._found: defaultdict[tuple[str, Cell], list[float]] = defaultdict(list)

    def add(self, engine: str, cell: Cell, tokens_s: float) -> None:
        self._found[engine, cell].append(tokens_s)

    def typical(self, engine: str, cell: Cell) -> float | None:
        """The median; None when it was not measured."""
        found = self._found.get((engine, cell))
        return median(found) if found else None


def table_of(rows: Iterable[Row], peers: Sequence[str]) -> tuple[list[str], list[list[object]]]:
    """Column names and cells for people."""
    columns = ["phase", "dtype", "size", "tokens/s", "% of limit"]
    for name in peers:
        columns += [name, "ratio"]
    if any(row.ratio is not None for row in rows):
        columns.append("time of one row")
    lines = []
    for row in rows:
        line: list[object] = [
            row.cell.phase,
            row.dtype,
            f"{SIZE_NAMES[row.cell.phase]} {row.cell.size}",
            f"{row.tokens_s:,.1f}" if row.tokens_s < 100 else f"{row.tokens_s:,.0f}",
            f"{100 * row.roofline:.0f} %",
        ]
        for name in peers:
            theirs = row.peers.get(name)
            line += (
                ["", ""] if theirs is None else [f"{theirs:,.1f}", f"{row.tokens_s / theirs:.2f}×"]
            )
        if "time of one row" in columns:
            line.append("" if row.ratio is None else f"× {row.ratio:.2f}")
        lines.append(line)
    return columns, lines
