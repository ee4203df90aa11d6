"""The structs that Python and the native library share, mirrored field by field."""

from __future__ import annotations

import ctypes

import numpy as np

_pointer, _int32, _float = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


class KvCacheStruct(ctypes.Structure):
    """KvCache in kv_cache.h."""

    _fields_ = [
        ("base", _pointer),
        ("block_bytes", ctypes.c_size_t),
        ("layer_bytes", ctypes.c_size_t),
        ("kv_heads", _int32),
        ("head_dim", _int32),
        ("block_tokens", _int32),
        ("type", _int32),
        ("index_dim", _int32),
    ]


class AttentionShapeStruct(ctypes.Structure):
    """AttentionShape in attention.h."""

    _fields_ = [
        ("heads", _int32),
        ("scale", _float),
        ("softcap", _float),
        ("window", _int32),
        ("value_dim", _int32),
        ("sinks", _pointer),
    ]


class SkipCountStruct(ctypes.Structure):
    """SkipCount in attention.h."""

    _fields_ = [("tiles", ctypes.c_int64), ("skipped", ctypes.c_int64), ("omitted", _float)]


class SkippingStruct(ctypes.Structure):
    """Skipping in attention.h."""

    _fields_ = [
        ("scale", _float),
        ("budget", _float),
        ("counts", ctypes.POINTER(SkipCountStruct)),
        ("omitted", _pointer),
    ]


class PageChoiceStruct(ctypes.Structure):
    """PageChoice in page_choice.h."""

    _fields_ = [
        ("first_slot", _int32),
        ("known", _int32),
        ("capacity", _int32),
        ("kept", _pointer),
        ("bounds", _pointer),
    ]


class JobStruct(ctypes.Structure):
    """Job in attention.h."""

    _fields_ = [
        ("first_row", _int32),
        ("rows", _int32),
        ("start", _int32),
        ("skipped", _int32),
        ("blocks", _pointer),
        ("parents", _pointer),
        ("layer_stride", _int32),
        ("head_stride", _int32),
        ("page_scores", _pointer),
        ("scored_rows", _int32),
        ("skipping", ctypes.POINTER(SkippingStruct)),
        ("bundle", _int32),
        ("shared", _int32),
        ("pages", ctypes.POINTER(PageChoiceStruct)),
    ]


class LatentStruct(ctypes.Structure):
    """Latent in latent.h."""

    _fields_ = [
        ("down", _pointer),
        ("query_up", _pointer),
        ("kv_up", _pointer),
        ("query_norm", _pointer),
        ("kv_norm", _pointer),
        ("eps", _float),
        ("query_rank", _int32),
        ("kv_rank", _int32),
        ("rope_dim", _int32),
    ]


class TokenIndexStruct(ctypes.Structure):
    """TokenIndex in token_index.h."""

    _fields_ = [
        ("query", _pointer),
        ("key", _pointer),
        ("weights", _pointer),
        ("key_norm", _pointer),
        ("key_norm_bias", _pointer),
        ("eps", _float),
        ("scale", _float),
        ("heads", _int32),
        ("dim", _int32),
        ("top_k", _int32),
    ]


class BranchesStruct(ctypes.Structure):
    """Branches in branches.h."""

    _fields_ = [
        ("gate", _pointer),
        ("block_tokens", _int32),
        ("top_k", _int32),
        ("window", _int32),
    ]


class UnitStruct(ctypes.Structure):
    """Unit in experts.h."""

    _fields_ = [("gate_up", _pointer), ("down", _pointer)]


class ShardStruct(ctypes.Structure):
    """Shard in experts.h."""

    _fields_ = [
        ("rows", _pointer),
        ("scales", _pointer),
        ("cells", _pointer),
        ("places", _pointer),
        ("out", _pointer),
        ("row_type", _int32),
        ("num_rows", _int32),
        ("num_cells", _int32),
        ("out_type", _int32),
    ]


class BranchStruct(ctypes.Structure):
    """Branch in experts.h."""

    _fields_ = [
        ("cells", _pointer),
        ("weights", _pointer),
        ("shared", _pointer),
        ("type", _int32),
        ("k", _int32),
        ("size", _int32),
    ]


class RoutingStruct(ctypes.Structure):
    """Routing in routing.h."""

    _fields_ = [
        ("experts", _int32),
        ("top_k", _int32),
        ("scoring", _int32),
        ("renormalise", _int32),
        ("scale", _float),
        ("groups", _int32),
        ("groups_kept", _int32),
        ("group_score", _int32),
        ("correction", _pointer),
    ]


class MixtureStruct(ctypes.Structure):
    """Mixture in layer.h."""

    _fields_ = [
        ("routing", RoutingStruct),
        ("router", _pointer),
        ("shared_gate_up", _pointer),
        ("shared_down", _pointer),
        ("shared_gate", _pointer),
        ("units", ctypes.POINTER(UnitStruct)),
        ("cell_type", _int32),
    ]


class LayerStruct(ctypes.Structure):
    """Layer in layer.h."""

    _fields_ = [
        ("before_attention", _pointer),
        ("behind_attention", _pointer),
        ("before_ffn", _pointer),
        ("behind_ffn", _pointer),
        ("query_norm", _pointer),
        ("key_norm", _pointer),
        ("qkv", _pointer),
        ("output", _pointer),
        ("gate_up", _pointer),
        ("down", _pointer),
        ("attention", AttentionShapeStruct),
        ("eps", _float),
        ("action", _int32),
        ("rope", _int32),
        ("rope_dim", _int32),
        ("latent", ctypes.POINTER(LatentStruct)),
        ("mixture", ctypes.POINTER(MixtureStruct)),
        ("branch_scale", _float),
        ("norms_whole", _int32),
        ("index", ctypes.POINTER(TokenIndexStruct)),
        ("branches", ctypes.POINTER(BranchesStruct)),
    ]


class PassStruct(ctypes.Structure):
    """Pass in layer.h."""

    _fields_ = [
        ("rows", _int32),
        ("num_jobs", _int32),
        ("jobs", ctypes.POINTER(JobStruct)),
        ("cache", ctypes.POINTER(KvCacheStruct)),
        ("cosines", ctypes.POINTER(_pointer)),
        ("sines", ctypes.POINTER(_pointer)),
        ("hidden", _pointer),
        ("hidden_size", _int32),
        ("states", _pointer),
        ("num_states", _int32),
        ("state_of", ctypes.POINTER(_int32)),
    ]


KV_TYPES = {"float32": 0, "bfloat16": 1, "int8": 2}
GATES = {"silu": 2, "gelu_tanh": 3, "clamped_swiglu": 4}  # Epilogue::Action
SCORINGS = {"softmax": 0, "sigmoid": 1, "softmax_of_chosen": 2}  # Routing::Scoring
GROUP_SCORES = {"max": 0, "two_best": 1}  # Routing::GroupScore
ROW_TYPES = {"float32": 0, "bfloat16": 1, "int8": 2, "fp8": 3}  # RowType
CELL = np.dtype([("row", np.uint16), ("expert", np.uint16)])  # Cell in experts.h
