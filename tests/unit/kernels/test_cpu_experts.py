"""Experts on the native kernels: a row's answer is its own, however many rows meet in a unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from triptych.testing.native_kernels import apply_linear, libraries, threads
from triptych.testing.native_units import (
    RowShard,
    Unit,
    cells_of,
    random_linear,
    random_unit,
    shard_array,
)
from triptych_kernels import combine, gelu_tanh_mul, silu_mul
from triptych_kernels.cpu.experts import NativeCombine, NativeExperts
from triptych_kernels.cpu.native import Library
from triptych_kernels.cpu.structs import CELL, GATES
from triptych_kernels.cpu.wire_rows import NativeWireRows
from triptych_kernels.wire_rows import RowType, dequantise_rows, quantise_rows

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

KINDS = ["float32", "bfloat16", "int8/32", "int4/64"]
HIDDEN, INNER, EXPERTS = 72, 40, 6  # neither is a multiple of what kernels work with
ROW_TYPES: list[RowType] = ["float32", "bfloat16", "int8", "fp8"]


@dataclass(frozen=True)
class Mixture:
    """Units of random weights; expert 3 is not here."""

    library: Library
    units: dict[int, Unit]
    activation: str

    def run(self, *shards: RowShard) -> None:
        structs, count = shard_array(shards)
        NativeExperts(self.library, self.units, self.activation).run(structs, count)

    def alone(self, row: Tensor, expert: int) -> Tensor:
        """One row [1, H] through one unit, one linear layer after the other: [H] float32."""
        gate_up, down = self.units[expert]
        gated = torch.empty(1, -(-gate_up.out_features // 32) * 16)
        apply_linear(self.library, gate_up, row, gated, GATES[self.activation])
        return down(gated[:, : down.in_features])[0]


def mixture_of(
    kind: str, *, activation: str = "silu", bias: bool = False, library: Library | None = None
) -> Mixture:
    library = LIBRARIES[0] if library is None else library
    units = {
        expert: random_unit(library, kind, HIDDEN, INNER, seed=10 * expert, bias=bias)
        for expert in range(EXPERTS)
        if expert != 3
    }
    return Mixture(library, units, activation)


def random_rows(count: int, size: int = HIDDEN, *, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def random_cells(num_rows: int, count: int, *, seed: int = 0) -> Tensor:
    """Distinct, sorted by (expert, row), of the experts that are here."""
    source = torch.Generator().manual_seed(seed)
    here = torch.tensor([expert for expert in range(EXPERTS) if expert != 3])
    pairs = torch.cartesian_prod(here, torch.arange(num_rows))
    chosen = torch.randperm(len(pairs), generator=source)[:count].sort().values
    return pairs[chosen].T.flip(0).to(torch.int32).contiguous()


def shard_of(
    num_rows: int,
    num_cells: int,
    *,
    seed: int = 0,
    out: torch.dtype = torch.float32,
    row_type: RowType = "float32",
) -> RowShard:
    cells = random_cells(num_rows, num_cells, seed=seed)
    room = torch.full((cells.shape[1], HIDDEN), torch.nan, dtype=out)
    return RowShard(random_rows(num_rows, seed=seed), cells, room, row_type=row_type)


def wanted_of(mixture: Mixture, shard: RowShard) -> Tensor:
    """Every cell by itself, in the cells' order."""
    rows = dequantise_rows(*quantise_rows(shard.rows, shard.row_type))
    answers = [mixture.alone(rows[row : row + 1], expert) for row, expert in shard.cells.T.tolist()]
    return torch.stack(answers).to(shard.out.dtype) if answers else shard.out[:0]


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_has_the_bits_of_its_row_alone(kind: str, num_threads: int) -> None:
    mixture = mixture_of(kind, bias=True)
    shards = [shard_of(40, 150, seed=1), shard_of(3, 7, seed=2), shard_of(1, 1, seed=3)]
    with threads(mixture.library, num_threads):
        mixture.run(*shards)
    for shard in shards:
        assert torch.equal(shard.out, wanted_of(mixture, shard))


