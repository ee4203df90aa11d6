"""Moves: nothing is lost on the way, they help, and they end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from triptych.experts.balance import apply_moves, plan_moves, predict_loads
from triptych.experts.load_meter import LoadMeter
from triptych.experts.placement import initial_share
from triptych.experts.pool_state import Move, Rules
from triptych.experts.units import Catalog, Hosted, Unit, Worker, copies_of, missing_units

Loads = NDArray[np.float64]


def zipf_loads(catalog: Catalog, seed: int, zipf: float = 1.2) -> Loads:
    random = np.random.default_rng(seed)
    ranks = np.arange(1, max(catalog.experts) + 1) ** -zipf
    return np.stack([random.permutation(ranks / ranks.sum()) for _ in catalog.experts])


def shares(catalog: Catalog, workers: int, copies: int) -> dict[str, frozenset[Unit]]:
    return {f"f{i}": initial_share(workers, i, catalog.experts, copies) for i in range(workers)}


def pool(hosted: Hosted, extra: int) -> list[Worker]:
    room = max(map(len, hosted.values())) + extra
    return [Worker(id_, f"host-{id_}", room) for id_ in hosted]


def check_order(
    catalog: Catalog, hosted: Hosted, workers: Sequence[Worker], moves: Sequence[Move]
) -> None:
    """Step by step: rooms are kept and no unit that somebody holds loses its last copy."""
    room = {worker.id: worker.room for worker in workers}
    held = {id_: set(units) for id_, units in hosted.items() if id_ in room}
    for id_ in room:
        held.setdefault(id_, set())
    for move in moves:
        if move.prepare is not None:
            target = held[move.prepare.worker]
            assert move.prepare.unit not in target
            target.add(move.prepare.unit)
            assert len(target) <= room[move.prepare.worker]
        if move.retire is not None:
            held[move.retire.worker].remove(move.retire.unit)
            assert any(move.retire.unit in units for units in held.values())


def settle(
    catalog: Catalog,
    hosted: Hosted,
    loads: Loads | None,
    workers: Sequence[Worker],
    rules: Rules,
    rounds: int = 80,
) -> dict[str, frozenset[Unit]]:
    """What is held when nothing wants to move any more."""
    alive = {worker.id for worker in workers}
    held = {id_: units for id_, units in hosted.items() if id_ in alive}
    for _ in range(rounds):
        moves = plan_moves(catalog, held, loads, workers, rules)
        check_order(catalog, held, workers, moves)
        assert sum(move.prepare is not None for move in moves) <= rules.moves
        if not moves:
            return held
        held = apply_moves(held, moves)
    pytest.fail(f"still moving after {rounds} rounds")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(8,), (8, 5, 1, 1), (16, 16), (1, 1, 1, 1, 1)]),
    st.integers(2, 5),
    st.integers(1, 2),
    st.integers(1, 4),
    st.integers(0, 999),
    st.sets(st.integers(0, 4), max_size=2),
    st.sets(st.integers(0, 4), max_size=2),
)
def test_whatever_dies_leaves_or_joins_nothing_is_lost_and_moving_ends(
    experts: tuple[int, ...],
    count: int,
    copies: int,
    extra: int,
    seed: int,
    dead: set[int],
    leaving: set[int],
) -> None:
    catalog = Catalog(experts)
    hosted = shares(catalog, count, copies)
    room = max(map(len, hosted.values())) + extra
    workers = [
        Worker(f"f{i}", f"host{i % 3}", room, draining=i in leaving)
        for i in range(count + 1)  # the last one joins
        if i not in dead
    ]
    rules = Rules(copies=copies, moves=4)
    held = settle(catalog, hosted, zipf_loads(catalog, seed), workers, rules)
    stays = [worker for worker in workers if not worker.draining]
    if sum(worker.room for worker in stays) >= len(catalog.units) and stays:
        assert not missing_units(catalog, (held.get(worker.id, frozenset()) for worker in workers))
    if sum(worker.room - 1 for worker in stays) >= copies * len(catalog.units) + len(stays):
        assert all(not held.get(worker.id) for worker in workers if worker.draining)


@pytest.mark.parametrize(("copies", "extra"), [(1, 4), (2, 1)])
def test_zipf_load_over_four_workers_becomes_even(copies: int, extra: int) -> None:
    catalog = Catalog((64,) * 3)
    for seed in range(3):
        hosted = shares(catalog, 4, copies)
        workers = pool(hosted, extra)
        loads = zipf_loads(catalog, seed)
        held = settle(catalog, hosted, loads, workers, Rules(copies=copies))
        levels = predict_loads(catalog, held, loads, workers)
        assert (levels.max(axis=1) / levels.mean(axis=1)).max() <= 1.05


def test_little_to_gain_is_no_reason_to_move() -> None:
    catalog = Catalog((8,))
    hosted = shares(catalog, 4, 1)
    even = np.array([[1.0, 1.04, 1, 1, 1, 1, 1, 1]])
    assert plan_moves(catalog, hosted, even, pool(hosted, 2), Rules(copies=1)) == []
    hot = np.array([[1.0, 3.0, 1, 1, 1, 1, 1, 1]])
    assert plan_moves(catalog, hosted, hot, pool(hosted, 2), Rules(copies=1)) != []


def test_unknown_loads_move_nothing_but_what_lacks_copies() -> None:
    catalog = Catalog((8, 8))
    hosted = shares(catalog, 4, 2)
    workers = pool(hosted, 3)
    assert plan_moves(catalog, hosted, None, workers) == []
    held = settle(catalog, hosted, None, workers[1:], Rules())
    assert min(copies_of(held, unit) for unit in catalog.units) == 1, "room for only 3 × 10 + 1"
    roomy = [Worker(worker.id, worker.domain, 14) for worker in workers[1:]]
    held = settle(catalog, hosted, None, roomy, Rules())
    assert min(copies_of(held, unit) for unit in catalog.units) == 2


def test_what_nobody_holds_comes_first_and_takes_the_room_of_second_copies() -> None:
    catalog = Catalog((6,))
    all_but_last = frozenset(catalog.units[:-1])
    hosted = {"f0": all_but_last, "f1": all_but_last}
    workers = [Worker("f0", "a", 5), Worker("f1", "b", 5)]
    moves = plan_moves(catalog, hosted, np.ones((1, 6)), workers)
    assert moves[0].prepare is None and moves[0].retire is not None
    assert moves[1].prepare is not None and moves[1].prepare.unit == Unit(0, 5)
    check_order(catalog, hosted, workers, moves)


def test_copies_that_would_fail_together_are_taken_apart() -> None:
    catalog = Catalog((4,))
    everything = frozenset(catalog.units)
    hosted = {"f0": everything, "f1": everything, "f2": frozenset[Unit]()}
    workers = [Worker("f0", "left", 6), Worker("f1", "left", 6), Worker("f2", "right", 6)]
    held = settle(catalog, hosted, np.ones((1, 4)), workers, Rules())
    assert held["f2"] == everything


def test_an_empty_worker_that_joins_gets_its_share_of_the_load() -> None:
    catalog = Catalog((32, 32))
    hosted = shares(catalog, 3, 2)
    workers = [*pool(hosted, 2), Worker("f3", "new", 30)]
    loads = zipf_loads(catalog, 3, zipf=0.8)
    held = settle(catalog, hosted, loads, workers, Rules())
    levels = predict_loads(catalog, held, loads, workers)
    assert (levels[:, 3] > 0.9 * levels.mean(axis=1)).all()


def test_dense_layers_are_balanced_together() -> None:
    catalog = Catalog((1,) * 12)
    hosted = {"f0": frozenset(catalog.units), "f1": frozenset[Unit]()}
    workers = [Worker("f0", "a", 13), Worker("f1", "b", 13)]
    held = settle(catalog, hosted, np.ones((12, 1)), workers, Rules(copies=1))
    levels = predict_loads(catalog, held, np.ones((12, 1)), workers)
    assert levels.shape == (1, 2)
    assert levels.max() <= 1.05 * levels.mean()


def test_a_load_meter_forgets() -> None:
    catalog = Catalog((4, 1))
    meter = LoadMeter(catalog, now=0.0, half_life_s=10.0)
    assert not meter.loads.any()
    for second in range(1, 101):
        meter.add([[90, 10, 0, 0], [100, 0, 0, 0]], now=float(second))
    assert np.allclose(meter.loads[0], [90, 10, 0, 0])
    for second in range(101, 111):
        meter.add([[10, 90, 0, 0], [100, 0, 0, 0]], now=float(second))
    assert np.allclose(meter.loads[0], [50, 50, 0, 0], atol=2), "one half-life later"
    assert np.allclose(meter.loads[1, 0], 100)


def test_few_rows_are_chance() -> None:
    meter = LoadMeter(Catalog((4,)), now=0.0)
    meter.add([[300, 200, 250, 250]], now=1.0)
    assert not meter.is_settled(num_workers=4)
    meter.add([[3000, 2000, 2500, 2500]], now=2.0)
    assert meter.is_settled(num_workers=4)
