"""How many attention and FFN devices, sequences and micro-batches: the best plan, and its rivals.

All plans are computed: n_A × n_F × m, for each the most sequences that memory and the latency goal
allow (more are never worse). The best has the highest throughput per price. Around it the optimum
is flat; of plans within 1 % that with the fewest attention devices is taken, since the mean-field
model errs towards too many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from triptych.errors import ConfigError
from triptych.experts.pipeline import MOST
from triptych.plan.inputs import PlanInputs
from triptych.plan.lengths import SlotLoad
from triptych.plan.stages import Array, StageTimes, row_workers, split_times

Regime: TypeAlias = Literal["attention", "link", "ffn", "latency"]
_NEAR = 0.99  # of the best score
_FULL = 2.0  # deviations above the mean that KV memory has room for


@dataclass(frozen=True, slots=True)
class Plan:
    attention: int  # devices
    ffn: int
    slots: int  # sequences of one attention device
    micro_batches: int
    tpot_ms: float
    throughput: float  # tokens per second, of all
    score: float  # throughput per price
    regime: Regime  # what the period is made of; latency: one way round, nothing is busy


@dataclass(frozen=True, slots=True)
class Table:
    """All plans, as arrays of one shape; slots 0: not possible."""

    attention: Array
    ffn: Array
    count: Array
    slots: Array
    tpot_ms: Array
    throughput: Array
    score: Array

    def plan(self, inputs: PlanInputs, load: SlotLoad, at: int) -> Plan:
        picked = [
            table[at : at + 1] for table in (self.attention, self.ffn, self.slots, self.count)
        ]
        times = split_times(inputs, load, *picked)
        return Plan(
            attention=int(self.attention[at]),
            ffn=int(self.ffn[at]),
            slots=int(self.slots[at]),
            micro_batches=int(self.count[at]),
            tpot_ms=float(self.tpot_ms[at]),
            throughput=float(self.throughput[at]),
            score=float(self.score[at]),
            regime=regime_of(times, picked[3]),
        )


def best_plans(inputs: PlanInputs, load: SlotLoad) -> list[Plan]:
    """The plan to take, then those within 1 % of the best, best first.

    Raises ConfigError naming the limit when nothing is possible.
    """
    table = all_plans(inputs, load)
    if not (table.slots > 0).any():
        raise ConfigError(_why_none(inputs, load))
    best = float(table.score.max())
    near = np.flatnonzero(table.score >= _NEAR * best)
    order = np.lexsort((-table.score[near], table.ffn[near], table.attention[near]))
    taken = near[order[0]]
    rivals = near[np.argsort(-table.score[near], kind="stable")]
    return [
        table.plan(inputs, load, int(at)) for at in (taken, *(at for at in rivals if at != taken))
    ]


def all_plans(inputs: PlanInputs, load: SlotLoad) -> Table:
    devices, goals = inputs.devices, inputs.goals
    attention, ffn, count = (
        axis.ravel().astype(np.float64)
        for axis in np.meshgrid(
            np.arange(1, devices.max_attention + 1),
            np.arange(least_ffn(inputs), devices.max_ffn + 1),
            np.arange(1, MOST + 1),
            indexing="ij",
        )
    )
    most = np.full(attention.shape, float(memory_slots(inputs, load)))
    slots = _most_slots(inputs, load, attention, ffn, count, most)
    some = np.maximum(slots, count)
    times = split_times(inputs, load, attention, ffn, some, count)
    tpot_ms = tpot(inputs, times, count)
    throughput = attention * some / tpot_ms * 1e3
    possible = slots >= count
    if goals.rate is not None:  # Little's law: as many sequences as arrive in the time of one
        possible &= throughput >= goals.rate * load.mean_output
    price = attention * devices.attention_price + ffn * devices.ffn_price
    return Table(
        attention=attention,
        ffn=ffn,
        count=count,
        slots=np.where(possible, slots, 0),
        tpot_ms=tpot_ms,
        throughput=throughput,
        score=np.where(possible, throughput / price, 0),
    )


def tpot(inputs: PlanInputs, times: StageTimes, count: Array) -> Array:
    """Milliseconds per kept token of a sequence."""
    step_us = times.step(count, inputs.model.layers)
    return np.asarray(step_us / 1e3 / inputs.goals.tokens_per_step)


def least_ffn(inputs: PlanInputs) -> int:
    """FFN devices that hold all copies, each on different ones."""
    model, goals = inputs.model, inputs.goals
    wanted = model.layers * model.experts * model.expert_bytes * goals.copies
    return max(goals.copies, -(-wanted // inputs.devices.ffn_memory))


def memory_slots(inputs: PlanInputs, load: SlotLoad, weights: float | None = None) -> int:
    """Sequences whose KV fits beside the weights: mean plus two deviations."""
    model, devices = inputs.model, inputs.devices
    taken = model.attention_bytes if weights is None else weights
    tokens = max(0.0, (devices.attention_memory - taken) / model.kv_bytes)
    # tokens = theta · x² + 2 · nu · x, x² = slots
    half = _FULL * load.nu / (2 * load.theta)
    root = np.sqrt(half**2 + tokens / load.theta) - half
    return min(int(root**2), devices.max_slots)


def regime_of(times: StageTimes, count: Array) -> Regime:
    if times.around[0] > count[0] * times.busiest[0]:
        return "latency"
    names: dict[Regime, float] = {
        "attention": float(times.attention[0]),
        "ffn": float(times.ffn[0]),
        "link": float(max(times.out[0], times.back[0])),
    }
    return max(names, key=lambda name: names[name])


def ffn_bandwidth_floor(inputs: PlanInputs, ffn: int) -> float:
    """GB/s that the link of an FFN device needs so that a compute-bound FFN is the slower one."""
    model, wire = inputs.model, inputs.wire
    reached = float(row_workers(np.array([float(ffn)]), model.top_k)[0])
    results = reached if wire.returns == "sum" else model.top_k
    row_bytes = model.hidden * max(reached * wire.out_bytes, results * wire.back_bytes)
    return row_bytes / (inputs.costs.ffn_cell_us * model.top_k) / 1e3


def bandwidth_floor(
    flops: float, element_bytes: float, row_workers: float, expert_size: int, top_k: int
) -> float:
    """The same in bytes/s from a data sheet: a row is sent to `row_workers` workers, and takes
    6 · hidden · expert_size · top_k operations there; hidden cancels.
    """
    return flops * element_bytes * row_workers / (6 * expert_size * top_k)


def _most_slots(
    inputs: PlanInputs, load: SlotLoad, attention: Array, ffn: Array, count: Array, most: Array
) -> Array:
    """By bisection: time per token grows with slots. 0: not even one per micro-batch."""
    goal = np.inf if inputs.goals.tpot_ms is None else inputs.goals.tpot_ms

    def good(slots: Array) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        times = split_times(inputs, load, attention, ffn, np.maximum(slots, 1), count)
        return np.asarray(tpot(inputs, times, count) <= goal)

    low, high = np.zeros(len(most)), np.where(good(most), most, most - 1)
    low = np.where(good(most), most, low)
    while (low < high).any():
        middle = np.ceil((low + high) / 2)
        fine = good(middle)
        low, high = np.where(fine, middle, low), np.where(fine, high, middle - 1)
    return np.where(low >= count, low, 0.0)


def _why_none(inputs: PlanInputs, load: SlotLoad) -> str:
    devices, goals = inputs.devices, inputs.goals
    if memory_slots(inputs, load) < 1:
        return (
            f"devices.attention_memory: {devices.attention_memory} bytes hold no sequence of "
            f"{load.theta:.0f} tokens beside the weights; give more, or use shorter requests"
        )
    if least_ffn(inputs) > devices.max_ffn:
        return (
            f"devices.max_ffn: {devices.max_ffn} cannot hold {goals.copies} copies of all experts; "
            f"set it to {least_ffn(inputs)} or more, or goals.copies lower"
        )
    fastest = all_plans(
        inputs.model_copy(update={"goals": goals.model_copy(update={"rate": None})}), load
    )
    if not (fastest.slots > 0).any():
        return (
            f"goals.tpot_ms: {goals.tpot_ms} is below {_least_tpot(inputs, load):.3g}, what one "
            "sequence per device takes; raise it"
        )
    return (
        f"goals.rate: {goals.rate}/s is {(goals.rate or 0) * load.mean_output:.0f} tokens/s, the "
        f"largest plan makes {fastest.throughput[fastest.slots > 0].max():.0f}; "
        "raise devices.max_attention or devices.max_ffn"
    )


def _least_tpot(inputs: PlanInputs, load: SlotLoad) -> float:
    one = np.ones(inputs.devices.max_ffn - least_ffn(inputs) + 1)
    ffn = np.arange(least_ffn(inputs), inputs.devices.max_ffn + 1).astype(np.float64)
    return float(tpot(inputs, split_times(inputs, load, one, ffn, one, one), one).min())
