"""What a home tells of its rows to the FFN pool."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from triptych.obs.experts import ExpertCollector, ExpertTally
from triptych.testing.cluster import parse_metrics


def test_every_count_is_read_when_it_is_asked_for() -> None:
    registry, tally = CollectorRegistry(), ExpertTally()
    ExpertCollector(tally, registry)
    tally.count_step(3, attention_s=0.25, step_s=1.0)
    tally.count_step(1, attention_s=0.25, step_s=0.25)
    tally.workers, tally.lost, tally.late, tally.rows_at_home = 2, 5, 7, 11
    told = parse_metrics(generate_latest(registry).decode())
    found = {
        (name.removeprefix("triptych_ffn_"), *dict(labels).values()): value
        for (name, labels), value in told.items()
    }
    assert found == {
        ("workers",): 2,
        ("steps_total",): 2,
        ("micro_batches_total",): 4,
        ("attention_seconds_total",): 0.5,
        ("stall_seconds_total",): 0.75,
        ("rows_at_home_total",): 11,
        ("reissued_total", "lost"): 5,
        ("reissued_total", "late"): 7,
    }
