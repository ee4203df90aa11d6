"""Into how many micro-batches a step is cut: as configured, or as measured."""

from __future__ import annotations

from typing import NamedTuple

from triptych.experts.message_meter import MessageTimes
from triptych.experts.micro_batches import MicroBatchPolicy


class StepTimes(NamedTuple):
    """A step whose rows went to FFN workers."""

    rows: int
    lanes: int
    layers: int  # that went there
    attention_s: float  # this side computed
    step_s: float
    messages: MessageTimes

    @property
    def attention_layer_s(self) -> float:
        """Of one layer and micro-batch."""
        return self.attention_s / (self.layers * self.lanes)

    @property
    def ffn_layer_s(self) -> float:
        """Of one layer and micro-batch, at the busiest worker."""
        return self.messages.busiest / 1e6 / (self.layers * self.lanes)

    @property
    def link_s(self) -> float | None:
        """One way. With other lanes in flight an answer waits until this side has time for it."""
        if self.lanes > 1:
            return None
        times = self.messages
        return max(0.0, times.round_trip - times.queue - times.compute) / 2e6


class Tempo:
    """`fixed`: always so many, where there are rows for it; 0: as measured."""

    def __init__(self, fixed: int, most: int) -> None:
        self.fixed = fixed
        self.last: StepTimes | None = None  # the last step
        self._most = most
        self._policy = MicroBatchPolicy(most)

    def num_lanes(self, rows: int) -> int:
        wanted = self.fixed or self._policy.count(rows)
        return max(1, min(wanted, rows, self._most))

    def learn(self, step: StepTimes) -> None:
        self.last = step
        rows = max(1, step.rows // step.lanes)
        self._policy.observe(rows, step.attention_layer_s, step.ffn_layer_s, step.link_s)
        self._policy.observe_step(step.rows, step.lanes, step.step_s)
