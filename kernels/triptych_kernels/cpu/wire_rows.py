"""Rows as they travel, natively: the twin of `triptych_kernels.wire_rows`, equal to the bit."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from triptych_kernels.cpu.native import Library
from triptych_kernels.cpu.structs import ROW_TYPES
from triptych_kernels.wire_rows import RowType, empty_rows


class NativeWireRows:
    def __init__(self, library: Library) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._quantise: Any = library.bind(
            "tk_quantise_rows", None, pointer, *[number] * 3, pointer, pointer
        )

    def quantise(self, x: Tensor, row_type: RowType) -> tuple[Tensor, Tensor | None]:
        """See `triptych_kernels.wire_rows.quantise_rows`."""
        out, scales = empty_rows(x.shape, row_type)
        self.quantise_into(
            x, row_type, out.data_ptr(), None if scales is None else scales.data_ptr()
        )
        return out, scales

    def quantise_into(
        self, x: Tensor, row_type: RowType, out: int, scales: int | None = None
    ) -> None:
        """The same to addresses with room for it."""
        assert x.dtype == torch.float32 and x.is_contiguous()
        self._quantise(x.data_ptr(), *x.shape, ROW_TYPES[row_type], out, scales)
