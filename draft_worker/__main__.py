"""`python -m draft_worker --config FILE --pool NAME --id draft-0 --run-dir DIR`."""

from __future__ import annotations

from functools import partial

from draft_worker.loop import DraftLoop
from draft_worker.service import DraftService
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import add_DraftWorkerServicer_to_server
from triptych.drafters.contained import Contained
from triptych.drafters.make import config_hash, make_drafter, target_identity
from triptych.engine.thread import StepThread
from triptych.hub import resolve_model
from triptych.obs.metrics import WorkerMetrics
from triptych.obs.speculation import DrafterMetrics
from triptych.worker.args import WorkerArgs
from triptych.worker.process import Build, Fail, RoleParts, run_helper

_ANY_TOKEN = 1 << 32  # decode workers know their vocabulary and cut what is beyond


def prepare(args: WorkerArgs) -> Build:
    """Raises ModelError when the target's checkpoint is not here: it is what drafts are for."""
    target = target_identity(args.config.served_name, resolve_model(args.config.model))
    return partial(build_role, args, target)


def build_role(args: WorkerArgs, target: str, metrics: WorkerMetrics, fail: Fail) -> RoleParts:
    configs = args.pool.drafters
    drafters = Contained(
        {config.kind: make_drafter(config) for config in configs},
        _ANY_TOKEN,
        DrafterMetrics(metrics.registry),
    )
    loop = DraftLoop(drafters, metrics)
    thread = StepThread(loop.step, fail, "draft-loop")
    hashes: dict[str, str] = {config.kind: config_hash(config) for config in configs}
    service = DraftService(hashes, target, loop, thread)
    return RoleParts(
        thread=thread,
        register=partial(add_DraftWorkerServicer_to_server, service),
        service_name="triptych.DraftWorker",
        load=lambda: pb.WorkerLoad(running=len(loop.contexts)),
        tend=_nothing,
        close=_nothing,
        leave=service.leave,
    )


async def _nothing() -> None:
    """Nothing here grows old, and nothing outlives the calls."""


if __name__ == "__main__":
    run_helper("draft", prepare)
