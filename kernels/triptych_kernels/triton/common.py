"""What all kernels share: how they run, and device functions for arithmetic."""

from __future__ import annotations

import triton
import triton.language as tl

# Decided when kernels are defined: by TRITON_INTERPRET=1, or `triton.knobs.runtime.interpret` set
# before the first import.
INTERPRETED: bool = triton.knobs.runtime.interpret

# The interpreter loads, stores and casts bfloat16 well, but adds and multiplies its bit patterns as
# if they were integers (triton-lang/triton#11584). So operands are widened there, and only there.
UPCAST = tl.constexpr(INTERPRETED)

# For every launch: products and sums stay apart, so that two variants of a kernel do not differ in
# bits where they compute the same.
NO_FUSION = {"enable_fp_fusion": False}

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def wide(x):
    """x as the interpreter can compute with it: itself on a GPU."""
    if UPCAST:
        return x.to(tl.float32)
    return x


@triton.jit
def dot(a, b):
    """a [M, K] @ b [K, N] → float32. Operands of float32 are multiplied as such, not as tf32."""
    return tl.dot(wide(a), wide(b), input_precision="ieee", out_dtype=tl.float32)
