"""Runs of transformer layers in the native library: a step of the engine in a few calls."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triptych_kernels.cpu.linear import NativeLinear
from triptych_kernels.cpu.native import Library
from triptych_kernels.cpu.norms import NativeNorms
from triptych_kernels.cpu.structs import (
    GATES,
    AttentionShapeStruct,
    JobStruct,
    KvCacheStruct,
    LayerStruct,
    PassStruct,
)


@dataclass(frozen=True, slots=True)
class NativeLayer:
    """What a layer consists of; see Layer in triptych/models/layers.py. Norms are float32 [size],
    with the family's offset added. Without an FFN (`gate_up` None) only its attention can run.
    """

    before_attention: Tensor
    behind_attention: Tensor | None
    before_ffn: Tensor
    behind_ffn: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    qkv: NativeLinear
    output: NativeLinear
    gate_up: NativeLinear | None
    down: NativeLinear | None
    num_heads: int
    scale: float
    softcap: float | None
    window: int | None
    eps: float
    activation: str
    rope: int  # index of the pass's tables


@dataclass(frozen=True, slots=True)
class StateCopy:
    """Where the residual stream behind some layers is copied to: rows bfloat16 [M, layers, H]."""

    layers: Sequence[int]
    rows: Tensor


class NativeLayers:
    """Layers ready to run. Keeps everything alive that the structs point to."""

    def __init__(self, library: Library, layers: Sequence[NativeLayer], hidden_size: int) -> None:
        self._layers = tuple(layers)
        self._structs = (LayerStruct * len(layers))(*map(_struct, layers))
        self._hidden_size = hidden_size
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._run: Any = library.bind("tk_layers", None, pointer, number, number, pointer)
        self._attention_half: Any = library.bind(
            "tk_attention_half", None, pointer, number, pointer
        )
        self._ffn_half: Any = library.bind("tk_ffn_half", None, pointer, number, pointer)
        self._move_kv: Any = library.bind(
            "tk_move_kv", None, pointer, number, pointer, pointer, number
        )
        self._norms = NativeNorms(library)

    def __len__(self) -> int:
        return len(self._layers)

    def start(
        self,
        hidden: Tensor,
        jobs: ctypes.Array[JobStruct],
        cache: KvCacheStruct,
        tables: Sequence[tuple[Tensor, Tensor]],
        states: StateCopy | None = None,
    ) -> NativePass:
        """hidden [M, H] float32 changes in place from layer to layer; tables: cosines and sines
        [positions, D/2] float32 of every rope. The arguments must outlive the pass.
        """
        assert hidden.is_contiguous() and hidden.shape[1] == self._hidden_size
        copied: tuple[Any, ...] = (None, 0, None)
        if states is not None:
            assert states.rows.shape == (len(hidden), len(states.layers), self._hidden_size)
            copied = states.rows.data_ptr(), len(states.layers), self._places_of(states.layers)
        pointers = ctypes.c_void_p * len(tables)
        cosines = pointers(*(cos.data_ptr() for cos, _ in tables))
        sines = pointers(*(sin.data_ptr() for _, sin in tables))
        return NativePass(
            PassStruct(
                hidden.shape[0],
                len(jobs),
                jobs,
                ctypes.pointer(cache),
                cosines,
                sines,
                hidden.data_ptr(),
                self._hidden_size,
                *copied,
            )
        )

    def _places_of(self, layers: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
        """By layer: its place among `layers`, or −1."""
        places = [-1] * len(self._layers)
        for place, layer in enumerate(layers):
            places[layer] = place
        return (ctypes.c_int32 * len(places))(*places)

    def run(self, first: int, end: int, of: NativePass) -> None:
        """Layers [first, end)."""
        self._run(self._structs, first, end, ctypes.byref(of.struct))

    def attention_half(self, layer: int, of: NativePass) -> None:
        """Attention with its norms and residual; the FFN half is somebody else's."""
        self._attention_half(self._structs, layer, ctypes.byref(of.struct))

    def move_kv(self, cache: KvCacheStruct, blocks: array[int], moves: array[int]) -> None:
        """Copies KV of all layers between slots of a sequence's blocks; moves: from, to, from, …"""
        tables = blocks.buffer_info()[0], moves.buffer_info()[0]
        self._move_kv(ctypes.byref(cache), len(self._layers), *tables, len(moves) // 2)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [M, H] float32 → its RMS norm times weight [H]."""
        out = torch.empty(x.shape)
        self._norms(x, weight, eps, out)
        return out


@dataclass(slots=True)
class NativePass:
    """One forward pass under way."""

    struct: PassStruct


def _struct(layer: NativeLayer) -> LayerStruct:
    shape = AttentionShapeStruct(
        layer.num_heads, layer.scale, layer.softcap or 0.0, layer.window or 0
    )
    norms = (
        layer.before_attention,
        layer.behind_attention,
        layer.before_ffn,
        layer.behind_ffn,
        layer.query_norm,
        layer.key_norm,
    )
    linears = (layer.qkv, layer.output, layer.gate_up, layer.down)
    return LayerStruct(
        *(None if norm is None else norm.data_ptr() for norm in norms),
        *(None if linear is None else linear.handle for linear in linears),
        shape,
        layer.eps,
        GATES[layer.activation],
        layer.rope,
    )
