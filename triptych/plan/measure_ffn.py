"""How long units take, by rows and by how many different ones are wanted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from triptych.engine.backend import Backend
from triptych.experts.native_unit import native_unit
from triptych.experts.of_model import unit_map
from triptych.experts.rows import need_native
from triptych.models.units import open_units
from triptych_kernels.cpu.experts import NativeExperts
from triptych_kernels.cpu.structs import CELL, ROW_TYPES, ShardStruct

_ROWS = (16, 32, 64, 128, 256)  # through one unit
_UNITS = 16  # read at most
_TURNS, _WARM = 9, 2
_FLUSH = 64 << 20  # bytes written between turns: weights come from memory, as in a real step


@dataclass(frozen=True, slots=True)
class FfnTimes:
    rows: NDArray[np.float64]  # of one unit …
    row_seconds: NDArray[np.float64]
    experts: NDArray[np.float64]  # different units, a row each …
    expert_seconds: NDArray[np.float64]


def time_ffn(path: Path, backend: Backend) -> FfnTimes:
    """Of the first units of the model. Raises ModelError."""
    reader = open_units(path, dtype=backend.weights, group=backend.group, packer=backend.packer)
    units = list(unit_map(reader.config))[:_UNITS]
    ffns = {number: native_unit(reader.read(*unit)) for number, unit in enumerate(units)}
    experts = NativeExperts(need_native(), ffns, reader.config.activation)
    hidden = reader.config.hidden_size
    counts = sorted({1, 2, len(ffns) // 2, len(ffns)} - {0})
    return FfnTimes(
        np.array(_ROWS, float),
        np.array([_time(experts, hidden, np.zeros(rows, int)) for rows in _ROWS]),
        np.array(counts, float),
        np.array([_time(experts, hidden, np.arange(count)) for count in counts]),
    )


def _time(experts: NativeExperts, hidden: int, wanted: NDArray[np.int64]) -> float:
    """Median seconds for one row after another, row i through unit wanted[i] (ascending)."""
    count = len(wanted)
    rows = torch.randn(count, hidden).to(torch.bfloat16)
    out = torch.empty(count, hidden)
    cells = np.zeros(count, CELL)
    cells["row"], cells["expert"] = np.arange(count), wanted
    shard = ShardStruct(
        rows.data_ptr(), None, cells.ctypes.data, None, out.data_ptr(),
        ROW_TYPES["bfloat16"], count, count, ROW_TYPES["float32"],
    )  # fmt: skip
    shards, flush, took = (ShardStruct * 1)(shard), np.zeros(_FLUSH, np.uint8), []
    for _ in range(_TURNS):
        flush += 1
        began = time.perf_counter()
        experts.run(shards, 1)
        took.append(time.perf_counter() - began)
    return median(took[_WARM:])
