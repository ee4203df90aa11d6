"""The router moves experts between FFN workers: copies first, and never the last one away."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import router.balance
from router.balance import ExpertBalancer
from transport.channel import RunningServer, start_server
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import (
    FfnWorkerServicer,
    add_FfnWorkerServicer_to_server,
)
from transport.registry import Change, WorkerView
from triptych.experts.balance import predict_loads
from triptych.experts.unit_map import Compact, UnitMap
from triptych.experts.units import Unit, Worker
from triptych.testing.cluster import eventually
from triptych.wire import to_status

UNITS = UnitMap((8, 0, 8))  # a dense layer between two mixtures
ALL = list(UNITS)
TIMEOUT_S = 20.0


def view(worker_id: str, role: str, address: str = "") -> WorkerView:
    return WorkerView(worker_id, 1, role, address, "tiny", 0, 0, 0, "")


@dataclass
class FakeFfn(FfnWorkerServicer):
    """Holds what it is told to hold, at once."""

    name: str
    pool: FakePool
    units: set[Unit]
    room: int
    domain: str
    refuses: bool = False
    draining: bool = False
    server: RunningServer | None = None

    async def Arrange(self, request: pb.ArrangeRequest, context: Any) -> pb.ArrangeReply:
        add, remove = (set(map(UNITS.unit, some)) for some in (request.add, request.remove))
        assert add | remove <= set(ALL) and len(add | remove) == 1, "one step at a time"
        if add and self.refuses:
            return pb.ArrangeReply(
                units=UNITS.pack(self.units), refused=request.add, reason="no room"
            )
        self.units = (self.units | add) - remove
        assert len(self.units) <= self.room, "more than there is room for"
        self.pool.note(self, add, remove)
        return pb.ArrangeReply(units=UNITS.pack(self.units))

    @property
    def view(self) -> WorkerView:
        address = "" if self.server is None else self.server.address
        return replace(view(self.name, "ffn", address), draining=self.draining)

    def report(self) -> pb.ExpertLoad:
        return pb.ExpertLoad(
            offered=UNITS.pack(self.units),
            room=self.room - len(self.units),
            domain=self.domain,
            per_layer=UNITS.per_layer,
        )


@dataclass
class FakePool:
    """Workers, and homes that send rows to each unit as `rates` says."""

    rates: np.ndarray = field(default_factory=lambda: np.ones(UNITS.shape))
    ffns: dict[str, FakeFfn] = field(default_factory=dict)
    steps: list[tuple[str, str, Unit]] = field(default_factory=list)
    watch: Callable[[], None] = lambda: None

    def note(self, worker: FakeFfn, add: Iterable[Unit], remove: Iterable[Unit]) -> None:
        self.steps += [("add", worker.name, unit) for unit in add]
        self.steps += [("remove", worker.name, unit) for unit in remove]
        for unit in remove:
            assert self.copies()[unit] >= 1, f"nobody hosts {unit} any more"
        self.watch()

    def copies(self, *, staying: bool = True) -> Counter[Unit]:
        ffns = [ffn for ffn in self.ffns.values() if not (staying and ffn.draining)]
        return Counter(unit for ffn in ffns for unit in ffn.units)

    def busiest(self) -> float:
        """Share of a layer's rows that its busiest worker gets, if copies share as well as they
        can.
        """
        compact = Compact(UNITS)
        held = {
            name: frozenset(compact.inward(UNITS.unpack(UNITS.pack(ffn.units))))
            for name, ffn in self.ffns.items()
        }
        workers = [Worker(name, ffn.domain, ffn.room) for name, ffn in self.ffns.items()]
        rates = self.rates[[0, 2]]
        loads = predict_loads(compact.catalog, held, rates, workers)
        return float((loads.max(axis=1) / rates.sum(axis=1)).max())


@dataclass
class Harness:
    """A balancer that hears the pool's reports as a directory would pass them on."""

    pool: FakePool
    balancer: ExpertBalancer
    stack: contextlib.AsyncExitStack
    sockets: str
    rows: np.ndarray = field(default_factory=lambda: np.zeros(UNITS.shape, np.uint64))

    async def add(
        self, name: str, units: Iterable[Unit], *, room: int = 32, domain: str = ""
    ) -> FakeFfn:
        ffn = FakeFfn(name, self.pool, set(units), room, domain or name)
        add = partial(add_FfnWorkerServicer_to_server, ffn)
        ffn.server = await start_server(f"unix:{self.sockets}/{name}.sock", [add], [], to_status)
        self.stack.push_async_callback(ffn.server.stop, 0.0)
        self.pool.ffns[name] = ffn
        self.balancer.on_change(Change("joined", ffn.view))
        self.balancer.on_experts(ffn.view, ffn.report())
        return ffn

    def remove(self, name: str) -> None:
        ffn = self.pool.ffns.pop(name)
        self.balancer.on_change(Change("left", ffn.view))

    def report(self) -> None:
        """What all workers tell four times a second."""
        self.rows += (2_000 * self.pool.rates).astype(np.uint64)
        for ffn in self.pool.ffns.values():
            self.balancer.on_experts(ffn.view, ffn.report())
        load = pb.ExpertLoad(per_layer=UNITS.per_layer, rows=self.rows.reshape(-1).tolist())
        self.balancer.on_experts(view("decode-0", "decode"), load)

    async def until(self, true: Callable[[], bool]) -> None:
        async def probe() -> bool:
            self.report()
            return bool(true())

        await eventually(probe, TIMEOUT_S)


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Harness]]:
    monkeypatch.setattr(router.balance, "_SETTLING_S", 0.01)
    monkeypatch.setattr(router.balance, "_RETRY_S", 0.05)
    async with contextlib.AsyncExitStack() as stack:
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="tri-"))

        def start(*, every_s: float = 0.05, copies: int = 2, rest_s: float = 60.0) -> Harness:
            pool = FakePool()
            balancer = ExpertBalancer(
                lambda: [ffn.view for ffn in pool.ffns.values()], every_s, copies, rest_s
            )
            running = asyncio.create_task(balancer.run())

            async def stop() -> None:
                running.cancel()
                await asyncio.wait({running})

            stack.push_async_callback(stop)
            return Harness(pool, balancer, stack, sockets)

        yield start


