"""One unit, computed in this process with the bits that an FFN worker would send back."""

from __future__ import annotations

import ctypes
from typing import cast

import numpy as np
import torch
from torch import Tensor

from triptych.models.layers import DenseFfn
from triptych_kernels.cpu.experts import NativeExperts
from triptych_kernels.cpu.linear import NativeLinear
from triptych_kernels.cpu.native import Library
from triptych_kernels.cpu.structs import CELL, ROW_TYPES, ShardStruct
from triptych_kernels.cpu.wire_rows import NativeWireRows
from triptych_kernels.wire_rows import RowType

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MAX_ROWS = 4096  # at once


def native_unit(ffn: DenseFfn) -> tuple[NativeLinear, NativeLinear]:
    """Its matrices, which were packed by NativePacker."""
    return cast(NativeLinear, ffn.gate_up), cast(NativeLinear, ffn.down)


class NativeUnit:
    """Implements LoadedUnit. Rows are rounded as they would be to travel as `row_type`."""

    def __init__(
        self,
        library: Library,
        ffn: DenseFfn,
        activation: str,
        *,
        row_type: RowType,
        cell_type: RowType,
    ) -> None:
        self._experts = NativeExperts(library, {0: native_unit(ffn)}, activation)
        self._rounding = NativeWireRows(library)
        self._row_type = row_type
        self._cell_type = cell_type
        self.nbytes = ffn.nbytes

    def __call__(self, rows: Tensor) -> Tensor:
        out = torch.empty(rows.shape, dtype=_DTYPES[self._cell_type])
        for first in range(0, len(rows), _MAX_ROWS):
            part = slice(first, first + _MAX_ROWS)
            self._compute(rows[part].contiguous(), out[part])
        return out

    def _compute(self, rows: Tensor, out: Tensor) -> None:
        packed, scales = self._rounding.quantise(rows, self._row_type)
        cells = np.zeros(len(rows), CELL)
        cells["row"] = np.arange(len(rows))
        shard = ShardStruct(
            packed.data_ptr(),
            None if scales is None else scales.data_ptr(),
            cells.ctypes.data,
            None,
            out.data_ptr(),
            ROW_TYPES[self._row_type],
            len(rows),
            len(rows),
            ROW_TYPES[self._cell_type],
        )
        self._experts.run((ShardStruct * 1)(shard), 1)


def shard_array(address: int, count: int) -> ctypes.Array[ShardStruct]:
    """Shards that lie in memory of somebody else."""
    return (ShardStruct * count).from_address(address)
