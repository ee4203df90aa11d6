"""A cluster with every process on a host of its own (triptych.testing.hosts), over real TCP.

async with Network.create() as network, distant_cluster(network, config, folder) as cluster:
    await cluster.hosts["prefill-0"].limit(rate_mbit=100)
    await cluster.http.post("/v1/completions", ...)
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from triptych.config import ClusterConfig, dump_config
from triptych.testing.cluster import ClusterView, eventually
from triptych.testing.hosts import Host, Network, child_of

_HTTP, _REGISTRY, _GRPC = 8000, 7100, 7000


@dataclass(frozen=True, slots=True)
class DistantCluster(ClusterView):
    """`hosts` by the process that runs there: "router", and workers by id."""

    network: Network
    config: ClusterConfig
    folder: Path  # the config, run directories and logs
    hosts: dict[str, Host] = field(default_factory=dict)
    _processes: dict[str, Process] = field(default_factory=dict)

    async def start_worker(self, worker_id: str) -> Host:
        """On a new host, with an address that nobody had before."""
        pool_name = worker_id.rpartition("-")[0]
        pool = self.config.pool(pool_name)
        host = await self._host(worker_id)
        await self._start(
            worker_id,
            f"{pool.role}_worker",
            f"--pool={pool_name}",
            f"--id={worker_id}",
            f"--registry={self.hosts['router'].address}:{_REGISTRY}",
            f"--host={host.address}",
            f"--port={_GRPC}",
            f"--domain={host.address}",
        )
        return host

    async def start_router(self) -> None:
        await self._start(
            "router", "router", f"--port={_HTTP}", f"--registry-listen=0.0.0.0:{_REGISTRY}"
        )

    async def kill_host(self, name: str) -> None:
        """Power off: every process of it is gone, and so is its address."""
        await self.hosts.pop(name).end()
        await self._processes.pop(name).wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        pid = child_of(self._processes[name])
        assert pid is not None, f"{name} is not running"
        os.kill(pid, number)

    def resent_segments(self, name: str) -> int:
        """What TCP had to send once more, as the kernel of this host counts it."""
        pid = child_of(self._processes[name])
        heads, values = [
            line.split() for line in Path(f"/proc/{pid}/net/snmp").read_text().splitlines()
            if line.startswith("Tcp:")
        ]  # fmt: skip
        return int(values[heads.index("RetransSegs")])

    async def until_serving(self, timeout_s: float = 120.0) -> None:
        """All workers of the config are attached."""
        wanted = {f"{pool.name}-{i}" for pool in self.config.pools for i in range(pool.replicas)}

        async def complete() -> bool:
            for name, process in self._processes.items():
                assert process.returncode is None, self.log(name)
            try:
                return wanted <= {worker["worker_id"] for worker in await self.workers()}
            except httpx.TransportError:
                return False  # the router does not listen yet

        await eventually(complete, timeout_s)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    async def end(self) -> None:
        for host in self.hosts.values():
            await host.end()
        for process in self._processes.values():
            await process.wait()

    async def _host(self, name: str) -> Host:
        host = self.hosts[name] = await self.network.add_host(name)
        return host

    async def _start(self, name: str, module: str, *options: str) -> None:
        run_dir = self.folder / name
        run_dir.mkdir(exist_ok=True)
        argv = [sys.executable, "-m", module, f"--config={self.folder / 'config.yaml'}"]
        env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # hosts share this machine's cores
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = await self.hosts[name].start(
                [*argv, f"--run-dir={run_dir}", *options], env=env, log=log
            )


@contextlib.asynccontextmanager
async def distant_cluster(
    network: Network, config: ClusterConfig, folder: Path
) -> AsyncIterator[DistantCluster]:
    """`config.router.host` must let others in, e.g. 0.0.0.0. Ends with all processes killed."""
    (folder / "config.yaml").write_text(dump_config(config))
    router = await network.add_host("router")
    url = f"http://{router.address}:{_HTTP}"
    async with httpx.AsyncClient(base_url=url, timeout=600.0, trust_env=False) as http:
        cluster = DistantCluster(url, http, network, config, folder, {"router": router})
        try:
            await cluster.start_router()
            for pool in config.pools:
                for number in range(pool.replicas):
                    await cluster.start_worker(f"{pool.name}-{number}")
            await cluster.until_serving()
            yield cluster
        finally:
            await cluster.end()
