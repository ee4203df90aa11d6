"""Feed-forward parts of a model on Triton's kernels: one unit, or a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from triptych.models.layers import DenseFfn, Mixture
from triptych_kernels.triton.experts import combine, plan_cells, run_experts
from triptych_kernels.triton.gates import Gate, gate_rows
from triptych_kernels.triton.packed_experts import run_packed_experts
from triptych_kernels.triton.packed_linear import Packed
from triptych_kernels.triton.packer import TritonLinear, stacked, stacked_biases
from triptych_kernels.triton.routing import route_rows


class TritonFfn(Protocol):
    @property
    def takes(self) -> torch.dtype:
        """Type of the normed rows that it is given."""

    def __call__(self, rows: Tensor) -> Tensor:
        """rows [M, H] → float32 [M, H]."""


class TritonUnit:
    """down(act(gate(x)) × up(x))."""

    def __init__(self, ffn: DenseFfn, gate: Gate) -> None:
        self._gate_up = cast(TritonLinear, ffn.gate_up)
        self._down = cast(TritonLinear, ffn.down)
        self._gate = gate
        self.takes = self._gate_up.operands

    def __call__(self, rows: Tensor) -> Tensor:
        gate_up = self._gate_up.multiply(rows, torch.float32)
        inner = gate_rows(gate_up, self._gate, self._down.operands)
        return self._down.multiply(inner, torch.float32)


class TritonMixture:
    """A row's experts, which are all here, and the shared one. Routers compute in float32."""

    takes = torch.float32

    def __init__(
        self, mixture: Mixture, units: Sequence[DenseFfn], gate: Gate, cell_dtype: torch.dtype
    ) -> None:
        """Puts the units' weights one behind the other: theirs become views of that."""
        self._routing = mixture.routing
        self._router = cast(TritonLinear, mixture.router)
        self._shared = None if mixture.shared is None else TritonUnit(mixture.shared, gate)
        self._shared_gate = cast(TritonLinear | None, mixture.shared_gate)
        gate_ups = [cast(TritonLinear, unit.gate_up) for unit in units]
        downs = [cast(TritonLinear, unit.down) for unit in units]
        self._operands = downs[0].operands
        self._run = _products(stacked(gate_ups), stacked(downs))
        self._gate_up_bias, self._down_bias = stacked_biases(gate_ups), stacked_biases(downs)
        self._gate = gate
        self._cell_dtype = cell_dtype

    def __call__(self, rows: Tensor) -> Tensor:
        logits = self._router.multiply(rows, torch.float32)
        ids, weights = route_rows(logits, self._routing)
        cells = self._run(
            rows.to(self._operands),
            plan_cells(ids, self._routing.num_experts),
            num_cells=ids.numel(),
            gate=self._gate,
            gate_up_bias=self._gate_up_bias,
            down_bias=self._down_bias,
            out_dtype=self._cell_dtype,
        )
        return combine(cells, weights, self._share(rows))

    def _share(self, rows: Tensor) -> Tensor | None:
        if self._shared is None:
            return None
        shared = self._shared(rows.to(self._shared.takes))
        if self._shared_gate is None:
            return shared
        gate = self._shared_gate.multiply(rows, torch.float32)
        return shared * (1.0 / (1.0 + torch.exp(-gate)))


def _products(gate_up: Tensor | Packed, down: Tensor | Packed) -> Callable[..., Tensor]:
    """`run_experts`, or what does the same with packed weights."""
    if isinstance(gate_up, Tensor) and isinstance(down, Tensor):
        return partial(run_experts, gate_up=gate_up, down=down)
    assert not isinstance(gate_up, Tensor) and not isinstance(down, Tensor), "packed alike"
    return partial(run_packed_experts, gate_up=gate_up, down=down)
