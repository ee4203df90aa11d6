"""The best split over copies, against looking at every set of workers."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from triptych.experts.fluid import find_bottleneck, fluid_loads

Case = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    workers, units = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    hosts = random.random((units, workers)) < draw(st.sampled_from([0.1, 0.3, 0.6]))
    hosts[np.arange(units), random.integers(0, workers, units)] = True
    return random.random(units) ** 3, hosts, random.random(workers) + 0.2


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_bottleneck_is_the_heaviest_set_of_workers(case: Case) -> None:
    loads, hosts, speeds = case
    heaviest = 0.0
    for bits in product([False, True], repeat=len(speeds)):
        chosen = np.array(bits)
        if chosen.any():
            inside = ~(hosts & ~chosen).any(axis=1)
            heaviest = max(heaviest, loads[inside].sum() / speeds[chosen].sum())
    found = find_bottleneck(loads, hosts, speeds)
    assert np.isclose(found.load, heaviest)
    inside = ~(hosts & ~found.workers).any(axis=1)
    assert np.isclose(loads[inside].sum() / speeds[found.workers].sum(), heaviest)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_all_workers_levels_come_from_a_split_that_nobody_can_better(case: Case) -> None:
    loads, hosts, speeds = case
    levels = fluid_loads(loads, hosts, speeds)
    assert np.isclose(levels @ speeds, loads.sum()), "all rows go somewhere"
    for level in np.unique(levels):
        above = levels >= level - 1e-9
        # Whoever is at least that busy gets only what nobody less busy could take.
        inside = ~(hosts & ~above).any(axis=1)
        assert np.isclose(loads[inside].sum(), levels[above] @ speeds[above])


def test_one_hot_expert_is_shared_by_its_copies() -> None:
    hosts = np.array([[True, True, False], [False, False, True]])
    levels = fluid_loads(np.array([4.0, 1.0]), hosts, np.array([1.0, 3.0, 1.0]))
    assert levels.tolist() == [1.0, 1.0, 1.0]
