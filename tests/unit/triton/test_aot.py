"""Every kernel compiles for GPUs that are not here, fits, and uses what they are good at."""

from __future__ import annotations

import os
import subprocess
import sys


def test_kernels_compile_and_are_as_they_were() -> None:
    """In a process of its own: where kernels are interpreted they cannot be compiled."""
    environment = {name: of for name, of in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "triptych_kernels.triton.aot"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
