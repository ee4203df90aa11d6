"""What bench.engine_experts makes of its measurements."""

from __future__ import annotations

import pytest

from bench.engine_experts import Units
from bench.engine_roofline import Rates
from triptych_kernels.cpu.native import native


@pytest.mark.skipif(native() is None, reason="no native kernels here")
def test_a_call_counts_the_weights_of_its_experts_once_and_every_product() -> None:
    units = Units("bfloat16", hidden=64, inner=32, count=4)
    weights = 3 * 64 * 32
    row = units.row(2, 16, (1e-3, 2e-3), Rates(read_gb_s=1.0, tflop_s=1.0))
    assert row.gb_s == pytest.approx(2 * weights * 2 / 1e-3 / 1e9)
    assert row.tflop_s == pytest.approx(2 * 16 * 2 * weights / 1e-3 / 1e12)
    assert row.roofline == pytest.approx(2 * weights * 2 / 1e9 / 1e-3)
    assert row.one_by_one == pytest.approx(2.0)


@pytest.mark.skipif(native() is None, reason="no native kernels here")
def test_every_number_of_experts_can_be_measured() -> None:
    units = Units("int4/32", hidden=64, inner=32, count=4)
    for experts in (1, 2, 4):
        assert all(seconds > 0 for seconds in units.measure(experts, rows=3))