def everywhere_twice(pool: FakePool) -> bool:
    copies = pool.copies()
    return all(copies[unit] == 2 for unit in ALL)


async def test_a_pool_that_is_as_it_should_be_is_left_alone(make) -> None:
    harness = make()
    for name in ("ffn-0", "ffn-1"):
        await harness.add(name, ALL)
    looks = 0

    def looked() -> bool:
        nonlocal looks
        looks += 1
        return looks > 30

    await harness.until(looked)
    assert harness.pool.steps == [] and harness.balancer.num_moves == 0


@pytest.mark.parametrize("every_s", [0.05, 0.0], ids=["levelling", "repairing only"])
async def test_copies_of_a_worker_that_died_are_made_again(make, every_s: float) -> None:
    harness = make(every_s=every_s)
    for number in range(3):
        held = [unit for index, unit in enumerate(ALL) if index % 3 != number]
        await harness.add(f"ffn-{number}", held)
    await harness.until(lambda: everywhere_twice(harness.pool))
    assert harness.pool.steps == []
    harness.remove("ffn-1")
    await harness.until(lambda: everywhere_twice(harness.pool))
    assert {verb for verb, _, _ in harness.pool.steps} == {"add"}


async def test_what_nobody_hosts_is_made_first(make) -> None:
    harness = make()
    lost = [Unit(0, 3), Unit(2, 6)]
    await harness.add("ffn-0", [unit for unit in ALL if unit not in lost])
    await harness.add("ffn-1", [])
    await harness.until(lambda: everywhere_twice(harness.pool))
    assert {unit for _, _, unit in harness.pool.steps[:2]} == set(lost)


async def test_a_worker_that_joins_is_given_its_part(make) -> None:
    harness = make(copies=1)
    await harness.add("ffn-0", ALL, room=17)
    await harness.add("ffn-1", [], room=17)
    await harness.until(lambda: harness.pool.busiest() < 0.6)
    for number, (verb, worker, unit) in enumerate(harness.pool.steps):
        if verb == "remove":
            assert ("add", "ffn-1", unit) in harness.pool.steps[:number]
            assert worker == "ffn-0"


