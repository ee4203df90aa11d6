"""A home in this process, FFN workers in others, and no router: for timings of single steps."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

from transport.channel import connect
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import FfnWorkerStub
from triptych.config import dump_config, load_config
from triptych.experts.pool import FfnPool
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts, build_engine

_READY_S = 120.0


@contextlib.contextmanager
def home_with_workers(model: str, workers: int, *more: str) -> Iterator[EngineParts]:
    """An engine with one thread whose feed-forward parts are computed by `workers` processes of one
    thread each, all connected. `more`: configuration.
    """
    pools = (
        "pools=[{name: decode, role: decode, threads: 1}, "
        f"{{name: ffn, role: ffn, replicas: {workers}, threads: 1}}]"
    )
    config = load_config(None, [f"model={model}", pools, *more])
    with contextlib.ExitStack() as owned:
        run_dir = Path(owned.enter_context(tempfile.TemporaryDirectory(prefix="triptych-")))
        (run_dir / "config.yaml").write_text(dump_config(config))
        for number in range(workers):
            owned.enter_context(_process(run_dir, f"ffn-{number}"))
        parts = build_engine(
            WorkerArgs(config, config.pool("decode"), "bench", 1, run_dir, "", (), "127.0.0.1")
        )
        assert parts.experts is not None
        pool = parts.experts.pool(
            config.experts, worker_id="bench", epoch=1, run_dir=run_dir, host="127.0.0.1"
        )
        changed = threading.Event()
        addresses = [f"unix:{run_dir}/ffn-{number}.sock" for number in range(workers)]
        owned.enter_context(_connected(pool, addresses, changed))
        until = time.monotonic() + _READY_S
        while pool.experts.tally.workers < workers:
            if not changed.wait(until - time.monotonic()):
                raise TimeoutError(f"FFN workers are not there after {_READY_S:g} s")
            changed.clear()
            pool.experts.take_changes()
        yield parts


@contextlib.contextmanager
def _process(run_dir: Path, name: str) -> Iterator[None]:
    arguments = ["--config", str(run_dir / "config.yaml"), "--run-dir", str(run_dir)]
    process = subprocess.Popen(
        [sys.executable, "-m", "ffn_worker", "--pool", "ffn", "--id", name, *arguments],
        stderr=(run_dir / f"{name}.log").open("w"),
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _connected(pool: FfnPool, addresses: Sequence[str], changed: threading.Event) -> Iterator[None]:
    """Runs the pool's connections on an event loop of their own. `changed`: set whenever there is
    something for whoever steps to take.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    pool.experts.run_on(changed.set)
    try:
        note = asyncio.run_coroutine_threadsafe(_name_all(addresses), loop).result(_READY_S)
        loop.call_soon_threadsafe(pool.on_note, note)
        yield
    finally:
        pool.experts.run_on(pool.experts.take_changes)
        asyncio.run_coroutine_threadsafe(pool.close(), loop).result(_READY_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _name_all(addresses: Sequence[str]) -> pb.RouterNote:
    """What a router would tell of these workers, once all of them answer."""
    members = []
    for address in addresses:
        description = await _describe(address)
        members.append(
            pb.FfnMember(worker_id=description.worker_id, epoch=description.epoch, address=address)
        )
    return pb.RouterNote(router_epoch=1, ffn_workers=members)


async def _describe(address: str) -> pb.FfnDescription:
    while True:
        async with connect(address) as channel:
            try:
                return await FfnWorkerStub(channel).Describe(pb.DescribeRequest(), timeout=1.0)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)
