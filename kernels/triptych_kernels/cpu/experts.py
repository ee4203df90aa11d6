"""Rows through feed-forward units, natively; the rules are told in src/experts.h."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych_kernels.cpu.linear import NativeLinear
from triptych_kernels.cpu.native import Library
from triptych_kernels.cpu.structs import (
    GATES,
    ROW_TYPES,
    BranchStruct,
    ShardStruct,
    UnitStruct,
)

MAX_ROWS = 1 << 16  # of a shard: a cell counts them in 16 bits


class NativeExperts:
    """The units of one layer that are here, by expert; of a dense layer the one with number 0.

    units: a gated linear layer [2I, H] and one [H, I], the same H in all.
    """

    def __init__(
        self,
        library: Library,
        units: Mapping[int, tuple[NativeLinear, NativeLinear]],
        activation: str,
    ) -> None:
        self._units = dict(units)  # keeps alive what the structs point to
        self._structs = unit_structs(self._units)
        self._action = GATES[activation]
        number, pointer = ctypes.c_int, ctypes.c_void_p
        self._run: Any = library.bind("tk_run_shards", None, pointer, number, pointer, number)

    def holds(self, cells: np.ndarray[Any, np.dtype[np.void]], num_rows: int) -> bool:
        """Whether cells [n] of CELL are such as `run` wants them: sorted by (expert, row), of units
        that are here, of rows < num_rows. What comes over a network is checked first.
        """
        rows, experts = cells["row"].astype(np.int64), cells["expert"].astype(np.int64)
        order = experts * MAX_ROWS + rows
        fits = (rows < num_rows).all() and (np.diff(order) > 0).all()
        return bool(fits) and set(np.unique(experts).tolist()) <= self._units.keys()

    def run(self, shards: ctypes.Array[ShardStruct], count: int) -> None:
        """The first `count` shards, together: rows that meet in a unit share its weights."""
        self._run(self._structs, self._action, shards, count)


def unit_structs(
    units: Mapping[int, tuple[NativeLinear, NativeLinear]],
) -> ctypes.Array[UnitStruct]:
    """By expert; null where there is none. Valid as long as the linear layers live."""
    structs = (UnitStruct * (max(units, default=0) + 1))()
    for expert, (gate_up, down) in units.items():
        assert gate_up.gated and not down.gated, "gate and up lie side by side, down does not"
        assert gate_up.in_features == down.out_features
        assert gate_up.out_features == 2 * down.in_features
        structs[expert] = UnitStruct(gate_up.handle, down.handle)
    return structs


class NativeCombine:
    """What experts answered, added up and into the residual stream."""

    def __init__(self, library: Library) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._combine: Any = library.bind(
            "tk_combine", None, pointer, number, ctypes.c_float, pointer
        )

    def __call__(
        self,
        hidden: Tensor,
        cells: Tensor,
        weights: Tensor | None,
        shared: Tensor | None,
        scale: float,
    ) -> None:
        """hidden [M, H] float32 += scale · (Σ_j weights[:, j] · cells[:, j] + shared), in place."""
        branch = branch_struct(cells, weights, shared, hidden.shape)
        self._combine(ctypes.byref(branch), hidden.shape[0], scale, hidden.data_ptr())


def branch_struct(
    cells: Tensor, weights: Tensor | None, shared: Tensor | None, shape: torch.Size
) -> BranchStruct:
    """cells [M·k, H] float32 or bfloat16, weights [M, k], shared [M, H] float32; `shape` is M, H.
    Without weights k is 1. The arguments must outlive the struct.
    """
    rows, size = shape
    k = 1 if weights is None else weights.shape[1]
    assert cells.is_contiguous() and cells.numel() == rows * k * size
    assert weights is None or (weights.shape[0] == rows and weights.is_contiguous())
    assert shared is None or (shared.shape == shape and shared.is_contiguous())
    return BranchStruct(
        cells.data_ptr(),
        None if weights is None else weights.data_ptr(),
        None if shared is None else shared.data_ptr(),
        ROW_TYPES["bfloat16" if cells.dtype == torch.bfloat16 else "float32"],
        k,
        size,
    )
