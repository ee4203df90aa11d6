"""The attention side (A): calls go out to workers as shards, cells come back, each exactly once.

A call is what one micro-batch wants of one layer; it runs in a lane, one call per lane at a time. A
cell is one row through one expert. The loop of A is: `begin` for a lane, other lanes' work, `wait`,
read `cells`, `end`. Whatever fails (an answer that refuses, an abandoned shard, a dropped worker)
makes cells unsent again; `wait` sends them to other replicas by itself and tells of those that have
none left (`Wake.parked`), which the caller computes by itself (`missing`, `fill`) or tries again
later (`issue`).
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import time
import weakref
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from transport.rows.base import RowsUnusable
from transport.rows.library import (
    CELL_TYPES,
    ROW_TYPES,
    ExchangeStruct,
    OverdueStruct,
    RowsLibrary,
)
from transport.rows.segment import Doorbell, Segment
from transport.rows.stats import WORKER_STATS

MAX_WORKERS = 64
MAX_LANES = 8
ALL_LANES = (1 << MAX_LANES) - 1
_PARKED_SHIFT, _RUNG, _OVERDUE = 8, 1 << 16, 1 << 17
_MISUSED = -2
_CALL = struct.Struct("6q")  # CallStruct in rows_exchange_c.cpp


@dataclass(frozen=True, slots=True)
class ExchangeShape:
    """What an exchange has room for. Lanes: 8 at most. Experts: 65536 at most."""

    layers: int
    experts: int
    replicas: int  # columns of `tables`
    hidden: int
    top_k: int
    lanes: int
    max_rows: int  # of a call
    row_type: str = "bfloat16"
    cell_type: str = "bfloat16"
    split_rows: int = 64  # an expert with twice as many cells may be cut over its replicas


class Wake(NamedTuple):
    """Why `wait` returned; all false: the time was over."""

    done: int  # lanes whose cells are all in, a bit each, again and again until `end`
    parked: int  # lanes with cells that no worker can take now, a bit each, told once
    rung: bool  # somebody called `ring`
    overdue: bool  # some shard's deadline passed, told once of each


class Overdue(NamedTuple):
    worker: int
    shard: int
    lane: int
    age_us: int


class Exchange:
    """For one thread at a time, but for `ring`, `stats` and `counts`.

    `tables` int16 [layers, experts, replicas]: numbers of the workers that host a unit, -1 none;
    the owner writes it between calls. `counts` uint64 [layers, experts]: cells ever wanted.
    `stats` WORKER_STATS [64].
    """

    def __init__(
        self,
        library: RowsLibrary,
        shape: ExchangeShape,
        doorbell: Doorbell,
        *,
        spin_us: int = 20,
    ) -> None:
        assert 1 <= shape.lanes <= MAX_LANES and shape.experts <= 65536
        self.shape = shape
        self._library = library
        self._doorbell = doorbell  # kept: the native side rings and reads it
        units = (shape.layers, shape.experts)
        self.tables: NDArray[np.int16] = np.full((*units, shape.replicas), -1, np.int16)
        self.counts: NDArray[np.uint64] = np.zeros(units, np.uint64)
        self.stats: NDArray[np.void] = np.zeros(MAX_WORKERS, WORKER_STATS)
        self._row_types = (ROW_TYPES[shape.row_type], CELL_TYPES[shape.cell_type])
        room = ExchangeStruct(
            *units,
            *(shape.replicas, shape.hidden, shape.top_k, shape.lanes, shape.max_rows),
            *self._row_types,
            shape.split_rows,
            spin_us,
        )
        arrays = (self.tables, self.counts, self.stats)
        self._handle = ctypes.c_void_p(
            library.exchange_new(
                ctypes.byref(room), *(array.ctypes.data for array in arrays), doorbell.handle
            )
        )
        self._call_buffer = bytearray(_CALL.size)
        self._call_struct = (ctypes.c_uint8 * _CALL.size).from_buffer(self._call_buffer)
        # Several times per layer: found quickly.
        self._begin, self._wait, self._end = library.begin, library.wait, library.end
        self._free = weakref.finalize(self, _free, library, self._handle, doorbell, arrays)

    def close(self) -> None:
        """Drops every worker. Nothing may be called afterwards."""
        self._free()

    def add_worker(self, worker: int, segment: Segment) -> None:
        """A new incarnation takes the number of one that was dropped. Raises RowsUnusable."""
        assert 0 <= worker < MAX_WORKERS
        shape = segment.shape
        if (ROW_TYPES[shape.row_type], CELL_TYPES[shape.cell_type]) != self._row_types:
            raise RowsUnusable("the segment is of other types than the exchange")
        if shape.hidden != self.shape.hidden:
            raise RowsUnusable(f"rows of {shape.hidden} columns, {self.shape.hidden} wanted")
        self.drop_worker(worker)
        error = self._library.add_worker(
            *(self._handle, worker, segment.fd, ctypes.byref(shape.struct())),
            *(segment.peer_bell, segment.a_inc, segment.f_inc),
        )
        if error:
            raise RowsUnusable(f"the segment cannot be mapped: {os.strerror(error)}")

    def drop_worker(self, worker: int) -> bool:
        """Gives up what is pending there and unmaps its segment: nothing that it writes from now
        on can be read here. False: there was none.
        """
        return bool(self._library.drop_worker(self._handle, worker))

    def set_deadline(self, worker: int, deadline_us: int) -> None:
        """For shards sent from now on; a second until set. Ignored where no such worker is."""
        self._library.set_deadline(self._handle, worker, deadline_us)

    def begin(self, lane: int, layer: int, x: int, rows: int, ids: int | None, k: int) -> int:
        """Sends a call. `x`: address of float32 [rows, hidden], which must stay there unchanged
        until `end`: what has to be sent a second time is read a second time. `ids`: of int32
        [rows, k], free again on return; None, k 1: a dense layer, whose cells are float32.

        Returns how many cells nobody can take now. Raises ValueError on an id out of range.
        """
        _CALL.pack_into(self._call_buffer, 0, lane, layer, x, rows, ids or 0, k)
        parked: int = self._begin(self._handle, self._call_struct)
        if parked < 0:
            # The native side has looked; asking twice here would cost what a shard costs there.
            assert parked != _MISUSED, f"no such call: {lane=} {layer=} {rows=} {k=}"
            raise ValueError(f"expert ids of layer {layer} must be below {self.shape.experts}")
        return parked

    def issue(self, lane: int, *, forgiving: bool = True) -> int:
        """Tries again for all unsent cells: after tables changed, or some time after a refusal.

        Workers that failed this call are asked again only if `forgiving`, and where nobody else
        is. Returns how many cells nobody can take now.
        """
        return int(self._library.issue(self._handle, lane, forgiving))

    def wait(self, timeout_us: int, lanes: int = ALL_LANES) -> Wake:
        """Until there is something to tell, `timeout_us` (half an hour) at most; 0: just look."""
        return _wake_of(self._wait(self._handle, lanes, timeout_us))

    def overdue(self, now_us: int | None = None) -> list[Overdue]:
        """Pending shards past their deadline. `now_us`: of the monotonic clock."""
        now = time.monotonic_ns() // 1000 if now_us is None else now_us
        found = (OverdueStruct * 256)()
        count = self._library.overdue(self._handle, now, found, len(found))
        return [Overdue(one.worker, one.shard, one.lane, one.age_us) for one in found[:count]]

    def abandon(self, shard: int) -> bool:
        """Moves its cells elsewhere. Its slot stays lost until the late answer comes or the worker
        is dropped. False: the shard is not pending any more.
        """
        return bool(self._library.abandon(self._handle, shard))

    def missing(self, lane: int, *, waiting: bool = False) -> NDArray[np.int32]:
        """int32 [n, 2]: (cell = row · k + j, expert) of the cells that nobody can take; with
        `waiting` of those too that wait for a slot.
        """
        rows, k = self._call(lane)
        pairs = np.empty((rows * k, 2), np.int32)
        count = self._library.missing(self._handle, lane, waiting, pairs.ctypes.data)
        return pairs[:count]

    def fill(self, lane: int, cells: NDArray[np.int32], rows: int) -> int:
        """Puts in what was computed here. `rows`: address of [n, hidden] in the call's cell type.

        Returns how many were wanted: cells that are pending or in already are left alone.
        """
        wanted = np.ascontiguousarray(cells, np.int32)
        filled: int = self._library.fill(self._handle, lane, wanted.ctypes.data, len(wanted), rows)
        assert filled >= 0, "a cell that the call does not have"
        return filled

    def cells(self, lane: int) -> int:
        """Address of [rows · k, hidden], cell row · k + j; valid until the lane's next `begin`."""
        return int(self._library.cells(self._handle, lane))

    def cells_array(self, lane: int, *, dense: bool = False) -> NDArray[np.generic]:
        """A view of `cells`: float32, or bfloat16 as uint16."""
        rows, k = self._call(lane)
        single = dense or self.shape.cell_type == "float32"
        kind = ctypes.c_float if single else ctypes.c_uint16
        flat = (kind * (rows * k * self.shape.hidden)).from_address(self.cells(lane))
        return np.ctypeslib.as_array(flat).reshape(rows * k, self.shape.hidden)

    def end(self, lane: int) -> None:
        """Closes the call, complete or not: what is still pending goes into quarantine."""
        self._end(self._handle, lane)

    def ring(self) -> None:
        """From any thread: `wait` returns."""
        self._library.ring(self._handle)

    def _call(self, lane: int) -> tuple[int, int]:
        """Rows and k."""
        shape = (ctypes.c_int32 * 2)()
        assert self._library.call_shape(self._handle, lane, shape), f"lane {lane} has no call"
        return shape[0], shape[1]


@functools.lru_cache(maxsize=256)
def _wake_of(news: int) -> Wake:
    parked = news >> _PARKED_SHIFT & ALL_LANES
    return Wake(news & ALL_LANES, parked, bool(news & _RUNG), bool(news & _OVERDUE))


def _free(library: RowsLibrary, handle: ctypes.c_void_p, *_kept: object) -> None:
    library.exchange_free(handle)
