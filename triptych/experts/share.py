"""What an FFN worker loads when it starts, before anybody can tell it."""

from __future__ import annotations

from triptych.config import ClusterConfig, PoolConfig
from triptych.experts.placement import initial_share
from triptych.experts.unit_map import UnitMap
from triptych.experts.units import Unit


def first_share(
    config: ClusterConfig, pool: PoolConfig, worker_id: str, units: UnitMap
) -> list[Unit]:
    """In the order of layers. A worker beyond the pool's size, who joined later, loads nothing: the
    router's balancer will give it units.
    """
    index = worker_number(worker_id)
    if index is None or index >= pool.replicas:
        return []
    layers = [layer for layer, count in enumerate(units.per_layer) if count]
    counts = [units.per_layer[layer] for layer in layers]
    settings = config.experts
    share = initial_share(pool.replicas, index, counts, settings.copies, dense=settings.dense)
    return sorted(Unit(layers[unit.layer], unit.expert) for unit in share)


def worker_number(worker_id: str) -> int | None:
    """The number behind the last hyphen: workers of a pool are called ffn-0, ffn-1, …"""
    number = worker_id.rpartition("-")[2]
    return int(number) if number.isdecimal() else None
