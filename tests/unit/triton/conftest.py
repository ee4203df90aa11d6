"""Where Triton's kernels run: interpreted on CPU tensors, or on the GPU that tests/gpu asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(os.environ.get("TRIPTYCH_TRITON_DEVICE", "cpu"))


@pytest.fixture(scope="session", autouse=True)
def rows_apart(device: torch.device) -> Iterator[None]:
    """Makes the interpreter's products like a tensor core's in one respect: a row's sums do not
    depend on where in a tile it lies. Those of BLAS, which it asks otherwise, do.
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    of_blas = InterpreterBuilder.create_dot

    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> TensorHandle:
        if any(of.dtype.is_floating() and of.dtype.primitive_bitwidth == 8 for of in (a, b)):
            return of_blas(self, a, b, d, *rest)
        wide = (of.data.astype(d.data.dtype) for of in (a, b))
        return TensorHandle(np.einsum("...ij,...jk->...ik", *wide) + d.data, d.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(InterpreterBuilder, "create_dot", dot)
        yield


@pytest.fixture(autouse=True)
def quiet_infinities() -> Iterator[None]:
    """The interpreter computes with numpy, which warns of what is meant to happen, like ∞ − ∞."""
    with np.errstate(all="ignore"):
        yield
