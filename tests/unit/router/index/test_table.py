"""The table of blocks against a dict of sets."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.index.holdings import Holding, Holdings
from router.index.table import BlockTable, Keys


def keys_array(keys: set[int] | list[int]) -> Keys:
    return np.array(sorted(keys), dtype=np.uint64)


def random_keys(count: int, seed: int = 0) -> Keys:
    return np.unique(np.random.default_rng(seed).integers(1, 2**64, count, dtype=np.uint64))


# These share their first row and go to the second one; and 0 is what empty places bear.
crowded = st.integers(0, 40).map(lambda number: number << 32)
some_keys = st.sets(st.one_of(st.integers(0, 60), crowded), max_size=40)


class TableMachine(RuleBasedStateMachine):
    """Whatever is added and removed, the table tells what a dict of sets tells."""

    def __init__(self) -> None:
        super().__init__()
        self.table = BlockTable()
        self.model: dict[int, set[int]] = defaultdict(set)

    @rule(keys=some_keys, bit=st.sampled_from([0, 1, 63]))
    def add(self, keys: set[int], bit: int) -> None:
        news = sum(bit not in self.model[key] for key in keys)
        assert self.table.add(keys_array(keys), bit) == news
        for key in keys:
            self.model[key].add(bit)

    @rule(keys=some_keys, bit=st.sampled_from([0, 1, 63]))
    def discard(self, keys: set[int], bit: int) -> None:
        news = sum(bit in self.model[key] for key in keys)
        assert self.table.discard(keys_array(keys), bit) == news
        for key in keys:
            self.model[key].discard(bit)

    @rule(bit=st.sampled_from([0, 1, 63]))
    def clear(self, bit: int) -> None:
        self.table.clear(bit)
        for holders in self.model.values():
            holders.discard(bit)

    @invariant()
    def tells_the_same(self) -> None:
        keys = sorted(self.model)
        masks = [sum(1 << bit for bit in self.model[key]) for key in keys]
        assert self.table.masks(keys_array(keys)).tolist() == masks
        assert self.table.num_keys == sum(mask != 0 for mask in masks)


TableMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTableIsADictOfSets = TableMachine.TestCase


def test_a_table_grows_and_keeps_what_it_holds() -> None:
    table, keys = BlockTable(), random_keys(50_000)
    assert table.add(keys[::2], 7) == len(keys[::2])
    table.add(keys, 8)
    assert table.masks(keys).tolist() == [3 << 7, 1 << 8] * (len(keys) // 2) + [3 << 7] * (
        len(keys) % 2
    )
    assert table.num_bytes / table.num_keys < 64


def test_churn_needs_no_more_room_than_what_is_held() -> None:
    """A place whose holders left is used again: there is nothing to clean up."""
    table, sizes = BlockTable(), set()
    for turn in range(50):
        keys = random_keys(4_000, seed=turn)
        table.add(keys, 1)
        sizes.add(table.num_bytes)
        table.discard(keys, 1)
    assert len(sizes) == 1 and table.num_keys == 0


def test_a_table_doubles_a_few_rows_with_each_message() -> None:
    """And is right at any moment of it."""
    table, keys = BlockTable(), random_keys(8_000)
    sizes = [table.num_bytes]
    for start in range(0, len(keys), 16):
        table.add(keys[start : start + 16], 3)
        sizes.append(table.num_bytes)
        told = table.masks(keys[: start + 32])
        assert told.tolist() == [8] * min(start + 16, len(keys)) + [0] * (
            len(told) - min(start + 16, len(keys))
        )
    row_bytes = 128
    assert max(np.diff(sizes)) <= 2 * 16 * row_bytes


def test_room_is_taken_when_keys_come_not_when_it_is_reserved() -> None:
    table, other, keys = BlockTable(), BlockTable(), random_keys(5_000)
    table.reserve(1_000_000)
    assert table.num_bytes == other.num_bytes
    for each in (table, other):
        each.add(keys, 5)
        assert each.masks(keys).tolist() == [1 << 5] * len(keys)
    assert table.num_bytes == other.num_bytes


def test_prompts_made_to_fill_one_row_do_not_make_the_table_grow() -> None:
    table = BlockTable()
    size = table.num_bytes
    same_rows = np.arange(1, 1000, dtype=np.uint64) << np.uint64(10)
    assert table.add(same_rows, 1) == table.num_keys == 8
    assert table.num_bytes == size
    assert table.add(np.array([3], dtype=np.uint64), 1) == 1


class HoldingsMachine(RuleBasedStateMachine):
    """Workers come and go, caches lose blocks anywhere: the leading blocks are those of a walk."""

    CHAIN = random_keys(600).tolist()

    def __init__(self) -> None:
        super().__init__()
        self.holdings = Holdings()
        self.open: dict[str, tuple[Holding, set[int]]] = {}

    @rule(worker=st.integers(0, 80))
    def join(self, worker: int) -> None:
        name = f"worker-{worker}"
        if name not in self.open:
            self.open[name] = self.holdings.open(), set()
            self.open[name][0].show(name)

    @rule(data=st.data(), start=st.integers(0, 600), count=st.integers(0, 600))
    def store(self, data: st.DataObject, start: int, count: int) -> None:
        if self.open:
            holding, model = self.open[data.draw(st.sampled_from(sorted(self.open)))]
            keys = self.CHAIN[start : start + count]
            holding.add(keys_array(keys))
            model.update(keys)

    @rule(data=st.data(), at=st.integers(0, 599))
    def lose_one(self, data: st.DataObject, at: int) -> None:
        if self.open:
            holding, model = self.open[data.draw(st.sampled_from(sorted(self.open)))]
            holding.discard(keys_array([self.CHAIN[at]]))
            model.discard(self.CHAIN[at])

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.open:
            holding, _ = self.open.pop(data.draw(st.sampled_from(sorted(self.open))))
            holding.close()

    @invariant()
    def leading_blocks_are_those_of_a_walk(self) -> None:
        expected = {}
        for name, (holding, model) in self.open.items():
            length = next((i for i, key in enumerate(self.CHAIN) if key not in model), 600)
            if length:
                expected[name] = length
            assert holding.num_blocks == len(model)
        assert self.holdings.leading(np.array(self.CHAIN, dtype=np.uint64)) == expected


HoldingsMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestLeadingBlocks = HoldingsMachine.TestCase


def test_a_reused_slot_remembers_nothing_of_who_had_it() -> None:
    holdings, keys = Holdings(), random_keys(100)
    first = [holdings.open() for _ in range(64)]
    for number, holding in enumerate(first):
        holding.show(f"old-{number}")
        holding.add(keys)
    for holding in first:
        holding.close()
    for number in range(64):
        holdings.open().show(f"new-{number}")
    assert holdings.leading(keys) == {} and holdings.num_keys == 0


def test_more_than_64_workers_are_all_found() -> None:
    holdings, keys = Holdings(), random_keys(10)
    for number in range(130):
        holding = holdings.open()
        holding.show(f"worker-{number}")
        holding.add(np.unique(keys[: number % 10 + 1]))
    assert holdings.leading(keys) == {f"worker-{n}": n % 10 + 1 for n in range(130)}
