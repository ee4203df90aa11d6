"""Runs of transformer layers in the native library: a step of the engine in a few calls."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triptych_kernels.cpu.experts import MAX_ROWS, branch_struct, unit_structs
from triptych_kernels.cpu.linear import NativeLinear
from triptych_kernels.cpu.native import Library
from triptych_kernels.cpu.norms import NativeNorms
from triptych_kernels.cpu.routing import routing_struct
from triptych_kernels.cpu.structs import (
    GATES,
    ROW_TYPES,
    AttentionShapeStruct,
    BranchesStruct,
    JobStruct,
    KvCacheStruct,
    LatentStruct,
    LayerStruct,
    MixtureStruct,
    PassStruct,
    TokenIndexStruct,
)
from triptych_kernels.routing import RoutingLike


@dataclass(frozen=True, slots=True)
class NativeLatent:
    """Heads out of low ranks; see LatentHeads in triptych/models/latent.py. Norms: float32."""

    down: NativeLinear
    query_up: NativeLinear
    kv_up: NativeLinear
    query_norm: Tensor | None  # none: queries are made of the row itself
    kv_norm: Tensor
    eps: float
    rope_dim: int


@dataclass(frozen=True, slots=True)
class NativeIndex:
    """What chooses a row's tokens; see Indexer in triptych/models/token_index.py."""

    query: NativeLinear
    key: NativeLinear
    weights: NativeLinear  # [J, H] float32
    key_norm: Tensor  # float32 [D]
    key_norm_bias: Tensor
    eps: float
    scale: float
    top_k: int


@dataclass(frozen=True, slots=True)
class NativeBranches:
    """The three parts of native sparse attention; see Branches in triptych/models/nsa.py."""

    gate: NativeLinear  # [heads · 3, H] float32
    block_tokens: int
    top_k: int
    window: int  # 0: there is no such part


@dataclass(frozen=True, slots=True)
class NativeMixture:
    """What a mixture consists of; see Mixture in triptych/models/layers.py."""

    routing: RoutingLike
    correction: Tensor | None  # [E] float32
    router: NativeLinear  # [E, H] float32
    shared: tuple[NativeLinear, NativeLinear] | None  # gate and up, down
    shared_gate: NativeLinear | None  # [1, H] float32
    units: Sequence[tuple[NativeLinear, NativeLinear]] | None  # by expert; None: elsewhere
    cell_dtype: torch.dtype  # what their answers are rounded to: float32 or bfloat16


