"""The pieces of a transformer layer, over fused projections. All row-wise, except `kv.attend`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from triptych.models.config import Activation
from triptych.models.seams import KvView
from triptych_kernels import apply_rotary, gelu_tanh_mul, rms_norm, silu_mul
from triptych_kernels.packer import LinearLike

_GATES = {"silu": silu_mul, "gelu_tanh": gelu_tanh_mul}


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS norm over the last dimension."""

    weight: Tensor
    eps: float
    offset: float

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, weight_offset=self.offset)


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention of one layer. rows [M, H] (normed) → [M, H] without the residual."""

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    softcap: float | None
    qkv: LinearLike  # query heads, then key heads, then value heads
    output: LinearLike
    q_norm: Norm | None
    k_norm: Norm | None

    def __call__(self, rows: Tensor, cos: Tensor, sin: Tensor, kv: KvView) -> Tensor:
        heads = self.qkv(rows).view(rows.shape[0], -1, self.head_dim)
        k_end = self.num_heads + self.num_kv_heads
        q, k, v = heads[:, : self.num_heads], heads[:, self.num_heads : k_end], heads[:, k_end:]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        mixed = kv.attend(
            self.layer, q, k, v, scale=self.scale, window=self.window, softcap=self.softcap
        )
        return self.output(mixed.flatten(1))


class DenseFfn:
    """down(act(gate(x)) × up(x)), rows [M, H] → [M, H]."""

    def __init__(self, gate_up: LinearLike, down: LinearLike, activation: Activation) -> None:
        self._gate_up = gate_up
        self._down = down
        self._gated = _GATES[activation]

    def __call__(self, rows: Tensor) -> Tensor:
        gate, up = self._gate_up(rows).chunk(2, dim=-1)
        return self._down(self._gated(gate, up))


class LocalExperts:
    """The `Experts` seam in this process: one dense FFN per layer."""

    def __init__(self, ffns: Sequence[DenseFfn]) -> None:
        self._ffns = ffns

    def __call__(
        self, layer: int, rows: Tensor, ids: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        assert ids is None and weights is None, "dense layers have no routing"
        return self._ffns[layer](rows)


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: attention and FFN, each normed before, and for Gemma also behind."""

    attention: Attention
    before_attention: Norm
    behind_attention: Norm | None
    before_ffn: Norm
    behind_ffn: Norm | None
