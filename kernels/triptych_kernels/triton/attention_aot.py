"""AOT cases of attention kernels: their arguments have the same names everywhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from triton import JITFunction

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.attention import SPLIT_TOKENS, tiles_for

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_OPTIONAL = {  # arguments that are None unless a kernel is compiled for a feature
    "SINKS": ("sinks",),
    "SKIP": ("thresholds", "budgets", "eps", "counts"),
    "TREE": ("owners_of", "paths", "leaves_of", "masks"),
    "RECORD": ("record",),
    "SHARED": ("splits_of",),
}
_FLAGS = ("CAPPED", "WINDOWED", "SCALED", *_OPTIONAL)
_ELEMENTS = {"q", "keys", "values", "out", "low", "high"}
_FLOATS = {"lse", "sinks", "thresholds", "budgets", "eps", "states", "outs", "scores"}
_POINTERS = {
    "tables",
    "lengths",
    "row_starts",
    "positions_of",
    "owners_of",
    "paths",
    "leaves_of",
    "splits_of",
    "counts",
    "blocks",
    "filled",
}
_BYTES = {"record"}
_SCALARS = {"scale", "cap"}


def attention_case(
    op: str,
    kernel: JITFunction,
    dtype: str,
    dim: int,
    rows: int = 0,
    warps: int = 1,
    stages: int = 0,
    spill_reason: str = "",
    own: Mapping[str, int] = MappingProxyType({}),
    on: Collection[str] = (),
) -> AotCase:
    """rows: of a tile, 0 where nothing is multiplied. stages: of a pipelined loop, 0 without one.
    own: other constants of this kernel. on: features; the others are off.
    """
    tiles = tiles_for(_DTYPES[dtype], dim)
    known: dict[str, object] = {
        "GROUP": 4,
        "D": dim,
        "WIDTH": tiles.width,
        "PAGE": 16,
        "TILE": tiles.tokens,
        "SPLIT": SPLIT_TOKENS,
        **{flag: flag in on for flag in _FLAGS},
        "ROWS": rows,
        "STAGES": stages,
        **own,
    }
    for flag, names in _OPTIONAL.items():
        if not known[flag]:
            known |= dict.fromkeys(names)
    names = kernel.arg_names
    constexprs = {name: known[name] for name in names if name in known}
    signature = {name: _type_of(name, dtype) for name in names if name not in known}
    aligned = [name for name, of in signature.items() if of[0] == "*" or _is_stride(name)]
    size = _DTYPES[dtype].itemsize
    copies = max(1, tiles.tokens * tiles.width * size // (warps * 32 * 16))  # of a tile, per thread
    at_once = 1 if kernel.__name__ == "split_kernel" and "SKIP" in on else 2
    told = "".join(f"+{flag.lower()}" for flag in on)
    return AotCase(
        name=f"{op}{told}/{dtype}/d{dim}" + (f"/{rows}rows" if rows else ""),
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        num_warps=warps,
        num_stages=stages or 2,
        aligned=tuple(aligned),
        mma=rows > 0,
        # Once before the loop, once within. Keys alone in a kernel that fetches values when needed.
        spill_reason=spill_reason,
        async_copies=2 * at_once * copies if stages else 0,
    )


def _is_stride(name: str) -> bool:
    return name.startswith(("q_", "k_", "v_", "b_"))


def _type_of(name: str, dtype: str) -> str:
    if name in _ELEMENTS:
        return f"*{dtype}"
    if name in _FLOATS:
        return "*fp32"
    if name in _BYTES:
        return "*u8"
    if name in _SCALARS:
        return "fp32"
    if name == "masks":
        return "*i64"
    return "*i32" if name in _POINTERS else "i32"
