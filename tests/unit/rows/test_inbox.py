"""What F does with attention processes, sound ones and others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import pytest

from transport.rows.base import RowsUnusable
from transport.rows.inbox import Inbox
from transport.rows.library import RowsLibrary, SegmentShape
from transport.rows.segment import Doorbell
from transport.rows.stats import BUSY, ERROR, NOT_HERE, OK, STALE
from triptych.testing.row_workers import compute_batch, integer_expert
from triptych.testing.rows_by_hand import HandAttention, HandSegment, make_pair

HIDDEN = 16
SHAPE = SegmentShape(HIDDEN, "float32", "float32", slots=4, slot_rows=8, slot_cells=16)
A_INC, F_INC = 5, 9


@dataclass
class Worker:
    library: RowsLibrary
    inbox: Inbox
    bell: Doorbell

    def add_attention(self, shape: SegmentShape = SHAPE) -> tuple[HandAttention, int]:
        mine, theirs = make_pair(
            self.library, shape, self.bell, self.bell, a_inc=A_INC, f_inc=F_INC
        )
        try:
            number = self.inbox.add_peer(theirs)
            return HandAttention(HandSegment(self.library, mine.fd, shape), A_INC, F_INC), number
        finally:
            mine.close()
            theirs.close()

    def refused(self, name: str) -> int:
        return int(self.inbox.stats[0][f"refused_{name}"])


@pytest.fixture
def worker(library: RowsLibrary) -> Iterator[Worker]:
    with ExitStack() as owned:
        bell = owned.enter_context(closing(Doorbell(library)))
        inbox = Inbox(library, bell, layers=3, experts=6, hidden=HIDDEN, max_cells=20)
        owned.enter_context(closing(inbox))
        inbox.hosted[:] = 1
        yield Worker(library, inbox, bell)


def test_a_shard_is_computed_and_answered(worker: Worker) -> None:
    attention, _ = worker.add_attention()
    x = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)
    attention.memory.rows[1][: x.nbytes] = x.reshape(-1).view(np.uint8)
    shard = attention.post(1, [(0, 1), (1, 1), (0, 4)], rows=2, layer=2)
    batch = worker.inbox.take(0)
    assert batch is not None
    assert (batch.layer, batch.count, batch.rows, batch.cells) == (2, 1, 2, 3)
    compute_batch(batch, HIDDEN)
    assert attention.memory.answers.pop() is None, "nothing is told before the reply"
    worker.inbox.reply(batch)
    assert attention.memory.answers.pop() == 1
    answer = attention.answer_of(1)
    assert (answer["shard"], answer["status"], answer["num_cells"]) == (shard, OK, 3)
    out = attention.memory.out[1].view(np.float32).reshape(-1, HIDDEN)[:3]
    assert np.array_equal(out, integer_expert(2, np.array([1, 1, 4]), x[[0, 1, 0]]))


def test_shards_of_one_layer_are_taken_together_and_never_waited_for(worker: Worker) -> None:
    (one, _), (two, _), _silent = (worker.add_attention() for _ in range(3))
    one.post(0, [(0, 0)], layer=1)
    two.post(0, [(0, 3)], layer=1)
    two.post(1, [(0, 3)], layer=2)
    batch = worker.inbox.take(0)
    assert batch is not None and (batch.layer, batch.count) == (1, 2)
    worker.inbox.reply(batch)
    batch = worker.inbox.take(0)
    assert batch is not None and (batch.layer, batch.count) == (2, 1)
    worker.inbox.reply(batch)
    assert worker.inbox.take(0) is None


def test_what_is_due_first_is_taken_first(worker: Worker) -> None:
    attention, _ = worker.add_attention()
    attention.post(0, [(0, 0)], layer=0, deadline_us=9_000_000)
    attention.post(1, [(0, 0)], layer=2, deadline_us=5_000_000)
    batch = worker.inbox.take(0)
    assert batch is not None and batch.layer == 2
    worker.inbox.reply(batch)


def test_a_batch_has_a_limit_but_no_shard_is_too_large_for_it(worker: Worker) -> None:
    attention, _ = worker.add_attention()
    for slot in range(3):
        attention.post(slot, [(row, 0) for row in range(8)], rows=8)
    counts = []
    while batch := worker.inbox.take(0):
        counts.append(batch.count)
        worker.inbox.reply(batch)
    assert counts == [2, 1]


def test_units_that_are_not_here_are_refused_unseen(worker: Worker) -> None:
    attention, _ = worker.add_attention()
    worker.inbox.hosted[1, 3] = 0
    attention.post(0, [(0, 2), (0, 3)], layer=1)
    assert worker.inbox.take(0) is None
    assert attention.memory.answers.pop() == 0
    assert attention.answer_of(0)["status"] == NOT_HERE
    assert worker.refused("not_here") == 1


def test_a_unit_that_left_while_its_shard_waited_is_refused(worker: Worker) -> None:
    attention, _ = worker.add_attention()
    attention.post(0, [(0, 0)], layer=0, deadline_us=5_000_000)
    attention.post(1, [(0, 0)], layer=1, deadline_us=9_000_000)
    batch = worker.inbox.take(0)
    assert batch is not None and batch.layer == 0
    worker.inbox.hosted[1, 0] = 0
    worker.inbox.reply(batch)
    assert worker.inbox.take(0) is None
    assert attention.answer_of(1)["status"] == NOT_HERE


@pytest.mark.parametrize(
    "wrong",
    [
        {"crc": 1},
        {"magic": 1},
        {"num_rows": 0},
        {"num_rows": 9},
        {"num_rows": 1 << 30},
        {"num_cells": 0},
        {"num_cells": 17},
        {"num_cells": -1},
        {"layer": 3},
        {"row_type": 1},
        {"out_type": 2},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(worker: Worker, wrong: dict[str, int]) -> None:
    attention, _ = worker.add_attention()
    attention.post(0, [(0, 0)], **wrong)
    assert worker.inbox.take(0) is None
    assert attention.answer_of(0)["status"] == ERROR
    attention.post(0, [(0, 0)])
    batch = worker.inbox.take(0)
    assert batch is not None and batch.count == 1, "the slot goes on"
    worker.inbox.reply(batch)


@pytest.mark.parametrize(
    "cells", [[(2, 0)], [(0, 6)], [(0, 1), (0, 0)], [(1, 0), (0, 0)]],
    ids=["row", "expert", "order of experts", "order of rows"],
)  # fmt: skip
def test_cells_that_make_no_sense_are_refused(worker: Worker, cells: list[tuple[int, int]]) -> None:
    attention, _ = worker.add_attention()
    attention.post(0, cells, rows=2)
    assert worker.inbox.take(0) is None
    assert attention.answer_of(0)["status"] == ERROR


@pytest.mark.parametrize("wrong", [{"a_inc": 4}, {"f_inc": 8}])
def test_a_request_for_another_incarnation_is_stale(worker: Worker, wrong: dict[str, int]) -> None:
    attention, _ = worker.add_attention()
    attention.post(0, [(0, 0)], **wrong)
    assert worker.inbox.take(0) is None
    assert attention.answer_of(0)["status"] == STALE


def test_a_late_request_is_computed_a_forgotten_one_is_not(worker: Worker) -> None:
    attention, _ = worker.add_attention()
    minute_ago = 0  # what is older counts as a minute old
    attention.post(0, [(0, 0)], posted_us=minute_ago, deadline_us=10_000_000)
    attention.post(1, [(0, 0)], posted_us=minute_ago, deadline_us=1_000_000)
    batch = worker.inbox.take(0)
    assert batch is not None and batch.count == 1
    worker.inbox.reply(batch)
    assert [attention.answer_of(slot)["status"][0] for slot in (0, 1)] == [OK, STALE]


def test_a_slot_announced_twice_is_taken_once(worker: Worker) -> None:
    attention, _ = worker.add_attention()
    attention.post(2, [(0, 0)])
    attention.memory.requests.push(2)
    batch = worker.inbox.take(0)
    assert batch is not None and batch.count == 1
    attention.memory.requests.push(2)
    worker.inbox.reply(batch)
    attention.memory.requests.push(4)
    attention.memory.requests.push(0xFFFFFFFF)
    attention.memory.requests.tail[0] += 1 << 31
    worker.inbox.take(0)
    assert int(worker.inbox.stats[0]["duplicates"]) >= 3


def test_cells_that_change_under_the_worker_change_nothing(worker: Worker) -> None:
    attention, _ = worker.add_attention()
    attention.post(0, [(0, 0)])
    batch = worker.inbox.take(0)
    assert batch is not None
    attention.memory.cells[0]["row"] = 60_000
    attention.memory.request["num_cells"] = 60_000
    compute_batch(batch, HIDDEN)
    worker.inbox.reply(batch)
    assert attention.answer_of(0)["num_cells"] == 1


def test_each_shard_of_a_batch_has_its_status(worker: Worker) -> None:
    attention, _ = worker.add_attention()
    attention.post(0, [(0, 0)])
    attention.post(1, [(0, 1)])
    batch = worker.inbox.take(0)
    assert batch is not None
    worker.inbox.reply(batch, np.array([OK, BUSY], np.uint8))
    assert [attention.answer_of(slot)["status"][0] for slot in (0, 1)] == [OK, BUSY]
    assert attention.answer_of(1)["num_cells"] == 0
    assert worker.refused("busy") == 1


def test_a_peer_that_leaves_takes_its_waiting_shards_along(worker: Worker) -> None:
    (one, number), (two, _) = worker.add_attention(), worker.add_attention()
    one.post(0, [(0, 0)], layer=0, deadline_us=5_000_000)
    one.post(1, [(0, 0)], layer=1, deadline_us=6_000_000)
    two.post(0, [(0, 0)], layer=1, deadline_us=9_000_000)
    batch = worker.inbox.take(0)
    assert batch is not None and batch.layer == 0
    worker.inbox.drop_peer(number)
    compute_batch(batch, HIDDEN)  # its memory stays until the reply
    worker.inbox.reply(batch)
    assert one.memory.answers.pop() is None
    batch = worker.inbox.take(0)
    assert batch is not None and (batch.layer, batch.count) == (1, 1)
    worker.inbox.reply(batch)
    assert int(worker.inbox.stats[0]["peers"]) == 1


def test_rows_of_another_width_are_not_let_in(worker: Worker) -> None:
    with pytest.raises(RowsUnusable, match="cannot be mapped"):
        worker.add_attention(SegmentShape(HIDDEN * 2, "float32", "float32"))


def test_a_bell_of_another_thread_ends_the_wait(worker: Worker) -> None:
    helper = threading.Thread(target=worker.inbox.ring)
    helper.start()
    assert worker.inbox.take(10_000_000) is None
    helper.join()
