"""The likeliest tokens are the same ones whoever looks for them."""

from __future__ import annotations

import pytest
import torch

from triptych.testing.native_kernels import libraries
from triptych_kernels.best_logits import NoisyRow, best_logits, leaders
from triptych_kernels.cpu.best_logits import NativeBestLogits
from triptych_kernels.cpu.native import Library

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.level.name)
@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 33, 8), (40, 8192, 8), (5, 1000, 512)], ids=str)
def test_they_are_what_torch_finds(library: Library, shape: tuple[int, int, int]) -> None:
    rows, columns, count = shape
    logits = 5 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    found, expected = NativeBestLogits(library)(logits, count), best_logits(logits, count)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.columns, expected.columns)
    torch.testing.assert_close(found.log_sums, expected.log_sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.level.name)
def test_what_is_no_number_is_never_likely(library: Library) -> None:
    logits = torch.tensor([[torch.nan, 1.0, -torch.inf, 1.0, 0.5]])
    found = NativeBestLogits(library)(logits, 4)
    assert found.values.tolist() == [[1.0, 1.0, 0.5, -torch.inf]]
    assert found.columns.tolist() == [[1, 3, 4, 0]]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.level.name)
@pytest.mark.parametrize("scale", [0.1, 4.0], ids=["flat", "steep"])
def test_leaders_under_noise_are_those_of_the_reference(library: Library, scale: float) -> None:
    source = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(12, 3001, generator=source)
    ids = torch.randperm(50_000, generator=source)[:3001]
    draws = [NoisyRow(2**63 + row, 10 * row, (1.0, 0.7, 0.2)[row % 3]) for row in range(12)]
    found = NativeBestLogits(library).leaders(logits, ids, draws, 32)
    expected = leaders(logits, ids, draws, 32)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.columns, expected.columns)
