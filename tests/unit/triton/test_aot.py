"""Every kernel compiles for GPUs that are not here, fits, and uses what they are good at."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.aot.compile import ARCHITECTURES, Measured, complaints
from triptych_kernels.triton.prefill import prefill_kernel


@pytest.mark.timeout(1200)
def test_kernels_compile_and_are_as_they_were() -> None:
    """Every kernel and feature once; in a process of its own: where kernels are interpreted they
    cannot be compiled.
    """
    environment = {name: of for name, of in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "triptych_kernels.triton.aot", "--cover"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_kernel_that_spills_or_loads_in_vain_is_complained_about() -> None:
    sm_90 = next(arch for arch in ARCHITECTURES if arch.name == "sm_90")
    case = AotCase("some", prefill_kernel, {}, {}, async_copies=16)
    good = Measured(200, 0, 80_000, {"HGMMA": 20}, 22, 1)
    assert complaints(case, sm_90, good) == []
    for change, told in (
        ({"spills": 8}, "8 spills"),
        ({"shared": 240_000}, "240000 bytes of shared memory"),
        ({"mma": {}}, "no tensor-core instruction"),
        ({"async_copies": 11}, "11 asynchronous copies, expected 16"),
        ({"ctas": 0}, "not one CTA fits"),
    ):
        found = complaints(case, sm_90, replace(good, **change))
        assert len(found) == 1 and told in found[0]
    assert complaints(replace(case, spill_reason="why not"), sm_90, replace(good, spills=8)) == []


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "triptych_kernels.triton")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match=r"pip install 'triptych-runtime\[gpu\]'"):
        importlib.import_module("triptych_kernels.triton")
