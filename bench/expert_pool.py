"""A pool of FFN workers on a simulated clock: who serves what when, and which units move.

Homes take their micro-batches through the layers of a step; workers serve shards one after the
other: so much per shard, per expert whose weights are read, and per row. Routes are drawn, what
chooses copies and plans moves is the pool's own code.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from triptych.experts.balance import plan_moves
from triptych.experts.dispatch import Piece, choose_workers
from triptych.experts.load_meter import LoadMeter
from triptych.experts.placement import initial_share
from triptych.experts.pool_state import Move, Rules
from triptych.experts.units import Catalog, Unit, Worker

_WINDOW = 96  # calls over which loads are summed
Counts: TypeAlias = NDArray[np.int64]
Choose: TypeAlias = Callable[
    [Sequence[int], Sequence[Sequence[int]], Sequence[float], Sequence[float]], list[Piece]
]


@dataclass(frozen=True)
class Setting:
    """Times are in milliseconds of the simulated clock."""

    layers: int = 4
    experts: int = 64
    top_k: int = 2
    rows: int = 256  # of a call
    homes: int = 2
    lanes: int = 3  # micro-batches of a home
    speeds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    zipf: float = 1.2
    alike: bool = True  # layers have the same favourites
    shard_ms: float = 0.05
    expert_ms: float = 0.01
    row_ms: float = 0.005
    attention_ms: float = 0.05  # of a micro-batch and layer; a home has one at a time
    load_ms: float = 20.0  # to prepare a unit
    round_ms: float = 100.0  # between looks at the load
    calls: int = 1800
    drift: tuple[float, float] = (0.4, 0.7)  # of the calls: when favourites change
    seed: int = 1


@dataclass(frozen=True)
class Policy:
    name: str
    copies: int
    choose: Choose = choose_workers
    extra: int = 0  # units of room beyond the copies, per worker
    moves: bool = False
    even: bool = False  # experts in order, as without any pool: the static placement


@dataclass(frozen=True)
class Outcome:
    name: str
    rows_per_s: float
    before: float  # balance: mean, settled, before favourites change
    layers: float  # the same of layers by themselves
    during: float  # while they do
    after: float
    moves: int


def simulate(setting: Setting, policy: Policy) -> Outcome:
    run = _Run(setting, policy)
    run.play()
    return run.outcome()


@dataclass(order=True)
class _Event:
    at_ms: float
    number: int
    act: Callable[[], None] = field(compare=False)


class _Run:
    def __init__(self, setting: Setting, policy: Policy) -> None:
        self._set, self._policy = setting, policy
        self._catalog = Catalog((setting.experts,) * setting.layers)
        self._workers, self._hosted = _start(setting, policy, self._catalog)
        self._rules = Rules(copies=policy.copies)
        self._meter = LoadMeter(self._catalog, 0.0, half_life_s=0.3)
        self._counted = np.zeros((setting.layers, setting.experts), np.int64)
        self._favour = _Favourites(setting)
        self._now = 0.0
        self._events: list[_Event] = []
        self._numbers = iter(range(10**9))
        self._free_ms = [0.0] * len(setting.speeds)
        self._outstanding = [[0.0] * len(setting.speeds) for _ in range(setting.homes)]
        self._attention_free = [0.0] * setting.homes
        self._at_work = [0] * setting.homes  # micro-batches that are not through the step
        self._issued = 0
        self._loads: list[tuple[int, list[float]]] = []  # (layer, busy ms) of each call
        self._hosts = self._host_lists()
        self._moves: list[Move] = []
        self._moved = 0

    def play(self) -> None:
        for home in range(self._set.homes):
            self._step(home)
        if self._policy.moves:
            self._later(self._set.round_ms, self._look)
        while self._issued < self._set.calls:
            event = heapq.heappop(self._events)
            self._now = event.at_ms
            event.act()

    def outcome(self) -> Outcome:
        start, end = (int(part * len(self._loads)) for part in self._set.drift)
        settled = start // 2
        rows = self._set.rows * len(self._loads)
        return Outcome(
            name=self._policy.name,
            rows_per_s=1e3 * rows / self._now,
            before=self._balance(settled, start),
            layers=self._balance(settled, start, layers=True),
            during=self._balance(start, end),
            after=self._balance((end + len(self._loads)) // 2, len(self._loads)),
            moves=self._moved,
        )

    def _balance(self, start: int, end: int, *, layers: bool = False) -> float:
        """Mean over windows of calls; of all layers together, or of each by itself."""
        numbers = [at for at, _ in self._loads[start:end]]
        table = np.array([load for _, load in self._loads[start:end]])
        found = []
        for layer in range(self._set.layers) if layers else (None,):
            calls = table if layer is None else table[np.array(numbers) == layer]
            for window in np.array_split(calls, max(1, len(calls) // _WINDOW)):
                sums = window.sum(axis=0)
                found.append(sums.max() / sums.mean())
        return float(np.mean(found))

    def _later(self, after_ms: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, _Event(self._now + after_ms, next(self._numbers), act))

    def _step(self, home: int) -> None:
        self._at_work[home] = self._set.lanes
        for _ in range(self._set.lanes):
            self._layer(home, 0)

    def _layer(self, home: int, layer: int) -> None:
        """Attention of one micro-batch, then its rows go out."""
        done = max(self._now, self._attention_free[home]) + self._set.attention_ms
        self._attention_free[home] = done
        self._later(done - self._now, lambda: self._call(home, layer))

    def _back(self, home: int, layer: int) -> None:
        if layer + 1 < self._set.layers:
            self._layer(home, layer + 1)
            return
        self._at_work[home] -= 1
        if not self._at_work[home]:
            self._step(home)

    def _call(self, home: int, layer: int) -> None:
        """Sends the rows of one micro-batch and layer to the workers."""
        counts = self._favour.draw(layer, self._issued / self._set.calls)
        self._issued += 1
        self._counted[layer] += counts
        waiting = self._outstanding[home]
        pieces = self._policy.choose(counts.tolist(), self._hosts[layer], waiting, self._set.speeds)
        load = [0.0] * len(waiting)
        done = self._now
        for worker, speed in enumerate(self._set.speeds):
            mine = [piece for piece in pieces if piece.worker == worker]
            if not mine:
                continue
            rows = sum(piece.rows for piece in mine)
            experts = len({piece.expert for piece in mine})
            busy_ms = self._set.expert_ms * experts + self._set.row_ms * rows
            load[worker] = self._set.shard_ms + busy_ms / speed
            self._free_ms[worker] = max(self._now, self._free_ms[worker]) + load[worker]
            waiting[worker] += rows
            back = partial(self._return, home, worker, rows)
            self._later(self._free_ms[worker] - self._now, back)
            done = max(done, self._free_ms[worker])
        self._loads.append((layer, load))
        self._later(done - self._now, lambda: self._back(home, layer))

    def _return(self, home: int, worker: int, rows: int) -> None:
        self._outstanding[home][worker] -= rows

    def _look(self) -> None:
        self._meter.add(self._counted, self._now / 1e3)
        self._counted[:] = 0
        if self._meter.is_settled(len(self._workers)):
            loads = self._meter.loads
            self._moves = plan_moves(self._catalog, self._hosted, loads, self._workers, self._rules)
        if self._moves:
            self._later(self._set.load_ms, self._finish_move)
        else:
            self._later(self._set.round_ms, self._look)

    def _finish_move(self) -> None:
        """The unit is ready: it counts from now on, and what it replaces does not."""
        move = self._moves.pop(0)
        held = {worker: set(units) for worker, units in self._hosted.items()}
        if move.prepare is not None:
            held[move.prepare.worker].add(move.prepare.unit)
            self._moved += 1
        if move.retire is not None:
            held[move.retire.worker].remove(move.retire.unit)
        self._hosted = {worker: frozenset(units) for worker, units in held.items()}
        self._hosts = self._host_lists()
        if self._moves:
            self._later(self._set.load_ms, self._finish_move)
        else:
            self._later(self._set.round_ms, self._look)

    def _host_lists(self) -> list[list[list[int]]]:
        return [
            [
                [w for w, worker in enumerate(self._workers) if unit in self._hosted[worker.id]]
                for unit in (Unit(layer, expert) for expert in range(self._set.experts))
            ]
            for layer in range(self._set.layers)
        ]


class _Favourites:
    """Which experts rows like; `at` runs from 0 to 1."""

    def __init__(self, setting: Setting) -> None:
        self._set = setting
        self._random = np.random.default_rng(setting.seed)
        ranks = np.arange(1, setting.experts + 1) ** -setting.zipf
        orders = np.random.default_rng(setting.seed + 1)
        self._likes = [
            [orders.permutation(ranks / ranks.sum()) for _ in range(setting.layers)] for _ in "ab"
        ]
        if setting.alike:
            self._likes = [[first] * setting.layers for first, *_ in self._likes]

    def draw(self, layer: int, at: float) -> Counts:
        """[experts] rows of a call that want each; a row wants top_k different ones."""
        start, end = self._set.drift
        new = min(1.0, max(0.0, (at - start) / (end - start)))
        likes = (1 - new) * self._likes[0][layer] + new * self._likes[1][layer]
        # Gumbel's trick: the largest of log p + noise are a draw without replacement.
        noise = self._random.gumbel(size=(self._set.rows, self._set.experts))
        keys = np.log(likes) + noise
        chosen = np.argpartition(-keys, self._set.top_k - 1, axis=1)[:, : self._set.top_k]
        return np.bincount(chosen.ravel(), minlength=self._set.experts)


def _start(
    setting: Setting, policy: Policy, catalog: Catalog
) -> tuple[list[Worker], dict[str, frozenset[Unit]]]:
    count = len(setting.speeds)
    hosted = {
        f"f{index}": frozenset(_even(setting, index))
        if policy.even
        else initial_share(count, index, catalog.experts, policy.copies)
        for index in range(count)
    }
    room = max(map(len, hosted.values())) + policy.extra
    workers = [
        Worker(f"f{index}", f"host{index}", room, speed)
        for index, speed in enumerate(setting.speeds)
    ]
    return workers, hosted


def _even(setting: Setting, index: int) -> Iterator[Unit]:
    count = len(setting.speeds)
    for layer in range(setting.layers):
        for expert in range(setting.experts):
            if expert * count // setting.experts == index:
                yield Unit(layer, expert)