@dataclass(frozen=True, slots=True)
class NativeLayer:
    """What a layer consists of; see Layer in triptych/models/layers.py. Norms are float32 [size],
    with the family's offset added. Without an FFN (`gate_up` None, and no units in `mixture`) its
    FFN half runs elsewhere, between `ffn_front` and `ffn_back`.
    """

    before_attention: Tensor
    behind_attention: Tensor | None
    before_ffn: Tensor
    behind_ffn: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    qkv: NativeLinear | NativeLatent
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
    rope_dim: int  # of a head: its first numbers are turned
    value_dim: int  # of a head: its values' first numbers, the others are zero
    sinks: Tensor | None  # float32 [heads]
    mixture: NativeMixture | None = None  # in place of gate_up and down
    branch_scale: float = 1.0  # of what attention and FFN add to the residual stream
    norms_whole: bool = False  # query_norm and key_norm are of all heads together, else of each
    chooser: NativeIndex | NativeBranches | None = None  # an index only with NativeLatent


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
        self._ffn_front: Any = library.bind("tk_ffn_front", None, pointer, number, *[pointer] * 4)
        self._shared: Any = library.bind(
            "tk_shared", None, pointer, number, number, pointer, pointer
        )
        self._ffn_back: Any = library.bind("tk_ffn_back", None, pointer, number, pointer, pointer)
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
        [positions, rope_dim/2] float32 of every rope. The arguments must outlive the pass.
        """
        assert hidden.is_contiguous() and hidden.shape[1] == self._hidden_size
        assert len(hidden) <= MAX_ROWS
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

    def ffn_half(self, layer: int, of: NativePass) -> None:
        """The FFN half, of a layer whose units are all here."""
        self._ffn_half(self._structs, layer, ctypes.byref(of.struct))

    def ffn_front(
        self,
        layer: int,
        of: NativePass,
        normed: Tensor,
        ids: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """The FFN half up to its units: normed [M, H] float32 becomes the rows that they want; of a
        mixture, ids [M, k] int32 and weights [M, k] float32 become the rows' experts, ascending.
        """
        mixture = self._layers[layer].mixture
        assert normed.shape == (of.struct.rows, self._hidden_size) and normed.is_contiguous()
        assert (mixture is None) == (ids is None) == (weights is None)
        if mixture is not None:
            for choice, dtype in ((ids, torch.int32), (weights, torch.float32)):
                assert choice is not None and choice.dtype == dtype and choice.is_contiguous()
                assert choice.shape == (len(normed), mixture.routing.top_k)
        places = (None if part is None else part.data_ptr() for part in (ids, weights))
        self._ffn_front(self._structs, layer, ctypes.byref(of.struct), normed.data_ptr(), *places)

    def has_shared(self, layer: int) -> bool:
        """Whether every row goes to an expert of its home as well."""
        mixture = self._layers[layer].mixture
        return mixture is not None and mixture.shared is not None

    def shared(self, layer: int, normed: Tensor, out: Tensor) -> None:
        """out [M, H] float32 becomes the shared expert's output for normed [M, H], behind its gate.
        Needs no pass: it may run while the rows are away.
        """
        assert self.has_shared(layer) and normed.shape == out.shape
        assert normed.is_contiguous() and out.is_contiguous()
        self._shared(self._structs, layer, len(normed), normed.data_ptr(), out.data_ptr())

    def ffn_back(
        self,
        layer: int,
        of: NativePass,
        cells: Tensor,
        weights: Tensor | None = None,
        shared: Tensor | None = None,
    ) -> None:
        """The rest of the FFN half: what came back is added up, normed if the family does so, and
        added to the rows.

        cells [M·k, H], bfloat16 or float32: row · k + j from the row's expert j; with `shared` of a
        mixture that has one. Without weights [M, k] there is one cell per row, added as it is.
        """
        shape = torch.Size((of.struct.rows, self._hidden_size))
        branch = branch_struct(cells, weights, shared, shape)
        self._ffn_back(self._structs, layer, ctypes.byref(of.struct), ctypes.byref(branch))

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
        layer.num_heads,
        layer.scale,
        layer.softcap or 0.0,
        layer.window or 0,
        layer.value_dim,
        None if layer.sinks is None else layer.sinks.data_ptr(),
    )
    norms = (
        layer.before_attention,
        layer.behind_attention,
        layer.before_ffn,
        layer.behind_ffn,
        layer.query_norm,
        layer.key_norm,
    )
    latent = layer.qkv if isinstance(layer.qkv, NativeLatent) else None
    qkv = layer.qkv if isinstance(layer.qkv, NativeLinear) else None
    linears = (qkv, layer.output, layer.gate_up, layer.down)
    index = layer.chooser if isinstance(layer.chooser, NativeIndex) else None
    branches = layer.chooser if isinstance(layer.chooser, NativeBranches) else None
    return LayerStruct(
        *(None if norm is None else norm.data_ptr() for norm in norms),
        *(None if linear is None else linear.handle for linear in linears),
        shape,
        layer.eps,
        GATES[layer.activation],
        layer.rope,
        layer.rope_dim,
        None if latent is None else ctypes.pointer(_latent_struct(latent)),
        None if layer.mixture is None else ctypes.pointer(_mixture_struct(layer.mixture)),
        layer.branch_scale,
        layer.norms_whole,
        None if index is None else ctypes.pointer(_index_struct(index)),
        None if branches is None else ctypes.pointer(_branches_struct(branches)),
    )


def _mixture_struct(mixture: NativeMixture) -> MixtureStruct:
    units = None if mixture.units is None else dict(enumerate(mixture.units))
    assert units is None or len(units) == mixture.routing.num_experts
    gate_up, down = mixture.shared or (None, None)
    linears = (mixture.router, gate_up, down, mixture.shared_gate)
    return MixtureStruct(
        routing_struct(mixture.routing, mixture.correction),
        *(None if linear is None else linear.handle for linear in linears),
        None if units is None else unit_structs(units),
        ROW_TYPES[str(mixture.cell_dtype).removeprefix("torch.")],
    )


def _latent_struct(latent: NativeLatent) -> LatentStruct:
    rank = 0 if latent.query_norm is None else len(latent.query_norm)
    return LatentStruct(
        latent.down.handle,
        latent.query_up.handle,
        latent.kv_up.handle,
        None if latent.query_norm is None else latent.query_norm.data_ptr(),
        latent.kv_norm.data_ptr(),
        latent.eps,
        rank,
        len(latent.kv_norm),
        latent.rope_dim,
    )


def _index_struct(index: NativeIndex) -> TokenIndexStruct:
    return TokenIndexStruct(
        index.query.handle,
        index.key.handle,
        index.weights.handle,
        index.key_norm.data_ptr(),
        index.key_norm_bias.data_ptr(),
        index.eps,
        index.scale,
        index.weights.out_features,
        len(index.key_norm),
        index.top_k,
    )


def _branches_struct(branches: NativeBranches) -> BranchesStruct:
    return BranchesStruct(
        branches.gate.handle, branches.block_tokens, branches.top_k, branches.window
    )
