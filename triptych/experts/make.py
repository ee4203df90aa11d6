"""A home's side of the FFN pool, from a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transport.rows.exchange import Exchange, ExchangeShape
from transport.rows.hello import Offer
from transport.rows.library import SegmentShape
from transport.rows.links import make_links
from transport.rows.segment import Doorbell
from triptych.config import ExpertsConfig
from triptych.engine.backend import Backend
from triptych.experts.home import HomeUnits
from triptych.experts.identity import unit_identity
from triptych.experts.native_unit import NativeUnit
from triptych.experts.of_model import unit_map
from triptych.experts.patience import Patience
from triptych.experts.pool import FfnPool
from triptych.experts.remote import RemoteExperts
from triptych.experts.row_types import cell_type, row_type
from triptych.experts.rows import need_native, rows_library
from triptych.experts.tempo import Tempo
from triptych.experts.units import Unit
from triptych.models.units import UnitReader, open_units
from triptych_kernels.wire_rows import RowType

MAX_LANES = 4
MAX_ROWS = 1 << 16  # of a step: prompt chunks and drafts
_MUSTER_S = 20.0  # how long the first rows of all may wait until the pool hosts everything
_COPIES = 8  # of a unit that dispatch chooses among; more workers may host it


@dataclass(frozen=True, slots=True)
class PoolParts:
    """What a home with distant experts is made of, before it knows any FFN worker."""

    experts: RemoteExperts
    exchange: Exchange
    doorbell: Doorbell
    segment: SegmentShape
    identity: str

    def pool(
        self, settings: ExpertsConfig, *, worker_id: str, epoch: int, run_dir: Path, host: str
    ) -> FfnPool:
        """Its connections, which begin when the router names workers."""
        return FfnPool(
            self.experts,
            make_links(settings.links, rows_library(), run_dir, host),
            Offer(self.segment, epoch, {"worker_id": worker_id}),
            self.doorbell,
            self.identity,
        )


def pool_parts(
    path: Path, settings: ExpertsConfig, backend: Backend, *, awaited: bool = True
) -> PoolParts:
    """`awaited`: there will be FFN workers; else rows are computed here until some come.

    Raises ConfigError without native kernels, ModelError for the checkpoint.
    """
    library = rows_library()
    reader = open_units(path, dtype=backend.weights, group=backend.group, packer=backend.packer)
    config, units = reader.config, unit_map(reader.config)
    rows = row_type(settings.rows, backend.weights)
    cells = cell_type(backend.weights, dense=False)
    shape = ExchangeShape(
        layers=config.num_layers,
        experts=units.width,
        replicas=_COPIES,
        hidden=config.hidden_size,
        top_k=1 if config.moe is None else config.moe.routing.top_k,
        lanes=MAX_LANES,
        max_rows=MAX_ROWS,
        row_type=rows,
        cell_type=cells,
    )
    doorbell = Doorbell(library)
    exchange = Exchange(library, shape, doorbell)
    here = cell_type(backend.weights, dense=config.moe is None)
    experts = RemoteExperts(
        exchange,
        units,
        HomeUnits(partial(_load, reader, rows, here), settings.home_memory),
        Tempo(settings.micro_batches, MAX_LANES),
        Patience(settings.min_deadline_ms * 1e3),
        muster_s=_MUSTER_S if awaited else 0.0,
    )
    segment = SegmentShape(
        slots=settings.slots,
        slot_rows=settings.slot_rows,
        slot_cells=settings.slot_rows,
        hidden=config.hidden_size,
        row_type=rows,
        cell_type=cells,
    )
    return PoolParts(
        experts, exchange, doorbell, segment, unit_identity(path, backend, settings.rows)
    )


def _load(reader: UnitReader, rows: RowType, cells: RowType, unit: Unit) -> NativeUnit:
    """A unit for this home itself."""
    activation = reader.config.activation
    return NativeUnit(need_native(), reader.read(*unit), activation, row_type=rows, cell_type=cells)
