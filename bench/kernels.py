"""The native kernels, for benchmarks of nothing else."""

from __future__ import annotations

import sys

from triptych_kernels.cpu.native import Library, native


def native_or_exit() -> Library:
    library = native()
    if library is None:
        sys.exit("there is nothing to measure without native kernels")
    return library
