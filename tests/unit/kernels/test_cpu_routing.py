"""Routing on the native kernels: the choices of the torch truth, and of a second, naive one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.models.moe import Routing
from triptych.testing.native_kernels import libraries, threads
from triptych_kernels import route
from triptych_kernels.cpu.routing import NativeRouter

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

ROUTINGS = [
    Routing(8, 2, renormalise=True),  # Mixtral
    Routing(60, 4),  # Qwen2-MoE
    Routing(128, 8, renormalise=True),  # Qwen3-MoE
    Routing(40, 8, scoring="softmax_of_chosen"),  # granite-moe
    Routing(32, 4, scoring="softmax_of_chosen", scale=0.7),
    Routing(160, 6, scale=16.0, groups=8, groups_kept=3),  # DeepSeek-V2
    Routing(
        256, 8, "sigmoid", True, 2.5, groups=8, groups_kept=4, group_score="two_best"
    ),  # DeepSeek-V3
    Routing(12, 3, "sigmoid", True, groups=12, groups_kept=5, group_score="two_best"),
    Routing(20, 20, scoring="softmax_of_chosen"),
    Routing(1, 1),
]
CORRECTED = [routing for routing in ROUTINGS if routing.scoring == "sigmoid"]


def logits_of(rows: int, routing: Routing, *, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(rows, routing.num_experts, generator=source)


def correction_of(routing: Routing) -> Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randn(routing.num_experts, generator=source) - 0.5


def naive_ids(logits: Tensor, routing: Routing, correction: Tensor | None) -> list[int]:
    """Of one row [E], by comparing all with all."""
    scores = logits.double()
    if routing.scoring == "sigmoid":
        scores = 1.0 / (1.0 + (-scores).exp())
    if routing.scoring == "softmax":
        scores = scores.softmax(0)
    keys = (scores if correction is None else scores + correction).tolist()
    size = routing.num_experts // routing.groups
    groups = [keys[first : first + size] for first in range(0, len(keys), size)]
    best = 2 if routing.group_score == "two_best" else 1
    values = [sum(sorted(group)[-best:]) for group in groups]
    kept = sorted(range(routing.groups), key=lambda g: (-values[g], g))[: routing.groups_kept]
    allowed = [id for id in range(len(keys)) if routing.groups == 1 or id // size in kept]
    return sorted(sorted(allowed, key=lambda id: (-keys[id], id))[: routing.top_k])


@pytest.mark.parametrize(
    ("routing", "corrected"),
    [*((routing, False) for routing in ROUTINGS), *((routing, True) for routing in CORRECTED)],
    ids=str,
)
def test_rows_are_routed_as_in_torch(routing: Routing, corrected: bool) -> None:
    logits = logits_of(50, routing)
    correction = correction_of(routing) if corrected else None
    wanted_ids, wanted_weights = route(logits, routing, correction)
    for library in LIBRARIES:
        ids, weights = NativeRouter(library, routing, correction)(logits)
        assert torch.equal(ids, wanted_ids)
        torch.testing.assert_close(weights, wanted_weights, rtol=1e-5, atol=1e-9)
    for row in range(50):
        assert ids[row].tolist() == naive_ids(logits[row], routing, correction)


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_of_equal_experts_the_first_ones_are_chosen(routing: Routing) -> None:
    logits = torch.zeros(3, routing.num_experts)
    logits[1] = (torch.arange(routing.num_experts) % 3 == 1).float()
    logits[2] = logits_of(1, routing).round()[0]
    for library in LIBRARIES:
        ids, _ = NativeRouter(library, routing)(logits)
        assert ids[0].tolist() == list(range(routing.top_k))
        assert torch.equal(ids, route(logits, routing)[0])


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_a_row_is_routed_alike_beside_any_others(routing: Routing) -> None:
    logits, library = logits_of(60, routing), LIBRARIES[0]
    router = NativeRouter(library, routing)
    whole = router(logits)
    for begin, end in itertools.pairwise([0, 1, 8, 9, 33, 60]):
        with threads(library, 1 + begin % 2):
            part = router(logits[begin:end])
        assert all(torch.equal(a, b[begin:end]) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_row_still_gets_distinct_experts_and_harms_no_other(
    routing: Routing, bad: float
) -> None:
    healthy = logits_of(10, routing)
    broken = healthy.clone()
    broken[4] = bad
    broken[5, routing.num_experts // 2] = bad
    router = NativeRouter(LIBRARIES[0], routing)
    ids, weights = router(broken)
    assert ((ids >= 0) & (ids < routing.num_experts)).all()
    assert (ids.diff(dim=1) > 0).all()
    rest = [row for row in range(10) if row not in (4, 5)]
    wanted = router(healthy)
    assert torch.equal(ids[rest], wanted[0][rest])
    assert torch.equal(weights[rest], wanted[1][rest])


def test_scores_that_are_all_nothing_weigh_nothing() -> None:
    routing = Routing(8, 2, scoring="sigmoid", renormalise=True)
    _, weights = NativeRouter(LIBRARIES[0], routing)(torch.full((1, 8), -200.0))
    assert (weights.abs() < 1e-9).all()


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_experts": 8, "top_k": 9},
        {"num_experts": 8, "top_k": 0},
        {"num_experts": 9, "top_k": 2, "groups": 2},
        {"num_experts": 8, "top_k": 5, "groups": 4, "groups_kept": 2},
    ],
    ids=str,
)
def test_a_routing_that_cannot_be_is_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        NativeRouter(LIBRARIES[0], Routing(**sizes))
