"""What becomes of a stream when a node of a Ray cluster dies under it?

    python -m bench.ray_nodes

Three Ray nodes on this machine, of which one has the driver and two have the workers: two homes
and a prefill worker. One answer is streamed undisturbed; then the same one, and its home's node is
killed in its midst: Ray's processes there and the workers. The text must be the same, and the
cluster whole again without anybody's order (exit code 1 if not). It must not be Ray that tokens
and KV pass through: no worker, nor the router, has Ray's library in its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import signal
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.report import finish, print_table
from triptych.config import ClusterConfig, load_config
from triptych.hub import pull_model
from triptych.launch.base import ProcessState
from triptych.launch.ray_launcher import RayLauncher
from triptych.testing.checkpoints import tiny_llama

WORKERS = ("decode-0", "decode-1", "prefill-0")
CORES = 4  # that a Ray node claims to have: the survivor takes all workers
BEFORE_KILL = 20  # pieces of the answer that have come by then
RAYS = "/ray/_raylet"  # in the path of its library


def config_of(options: argparse.Namespace, model: str) -> ClusterConfig:
    pools = [
        {"name": "decode", "role": "decode", "replicas": 2, "threads": 1},
        {"name": "prefill", "role": "prefill", "replicas": 1, "threads": 1},
    ]
    settings = ["router.port=0", "served_model_name=m", "kv.memory=128MiB", "drain_s=5"]
    return load_config(None, [f"model={model}", *settings, f"pools={json.dumps(pools)}"])


@contextlib.contextmanager
def ray_nodes(folder: Path) -> Iterator[Any]:
    """A ray.cluster_utils.Cluster. Ray keeps logs and sockets in `folder`, and never removes it."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_worker_prestart": "0",  # idle processes for each claimed core
        "RAY_prestart_worker_first_driver": "0",
        "RAY_raylet_start_wait_time_s": "180",
    }
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder)}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=CORES, include_dashboard=False)
        yield cluster
    finally:
        cluster.shutdown()


async def streamed(http: httpx.AsyncClient, tokens: int, kill: Any = None) -> tuple[str, float]:
    """Text, and the longest time between two pieces. `kill` is called behind some of them."""
    body = {
        "model": "m",
        "prompt": "Once upon a time there was a machine that nobody could stop. " * 4,
        "max_tokens": tokens,
        "temperature": 0.8,
        "seed": 7,
        "ignore_eos": True,
        "stream": True,
    }
    pieces: list[str] = []
    longest, before = 0.0, time.monotonic()
    async with http.stream("POST", "/v1/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            now = time.monotonic()
            longest, before = max(longest, now - before), now
            pieces += [choice["text"] for choice in event["choices"]]
            if kill is not None and len(pieces) == BEFORE_KILL:
                await kill()
                kill = None
    return "".join(pieces), longest


async def busiest(http: httpx.AsyncClient) -> str:
    """The home that has the stream."""
    while True:
        workers = (await http.get("/workers")).json()["workers"]
        homes = [w["worker_id"] for w in workers if w["role"] == "decode" and w["running"]]
        if homes:
            return str(homes[0])
        await asyncio.sleep(0.02)


def with_ray(pids: Collection[int]) -> list[int]:
    """Those of them that have Ray's library in memory."""
    return [pid for pid in pids if RAYS in Path(f"/proc/{pid}/maps").read_text()]


def pids_of(launcher: RayLauncher) -> list[int]:
    pids = [launcher.pid(name) for name in ("router", *WORKERS)]
    assert None not in pids, "all of them run"
    return [pid for pid in pids if pid is not None]


def adopt_orphans() -> None:
    """Descendants whose parents are killed become children of this process: none is overlooked."""
    pr_set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def still_running() -> list[str]:
    children = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(children, timeout=5.0)  # zombies are reaped by it
    return [process.name() for process in alive]


class Restarts:
    """Workers that are ready again after a loss."""

    def __init__(self, launcher: RayLauncher) -> None:
        self._launcher = launcher
        self.ready: set[str] = set()
        self._news = asyncio.Event()

    async def watch(self) -> None:
        async for event in self._launcher.watch():
            if event.state is ProcessState.READY and event.restarts:
                self.ready.add(event.name)
                self._news.set()

    async def wait_for(self, names: Collection[str]) -> None:
        while not self.ready >= set(names):
            self._news.clear()
            await self._news.wait()


async def measure(options: argparse.Namespace, cluster: Any, model: str, folder: Path) -> Any:
    config = config_of(options, model)
    began = time.monotonic()
    async with RayLauncher(config, folder / "run", address=cluster.address) as launcher:
        url = await launcher.wait_ready(options.patience)
        ready_s = time.monotonic() - began
        restarts = Restarts(launcher)
        watching = asyncio.create_task(restarts.watch())
        async with httpx.AsyncClient(base_url=url, timeout=options.patience) as http:
            undisturbed, _ = await streamed(http, options.tokens)
            of_ray = with_ray(pids_of(launcher))
            driver = with_ray([os.getpid()])
            lost: list[str] = []
            killed_at = 0.0

            async def kill() -> None:
                nonlocal lost, killed_at
                node = launcher.node(await busiest(http))
                lost = [name for name in WORKERS if launcher.node(name) == node]
                killed_at = time.monotonic()
                kill_node(cluster, str(node), [launcher.pid(name) for name in lost])

            text, pause_s = await streamed(http, options.tokens, kill)
            async with asyncio.timeout(options.patience):
                await restarts.wait_for(lost)
            whole_s = time.monotonic() - killed_at
            again, _ = await streamed(http, options.tokens)
            of_ray += with_ray(pids_of(launcher))  # and the restarted ones
        stop_began = time.monotonic()
    await watching
    return {
        "ready_s": ready_s,
        "lost": lost,
        "pause_s": pause_s,
        "whole_again_s": whole_s,
        "stop_s": time.monotonic() - stop_began,
        "same_text": undisturbed == text == again,
        "processes_with_ray": len(of_ray),
        "driver_has_ray": bool(driver),  # else the line above would show nothing
    }


def kill_node(cluster: Any, node_id: str, pids: Collection[int | None]) -> None:
    """As if its machine lost power: Ray's processes and the workers, none of them asked."""
    for pid in pids:
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    [node] = [node for node in cluster.worker_nodes if node.node_id == node_id]
    cluster.remove_node(node, allow_graceful=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ray_nodes", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="`tiny`: small layers of noise")
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--patience", type=float, default=240.0, help="seconds, for each step")
    parser.add_argument("--save", type=Path, help="keep the result with machine and commit")
    options = parser.parse_args()
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        model = options.model
        if model == "tiny":
            model = str(tiny_llama(Path(folder) / "tiny"))
        elif model == "smollm2-135m":
            pull_model(model)
        with ray_nodes(Path(folder) / "ray") as cluster:
            result = asyncio.run(measure(options, cluster, model, Path(folder)))
    left = still_running()
    result["left_running"] = left
    print_table("a node of Ray dies", ["", "value"], [[*item] for item in result.items()])
    finish(result, options.save)
    good = result["same_text"] and not result["processes_with_ray"] and not left
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
