"""What an FFN worker counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SECONDS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0)
_EVERY = 32  # batches are told together: one may take 50 µs


class FfnMetrics:
    """Units are in the names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._batches = Histogram(
            "triptych_ffn_batch_cells",
            "Rows times experts of one batch: what homes sent of one layer",
            buckets=_ROWS,
            registry=registry,
        )
        self._seconds = Histogram(
            "triptych_ffn_batch_seconds",
            "Duration of one batch, answers included",
            buckets=_SECONDS,
            registry=registry,
        )
        self._messages = Counter(
            "triptych_ffn_messages_answered_total", "Messages answered", registry=registry
        )
        self.units = Gauge("triptych_ffn_units", "Units hosted here", registry=registry)
        self.unit_bytes = Gauge(
            "triptych_ffn_unit_bytes", "Memory of the units hosted here", registry=registry
        )
        self.homes = Gauge(
            "triptych_ffn_homes", "Workers that are told which units are here", registry=registry
        )
        self._untold: list[tuple[int, int, float]] = []

    def count(self, messages: int, cells: int, seconds: float) -> None:
        self._untold.append((messages, cells, seconds))
        if len(self._untold) >= _EVERY:
            self.tell()

    def tell(self) -> None:
        for messages, cells, seconds in self._untold:
            self._messages.inc(messages)
            self._batches.observe(cells)
            self._seconds.observe(seconds)
        self._untold.clear()
