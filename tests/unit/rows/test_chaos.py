"""Workers that lose, repeat, refuse, stall, die and come back: every cell is right, each once.

Several attention processes and workers by hand on one thread, so that a seed tells all. Workers
spoil whatever they may not write: results of free slots, of slots that were given up, of segments
that were dropped. Whoever reads there gets NaN, and whoever uses a slot that was not answered
fails in the worker.
"""

from __future__ import annotations

import numpy as np
import pytest

from triptych.testing.row_workers import EXPERTS, LAYERS
from triptych.testing.rows_by_hand import HandShard, HandWorker

CALLS = 12  # of each attention process
STEPS = 4_000  # far more than are needed
LANES = 3


class Trial:
    def __init__(self, make_side, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.num_workers = int(self.random.integers(2, 5))
        types = ("float32", "bfloat16")[seed % 2]
        cells = int(self.random.choice([3, 8, 32]))
        self.sides = [
            make_side(
                workers=self.num_workers, slots=3, slot_rows=cells, slot_cells=cells, split_rows=4,
                row_type=types, cell_type="float32", lanes=LANES,
            )
            for _ in range(int(self.random.integers(1, 4)))
        ]  # fmt: skip
        self.incs = [1] * self.num_workers
        self.hosted = np.ones((self.num_workers, LAYERS, EXPERTS), bool)
        self.begun = [0] * len(self.sides)
        self.done = [0] * len(self.sides)
        self.zombies: list[HandWorker] = []
        self.lost: list[HandShard] = []
        self.faults = True

    def chance(self, share: float) -> bool:
        return self.faults and bool(self.random.random() < share)

    def run(self) -> None:
        for side in self.sides:
            side.exchange.tables[:, :, :] = -1
        self.move_units()
        for step in range(STEPS):
            self.faults = step < STEPS // 10
            if min(self.done) == CALLS:
                break
            if self.chance(0.02):
                self.move_units()
            if self.chance(0.02):
                self.kill(int(self.random.integers(self.num_workers)))
            for index in range(len(self.sides)):
                self.begin_calls(index)
                self.work(index)
                self.look(index)
        assert self.done == [CALLS] * len(self.sides)

    def begin_calls(self, index: int) -> None:
        side = self.sides[index]
        for lane in set(range(LANES)) - set(side.asked):
            if self.begun[index] == CALLS:
                return
            self.begun[index] += 1
            layer, rows = int(self.random.integers(LAYERS)), int(self.random.integers(0, 12))
            if self.random.random() < 0.2:
                side.begin(None, rows=rows, lane=lane, layer=layer)
                continue
            k = int(self.random.integers(1, 5))
            ids = [sorted(self.random.choice(EXPERTS, k, replace=False)) for _ in range(rows)]
            side.begin(ids, lane=lane, layer=layer) if rows else side.begin(None, lane=lane)

    def work(self, index: int) -> None:
        for number, worker in self.sides[index].workers.items():
            worker.collect()
            for shard in [s for s in worker.shards if not s.answered and s not in self.lost]:
                if not self.faults or self.random.random() < 0.4:
                    self.answer(number, worker, shard)
            if self.chance(0.1):
                worker.again(int(self.random.integers(4)))
        for zombie in self.zombies:
            zombie.spoil(list(range(3)))
            zombie.again(int(self.random.integers(4)))

    def answer(self, number: int, worker: HandWorker, shard: HandShard) -> None:
        if not self.hosted[number, int(shard.head["layer"][0]), shard.cells["expert"]].all():
            worker.answer(shard, 1)
        elif self.chance(0.05):
            worker.answer(shard, int(self.random.integers(1, 5)))
        elif self.chance(0.05):
            self.misname(worker, shard)
        elif self.chance(0.05):
            self.lost.append(shard)
        else:
            worker.answer(shard)

    def misname(self, worker: HandWorker, shard: HandShard) -> None:
        name = str(self.random.choice(["call", "shard", "attempt", "f_inc"]))
        right = worker.f_inc if name == "f_inc" else int(shard.head[name][0])
        worker.answer(shard, 0, **{name: right ^ 0x55})
        shard.answered = False  # it was no answer

    def look(self, index: int) -> None:
        side = self.sides[index]
        exchange = side.exchange
        wake = exchange.wait(0)
        for worker in side.workers.values():
            worker.spoil()
        for lane in [lane for lane in side.asked if wake.done >> lane & 1]:
            side.check_cells(lane)
            exchange.end(lane)
            del side.asked[lane]
            self.done[index] += 1
        for late in exchange.overdue(now_us=1 << 60):
            if self.chance(0.05) or (not self.faults and self.random.random() < 0.02):
                assert exchange.abandon(late.shard)
        for lane in side.asked:
            self.help_lane(index, lane)

    def help_lane(self, index: int, lane: int) -> None:
        side = self.sides[index]
        if self.random.random() < 0.5:
            side.exchange.issue(lane, forgiving=self.random.random() < 0.5)
        elif len(pairs := side.exchange.missing(lane, waiting=self.random.random() < 0.1)):
            cells = pairs[: int(self.random.integers(1, len(pairs) + 1)), 0]
            rows = np.ascontiguousarray(side.expected(lane)[cells])
            if (
                side.exchange.cells_array(lane, dense=side.asked[lane][2] is None).dtype
                != rows.dtype
            ):
                rows = (rows.view(np.uint32) >> 16).astype(np.uint16)
            assert side.exchange.fill(lane, cells, rows.ctypes.data) == len(cells)

    def move_units(self) -> None:
        """Every unit gets one or two hosts; the tables of some A are behind for a while."""
        self.hosted = self.random.random(self.hosted.shape) < 0.6
        for side in self.sides:
            if self.faults and self.random.random() < 0.3:
                continue
            for layer, expert in np.ndindex(LAYERS, EXPERTS):
                hosts = np.flatnonzero(self.hosted[:, layer, expert])[:4]
                side.exchange.tables[layer, expert] = -1
                side.exchange.tables[layer, expert, : len(hosts)] = hosts

    def kill(self, number: int) -> None:
        """It stalls and is replaced; what it did not notice goes on in memory that nobody reads."""
        self.incs[number] += 1
        for side in self.sides:
            self.zombies.append(side.workers[number])
            side.exchange.drop_worker(number)
            side.add_worker(number, f_inc=self.incs[number])


@pytest.mark.parametrize("seed", range(40))
def test_every_cell_is_right_whatever_happens(make_side, seed: int) -> None:
    trial = Trial(make_side, seed)
    trial.run()
    for side in trial.sides:
        for number in range(trial.num_workers):
            assert side.stat(number, "pending") == 0
            sent = side.stat(number, "sent")
            ended = ("accepted", "abandoned", "refused_nonsense", "refused_not_here",
                     "refused_busy", "refused_stale", "refused_error")  # fmt: skip
            assert sent == sum(side.stat(number, name) for name in ended)
