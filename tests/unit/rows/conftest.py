"""An exchange and workers by hand that share its segments, all on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from transport.rows.exchange import Exchange, ExchangeShape
from transport.rows.library import RowsLibrary, SegmentShape
from transport.rows.segment import Doorbell
from triptych.testing.row_workers import EXPERTS, LAYERS, integer_expert
from triptych.testing.rows_by_hand import HandSegment, HandWorker, make_pair
from triptych_kernels.cpu.native import native

HIDDEN = 24  # not a multiple of a vector


@pytest.fixture(scope="session")
def library() -> RowsLibrary:
    found = native()
    if found is None:
        pytest.skip("no native library can be compiled here")
    return RowsLibrary(found.bind)


@dataclass
class Side:
    """A, with every worker that it ever had."""

    library: RowsLibrary
    shape: SegmentShape
    exchange: Exchange
    bell: Doorbell
    owned: ExitStack
    workers: dict[int, HandWorker] = field(default_factory=dict)
    asked: dict[int, tuple[int, NDArray[np.float32], NDArray[np.int32] | None]] = field(
        default_factory=dict
    )

    def add_worker(self, number: int, *, f_inc: int = 1) -> HandWorker:
        segment, mirror = make_pair(
            self.library, self.shape, self.bell, self.bell, a_inc=7, f_inc=f_inc
        )
        self.exchange.add_worker(number, segment)
        self.workers[number] = HandWorker(HandSegment(self.library, mirror.fd, self.shape), f_inc)
        segment.close()
        mirror.close()
        return self.workers[number]

    def host(self, *workers: int) -> None:
        """Every unit lives on all of these, and nowhere else."""
        self.exchange.tables[:] = -1
        self.exchange.tables[:, :, : len(workers)] = workers

    def begin(
        self, ids: list[list[int]] | None, *, rows: int = 0, lane: int = 0, layer: int = 1
    ) -> int:
        """Rows of small whole numbers. `ids` None: `rows` rows of a dense layer."""
        chosen = None if ids is None else np.array(ids, np.int32).reshape(len(ids), -1)
        count, k = (rows, 1) if chosen is None else chosen.shape
        x = (np.arange(count * HIDDEN).reshape(count, HIDDEN) % 31 + lane).astype(np.float32)
        self.asked[lane] = (layer, x, chosen)
        address = None if chosen is None else chosen.ctypes.data
        return self.exchange.begin(lane, layer, x.ctypes.data, count, address, k)

    def expected(self, lane: int = 0) -> NDArray[np.float32]:
        layer, x, ids = self.asked[lane]
        experts = np.zeros((len(x), 1), np.int64) if ids is None else ids.astype(np.int64)
        return integer_expert(layer, experts.reshape(-1), np.repeat(x, experts.shape[1], axis=0))

    def check_cells(self, lane: int = 0) -> None:
        _, _, ids = self.asked[lane]
        cells = self.exchange.cells_array(lane, dense=ids is None)
        if cells.dtype == np.uint16:
            cells = (cells.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(cells, self.expected(lane))

    def stat(self, worker: int, name: str) -> int:
        return int(self.exchange.stats[worker][name])


MakeSide = Callable[..., Side]


@pytest.fixture
def make_side(library: RowsLibrary) -> Iterator[MakeSide]:
    with ExitStack() as owned:

        def make(
            *,
            workers: int = 2,
            row_type: str = "float32",
            cell_type: str = "float32",
            slots: int = 4,
            slot_rows: int = 16,
            slot_cells: int = 32,
            lanes: int = 3,
            split_rows: int = 64,
        ) -> Side:
            bell = owned.enter_context(closing(Doorbell(library)))
            shape = ExchangeShape(
                *(LAYERS, EXPERTS, 4, HIDDEN, 8, lanes, 256),
                row_type=row_type,
                cell_type=cell_type,
                split_rows=split_rows,
            )
            exchange = owned.enter_context(closing(Exchange(library, shape, bell)))
            segment = SegmentShape(HIDDEN, row_type, cell_type, slots, slot_rows, slot_cells)
            side = Side(library, segment, exchange, bell, owned)
            for number in range(workers):
                side.add_worker(number)
            side.host(*range(workers))
            return side

        yield make
