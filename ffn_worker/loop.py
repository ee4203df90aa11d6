"""The FFN worker's step: what homes sent of one layer goes through that layer's units, together.

Nothing is remembered from step to step. A worker that dies here takes nothing with it: the homes
still have the rows, and ask another one.
"""

from __future__ import annotations

import time

from ffn_worker.hosting import Hosting
from ffn_worker.metrics import FfnMetrics
from transport.rows.inbox import Inbox
from triptych.experts.native_unit import shard_array

_PATIENCE_US = 50_000  # how long a step waits for rows


class FfnLoop:
    """On its own thread; `step` is called from there."""

    def __init__(self, inbox: Inbox, hosting: Hosting, metrics: FfnMetrics) -> None:
        self._inbox = inbox
        self._hosting = hosting
        self._metrics = metrics

    def step(self) -> bool:
        """The rows of one layer, of all homes that sent any; asks to be called again."""
        batch = self._inbox.take(_PATIENCE_US)
        if batch is not None:
            began = time.perf_counter()
            shards = shard_array(batch.shards, batch.count)
            self._hosting.of_layer(batch.layer).run(shards, batch.count)
            self._inbox.reply(batch)
            self._metrics.count(batch.count, batch.cells, time.perf_counter() - began)
        return True
