"""A segment of the row exchange, read and written by hand: workers and attention processes that do
what no sound one would do.

The layout is told here a second time, on purpose: rows_segment.h must not change unnoticed.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from transport.rows.library import CELL_TYPES, ROW_TYPES, RowsLibrary, SegmentShape
from transport.rows.segment import Doorbell, Segment, create_memory, segment_bytes
from triptych.testing.row_workers import from_wire, integer_expert, to_wire

MAGIC = 0x31575254
REQUEST = np.dtype(
    [
        ("magic", np.uint32),
        ("layer", np.uint16),
        ("lane", np.uint8),
        ("attempt", np.uint8),
        ("a_inc", np.uint64),
        ("f_inc", np.uint64),
        ("call", np.uint64),
        ("shard", np.uint32),
        ("num_rows", np.int32),
        ("num_cells", np.int32),
        ("row_type", np.uint8),
        ("out_type", np.uint8),
        ("reserved", np.uint16),
        ("deadline_us", np.uint32),
        ("crc", np.uint32),
        ("posted_us", np.int64),
    ]
)
RESULT = np.dtype(
    [
        ("magic", np.uint32),
        ("status", np.uint8),
        ("attempt", np.uint8),
        ("out_type", np.uint8),
        ("reserved", np.uint8),
        ("call", np.uint64),
        ("f_inc", np.uint64),
        ("num_cells", np.int32),
        ("queue_us", np.uint32),
        ("compute_us", np.uint32),
        ("crc", np.uint32),
        ("reserved_too", np.uint32, (5,)),
        ("shard", np.uint32),
    ]
)
CELL = np.dtype([("row", np.uint16), ("expert", np.uint16)])
_WIDTH = {"float32": 4, "bfloat16": 2, "int8": 1, "fp8": 1}
_POISON = 0xFF  # NaN as float32 and as bfloat16


def make_pair(
    library: RowsLibrary,
    shape: SegmentShape,
    a_bell: Doorbell,
    f_bell: Doorbell,
    *,
    a_inc: int = 1,
    f_inc: int = 1,
) -> tuple[Segment, Segment]:
    """The same memory as A and as F know it."""
    memory = create_memory(library, shape)
    return (
        Segment(memory, shape, a_inc, f_inc, os.dup(f_bell.fd)),
        Segment(os.dup(memory), shape, a_inc, f_inc, os.dup(a_bell.fd)),
    )


class HandSegment:
    """All parts of a segment as numpy views, [slots, …]."""

    def __init__(self, library: RowsLibrary, fd: int, shape: SegmentShape) -> None:
        self.shape = shape
        self._map = mmap.mmap(fd, segment_bytes(library, shape))
        self._bytes = np.frombuffer(self._map, np.uint8)
        self.ring_size = 4
        while self.ring_size < 2 * shape.slots:
            self.ring_size *= 2
        ring_bytes = _up(64 + 4 * self.ring_size, 64)
        self.requests = Ring(self._bytes[4096:], self.ring_size)
        self.answers = Ring(self._bytes[4096 + ring_bytes :], self.ring_size)

        hidden, row_type = shape.hidden, shape.row_type
        scales = {"int8": 1, "fp8": -(-hidden // 128)}.get(row_type, 0)
        sizes = [
            64,
            shape.slot_cells * 4,
            shape.slot_rows * hidden * _WIDTH[row_type],
            shape.slot_rows * scales * 4,
            64,
            shape.slot_cells * hidden * _WIDTH[shape.cell_type],
        ]
        first = _up(4096 + 2 * ring_bytes, 4096)
        stride = sum(_up(size, 64) for size in sizes)
        slots = self._bytes[first : first + stride * shape.slots].reshape(shape.slots, stride)
        parts, at = [], 0
        for size in sizes:
            parts.append(slots[:, at : at + size])
            at += _up(size, 64)
        request, cells, rows, row_scales, result, out = parts
        self.request = request.view(REQUEST)[:, 0]
        self.result = result.view(RESULT)[:, 0]
        self.cells = cells.view(CELL)
        self.rows = rows[:, : sizes[2]]  # bytes
        self.scales = row_scales.view(np.float32)
        self.out = out  # bytes

    def row_values(self, slot: int) -> NDArray[np.float32]:
        head = self.request[slot]
        kind = np.float32 if head["row_type"] == 0 else np.uint16
        rows = self.rows[slot].view(kind).reshape(-1, self.shape.hidden)
        return from_wire(rows[: head["num_rows"]])


class Ring:
    def __init__(self, memory: NDArray[np.uint8], size: int) -> None:
        words = memory[: 64 + 4 * size].view(np.uint32)
        self.tail, self.entries = words[:1], words[16:]
        self.seen = 0

    def push(self, slot: int) -> None:
        self.entries[int(self.tail[0]) % len(self.entries)] = slot
        self.tail[0] += 1

    def pop(self) -> int | None:
        if self.seen == int(self.tail[0]):
            return None
        self.seen += 1
        return int(self.entries[(self.seen - 1) % len(self.entries)])


@dataclass(eq=False)
class HandShard:
    """A request as the worker found it."""

    slot: int
    head: NDArray[np.void]  # REQUEST [1]
    cells: NDArray[np.void]  # CELL [num_cells]
    rows: NDArray[np.float32]
    answered: bool = False


@dataclass
class HandWorker:
    """F by hand. Fails when A hands out a slot that was not answered."""

    memory: HandSegment
    f_inc: int
    shards: list[HandShard] = field(default_factory=list)

    def collect(self) -> list[HandShard]:
        """New requests; their slots' results are spoilt at once."""
        new = []
        while (slot := self.memory.requests.pop()) is not None:
            assert all(s.answered for s in self.shards if s.slot == slot), "a slot in use again"
            head = self.memory.request[slot : slot + 1].copy()
            cells = self.memory.cells[slot][: int(head["num_cells"][0])].copy()
            new.append(HandShard(slot, head, cells, self.memory.row_values(slot).copy()))
            self.memory.out[slot] = _POISON
        self.shards = [shard for shard in self.shards if not shard.answered] + new
        return new

    def answer(self, asked: HandShard, status: int = 0, /, **otherwise: int) -> None:
        """`otherwise`: fields of the result that are wrong."""
        if status == 0:
            self.write_cells(asked)
        self.write_head(asked, status, **otherwise)
        self.memory.answers.push(asked.slot)
        asked.answered = True

    def write_cells(self, shard: HandShard) -> None:
        layer, experts = int(shard.head["layer"][0]), shard.cells["expert"].astype(np.int64)
        cells = integer_expert(layer, experts, shard.rows[shard.cells["row"]])
        if shard.head["out_type"][0] == CELL_TYPES["bfloat16"]:
            cells = to_wire(cells)  # type: ignore[assignment]
        self.memory.out[shard.slot][: cells.nbytes] = cells.reshape(-1).view(np.uint8)

    def write_head(self, asked: HandShard, status: int, /, **otherwise: int) -> None:
        head = np.zeros(1, RESULT)
        head["magic"], head["status"], head["f_inc"] = MAGIC, status, self.f_inc
        for name in ("attempt", "out_type", "call", "shard"):
            head[name] = asked.head[name]
        head["num_cells"] = len(asked.cells) if status == 0 else 0
        for name, value in otherwise.items():
            head[name] = value
        if "crc" not in otherwise:
            head["crc"] = crc32c(head.tobytes())
        self.memory.result[asked.slot] = head[0]

    def again(self, slot: int) -> None:
        """Announces a slot that was announced before, or never used."""
        self.memory.answers.push(slot)

    def spoil(self, slots: list[int] | None = None) -> None:
        """Writes NaN into the results of these slots; None: of all that wait for no answer."""
        waiting = {shard.slot for shard in self.shards if not shard.answered}
        everyone = range(self.memory.shape.slots)
        for slot in [s for s in everyone if s not in waiting] if slots is None else slots:
            self.memory.out[slot] = _POISON


