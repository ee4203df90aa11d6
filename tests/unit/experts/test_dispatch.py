"""Who gets the rows of a call."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.experts.dispatch import choose_workers
from triptych.experts.fluid import find_bottleneck
from triptych.experts.placement import initial_share
from triptych.experts.units import Unit


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_row_of_every_expert_goes_to_one_of_its_hosts(data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, 5))
    counts = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=12))
    some = st.sets(st.integers(0, workers - 1), min_size=1).map(sorted)
    hosts = [data.draw(some) for _ in counts]
    outstanding = data.draw(st.lists(st.floats(0, 500), min_size=workers, max_size=workers))
    pieces = choose_workers(counts, hosts, outstanding, [1.0] * workers)
    for expert, rows in enumerate(counts):
        mine = sorted((p for p in pieces if p.expert == expert), key=lambda p: p.first)
        assert all(piece.worker in hosts[expert] for piece in mine)
        covered = [row for p in mine for row in range(p.first, p.first + p.rows)]
        assert covered == list(range(rows))


def test_an_expert_s_weights_are_read_once_unless_it_is_hot() -> None:
    hosts = [[0, 1]] * 20
    pieces = choose_workers([4] * 20, hosts, [0.0, 0.0], [1.0, 1.0])
    assert max(Counter(piece.expert for piece in pieces).values()) == 1
    hot = choose_workers([400] + [4] * 19, hosts, [0.0, 0.0], [1.0, 1.0])
    assert {piece.worker for piece in hot if piece.expert == 0} == {0, 1}


def test_the_busy_and_the_slow_get_less() -> None:
    hosts = [[0, 1]] * 40
    busy = choose_workers([8] * 40, hosts, [160.0, 0.0], [1.0, 1.0])
    assert sum(piece.rows for piece in busy if piece.worker == 0) == 80
    slow = choose_workers([8] * 40, hosts, [0.0, 0.0], [1.0, 3.0])
    assert sum(piece.rows for piece in slow if piece.worker == 0) == 80


def test_homes_that_know_nothing_do_not_all_pick_the_same_worker() -> None:
    picks = {
        choose_workers([0] * e + [4], [[0, 1, 2]] * (e + 1), [0.0] * 3, [1.0] * 3)[0].worker
        for e in range(3)
    }
    assert picks == {0, 1, 2}


def test_a_call_of_zipf_load_is_spread_nearly_as_well_as_can_be() -> None:
    random = np.random.default_rng(0)
    held = [initial_share(4, index, (64,), 2) for index in range(4)]
    hosts = [[w for w in range(4) if Unit(0, e) in held[w]] for e in range(64)]
    table = np.array([[w in own for w in range(4)] for own in hosts])
    worse = []
    for _ in range(20):
        likes = random.permutation(np.arange(1, 65) ** -1.2)
        counts = random.multinomial(512, likes / likes.sum())
        loads = np.zeros(4)
        for piece in choose_workers(counts.tolist(), hosts, [0.0] * 4, [1.0] * 4):
            loads[piece.worker] += piece.rows
        worse.append(
            loads.max() / find_bottleneck(counts.astype(np.float64), table, np.ones(4)).load
        )
    assert np.mean(worse) <= 1.03
