"""The block pool: who holds what, and what is found again."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from triptych.kv.hashing import extend_hashes, root_hash
from triptych.kv.pool import BlockPool, Holder

ROOT = root_hash(model="m", weights="w", layout="l")


def hashes_of(tokens: list[int], root: bytes = ROOT) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, tokens, 4, root)
    return hashes


def test_a_block_hash_depends_on_everything_before_it() -> None:
    first, second = hashes_of(list(range(8)))
    assert hashes_of([9, *range(1, 8)])[1] != second
    assert hashes_of([*range(4), 9, 5, 6, 7])[0] == first


def test_other_weights_or_another_salt_share_no_block() -> None:
    tokens = list(range(4))
    roots = [
        ROOT,
        root_hash(model="m", weights="other", layout="l"),
        root_hash(model="m", weights="w", layout="l", salt="tenant"),
    ]
    assert len({hashes_of(tokens, root)[0] for root in roots}) == 3


def test_a_finished_prefix_is_found_and_shared() -> None:
    pool = BlockPool(8)
    hashes = hashes_of(list(range(8)))
    first = pool.reserve(hashes, 3)
    assert first is not None and first.num_cached == 0
    for block, block_hash in zip(first.blocks, hashes, strict=False):
        pool.commit(block, block_hash)
    second = pool.reserve(hashes, 3)
    assert second is not None
    assert second.num_cached == 2 and second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2], "the part that is not full is nobody else's"


def test_a_reservation_that_does_not_fit_changes_nothing() -> None:
    pool = BlockPool(4)
    hashes = hashes_of(list(range(8)))
    held = pool.reserve(hashes, 2)
    assert held is not None
    for block, block_hash in zip(held.blocks, hashes, strict=True):
        pool.commit(block, block_hash)
    before = pool.counts()
    assert pool.reserve(hashes, 5) is None
    assert pool.counts() == before


def test_the_least_recently_used_prefix_is_evicted_and_its_tail_goes_first() -> None:
    pool = BlockPool(4)
    old, new = hashes_of(list(range(8))), hashes_of(list(range(100, 108)))
    for hashes in (old, new):
        reservation = pool.reserve(hashes, 2)
        assert reservation is not None
        for block, block_hash in zip(reservation.blocks, hashes, strict=True):
            pool.commit(block, block_hash)
        pool.release(reservation.blocks)
    assert pool.allocate(1) is not None
    assert pool.count_cached(old) == 1 and pool.count_cached(new) == 2


def test_a_prefix_that_somebody_queues_for_is_evicted_last() -> None:
    pool = BlockPool(4)
    prompts = [hashes_of(list(range(first, first + 8))) for first in (0, 100)]
    for hashes in prompts:
        reservation = pool.reserve(hashes, 2)
        assert reservation is not None
        for block, block_hash in zip(reservation.blocks, hashes, strict=True):
            pool.commit(block, block_hash)
        pool.release(reservation.blocks)
    assert pool.touch(prompts[0]) == 2
    assert pool.allocate(2) is not None
    assert [pool.count_cached(hashes) for hashes in prompts] == [2, 0]


def test_every_hand_out_raises_the_generation() -> None:
    pool = BlockPool(1)
    seen = []
    for _ in range(3):
        (block,) = pool.allocate(1) or []
        seen.append(pool.generation(block))
        pool.release([block])
    assert seen == [1, 2, 3]


def test_a_block_stays_away_until_its_transfer_ended_too() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.hold(blocks, Holder.TRANSFER)
    pool.release(blocks, Holder.REQUEST)
    assert pool.allocate(1) is None
    pool.release(blocks, Holder.TRANSFER)
    assert pool.allocate(1) is not None


def test_without_a_prefix_cache_nothing_is_found() -> None:
    pool = BlockPool(2, cache=False)
    hashes = hashes_of(list(range(4)))
    (block,) = pool.allocate(1) or []
    pool.commit(block, hashes[0])
    pool.release([block])
    assert pool.count_cached(hashes) == 0 and pool.counts()["free"] == 2


class PoolMachine(RuleBasedStateMachine):
    """Whatever requests and transfers do, no block is lost and none is handed out twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12)
        self.held: list[tuple[list[int], Holder]] = []

    @rule(prompt=st.integers(0, 3), count=st.integers(1, 6))
    def reserve(self, prompt: int, count: int) -> None:
        hashes = hashes_of([prompt] * 4 * count)
        reservation = self.pool.reserve(hashes[: count - 1], count)
        if reservation is not None:
            fresh = set(reservation.blocks[reservation.num_cached :])
            assert not fresh & {block for blocks, _ in self.held for block in blocks}
            for block, block_hash in zip(reservation.blocks, hashes, strict=False):
                self.pool.commit(block, block_hash)
            self.held.append((reservation.blocks, Holder.REQUEST))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def transfer(self, data: st.DataObject) -> None:
        blocks, _ = data.draw(st.sampled_from(self.held))
        self.pool.hold(blocks, Holder.TRANSFER)
        self.held.append((blocks, Holder.TRANSFER))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.pool.release(*self.held.pop(index))

    @rule()
    def clear(self) -> None:
        self.pool.clear_cache()

    @invariant()
    def adds_up(self) -> None:
        counts = self.pool.counts()
        in_use = {block for blocks, _ in self.held for block in blocks}
        assert counts["free"] + counts["cached"] + len(in_use) == 12
        for holder in Holder:
            assert counts[holder] == sum(len(b) for b, kind in self.held if kind is holder)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestNoBlockIsLost = PoolMachine.TestCase