@pytest.mark.parametrize("row_type", ROW_TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_travel_in_any_type(kind: str, row_type: RowType) -> None:
    mixture = mixture_of(kind)
    shard = shard_of(20, 60, row_type=row_type)
    mixture.run(shard)
    assert torch.equal(shard.out, wanted_of(mixture, shard))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_may_be_rounded_and_types_mixed_in_one_call(kind: str) -> None:
    mixture = mixture_of(kind)
    halves = shard_of(20, 60, seed=1, out=torch.bfloat16, row_type="bfloat16")
    floats = shard_of(20, 60, seed=2)
    mixture.run(halves, floats)
    assert torch.equal(halves.out, wanted_of(mixture, halves))
    assert torch.equal(floats.out, wanted_of(mixture, floats))


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_answers_go_where_their_places_say_and_nowhere_else(out: torch.dtype) -> None:
    mixture = mixture_of("bfloat16")
    plain = shard_of(20, 60, out=out)
    places = 2 * torch.randperm(60, generator=torch.Generator().manual_seed(0)) + 1
    room = torch.full((121, HIDDEN), torch.nan, dtype=out)
    placed = RowShard(plain.rows, plain.cells, room, places.to(torch.int32))
    mixture.run(plain, placed)
    assert torch.equal(room[places], plain.out)
    assert room[::2].isnan().all()


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_gate_is_what_torch_computes(kind: str, activation: str) -> None:
    for library in LIBRARIES:
        mixture = mixture_of(kind, activation=activation, bias=True, library=library)
        shard = shard_of(20, 60)
        mixture.run(shard)
        for (row, expert), found in zip(shard.cells.T.tolist(), shard.out, strict=True):
            gate_up, down = mixture.units[expert]
            gate, up = gate_up(shard.rows[row : row + 1]).chunk(2, dim=1)
            wanted = down(GATE_OF[activation](gate, up))[0]
            error = (found - wanted).norm() / wanted.norm()
            assert error < (1e-5 if kind == "float32" else 0.01)


def clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1.0) * (gate * torch.sigmoid(1.702 * gate))


GATE_OF = {"silu": silu_mul, "gelu_tanh": gelu_tanh_mul, "clamped_swiglu": clamped_swiglu}


def test_the_clamped_gate_clamps_and_keeps_what_is_no_number() -> None:
    library = LIBRARIES[0]
    linear = random_linear(library, "float32", (2 * 16, 16), gated=True)
    x = 40.0 * random_rows(50, 16)
    found = apply_linear(library, linear, x, torch.empty(50, 16), GATES["clamped_swiglu"])
    gate, up = linear(x).chunk(2, dim=1)
    assert (gate > 7.0).any()
    assert (up.abs() > 7.0).any()
    torch.testing.assert_close(found, clamped_swiglu(gate, up), rtol=1e-5, atol=1e-5)
    broken = torch.full((1, 16), torch.nan)
    found = apply_linear(library, linear, broken, torch.empty(1, 16), GATES["clamped_swiglu"])
    assert found.isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_of_one_unit_are_no_other_rows(kind: str) -> None:
    mixture = mixture_of(kind)
    rows = random_rows(600)
    cells = torch.stack([torch.arange(600), torch.full((600,), 4)]).to(torch.int32)
    shard = RowShard(rows, cells, torch.empty(600, HIDDEN))
    with threads(mixture.library, 2):
        mixture.run(shard)
    for row in (0, 255, 256, 511, 599):
        assert torch.equal(shard.out[row], mixture.alone(rows[row : row + 1], 4))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_wanted_is_nothing_done(kind: str) -> None:
    mixture = mixture_of(kind)
    empty, some = shard_of(0, 0), shard_of(5, 0, seed=1)
    mixture.run()
    mixture.run(empty, some)
    busy = shard_of(5, 5, seed=2)
    mixture.run(empty, busy, some)
    assert torch.equal(busy.out, wanted_of(mixture, busy))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("row_type", ROW_TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_row_says_so_and_harms_no_other(kind: str, row_type: RowType, bad: float) -> None:
    mixture = mixture_of(kind)
    healthy = shard_of(20, 60, row_type=row_type)
    rows = healthy.rows.clone()
    rows[7, 5] = bad
    broken = RowShard(rows, healthy.cells, healthy.out.clone(), row_type=row_type)
    mixture.run(healthy)
    mixture.run(broken)
    of_broken = healthy.cells[0] == 7
    assert of_broken.any()
    assert not broken.out[of_broken].isfinite().any()
    assert torch.equal(broken.out[~of_broken], healthy.out[~of_broken])


def test_cells_that_cannot_be_served_are_known() -> None:
    experts = NativeExperts(LIBRARIES[0], mixture_of("bfloat16").units, "silu")

    def holds(*pairs: tuple[int, int]) -> bool:
        return experts.holds(np.array([*pairs], CELL), num_rows=10)

    assert holds()
    assert holds((3, 0), (9, 0), (0, 5))
    assert not holds((0, 3))
    assert not holds((0, EXPERTS))
    assert not holds((10, 0))
    assert not holds((3, 1), (4, 0))
    assert not holds((3, 0), (3, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 5), (7, 3, 72), (40, 8, 100)], ids=str)
