"""Feed-forward units of random weights, and shards of rows for them: for tests and benchmarks."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from triptych.models.layers import DenseFfn
from triptych_kernels.cpu.experts import NativeExperts
from triptych_kernels.cpu.linear import NativeLinear, NativePacker
from triptych_kernels.cpu.native import Library
from triptych_kernels.cpu.structs import CELL, ROW_TYPES, ShardStruct
from triptych_kernels.quant import Affine
from triptych_kernels.wire_rows import RowType, quantise_rows

Unit = tuple[NativeLinear, NativeLinear]
NAMES: dict[torch.dtype, RowType] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def random_linear(
    library: Library,
    kind: str,
    shape: tuple[int, int],
    *,
    seed: int = 0,
    bias: bool = False,
    gated: bool = False,
) -> NativeLinear:
    """kind: float32, bfloat16, or bits and group such as int4/32."""
    source = torch.Generator().manual_seed(seed)
    shift = torch.randn(shape[0], generator=source) if bias else None
    packer = NativePacker(library)
    if kind.startswith("int"):
        return packer.affine(_random_affine(kind, shape, source), shift, gated=gated)
    weight = torch.randn(shape, generator=source) / math.sqrt(shape[1])
    return packer.dense(weight.to(getattr(torch, kind)), shift, gated=gated)


def _random_affine(kind: str, shape: tuple[int, int], source: torch.Generator) -> Affine:
    bits, group = map(int, kind.removeprefix("int").split("/"))
    rows, columns = shape
    q = torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=source)
    scale = 0.5 + torch.rand(rows, -(-columns // group), generator=source)
    scale *= 3.0 / math.sqrt(columns) / 2**bits
    return Affine(q, scale.half(), (-(2.0 ** (bits - 1)) * scale).half(), bits, group)


def random_unit(
    library: Library, kind: str, hidden: int, inner: int, *, seed: int = 0, bias: bool = False
) -> Unit:
    return (
        random_linear(library, kind, (2 * inner, hidden), seed=seed, bias=bias, gated=True),
        random_linear(library, kind, (hidden, inner), seed=seed + 1, bias=bias),
    )


def cells_of(ids: Tensor) -> tuple[Tensor, Tensor]:
    """ids [M, k] → rows and experts of all cells [M·k], sorted by (expert, row), as int32 [2, M·k];
    and for each its place row · k + j.
    """
    order = torch.sort(ids.flatten(), stable=True).indices
    cells = torch.stack([order // ids.shape[1], ids.flatten()[order].long()])
    return cells.to(torch.int32), order.to(torch.int32)


@dataclass(frozen=True)
class RowShard:
    """Rows [M, H] float32 as they travel, and the cells that are wanted of them [2, n]."""

    rows: Tensor
    cells: Tensor  # rows and experts, sorted by (expert, row)
    out: Tensor  # [·, H] float32 or bfloat16
    places: Tensor | None = None  # [n] int32, rows of `out`
    row_type: RowType = "float32"
    _alive: list[object] = field(default_factory=list)

    def struct(self) -> ShardStruct:
        """Valid as long as this object lives."""
        rows, scales = quantise_rows(self.rows, self.row_type)
        cells = np.empty(self.cells.shape[1], CELL)
        cells["row"], cells["expert"] = self.cells.numpy()
        self._alive[:] = [rows, scales, cells]
        return ShardStruct(
            rows.data_ptr(),
            None if scales is None else scales.data_ptr(),
            cells.ctypes.data,
            None if self.places is None else self.places.data_ptr(),
            self.out.data_ptr(),
            ROW_TYPES[self.row_type],
            len(rows),
            len(cells),
            ROW_TYPES[NAMES[self.out.dtype]],
        )


def shard_array(shards: Sequence[RowShard]) -> tuple[ctypes.Array[ShardStruct], int]:
    """What `NativeExperts.run` wants."""
    return (ShardStruct * len(shards))(*(shard.struct() for shard in shards)), len(shards)


def run_in_two_places(
    library: Library, units: Sequence[Unit], activation: str, rows: Tensor, ids: Tensor, out: Tensor
) -> None:
    """All cells of rows [M, H] with experts `ids` [M, k], into out [M·k, H]: odd experts in one
    place, even ones in another, the rows as the kernels would round them.
    """
    cells, places = cells_of(ids)
    row_type: RowType = "float32" if units[0][0].is_float else "bfloat16"
    for odd in (1, 0):
        there = cells[1] % 2 == odd
        held = {expert: unit for expert, unit in enumerate(units) if expert % 2 == odd}
        shard = RowShard(rows, cells[:, there], out, places[there], row_type)
        NativeExperts(library, held, activation).run(*shard_array([shard]))


def lower_unit(unit: DenseFfn) -> Unit:
    gate_up, down = unit.gate_up, unit.down
    assert isinstance(gate_up, NativeLinear) and isinstance(down, NativeLinear)
    return gate_up, down
