"""What the pools of a config ask of a Ray cluster. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from triptych.config import ClusterConfig, PoolConfig
from triptych.errors import ConfigError

Strategy = Literal["SPREAD", "STRICT_SPREAD"]


@dataclass(frozen=True, slots=True)
class Places:
    """One placement group: a bundle for each worker of a pool."""

    pool: str
    strategy: Strategy
    each: Mapping[str, float]  # resources of a worker
    replicas: int

    @property
    def words(self) -> str:
        """As in "2 × 4 CPU, 1 GPU, each on another node"."""
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.each.items())
        apart = ", each on another node" if self.strategy == "STRICT_SPREAD" else ""
        return f"{self.replicas} × {each}{apart}"


def places_of(config: ClusterConfig) -> list[Places]:
    """In the order of the config. Raises ConfigError for what does not run on Ray."""
    return [_places(config, pool) for pool in config.pools]


def _places(config: ClusterConfig, pool: PoolConfig) -> Places:
    if pool.role == "draft":
        raise ConfigError(
            f"pools.{pool.name}: draft workers do not run on Ray: their homes would have to be "
            "told where they are; leave the pool out: drafts are then made by the decode workers"
        )
    # Without a number a worker computes with all cores of its node; who shares a node sets one.
    each = {"CPU": float(pool.threads or 1)}
    if config.device == "cuda" and pool.role != "ffn":
        each["GPU"] = 1.0
    return Places(pool.name, _strategy(config, pool), each, pool.replicas)


def _strategy(config: ClusterConfig, pool: PoolConfig) -> Strategy:
    """Copies of experts are there for the day that a node dies: never two on one node."""
    if pool.role == "ffn" and config.experts.copies > 1 and pool.replicas > 1:
        return "STRICT_SPREAD"
    return "SPREAD"


def what_is_missing(places: Places, nodes: Sequence[Mapping[str, float]]) -> str:
    """Why a group is not placed yet; `nodes`: what each one has, taken or not."""
    fits = [_times(places.each, node) for node in nodes]
    room = sum(map(bool, fits)) if places.strategy == "STRICT_SPREAD" else sum(fits)
    have = f"Ray's {len(nodes)} nodes hold" if len(nodes) != 1 else "Ray's only node holds"
    return f"pool {places.pool} waits for {places.words}; {have} {room} when free"


def _times(each: Mapping[str, float], node: Mapping[str, float]) -> int:
    return int(min(node.get(name, 0.0) // amount for name, amount in each.items()))
