"""The native gated delta rule: the reference's numbers, and the same bits however rows come."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from triptych.testing.native_kernels import libraries, threads
from triptych_kernels import gated_delta
from triptych_kernels.cpu.delta import native_gated_delta
from triptych_kernels.cpu.native import Library

ROWS = 37
SHAPES = [(2, 4, 12, 16, 4), (1, 3, 16, 40, 2), (4, 4, 64, 128, 4)]  # Hk, Hv, Dk, Dv, K


@dataclass(frozen=True)
class Case:
    """Rows of one sequence, and what was before them."""

    mixed: Tensor
    decay: Tensor
    beta: Tensor
    conv: Tensor
    state: Tensor
    history: Tensor
    key_heads: int

    @staticmethod
    def random(key_heads: int, heads: int, key_dim: int, value_dim: int, taps: int) -> Case:
        dice = torch.Generator().manual_seed(key_dim)
        channels = 2 * key_heads * key_dim + heads * value_dim
        return Case(
            mixed=torch.randn(ROWS, channels, generator=dice),
            decay=torch.rand(ROWS, heads, generator=dice),
            beta=torch.rand(ROWS, heads, generator=dice),
            conv=torch.randn(taps, channels, generator=dice),
            state=torch.randn(heads, key_dim, value_dim, generator=dice),
            history=torch.randn(taps - 1, channels, generator=dice),
            key_heads=key_heads,
        )

    def native(self, library: Library, cuts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, state and history behind them."""
        state, history = self.state.clone(), self.history.clone()
        values = [
            native_gated_delta(
                library,
                self.mixed[begin:end],
                self.decay[begin:end],
                self.beta[begin:end],
                self.conv,
                state,
                history,
                self.key_heads,
            )
            for begin, end in zip([0, *cuts], [*cuts, ROWS], strict=True)
        ]
        return torch.cat(values), state, history


@pytest.fixture(params=libraries(), ids=lambda library: library.level.name)
def library(request: pytest.FixtureRequest) -> Library:
    found: Library = request.param
    return found


@pytest.fixture(params=SHAPES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return Case.random(*request.param)


def test_it_computes_what_the_reference_computes(library: Library, case: Case) -> None:
    state, history = case.state.clone(), case.history.clone()
    values = gated_delta(
        case.mixed, case.decay, case.beta, case.conv, state, history, case.key_heads
    )
    found = case.native(library, [])
    for ours, theirs in zip(found, (values, state, history), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cuts", [[1], [2, 3, 20], list(range(1, ROWS))], ids=len)
def test_no_cut_of_the_rows_changes_a_bit(library: Library, case: Case, cuts: list[int]) -> None:
    for cut, whole in zip(case.native(library, cuts), case.native(library, []), strict=True):
        assert torch.equal(cut, whole)


def test_the_number_of_threads_changes_no_bit(library: Library, case: Case) -> None:
    with threads(library, 1):
        alone = case.native(library, [5])
    with threads(library, 3):
        together = case.native(library, [5])
    for one, three in zip(alone, together, strict=True):
        assert torch.equal(one, three)


def test_rows_that_are_not_numbers_stay_so(library: Library, case: Case) -> None:
    case.mixed[20] = torch.nan
    values, _, _ = case.native(library, [])
    assert values[:20].isfinite().all()
    assert values[20:].isnan().all()
