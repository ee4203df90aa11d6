"""Homes (decode workers) of a made-up pace behind the real contract, for our router.

    python -m bench.routers.homes --model smollm2-135m --registry unix:RUN/router.sock

One process with several homes. Everything but the tokens is a worker's own code: lanes, membership,
and the prefix cache that is published to the router, with the blocks of the prompts that came.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence

import grpc
import uvloop

from bench.routers.http_workers import MODEL
from bench.routers.pace import ANSWER, PREFILL_S, STEP_S, PacedEngine
from transport.channel import start_server
from transport.kv_feed import publish_cache
from transport.lanes import Lane, LaneServer
from transport.protos import worker_pb2 as pb
from transport.protos import worker_pb2_grpc
from transport.registry import stay_attached
from triptych.hub import resolve_model
from triptych.kv.hashing import extend_hashes, root_hash
from triptych.kv.pool import BlockPool
from triptych.testing.kv_workers import compute
from triptych.tokenizer import Tokenizer
from triptych.wire import to_status

_BLOCK_TOKENS, _NUM_BLOCKS = 16, 20_000
_LAYOUT = "bench"


class PacedHome(worker_pb2_grpc.DecodeWorkerServicer):
    def __init__(self, worker_id: str, answer: Sequence[int]) -> None:
        self.engine = PacedEngine()
        self.pool = BlockPool(_NUM_BLOCKS)
        self.worker_id = worker_id
        self._answer_ids = answer
        self._lanes = LaneServer(self._answer, to_status)

    def hello(self, address: str) -> pb.WorkerHello:
        return pb.WorkerHello(
            worker_id=self.worker_id,
            epoch=1,
            role="decode",
            address=address,
            model=MODEL,
            max_model_len=8192,
            block_tokens=_BLOCK_TOKENS,
            num_blocks=_NUM_BLOCKS,
            kv_identity=_LAYOUT,
        )

    def load(self) -> pb.WorkerLoad:
        pace = pb.Pace(
            prefill=pb.StepCost(base_s=PREFILL_S),
            decode=pb.StepCost(base_s=STEP_S),
            chunk_tokens=512,
            tokens_per_step=1,
        )
        running = self.engine.num_running
        return pb.WorkerLoad(running=running, free_blocks=_NUM_BLOCKS, pace=pace)

    async def Generate(
        self,
        calls: AsyncIterator[pb.GenerateCall],
        context: grpc.aio.ServicerContext[pb.GenerateCall, pb.GenerateReplies],
    ) -> AsyncIterator[pb.GenerateReplies]:
        async with contextlib.aclosing(self._lanes.serve(calls)) as replies:
            async for batch in replies:
                yield batch

    async def _answer(self, request: pb.GenerateRequest, lane: Lane) -> pb.RequestStats:
        cached = self._cache(request)
        num_tokens = request.sampling.max_tokens
        done = asyncio.get_running_loop().create_future()

        def say(number: int) -> None:
            token_id = self._answer_ids[number]
            if number == 0:
                lane.began(pb.RequestBegan(cached_tokens=cached))
            if number < num_tokens - 1:
                lane.token(token_id)
                return
            lane.delta(pb.TokenDelta(token_ids=[token_id], finish_reason="length"))
            if not done.done():  # the router may just have hung up
                done.set_result(None)

        run = self.engine.begin(num_tokens, say)
        try:
            await done
        finally:
            self.engine.leave(run)
        return pb.RequestStats(
            prompt_tokens=len(request.prompt_ids),
            cached_tokens=cached,
            completion_tokens=num_tokens,
        )

    def _cache(self, request: pb.GenerateRequest) -> int:
        """Puts the prompt's blocks into the cache; how many of its tokens were there."""
        hashes: list[bytes] = []
        root = root_hash(model="", weights="", layout=_LAYOUT, salt=request.cache_salt)
        extend_hashes(hashes, request.prompt_ids, _BLOCK_TOKENS, root)
        usable = (len(request.prompt_ids) - 1) // _BLOCK_TOKENS
        return min(usable, compute(self.pool, hashes)) * _BLOCK_TOKENS


async def serve(model: str, registry: str, num_workers: int) -> None:
    tokenizer = Tokenizer.load(resolve_model(model))
    answer = tokenizer.encode(ANSWER)
    servers = []  # a server that nobody holds is stopped
    with tempfile.TemporaryDirectory(prefix="tri-") as folder:
        async with asyncio.TaskGroup() as tasks:
            for number in range(num_workers):
                home = PacedHome(f"decode-{number}", answer)

                def register(server: grpc.aio.Server, home: PacedHome = home) -> None:
                    worker_pb2_grpc.add_DecodeWorkerServicer_to_server(home, server)

                listen = f"unix:{folder}/{home.worker_id}.sock"
                server = await start_server(listen, [register], [], to_status)
                servers.append(server)
                tasks.create_task(home.engine.steps())
                tasks.create_task(stay_attached(registry, home.hello(server.address), home.load))
                tasks.create_task(publish_cache(registry, home.worker_id, 1, home.pool))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--registry", required=True, help="gRPC address of the router's registry")
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args(argv)
    uvloop.run(serve(args.model, args.registry, args.workers))


if __name__ == "__main__":
    main()
