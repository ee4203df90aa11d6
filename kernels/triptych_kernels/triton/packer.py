"""Weights in a device's memory, packed for these kernels: the twin of the CPU's packers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from triptych_kernels.fp8 import Fp8Weight
from triptych_kernels.quant import Affine
from triptych_kernels.triton.dense_linear import linear_dense
from triptych_kernels.triton.packed_linear import (
    HALF,
    Packed,
    PackedAffine,
    linear_affine,
    linear_fp8,
    pack_affine,
)
from triptych_kernels.triton.wire_rows import pack_rows


class TritonLinear:
    """y = x Wᵀ + b, see `LinearLike`. Tiles have fixed sizes: a row's bits are its own."""

    def __init__(
        self,
        weight: Tensor | Packed,
        bias: Tensor | None,
        operands: torch.dtype,
    ) -> None:
        """weight [N, K] of type `operands`, or packed; bias float32 [N]; all on one device.
        operands: the type that rows and weights are rounded to before they are multiplied; with
        weights in fp8 rows are rounded once more, to fp8.
        """
        self.weight = weight
        self.bias = bias
        self.operands = operands

    @property
    def device(self) -> torch.device:
        return (self.weight if isinstance(self.weight, Tensor) else self.weight.q).device

    @property
    def in_features(self) -> int:
        if isinstance(self.weight, PackedAffine):
            return self.weight.in_features
        return (self.weight if isinstance(self.weight, Tensor) else self.weight.q).shape[1]

    @property
    def out_features(self) -> int:
        return (self.weight if isinstance(self.weight, Tensor) else self.weight.q).shape[0]

    @property
    def nbytes(self) -> int:
        bias = 0 if self.bias is None else self.bias.nbytes
        if isinstance(self.weight, Tensor):
            return self.weight.nbytes + bias
        if isinstance(self.weight, Fp8Weight):
            return self.weight.nbytes + bias
        return self.weight.q.nbytes + self.weight.scale.nbytes + self.weight.low.nbytes + bias

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, K] float32 on any device → [M, N] float32, there."""
        return self.multiply(x.to(self.device), torch.float32).to(x.device)

    def multiply(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:
        """x [M, K] on the weights' device → [M, N] of `out_dtype`."""
        x = x.to(self.operands).contiguous()
        if isinstance(self.weight, PackedAffine):
            return linear_affine(x, self.weight, self.bias, out_dtype)
        if isinstance(self.weight, Fp8Weight):
            every = torch.arange(len(x), dtype=torch.int32, device=x.device)
            rows, scales = pack_rows(x, every, "fp8")
            assert scales is not None
            return linear_fp8(rows, scales, self.weight, self.bias, out_dtype)
        return linear_dense(x, self.weight, self.bias, out_dtype)

    def row(self, ids: Tensor) -> Tensor:
        """See `TableLike`; ids on any device, the rows are on the weights'."""
        ids = ids.to(self.device)
        if isinstance(self.weight, Tensor):
            return self.weight[ids].float()
        assert isinstance(self.weight, PackedAffine), "tables are not kept in fp8"
        return _unpacked_rows(self.weight, ids).to(self.operands).float()


def stacked(units: Sequence[TritonLinear]) -> Tensor | Packed:
    """Weights of the same shape and type one behind the other, [E, N, K] or packed with that
    dimension more; those of `units` become views of them, so that they lie in memory once.
    """
    first, weights = units[0].weight, [unit.weight for unit in units]
    assert len({_format(weight) for weight in weights}) == 1, "all are packed alike"
    if isinstance(first, Tensor):
        dense = torch.stack(cast(list[Tensor], weights))
        for unit, view in zip(units, dense, strict=True):
            unit.weight = view
        return dense
    names = [of.name for of in fields(first) if isinstance(getattr(first, of.name), Tensor)]
    stacks = {name: torch.stack([getattr(of, name) for of in weights]) for name in names}
    for number, unit in enumerate(units):
        views: dict[str, Any] = {name: stack[number] for name, stack in stacks.items()}
        unit.weight = replace(cast(Packed, unit.weight), **views)
    whole: dict[str, Any] = {**stacks}
    return replace(first, **whole)


def stacked_biases(units: Sequence[TritonLinear]) -> Tensor | None:
    """float32 [E, N], if there are any."""
    found = [unit.bias for unit in units if unit.bias is not None]
    return torch.stack(found) if found else None


def _format(weight: Tensor | Packed) -> tuple[object, ...]:
    if isinstance(weight, PackedAffine):
        return weight.bits, weight.group
    return (type(weight),)


class TritonPacker:
    """Copies weights to `device`. See `Packer`."""

    def __init__(self, device: torch.device, operands: torch.dtype) -> None:
        self._device = device
        self._operands = operands

    def dense(
        self, weight: Tensor, bias: Tensor | None = None, *, gated: bool = False
    ) -> TritonLinear:
        """What is kept in float32 beside smaller weights, like routers, stays in it."""
        operands = torch.float32 if weight.dtype == torch.float32 else self._operands
        moved = weight.to(self._device, operands, copy=True).contiguous()
        return TritonLinear(moved, self._moved(bias), operands)

    def affine(
        self, weight: Affine, bias: Tensor | None = None, *, gated: bool = False
    ) -> TritonLinear:
        packed = pack_affine(weight)
        q, scale, low = (
            part.to(self._device, copy=True) for part in (packed.q, packed.scale, packed.low)
        )
        moved = PackedAffine(q, scale, low, packed.bits, packed.group, packed.in_features)
        return TritonLinear(moved, self._moved(bias), self._operands)

    def fp8(self, weight: Fp8Weight, bias: Tensor | None = None) -> TritonLinear:
        """See `Fp8Packer`."""
        q, scale = (part.to(self._device, copy=True) for part in (weight.q, weight.scale))
        return TritonLinear(Fp8Weight(q, scale), self._moved(bias), self._operands)

    def embedding(self, weight: Tensor | Affine) -> TritonLinear:
        return self.affine(weight) if isinstance(weight, Affine) else self.dense(weight)

    def _moved(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias.to(self._device, torch.float32, copy=True)


def _unpacked_rows(weight: PackedAffine, ids: Tensor) -> Tensor:
    """float32 [M, K], not rounded."""
    q = weight.q[ids]
    if weight.bits == 4:  # see PackedAffine
        blocks = q.view(len(ids), -1, HALF)
        q = torch.stack([blocks & 15, blocks >> 4], 2).flatten(1)
    scale, low = (
        part[ids].float().repeat_interleave(weight.group, 1)[:, : weight.in_features]
        for part in (weight.scale, weight.low)
    )
    return q[:, : weight.in_features].float() * scale + low
