"""Moves that give every unit its copies again: after a death, when one leaves, over domains."""

from __future__ import annotations

import numpy as np

from triptych.experts.pool_state import PoolState
from triptych.experts.units import Bools, numbers


def repair_copies(state: PoolState) -> None:
    """Prepares units with too few copies: those with none first, then by load."""
    for target in range(1, state.wanted + 1):
        copies = state.copies
        missing = np.flatnonzero(copies < target)
        for unit in missing[np.lexsort((-state.loads[missing], copies[missing]))]:
            if state.moves_left > 0:
                _add_copy(state, unit)


def empty_draining(state: PoolState) -> None:
    """Retires from workers that leave what the others hold, as often as there is room for."""
    crowded = state.moves_left > 0  # whoever has too few copies by now found no room
    copies = state.copies
    for worker in numbers(~state.staying):
        for unit in numbers(state.hosts[:, worker]):
            if copies[unit] >= state.wanted or (crowded and copies[unit] > 0):
                state.move(retire=(unit, worker))


def spread_domains(state: PoolState) -> None:
    """Moves copies that would fail together to domains that the unit does not stand in."""
    staying = state.staying
    reachable = min(state.wanted, int(np.count_nonzero(state.domains[staying].any(axis=0))))
    covered = np.count_nonzero((state.hosts & staying) @ state.domains, axis=1)
    for unit in numbers((covered < reachable) & (state.copies > covered)):
        if state.moves_left < 1:
            return
        _spread(state, unit)


def free_reserve(state: PoolState) -> None:
    """Retires further copies on workers that have no room left to prepare in."""
    for worker in numbers(state.staying & (state.room < state.reserve)):
        while state.room[worker] < state.reserve:
            extra = _coldest_extra(state, worker)
            if extra is None:
                break
            state.move(retire=(extra, worker))


def _add_copy(state: PoolState, unit: int) -> bool:
    size = state.catalog.sizes[unit]
    alone = state.copies[unit] == 0
    leaving = numbers(state.hosts[unit] & ~state.staying)
    retire = (unit, leaving[0]) if leaving else None
    able = state.staying & ~state.hosts[unit]
    covered = (state.hosts[unit] & state.staying) @ state.domains
    fresh = able & ~(state.domains @ covered)
    # What nobody holds goes anywhere; a second copy leaves room for moves.
    keep = 0 if alone else state.reserve
    lightness = state.lightness(unit)
    for choice in (fresh, able):
        fits = numbers(choice & (state.room - size >= keep))
        if fits:
            state.move((unit, min(fits, key=lambda worker: lightness[worker])), retire)
            return True
    return _replace_extra(state, unit, fresh, able, retire)


def _replace_extra(
    state: PoolState,
    unit: int,
    fresh: Bools,
    able: Bools,
    retire: tuple[int, int] | None,
) -> bool:
    """In the room of a unit that has more copies than it must; a unit that nobody holds takes the
    room of any unit that somebody else holds too.
    """
    size = state.catalog.sizes[unit]
    least = 1 if state.copies[unit] == 0 else state.wanted
    for choice in (fresh, able):
        for worker in sorted(numbers(choice), key=lambda worker: -int(state.room[worker])):
            extra = _coldest_extra(state, worker, least)
            if extra is None or state.room[worker] + state.catalog.sizes[extra] < size:
                continue
            state.move(retire=(extra, worker))
            state.move((unit, worker), retire)
            return True
    return False


def _coldest_extra(state: PoolState, worker: int, least: int | None = None) -> int | None:
    """The unit on `worker` with more than `least` copies whose copies have the least to do."""
    copies = state.copies
    extras = np.flatnonzero(
        state.hosts[:, worker] & (copies > (state.wanted if least is None else least))
    )
    for unit in extras[np.argsort(state.loads[extras] / copies[extras], kind="stable")]:
        if least == 1 or state.keeps_domains(unit, without=worker):
            return int(unit)
    return None


def _spread(state: PoolState, unit: int) -> None:
    hosts = state.hosts[unit] & state.staying
    crowd = hosts & (np.count_nonzero(state.domains[hosts], axis=0)[state.domains.argmax(1)] > 1)
    fresh = numbers(state.staying & ~(state.domains @ (hosts @ state.domains)))
    lightness = state.lightness(unit)
    size = state.catalog.sizes[unit]
    if not crowd.any():  # another unit's move has moved this one too
        return
    leave = max(numbers(crowd), key=lambda worker: lightness[worker])
    for worker in sorted(fresh, key=lambda worker: lightness[worker]):
        if state.room[worker] - size >= state.reserve:
            state.move((unit, worker), (unit, leave))
            return
        other = _exchange(state, unit, leave, worker)
        if other is not None and state.moves_left >= 2 and state.room[worker] >= size:
            state.move((unit, worker), (unit, leave))
            state.move((other, leave), (other, worker))
            return


def _exchange(state: PoolState, unit: int, giver: int, taker: int) -> int | None:
    """The unit of the taker, of the same group, that would go the other way with least harm."""
    group = next(group for group in state.catalog.groups if unit in group)
    others = group[state.hosts[group, taker] & ~state.hosts[group, giver]]
    gaps = np.abs(state.loads[others] - state.loads[unit])
    for other in others[np.argsort(gaps, kind="stable")]:
        if state.keeps_domains(other, without=taker, with_=giver):
            return int(other)
    return None
