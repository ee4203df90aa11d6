"""A home as its last report described it."""

from __future__ import annotations

from transport.registry import WorkerView

HOME = WorkerView(
    worker_id="decode-0",
    epoch=1,
    role="decode",
    address="",
    model="m",
    max_model_len=4096,
    block_tokens=16,
    num_blocks=100,
    metrics_address="",
    free_blocks=100,
)
