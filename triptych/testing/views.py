"""Workers as a router sees them, for tests of placement."""

from __future__ import annotations

from typing import Any

from transport.pace import Pace, StepCost
from transport.registry import WorkerView

# 1,000 prompt tokens take a second; a step of ten sequences 20 ms, beside a chunk 110 ms.
PACE = Pace(
    prefill=StepCost(base_s=0.0, row_s=0.001, pair_s=0.0),
    decode=StepCost(base_s=0.01, row_s=0.001, pair_s=0.0),
    chunk_tokens=100,
)


def worker_view(worker_id: str, role: str = "decode", **fields: Any) -> WorkerView:
    given = {
        "epoch": 1,
        "address": f"unix:/run/{worker_id}.sock",
        "model": "tiny",
        "max_model_len": 256,
        "block_tokens": 16,
        "num_blocks": 64,
        "metrics_address": "127.0.0.1:1",
        "free_blocks": 64,
        **fields,
    }
    return WorkerView(worker_id=worker_id, role=role, **given)


def paced_view(worker_id: str, role: str = "decode", **fields: Any) -> WorkerView:
    """One that has measured itself, with room for anything."""
    room = {"num_blocks": 10_000, "free_blocks": 10_000, "pace": PACE}
    return worker_view(worker_id, role, **{**room, **fields})
