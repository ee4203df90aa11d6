"""The functions of the native row exchange, and the structs that Python shares with them.

This package knows nothing of the library's home: whoever has loaded it hands in its `bind`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Bind = Callable[..., Callable[..., Any]]

ROW_TYPES = {"float32": 0, "bfloat16": 1, "int8": 2, "fp8": 3}  # RowType in experts.h
CELL_TYPES = {"float32": 0, "bfloat16": 1}

_int32, _int64, _uint32, _uint64 = (
    ctypes.c_int32,
    ctypes.c_int64,
    ctypes.c_uint32,
    ctypes.c_uint64,
)
_pointer = ctypes.c_void_p


class SegmentStruct(ctypes.Structure):
    """SegmentShape in rows_segment.h."""

    _fields_ = [
        (name, _int32)
        for name in ("slots", "slot_rows", "slot_cells", "hidden", "row_type", "cell_type")
    ]


class ExchangeStruct(ctypes.Structure):
    """ExchangeShape in rows_exchange.h."""

    _fields_ = [
        (name, _int32)
        for name in (
            *("layers", "experts", "replicas", "hidden", "top_k", "lanes", "max_rows"),
            *("row_type", "cell_type", "split_rows", "spin_us"),
        )
    ]


class InboxStruct(ctypes.Structure):
    """InboxShape in rows_inbox.h."""

    _fields_ = [(name, _int32) for name in ("layers", "experts", "hidden", "max_cells", "spin_us")]


class OverdueStruct(ctypes.Structure):
    """Overdue in rows_exchange.h."""

    _fields_ = [("worker", _int32), ("lane", _int32), ("shard", _int64), ("age_us", _int64)]


class ShardStruct(ctypes.Structure):
    """Shard in experts.h."""

    _fields_ = [
        *((name, _pointer) for name in ("rows", "scales", "cells", "places", "out")),
        *((name, _int32) for name in ("row_type", "num_rows", "num_cells", "out_type")),
    ]


@dataclass(frozen=True, slots=True)
class SegmentShape:
    """What both sides agree on before there is a segment."""

    hidden: int
    row_type: str = "bfloat16"  # of ROW_TYPES: how rows travel out
    cell_type: str = "bfloat16"  # of CELL_TYPES: how a mixture's cells come back
    slots: int = 16  # shards that A may have at F at once, abandoned ones included
    slot_rows: int = 256  # of a shard, at most
    slot_cells: int = 1024  # of a shard, at most; half as many float32 ones if cells are bfloat16

    def struct(self) -> SegmentStruct:
        return SegmentStruct(
            self.slots,
            self.slot_rows,
            self.slot_cells,
            self.hidden,
            ROW_TYPES[self.row_type],
            CELL_TYPES[self.cell_type],
        )


class RowsLibrary:
    """The row exchange of one native library. `bind(name, result, *arguments)` finds a function.

    Functions that are called for every layer have no declared arguments: converting those takes
    longer than the functions. Pass them ctypes objects, or whole numbers below 2^31. Those that
    never wait keep the GIL: to give it away in the middle of a round trip may take milliseconds.
    """

    def __init__(self, bind: Bind) -> None:
        p, i, i64, u32, u64 = _pointer, _int32, _int64, _uint32, _uint64
        self.segment_bytes = bind("tk_rows_segment_bytes", u64, p)
        self.segment_header = bind("tk_rows_segment_header", None, p, p)

        self.bell_new = bind("tk_rows_bell_new", p)
        self.bell_free = bind("tk_rows_bell_free", None, p)
        self.bell_fd = bind("tk_rows_bell_fd", i, p)
        self.bell_ring = bind("tk_rows_bell_ring", None, p)

        self.exchange_new = bind("tk_rows_exchange_new", p, p, p, p, p, p)
        self.exchange_free = bind("tk_rows_exchange_free", None, p)
        self.add_worker = bind("tk_rows_add_worker", i, p, i, i, p, i, u64, u64)
        self.drop_worker = bind("tk_rows_drop_worker", i, p, i)
        self.set_deadline = bind("tk_rows_set_deadline", i, p, i, i64)
        self.begin = _keeping_gil(bind("tk_rows_begin", i), i)
        self.call_shape = bind("tk_rows_call_shape", i, p, i, p)
        self.issue = bind("tk_rows_issue", i, p, i, i)
        self.wait = bind("tk_rows_wait", i)
        self.overdue = bind("tk_rows_overdue", i, p, i64, p, i)
        self.abandon = bind("tk_rows_abandon", i, p, u32)
        self.missing = bind("tk_rows_missing", i, p, i, i, p)
        self.fill = bind("tk_rows_fill", i, p, i, p, i, p)
        self.cells = bind("tk_rows_cells", p, p, i)
        self.end = _keeping_gil(bind("tk_rows_end", None), None)
        self.ring = bind("tk_rows_ring", None, p)

        self.inbox_new = bind("tk_rows_inbox_new", p, p, p, p, p)
        self.inbox_free = bind("tk_rows_inbox_free", None, p)
        self.add_peer = bind("tk_rows_add_peer", i, p, i, i, p, i, u64, u64)
        self.drop_peer = bind("tk_rows_drop_peer", None, p, i)
        self.take = bind("tk_rows_take", i)
        self.reply = _keeping_gil(bind("tk_rows_reply", None), None)
        self.inbox_ring = bind("tk_rows_inbox_ring", None, p)
        self.echo = _keeping_gil(bind("tk_rows_echo", None), None)

        self.pump_new = bind("tk_rows_pump_new", p, i, p, i, p, p, i)
        self.pump_free = bind("tk_rows_pump_free", None, p)
        self.pump_stop = bind("tk_rows_pump_stop", None, p)
        self.requests_out = bind("tk_rows_pump_requests_out", i, p)
        self.results_out = bind("tk_rows_pump_results_out", i, p)
        self.requests_in = bind("tk_rows_pump_requests_in", i, p)
        self.results_in = bind("tk_rows_pump_results_in", i, p)


def _keeping_gil(function: Any, result: Any) -> Callable[..., Any]:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return ctypes.PYFUNCTYPE(result)(address)
