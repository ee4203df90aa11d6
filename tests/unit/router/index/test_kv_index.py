"""What the index says of a prompt: by what it was told, and by what it expects."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from router.index.history import HistoryIndex
from router.index.hit import PrefixHit
from router.index.keys import keys_of
from router.index.kv_index import KvIndex
from triptych.testing.kv_workers import Clock, hashes_of, worker_view

PROMPT = list(range(40))  # ten blocks
HASHES = hashes_of(PROMPT)
KEYS = keys_of(HASHES)
TTL = 2.0


def index_with(clock: Clock, **blocks: list[int]) -> KvIndex:
    """Workers by name with the numbers of the prompt's blocks that they hold."""
    index = KvIndex(confirmed_within_s=TTL, clock=clock)
    for worker_id, numbers in blocks.items():
        index.replace(worker_id, index.holdings.open())
        index.store(worker_id, np.sort(KEYS[numbers]))
    return index


def lengths(index: KvIndex) -> dict[str, int]:
    return {worker_id: hit.blocks for worker_id, hit in index.hits(HASHES).items()}


def test_a_hit_is_the_leading_blocks_that_a_worker_holds() -> None:
    index = index_with(Clock(), all=[*range(10)], some=[0, 1, 2], tail=[5, 6, 7])
    assert index.hits(HASHES) == {"all": PrefixHit(10), "some": PrefixHit(3)}
    assert index.hits([]) == {} and index.hits(hashes_of(PROMPT, salt="other")) == {}


def test_an_evicted_block_in_the_middle_ends_the_hit_until_it_is_back() -> None:
    index = index_with(Clock(), a=[*range(10)])
    index.remove("a", KEYS[4:5])
    assert lengths(index) == {"a": 4} and index.num_blocks("a") == 9
    index.store("a", KEYS[4:5])
    assert lengths(index) == {"a": 10}


def test_a_block_that_is_being_computed_counts_at_once() -> None:
    index = index_with(Clock(), a=[0, 1])
    index.expect(worker_view("a"), KEYS)
    index.expect(worker_view("b"), KEYS[:5])
    assert lengths(index) == {"a": 10, "b": 5}
    assert index.look_up(KEYS).told == {"a": 2}


def test_what_failed_is_no_longer_expected() -> None:
    index = index_with(Clock())
    first, second = (index.expect(worker_view("a"), KEYS[:count]) for count in (10, 6))
    first(False)
    assert lengths(index) == {"a": 6}, "another request still computes these"
    second(False)
    assert lengths(index) == {}


def test_what_was_computed_is_believed_until_events_are_overdue() -> None:
    clock = Clock()
    index = index_with(clock)
    index.expect(worker_view("a"), KEYS)(True)
    clock.now += TTL - 0.01
    assert lengths(index) == {"a": 10}
    clock.now += 0.02
    assert lengths(index) == {}


def test_what_was_told_outlives_the_expectation() -> None:
    clock = Clock()
    index = index_with(clock, a=[])
    index.expect(worker_view("a"), KEYS)(True)
    index.store("a", np.sort(KEYS[:7]))
    assert lengths(index) == {"a": 10}
    clock.now += TTL
    assert lengths(index) == {"a": 7}


def test_a_worker_that_tells_of_an_eviction_is_believed() -> None:
    index = index_with(Clock(), a=[*range(10)])
    index.expect(worker_view("a"), KEYS)(True)
    index.remove("a", KEYS[3:4])
    assert lengths(index) == {"a": 3}


def test_expected_and_held_blocks_make_one_prefix() -> None:
    index = index_with(Clock(), a=[0, 1, 5, 6])
    index.expect(worker_view("a"), KEYS[:5])
    assert lengths(index) == {"a": 7}


def test_a_worker_that_left_is_expected_to_hold_nothing() -> None:
    index = index_with(Clock(), a=[0])
    done = index.expect(worker_view("a"), KEYS)
    index.forget(worker_view("a"))
    index.withdraw("a")
    assert lengths(index) == {}
    done(False)
    assert lengths(index) == {}


@given(
    held=st.sets(st.integers(0, 9)),
    expected=st.lists(st.tuples(st.integers(0, 10), st.booleans()), max_size=4),
)
def test_a_hit_is_that_of_a_walk_over_held_and_expected_blocks(
    held: set[int], expected: list[tuple[int, bool]]
) -> None:
    index = index_with(Clock(), a=sorted(held))
    present = set(held)
    for count, fails in expected:
        done = index.expect(worker_view("a"), KEYS[:count])
        if fails:
            done(False)
        else:
            present |= set(range(count))
    walked = next((number for number in range(10) if number not in present), 10)
    assert lengths(index) == ({"a": walked} if walked else {})


def test_history_finds_what_was_placed_and_forgets_the_oldest_tail_first() -> None:
    index, other = HistoryIndex(), keys_of(hashes_of([7] * 24))
    index.expect(worker_view("a", num_blocks=12), KEYS)
    index.expect(worker_view("a", num_blocks=12), other)  # six blocks
    assert index.look_up(other).hits == {"a": PrefixHit(6)}
    assert index.look_up(KEYS).hits == {"a": PrefixHit(6)}
    index.expect(worker_view("b", num_blocks=4), KEYS)
    assert index.look_up(KEYS).told == {"a": 6, "b": 4}


def test_history_ends_with_the_process_of_the_worker() -> None:
    index = HistoryIndex()
    index.expect(worker_view("a", epoch=1), KEYS)
    index.forget(worker_view("a", epoch=1))
    index.expect(worker_view("a", epoch=2), KEYS[:2])
    assert index.look_up(KEYS).told == {"a": 2}
