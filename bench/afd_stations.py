"""Event simulation of a split of attention and FFN, slot by slot and micro-batch by micro-batch.

It shares nothing with the calculator but its inputs: loads come from requests that replace each
other in slots, periods from queues at attention devices, links and FFN devices, and what depends on
routing from drawn routes. Vectorised over steps, which are independent: a step begins when the last
one's tokens are all there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from triptych.plan.inputs import PlanInputs

Array: TypeAlias = NDArray[np.float64]
Draw: TypeAlias = Callable[[np.random.Generator, int], tuple[Array, Array]]  # prompts, outputs
_ROUTES = 24  # draws that a mean is taken of


@dataclass(frozen=True)
class Stations:
    """Service times of one micro-batch, in any unit. Each call is a new layer or micro-batch."""

    attention: Callable[[], Array]  # [steps, attention devices]
    ffn: Callable[[], Array]  # [steps, 1]
    send: float  # an attention device's link, out
    arrive: float  # the FFN devices' links, in: the rows of all attention devices
    leave: float  # and out
    receive: float  # an attention device's link, in


def run_steps(stations: Stations, layers: int, count: int) -> Array:
    """[steps] until the last micro-batch is back from the last layer.

    Devices and links take micro-batches one after the other in their order. FFN devices begin when
    the rows of all attention devices have arrived, and all get their results at the same time.
    """
    attention_free: Array | float = 0.0  # [steps, devices]
    send_free: Array | float = 0.0
    arrive_free: Array | float = 0.0  # [steps, 1]
    ffn_free: Array | float = 0.0
    leave_free: Array | float = 0.0
    receive_free: Array | float = 0.0
    back: list[Array | float] = [0.0] * count  # when each micro-batch is back
    for _ in range(layers):
        for number in range(count):
            attention_free = np.maximum(attention_free, back[number]) + stations.attention()
            sending = np.maximum(attention_free, send_free)
            send_free = sending + stations.send
            # Rows flow through both ends at once: the slower end counts.
            first = sending.min(axis=1, keepdims=True)
            arrive_free = np.maximum(first, arrive_free) + stations.arrive
            arrived = np.maximum(send_free.max(axis=1, keepdims=True), arrive_free)
            ffn_free = np.maximum(arrived, ffn_free) + stations.ffn()
            leaving = np.maximum(ffn_free, leave_free)
            leave_free = leaving + stations.leave
            receive_free = np.maximum(leaving, receive_free) + stations.receive
            back[number] = np.maximum(leave_free, receive_free)
    last: Array = np.maximum.reduce([np.asarray(end) for end in back])
    return last[:, 0]


def slot_tokens(draw: Draw, slots: int, samples: int, seed: int) -> Array:
    """[samples, slots] cached tokens of slots at times far apart. A slot begins somewhere in a
    request and serves one after the other; the first ones are not looked at.
    """
    random = np.random.default_rng(seed)
    prompts, outputs = draw(random, slots)
    gap = max(1, int(draw(random, 4000)[1].mean() / 2))
    age = np.floor(random.random(slots) * outputs)
    rows = []
    for number in range(3 * samples):
        age += gap
        while (over := np.flatnonzero(age >= outputs)).size:
            age[over] -= outputs[over]
            prompts[over], outputs[over] = draw(random, over.size)
        if number >= 2 * samples:
            rows.append(prompts + age)
    return np.array(rows)


class World:
    """Requests of one kind on hardware of one kind."""

    def __init__(self, inputs: PlanInputs, draw: Draw, slots: int, samples: int, seed: int) -> None:
        """slots: as many as any plan has in all."""
        self._inputs = inputs
        tokens = slot_tokens(draw, slots, samples, seed)
        zeros = np.zeros((samples, 1))
        self._sums = np.concatenate([zeros, tokens.cumsum(axis=1)], axis=1)

    def tpot_ms(self, attention: int, ffn: int, slots: int, count: int) -> float:
        """Mean time of a step, per kept token."""
        model, costs = self._inputs.model, self._inputs.costs
        goals, wire = self._inputs.goals, self._inputs.wire
        rows = slots * (1 + goals.draft_tokens) / count
        held = np.diff(self._sums[:, : attention * slots + 1 : slots], axis=1) / count
        busy = costs.attention_base_us + costs.attention_row_us * rows
        attention_us = busy + costs.attention_token_us * held
        experts, workers = routing(model.experts, model.top_k, attention * rows, ffn)
        compute = costs.ffn_cell_us * attention * rows * model.top_k
        busiest = max(compute, costs.expert_us * experts) * goals.imbalance / ffn
        least = costs.expert_us  # somebody reads at least one expert
        ffn_us = np.array([[max(busiest, least) + costs.ffn_base_us]])
        parts = workers if wire.returns == "sum" else model.top_k
        out = rows * model.hidden * workers * wire.out_bytes
        back = rows * model.hidden * parts * wire.back_bytes
        share = attention / ffn * goals.imbalance
        base, own, other = costs.link_base_us, costs.link_gbs * 1e3, costs.ffn_link_gbs * 1e3
        stations = Stations(
            attention=lambda: attention_us,
            ffn=lambda: ffn_us,
            send=out / own + base,
            arrive=share * out / other + base,
            leave=share * back / other + base,
            receive=back / own + base,
        )
        steps = run_steps(stations, model.layers, count)
        return float(steps.mean()) / 1e3 / goals.tokens_per_step


def routing(experts: int, top_k: int, rows: float, workers: int) -> tuple[float, float]:
    """Distinct experts that so many rows want, and distinct workers of one row; means of draws."""
    if experts == 1:
        return 1.0, 1.0
    reached, spread = _routes(experts, top_k, workers)
    return float(np.interp(rows, np.arange(len(reached)), reached)), spread


@lru_cache(maxsize=256)
def _routes(experts: int, top_k: int, workers: int) -> tuple[Array, float]:
    """[rows + 1] distinct experts of the first so many rows, until nearly all are wanted."""
    random = np.random.default_rng(experts * 1000 + top_k)
    most = int(12 * experts / top_k)
    noise = random.random((_ROUTES, most, experts))
    chosen = np.argpartition(noise, top_k - 1, axis=2)[:, :, :top_k]
    wanted = np.zeros((_ROUTES, experts), bool)
    reached = [0.0]
    for row in range(most):
        np.put_along_axis(wanted, chosen[:, row], True, axis=1)
        reached.append(float(wanted.sum(axis=1).mean()))
    host = chosen.reshape(-1, top_k) % workers
    spread = np.mean([np.unique(hosts).size for hosts in host[:2000]])
    return np.array(reached), float(spread)
