"""Where Triton's kernels run: interpreted on CPU tensors, or on the GPU that tests/gpu asks for."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(os.environ.get("TRIPTYCH_TRITON_DEVICE", "cpu"))
