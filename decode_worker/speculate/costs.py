"""What a step costs, learned from the steps that were computed.

The seconds of a step are no line in its rows: kernels work in tiles, so a row is free or dear by
where it falls, and n rows of one sequence cost less than one row each of n sequences. So there is
a table of plain steps by (rows, KV tokens), and a table of how much dearer nodes make a step, by
(plain rows, nodes). The second holds ratios between neighbours in time: machines have slow spells
that last seconds, and they cancel out of a ratio (Cascade's t_spec / t_base, arXiv
2506.20675, from a table).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Seq
from itertools import pairwise

from decode_worker.speculate.recent import Recent

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
NEAR = 8  # steps; a ratio of steps further apart measures the machine's moods
SHRINK = 2.0  # samples; what other sizes say about one counts so much
FEW = 8  # samples
HICCUP = 1.5  # times what was known: one sample says no more, others may follow
STEADY = 12  # plain steps, some six groups
UNTRIED = 1.3  # times as steep as what is known below


def size_of(count: int) -> int:
    """The bucket of a count, as an index of SIZES."""
    return min(bisect_left(SIZES, count), len(SIZES) - 1)


class StepCosts:
    """Seconds of steps by what is in them. Never asks for a measurement, takes what comes."""

    def __init__(self) -> None:
        self._step = 0
        self._plain: dict[tuple[int, int], Recent] = {}  # (rows, octave of KV): seconds
        self._ratios: dict[int, dict[int, Recent]] = {}  # plain rows: nodes: times plain
        self._comparable: set[tuple[int, int]] = set()  # keys of which that is known
        self._plain_at = -NEAR  # the last plain step
        self._in_a_row = 0  # plain steps near each other
        self._pace = 1.0  # of the machine then: its seconds by those in the table
        self._mean_pace = 1.0  # over the last few groups of plain steps
        self._paces = 0
        self._curves: dict[int, list[float]] = {}
        self._stale: dict[int, int] = {}  # plain rows: samples that a curve has not seen

    def learn(self, plain_rows: int, nodes: int, kv_tokens: int, seconds: float) -> None:
        """A step with `plain_rows` + `nodes` rows took so long."""
        self._step += 1
        if not nodes:
            self._learn_plain(plain_rows, kv_tokens, seconds)
            return
        if not self.can_compare(plain_rows, kv_tokens):
            return
        cells = self._ratios.setdefault(size_of(plain_rows), {})
        cell = cells.setdefault(size_of(nodes), Recent())
        plain = self.plain_seconds(plain_rows, kv_tokens)
        if self._step - self._plain_at <= NEAR or len(cell) < 2:
            known = self.ratios(plain_rows, nodes)[nodes]
            ratio = seconds / (plain * self._pace)
            cell.add(min(max(ratio, known / HICCUP), known * HICCUP), self._step)
            self._mark(size_of(plain_rows), few=len(cell) < FEW)

    def _mark(self, base: int, few: bool) -> None:
        """A sample came; one of many changes little, and a curve takes long to make."""
        self._stale[base] = self._stale.get(base, 0) + 1
        if few or self._stale[base] >= FEW:
            self._stale[base] = 0
            self._curves.pop(base, None)

    def _learn_plain(self, rows: int, kv_tokens: int, seconds: float) -> None:
        cell = self._plain.setdefault(_plain_key(rows, kv_tokens), Recent())
        cell.add(seconds, self._step)
        # The mean of the plain steps in a row: what came before may have been another spell.
        self._in_a_row = self._in_a_row + 1 if self.near_plain() else 1
        fresh = min(max(seconds / cell.median, 0.5), 2.0)
        self._pace += (fresh - self._pace) / min(self._in_a_row, 4)
        self._paces += 1
        self._mean_pace += (fresh - self._mean_pace) / min(self._paces, STEADY)
        self._plain_at = self._step

    def near_plain(self) -> bool:
        """The last plain step is so near that a comparison with it means something."""
        return self._step - self._plain_at <= NEAR

    @property
    def mean_pace(self) -> float:
        """What plain steps took lately, by what the table says. Steps with drafts that are near to
        plain ones have the same on average: one group of plain steps says too little.
        """
        return self._mean_pace

    def knows(self, plain_rows: int, kv_tokens: int) -> bool:
        """Steps of this size were seen without drafts."""
        return len(self._plain.get(_plain_key(plain_rows, kv_tokens), ())) >= 2

    def can_compare(self, plain_rows: int, kv_tokens: int) -> bool:
        """Steps of about this size were seen without drafts. A prompt's steps say nothing."""
        rows, octave = key = _plain_key(plain_rows, kv_tokens)
        if key not in self._comparable and any(
            abs(at[0] - rows) <= 1 and abs(at[1] - octave) <= 2 and len(cell) >= 2
            for at, cell in self._plain.items()
        ):
            self._comparable.add(key)
        return key in self._comparable

    def plain_seconds(self, rows: int, kv_tokens: int) -> float:
        """Of a step without nodes; 0 if nothing is known at all."""
        key = _plain_key(rows, kv_tokens)
        cell = self._plain.get(key)
        if cell is not None:
            return cell.median
        if not self._plain:
            return 0.0
        nearest = min(self._plain, key=lambda k: (abs(k[0] - key[0]) + abs(k[1] - key[1]) / 4, k))
        # More rows than ever seen: as much dearer as if rows were all that costs.
        grown = max(1.0, rows / SIZES[nearest[0]])
        return self._plain[nearest].median * grown

    def seconds(self, plain_rows: int, nodes: int, kv_tokens: int) -> float:
        """Of a step with so many rows besides the nodes."""
        return self.curve(plain_rows, kv_tokens, nodes)[nodes]

    def curve(self, plain_rows: int, kv_tokens: int, max_nodes: int) -> list[float]:
        """Seconds with 0, 1, ... `max_nodes` nodes (or more); never falls."""
        plain = self.plain_seconds(plain_rows, kv_tokens)
        return [plain * ratio for ratio in self.ratios(plain_rows, max_nodes)]

    def ratios(self, plain_rows: int, max_nodes: int) -> list[float]:
        """The same as times of the plain step. A shared list: do not change it."""
        base = size_of(plain_rows)
        curve = self._curves.get(base)
        if curve is None or len(curve) <= max_nodes:
            curve = self._curves[base] = self._make_curve(plain_rows, max(max_nodes, 64))
        return curve

    def _make_curve(self, plain_rows: int, max_nodes: int) -> list[float]:
        cells = sorted(self._ratios.get(size_of(plain_rows), {}).items())
        tried = [(SIZES[at], c.median, c.weight(self._step)) for at, c in cells if c]
        prior = min(0.03, 0.12 / plain_rows)
        # Rise per node, over all sizes: least squares through the plain step. Noise hides what a
        # few nodes cost beside many rows, so these hardly move it away from the prior.
        mass = max(2.0, plain_rows**2)
        risen = sum((ratio - 1) * nodes * weight for nodes, ratio, weight in tried)
        squares = sum(nodes**2 * weight for nodes, _, weight in tried)
        slope = max((prior * mass + risen) / (mass + squares), prior / 8)
        points = [(0.0, 1.0, 1e9)]  # nodes, ratio, weight
        for nodes, ratio, weight in tried:
            shrunk = (ratio * weight + (1 + slope * nodes) * SHRINK) / (weight + SHRINK)
            points.append((nodes, max(shrunk, 1.0), weight + SHRINK))
        return _interpolated(_rising(points), max_nodes, slope * UNTRIED if tried else slope / 2)


def _plain_key(rows: int, kv_tokens: int) -> tuple[int, int]:
    return size_of(rows), max(kv_tokens, 1).bit_length()


def _rising(points: Seq[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """Isotonic: neighbours that fall share their weighted mean (pool adjacent violators)."""
    pools: list[tuple[float, float, list[float]]] = []  # ratio, weight, nodes
    for nodes, ratio, weight in points:
        members = [nodes]
        while pools and pools[-1][0] >= ratio:
            below, mass, more = pools.pop()
            ratio = (below * mass + ratio * weight) / (mass + weight)
            weight += mass
            members = more + members
        pools.append((ratio, weight, members))
    return [(nodes, ratio) for ratio, _, members in pools for nodes in members]


def _interpolated(points: Seq[tuple[float, float]], max_nodes: int, steep: float) -> list[float]:
    curve = [points[0][1]]
    for (left, low), (right, high) in pairwise(points):
        slope = (high - low) / (right - left)
        curve.extend(low + slope * (nodes - left) for nodes in range(len(curve), int(right) + 1))
    last, ratio = points[-1]
    for nodes in range(int(last) + 1, max_nodes + 1):
        ratio += steep if nodes <= 2 * last else 2 * steep
        curve.append(ratio)
    return curve
