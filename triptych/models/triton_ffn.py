"""Feed-forward parts of a model on Triton's kernels: one unit, or a mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.layers import DenseFfn, Mixture
from triptych_kernels.triton.experts import combine, plan_cells, run_experts
from triptych_kernels.triton.gates import Gate, gate_rows
from triptych_kernels.triton.packer import TritonLinear
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
        """Puts the units' weights one behind the other: theirs become views of that. Raises
        ModelError where they are packed.
        """
        self._routing = mixture.routing
        self._router = cast(TritonLinear, mixture.router)
        self._shared = None if mixture.shared is None else TritonUnit(mixture.shared, gate)
        self._shared_gate = cast(TritonLinear | None, mixture.shared_gate)
        gate_ups = [cast(TritonLinear, unit.gate_up) for unit in units]
        downs = [cast(TritonLinear, unit.down) for unit in units]
        self._operands = downs[0].operands
        self._gate_up, self._gate_up_bias = _stacked(gate_ups)
        self._down, self._down_bias = _stacked(downs)
        self._gate = gate
        self._cell_dtype = cell_dtype

    def __call__(self, rows: Tensor) -> Tensor:
        logits = self._router.multiply(rows, torch.float32)
        ids, weights = route_rows(logits, self._routing)
        cells = run_experts(
            rows.to(self._operands),
            plan_cells(ids, self._routing.num_experts),
            self._gate_up,
            self._down,
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


def _stacked(units: Sequence[TritonLinear]) -> tuple[Tensor, Tensor | None]:
    """[E, N, K], and biases float32 [E, N] if there are any."""
    weights = []
    for unit in units:
        if not isinstance(unit.weight, Tensor):
            raise ModelError(
                "dtype: device: cuda runs experts in float32 and bfloat16 only: set dtype: "
                "bfloat16, or device: cpu"
            )
        weights.append(unit.weight)
    stack = torch.stack(weights)
    for unit, view in zip(units, stack, strict=True):
        unit.weight = view
    biases = [unit.bias for unit in units if unit.bias is not None]
    return stack, torch.stack(biases) if biases else None
