"""Routing and combining against their definitions, row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from triptych_kernels import combine, route


@dataclass(frozen=True)
class Rules:
    num_experts: int = 16
    top_k: int = 3
    scoring: Literal["softmax", "sigmoid", "softmax_of_chosen"] = "softmax"
    renormalise: bool = False
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    group_score: Literal["max", "two_best"] = "max"


MIXTRAL = Rules(renormalise=True)
DEEPSEEK_2 = Rules(groups=4, groups_kept=2, scale=16.0)
DEEPSEEK_3 = Rules(16, 4, "sigmoid", True, 2.5, 4, 2, "two_best")
ALL = [
    Rules(),
    MIXTRAL,
    Rules(top_k=16, renormalise=True),
    Rules(top_k=1),
    Rules(scoring="softmax_of_chosen"),
    Rules(scoring="sigmoid", renormalise=True),
    DEEPSEEK_2,
    replace(DEEPSEEK_2, groups=16, groups_kept=5),
    DEEPSEEK_3,
]


def logits_of(rows: int, experts: int = 16) -> Tensor:
    return torch.randn(rows, experts, generator=torch.Generator().manual_seed(rows)) * 3


def expected(
    logits: list[float], rules: Rules, correction: list[float] | None
) -> tuple[list[int], list[float]]:
    """One row, by the definition."""
    if rules.scoring == "sigmoid":
        scores = [1 / (1 + math.exp(-x)) for x in logits]
    elif rules.scoring == "softmax":
        scores = [math.exp(x) / math.fsum(math.exp(y) for y in logits) for x in logits]
    else:
        scores = logits
    choice = [s + c for s, c in zip(scores, correction or [0.0] * len(scores), strict=True)]
    size = len(choice) // rules.groups
    counted = 1 if rules.group_score == "max" else 2
    groups = [choice[at : at + size] for at in range(0, len(choice), size)]
    of_groups = [sum(sorted(group)[-counted:]) for group in groups]
    kept = sorted(range(rules.groups), key=lambda g: -of_groups[g])[: rules.groups_kept]
    open_ids = [expert for expert in range(len(choice)) if expert // size in kept]
    ids = sorted(sorted(open_ids, key=lambda expert: -choice[expert])[: rules.top_k])
    weights = [scores[expert] for expert in ids]
    if rules.scoring == "softmax_of_chosen":
        weights = [math.exp(w) for w in weights]
    if rules.renormalise or rules.scoring == "softmax_of_chosen":
        weights = [w / math.fsum(weights) for w in weights]
    return ids, [w * rules.scale for w in weights]


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("rules", ALL, ids=str)
def test_every_row_goes_where_the_definition_sends_it(rules: Rules, corrected: bool) -> None:
    logits = logits_of(200)
    correction = logits_of(1).mul(0.05)[0] if corrected else None
    ids, weights = route(logits, rules, correction)
    assert ids.dtype == torch.int32 and weights.dtype == torch.float32
    wanted = [
        expected(row, rules, None if correction is None else correction.tolist())
        for row in logits.tolist()
    ]
    assert ids.tolist() == [row_ids for row_ids, _ in wanted]
    torch.testing.assert_close(weights, torch.tensor([row for _, row in wanted]))


@pytest.mark.parametrize("rules", ALL, ids=str)
def test_a_tie_goes_to_the_lowest_id(rules: Rules) -> None:
    ids, weights = route(torch.zeros(5, 16), rules)
    assert ids.tolist() == [list(range(rules.top_k))] * 5
    assert torch.equal(weights, weights[:1, :1].expand_as(weights))


def test_a_correction_changes_who_is_chosen_but_not_its_weight() -> None:
    logits, correction = torch.zeros(1, 16), torch.zeros(16)
    correction[[3, 9, 12]] = 5.0
    ids, weights = route(logits, Rules(scoring="sigmoid"), correction)
    assert ids.tolist() == [[3, 9, 12]] and weights.tolist() == [[0.5, 0.5, 0.5]]


def test_groups_are_judged_by_their_best_or_by_their_two_best() -> None:
    logits = torch.tensor([[9.0, 0, 0, 0, 8, 8, 0, 0]])
    rules = Rules(8, 2, groups=2, groups_kept=1, scoring="softmax_of_chosen")
    assert route(logits, rules)[0].tolist() == [[0, 1]]
    assert route(logits, replace(rules, group_score="two_best"))[0].tolist() == [[4, 5]]


def test_scores_that_vanish_give_weights_that_are_numbers() -> None:
    _, weights = route(torch.full((1, 16), -200.0), DEEPSEEK_3)
    assert weights.tolist() == [[0.0] * 4]


@pytest.mark.parametrize("rules", ALL, ids=str)
def test_a_row_is_routed_the_same_in_any_company(rules: Rules) -> None:
    logits = logits_of(301)
    ids, weights = route(logits, rules)
    for start, end in ((0, 1), (17, 18), (5, 21), (64, 301), (300, 301)):
        some_ids, some_weights = route(logits[start:end].clone(), rules)
        assert torch.equal(some_ids, ids[start:end])
        assert torch.equal(some_weights, weights[start:end])


def test_cells_are_summed_in_the_order_of_ids() -> None:
    # 1e8 swallows the 1 unless its opposite came first.
    cells = torch.tensor([[1e8, 1.0], [-1e8, 1e8], [1.0, -1e8]])
    total = combine(cells, torch.ones(1, 3))
    assert total.tolist() == [[1.0, 0.0]]


def test_a_term_is_added_with_one_rounding() -> None:
    near_one = 1 + 2**-12
    cells = torch.tensor([[-(1 + 2**-11)], [near_one]])
    weights = torch.tensor([[1.0, near_one]])
    assert combine(cells, weights).item() == 2**-24  # 0 where the product is rounded first


def test_the_shared_expert_comes_last_and_its_home_alone_weighs_it() -> None:
    cells, shared = torch.tensor([[1e8], [-1e8]]), torch.tensor([[1.0]])
    assert combine(cells, torch.ones(1, 2), shared).item() == 1.0


def test_rows_of_a_dense_ffn_are_taken_as_they_are() -> None:
    rows = logits_of(7)
    assert torch.equal(combine(rows, None), rows)
    assert torch.equal(combine(rows.bfloat16(), None, rows), rows.bfloat16() + rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_is_the_same_in_any_company(dtype: torch.dtype) -> None:
    cells, (_, weights) = logits_of(3 * 50, 70).to(dtype), route(logits_of(50), MIXTRAL)
    total = combine(cells, weights)
    assert total.dtype == torch.float32
    exact = (cells.double().view(50, 3, 70) * weights.double()[:, :, None]).sum(1)
    torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=1e-6)
    for row in (0, 13, 49):
        alone = combine(cells[3 * row : 3 * row + 3].clone(), weights[row : row + 1])
        assert torch.equal(alone, total[row : row + 1])
