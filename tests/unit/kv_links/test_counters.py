"""Which carrier the byte counters prove."""

from __future__ import annotations

import pytest

from transport.kv.counters import ByteCounters, Carrier, carrier_of, read_counters

SIZE = 1 << 20


@pytest.mark.parametrize(
    ("network", "rdma", "carrier"),
    [
        (0, 0, "memory"),
        (SIZE // 4, 0, "memory"),
        (SIZE + 4000, 0, "network"),
        (500, SIZE + 4000, "rdma"),
        (SIZE, SIZE, "rdma"),
    ],
)
def test_the_counter_that_moved_names_the_carrier(
    network: int, rdma: int, carrier: Carrier
) -> None:
    assert carrier_of(ByteCounters(network, rdma), SIZE) == carrier


def test_counters_only_grow() -> None:
    before = read_counters()
    moved = read_counters().since(before)

    assert moved.network >= 0
    assert moved.rdma >= 0
