"""Who is asked for which unit, as a home's table says it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from triptych.experts.hosts import Hosts

LAYERS, UNITS, COLUMNS = 3, 5, 2


@pytest.fixture
def hosts() -> Hosts:
    return make_hosts()


def make_hosts() -> Hosts:
    return Hosts(np.full((LAYERS, UNITS, COLUMNS), 7, np.int16))


def mask(*units: tuple[int, int]) -> NDArray[np.bool_]:
    found = np.zeros((LAYERS, UNITS), bool)
    for unit in units:
        found[unit] = True
    return found


def asked(hosts: Hosts, layer: int, unit: int) -> set[int]:
    row = hosts.table[layer, unit].tolist()
    named = [number for number in row if number >= 0]
    assert row == named + [-1] * (COLUMNS - len(named)), "no gaps"
    assert len(set(named)) == len(named), "nobody twice"
    return set(named)


EVERYTHING = np.ones((LAYERS, UNITS), bool)


def test_a_worker_is_asked_for_what_it_offers_and_for_nothing_else(hosts: Hosts) -> None:
    hosts.offer(3, mask((0, 0), (2, 4)))
    assert asked(hosts, 0, 0) == asked(hosts, 2, 4) == {3}
    assert hosts.num_hosted == 2 and hosts.numbers == [3]
    hosts.offer(3, mask((1, 1)))
    assert asked(hosts, 0, 0) == set() and asked(hosts, 1, 1) == {3}


def test_whoever_is_forgotten_is_not_asked_and_rests_no_more(hosts: Hosts) -> None:
    hosts.offer(0, EVERYTHING)
    hosts.offer(1, EVERYTHING)
    hosts.rest(1)
    hosts.give_up(1)
    hosts.forget(1)
    assert asked(hosts, 1, 1) == {0} and hosts.numbers == [0]
    hosts.offer(1, EVERYTHING)  # somebody new under this number
    assert asked(hosts, 1, 1) == {0, 1}
    hosts.forget(9)  # nobody


def test_a_resting_worker_is_asked_only_for_what_nobody_else_hosts(hosts: Hosts) -> None:
    hosts.offer(0, mask((0, 0), (0, 1)))
    hosts.offer(1, mask((0, 1), (0, 2)))
    hosts.rest(1)
    assert [asked(hosts, 0, unit) for unit in (0, 1, 2)] == [{0}, {0}, {1}]
    hosts.rest(0)
    assert [asked(hosts, 0, unit) for unit in (0, 1, 2)] == [{0}, {0, 1}, {1}]
    hosts.wake(1)
    assert [asked(hosts, 0, unit) for unit in (0, 1, 2)] == [{0}, {1}, {1}]


def test_a_worker_that_was_given_up_is_not_asked_even_for_the_last_copy(hosts: Hosts) -> None:
    hosts.offer(0, mask((0, 0), (0, 1)))
    hosts.offer(1, mask((0, 1)))
    hosts.give_up(0)
    assert [asked(hosts, 0, unit) for unit in (0, 1)] == [set(), {1}]
    hosts.offer(0, EVERYTHING)  # it says something, but it still owes answers
    assert asked(hosts, 2, 2) == set()
    hosts.wake(0)
    assert asked(hosts, 0, 0) == {0} and asked(hosts, 0, 1) == {0, 1}


def test_who_never_offered_anything_neither_rests_nor_is_given_up(hosts: Hosts) -> None:
    hosts.rest(4)
    hosts.give_up(4)
    assert not hosts.resting and not hosts.given_up


def test_a_worker_is_replaceable_in_a_layer_if_others_who_are_asked_host_all_of_it(
    hosts: Hosts,
) -> None:
    hosts.offer(0, mask((0, 0), (0, 1), (1, 0)))
    hosts.offer(1, mask((0, 0)))
    hosts.offer(2, mask((0, 1)))
    assert hosts.is_replaceable(0, 0) and not hosts.is_replaceable(0, 1)
    assert hosts.is_replaceable(0, 2), "it hosts nothing there"
    hosts.rest(2)
    assert not hosts.is_replaceable(0, 0)
    hosts.wake(2)
    hosts.give_up(1)
    assert not hosts.is_replaceable(0, 0)
    assert hosts.is_replaceable(5, 0), "nobody knows it"


def test_where_more_host_a_unit_than_the_table_holds_none_is_always_left_out(hosts: Hosts) -> None:
    for number in range(4):
        hosts.offer(number, EVERYTHING)
    tallies = np.bincount(hosts.table.reshape(-1), minlength=4)
    assert tallies.sum() == LAYERS * UNITS * COLUMNS
    assert tallies.max() - tallies.min() <= 2


steps = st.lists(
    st.tuples(
        st.sampled_from(["offer", "forget", "rest", "give_up", "wake"]),
        st.integers(0, 4),
        st.integers(0, 2 ** (LAYERS * UNITS) - 1),
    ),
    max_size=25,
)


@given(steps)
def test_a_unit_has_somebody_to_ask_whenever_anybody_hosts_it(
    steps: list[tuple[str, int, int]],
) -> None:
    hosts, offers = make_hosts(), dict[int, NDArray[np.bool_]]()
    hosts.wake(0)
    for verb, number, bits in steps:
        if verb == "offer":
            units = np.array([bits >> i & 1 for i in range(LAYERS * UNITS)], bool)
            offers[number] = units.reshape(LAYERS, UNITS)
            hosts.offer(number, offers[number])
        else:
            getattr(hosts, verb)(number)
            if verb == "forget":
                offers.pop(number, None)
    taking = {n: m for n, m in offers.items() if n not in hosts.given_up}
    for layer, unit in np.ndindex(LAYERS, UNITS):
        able = {number for number, units in taking.items() if units[layer, unit]}
        awake = able - hosts.resting
        found = asked(hosts, layer, unit)
        assert found <= (awake or able)
        assert len(found) == min(COLUMNS, len(awake or able))
