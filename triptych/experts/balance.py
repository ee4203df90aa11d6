"""Which units should move, seen from what is held and how much it is asked for. Pure: the caller
executes the moves, in their order, and asks again with what is held then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from triptych.experts.coverage import empty_draining, free_reserve, repair_copies, spread_domains
from triptych.experts.fluid import fluid_loads
from triptych.experts.levelling import level_loads
from triptych.experts.pool_state import Move, PoolState, Rules
from triptych.experts.units import Catalog, Floats, Hosted, Unit, Worker

DEFAULT_RULES = Rules()


def plan_moves(
    catalog: Catalog,
    hosted: Hosted,
    loads: ArrayLike | None,
    workers: Sequence[Worker],
    rules: Rules = DEFAULT_RULES,
) -> list[Move]:
    """One round of moves: at most `rules.moves` preparations, any number of retirements.

    hosted: units by worker id; ids that are not among `workers` are dead. loads [L, E]: rows per
    unit of time; None: nothing is known yet.

    First comes coverage: copies of what a dead worker held (what nobody holds now before all else),
    of what draining workers hold, and in other domains. Then load: a group's moves are planned only
    if its busiest worker has more than `rules.gain` of a fair share too much and they take more
    than that from it, or bring it below half of that. At every point of
    the list rooms are kept, and no unit loses its last copy; its other copies it loses only where
    `rules.copies` are left, or where a worker leaves or a unit without any needs the room. The same
    loads lead to an empty list in the end, and to no place twice.
    """
    known = loads is not None
    state = PoolState.start(catalog, workers, rules, catalog.flat_loads(loads), hosted)
    if not state.staying.any():
        return []
    repair_copies(state)
    empty_draining(state)
    free_reserve(state)
    spread_domains(state)
    if known:
        level_loads(state)
    return state.moves


def apply_moves(hosted: Hosted, moves: Sequence[Move]) -> dict[str, frozenset[Unit]]:
    """What is held when all moves are done."""
    held = {worker: set(units) for worker, units in hosted.items()}
    for move in moves:
        if move.prepare is not None:
            held.setdefault(move.prepare.worker, set()).add(move.prepare.unit)
        if move.retire is not None:
            held[move.retire.worker].remove(move.retire.unit)
    return {worker: frozenset(units) for worker, units in held.items()}


def predict_loads(
    catalog: Catalog, hosted: Hosted, loads: ArrayLike, workers: Sequence[Worker]
) -> Floats:
    """[groups, workers] load per speed of each worker if rows flow to copies as evenly as they can.

    What `plan_moves` judges by. A single call deviates from it: `dispatch.choose_workers` says what
    one call does.
    """
    flat = catalog.flat_loads(loads)
    hosts = catalog.hosts(hosted, workers)
    speeds = np.array([worker.speed for worker in workers])
    return np.stack([fluid_loads(flat[group], hosts[group], speeds) for group in catalog.groups])
