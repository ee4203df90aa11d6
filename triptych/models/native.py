"""A model whose weights are packed for the native kernels, brought into the form they run on."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.lanes import LanedLayers
from triptych.models.latent import LatentHeads
from triptych.models.layers import (
    Attention,
    Chooser,
    DenseFfn,
    Heads,
    Layer,
    LocalExperts,
    Mixture,
    Norm,
)
from triptych.models.model import Model
from triptych.models.nsa import Branches
from triptych.models.rope import Rope
from triptych.models.seams import DistantExperts
from triptych.models.taps import StateTap, Tap, runs_of, tell
from triptych.models.token_index import Indexer
from triptych_kernels import rotary_cos_sin
from triptych_kernels.cpu.layers import (
    NativeBranches,
    NativeIndex,
    NativeLatent,
    NativeLayer,
    NativeLayers,
    NativeMixture,
    StateCopy,
)
from triptych_kernels.cpu.linear import NativeLinear
from triptych_kernels.cpu.native import native
from triptych_kernels.cpu.structs import JobStruct, KvCacheStruct

_MAX_HEAD_DIM = 512
_FIRST_POSITIONS = 4096  # of the tables; they double when a sequence grows beyond


class NativeModel:
    """One forward pass at a time: its buffers are reused. Raises ModelError for heads too large."""

    def __init__(self, model: Model) -> None:
        library = native()
        assert library is not None and model.is_native
        if model.config.head_dim > _MAX_HEAD_DIM:
            raise ModelError(
                f"head_dim: the native kernels take up to {_MAX_HEAD_DIM}, "
                f"the model has {model.config.head_dim}"
            )
        self._model = model
        self._ropes = list(model.inv_freqs)
        self._tables = _Tables(model)
        assert isinstance(model.experts, LocalExperts)
        self._units = model.experts.units  # by layer; none of layers that run elsewhere
        self._cell_dtype = model.experts.cell_dtype
        layers = [self._lower(index, layer) for index, layer in enumerate(model.layers)]
        self._layers = NativeLayers(library, layers, model.config.hidden_size)
        self._lanes = None if model.distant is None else self._in_lanes(model.distant)
        self._norm_weight = _weight(model.norm)
        self._head = cast(NativeLinear, model.head)
        self._logits = torch.empty(0)

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids [M] int32 → float32 [M, H]."""
        hidden = self._model.embedding.row(token_ids)
        scale = self._model.config.embed_scale
        return hidden if scale is None else hidden.mul_(scale)

    def run(
        self,
        hidden: Tensor,
        jobs: ctypes.Array[JobStruct],
        cache: KvCacheStruct,
        num_positions: int,
        taps: Sequence[Tap] = (),
    ) -> None:
        """All layers, over hidden [M, H] float32 in place. No row's position reaches
        `num_positions`. With no taps but a `StateTap`, and all FFNs here, it is a single call.
        """
        tables = self._tables.up_to(num_positions)
        if self._lanes is not None:
            return self._lanes.run(hidden, jobs, cache, tables, taps)
        copies, taps = _split(taps, hidden)
        under_way = self._layers.start(hidden, jobs, cache, tables, copies)
        for first, end in runs_of(len(self._layers), taps):
            self._layers.run(first, end, under_way)
            tell(taps, end - 1, hidden)

    def move_kv(self, cache: KvCacheStruct, blocks: array[int], moves: array[int]) -> None:
        """See NativeLayers."""
        self._layers.move_kv(cache, blocks, moves)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """hidden [R, H] → [R, H]."""
        return self._layers.rms_norm(hidden, self._norm_weight, self._model.norm.eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, H] → float32 [R, V], valid until the next call."""
        size = hidden.shape[0] * self._head.out_features
        if self._logits.numel() < size:
            self._logits = torch.empty(size)
        logits = self._logits[:size].view(hidden.shape[0], self._head.out_features)
        self._head.into(hidden, logits)
        if self._model.config.logits_divisor != 1.0:
            logits.div_(self._model.config.logits_divisor)
        cap = self._model.config.final_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _in_lanes(self, distant: DistantExperts) -> LanedLayers:
        moe = self._model.config.moe
        return LanedLayers(
            self._layers,
            distant,
            distant=[not units for units in self._units],
            top_k=0 if moe is None else moe.routing.top_k,
            shared=moe is not None and moe.shared_size > 0,
        )

    def _lower(self, index: int, layer: Layer) -> NativeLayer:
        attention = layer.attention
        assert isinstance(attention, Attention), "plain torch runs layers that keep states"
        mixture, gate_up, down = None, None, None
        if layer.mixture is not None:
            mixture = _lower_mixture(layer.mixture, self._units[index], self._cell_dtype)
        elif self._units[index]:
            gate_up, down = _lower_ffn(self._units[index][0])
        return NativeLayer(
            before_attention=_weight(layer.before_attention),
            behind_attention=_optional(layer.behind_attention),
            before_ffn=_weight(layer.before_ffn),
            behind_ffn=_optional(layer.behind_ffn),
            query_norm=_optional(attention.q_norm),
            key_norm=_optional(attention.k_norm),
            qkv=_lower_heads(attention.qkv),
            output=cast(NativeLinear, attention.output),
            gate_up=gate_up,
            down=down,
            num_heads=attention.num_heads,
            scale=attention.scale,
            softcap=attention.softcap,
            window=attention.window,
            eps=layer.before_attention.eps,
            activation=self._model.config.activation,
            rope=self._ropes.index(self._model.config.ropes[index]),
            rope_dim=self._model.config.rope_dim,
            value_dim=attention.value_dim,
            sinks=attention.sinks,
            mixture=mixture,
            branch_scale=self._model.config.branch_scale,
            norms_whole=self._model.config.qk_norm_whole,
            chooser=_lower_chooser(attention.index),
        )


def _lower_heads(heads: Heads) -> NativeLinear | NativeLatent:
    if not isinstance(heads, LatentHeads):
        return cast(NativeLinear, heads)
    return NativeLatent(
        down=cast(NativeLinear, heads.down),
        query_up=cast(NativeLinear, heads.query_up),
        kv_up=cast(NativeLinear, heads.kv_up),
        query_norm=_optional(heads.query_norm),
        kv_norm=_weight(heads.kv_norm),
        eps=heads.kv_norm.eps,
        rope_dim=heads.rope_dim,
    )


def _lower_chooser(index: Chooser | None) -> NativeIndex | NativeBranches | None:
    if index is None:
        return None
    if isinstance(index, Branches):
        sizes = index.sizes
        gate = cast(NativeLinear, index.gate)
        return NativeBranches(gate, sizes.block_tokens, sizes.top_k, sizes.window)
    assert isinstance(index, Indexer)
    return NativeIndex(
        query=cast(NativeLinear, index.query),
        key=cast(NativeLinear, index.key),
        weights=cast(NativeLinear, index.weights),
        key_norm=index.key_norm,
        key_norm_bias=index.key_norm_bias,
        eps=index.eps,
        scale=index.scale,
        top_k=index.top_k,
    )


def _lower_mixture(
    mixture: Mixture, units: Sequence[DenseFfn], cell_dtype: torch.dtype
) -> NativeMixture:
    """Without `units` they are elsewhere."""
    return NativeMixture(
        routing=mixture.routing,
        correction=mixture.correction,
        router=cast(NativeLinear, mixture.router),
        shared=None if mixture.shared is None else _lower_ffn(mixture.shared),
        shared_gate=cast(NativeLinear | None, mixture.shared_gate),
        units=[_lower_ffn(unit) for unit in units] or None,
        cell_dtype=cell_dtype,
    )


def _lower_ffn(ffn: DenseFfn) -> tuple[NativeLinear, NativeLinear]:
    return cast(NativeLinear, ffn.gate_up), cast(NativeLinear, ffn.down)


def _split(taps: Sequence[Tap], hidden: Tensor) -> tuple[StateCopy | None, Sequence[Tap]]:
    """A tap that the native layers serve by themselves, and the others."""
    for tap in taps:
        if isinstance(tap, StateTap):
            copy = StateCopy(tap.layers, tap.room(*hidden.shape))
            return copy, [other for other in taps if other is not tap]
    return None, taps


class _Tables:
    """Cosines and sines by position, of every distinct rope."""

    def __init__(self, model: Model) -> None:
        self._inv_freqs: dict[Rope, Tensor] = model.inv_freqs
        self._max_positions = model.config.max_model_len
        self._count = 0
        self._tables: list[tuple[Tensor, Tensor]] = []

    def up_to(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """[positions, rope_dim/2] float32 each, for `count` positions at least."""
        if count > self._count:
            self._count = max(count, 2 * self._count, min(_FIRST_POSITIONS, self._max_positions))
            positions = torch.arange(self._count)
            self._tables = [
                rotary_cos_sin(positions, inv_freq, rope.attention_scaling)
                for rope, inv_freq in self._inv_freqs.items()
            ]
        return self._tables


def _weight(norm: Norm) -> Tensor:
    """float32 [size], with the family's offset."""
    return norm.scaled_weight


def _optional(norm: Norm | None) -> Tensor | None:
    return None if norm is None else norm.scaled_weight
