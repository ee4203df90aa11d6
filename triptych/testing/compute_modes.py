"""Every way of computing that an engine can be in, for tests that must hold in all of them."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from triptych.engine.backend import choose_backend
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.models.storage import WeightDtype
from triptych_kernels.cpu.native import native

# Weights, KV, whether in plain torch.
MODES: dict[str, tuple[WeightDtype, str, bool]] = {
    "torch": ("float32", "float32", True),
    "float32": ("float32", "float32", False),
    "bfloat16": ("bfloat16", "bfloat16", False),
    "int8": ("int8", "bfloat16", False),
    "int4": ("int4", "bfloat16", False),
    "int8 KV": ("bfloat16", "int8", False),
}


@functools.cache
def model_in(checkpoint: Path, mode: str) -> Model:
    """Skips the test where the mode needs native kernels and there are none."""
    weights, kv, in_torch = MODES[mode]
    if in_torch:
        return load_model(checkpoint, dtype=weights)
    if native() is None:
        pytest.skip("no native kernels here")
    return load_model(checkpoint, dtype=weights, packer=choose_backend(weights, kv).packer)