async def test_experts_that_are_liked_are_spread_by_making_before_breaking(make) -> None:
    """`FakePool.note` fails where a unit would lose its last copy."""
    harness = make()
    harness.pool.rates[0, :4] = harness.pool.rates[2, 4:] = 12.0
    first = [*(Unit(0, e) for e in range(4)), *(Unit(2, e) for e in range(4, 8))]
    second = [unit for unit in ALL if unit not in first]
    for name, held in (("ffn-0", first), ("ffn-1", first), ("ffn-2", second), ("ffn-3", second)):
        await harness.add(name, held, room=10)
    assert harness.pool.busiest() > 0.4
    least = 2

    def watch() -> None:
        nonlocal least
        least = min(least, *(harness.pool.copies()[unit] for unit in ALL))

    harness.pool.watch = watch
    await harness.until(lambda: harness.pool.busiest() < 0.3)
    assert least == 2, "not even for a moment was there one copy"
    assert harness.balancer.num_moves > 0
    assert {verb for verb, _, _ in harness.pool.steps} == {"add", "remove"}


async def test_without_levelling_only_copies_are_repaired(make) -> None:
    harness = make(every_s=0.0)
    harness.pool.rates[:, 0] = 100.0
    await harness.add("ffn-0", ALL)
    await harness.add("ffn-1", ALL[1:])
    await harness.until(lambda: everywhere_twice(harness.pool))
    assert harness.pool.steps == [("add", "ffn-1", ALL[0])]


async def test_a_refusal_is_told_and_tried_again(make, caplog) -> None:
    harness = make(every_s=0.0, rest_s=0.0)
    await harness.add("ffn-0", ALL)
    stubborn = await harness.add("ffn-1", ALL[2:])
    stubborn.refuses = True
    await harness.until(lambda: caplog.text.count("ffn-1 refuses: no room") > 1)
    assert harness.pool.steps == []
    stubborn.refuses = False
    await harness.until(lambda: everywhere_twice(harness.pool))


async def test_one_that_refuses_keeps_nobody_else_from_getting_copies(make) -> None:
    harness = make(every_s=0.0)
    await harness.add("ffn-0", ALL)
    stubborn = await harness.add("ffn-1", [])
    stubborn.refuses = True
    await harness.add("ffn-2", [])
    await harness.until(lambda: everywhere_twice(harness.pool))
    assert not stubborn.units


async def test_a_worker_that_cannot_be_reached_keeps_nobody_from_being_served(make, caplog) -> None:
    harness = make()
    await harness.add("ffn-0", ALL)
    gone = await harness.add("ffn-1", [])
    assert gone.server is not None
    await gone.server.stop(0.0)
    await harness.until(lambda: "an expert was not moved" in caplog.text)
    harness.remove("ffn-1")
    await harness.add("ffn-2", [])
    await harness.until(lambda: everywhere_twice(harness.pool))


async def test_a_worker_that_drains_gives_away_what_it_holds(make) -> None:
    harness = make()
    for number in range(3):
        held = [unit for index, unit in enumerate(ALL) if index % 3 != number]
        await harness.add(f"ffn-{number}", held)
    leaving = harness.pool.ffns["ffn-0"]
    leaving.draining = True
    await harness.until(lambda: not leaving.units and everywhere_twice(harness.pool))
    for number, (verb, worker, unit) in enumerate(harness.pool.steps):
        if verb == "remove":
            assert worker == "ffn-0"
            assert harness.pool.steps[number - 1][::2] == ("add", unit)
        else:
            assert worker != "ffn-0", "nothing new for one that leaves"


async def test_copies_stand_where_they_do_not_fail_together(make) -> None:
    harness = make()
    await harness.add("ffn-0", ALL, domain="east")
    await harness.add("ffn-1", [], domain="east")
    await harness.add("ffn-2", [], domain="west")
    await harness.until(lambda: harness.pool.copies().total() == 2 * len(ALL))
    assert harness.pool.ffns["ffn-2"].units == set(ALL)


async def test_homes_that_restart_are_counted_anew(make) -> None:
    harness = make()
    balancer = harness.balancer
    rows = np.ones(UNITS.shape, np.uint64) * 1_000_000
    for epoch, count in ((1, 1), (1, 3), (2, 1), (2, 2)):  # the second epoch begins at less
        home = replace(view("decode-0", "decode"), epoch=epoch)
        load = pb.ExpertLoad(per_layer=UNITS.per_layer, rows=(rows * count).reshape(-1).tolist())
        balancer.on_experts(home, load)
    assert balancer._loads is not None
    assert (balancer._loads._new == 3_000_000).all(), "what it sent between two reports"
    balancer.on_change(Change("left", replace(view("decode-0", "decode"), epoch=1)))
    balancer.on_change(Change("left", replace(view("decode-0", "decode"), epoch=2)))
    assert not balancer._loads._told