def test_answers_are_added_up_as_in_torch(
    shape: tuple[int, int, int], shared: bool, dtype: torch.dtype
) -> None:
    rows, k, size = shape
    hidden, weights = random_rows(rows, size, seed=1), random_rows(rows, k, seed=2)
    cells = random_rows(rows * k, size, seed=3).to(dtype)
    extra = random_rows(rows, size, seed=4) if shared else None
    for scale in (1.0, 0.3):
        wanted = hidden + scale * combine(cells, weights, extra)
        for library in LIBRARIES:
            found = hidden.clone()
            NativeCombine(library)(found, cells, weights, extra, scale)
            assert torch.equal(found, wanted)


def test_one_answer_without_weight_is_added_as_it_is() -> None:
    hidden, cells = random_rows(9, 50, seed=1), random_rows(9, 50, seed=2)
    found = hidden.clone()
    NativeCombine(LIBRARIES[0])(found, cells, None, None, 1.0)
    assert torch.equal(found, hidden + cells)


@pytest.mark.parametrize("row_type", ROW_TYPES)
@pytest.mark.parametrize("size", [5, 128, 200, 333])
def test_rows_are_rounded_for_the_wire_as_in_torch(row_type: RowType, size: int) -> None:
    smallest = -30 if row_type == "bfloat16" else -42  # some CPUs round subnormal halves to zero
    x = random_rows(30, size) * torch.logspace(smallest, 30, 30)[:, None]
    x[3], x[4, :4] = 0.0, 0.0
    x[5, 1], x[6, 2] = torch.inf, torch.nan
    wanted, scales = quantise_rows(x, row_type)
    for library in LIBRARIES:
        found, found_scales = NativeWireRows(library).quantise(x, row_type)
        finite = torch.ones(30, dtype=torch.bool)
        if scales is not None:
            assert torch.equal(cast(Tensor, found_scales).isnan(), scales.isnan())
            assert torch.equal(cast(Tensor, found_scales).nan_to_num(), scales.nan_to_num())
            finite = scales.isfinite().all(1)
            assert finite.tolist() == [row not in (5, 6) for row in range(30)]
        same = found.float() == wanted.float()
        assert (same | wanted.float().isnan())[finite].all()


@pytest.mark.parametrize(("row_type", "error"), [("bfloat16", 3e-3), ("int8", 0.02), ("fp8", 0.04)])
def test_rounded_rows_stay_near(row_type: RowType, error: float) -> None:
    x = random_rows(30, 333) * torch.logspace(-15, 15, 30)[:, None]
    near = dequantise_rows(*quantise_rows(x, row_type))
    assert float(((near - x).norm(dim=1) / x.norm(dim=1)).max()) < error


def test_cells_of_a_batch_are_sorted_and_know_their_places() -> None:
    ids = torch.tensor([[0, 2], [1, 2], [0, 1]])
    cells, places = cells_of(ids)
    assert cells.tolist() == [[0, 2, 1, 2, 0, 1], [0, 0, 1, 1, 2, 2]]
    assert places.tolist() == [0, 4, 2, 5, 1, 3]
