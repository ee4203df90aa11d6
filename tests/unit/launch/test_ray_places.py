"""What a config asks of Ray, and what is said where Ray cannot give it."""

from __future__ import annotations

from typing import Any

import pytest

from triptych.config import ClusterConfig
from triptych.errors import ConfigError
from triptych.launch.ray_places import Places, places_of, what_is_missing


def config(*pools: dict[str, Any], **fields: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"pools": pools, **fields})


def pool(role: str, replicas: int, **fields: Any) -> dict[str, Any]:
    return {"name": role, "role": role, "replicas": replicas, **fields}


def test_each_worker_takes_the_cores_that_it_computes_with() -> None:
    found = places_of(config(pool("decode", 2, threads=4), pool("prefill", 1)))
    assert [(p.pool, p.replicas, p.each) for p in found] == [
        ("decode", 2, {"CPU": 4.0}),
        ("prefill", 1, {"CPU": 1.0}),
    ]


def test_on_devices_each_engine_takes_one_and_experts_of_others_none() -> None:
    found = places_of(config(pool("decode", 1), pool("ffn", 2), device="cuda"))
    assert [p.each.get("GPU", 0) for p in found] == [1, 0]


@pytest.mark.parametrize(("copies", "strategy"), [(2, "STRICT_SPREAD"), (1, "SPREAD")])
def test_copies_of_experts_are_never_two_on_one_node(copies: int, strategy: str) -> None:
    of = {places.pool: places.strategy for places in places_of(
        config(pool("decode", 2), pool("ffn", 2), experts={"copies": copies})
    )}  # fmt: skip
    assert of == {"decode": "SPREAD", "ffn": strategy}


def test_a_pool_that_cannot_be_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"pools\.draft: draft workers do not run on Ray"):
        places_of(config(pool("decode", 1), pool("draft", 1)))


def test_who_waits_says_for_what_and_what_the_nodes_hold() -> None:
    apart = Places("ffn", "STRICT_SPREAD", {"CPU": 4.0}, 3)
    nodes = [{"CPU": 8.0}, {"CPU": 4.0}, {"CPU": 2.0}]
    assert what_is_missing(apart, nodes) == (
        "pool ffn waits for 3 × 4 CPU, each on another node; Ray's 3 nodes hold 2 when free"
    )
    anywhere = Places("decode", "SPREAD", {"CPU": 4.0, "GPU": 1.0}, 4)
    assert "hold 0" in what_is_missing(anywhere, nodes)
    assert "hold 3" in what_is_missing(Places("decode", "SPREAD", {"CPU": 4.0}, 4), nodes)
