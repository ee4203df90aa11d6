"""Compiling kernels ahead of time, for GPUs that this machine need not have."""

from triptych_kernels.triton.aot.case import AotCase

__all__ = ["AotCase"]
