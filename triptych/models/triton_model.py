"""A model whose weights lie in a device's memory, brought into the form that Triton's kernels run.

The residual stream is float32; what is multiplied has the type of the packed weights, queries that
of the KV. Every kernel has tiles of fixed sizes, so a row's bits are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.config import ModelConfig
from triptych.models.layers import Attention, DenseFfn, Layer, LocalExperts, Norm
from triptych.models.model import Model
from triptych.models.rope import Rope
from triptych.models.taps import Tap, tell
from triptych.models.triton_ffn import TritonFfn, TritonMixture, TritonUnit
from triptych_kernels import rotary_cos_sin
from triptych_kernels.triton.attention import AttentionShape
from triptych_kernels.triton.norms import add_rms_norm
from triptych_kernels.triton.packer import TritonLinear
from triptych_kernels.triton.rope_append import HeadNorms, rope_append
from triptych_kernels.triton.routing import can_route

MAX_HEAD_DIM = 256


class RowsView(Protocol):
    """The KV that the rows of one forward may see and extend."""

    @property
    def slots(self) -> Tensor:
        """int64 [M], where each row's KV goes; −1: nowhere."""

    def pool(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [blocks, block tokens, Hkv, D]."""

    def attend(self, layer: int, q: Tensor, shape: AttentionShape) -> Tensor:
        """q [M, Hq, D], whose keys and values are in the pool → same."""


@dataclass(frozen=True, slots=True)
class _Layer:
    before_attention: Tensor  # weights of norms, float32, with the family's offset
    behind_attention: Tensor | None
    before_ffn: Tensor
    behind_ffn: Tensor | None
    head_norms: HeadNorms | None
    num_heads: int
    rope: Rope
    shape: AttentionShape
    qkv: TritonLinear
    output: TritonLinear
    ffn: TritonFfn


def check_config(config: ModelConfig) -> None:
    """Raises ModelError for what these kernels do not run, with the remedy."""
    for refused, what in (
        (config.delta is not None, "gated delta layers (linear attention)"),
        (config.latent is not None, "attention out of low ranks (MLA)"),
        (config.nsa is not None, "attention in three parts (NSA)"),
        (
            config.moe is not None and not can_route(config.moe.routing),
            "routing by groups of experts or by sigmoids",
        ),
        (config.qk_norm_whole, "norms over all heads of a row"),
        (config.head_dim > MAX_HEAD_DIM, f"heads of more than {MAX_HEAD_DIM} numbers"),
    ):
        if refused:
            raise ModelError(
                f"device: cuda does not run {what} yet, and {config.architecture} has them: "
                "set device: cpu"
            )


class TritonModel:
    """One forward pass at a time. Raises ModelError, see `check_config`."""

    def __init__(self, model: Model) -> None:
        """The model's matrices were packed by a TritonPacker."""
        check_config(model.config)
        self.config = model.config
        self._embedding = cast(TritonLinear, model.embedding)
        self._head = cast(TritonLinear, model.head)
        self.device = self._head.device
        assert isinstance(model.experts, LocalExperts) and model.distant is None
        self._layers = [
            self._lower(layer, rope, self._lower_ffn(layer, units, model.experts.cell_dtype))
            for layer, rope, units in zip(
                model.layers, model.config.ropes, model.experts.units, strict=True
            )
        ]
        self._norm = self._weight(model.norm)
        self._eps = model.norm.eps
        self._rotary = {rope: self._tables(rope, freq) for rope, freq in model.inv_freqs.items()}

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids int64 [M] → float32 [M, H]."""
        hidden = self._embedding.row(token_ids)
        scale = self.config.embed_scale
        return hidden if scale is None else hidden * scale

    def run(
        self,
        hidden: Tensor,
        positions: Tensor,
        view: RowsView,
        kv_dtype: torch.dtype,
        taps: Sequence[Tap] = (),
    ) -> None:
        """All layers, over hidden float32 [M, H] in place; positions int64 [M]."""
        rotary = {
            rope: (cos[positions], sin[positions]) for rope, (cos, sin) in self._rotary.items()
        }
        tapped = {layer for tap in taps for layer in tap.layers}
        delta: Tensor | None = None  # what the last branch adds; the next norm does
        for index, layer in enumerate(self._layers):
            rows = self._normed(hidden, delta, layer.before_attention, layer.qkv.operands)
            queries = rope_append(
                layer.qkv.multiply(rows, kv_dtype),
                *rotary[layer.rope],
                view.slots,
                *view.pool(index),
                num_heads=layer.num_heads,
                norms=layer.head_norms,
            )
            mixed = view.attend(index, queries, layer.shape).flatten(1)
            mixed = layer.output.multiply(mixed, torch.float32)
            delta = self._branch(mixed, layer.behind_attention)
            rows = self._normed(hidden, delta, layer.before_ffn, layer.ffn.takes)
            delta = self._branch(layer.ffn(rows), layer.behind_ffn)
            if index in tapped or index == len(self._layers) - 1:
                hidden += delta
                delta = None
                tell(taps, index, hidden)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """hidden float32 [R, H] → [R, H]."""
        return add_rms_norm(hidden, None, self._norm, self._eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, H] → float32 [R, V]."""
        logits = self._head.multiply(hidden, torch.float32)
        if self.config.logits_divisor != 1.0:
            logits /= self.config.logits_divisor
        cap = self.config.final_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _normed(
        self, hidden: Tensor, delta: Tensor | None, weight: Tensor, dtype: torch.dtype
    ) -> Tensor:
        return add_rms_norm(hidden, delta, weight, self._eps, out_dtype=dtype)

    def _branch(self, delta: Tensor, norm: Tensor | None) -> Tensor:
        """delta float32 [M, H] as it is added to the residual stream."""
        if norm is not None:
            delta = add_rms_norm(delta, None, norm, self._eps)
        scale = self.config.branch_scale
        return delta if scale == 1.0 else delta * scale

    def _tables(self, rope: Rope, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all positions, float32 [positions, rope_dim / 2]; the CPU's bits."""
        positions = torch.arange(self.config.max_model_len)
        cos, sin = rotary_cos_sin(positions, inv_freq, rope.attention_scaling)
        return cos.to(self.device), sin.to(self.device)

    def _lower_ffn(
        self, layer: Layer, units: Sequence[DenseFfn], cell_dtype: torch.dtype
    ) -> TritonFfn:
        gate = self.config.activation
        if layer.mixture is None:
            return TritonUnit(units[0], gate)
        return TritonMixture(layer.mixture, units, gate, cell_dtype)

    def _lower(self, layer: Layer, rope: Rope, ffn: TritonFfn) -> _Layer:
        attention = layer.attention
        assert isinstance(attention, Attention), "see check_config"
        norms = None
        if attention.q_norm is not None and attention.k_norm is not None:
            query, key = self._weight(attention.q_norm), self._weight(attention.k_norm)
            norms = HeadNorms(query, key, attention.q_norm.eps)
        sinks = None if attention.sinks is None else attention.sinks.to(self.device)
        return _Layer(
            before_attention=self._weight(layer.before_attention),
            behind_attention=self._optional(layer.behind_attention),
            before_ffn=self._weight(layer.before_ffn),
            behind_ffn=self._optional(layer.behind_ffn),
            head_norms=norms,
            num_heads=attention.num_heads,
            rope=rope,
            shape=AttentionShape(attention.scale, attention.window, attention.softcap, sinks),
            qkv=cast(TritonLinear, attention.qkv),
            output=cast(TritonLinear, attention.output),
            ffn=ffn,
        )

    def _weight(self, norm: Norm) -> Tensor:
        return norm.scaled_weight.to(self.device)

    def _optional(self, norm: Norm | None) -> Tensor | None:
        return None if norm is None else self._weight(norm)
