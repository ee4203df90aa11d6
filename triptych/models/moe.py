"""What families of mixtures of experts differ in, as values: how the experts of a row are chosen,
and how large they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# softmax, sigmoid: scores of all experts, then the best are chosen. softmax_of_chosen: the best
# logits are chosen, then the softmax is over those alone.
Scoring = Literal["softmax", "sigmoid", "softmax_of_chosen"]
GroupScore = Literal["max", "two_best"]


@dataclass(frozen=True, slots=True)
class Routing:
    """How a row's `top_k` experts and their weights follow from its logits [num_experts]."""

    num_experts: int
    top_k: int
    scoring: Scoring = "softmax"
    renormalise: bool = False  # the chosen experts' scores are divided by their sum
    scale: float = 1.0  # of the weights, last
    # DeepSeek: experts stand in equal groups; only those of the best groups may be chosen.
    groups: int = 1
    groups_kept: int = 1
    group_score: GroupScore = "max"  # of a group: its best score, or the sum of its two best


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """The feed-forward part of the layers that are mixtures; the same in all of them."""

    routing: Routing
    expert_size: int  # inner width of one expert
    layers: tuple[bool, ...]  # per layer: a mixture, or one dense FFN
    router_bias: bool = False  # added to the logits
    correction_bias: bool = False  # added to the scores when choosing, not in the weights
    expert_bias: bool = False  # of the experts' projections
    shared_size: int = 0  # inner width of the expert that every row goes to as well; 0: none
    shared_gate: bool = False  # that one's output is weighted by sigmoid(row · gate)
