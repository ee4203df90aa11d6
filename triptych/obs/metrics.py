"""Prometheus metrics: one registry and one server per process; names are `triptych_*`.

Nothing registers itself globally; whoever counts is handed its metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
    start_http_server,
)

from transport.address import host_port
from triptych.obs.pace import PaceMeter
from triptych.request import TileCount

Check = Callable[[], str]  # what is wrong; "": nothing

_STEP_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TRANSFER_SECONDS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.05,
    0.25,
    1.0,
    5.0,
    30.0,
)


def new_registry() -> CollectorRegistry:
    """An empty registry but for the usual `process_*` and `python_*` families."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class MetricsServer:
    """Serves `http://<address>/metrics` from its own thread, so a busy event loop cannot starve it.

    `checks`: paths that answer 200, or 503 with what is wrong; called from any thread. Raises
    OSError when the port is taken. `close` ends the thread and frees the port; idempotent.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str = "127.0.0.1",
        port: int = 0,
        checks: Mapping[str, Check] | None = None,
    ) -> None:
        self._server, self._thread = start_http_server(port, host, registry)
        self._server.set_app(_with_checks(make_wsgi_app(registry), checks or {}))
        self.address = host_port(host, self._server.server_port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _with_checks(metrics: Any, checks: Mapping[str, Check]) -> Any:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        check = checks.get(environ["PATH_INFO"])
        if check is None:
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        problem = check()
        status = "503 Service Unavailable" if problem else "200 OK"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{problem or 'ok'}\n".encode()]

    return app


class WorkerMetrics:
    """The families that prefill and decode workers share. Units are in the names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry  # for the families of one role
        self.pace = PaceMeter()  # for the routers
        self.kv_blocks = Gauge(
            "triptych_kv_blocks",
            "KV blocks: pool/free, prefix/cached, and holds by request/held, transfer/held and "
            "transfer/quarantined; a block that two requests share is held twice",
            ["owner", "state"],
            registry=registry,
        )
        self.steps = Counter("triptych_steps_total", "Engine steps", registry=registry)
        self.step_rows = Histogram(
            "triptych_step_rows",
            "Rows of one engine step, padding excluded",
            buckets=_STEP_ROWS,
            registry=registry,
        )
        self.step_seconds = Histogram(
            "triptych_step_seconds",
            "Duration of one engine step",
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self.preemptions = Counter(
            "triptych_preemptions_total",
            "Running sequences that gave their blocks back for others",
            registry=registry,
        )
        self.requests = Counter(
            "triptych_requests_total",
            "Requests that ended, by outcome (finished, cancelled, rejected, failed)",
            ["outcome"],
            registry=registry,
        )
        self.prefix_query_tokens = Counter(
            "triptych_prefix_cache_query_tokens_total",
            "Prompt tokens looked up in the prefix cache",
            registry=registry,
        )
        self.prefix_hit_tokens = Counter(
            "triptych_prefix_cache_hit_tokens_total",
            "Prompt tokens found in the prefix cache",
            registry=registry,
        )
        self.attention_tiles = Counter(
            "triptych_sparse_attention_tiles_total",
            "Tiles that sparse attention came by, left out or read",
            ["decision"],
            registry=registry,
        )
        self.attention_pages = Counter(
            "triptych_sparse_attention_pages_total",
            "Pages that rows of answers chose from, left out or read",
            ["decision"],
            registry=registry,
        )
        self.kv_transfer_bytes = Counter(
            "triptych_kv_transfer_bytes_total",
            "KV bytes fetched and committed",
            ["link"],
            registry=registry,
        )
        self.kv_transfer_seconds = Histogram(
            "triptych_kv_transfer_seconds",
            "Duration of one fetch, start to last byte",
            ["link"],
            buckets=_TRANSFER_SECONDS,
            registry=registry,
        )
        self.kv_transfer_failures = Counter(
            "triptych_kv_transfer_failures_total",
            "Fetches that failed, by error class",
            ["link", "reason"],
            registry=registry,
        )
        self.kv_fallbacks = Counter(
            "triptych_kv_fallbacks_total",
            "Rungs of the failure ladder that were taken "
            "(same-path, next-path, other-worker, home; compute: a lent prefix)",
            ["step"],
            registry=registry,
        )
        self.kv_salvaged_blocks = Counter(
            "triptych_kv_salvaged_blocks_total",
            "Blocks of streams whose home was lost that were copied from its memory",
            registry=registry,
        )
        self.kv_path_info = Gauge(
            "triptych_kv_path_info",
            "1 for the path that the last probe proved for this peer",
            ["peer", "path"],
            registry=registry,
        )
        self.oldest_transfer_seconds = Gauge(
            "triptych_oldest_transfer_seconds",
            "Age of the oldest transfer under way; 0: none",
            registry=registry,
        )
        self._paths: dict[str, str] = {}

    def count_tiles(self, count: TileCount) -> None:
        self.attention_tiles.labels("skipped").inc(count.skipped)
        self.attention_tiles.labels("read").inc(count.seen - count.skipped)
        self.attention_pages.labels("skipped").inc(count.pages - count.pages_read)
        self.attention_pages.labels("read").inc(count.pages_read)

    def set_kv_path(self, peer: str, path: str | None) -> None:
        """Reports the path in use to `peer` and withdraws the one before; None: no path any more.

        Called from one thread.
        """
        old = self._paths.pop(peer, None)
        if old is not None and old != path:
            self.kv_path_info.remove(peer, old)
        if path is not None:
            self._paths[peer] = path
            self.kv_path_info.labels(peer, path).set(1)
