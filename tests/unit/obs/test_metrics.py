"""What a worker counts. Names are an interface: dashboards and alerts depend on them."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from triptych.obs.metrics import WorkerMetrics, new_registry


@pytest.fixture
def registry():
    return new_registry()


@pytest.fixture
def metrics(registry):
    return WorkerMetrics(registry)


def families(registry):
    text = generate_latest(registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_every_family_of_ours_bears_our_name_and_a_description(registry, metrics):
    ours = {
        name: family
        for name, family in families(registry).items()
        if not name.startswith(("process_", "python_")) and not name.endswith("_created")
    }
    assert sorted(ours) == [
        "triptych_kv_blocks",
        "triptych_kv_fallbacks",
        "triptych_kv_path_info",
        "triptych_kv_salvaged_blocks",
        "triptych_kv_transfer_bytes",
        "triptych_kv_transfer_failures",
        "triptych_kv_transfer_seconds",
        "triptych_oldest_transfer_seconds",
        "triptych_preemptions",
        "triptych_prefix_cache_hit_tokens",
        "triptych_prefix_cache_query_tokens",
        "triptych_requests",
        "triptych_sparse_attention_pages",
        "triptych_sparse_attention_tiles",
        "triptych_step_rows",
        "triptych_step_seconds",
        "triptych_steps",
    ]
    assert all(family.documentation for family in ours.values())


def test_the_process_itself_is_measured(registry):
    assert "process_resident_memory_bytes" in families(registry)


def test_two_workers_in_one_process_count_apart():
    first, second = new_registry(), new_registry()
    WorkerMetrics(first).steps.inc()
    WorkerMetrics(second)
    counts = [registry.get_sample_value("triptych_steps_total") for registry in (first, second)]
    assert counts == [1, 0]


def test_blocks_are_reported_by_owner_and_state(registry, metrics):
    metrics.kv_blocks.labels(owner="transfer", state="quarantined").set(3)
    labels = {"owner": "transfer", "state": "quarantined"}
    assert registry.get_sample_value("triptych_kv_blocks", labels) == 3


def test_counters_take_their_labels_by_name(registry, metrics):
    metrics.requests.labels(outcome="cancelled").inc()
    metrics.kv_transfer_bytes.labels(link="shm").inc(4096)
    metrics.kv_transfer_seconds.labels(link="shm").observe(0.002)
    metrics.kv_transfer_failures.labels(link="tcp", reason="PeerGone").inc()
    metrics.kv_fallbacks.labels(step="home").inc()
    values = [
        registry.get_sample_value(name, labels)
        for name, labels in [
            ("triptych_requests_total", {"outcome": "cancelled"}),
            ("triptych_kv_transfer_bytes_total", {"link": "shm"}),
            ("triptych_kv_transfer_seconds_count", {"link": "shm"}),
            ("triptych_kv_transfer_failures_total", {"link": "tcp", "reason": "PeerGone"}),
            ("triptych_kv_fallbacks_total", {"step": "home"}),
        ]
    ]
    assert values == [1, 4096, 1, 1, 1]


def test_a_peer_has_one_path_at_a_time(registry, metrics):
    def paths():
        samples = families(registry)["triptych_kv_path_info"].samples
        return {sample.labels["peer"]: sample.labels["path"] for sample in samples}

    metrics.set_kv_path("prefill-0", "shm")
    metrics.set_kv_path("prefill-1", "shm")
    metrics.set_kv_path("prefill-0", "tcp")
    assert paths() == {"prefill-0": "tcp", "prefill-1": "shm"}
    metrics.set_kv_path("prefill-0", "tcp")
    metrics.set_kv_path("prefill-1", None)
    metrics.set_kv_path("prefill-1", None)
    assert paths() == {"prefill-0": "tcp"}
