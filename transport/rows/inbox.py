"""The worker side (F): shards of many attention processes in, one layer at a time, results out."""

from __future__ import annotations

import ctypes
import os
import struct
import weakref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transport.rows.base import RowsUnusable
from transport.rows.library import InboxStruct, RowsLibrary, ShardStruct
from transport.rows.segment import Doorbell, Segment
from transport.rows.stats import INBOX_STATS

_VIEW = struct.Struct("5q")  # BatchView in rows_inbox.h, which is Batch


@dataclass(slots=True)  # not frozen: that would cost as much as the rest of `take`
class Batch:
    """Shards of one layer, all of whose units are here. The memory is valid until the reply."""

    layer: int
    count: int  # shards
    rows: int  # of all shards
    cells: int
    shards: int  # address of Shard [count], see experts.h

    def shard(self, index: int) -> ShardStruct:
        return ShardStruct.from_address(self.shards + index * ctypes.sizeof(ShardStruct))


class Inbox:
    """One thread takes and replies; the other methods are for any thread.

    `hosted` uint8 [layers, experts]: not 0 where the unit is here; its owner writes it. Shards that
    want other units are refused before anybody sees them. `stats` INBOX_STATS [1].
    """

    def __init__(
        self,
        library: RowsLibrary,
        doorbell: Doorbell,
        *,
        layers: int,
        experts: int,
        hidden: int,
        max_cells: int = 4096,
        spin_us: int = 20,
    ) -> None:
        self._library = library
        self._doorbell = doorbell  # kept: the native side rings and reads it
        self.doorbell = doorbell
        self.hidden = hidden
        self.hosted: NDArray[np.uint8] = np.zeros((layers, experts), np.uint8)
        self.stats: NDArray[np.void] = np.zeros(1, INBOX_STATS)
        self._view = bytearray(_VIEW.size)
        self._view_at = (ctypes.c_uint8 * _VIEW.size).from_buffer(self._view)
        self._peers = iter(range(1 << 31))
        shape = InboxStruct(layers, experts, hidden, max_cells, spin_us)
        arrays = (self.hosted, self.stats)
        self._handle = ctypes.c_void_p(
            library.inbox_new(
                ctypes.byref(shape), *(array.ctypes.data for array in arrays), doorbell.handle
            )
        )
        self._take, self._reply = library.take, library.reply  # once per batch: found quickly
        self._free = weakref.finalize(self, _free, library, self._handle, doorbell, arrays)

    def close(self) -> None:
        """Nothing may be called afterwards."""
        self._free()

    def add_peer(self, segment: Segment) -> int:
        """The number to drop it by. Raises RowsUnusable when the segment cannot be used."""
        number = next(self._peers)
        error = self._library.add_peer(
            *(self._handle, number, segment.fd, ctypes.byref(segment.shape.struct())),
            *(segment.peer_bell, segment.a_inc, segment.f_inc),
        )
        if error:
            raise RowsUnusable(f"the segment cannot be mapped: {os.strerror(error)}")
        return number

    def drop_peer(self, number: int) -> None:
        """What waits of it is forgotten; what is being computed may end, for nobody."""
        self._library.drop_peer(self._handle, number)

    def take(self, timeout_us: int) -> Batch | None:
        """What is here of the layer that is due first, as soon as anything is. None: nothing came
        within `timeout_us` (half an hour at most), or `ring`. The batch before must have been
        replied to.
        """
        if not self._take(self._handle, timeout_us, self._view_at):
            return None
        return Batch(*_VIEW.unpack(self._view))

    def reply(self, batch: Batch, statuses: NDArray[np.uint8] | None = None) -> None:
        """Sends the results that lie in the shards' `out`. `statuses` [batch.count]: of
        transport.rows.stats; None: all went well.
        """
        assert statuses is None or statuses.shape == (batch.count,)
        given = None if statuses is None else ctypes.c_void_p(statuses.ctypes.data)
        self._reply(self._handle, given)

    def ring(self) -> None:
        """From any thread: `take` returns."""
        self._library.inbox_ring(self._handle)


def _free(library: RowsLibrary, handle: ctypes.c_void_p, *_kept: object) -> None:
    library.inbox_free(handle)
