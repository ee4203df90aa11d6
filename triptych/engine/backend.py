"""What computes here, and in which types: decided once, when a worker starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch

from triptych.errors import ConfigError
from triptych.models.storage import WeightDtype
from triptych_kernels.cpu.linear import NativePacker
from triptych_kernels.cpu.native import Library, native
from triptych_kernels.packer import Packer, ReferencePacker

KvDtype = Literal["float32", "bfloat16", "int8"]
Device = Literal["auto", "cpu", "cuda"]
CPU = torch.device("cpu")
_KNOWS_FP8 = (8, 9)  # compute capability


@dataclass(frozen=True, slots=True)
class Backend:
    """Kernels and types. Workers whose `identity` differs give different bits for the same row."""

    packer: Packer
    kernels: str  # a level of the native library, "torch", or "triton-…" of a device
    weights: WeightDtype
    kv: KvDtype
    group: int
    device: torch.device = CPU  # where weights and KV are

    @property
    def on_triton(self) -> bool:
        """Whether Triton's kernels compute; interpreted, they do so on the CPU."""
        return self.kernels.startswith("triton")

    @property
    def identity(self) -> str:
        group = f"/{self.group}" if self.weights in ("int8", "int4") else ""
        return f"{self.kernels}/{self.weights}{group}"


def choose_backend(dtype: str, kv_dtype: str, group: int = 32, device: Device = "cpu") -> Backend:
    """`dtype`, `kv_dtype` and `device` as in the config, "auto" included: that device is the CPU,
    until the kernels for GPUs have been run on one. The first call may compile the kernels. Raises
    ConfigError when the types or the device cannot be had here.
    """
    if device == "cuda":
        return _on_cuda(dtype, kv_dtype, group)
    library = native()
    packer = ReferencePacker() if library is None else NativePacker(library)
    return Backend(packer, *resolve_types(library, dtype, kv_dtype), group)


def resolve_types(
    library: Library | None, dtype: str, kv_dtype: str
) -> tuple[str, WeightDtype, KvDtype]:
    """(kernels, weights, KV). Pure."""
    if dtype == "fp8":
        raise ConfigError(
            "dtype: fp8 is computed by device: cuda alone: set dtype: int8, or device: cuda"
        )
    if library is None and kv_dtype == "int8":
        raise ConfigError("kv.dtype: int8 needs the native kernels, which cannot be had here")
    if dtype == "auto":
        dtype = "float32" if library is None else "bfloat16"
    if kv_dtype == "auto":
        kv_dtype = "float32" if dtype == "float32" or library is None else "bfloat16"
    kernels = "torch" if library is None else library.level.name
    return kernels, cast(WeightDtype, dtype), cast(KvDtype, kv_dtype)


def resolve_cuda_types(dtype: str, kv_dtype: str) -> tuple[WeightDtype, KvDtype]:
    """(weights, KV) on a device. Pure."""
    if kv_dtype == "int8":
        raise ConfigError(
            "kv.dtype: device: cuda has no kernel that appends int8: set bfloat16, or device: cpu"
        )
    if dtype == "auto":
        dtype = "bfloat16"
    if kv_dtype == "auto":
        kv_dtype = "float32" if dtype == "float32" else "bfloat16"
    return cast(WeightDtype, dtype), cast(KvDtype, kv_dtype)


def _on_cuda(dtype: str, kv_dtype: str, group: int) -> Backend:
    weights, kv = resolve_cuda_types(dtype, kv_dtype)
    try:
        # Here, for a machine without triton must not notice it.
        from triptych_kernels.triton.common import INTERPRETED
        from triptych_kernels.triton.packer import TritonPacker
    except ImportError as error:
        raise ConfigError(f"device: cuda was asked for: {error}; or set device: cpu") from error
    if INTERPRETED:
        device, kernels = CPU, "triton-interpreted"
    elif torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        major, minor = torch.cuda.get_device_capability(device)
        if weights == "fp8" and (major, minor) < _KNOWS_FP8:
            raise ConfigError(
                f"dtype: fp8 needs a GPU of compute capability 8.9 or later, this one has "
                f"{major}.{minor}: set dtype: int8"
            )
        kernels = f"triton-sm_{major}{minor}"
    else:
        raise ConfigError(
            "device: cuda was asked for, torch sees no CUDA device: install the CUDA build of "
            "torch or set device: cpu"
        )
    operands = torch.float32 if weights == "float32" else torch.bfloat16
    return Backend(TritonPacker(device, operands), kernels, weights, kv, group, device)
