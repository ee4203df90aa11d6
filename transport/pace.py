"""How fast a worker is, as it measured it. Values: workers fill them, routers predict with them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from transport.protos import worker_pb2 as pb

_LEAST_ROW_S = 1e-9  # no row is free, whatever a fit says: rates are rows over their seconds


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of an engine step: base_s + row_s · rows + pair_s · pairs.

    A row is a token that goes through the model; a pair is a row and a position that it attends to.
    The base is what no batching avoids: weights read, launches, the way to other devices.
    """

    base_s: float
    row_s: float  # never less than a nanosecond
    pair_s: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_s", max(self.row_s, _LEAST_ROW_S))

    def seconds(self, rows: float, pairs: float, steps: float = 1) -> float:
        return steps * self.base_s + rows * self.row_s + pairs * self.pair_s

    def rows_in(self, seconds: float, *, waste: float = 0.25) -> float:
        """Rows of a step that takes about so long; more, where its base would be more than `waste`
        of what they take.
        """
        return max(seconds - self.base_s, self.base_s / waste) / self.row_s

    def rows_from(self, position: float, seconds: float) -> float:
        """Rows of one sequence, from that position of it on, in a step of so many seconds; 0: the
        base alone takes longer.
        """
        left = max(0.0, seconds - self.base_s)
        # left = row_s · r + pair_s · r · (position + r / 2), in the form that bears pair_s = 0
        one = max(self.row_s + self.pair_s * position, 1e-9)
        return 2 * left / (one + math.sqrt(one * one + 2 * self.pair_s * left))


@dataclass(frozen=True, slots=True)
class Pace:
    """None and 0: not measured yet, or not of this role."""

    prefill: StepCost | None = None  # of steps with prompt rows
    decode: StepCost | None = None  # of steps without
    chunk_tokens: int = 0  # prompt rows of a step, at most, beside what decodes there now
    tokens_per_step: float = 0.0  # of a sequence: above 1 where drafts are right
    link_bytes_s: float = 0.0  # of KV fetched from prefill workers, as a single prompt sees it
    token_bytes: int = 0  # of one token's KV
    expert_wait: float = 0.0  # share of a step that waits for FFN workers, 0-1

    @classmethod
    def of(cls, message: pb.Pace) -> Pace:
        return cls(
            prefill=_cost(message.prefill) if message.HasField("prefill") else None,
            decode=_cost(message.decode) if message.HasField("decode") else None,
            chunk_tokens=message.chunk_tokens,
            tokens_per_step=message.tokens_per_step,
            link_bytes_s=message.link_bytes_s,
            token_bytes=message.token_bytes,
            expert_wait=message.expert_wait,
        )

    def message(self) -> pb.Pace:
        found = pb.Pace(
            chunk_tokens=self.chunk_tokens,
            tokens_per_step=self.tokens_per_step,
            link_bytes_s=self.link_bytes_s,
            token_bytes=self.token_bytes,
            expert_wait=self.expert_wait,
        )
        for cost, target in ((self.prefill, found.prefill), (self.decode, found.decode)):
            if cost is not None:
                target.CopyFrom(pb.StepCost(**asdict(cost)))
        return found


def pairs_between(start: float, end: float) -> float:
    """Pairs of rows [start, end) of one sequence: each attends to all before it."""
    return (end - start) * (start + end) / 2


def _cost(message: pb.StepCost) -> StepCost:
    return StepCost(message.base_s, message.row_s, message.pair_s)
