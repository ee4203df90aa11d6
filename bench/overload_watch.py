"""What a cluster holds: memory and CPU time of its processes, queues, blocks, metric series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from triptych.testing.cluster import Cluster, eventually, parse_metrics

MIB = 1 << 20
_AT_REST_S = 60.0


@dataclass(slots=True)
class Watch:
    """Memory over time, by process; "client" is this one."""

    processes: Mapping[str, psutil.Process]
    rss: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # (seconds, MiB)
    cpu_s: dict[str, float] = field(default_factory=dict)  # at the beginning

    @classmethod
    async def of(cls, cluster: Cluster) -> Watch:
        names = ["router", *(str(worker["worker_id"]) for worker in await cluster.workers())]
        found = {name: psutil.Process(cluster.pid(name)) for name in names}
        return cls({**found, "client": psutil.Process()})

    def begin(self) -> None:
        self.rss = {name: [] for name in self.processes}
        self.cpu_s = {name: _cpu_s(process) for name, process in self.processes.items()}

    def sample(self, seconds: float) -> None:
        for name, process in self.processes.items():
            self.rss[name].append((seconds, process.memory_info().rss / MIB))

    def cores(self, seconds: float) -> dict[str, float]:
        """Used by each process since `begin`, of one core."""
        return {
            name: (_cpu_s(process) - self.cpu_s[name]) / seconds
            for name, process in self.processes.items()
        }

    def memory(self) -> dict[str, dict[str, float]]:
        """MiB at the start, after 10 s and at the end; the slope from then on, MiB per minute."""
        return {name: _course(samples) for name, samples in self.rss.items()}


def _course(samples: list[tuple[float, float]]) -> dict[str, float]:
    late = [sample for sample in samples if sample[0] >= 10.0] or samples[-1:]
    return {
        "start": round(samples[0][1], 1),
        "10s": round(late[0][1], 1),
        "end": round(samples[-1][1], 1),
        "mib_per_minute": round(60 * slope(late), 2),
    }


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line of least squares; 0 for fewer than two points."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left when nobody asks any more."""

    stuck: int  # requests running or waiting somewhere
    queued: float  # at the router
    live_streams: float
    held_blocks: float  # of requests and transfers
    blocks: dict[str, float]  # in all, by worker
    series: int  # samples of the router's /metrics


async def at_rest(cluster: Cluster) -> Rest:
    """Waits for it, up to a minute; then says what is there."""

    async def look() -> Rest | None:
        found = await _look(cluster)
        busy = found.stuck or found.queued or found.live_streams or found.held_blocks
        return None if busy else found

    try:
        return await eventually(look, _AT_REST_S)
    except TimeoutError:
        return await _look(cluster)


async def _look(cluster: Cluster) -> Rest:
    workers = await cluster.workers()
    blocks = await cluster.kv_blocks()
    router = parse_metrics((await cluster.http.get("/metrics")).text)

    def total(name: str) -> float:
        return sum(value for (found, _), value in router.items() if found == name)

    return Rest(
        stuck=sum(worker["running"] + worker["waiting"] for worker in workers),
        queued=total("triptych_queued_requests"),
        live_streams=total("triptych_live_streams"),
        held_blocks=sum(
            count
            for states in blocks.values()
            for state, count in states.items()
            if state.split("/")[0] in {"request", "transfer"}
        ),
        blocks={name: sum(states.values()) for name, states in blocks.items()},
        series=len(router),
    )


async def work_of(cluster: Cluster) -> dict[str, float]:
    """Rows that each worker's engine has computed so far."""
    found: dict[str, float] = {}
    for worker in await cluster.workers():
        samples: dict[Any, float] = await cluster.metrics(worker["worker_id"])
        found[worker["worker_id"]] = sum(
            value for (name, _), value in samples.items() if name == "triptych_step_rows_sum"
        )
    return found
