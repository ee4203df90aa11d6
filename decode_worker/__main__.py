"""`python -m decode_worker --config FILE --pool NAME --id decode-0 --run-dir DIR`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import grpc

from decode_worker.history import Lender
from decode_worker.intake import Intake
from decode_worker.loop import DecodeLoop
from decode_worker.service import DecodeService, worker_load
from decode_worker.speculate.make import make_speculator
from decode_worker.speculate.remote_links import RemoteLinks
from transport.kv.links import make_links
from transport.kv.neighbours import Neighbours
from transport.protos.worker_pb2_grpc import (
    add_DecodeWorkerServicer_to_server,
    add_KvHolderServicer_to_server,
)
from triptych.engine.tails import Tails
from triptych.engine.thread import StepThread
from triptych.grammar.cache import GrammarCache
from triptych.grammar.vocabulary import grammar_vocabulary
from triptych.obs.metrics import WorkerMetrics
from triptych.obs.speculation import SpeculationMetrics
from triptych.tokenizer import Tokenizer
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts
from triptych.worker.fetch import Fetcher
from triptych.worker.kv_holder import KvHolder
from triptych.worker.on_device import make_sampler
from triptych.worker.pace import patient_rows, rows_beside
from triptych.worker.peers import PeerBook
from triptych.worker.process import RoleParts, run_worker
from triptych.worker.salvage import Salvager


def build_role(
    args: WorkerArgs,
    parts: EngineParts,
    metrics: WorkerMetrics,
    fail: Callable[[BaseException], None],
) -> RoleParts:
    transport = args.config.transport
    tokenizer = Tokenizer.load(parts.model_path)
    eos_token_ids = parts.eos_token_ids(tokenizer)
    sampler = make_sampler(eos_token_ids, on_triton=parts.backend.on_triton)
    speculation = SpeculationMetrics(metrics.registry)
    drafting = RemoteLinks(args, parts, speculation)
    speculator = make_speculator(
        args.config.speculation, parts, sampler, speculation, drafting.drafter
    )
    vocab_size = parts.model.config.vocab_size
    grammars = GrammarCache(partial(grammar_vocabulary, tokenizer, vocab_size, eos_token_ids))
    service = DecodeService(parts, tokenizer, metrics, speculator.names, grammars)
    loop = DecodeLoop(
        parts.scheduler,
        parts.runner,
        sampler,
        speculator,
        service.emit,
        metrics,
        eos_token_ids=eos_token_ids,
        max_model_len=parts.max_model_len,
    )
    thread = StepThread(loop.step, fail, "decode-loop")
    catch_up_s = args.config.engine_of(args.pool).catch_up_ms / 1e3
    parts.scheduler.patient_rows = partial(patient_rows, parts.scheduler, metrics.pace, catch_up_s)
    slo_ms = args.config.router.slo.itl_ms
    if slo_ms is not None:
        parts.scheduler.rows_beside = partial(rows_beside, metrics.pace, slo_ms / 1e3)
    links = make_links(transport.links, args.run_dir, host=args.kv_host)
    peers = PeerBook(links, parts.region, parts.layout_text, transport.require)
    fetcher = Fetcher(
        parts.region, parts.layout, parts.model.config.hidden_size, parts.ledger, metrics
    )
    # Not over nixl: what homes lend is worth no second transport process.
    holder = KvHolder(args, parts, without=["nixl"])
    lender = Lender(args, parts, holder)
    neighbours = _neighbours(args, parts)
    salvager = Salvager(parts.pool, parts.region, neighbours, metrics)
    # On a device blocks lie elsewhere. A state may be ahead of the rows that are told: a home that
    # dies in a step leaves it so.
    told = not parts.backend.on_triton and parts.model.config.delta is None
    if neighbours is not None and told:
        parts.scheduler.tails = Tails(parts.region.hashes)
    service.connect(Intake(parts.pool, peers, fetcher, loop, thread, transport, lender, salvager))

    speculator.start()

    async def close() -> None:
        await asyncio.to_thread(speculator.stop)
        await drafting.close()
        await peers.close()
        holder.close()
        salvager.close()

    async def tend() -> None:
        await peers.sweep()
        await salvager.tend()

    def register(server: grpc.aio.Server) -> None:
        add_DecodeWorkerServicer_to_server(service, server)
        add_KvHolderServicer_to_server(holder, server)

    return RoleParts(
        thread=thread,
        register=register,
        serving=lender.serving,
        service_name="triptych.DecodeWorker",
        load=lambda: worker_load(parts, service),
        tend=tend,
        close=close,
        leave=service.leave,
        hand_over=service.hand_over,
    )


def _neighbours(args: WorkerArgs, parts: EngineParts) -> Neighbours | None:
    config = args.config
    cached = config.engine_of(args.pool).prefix_cache
    keep_s = config.transport.keep_lost_s
    if "shm" not in config.transport.links or not cached or not keep_s:
        return None
    return Neighbours(args.run_dir, parts.region, keep_s)


if __name__ == "__main__":
    run_worker("decode", build_role)
