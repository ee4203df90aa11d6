"""Times of the stages of one layer, in microseconds, for many plans at once (arrays broadcast)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from triptych.plan.inputs import PlanInputs
from triptych.plan.lengths import SlotLoad, slowest_of

Array: TypeAlias = NDArray[np.float64]
_PER_GBS = 1e3  # bytes per microsecond


@dataclass(frozen=True)
class StageTimes:
    """Of one micro-batch of one layer. They overlap among micro-batches: links work both ways."""

    attention: Array
    ffn: Array
    out: Array  # to the FFN workers
    back: Array

    @property
    def around(self) -> Array:
        return self.attention + self.out + self.ffn + self.back

    @property
    def busiest(self) -> Array:
        computing = np.maximum(self.attention, self.ffn)
        return np.asarray(np.maximum(computing, np.maximum(self.out, self.back)))

    def period(self, count: Array) -> Array:
        """Between a micro-batch's starts of two layers, with `count` micro-batches under way."""
        return np.maximum(count * self.busiest, self.around)

    def step(self, count: Array, layers: int) -> Array:
        """A step of so many layers, which ends when its last micro-batch is back: the next one
        needs the tokens. Exact for equal micro-batches; close to layers · period for many layers.
        """
        return (layers - 1) * self.period(count) + self.around + (count - 1) * self.busiest


def split_times(
    inputs: PlanInputs, load: SlotLoad, attention: Array, ffn: Array, slots: Array, count: Array
) -> StageTimes:
    """attention, ffn: devices; slots: sequences per attention device; count: micro-batches.

    Attention devices wait for the slowest of them in every layer, whose load is taken as a normal
    variable: slots · theta + sqrt(slots) · nu · E[max of so many].
    """
    model = inputs.model
    rows = slots * (inputs.goals.draft_tokens + 1) / count  # of one device and micro-batch
    tokens = slowest_tokens(load, attention, slots) / count
    cells = attention * rows * model.top_k * inputs.goals.imbalance / ffn
    reached = row_workers(ffn, model.top_k)
    results = reached if inputs.wire.returns == "sum" else model.top_k
    return StageTimes(
        attention=attention_us(inputs, tokens, rows),
        ffn=ffn_us(inputs, cells, attention * rows, ffn),
        out=link_us(inputs, reached * inputs.wire.out_bytes, rows, attention, ffn),
        back=link_us(inputs, results * inputs.wire.back_bytes, rows, attention, ffn),
    )


def slowest_tokens(load: SlotLoad, devices: Array, slots: Array) -> Array:
    """Cached tokens on the fullest of `devices` devices."""
    barrier = np.vectorize(slowest_of, otypes=[float])(devices)
    return np.asarray(slots * load.theta + np.sqrt(slots) * load.nu * barrier)


def attention_us(inputs: PlanInputs, tokens: Array, rows: Array) -> Array:
    costs = inputs.costs
    return (
        costs.attention_token_us * tokens + costs.attention_row_us * rows + costs.attention_base_us
    )


def ffn_us(inputs: PlanInputs, cells: Array, rows: Array, workers: Array) -> Array:
    """cells: on the busiest worker; rows: on all `workers`. Compute-bound, or bound by reading the
    weights of the experts that the rows reach.
    """
    weights = inputs.costs.expert_us * distinct_experts(inputs, rows, workers)
    return np.maximum(inputs.costs.ffn_cell_us * cells, weights) + inputs.costs.ffn_base_us


def distinct_experts(inputs: PlanInputs, rows: Array, workers: Array) -> Array:
    """On the busiest worker, if rows choose independently: upper guide, real rows agree more."""
    model = inputs.model
    reached = model.experts * (1 - (1 - model.top_k / model.experts) ** rows)
    return np.maximum(1.0, reached * inputs.goals.imbalance / workers)


def row_workers(workers: Array, top_k: int) -> Array:
    """Distinct workers that a row's experts are on, for experts spread at random."""
    return np.asarray(workers * (1 - (1 - 1 / workers) ** top_k))


def link_us(
    inputs: PlanInputs, row_bytes: Array | float, rows: Array, attention: Array, ffn: Array
) -> Array:
    """row_bytes: per element of a row. One way, the slower end of the link."""
    costs = inputs.costs
    moved = rows * row_bytes * inputs.model.hidden / _PER_GBS
    there = attention * inputs.goals.imbalance / ffn * moved / costs.ffn_link_gbs
    return np.asarray(np.maximum(moved / costs.link_gbs, there) + costs.link_base_us)
