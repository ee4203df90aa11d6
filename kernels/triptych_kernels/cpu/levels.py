"""What CPUs can do: the instruction sets the native kernels are written for, best first."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Level:
    """A way to compile the sources. `needs` are flags as /proc/cpuinfo names them."""

    name: str
    march: str
    needs: frozenset[str]


_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
_AMX = _AVX512 | {"avx512_bf16", "avx512vbmi", "amx_tile", "amx_bf16", "amx_int8"}

LEVELS = (
    Level("amx", "sapphirerapids", _AMX),
    Level("avx512", "cascadelake", _AVX512),
    Level("avx2", "haswell", _AVX2),
)


def usable_levels() -> list[Level]:
    """The levels that this machine's CPU can run, best first; none on anything but x86-64."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    flags = cpu_flags()
    return [level for level in LEVELS if level.needs <= flags]


def cpu_flags() -> frozenset[str]:
    """Of the first core; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), ":")
    return frozenset(flags.partition(":")[2].split())
