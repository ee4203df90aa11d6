"""What a home's rows to the FFN pool did, as Prometheus metrics: read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


@dataclass(slots=True)
class ExpertTally:
    """Counts since the process began, of one home. One thread writes. Seconds and pieces."""

    workers: int = 0  # FFN workers that rows can be sent to, now
    steps: int = 0
    micro_batches: int = 0
    attention_s: float = 0.0  # this side computed
    stall_s: float = 0.0  # this side waited for rows
    lost: int = 0  # messages sent again since their worker was gone
    late: int = 0  # since it was slow
    rows_at_home: int = 0  # rows of units that no FFN worker hosted

    @property
    def wait_share(self) -> float:
        """Of those steps' time, in which this side waited."""
        return self.stall_s / max(self.attention_s + self.stall_s, 1e-9)

    def count_step(self, lanes: int, attention_s: float, step_s: float) -> None:
        self.steps += 1
        self.micro_batches += lanes
        self.attention_s += attention_s
        self.stall_s += step_s - attention_s


_COUNTERS = {
    "steps": "Steps whose rows went to FFN workers",
    "micro_batches": "Micro-batches of those steps",
    "attention_s": "Time of those steps in which this worker computed",
    "stall_s": "Time of those steps in which this worker waited for rows to come back",
    "rows_at_home": "Rows of units that no FFN worker hosted, computed by this worker",
}
_REISSUED = ("lost", "late")


class ExpertCollector(Collector):
    """`triptych_ffn_*` of a home."""

    def __init__(self, tally: ExpertTally, registry: CollectorRegistry) -> None:
        self._tally = tally
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "triptych_ffn_workers",
            "FFN workers that rows can be sent to",
            value=self._tally.workers,
        )
        for name, help_text in _COUNTERS.items():
            unit = name.removesuffix("_s") + ("_seconds" if name.endswith("_s") else "")
            yield CounterMetricFamily(
                f"triptych_ffn_{unit}", help_text, value=getattr(self._tally, name)
            )
        reissued = CounterMetricFamily(
            "triptych_ffn_reissued",
            "Messages whose rows were sent again, by why (lost: the worker is gone, late)",
            labels=["reason"],
        )
        for reason in _REISSUED:
            reissued.add_metric([reason], getattr(self._tally, reason))
        yield reissued
