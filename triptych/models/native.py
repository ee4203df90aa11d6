"""A model whose weights are packed for the native kernels, brought into the form they run on."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.layers import Layer, LocalExperts, Norm
from triptych.models.model import Model
from triptych.models.rope import Rope
from triptych.models.taps import StateTap, Tap, runs_of, tell
from triptych_kernels import rotary_cos_sin
from triptych_kernels.cpu.layers import NativeLayer, NativeLayers, StateCopy
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
        self._local = model.experts if isinstance(model.experts, LocalExperts) else None
        layers = [self._lower(index, layer) for index, layer in enumerate(model.layers)]
        self._layers = NativeLayers(library, layers, model.config.hidden_size)
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
        copies, taps = self._split(taps, hidden)
        tables = self._tables.up_to(num_positions)
        under_way = self._layers.start(hidden, jobs, cache, tables, copies)
        for first, end in runs_of(len(self._layers), taps):
            if self._local is not None:
                self._layers.run(first, end, under_way)
            else:
                for layer in range(first, end):
                    self._layers.attention_half(layer, under_way)
                    self._remote_ffn(layer, hidden)
            tell(taps, end - 1, hidden)

    def _split(self, taps: Sequence[Tap], hidden: Tensor) -> tuple[StateCopy | None, Sequence[Tap]]:
        """A tap that the native layers serve by themselves, and the others."""
        for tap in taps if self._local is not None else ():
            if isinstance(tap, StateTap):
                copy = StateCopy(tap.layers, tap.room(*hidden.shape))
                return copy, [other for other in taps if other is not tap]
        return None, taps

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
        cap = self._model.config.final_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _remote_ffn(self, index: int, hidden: Tensor) -> None:
        layer = self._model.layers[index]
        rows = self._layers.rms_norm(hidden, _weight(layer.before_ffn), layer.before_ffn.eps)
        rows = self._model.experts(index, rows, None, None)
        behind = layer.behind_ffn
        if behind is not None:
            rows = self._layers.rms_norm(rows, _weight(behind), behind.eps)
        hidden += rows

    def _lower(self, index: int, layer: Layer) -> NativeLayer:
        attention = layer.attention
        ffn = None if self._local is None else self._local.ffns[index]
        return NativeLayer(
            before_attention=_weight(layer.before_attention),
            behind_attention=_optional(layer.behind_attention),
            before_ffn=_weight(layer.before_ffn),
            behind_ffn=_optional(layer.behind_ffn),
            query_norm=_optional(attention.q_norm),
            key_norm=_optional(attention.k_norm),
            qkv=cast(NativeLinear, attention.qkv),
            output=cast(NativeLinear, attention.output),
            gate_up=None if ffn is None else cast(NativeLinear, ffn.gate_up),
            down=None if ffn is None else cast(NativeLinear, ffn.down),
            num_heads=attention.num_heads,
            scale=attention.scale,
            softcap=attention.softcap,
            window=attention.window,
            eps=layer.before_attention.eps,
            activation=self._model.config.activation,
            rope=self._ropes.index(self._model.config.ropes[index]),
        )


class _Tables:
    """Cosines and sines by position, of every distinct rope."""

    def __init__(self, model: Model) -> None:
        self._inv_freqs: dict[Rope, Tensor] = model.inv_freqs
        self._max_positions = model.config.max_model_len
        self._count = 0
        self._tables: list[tuple[Tensor, Tensor]] = []

    def up_to(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """[positions, D/2] float32 each, for `count` positions at least."""
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
