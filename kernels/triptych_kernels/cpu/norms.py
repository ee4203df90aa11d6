"""RMS norms of rows, wherever they lie: a dozen small tensor operations cost more than a layer."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from triptych_kernels import rms_norm
from triptych_kernels.cpu.native import Library, native

# (x [M, H] float32 or bfloat16, weight [H] float32, eps, out [M, H] float32): out becomes the RMS
# norm of x times weight. Both may be columns of something wider.
NormInto = Callable[[Tensor, Tensor, float, Tensor], None]


@functools.cache
def best_norm_into() -> NormInto:
    """The native function where there is one, the torch reference elsewhere."""
    library = native()
    return reference_norm_into if library is None else NativeNorms(library)


def reference_norm_into(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    out.copy_(rms_norm(x.float(), weight, eps))


class NativeNorms:
    def __init__(self, library: Library) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int
        places = (pointer, number, number, number, number, pointer, ctypes.c_float, pointer, number)
        self._norm_rows = library.bind("tk_norm_rows", None, *places)

    def __call__(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        rows, size = x.shape
        assert x.stride(1) == out.stride(1) == 1 or size == 1, "a row's numbers are neighbours"
        assert out.shape == x.shape and weight.shape == (size,) and weight.is_contiguous()
        assert out.dtype == weight.dtype == torch.float32
        is_bf16 = x.dtype == torch.bfloat16
        assert is_bf16 or x.dtype == torch.float32
        self._norm_rows(
            x.data_ptr(),
            is_bf16,
            x.stride(0),
            rows,
            size,
            weight.data_ptr(),
            eps,
            out.data_ptr(),
            out.stride(0),
        )
