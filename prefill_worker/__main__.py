"""`python -m prefill_worker --config FILE --pool NAME --id prefill-0 --run-dir DIR`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from prefill_worker.loop import PrefillLoop
from prefill_worker.service import PrefillService
from transport.kv.base import KvSource, LinkUnusable
from transport.kv.links import make_links
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import add_PrefillWorkerServicer_to_server
from triptych.engine.thread import StepThread
from triptych.obs.metrics import WorkerMetrics
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts
from triptych.worker.process import RoleParts, run_worker

log = logging.getLogger(__name__)


def build_role(
    args: WorkerArgs,
    parts: EngineParts,
    metrics: WorkerMetrics,
    fail: Callable[[BaseException], None],
) -> RoleParts:
    sources = serve_pool(args, parts)
    service = PrefillService(args, parts, sources, metrics)
    loop = PrefillLoop(
        parts.scheduler,
        parts.runner,
        service.emit,
        metrics,
        announce_layers=args.config.transport.announce_layers,
    )
    thread = StepThread(loop.step, fail, "prefill-loop")
    service.connect(loop, thread)

    def load() -> pb.WorkerLoad:
        return pb.WorkerLoad(
            running=parts.scheduler.num_running,
            waiting=parts.scheduler.num_waiting,
            queued_tokens=parts.scheduler.queued_tokens,
            free_blocks=parts.pool.available,
        )

    async def tend() -> None:
        """Nothing that grows old here."""

    async def close() -> None:
        for source in sources.values():
            source.close()

    return RoleParts(
        thread=thread,
        register=partial(add_PrefillWorkerServicer_to_server, service),
        service_name="triptych.PrefillWorker",
        load=load,
        tend=tend,
        close=close,
    )


def serve_pool(args: WorkerArgs, parts: EngineParts) -> dict[str, KvSource]:
    """Offers the pool over every configured link that works here; says which do not, and why."""
    sources: dict[str, KvSource] = {}
    for link in make_links(args.config.transport.links, args.run_dir, host=args.kv_host):
        try:
            sources[link.name] = link.serve(parts.region)
        except LinkUnusable as error:
            if args.config.transport.require == link.name:
                raise
            log.warning("KV link %s is not served: %s", link.name, error)
    return sources


if __name__ == "__main__":
    run_worker("prefill", build_role)
