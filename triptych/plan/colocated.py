"""The rival of a split: the same number of devices, each doing attention and FFN.

Two ways, the better one counts. Replicas: every device holds all experts; nothing crosses a link
and nobody waits for anybody. Expert-parallel: devices hold a part of the experts and exchange rows,
one or two micro-batches deep. Both get the costs per row and token of the split's devices, the
memory and price of an attention device, and one copy of each expert. No stage of theirs overlaps
another on the same device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from triptych.plan.afd import memory_slots
from triptych.plan.inputs import PlanInputs
from triptych.plan.lengths import SlotLoad
from triptych.plan.stages import Array, attention_us, ffn_us, link_us, row_workers, slowest_tokens


@dataclass(frozen=True, slots=True)
class Colocated:
    way: Literal["replicas", "expert_parallel"]
    devices: int
    slots: int  # sequences of one device
    micro_batches: int
    tpot_ms: float
    throughput: float
    score: float


def best_colocated(inputs: PlanInputs, load: SlotLoad, devices: int) -> Colocated | None:
    """None: the model, or the latency goal, leaves no room for a sequence."""
    found = [*_replicas(inputs, load, devices), *_expert_parallel(inputs, load, devices)]
    return max(found, key=lambda plan: plan.score, default=None)


def _replicas(inputs: PlanInputs, load: SlotLoad, devices: int) -> Iterator[Colocated]:
    model = inputs.model
    slots = _slots(inputs, load, model.layers * model.experts * model.expert_bytes)
    rows = slots * (inputs.goals.draft_tokens + 1)
    attention = attention_us(inputs, slots * load.theta, rows)
    even = inputs.model_copy(update={"goals": inputs.goals.model_copy(update={"imbalance": 1.0})})
    ffn = ffn_us(even, rows * model.top_k, rows, np.ones_like(slots))
    step_us = model.layers * (attention + ffn)
    yield from _largest(inputs, "replicas", devices, slots, 1, step_us)


def _expert_parallel(inputs: PlanInputs, load: SlotLoad, devices: int) -> Iterator[Colocated]:
    model, wire = inputs.model, inputs.wire
    if devices == 1:
        return
    slots = _slots(inputs, load, model.layers * model.experts * model.expert_bytes / devices)
    all_ = np.full_like(slots, devices)
    away = 1 - 1 / devices  # what a device keeps crosses no link
    reached = float(row_workers(np.array([float(devices)]), model.top_k)[0])
    results = reached if wire.returns == "sum" else model.top_k
    for count in (1, 2):
        rows = slots * (inputs.goals.draft_tokens + 1) / count
        tokens = slowest_tokens(load, all_, slots) / count
        attention = attention_us(inputs, tokens, rows)
        ffn = ffn_us(inputs, rows * model.top_k * inputs.goals.imbalance, devices * rows, all_)
        out = link_us(inputs, reached * wire.out_bytes * away, rows, all_, all_)
        back = link_us(inputs, results * wire.back_bytes * away, rows, all_, all_)
        computing = attention + ffn
        around = computing + out + back
        busiest = np.maximum.reduce([computing, out, back])
        period = np.maximum(count * busiest, around)
        step_us = (model.layers - 1) * period + around + (count - 1) * busiest
        yield from _largest(
            inputs, "expert_parallel", devices, np.where(slots >= count, slots, 0), count, step_us
        )


def _slots(inputs: PlanInputs, load: SlotLoad, expert_bytes: float) -> Array:
    """1, 2, … as many as fit."""
    weights = inputs.model.attention_bytes + expert_bytes
    return np.arange(1, memory_slots(inputs, load, weights) + 1).astype(np.float64)


def _largest(
    inputs: PlanInputs,
    way: Literal["replicas", "expert_parallel"],
    devices: int,
    slots: Array,
    count: int,
    step_us: Array,
) -> Iterator[Colocated]:
    """With the most sequences that the goal allows; nothing if that is none."""
    tpot_ms = step_us / 1e3 / inputs.goals.tokens_per_step
    goal = inputs.goals.tpot_ms
    good = np.flatnonzero((slots > 0) & (tpot_ms <= (np.inf if goal is None else goal)))
    if not len(good):
        return
    at = int(good[-1])
    throughput = devices * float(slots[at] / tpot_ms[at]) * 1e3
    price = devices * inputs.devices.attention_price
    yield Colocated(
        way, devices, int(slots[at]), count, float(tpot_ms[at]), throughput, throughput / price
    )
