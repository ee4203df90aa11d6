"""Which worker holds which units: with nothing known (`initial_share`), and from loads (`place`).

`place` is DeepSeek's EPLB (replicate the units with the largest load per copy, pack them heaviest
first) with what that leaves out: copies stand on different workers, and in different failure
domains while room allows; workers may differ in room and speed; what is held already stays where
it is when that is nearly as good.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triptych.errors import CapacityError
from triptych.experts.packing import Packing
from triptych.experts.units import Catalog, Floats, Hosted, Unit, Worker, domain_table

_SMALL = 1 / 8  # of a worker's fair share of a group: smaller pieces need no further copies
_PRIOR = 0.01  # of the mean load: what is never asked for is spread evenly nevertheless

Dense = Literal["layer", "replica"]


def initial_share(
    num_workers: int,
    index: int,
    experts_per_layer: Sequence[int],
    copies: int = 2,
    *,
    dense: Dense = "layer",
) -> frozenset[Unit]:
    """What worker `index` of `num_workers` loads when nobody knows more than these numbers.

    All workers together hold every unit `copies` times (once each, if there are fewer workers);
    in every layer, and in all layers together, their numbers of units differ by at most one.
    Copies meet in changing pairs, so that many share the load of one that dies. dense: of layers
    with one unit, "layer" spreads them like that; "replica" gives them to everybody.
    """
    assert 0 <= index < num_workers and copies >= 1, f"worker {index} of {num_workers}"
    copies = min(copies, num_workers)
    held = []
    turn = 0  # whose turn it is in what does not go round: continues over layers
    for layer, experts in enumerate(experts_per_layer):
        if experts == 1 and dense == "replica":
            held.append(Unit(layer, 0))
            continue
        rounds, rest = divmod(experts, num_workers)
        for lap in range(rounds):
            for place in _places(num_workers, copies, lap + layer):
                held.append(Unit(layer, lap * num_workers + (index - place) % num_workers))
        for number in range(rest):
            if (index - turn - number * copies) % num_workers < copies:
                held.append(Unit(layer, rounds * num_workers + number))
        turn += rest * copies
    return frozenset(held)


def _places(num_workers: int, copies: int, lap: int) -> list[int]:
    """How far behind its expert's number each copy stands: 0, then others, by lap."""
    return [0, *(1 + (lap + number) % (num_workers - 1) for number in range(copies - 1))]


def place(
    catalog: Catalog,
    workers: Sequence[Worker],
    loads: ArrayLike | None = None,
    *,
    copies: int = 2,
    spare: int = 1,
    current: Hosted | None = None,
) -> dict[str, frozenset[Unit]]:
    """Units by worker id; the same for the same arguments.

    loads [L, E]: rows per unit of time; None: all alike. Every unit gets `copies` copies on
    different workers while there is room, busy ones first, and more when it is busy; those leave
    room for `spare` units on each worker, which re-balancing needs. `current`: what is held now.
    Draining workers get nothing. Raises CapacityError when some unit does not fit at all.
    """
    taking = [worker for worker in workers if not worker.draining]
    if not taking:
        raise CapacityError("no FFN worker takes units: start one, or end the draining")
    flat = catalog.flat_loads(loads)
    for group in catalog.groups:
        flat[group] += _PRIOR * flat[group].mean() or 1.0
    room = np.array([worker.room for worker in taking])
    counts = _replicate(catalog, flat, room, min(copies, len(taking)), spare)
    packing = Packing(
        loads=flat,
        sizes=catalog.sizes,
        counts=counts,
        copies=min(copies, len(taking)),
        room=room,
        speeds=np.array([worker.speed for worker in taking]),
        domains=domain_table(taking),
        current=catalog.hosts(current or {}, taking),
        hosts=np.zeros((len(flat), len(taking)), bool),
        total=np.zeros(len(taking)),
    )
    packing.pack(catalog.groups)
    homeless = np.count_nonzero(~packing.hosts.any(axis=1))
    if homeless:
        raise CapacityError(
            f"{homeless} of {len(flat)} units do not fit on {len(taking)} FFN workers: "
            "add workers, or give them more room"
        )
    return catalog.hosted(packing.hosts, taking)


def _replicate(
    catalog: Catalog, loads: Floats, room: NDArray[np.int64], copies: int, spare: int
) -> NDArray[np.int64]:
    """[units] how many copies of each: `copies`, then greedily by load per copy."""
    sizes, most = catalog.sizes, len(room)
    largest = int(sizes.max())
    counts = np.ones(len(sizes), np.int64)
    left = int(room.sum()) - int(sizes.sum())
    for _ in range(copies - 1):
        for unit in np.argsort(-loads, kind="stable"):
            if sizes[unit] <= left:
                counts[unit] += 1
                left -= sizes[unit]
    left -= spare * largest * most
    fair = np.empty(len(loads))
    for group in catalog.groups:
        fair[group] = loads[group].sum() / most
    queue = [(-loads[unit] / fair[unit] / counts[unit], unit) for unit in range(len(loads))]
    heapq.heapify(queue)
    while queue and -queue[0][0] > _SMALL:
        _, unit = heapq.heappop(queue)
        if counts[unit] < most and sizes[unit] <= left:
            counts[unit] += 1
            left -= sizes[unit]
            heapq.heappush(queue, (-loads[unit] / fair[unit] / counts[unit], unit))
    return counts
