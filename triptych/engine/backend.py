"""What computes here, and in which types: decided once, when a worker starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from triptych.errors import ConfigError
from triptych.models.storage import WeightDtype
from triptych_kernels.cpu.linear import NativePacker
from triptych_kernels.cpu.native import Library, native
from triptych_kernels.packer import Packer, ReferencePacker

KvDtype = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, slots=True)
class Backend:
    """Kernels and types. Workers whose `identity` differs give different bits for the same row."""

    packer: Packer
    kernels: str  # a level of the native library, or "torch"
    weights: WeightDtype
    kv: KvDtype
    group: int

    @property
    def identity(self) -> str:
        group = f"/{self.group}" if self.weights in ("int8", "int4") else ""
        return f"{self.kernels}/{self.weights}{group}"


def choose_backend(dtype: str, kv_dtype: str, group: int = 32) -> Backend:
    """`dtype` and `kv_dtype` as in the config, "auto" included. The first call may compile the
    kernels. Raises ConfigError when the types cannot be had here.
    """
    library = native()
    packer = ReferencePacker() if library is None else NativePacker(library)
    return Backend(packer, *resolve_types(library, dtype, kv_dtype), group)


def resolve_types(
    library: Library | None, dtype: str, kv_dtype: str
) -> tuple[str, WeightDtype, KvDtype]:
    """(kernels, weights, KV). Pure."""
    if library is None and kv_dtype == "int8":
        raise ConfigError("kv.dtype: int8 needs the native kernels, which cannot be had here")
    if dtype == "auto":
        dtype = "float32" if library is None else "bfloat16"
    if kv_dtype == "auto":
        kv_dtype = "float32" if dtype == "float32" or library is None else "bfloat16"
    kernels = "torch" if library is None else library.level.name
    return kernels, cast(WeightDtype, dtype), cast(KvDtype, kv_dtype)
