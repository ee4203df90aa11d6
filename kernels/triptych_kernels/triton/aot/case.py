"""One kernel in one configuration, as it is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triton import JITFunction


@dataclass(frozen=True)
class AotCase:
    name: str  # "paged_prefill/bf16/d128"
    kernel: JITFunction
    signature: Mapping[str, str]  # argument → "*bf16" | "i32" | …; constexprs are left out
    constexprs: Mapping[str, object]
    num_warps: int = 4
    num_stages: int = 2
    aligned: tuple[str, ...] = ()  # arguments (pointers, strides) divisible by 16
    mma: bool = True  # tensor-core instructions expected
    async_copies: int = 0  # LDGSTS/UTMALDG expected at least (sm_80+)
    spill_reason: str = ""  # why spills, if any, are acceptable
    exact: bool = False  # bits are promised: no product is fused with a sum, not even on purpose
    least: int = 80  # compute capability that the kernel needs
