"""The pieces of a transformer layer, over fused projections. All row-wise, except `kv.attend`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from triptych.models.config import Activation
from triptych.models.moe import Routing
from triptych.models.seams import IndexRows, KvView, NsaRows
from triptych_kernels import (
    apply_rotary,
    clamped_swiglu_mul,
    combine,
    gelu_tanh_mul,
    pad_rows,
    rms_norm,
    route,
    silu_mul,
)
from triptych_kernels.packer import LinearLike

_GATES = {
    "silu": silu_mul,
    "gelu_tanh": gelu_tanh_mul,
    "clamped_swiglu": clamped_swiglu_mul,
}


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS norm over the last dimension."""

    weight: Tensor  # float32
    eps: float
    offset: float

    @property
    def scaled_weight(self) -> Tensor:
        """What the normed values are multiplied by, [H]."""
        return self.weight + self.offset if self.offset else self.weight

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, weight_offset=self.offset)


class Heads(Protocol):
    """What makes a layer's heads: one projection, or several steps."""

    def __call__(self, rows: Tensor, /) -> Tensor:
        """rows [M, H] (normed) → [M, (Hq + 2·Hkv)·D]: query heads, key heads, value heads."""


class Chooser(Protocol):
    """What a layer's rows choose by what they attend to; see token_index and nsa."""

    def __call__(self, rows: Tensor, cos: Tensor, sin: Tensor, /) -> IndexRows | NsaRows:
        """rows [M, H] (normed); cos, sin [M, R/2]."""


class Mixer(Protocol):
    """What lets rows of a layer know of each other: attention, or what stands in its place."""

    def __call__(self, rows: Tensor, cos: Tensor, sin: Tensor, kv: KvView) -> Tensor:
        """rows [M, H] (normed) → [M, H] without the residual; cos, sin [M, R/2]."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention of one layer. rows [M, H] (normed) → [M, H] without the residual.

    cos, sin [M, R/2]: the first R numbers of every query and key head are rotated.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    softcap: float | None
    qkv: Heads
    output: LinearLike
    q_norm: Norm | None  # weight [head_dim]: of each head alone; [all heads × head_dim]: of all
    k_norm: Norm | None
    value_dim: int  # of a head: its values' first numbers, the others are zero
    sinks: Tensor | None  # float32 [num_heads], see KvView
    index: Chooser | None = None  # none: a row attends to all that its window holds
    output_gate: LinearLike | None = None  # [Hq·D, H]: weighs what heads attended to

    def __call__(self, rows: Tensor, cos: Tensor, sin: Tensor, kv: KvView) -> Tensor:
        heads = self.qkv(rows).view(rows.shape[0], -1, self.head_dim)
        k_end = self.num_heads + self.num_kv_heads
        q, k, v = heads[:, : self.num_heads], heads[:, self.num_heads : k_end], heads[:, k_end:]
        q, k = _normed(self.q_norm, q), _normed(self.k_norm, k)
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        mixed = kv.attend(
            self.layer,
            q,
            k,
            v,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            sinks=self.sinks,
            index=None if self.index is None else self.index(rows, cos, sin),
        )
        mixed = mixed[..., : self.value_dim].flatten(1)
        if self.output_gate is not None:
            # Composed: torch.sigmoid's bits depend on where an element lies.
            mixed = mixed * (1.0 / (1.0 + torch.exp(-self.output_gate(rows))))
        return self.output(mixed)


def _normed(norm: Norm | None, heads: Tensor) -> Tensor:
    """heads [M, heads, D], in pieces of the norm's size."""
    if norm is None:
        return heads
    return norm(heads.reshape(heads.shape[0], -1, norm.weight.shape[0])).view(heads.shape)


class DenseFfn:
    """down(act(gate(x)) × up(x)), rows [M, H] → [M, H]."""

    def __init__(self, gate_up: LinearLike, down: LinearLike, activation: Activation) -> None:
        self.gate_up = gate_up
        self.down = down
        self._gated = _GATES[activation]

    @property
    def nbytes(self) -> int:
        """Memory of its weights."""
        return self.gate_up.nbytes + self.down.nbytes

    def __call__(self, rows: Tensor) -> Tensor:
        gate, up = self.gate_up(rows).chunk(2, dim=-1)
        return self.down(self._gated(gate, up))


class LocalExperts:
    """The `Experts` seam in this process. `units[layer]`: a mixture's experts by id, or the one FFN
    of a dense layer.

    What an expert answers is rounded to `cell_dtype`, as it is on its way from another process:
    where a unit runs cannot be seen in the sum.
    """

    def __init__(self, units: Sequence[Sequence[DenseFfn]], cell_dtype: torch.dtype) -> None:
        self.units = units
        self.cell_dtype = cell_dtype

    def __call__(
        self, layer: int, rows: Tensor, ids: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        units = self.units[layer]
        if ids is None:
            assert len(units) == 1 and weights is None, "a mixture wants to know who gets a row"
            return units[0](rows)
        k, experts = ids.shape[1], ids.flatten()
        cells = rows.new_empty(len(experts), rows.shape[1], dtype=self.cell_dtype)
        by_expert = torch.split(experts.argsort(stable=True), experts.bincount().tolist())
        for unit, places in zip(units, by_expert, strict=False):
            if len(places):
                answers = unit(pad_rows(rows[places // k]))
                cells[places] = answers[: len(places)].to(self.cell_dtype)
        return combine(cells, weights)


@dataclass(frozen=True, slots=True)
class Mixture:
    """What the home of a row does of a mixture: it chooses the experts and runs the shared one."""

    routing: Routing
    router: LinearLike  # [E, H] float32, with the logits' bias if there is one
    correction: Tensor | None  # [E] float32, see MoeConfig.correction_bias
    shared: DenseFfn | None
    shared_gate: LinearLike | None  # [1, H] float32

    def choose(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows [M, H] (normed) → ids int32, weights float32, [M, k]."""
        return route(self.router(rows), self.routing, self.correction)

    def share(self, rows: Tensor) -> Tensor | None:
        """rows [M, H] (normed) → what the shared expert adds to the chosen ones' sum, if there is
        one.
        """
        if self.shared is None:
            return None
        shared = self.shared(rows)
        if self.shared_gate is None:
            return shared
        # Composed: torch.sigmoid's bits depend on where an element lies.
        return shared * (1.0 / (1.0 + torch.exp(-self.shared_gate(rows))))


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: mixer and FFN, each normed before, and for Gemma also behind."""

    attention: Mixer
    before_attention: Norm
    behind_attention: Norm | None
    before_ffn: Norm
    behind_ffn: Norm | None
    mixture: Mixture | None = None  # none: the layer has one dense FFN
