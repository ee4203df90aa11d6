"""GPU kernels in Triton, twins of the CPU's. Importing this package needs triton, and no GPU.

Nothing imports it on its own: a machine without triton never notices it. With TRITON_INTERPRET=1
the same kernels run on CPU tensors, which is how they are tested; `aot` compiles them for GPUs that
are not there. What that proves and what it cannot: docs/kernels.md.
"""

try:
    import triton as _triton  # noqa: F401
except ImportError as error:
    raise ImportError(
        "triptych_kernels.triton needs triton: pip install 'triptych-runtime[gpu]'"
    ) from error
