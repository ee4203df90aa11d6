"""Rows go where the CPU's kernel sends them, with the same weights, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triptych.models.moe import Routing
from triptych_kernels import route
from triptych_kernels.cpu.native import native
from triptych_kernels.cpu.routing import NativeRouter
from triptych_kernels.triton.routing import route_rows

RULES = [
    Routing(8, 2, renormalise=True),
    Routing(60, 4),
    Routing(128, 8, renormalise=True, scale=2.5),
    Routing(8, 3, "softmax_of_chosen"),
    Routing(32, 20, "softmax_of_chosen", scale=0.5),
    Routing(5, 5, renormalise=True),
]


def some_logits(experts: int) -> Tensor:
    """Wide and narrow ones; ties; and neighbours, whose exponentials round to ties."""
    random = torch.Generator().manual_seed(experts)
    rows = torch.randn(12, experts, generator=random) * torch.tensor([0.01, 1.0, 30.0])[
        :, None
    ].repeat(4, 1)
    rows[9] = 0.25
    rows[10] = torch.randint(0, 3, (experts,), generator=random).float()
    rows[11] = torch.arange(experts).flip(0) * 2.0**-27 + 0.3
    rows[8, ::2] = -300.0
    return rows


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_experts_and_weights_are_the_cpus(rules: Routing, device: torch.device) -> None:
    library = native()
    if library is None:
        pytest.skip("no native kernels here")
    logits = some_logits(rules.num_experts)
    ids, weights = route_rows(logits.to(device), rules)
    expected = NativeRouter(library, rules)(logits)
    assert torch.equal(ids.cpu(), expected[0])
    assert torch.equal(weights.cpu(), expected[1])


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_experts_are_the_references(rules: Routing, device: torch.device) -> None:
    """Where no rounding decides: whole numbers, ties among them."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randint(-4, 5, (6, rules.num_experts), generator=random).float()
    ids, weights = route_rows(logits.to(device), rules)
    expected = route(logits, rules)
    assert torch.equal(ids.cpu(), expected[0])
    torch.testing.assert_close(weights.cpu(), expected[1], rtol=1e-5, atol=1e-7)


def test_what_is_no_number_is_chosen_last_and_once(device: torch.device) -> None:
    logits = torch.tensor([[torch.nan, 1.0, 3.0, torch.nan, 2.0]], device=device)
    of_chosen = Routing(5, 4, "softmax_of_chosen")
    assert route_rows(logits, of_chosen)[0].tolist() == [[0, 1, 2, 4]]
    found = route_rows(logits, Routing(5, 2))[0].flatten().tolist()
    assert len(set(found)) == 2 and set(found) <= set(range(5))
