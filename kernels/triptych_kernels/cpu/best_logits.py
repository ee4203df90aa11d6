"""The likeliest tokens of rows of logits, natively: the twin of `triptych_kernels.best_logits`."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from triptych_kernels import best_logits as reference
from triptych_kernels.best_logits import BestLogits, FindBest, FindLeaders, Leaders, NoisyRow
from triptych_kernels.cpu.native import Library, native
from triptych_kernels.sampling import inverse_temperature

# `TkBestDraw` of best_logits.cpp: seed, position, 1/temperature, unused.
_DRAW = struct.Struct("=QQfi")
_MASK64 = (1 << 64) - 1


@functools.cache
def best_find_best() -> FindBest:
    """The native function where there is one, the torch reference elsewhere."""
    library = native()
    return reference.best_logits if library is None else NativeBestLogits(library)


@functools.cache
def best_find_leaders() -> FindLeaders:
    library = native()
    return reference.leaders if library is None else NativeBestLogits(library).leaders


class NativeBestLogits:
    """Equal values in the same order; of equal ones the lowest column comes first."""

    def __init__(self, library: Library) -> None:
        int32, pointer = ctypes.c_int, ctypes.c_void_p
        self._leaders = library.bind(
            "tk_best_draws", None, pointer, pointer, pointer, int32, int32, int32, pointer, pointer
        )
        self._find = library.bind(
            "tk_best_logits", None, pointer, int32, int32, int32, pointer, pointer, pointer
        )

    def __call__(self, logits: Tensor, count: int) -> BestLogits:
        assert logits.dtype == torch.float32 and logits.is_cpu, "logits are float32 on the CPU"
        logits = logits.contiguous()
        rows, columns = logits.shape
        values = torch.empty(rows, count)
        places = torch.empty(rows, count, dtype=torch.int64)
        log_sums = torch.empty(rows)
        self._find(
            logits.data_ptr(),
            rows,
            columns,
            count,
            values.data_ptr(),
            places.data_ptr(),
            log_sums.data_ptr(),
        )
        return BestLogits(values, places, log_sums)

    def leaders(
        self, logits: Tensor, token_ids: Tensor, draws: Sequence[NoisyRow], count: int
    ) -> Leaders:
        assert logits.dtype == torch.float32 and logits.is_cpu, "logits are float32 on the CPU"
        assert token_ids.dtype == torch.int64 and token_ids.is_contiguous(), "ids are int64"
        logits = logits.contiguous()
        rows, columns = logits.shape
        scores = torch.empty(rows, count)
        places = torch.empty(rows, count, dtype=torch.int64)
        self._leaders(
            logits.data_ptr(),
            token_ids.data_ptr(),
            b"".join(
                _DRAW.pack(seed & _MASK64, position, inverse_temperature(temperature), 0)
                for seed, position, temperature in draws
            ),
            rows,
            columns,
            count,
            scores.data_ptr(),
            places.data_ptr(),
        )
        return Leaders(scores, places)
