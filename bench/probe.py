"""What this machine can do right now: bytes read from memory, and multiply-adds.

The limits that an engine's figures are divided by, so each is the best way found, not the easiest:
reading is a C++ loop over huge pages (torch's sum where nothing can be compiled); multiplying is
torch's matmul (oneDNN, with AMX where there is some) at a square and at shapes of the model.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from triptych_kernels.cpu.build import BuildError, build_library, default_cache
from triptych_kernels.cpu.levels import usable_levels

SOURCES = Path(__file__).parent / "probes"
READ_BYTES = 512 << 20  # more than any cache that one machine of a shared host gets
SHAPES = ((2048, 2048, 2048), (2048, 576, 3072))  # M, K, N
_REPEATS = 5
_TILE_ROUNDS = 500_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of all threads together, at one moment; `typical` of several moments."""

    read_gb_s: float  # streaming reads, 10⁹ bytes/s
    bfloat16_tflop_s: float  # matmul
    float32_tflop_s: float
    tile_tflop_s: float  # bf16 products in tile registers, no memory involved; 0: no tiles

    def matmul_tflop_s(self, dtype: str) -> float:
        """Of the fastest arithmetic that may compute with weights of this dtype."""
        return self.float32_tflop_s if dtype == "float32" else self.bfloat16_tflop_s


def measure_limits(threads: int) -> Limits:
    """The best of some repeats of each; about a second, and 512 MiB of memory."""
    library = _library()
    tiles = 0.0
    if library is not None:
        tiles = max(library.probe_tiles(threads, _TILE_ROUNDS) for _ in range(_REPEATS))
    return Limits(
        read_gb_s=read_rate(threads) / 1e9,
        bfloat16_tflop_s=matmul_rate(torch.bfloat16) / 1e12,
        float32_tflop_s=matmul_rate(torch.float32) / 1e12,
        tile_tflop_s=tiles / 1e12,
    )


def read_rate(threads: int) -> float:
    """Bytes per second, the best of some repeats."""
    library = _library()
    if library is None:
        return _torch_read(_REPEATS)
    return float(library.probe_read(threads, READ_BYTES, _REPEATS))


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of torch at its best shape. Where a CPU lacks the type, that takes minutes."""
    return max(_matmul(dtype, *shape) for shape in SHAPES)


def typical(found: Sequence[Limits]) -> Limits:
    """The median of each limit."""
    return Limits(
        read_gb_s=median(limits.read_gb_s for limits in found),
        bfloat16_tflop_s=median(limits.bfloat16_tflop_s for limits in found),
        float32_tflop_s=median(limits.float32_tflop_s for limits in found),
        tile_tflop_s=median(limits.tile_tflop_s for limits in found),
    )


def _torch_read(repeats: int) -> float:
    """Bytes per second."""
    data = torch.ones(READ_BYTES // 4)
    return READ_BYTES / min(_seconds(data.sum) for _ in range(repeats))


def _matmul(dtype: torch.dtype, m: int, k: int, n: int) -> float:
    """Operations per second, a multiply-add being two."""
    x, y = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    out = torch.empty(m, n, dtype=dtype)
    best = min(_seconds(lambda: torch.mm(x, y, out=out)) for _ in range(_REPEATS))
    return 2.0 * m * k * n / best


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@functools.cache
def _library() -> ctypes.CDLL | None:
    """None where nothing can be compiled."""
    for level in usable_levels():
        try:
            library = ctypes.CDLL(str(build_library(level, default_cache(), SOURCES)))
        except (BuildError, OSError) as error:
            _log.warning("probing with torch only: %s", error)
            return None
        library.probe_read.restype = library.probe_tiles.restype = ctypes.c_double
        library.probe_read.argtypes = (ctypes.c_int, ctypes.c_long, ctypes.c_int)
        library.probe_tiles.argtypes = (ctypes.c_int, ctypes.c_long)
        return library
    return None
