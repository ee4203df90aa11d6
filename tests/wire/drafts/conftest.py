"""A draft worker's service and remote drafters that talk to it over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from decode_worker.speculate.draft_link import DraftLink
from decode_worker.speculate.patience import Patience
from decode_worker.speculate.remote_drafter import RemoteDrafter
from decode_worker.speculate.troubled_link import TroubledLink
from draft_worker.loop import MAX_CONTEXT_TOKENS, DraftLoop
from draft_worker.service import DraftService
from transport.channel import RunningServer, start_server
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import add_DraftWorkerServicer_to_server
from triptych.drafters.contained import Contained
from triptych.drafters.drafter import Drafter
from triptych.engine.thread import StepThread
from triptych.obs.metrics import WorkerMetrics
from triptych.obs.speculation import DrafterMetrics, SpeculationMetrics
from triptych.testing.cluster import eventually
from triptych.wire import to_status


class Waiting(Patience):
    """Waits as long as it was told, whatever drafts are worth."""

    def learn(self, running: int, accepted: list[int], step_s: float | None) -> None:
        pass


@dataclass
class Remote:
    """A decode worker's side of one drafter."""

    drafter: RemoteDrafter
    link: DraftLink | TroubledLink
    outcomes: Counter[str]
    metrics: SpeculationMetrics

    async def connected(self) -> None:
        async def answers() -> bool:
            return self.link.session != 0

        await eventually(answers, timeout_s=60)


@dataclass
class DraftHouse:
    """Starts and stops draft workers and their callers; all are gone when the test ends."""

    stack: contextlib.AsyncExitStack
    failures: list[BaseException] = field(default_factory=list)

    async def serve(
        self,
        address: str,
        drafter: Drafter,
        *,
        target: str = "model",
        max_tokens: int = MAX_CONTEXT_TOKENS,
    ) -> tuple[RunningServer, DraftLoop]:
        registry = CollectorRegistry()
        contained = Contained({drafter.name: drafter}, 1 << 32, DrafterMetrics(registry))
        loop = DraftLoop(contained, WorkerMetrics(registry), max_tokens)
        thread = StepThread(loop.step, self.failures.append, "draft-loop")
        service = DraftService({drafter.name: "hash"}, target, loop, thread)
        thread.start()
        add = partial(add_DraftWorkerServicer_to_server, service)
        server = await start_server(address, [add], ["triptych.DraftWorker"], to_status)
        self.stack.push_async_callback(asyncio.to_thread, thread.stop)
        self.stack.push_async_callback(server.stop, 0.0)
        return server, loop

    def call(self, address: str, *, wait_s: float = 30.0, trouble: float = 0.0) -> Remote:
        metrics, outcomes = SpeculationMetrics(CollectorRegistry()), Counter[str]()
        hello = pb.DraftHello(worker_id="decode-0", epoch=1, target="model", vocab_size=1 << 20)
        link: DraftLink | TroubledLink = DraftLink([address], hello, "remote", metrics)
        if trouble:
            assert isinstance(link, DraftLink)
            link = TroubledLink(link, trouble)
        drafter = RemoteDrafter(
            link,
            lambda what: outcomes.update([what]),
            patience=Waiting(wait_s),
            vocab_size=1 << 20,
        )
        link.start(drafter)
        self.stack.push_async_callback(link.close)
        return Remote(drafter, link, outcomes, metrics)


@pytest.fixture
async def house() -> AsyncIterator[DraftHouse]:
    async with contextlib.AsyncExitStack() as stack:
        house = DraftHouse(stack)
        yield house
    assert not house.failures


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """Short, as socket paths must be; pytest's tmp_path may be longer."""
    with tempfile.TemporaryDirectory(prefix="tri-") as path:
        yield Path(path)


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, socket_dir: Path) -> str:
    return f"unix:{socket_dir}/draft.sock" if request.param == "unix" else "127.0.0.1:0"
