"""The gated delta rule of the native library. The numerics are told in src/gated_delta.cpp."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from triptych_kernels.cpu.native import Library

_SIZES = ("rows", "key_heads", "value_heads", "key_dim", "value_dim", "taps")
_ARRAYS = ("mixed", "decay", "beta", "conv", "state", "history", "out")


class DeltaRowsStruct(ctypes.Structure):
    """DeltaRows."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    ]


@functools.cache
def _function(library: Library) -> Any:
    return library.bind("tk_gated_delta", None, ctypes.c_void_p)


def native_gated_delta(
    library: Library,
    mixed: Tensor,
    decay: Tensor,
    beta: Tensor,
    conv: Tensor,
    state: Tensor,
    history: Tensor,
    key_heads: int,
) -> Tensor:
    """As `triptych_kernels.gated_delta`."""
    assert state.is_contiguous() and history.is_contiguous(), "changed in place"
    value_heads, key_dim, value_dim = state.shape
    out = torch.empty(len(mixed), value_heads, value_dim)
    sizes = (len(mixed), key_heads, value_heads, key_dim, value_dim, len(conv))
    arrays = [part.float().contiguous() for part in (mixed, decay, beta, conv)]
    arrays += [state, history, out]
    struct = DeltaRowsStruct(*sizes, *(array.data_ptr() for array in arrays))
    _function(library)(ctypes.byref(struct))
    return out
