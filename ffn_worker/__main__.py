"""`python -m ffn_worker --config FILE --pool NAME --id ffn-0 --run-dir DIR`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ffn_worker.doors import open_doors
from ffn_worker.hosting import Hosting
from ffn_worker.loop import FfnLoop
from ffn_worker.metrics import FfnMetrics
from ffn_worker.service import FfnService
from transport.kv.memory import available_bytes
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import add_FfnWorkerServicer_to_server
from transport.rows.inbox import Inbox
from transport.rows.links import make_links
from transport.rows.segment import Doorbell
from transport.rows.session import RowsServer
from triptych.engine.backend import choose_backend
from triptych.engine.thread import StepThread
from triptych.experts.identity import unit_identity
from triptych.experts.native_unit import native_unit
from triptych.experts.of_model import unit_map
from triptych.experts.rows import need_native, rows_library
from triptych.experts.share import first_share
from triptych.experts.unit_map import UnitMap
from triptych.experts.units import Unit
from triptych.hub import resolve_model
from triptych.launch.machine import usable_cores
from triptych.models.layers import DenseFfn
from triptych.models.units import UnitReader, open_units
from triptych.obs.metrics import WorkerMetrics
from triptych.worker.args import WorkerArgs
from triptych.worker.process import Build, Fail, RoleParts, run_helper
from triptych_kernels.cpu.experts import NativeExperts
from triptych_kernels.cpu.native import set_threads

log = logging.getLogger(__name__)

_ROOM = 0.8  # of the memory that is free, where the configuration does not say


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker has before anybody can ask it for something."""

    reader: UnitReader
    units: UnitMap
    hosted: Sequence[tuple[Unit, DenseFfn]]
    room: int  # bytes
    identity: str


def prepare(args: WorkerArgs) -> Build:
    """Reads this worker's share. Raises ModelError or ConfigError, with the remedy."""
    config = args.config
    threads = args.pool.threads or usable_cores()
    set_threads(threads)
    torch.set_num_threads(1)
    backend = choose_backend(config.dtype, config.kv.dtype, config.quant_group)
    need_native()
    path = resolve_model(config.model)
    reader = open_units(path, dtype=backend.weights, group=backend.group, packer=backend.packer)
    units = unit_map(reader.config)
    room = args.pool.unit_memory or int(_ROOM * available_bytes())
    share = first_share(config, args.pool, args.worker_id, units)
    hosted = _read_share(reader, share, room)
    identity = unit_identity(path, backend, config.experts.rows)
    return partial(build_role, args, Loaded(reader, units, hosted, room, identity))


def build_role(args: WorkerArgs, loaded: Loaded, metrics: WorkerMetrics, fail: Fail) -> RoleParts:
    library = rows_library()
    model = loaded.reader.config
    layers, experts = loaded.units.shape
    inbox = Inbox(
        library, Doorbell(library), layers=layers, experts=experts, hidden=model.hidden_size
    )
    hosting = Hosting(inbox.hosted, partial(_make_experts, model.activation))
    hosting.add(loaded.hosted)
    own = FfnMetrics(metrics.registry)
    loop = FfnLoop(inbox, hosting, own)
    thread = StepThread(loop.step, fail, "ffn-loop")
    links = make_links(args.config.experts.links, library, args.run_dir, args.kv_host)
    servers = open_doors(links, inbox, args.epoch)
    service = FfnService(
        description=_describe(args, loaded, servers),
        units=loaded.units,
        hosting=hosting,
        room=loaded.room,
        read=lambda unit: loaded.reader.read(*unit),
        wake=inbox.ring,
        thread=thread,
        metrics=own,
        domain=args.domain,
    )
    service.offer.change(add=[unit for unit, _ in loaded.hosted])

    async def close() -> None:
        for server in servers.values():
            server.close()

    async def tend() -> None:
        thread.post(own.tell)

    return RoleParts(
        thread=thread,
        register=partial(add_FfnWorkerServicer_to_server, service),
        service_name="triptych.FfnWorker",
        load=service.load,
        tend=tend,
        close=close,
        leave=service.leave,
    )


def _make_experts(activation: str, ffns: Mapping[int, DenseFfn]) -> NativeExperts:
    units = {expert: native_unit(ffn) for expert, ffn in ffns.items()}
    return NativeExperts(need_native(), units, activation)


def _read_share(
    reader: UnitReader, share: Sequence[Unit], room: int
) -> list[tuple[Unit, DenseFfn]]:
    """As much of it as there is room for; the pool's other workers may have more."""
    hosted, taken, told = list[tuple[Unit, DenseFfn]](), 0, time.monotonic()
    for number, unit in enumerate(share):
        ffn = reader.read(*unit)
        taken += ffn.nbytes
        if taken > room:
            log.warning("room for %d of %d units; set unit_memory", number, len(share))
            break
        hosted.append((unit, ffn))
        if time.monotonic() - told > 1:
            told = time.monotonic()
            fields = {"percent": 100 * number // len(share)}
            log.info("loading units", extra={"fields": fields})
    mib = sum(ffn.nbytes for _, ffn in hosted) >> 20
    log.info("units loaded", extra={"fields": {"units": len(hosted), "mib": mib}})
    return hosted


def _describe(
    args: WorkerArgs, loaded: Loaded, servers: Mapping[str, RowsServer]
) -> pb.FfnDescription:
    links = [pb.LinkEndpoint(link=n, endpoint=server.endpoint) for n, server in servers.items()]
    return pb.FfnDescription(
        worker_id=args.worker_id,
        epoch=args.epoch,
        identity=loaded.identity,
        links=links,
    )


if __name__ == "__main__":
    run_helper("ffn", prepare)
