"""`python -m prefill_worker --config FILE --pool NAME --id prefill-0 --run-dir DIR`."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from prefill_worker.fetch_or_compute import FetchOrCompute
from prefill_worker.intake import Intake
from prefill_worker.loop import PrefillLoop
from prefill_worker.service import PrefillService
from transport.kv.links import make_links
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import (
    add_KvHolderServicer_to_server,
    add_PrefillWorkerServicer_to_server,
)
from triptych.engine.thread import StepThread
from triptych.obs.metrics import WorkerMetrics
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts
from triptych.worker.fetch import Fetcher
from triptych.worker.kv_holder import KvHolder
from triptych.worker.peers import PeerBook
from triptych.worker.process import RoleParts, run_worker


def build_role(
    args: WorkerArgs,
    parts: EngineParts,
    metrics: WorkerMetrics,
    fail: Callable[[BaseException], None],
) -> RoleParts:
    transport = args.config.transport
    holder = KvHolder(args, parts)
    service = PrefillService(args, parts, metrics)
    loop = PrefillLoop(
        parts.scheduler,
        parts.runner,
        service.emit,
        metrics,
        announce_layers=transport.announce_layers,
    )
    thread = StepThread(loop.step, fail, "prefill-loop")
    links = make_links(transport.links, args.run_dir, host=args.kv_host)
    homes = PeerBook(links, parts.region, parts.layout_text, transport.require)
    fetcher = Fetcher(
        parts.region, parts.layout, parts.model.config.hidden_size, parts.ledger, metrics
    )
    choice = FetchOrCompute(metrics.pace, parts.scheduler.chunk_tokens)
    service.connect(Intake(parts.pool, homes, fetcher, loop, thread, choice))

    def load() -> pb.WorkerLoad:
        return pb.WorkerLoad(
            running=parts.scheduler.num_running,
            waiting=parts.scheduler.num_waiting,
            queued_tokens=parts.scheduler.queued_tokens,
            free_blocks=parts.pool.available,
        )

    async def close() -> None:
        await homes.close()
        holder.close()

    def register(server: grpc.aio.Server) -> None:
        add_PrefillWorkerServicer_to_server(service, server)
        add_KvHolderServicer_to_server(holder, server)

    return RoleParts(
        thread=thread,
        register=register,
        service_name="triptych.PrefillWorker",
        load=load,
        tend=homes.sweep,
        close=close,
    )


if __name__ == "__main__":
    run_worker("prefill", build_role)
