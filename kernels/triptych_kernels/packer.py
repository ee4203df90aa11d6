"""The seam between weights and kernels: who packs a matrix decides what computes with it.

Whatever the weights are stored as, float32 rows go in and float32 rows come out. Packers copy what
they need: the tensors that they are given may be scratch memory of the caller.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from triptych_kernels.fp8 import Fp8Weight, dequantise_fp8
from triptych_kernels.quant import Affine, dequantise
from triptych_kernels.reference import Linear


class TableLike(Protocol):
    """A packed matrix [N, K] whose rows can be read."""

    @property
    def nbytes(self) -> int:
        """Memory held."""

    def row(self, ids: Tensor) -> Tensor:
        """ids [M] int64 < N → float32 [M, K], the weights as they are computed with."""


class LinearLike(TableLike, Protocol):
    """y = x Wᵀ + b with a packed W [N, K]; a tied embedding is its rows."""

    @property
    def in_features(self) -> int:
        """K."""

    @property
    def out_features(self) -> int:
        """N."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, K] float32 → [M, N] float32; a row's bits do not depend on the other rows."""


class Packer(Protocol):
    """Packs matrices. bias [N] is float32.

    A `gated` matrix is two of the same shape, gate and up, one above the other; whoever runs whole
    layers may want their columns side by side.
    """

    def dense(
        self, weight: Tensor, bias: Tensor | None = None, *, gated: bool = False
    ) -> LinearLike:
        """weight [N, K] float32 or bfloat16."""

    def affine(
        self, weight: Affine, bias: Tensor | None = None, *, gated: bool = False
    ) -> LinearLike: ...

    def embedding(self, weight: Tensor | Affine) -> TableLike:
        """A table [V, H] of which only rows are read: an embedding that is not also the head."""


@runtime_checkable
class Fp8Packer(Packer, Protocol):
    """One whose kernels also multiply weights and rows in fp8."""

    def fp8(self, weight: Fp8Weight, bias: Tensor | None = None) -> LinearLike: ...


class DeltaRule(Protocol):
    """As `triptych_kernels.gated_delta`, which is one."""

    def __call__(
        self,
        mixed: Tensor,
        decay: Tensor,
        beta: Tensor,
        conv: Tensor,
        state: Tensor,
        history: Tensor,
        key_heads: int,
    ) -> Tensor: ...


@runtime_checkable
class DeltaPacker(Packer, Protocol):
    """One that also knows a kernel for gated delta layers."""

    @property
    def gated_delta(self) -> DeltaRule: ...


class ReferenceLinear(Linear):
    """The reference's linear, which can also read its own rows."""

    def row(self, ids: Tensor) -> Tensor:
        return torch.cat([chunk[:, ids] for chunk in self._chunks]).t().contiguous()


class ReferenceTable:
    """Rows of a dense table, kept in its dtype."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes

    def row(self, ids: Tensor) -> Tensor:
        return self._weight[ids].float()


class ReferencePacker:
    """Plain torch in float32: the weights are rounded as they are stored, the computing is not."""

    def dense(
        self, weight: Tensor, bias: Tensor | None = None, *, gated: bool = False
    ) -> ReferenceLinear:
        return ReferenceLinear(weight.float(), bias)

    def affine(
        self, weight: Affine, bias: Tensor | None = None, *, gated: bool = False
    ) -> ReferenceLinear:
        return ReferenceLinear(dequantise(weight), bias)

    def fp8(self, weight: Fp8Weight, bias: Tensor | None = None) -> ReferenceLinear:
        return ReferenceLinear(dequantise_fp8(weight), bias)

    def embedding(self, weight: Tensor | Affine) -> ReferenceTable:
        if isinstance(weight, Affine):
            return ReferenceTable(dequantise(weight))
        return ReferenceTable(weight.clone())
