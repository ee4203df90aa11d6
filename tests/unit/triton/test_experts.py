"""Mixtures of experts in Triton: right answers, a row's bits its own, sums in one order."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from triptych.testing.on_triton import knows_fp8
from triptych_kernels import (
    clamped_swiglu_mul,
    combine,
    gelu_tanh_mul,
    silu_mul,
)
from triptych_kernels.fp8 import quantise_fp8
from triptych_kernels.quant import quantise
from triptych_kernels.triton import experts
from triptych_kernels.triton.gates import Gate, gate_rows
from triptych_kernels.triton.packed_experts import run_packed_experts
from triptych_kernels.triton.packer import TritonLinear, TritonPacker, stacked, stacked_biases

GATES = {"silu": silu_mul, "gelu_tanh": gelu_tanh_mul, "clamped_swiglu": clamped_swiglu_mul}
EXPERTS, HIDDEN, INNER, CHOSEN = 5, 100, 72, 3  # no multiples of what kernels work with
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


class Layer(NamedTuple):
    gate_up: Tensor
    down: Tensor

    def run(self, x: Tensor, ids: Tensor, gate: Gate = "silu") -> Tensor:
        plan = experts.plan_cells(ids, EXPERTS)
        return experts.run_experts(
            x,
            plan,
            self.gate_up,
            self.down,
            num_cells=ids.numel(),
            gate=gate,
            out_dtype=torch.float32,
        )

    def run_plainly(self, x: Tensor, ids: Tensor, gate: Gate = "silu") -> Tensor:
        cells = []
        for row, chosen in zip(x, ids.tolist(), strict=True):
            for expert in chosen:
                both = row.float() @ self.gate_up[expert].float().t()
                inner = GATES[gate](*both.split(INNER)).to(x.dtype)
                cells.append(inner.float() @ self.down[expert].float().t())
        return torch.stack(cells)


def random_layer(dtype: torch.dtype, device: torch.device) -> Layer:
    chance = torch.Generator().manual_seed(1)
    gate_up = torch.randn(EXPERTS, 2 * INNER, HIDDEN, generator=chance) * HIDDEN**-0.5
    down = torch.randn(EXPERTS, HIDDEN, INNER, generator=chance) * INNER**-0.5
    return Layer(gate_up.to(device, dtype), down.to(device, dtype))


def random_rows(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(count)
    x = torch.randn(count, HIDDEN, generator=chance)
    scores = torch.rand(count, EXPERTS, generator=chance)
    ids = scores.topk(CHOSEN).indices.sort().values
    return x.to(device, dtype), ids.int().to(device)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_experts_answer_as_one_by_one(dtype: torch.dtype, device: torch.device) -> None:
    """Some tiles are full, some are not, and more experts than rows."""
    layer = random_layer(dtype, device)
    for count in (1, 150):
        x, ids = random_rows(count, dtype, device)
        expected = layer.run_plainly(x, ids)
        torch.testing.assert_close(
            layer.run(x, ids), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("gate", GATES)
def test_gates_are_the_references(gate: Gate, device: torch.device) -> None:
    layer = random_layer(torch.float32, device)
    x, ids = random_rows(3, torch.float32, device)
    expected = layer.run_plainly(10 * x, ids, gate)
    torch.testing.assert_close(layer.run(10 * x, ids, gate), expected, rtol=1e-4, atol=1e-4)


def test_a_row_has_the_same_bits_alone_and_among_others(device: torch.device) -> None:
    layer = random_layer(torch.bfloat16, device)
    x, ids = random_rows(70, torch.bfloat16, device)
    together = layer.run(x, ids).view(70, CHOSEN, HIDDEN)
    for row in (0, 33, 69):
        assert torch.equal(layer.run(x[row : row + 1], ids[row : row + 1]), together[row])


def test_an_expert_without_rows_is_no_tile(device: torch.device) -> None:
    ids = torch.full((130, 1), 3, dtype=torch.int32, device=device)
    plan = experts.plan_cells(ids, EXPERTS)
    assert plan.experts.tolist() == [3, 3, 3, *[-1] * (len(plan.experts) - 3)]
    assert plan.cells[:130].tolist() == list(range(130))
    assert (plan.cells[130:] == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_answers_are_added_up_as_by_the_reference(dtype: torch.dtype, device: torch.device) -> None:
    """To the bit, with and without weights and shared experts."""
    chance = torch.Generator().manual_seed(2)
    cells = torch.randn(4 * 3, 50, generator=chance).to(dtype)
    weights, shared = torch.rand(4, 3, generator=chance), torch.randn(4, 50, generator=chance)
    on = [x.to(device) for x in (cells, weights, shared)]
    assert torch.equal(experts.combine(*on).cpu(), combine(cells, weights, shared))
    assert torch.equal(experts.combine(on[0], on[1]).cpu(), combine(cells, weights))
    assert torch.equal(experts.combine(on[0][:4], None).cpu(), combine(cells[:4], None))
    stream = torch.randn(4, 50, generator=chance)
    expected = stream + 0.5 * combine(cells, weights, shared)
    into = stream.to(device)
    experts.combine(*on, scale=0.5, into=into)
    assert torch.equal(into.cpu(), expected)


@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
def test_a_packed_experts_cell_is_that_experts_row_alone(kind: str, device: torch.device) -> None:
    """To the bit, with biases; and so its bits are its own."""
    if kind == "fp8" and not knows_fp8(device):
        pytest.skip("this GPU knows no e4m3")
    chance = torch.Generator().manual_seed(6)
    packer = TritonPacker(device, torch.bfloat16)

    def packed(rows: int, columns: int) -> list[TritonLinear]:
        found = []
        for _ in range(EXPERTS):
            weight = torch.randn(rows, columns, generator=chance) * columns**-0.5
            bias = torch.randn(rows, generator=chance)
            if kind == "fp8":
                found.append(packer.fp8(quantise_fp8(weight), bias))
            else:
                found.append(packer.affine(quantise(weight, int(kind[3:]), 32), bias))
        return found

    gate_ups, downs = packed(2 * INNER, HIDDEN), packed(HIDDEN, INNER)
    x, ids = random_rows(10, torch.bfloat16, device)
    cells = run_packed_experts(
        x,
        experts.plan_cells(ids, EXPERTS),
        stacked(gate_ups),
        stacked(downs),
        num_cells=ids.numel(),
        gate_up_bias=stacked_biases(gate_ups),
        down_bias=stacked_biases(downs),
        out_dtype=torch.float32,
    )
    for cell in (0, 29):
        row, expert = cell // CHOSEN, int(ids.flatten()[cell])
        both = gate_ups[expert].multiply(x[row : row + 1], torch.float32)
        alone = downs[expert].multiply(gate_rows(both, "silu", torch.bfloat16), torch.float32)
        assert torch.equal(cells[cell], alone[0])