class HandAttention:
    """A by hand: posts requests that are right unless told otherwise."""

    def __init__(self, memory: HandSegment, a_inc: int, f_inc: int) -> None:
        self.memory = memory
        self._incs = (a_inc, f_inc)
        self._shards = 0

    def post(
        self,
        slot: int,
        cells: list[tuple[int, int]],
        *,
        rows: int = 1,
        layer: int = 0,
        crc: int | None = None,
        **otherwise: int,
    ) -> int:
        """A shard of (row, expert) cells; `otherwise`: other fields of the header. Its number."""
        self._shards += 1
        head = np.zeros(1, REQUEST)
        head["magic"], head["layer"], head["call"] = MAGIC, layer, self._shards
        head["a_inc"], head["f_inc"] = self._incs
        head["shard"], head["num_rows"], head["num_cells"] = self._shards, rows, len(cells)
        head["row_type"] = ROW_TYPES[self.memory.shape.row_type]
        head["out_type"] = CELL_TYPES[self.memory.shape.cell_type]
        head["deadline_us"], head["posted_us"] = 1 << 31, 1 << 62
        for name, value in otherwise.items():
            head[name] = value
        wanted = np.array(cells, CELL)
        self.memory.cells[slot][: len(cells)] = wanted
        sealed = head.copy()
        sealed["crc"], sealed["posted_us"] = 0, 0
        head["crc"] = crc32c(sealed.tobytes() + wanted.tobytes()) if crc is None else crc
        self.memory.request[slot] = head[0]
        self.memory.requests.push(slot)
        return self._shards

    def answer_of(self, slot: int) -> NDArray[np.void]:
        return self.memory.result[slot : slot + 1].copy()


def crc32c(data: bytes) -> int:
    """Castagnoli's, without the last inversion."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def _crc_of_byte(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_crc_of_byte(value) for value in range(256)]


def _up(size: int, to: int) -> int:
    return -(-size // to) * to
