"""Homes and FFN workers of one process, each on a thread of its own, over each link for rows."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from ffn_worker.hosting import Hosting
from ffn_worker.loop import FfnLoop
from ffn_worker.metrics import FfnMetrics
from ffn_worker.service import FfnService
from transport.channel import RunningServer, start_server
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import add_FfnWorkerServicer_to_server
from transport.rows.hello import Offer
from transport.rows.inbox import Inbox
from transport.rows.links import make_links
from transport.rows.segment import Doorbell
from transport.rows.session import RowsServer, RowsSession
from triptych.config import ExpertsConfig
from triptych.engine.backend import Backend, choose_backend
from triptych.engine.native_runner import NativeRunner
from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence
from triptych.engine.storage import plain_storage
from triptych.engine.thread import StepThread
from triptych.errors import ModelError
from triptych.experts.identity import unit_identity
from triptych.experts.make import PoolParts, pool_parts
from triptych.experts.native_unit import native_unit
from triptych.experts.of_model import unit_map
from triptych.experts.remote import RemoteExperts
from triptych.experts.rows import need_native, rows_library
from triptych.experts.units import Unit
from triptych.models.layers import DenseFfn
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.models.units import UnitReader, open_units
from triptych.testing.checkpoints import tiny_llama
from triptych.testing.tiny_mixture import tiny_mixture
from triptych.wire import to_status
from triptych.worker.boot import kv_layout
from triptych_kernels.cpu.experts import NativeExperts
from triptych_kernels.cpu.native import native

PATIENCE_S = 60.0  # nothing here takes so long unless it hangs
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Checkpoint:
    """A model, and everything of it computed in one piece."""

    path: Path
    backend: Backend
    model: Model

    def units(self) -> UnitReader:
        backend = self.backend
        return open_units(
            self.path, dtype=backend.weights, group=backend.group, packer=backend.packer
        )

    def wanted(self, jobs: list[RowJob]) -> Tensor:
        return runner_of(self.model).forward_all(jobs)


def runner_of(model: Model) -> NativeRunner:
    layout = kv_layout(model.config, BLOCK_TOKENS, "bfloat16")
    return NativeRunner(model, plain_storage(layout, 64))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    if native() is None:
        pytest.skip("no native library can be compiled here")
    backend = choose_backend("bfloat16", "bfloat16")
    found = {}
    for name, make in (("mixture", tiny_mixture), ("dense", tiny_llama)):
        path = make(tmp_path_factory.mktemp(name))
        model = load_model(path, dtype="bfloat16", packer=backend.packer)
        found[name] = Checkpoint(path, backend, model)
    return found


@pytest.fixture(params=["mixture", "dense"])
def checkpoint(request: pytest.FixtureRequest, checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    return checkpoints[request.param]


@pytest.fixture(params=["shm", "tcp"])
def link_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def owned() -> Iterator[ExitStack]:
    """What a test opened; closed last opened first, after the test."""
    before = threading.enumerate()
    with ExitStack() as stack:
        yield stack
    for thread in set(threading.enumerate()) - set(before):
        if not thread.name.startswith(("ffn-", "rows-", "home")):
            continue  # gRPC's and asyncio's own
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"{thread.name} was left running"


class ThreadedFfn:
    """An FFN worker: its units, its loop on a thread, and its doors."""

    def __init__(self, checkpoint: Checkpoint, link_name: str, run_dir: Path, epoch: int) -> None:
        self._owned = ExitStack()
        self.reader = checkpoint.units()
        self.units = unit_map(self.reader.config)
        self.epoch = epoch
        library = rows_library()
        bell = self._owned.enter_context(closing(Doorbell(library)))
        layers, experts = self.units.shape
        hidden = self.reader.config.hidden_size
        self.inbox = Inbox(library, bell, layers=layers, experts=experts, hidden=hidden)
        self._owned.callback(self.inbox.close)
        activation = self.reader.config.activation
        self.hosting = Hosting(
            self.inbox.hosted,
            lambda ffns: NativeExperts(
                need_native(), {e: native_unit(f) for e, f in ffns.items()}, activation
            ),
        )
        self.failures: list[BaseException] = []
        self.metrics = FfnMetrics(CollectorRegistry())
        loop = FfnLoop(self.inbox, self.hosting, self.metrics)
        self.thread = StepThread(loop.step, self.failures.append, "ffn-loop")
        [link] = make_links([link_name], library, run_dir)
        self.server: RowsServer = link.serve(self.inbox, dict, epoch)
        self._owned.callback(self.server.close)
        self.thread.start()
        self._owned.callback(self._stop)
        self._released = threading.Event()

    def host(self, units: Iterable[Unit]) -> None:
        """These and no others; on its thread, without telling anybody."""
        wanted = set(units)
        here = {Unit(*place) for place in np.argwhere(self.inbox.hosted).tolist()}
        new = [(unit, self.reader.read(*unit)) for unit in wanted - here]

        def change() -> None:
            self.hosting.drop(here - wanted)
            self.hosting.add(new)

        self.do(change)

    def mask(self) -> np.ndarray:
        return self.inbox.hosted.astype(bool)

    def do(self, change: Callable[[], None]) -> None:
        """On its thread; returns when it is done."""
        done = threading.Event()

        def run() -> None:
            change()
            done.set()

        self.thread.post(run)
        self.inbox.ring()
        assert done.wait(PATIENCE_S)

    def hold(self) -> None:
        """It stands still until it is released, as a stopped process does."""
        holding, self._released = threading.Event(), threading.Event()
        released = self._released

        def wait() -> None:
            holding.set()
            released.wait(PATIENCE_S)

        self.thread.post(wait)
        self.inbox.ring()
        assert holding.wait(PATIENCE_S)

    def release(self) -> None:
        self._released.set()

    def close(self) -> None:
        self.release()
        self._owned.close()
        assert not self.failures, self.failures

    def _stop(self) -> None:
        self.inbox.ring()
        self.thread.stop()


@dataclass
class Home:
    """A home's model, whose units are elsewhere; its loop's thread is that of the test, or of
    `start`.
    """

    checkpoint: Checkpoint
    link_name: str
    run_dir: Path
    parts: PoolParts
    runner: NativeRunner
    owned: ExitStack
    sessions: dict[int, RowsSession] = field(default_factory=dict)

    @property
    def experts(self) -> RemoteExperts:
        return self.parts.experts

    def connect(self, number: int, worker: ThreadedFfn) -> RowsSession:
        """Admits the worker, which is asked for nothing yet."""
        [link] = make_links([self.link_name], rows_library(), self.run_dir)
        offer = Offer(self.parts.segment, 5)
        session = link.connect(worker.server.endpoint, offer, self.parts.doorbell, lambda _: None)
        self.owned.callback(session.close)
        self.sessions[number] = session
        self.experts.post(partial(self.experts.admit, number, session.segment))
        return session

    def offer(self, number: int, mask: np.ndarray) -> None:
        self.experts.post(partial(self.experts.offer, number, mask))

    def join(self, number: int, worker: ThreadedFfn) -> None:
        self.connect(number, worker)
        self.offer(number, worker.mask())

    def leave(self, number: int) -> None:
        self.experts.post(partial(self.experts.dismiss, number))

    def stat(self, number: int, name: str) -> int:
        return int(self.parts.exchange.stats[number][name])

    def forward(self, jobs: list[RowJob]) -> Tensor:
        return self.runner.forward_all(jobs)

    def start(self, jobs: list[RowJob]) -> Future[Tensor]:
        """The same on a thread. From now on changes are posted to that."""
        self.experts.run_on(lambda: None)
        executor = ThreadPoolExecutor(1, "home")
        self.owned.callback(executor.shutdown)
        return executor.submit(self.forward, jobs)

    def until(self, true: Callable[[], bool], forward: Future[Tensor]) -> None:
        """Spins until something is seen of a forward that is under way."""
        while not true():
            assert not forward.done(), f"it did not happen: {forward.exception()}"


MakeFfn = Callable[..., ThreadedFfn]
MakeHome = Callable[..., Home]


@pytest.fixture
def make_ffn(checkpoint: Checkpoint, link_name: str, tmp_path: Path, owned: ExitStack) -> MakeFfn:
    """make_ffn(units) → a worker that hosts them; None: all."""

    def make(units: Iterable[Unit] | None = None, epoch: int = 1) -> ThreadedFfn:
        worker = ThreadedFfn(checkpoint, link_name, tmp_path, epoch)
        owned.enter_context(closing(worker))
        worker.host(worker.units if units is None else units)
        return worker

    return make


@pytest.fixture
def make_home(checkpoint: Checkpoint, link_name: str, tmp_path: Path, owned: ExitStack) -> MakeHome:
    def make(*, awaited: bool = False, **settings: object) -> Home:
        # A machine that hiccups is no worker that is late, where a test does not say so.
        patient = {"min_deadline_ms": 30_000, "micro_batches": 2} | settings
        config = ExpertsConfig.model_validate(patient)
        parts = pool_parts(checkpoint.path, config, checkpoint.backend, awaited=awaited)
        owned.callback(parts.doorbell.close)
        owned.callback(parts.exchange.close)
        model = load_model(
            checkpoint.path,
            dtype="bfloat16",
            packer=checkpoint.backend.packer,
            distant=parts.experts,
        )
        return Home(checkpoint, link_name, tmp_path, parts, runner_of(model), owned)

    return make


@pytest.fixture
def jobs() -> list[RowJob]:
    """A prompt chunk and some rows that decode (of sequences that begin)."""
    source = torch.Generator().manual_seed(1)
    found, block = [], 0
    for length in (70, 1, 1, 9, 1):
        tokens = torch.randint(3, 190, (length,), generator=source).tolist()
        count = -(-length // BLOCK_TOKENS)
        blocks = list(range(block, block + count))
        block += count
        found.append(
            RowJob(Sequence(str(length), tokens, b"root", BLOCK_TOKENS, blocks=blocks), 0, length)
        )
    return found


class ServedFfn(ThreadedFfn):
    """An FFN worker with its gRPC face."""

    def __init__(
        self, checkpoint: Checkpoint, link_name: str, run_dir: Path, epoch: int, *, name: str
    ) -> None:
        super().__init__(checkpoint, link_name, run_dir, epoch)
        self.name = name
        self.unreadable: set[Unit] = set()
        self.service = FfnService(
            description=pb.FfnDescription(
                worker_id=name,
                epoch=epoch,
                identity=unit_identity(checkpoint.path, checkpoint.backend, "exact"),
                links=[pb.LinkEndpoint(link=link_name, endpoint=self.server.endpoint)],
            ),
            units=self.units,
            hosting=self.hosting,
            room=1 << 30,
            read=self._read,
            wake=self.inbox.ring,
            thread=self.thread,
            metrics=self.metrics,
            domain="here",
        )
        self.grpc: RunningServer | None = None

    async def serve(self, address: str) -> None:
        add = partial(add_FfnWorkerServicer_to_server, self.service)
        self.grpc = await start_server(address, [add], ["triptych.FfnWorker"], to_status)

    async def stop(self) -> None:
        """Hangs up on everybody."""
        assert self.grpc is not None
        await self.grpc.stop(0.0)

    @property
    def address(self) -> str:
        assert self.grpc is not None
        return self.grpc.address

    @property
    def member(self) -> pb.FfnMember:
        return pb.FfnMember(worker_id=self.name, epoch=self.epoch, address=self.address)

    def _read(self, unit: Unit) -> DenseFfn:
        if unit in self.unreadable:
            raise ModelError("model.safetensors: damaged")
        return self.reader.read(*unit)


ServeFfn = Callable[..., Coroutine[Any, Any, ServedFfn]]


@pytest.fixture
async def serve_ffn(
    checkpoint: Checkpoint, link_name: str, tmp_path: Path, owned: ExitStack
) -> AsyncIterator[ServeFfn]:
    """`await serve_ffn(units)` → a worker that offers them (None: all) and is served."""
    with tempfile.TemporaryDirectory(prefix="tri-") as sockets:
        async with AsyncExitStack() as stack:

            async def serve(
                units: Iterable[Unit] | None = None, *, name: str = "ffn-0", epoch: int = 1
            ) -> ServedFfn:
                worker = ServedFfn(checkpoint, link_name, tmp_path, epoch, name=name)
                owned.enter_context(closing(worker))
                hosted = list(worker.units if units is None else units)
                worker.host(hosted)
                worker.service.offer.change(add=hosted)
                await worker.serve(f"unix:{sockets}/{name}-{epoch}.sock")
                stack.push_async_callback(worker.stop)
                return worker

            yield serve
