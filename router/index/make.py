"""From the configured mode to the parts."""

from __future__ import annotations

from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry

from router.index.audit import Audit
from router.index.feed import KvFeed
from router.index.history import HistoryIndex
from router.index.kv_index import KvIndex
from router.index.metrics import IndexMetrics
from router.index.prefixes import Prefixes

IndexMode = Literal["events", "approximate", "off"]


class IndexParts(NamedTuple):
    prefixes: Prefixes
    feed: KvFeed | None  # to be served; None: workers are not listened to


def make_index(mode: IndexMode, registry: CollectorRegistry) -> IndexParts:
    """`registry` is where its metrics go."""
    if mode == "off":
        return IndexParts(Prefixes(), None)
    metrics = IndexMetrics(registry)
    if mode == "approximate":
        audit = Audit(lambda worker_id: None, metrics)  # counts; there is nobody to ask
        return IndexParts(Prefixes(HistoryIndex(), metrics, audit), None)
    index = KvIndex()
    feed = KvFeed(index, metrics)
    return IndexParts(Prefixes(index, metrics, Audit(feed.ask_snapshot, metrics)), feed)
