"""The structs that Python and the native library share, mirrored field by field."""

from __future__ import annotations

import ctypes

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
    ]


class AttentionShapeStruct(ctypes.Structure):
    """AttentionShape in attention.h."""

    _fields_ = [
        ("heads", _int32),
        ("scale", _float),
        ("softcap", _float),
        ("window", _int32),
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
    ]


class LayerStruct(ctypes.Structure):
    """Layer in layer.cpp."""

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
    ]


class PassStruct(ctypes.Structure):
    """Pass in layer.cpp."""

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
GATES = {"silu": 2, "gelu_tanh": 3}  # Epilogue::Action
