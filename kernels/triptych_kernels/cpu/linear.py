"""Packed linear layers of the native library. The numerics are told in src/linear.h."""

from __future__ import annotations

import ctypes
import functools
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triptych_kernels.cpu.delta import native_gated_delta
from triptych_kernels.cpu.native import Library
from triptych_kernels.packer import DeltaRule
from triptych_kernels.quant import Affine

_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_AFFINE_KINDS = {4: 2, 8: 3}
_STORE = 0  # Epilogue::Action::kStore
_GATE_LANES = 16  # columns of gate that lie beside the same columns of up


class NativeLinear:
    """y = x Wᵀ + b over a packed copy of W [N, K]. Thread-safe to call, not to free."""

    def __init__(
        self, ops: LinearOps, handle: int, shape: tuple[int, int], *, gated: bool, is_float: bool
    ) -> None:
        self._ops = ops
        self.handle = handle
        self.out_features, self.in_features = shape
        self.gated = gated
        self.is_float = is_float  # else it rounds its inputs to bfloat16
        self.nbytes = int(ops.num_bytes(handle))
        # Not at exit: a thread may still be inside a call then.
        weakref.finalize(self, ops.free, handle).atexit = False

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, K] float32 → [M, N] float32."""
        width = -(-self.out_features // (2 * _GATE_LANES)) * 2 * _GATE_LANES
        out = torch.empty(x.shape[0], width if self.gated else self.out_features)
        self.into(x, out)
        return self._ungate(out) if self.gated else out

    def into(self, x: Tensor, out: Tensor) -> None:
        """x [M, K] → out [M, N], both float32 and contiguous."""
        x = x.contiguous()
        self._ops.linear(
            self.handle, x.data_ptr(), x.shape[0], _STORE, out.data_ptr(), out.shape[1]
        )

    def row(self, ids: Tensor) -> Tensor:
        """ids [M] int64 < N → float32 [M, K], the weights as they are computed with."""
        assert not self.gated, "a gated weight has no rows to embed with"
        out = torch.empty(ids.shape[0], self.in_features)
        ids = ids.to(torch.int32).contiguous()
        self._ops.rows(self.handle, ids.data_ptr(), ids.shape[0], out.data_ptr())
        return out

    def _ungate(self, out: Tensor) -> Tensor:
        """Packed columns, gate and up in turn, back to all of gate, then all of up."""
        pairs = out.view(out.shape[0], -1, 2, _GATE_LANES)
        inner = self.out_features // 2
        gate, up = (pairs[:, :, part].flatten(1)[:, :inner] for part in (0, 1))
        return torch.cat([gate, up], dim=1)


@dataclass(frozen=True, slots=True)
class LinearOps:
    """The library's functions for linear layers."""

    dense: Any
    affine: Any
    free: Any
    num_bytes: Any
    linear: Any
    rows: Any


@functools.cache
def linear_ops(library: Library) -> LinearOps:
    pointer, number = ctypes.c_void_p, ctypes.c_int
    return LinearOps(
        dense=library.bind("tk_linear_dense", pointer, *[number] * 4, *[pointer] * 2),
        affine=library.bind("tk_linear_affine", pointer, *[number] * 5, *[pointer] * 4),
        free=library.bind("tk_linear_free", None, pointer),
        num_bytes=library.bind("tk_linear_bytes", ctypes.c_size_t, pointer),
        linear=library.bind("tk_linear", None, *[pointer] * 2, *[number] * 2, pointer, number),
        rows=library.bind("tk_linear_rows", None, *[pointer] * 2, number, pointer),
    )


class NativePacker:
    """Packs matrices for the native kernels."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._ops = linear_ops(library)

    def dense(
        self, weight: Tensor, bias: Tensor | None = None, *, gated: bool = False
    ) -> NativeLinear:
        """weight [N, K] float32 or bfloat16; the kernels compute in what it is."""
        weight = weight.contiguous()
        out, width = weight.shape
        handle = self._ops.dense(
            _KINDS[weight.dtype], out, width, gated, weight.data_ptr(), _pointer(bias)
        )
        is_float = weight.dtype == torch.float32
        return NativeLinear(self._ops, handle, (out, width), gated=gated, is_float=is_float)

    def affine(
        self, weight: Affine, bias: Tensor | None = None, *, gated: bool = False
    ) -> NativeLinear:
        """Computes with the stored bits and with activations of int8 per group."""
        q, scale, low = (part.contiguous() for part in (weight.q, weight.scale, weight.low))
        out, width = q.shape
        pointers = (q.data_ptr(), scale.data_ptr(), low.data_ptr(), _pointer(bias))
        handle = self._ops.affine(
            _AFFINE_KINDS[weight.bits], out, width, weight.group, gated, *pointers
        )
        return NativeLinear(self._ops, handle, (out, width), gated=gated, is_float=False)

    @property
    def gated_delta(self) -> DeltaRule:
        return functools.partial(native_gated_delta, self.library)

    def embedding(self, weight: Tensor | Affine) -> NativeLinear:
        return self.affine(weight) if isinstance(weight, Affine) else self.dense(weight)


def _pointer(bias: Tensor | None) -> int | None:
    if bias is None:
        return None
    assert bias.dtype == torch.float32 and bias.is_contiguous(), "a bias is contiguous float32"
    return bias.data_ptr()
