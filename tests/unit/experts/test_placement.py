"""Where units are placed: everything covered, copies apart, rooms kept, loads even."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from triptych.errors import CapacityError
from triptych.experts.fluid import find_bottleneck
from triptych.experts.placement import initial_share, place
from triptych.experts.units import Catalog, Unit, Worker, copies_of, missing_units

layers = st.lists(st.sampled_from([1, 1, 2, 5, 8, 16]), min_size=1, max_size=5).map(tuple)


@given(layers, st.integers(1, 9), st.integers(1, 3), st.sampled_from(["layer", "replica"]))
def test_workers_that_know_only_their_number_cover_everything(
    experts: tuple[int, ...], workers: int, copies: int, dense: str
) -> None:
    shares = [initial_share(workers, i, experts, copies, dense=dense) for i in range(workers)]  # type: ignore[arg-type]
    for unit in Catalog(experts).units:
        everybody = dense == "replica" and experts[unit.layer] == 1
        holders = sum(unit in share for share in shares)
        assert holders == (workers if everybody else min(copies, workers))
    for layer in range(len(experts)):
        sizes = [sum(unit.layer == layer for unit in share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_many_workers_share_the_load_of_one_that_dies() -> None:
    shares = [initial_share(4, index, (64,)) for index in range(4)]
    partners = [len(shares[0] & share) for share in shares[1:]]
    assert min(partners) >= 8, "of 32 units each of the three others has about a third"


@st.composite
def pools(draw: st.DrawFn) -> tuple[Catalog, list[Worker]]:
    catalog = Catalog(draw(layers))
    domains = draw(st.integers(1, 4))
    rooms = draw(st.lists(st.integers(0, 40), min_size=1, max_size=7))
    workers = [
        Worker(f"f{i}", f"host{i % domains}", room, draw(st.sampled_from([0.5, 1.0, 2.0])))
        for i, room in enumerate(rooms)
    ]
    return catalog, workers


@settings(max_examples=150, deadline=None)
@given(pools(), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_rooms_are_kept_and_everything_has_a_place_or_an_error(
    pool: tuple[Catalog, list[Worker]], copies: int, seed: int
) -> None:
    catalog, workers = pool
    loads = np.random.default_rng(seed).pareto(1.5, (len(catalog.experts), max(catalog.experts)))
    fits = sum(worker.room for worker in workers) >= len(catalog.units)
    try:
        held = place(catalog, workers, loads, copies=copies)
    except CapacityError as error:
        assert "add workers" in str(error)
        assert not fits, "one unit each would have fitted"
        return
    assert not missing_units(catalog, held.values())
    assert all(len(held[worker.id]) <= worker.room for worker in workers)
    assert place(catalog, workers, loads, copies=copies) == held, "same arguments, same places"


@settings(max_examples=60, deadline=None)
@given(layers, st.integers(2, 6), st.integers(2, 3), st.integers(1, 3))
def test_copies_stand_on_different_workers_and_domains_while_there_is_room(
    experts: tuple[int, ...], workers: int, copies: int, domains: int
) -> None:
    catalog = Catalog(experts)
    all_units = len(catalog.units)
    pool = [Worker(f"f{i}", f"host{i % domains}", all_units + 1) for i in range(workers)]
    held = place(catalog, pool, copies=copies)
    where = {worker.id: worker.domain for worker in pool}
    for unit in catalog.units:
        assert copies_of(held, unit) >= min(copies, workers)
        stands = {where[id_] for id_, units in held.items() if unit in units}
        assert len(stands) >= min(copies, workers, domains)


def test_two_copies_just_fit_into_two_domains() -> None:
    pool = [Worker(f"f{i}", f"host{i // 2}", 16) for i in range(4)]
    held = place(Catalog((8, 8, 8, 8)), pool, copies=2, spare=0)
    for unit in Catalog((8, 8, 8, 8)).units:
        assert any(unit in held[f"f{i}"] for i in (0, 1))
        assert any(unit in held[f"f{i}"] for i in (2, 3))


def test_without_room_for_two_copies_busy_experts_get_them() -> None:
    loads = np.array([[9.0, 1, 1, 1, 1, 1, 1, 9.0]])
    pool = [Worker(f"f{i}", f"host{i}", 5) for i in range(2)]
    held = place(Catalog((8,)), pool, loads, copies=2)
    assert [copies_of(held, Unit(0, e)) for e in range(8)] == [2, 1, 1, 1, 1, 1, 1, 2]


def test_what_is_held_already_stays_when_that_is_nearly_as_good() -> None:
    random = np.random.default_rng(0)
    catalog = Catalog((64,) * 3)
    pool = [Worker(f"f{i}", f"host{i}", 110) for i in range(4)]
    loads = random.pareto(2, (3, 64)) + 0.1
    before = place(catalog, pool, loads)
    noisy = loads * random.uniform(0.98, 1.02, loads.shape)
    fresh, kept = place(catalog, pool, noisy), place(catalog, pool, noisy, current=before)
    moved = [sum(len(new[i] - before[i]) for i in new) for new in (fresh, kept)]
    assert moved[1] < moved[0] / 2


def test_rooms_may_be_bytes_and_dense_layers_larger() -> None:
    catalog = Catalog((1, 8, 8), room=(100, 10, 10))
    pool = [Worker(f"f{i}", f"host{i}", 200) for i in range(3)]
    held = place(catalog, pool, copies=2, spare=0)
    for worker in pool:
        assert sum(catalog.room[unit.layer] for unit in held[worker.id]) <= worker.room
    assert all(copies_of(held, unit) >= 2 for unit in catalog.units)


def test_a_faster_worker_gets_more_load() -> None:
    pool = [Worker("slow", "a", 40), Worker("fast", "b", 40, speed=3.0)]
    loads = np.random.default_rng(1).uniform(1, 2, (1, 64))
    held = place(Catalog((64,)), pool, loads, copies=1)
    share = sum(loads[0, unit.expert] for unit in held["fast"] - held["slow"]) / loads.sum()
    assert share > 0.55


def test_draining_workers_get_nothing() -> None:
    pool = [Worker("a", "a", 99), Worker("b", "b", 99, draining=True), Worker("c", "c", 99)]
    assert "b" not in place(Catalog((8,)), pool)


def eplb(loads: NDArray[np.float64], slots: int, workers: int) -> NDArray[np.int64]:
    """DeepSeek's global EPLB: replicate, then balanced packing. [experts, workers] copies."""
    counts = np.ones(len(loads), int)
    for _ in range(slots - len(loads)):
        counts[np.argmax(loads / counts)] += 1
    copies = np.repeat(np.arange(len(loads)), counts)
    table = np.zeros((len(loads), workers), int)
    room, packed = np.full(workers, slots // workers), np.zeros(workers)
    for expert in copies[np.argsort(-(loads / counts)[copies], kind="stable")]:
        worker = int(np.argmin(np.where(room > 0, packed, np.inf)))
        room[worker] -= 1
        packed[worker] += loads[expert] / counts[expert]
        table[expert, worker] += 1
    return table


@pytest.mark.parametrize("zipf", [0.4, 0.8, 1.2])
def test_copies_are_worth_more_than_eplb_s(zipf: float) -> None:
    """64 experts, 8 workers, 96 slots: EPLB puts copies of one expert on one worker."""
    random = np.random.default_rng(2)
    doubles = 0
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(6):
        loads = random.permutation(np.arange(1, 65) ** -zipf)
        table = eplb(loads, 96, 8)
        doubles += int((table > 1).any())
        pool = [Worker(f"f{i}", f"host{i}", 12) for i in range(8)]
        catalog = Catalog((64,))
        held = catalog.hosts(place(catalog, pool, loads[None], copies=1, spare=0), pool)
        for found, hosts in ((theirs, table > 0), (ours, held)):
            load = find_bottleneck(loads, hosts, np.ones(8)).load
            found.append(load / (loads.sum() / 8))
    assert doubles >= 4
    assert max(ours) <= 1.05
    assert np.mean(ours) <= np.mean(theirs) + 1e-9
