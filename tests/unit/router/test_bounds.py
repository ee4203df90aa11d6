"""A router that runs for months: workers come and go under ever new names, and nothing stays."""

from __future__ import annotations

from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from router.index.history import HistoryIndex
from router.index.make import make_index
from router.index.prefixes import HashedPrompt, Identity
from router.placement import Placement
from transport.protos import worker_pb2 as pb
from transport.registry import Change, WorkerView
from transport.replaced import Replaced


def worker(number: int, epoch: int = 1) -> WorkerView:
    return WorkerView(
        f"pod-{number}", epoch, "decode", "", "m", 4096, 16, 64, "", kv_identity="same"
    )


def series(registry: CollectorRegistry) -> set[tuple[str, Any]]:
    return {
        (sample.name, tuple(sample.labels.items()))
        for metric in registry.collect()
        for sample in metric.samples
    }


def test_a_worker_that_left_leaves_no_metric_behind() -> None:
    registry = CollectorRegistry()
    prefixes = make_index("approximate", registry).prefixes
    before = series(registry)
    for number in range(20):
        view = worker(number)
        prefixes.on_change(Change("joined", view))
        keys = {Identity.of(view): np.arange(3, dtype=np.uint64)}
        prediction = prefixes.predict(HashedPrompt(49, keys, 0.0))
        placement = Placement(view, None, "load")
        with prefixes.expecting(prediction, placement):
            pass
        prefixes.compare(prediction, placement, pb.RequestStats(cached_tokens=0))
        assert series(registry) > before, "the worker was counted while it was here"
        prefixes.on_change(Change("left", view))
    assert series(registry) == before


def test_blocks_noted_for_a_process_that_has_gone_go_with_the_next_one() -> None:
    index = HistoryIndex()
    keys = np.arange(8, dtype=np.uint64)
    for epoch in range(100):
        index.forget(worker(0, epoch))
        index.expect(worker(0, epoch), keys)  # placed before it left, noted behind it
    assert index.look_up(keys).told == {"pod-0": 8}
    index.forget(worker(0, 99))
    assert index.look_up(keys).told == {}


def test_only_the_latest_replaced_processes_are_remembered() -> None:
    replaced = Replaced(most=3)
    for epoch in range(3):
        replaced.add("decode-0", epoch)
    assert ("decode-0", 0) in replaced  # it tried again
    replaced.add("decode-0", 3)
    assert len(replaced) == 3
    assert ("decode-0", 0) in replaced
    assert ("decode-0", 1) not in replaced
