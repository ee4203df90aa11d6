"""What FFN workers load when they start: together they host everything."""

from __future__ import annotations

from collections import Counter

import pytest

from triptych.config import ClusterConfig, load_config
from triptych.experts.share import first_share, worker_number
from triptych.experts.unit_map import UnitMap
from triptych.experts.units import Unit

MAPS = {
    "mixture with dense layers": UnitMap((12, 0, 12, 12, 0)),
    "mixture": UnitMap((8, 8)),
    "dense": UnitMap((1,) * 7),
}


def config(replicas: int, *settings: str) -> ClusterConfig:
    pools = f"[{{name: decode, role: decode}}, {{name: ffn, role: ffn, replicas: {replicas}}}]"
    return load_config(None, [f"pools={pools}", *settings])


def shares(replicas: int, units: UnitMap, *settings: str) -> list[list[Unit]]:
    cluster = config(replicas, *settings)
    pool = cluster.pool("ffn")
    return [first_share(cluster, pool, f"ffn-{index}", units) for index in range(replicas)]


@pytest.mark.parametrize("dense", ["replica", "layer"])
@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
@pytest.mark.parametrize("units", MAPS.values(), ids=MAPS)
def test_all_workers_of_a_pool_together_host_everything_as_often_as_configured(
    units: UnitMap, replicas: int, copies: int, dense: str
) -> None:
    found = shares(replicas, units, f"experts.copies={copies}", f"experts.dense={dense}")
    count = Counter(unit for share in found for unit in share)
    assert set(count) == set(units)
    everywhere = units.width == 1 and dense == "replica"
    assert set(count.values()) == {replicas if everywhere else min(copies, replicas)}
    for share in found:
        assert share == sorted(set(share)), "each once, in the order of layers"
    sizes = [len(share) for share in found]
    assert max(sizes) - min(sizes) <= 1


def test_a_worker_that_joined_later_loads_nothing() -> None:
    cluster = config(2)
    pool, units = cluster.pool("ffn"), MAPS["mixture"]
    assert first_share(cluster, pool, "ffn-2", units) == []
    assert first_share(cluster, pool, "spare", units) == []


@pytest.mark.parametrize(
    ("worker_id", "number"),
    [("ffn-0", 0), ("my-pool-12", 12), ("triptych-ffn-3", 3), ("ffn", None), ("ffn-", None)],
)
def test_workers_know_their_number_by_their_name(worker_id: str, number: int | None) -> None:
    assert worker_number(worker_id) == number
