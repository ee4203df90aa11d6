"""The tests of tests/unit/triton and of `device: cuda` again, compiled and run on a GPU.

In a process of its own: whether a kernel is interpreted is decided when it is defined.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.timeout(3600),
]


def test_kernels_do_on_a_gpu_what_they_do_interpreted() -> None:
    environment = {name: of for name, of in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRIPTYCH_TRITON_DEVICE"] = "cuda"
    tests = ["tests/unit/triton", "tests/cluster/test_on_device.py"]
    command = [sys.executable, "-m", "pytest", "-q", *tests]
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == 0
