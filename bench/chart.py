"""The life of a Helm release: installed, asked, hurt, upgraded, uninstalled; what each takes.

The chart is rendered by helm; pods run in namespaces of this machine (triptych/testing/kubelet), so
there is no pull of images, and all pods share this machine's cores. Every answer is compared with
the undisturbed one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.report import finish, print_table
from tests.chart.helm import NAMESPACE, RELEASE, ROOT, Helm, find_helm
from triptych.config import cache_dir
from triptych.hub import pull_model
from triptych.testing.cluster import parse_metrics
from triptych.testing.kubelet.cluster import LocalCluster, NotSettled
from triptych.testing.kubelet.pod import Pod
from triptych.testing.kubelet.variables import Manifest
from triptych.testing.kubelet.volumes import Image
from triptych_kernels.cpu.native import native

SERVICE = f"{RELEASE}-triptych"
_PATIENCE_S = 300.0
_ATTEMPTS = 3


@dataclass(slots=True)
class Life:
    """What was seen. `wrong`: answers that are not the undisturbed one, or never came."""

    stages: dict[str, float] = field(default_factory=dict)  # seconds
    answer: str = ""
    after_kill: str = ""
    continued: float = 0.0  # streams that another home went on with, after the kill
    during_upgrade: int = 0  # answers
    wrong: list[str] = field(default_factory=list)
    ended_badly: list[str] = field(
        default_factory=list
    )  # did not drain in time, or exit code not 0
    doctor: str = ""
    left_over: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.stages[name] = time.perf_counter() - began


async def live(
    cluster: LocalCluster,
    first: Sequence[Manifest],
    second: Sequence[Manifest],
    body: dict[str, Any],
    clients: int = 2,
) -> Life:
    """`first` is installed, and upgraded to `second`. Both have two decode workers or more.

    Raises NotSettled.
    """
    life, before = Life(), _traces(cluster.node.state)
    with life.stage("install until ready"):
        await cluster.apply(first)
        await cluster.until_settled(_PATIENCE_S)
    with life.stage("helm test"):
        life.doctor = "\n".join(pod.log() for pod in await cluster.run_hooks(first))
    with life.stage("completion"):
        life.answer = await told(cluster, body)
    with life.stage("completion, its home killed in the middle"):
        life.after_kill = await told_though_killed(cluster, body)
    life.continued = await continuations(cluster)
    with life.stage("replaced"):
        await cluster.until_settled(_PATIENCE_S)
    with life.stage("upgrade under streams"):
        await upgrade(cluster, second, body, clients, life)
    pods = cluster.pods()
    with life.stage("uninstall"):
        await cluster.uninstall()
    life.ended_badly += badly_ended(pods)
    life.left_over = sorted(_traces(cluster.node.state) - before)
    return life


async def told(
    cluster: LocalCluster,
    body: dict[str, Any],
    midway: Callable[[], Awaitable[None]] | None = None,
    *,
    key: str = "none",
) -> str:
    """The text of a streamed chat answer. `midway` is awaited when it has begun."""
    text = ""
    async with (
        client_of(cluster, key) as http,
        http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply,
    ):
        if reply.status_code != 200:
            return f"status {reply.status_code}: {(await reply.aread()).decode()}"
        ended = False
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                ended = ended or line == "data: [DONE]"
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                return f"{text} [error: {event['error']}]"
            text += "".join(each["delta"].get("content") or "" for each in event["choices"])
            if midway is not None and len(text) > 8:
                await midway()
                midway = None
    return text if ended else f"{text} [broken off]"


def client_of(cluster: LocalCluster, key: str = "none") -> httpx.AsyncClient:
    """Of the release's routers; `key` is the API's."""
    return httpx.AsyncClient(
        base_url=cluster.url_of(SERVICE, 8000),
        headers={"Authorization": f"Bearer {key}"},
        timeout=_PATIENCE_S,
        trust_env=False,
    )


async def told_though_killed(cluster: LocalCluster, body: dict[str, Any]) -> str:
    """An answer whose home is deleted by force when it has begun."""

    async def kill_home(before: Mapping[Pod, float]) -> None:
        now = await steps(cluster, "decode")
        home = max(now, key=lambda pod: now[pod] - before.get(pod, 0))
        await cluster.delete_pod(home, grace_s=0)

    async def went_on() -> bool:
        return await continuations(cluster) > 0

    return await told_though(cluster, body, kill_home, went_on)


async def told_though(
    cluster: LocalCluster,
    body: dict[str, Any],
    hurt: Callable[[Mapping[Pod, float]], Awaitable[None]],
    in_time: Callable[[], Awaitable[bool]],
) -> str:
    """An answer under which something happens, once it has begun.

    `hurt` is given the decode pods' steps before the answer. Asked again where the answer had
    ended before that, as `in_time` tells.
    """
    for _ in range(_ATTEMPTS):
        before = await steps(cluster, "decode")
        text = await told(cluster, body, functools.partial(hurt, before))
        if await in_time():
            break
        await cluster.until_settled(_PATIENCE_S)
    return text


async def steps(cluster: LocalCluster, pool: str) -> dict[Pod, float]:
    """Engine steps of each ready pod so far: who has made one more is at work."""
    ready = [pod for pod in cluster.pods(f"{SERVICE}-{pool}") if pod.ready and not pod.stopping]
    return {pod: total(await metrics_of(pod), "triptych_steps_total") for pod in ready}


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def metrics_of(pod: Pod, port: int = 9090) -> Samples:
    """Of a worker. As it is now; what routers tell of workers is a report old."""
    async with httpx.AsyncClient(trust_env=False) as http:
        return parse_metrics((await http.get(f"http://{pod.address}:{port}/metrics")).text)


def total(samples: Samples, family: str, **labels: str) -> float:
    """Over all samples of a family that have these labels."""
    return sum(
        value
        for (name, found), value in samples.items()
        if name == family and labels.items() <= dict(found).items()
    )


async def continuations(cluster: LocalCluster) -> float:
    """Of all routers so far."""
    routers = cluster.pods(f"{SERVICE}-router")
    pages = [await metrics_of(router, port=8000) for router in routers]
    return sum(total(page, "triptych_router_continuations_total") for page in pages)


async def upgrade(
    cluster: LocalCluster,
    manifests: Sequence[Manifest],
    body: dict[str, Any],
    clients: int,
    life: Life,
) -> None:
    """While clients ask one after the other, each time over a new connection."""
    done = asyncio.Event()

    async def ask_on() -> None:
        while not done.is_set():
            try:
                text = await told(cluster, body)
            except httpx.HTTPError as error:
                text = repr(error)
            life.during_upgrade += 1
            if text != life.answer:
                life.wrong.append(text)

    old = cluster.pods()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(ask_on())
        await cluster.apply(manifests)
        try:
            await cluster.until_settled(_PATIENCE_S)
        finally:
            done.set()
    life.ended_badly += badly_ended(old)


def badly_ended(pods: Sequence[Pod]) -> list[str]:
    return [each.identity.name for each in pods if each.cut_short or each.exit_code]


def _traces(state: Path) -> set[str]:
    """Network namespaces of our processes, mounts, and pods' files but for logs."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(OSError):
            found.add(f"namespace {os.readlink(f'/proc/{process.pid}/ns/net')}")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found |= {f"mount {line}" for line in mounts if str(state) in line}
    return found | {f"file {path}" for path in state.glob("*/*") if path.suffix not in {".log"}}


def this_image() -> Image:
    """This checkout, with kernels compiled, as they are in images."""
    native()
    return Image.of_checkout(ROOT, cache_dir())


async def run(arguments: argparse.Namespace, folder: Path) -> Life:
    helm = Helm(find_helm(folder), folder)
    settings = ["config.router.replicas=2", *arguments.set]
    first = helm.render(arguments.values, *settings).manifests
    second = helm.render(arguments.values, *settings, arguments.change).manifests
    image = this_image()
    state = folder / "state"
    state.mkdir()
    question = [{"role": "user", "content": "Tell me how bread is made, from the grain on."}]
    body = {
        "model": arguments.model,
        "messages": question,
        "max_tokens": arguments.tokens,
        "seed": 7,
        "ignore_eos": True,
    }
    async with LocalCluster.create(image, state, namespace=NAMESPACE) as cluster:
        try:
            return await live(cluster, first, second, body)
        except NotSettled:
            print(cluster.report("failed"))
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=Path, help="a values file (default: the chart's own)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--change", default="config.engine.max_running=32", help="of the upgrade")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    if arguments.model == "smollm2-135m":
        pull_model(arguments.model)
    with tempfile.TemporaryDirectory(prefix="triptych-chart-") as folder:
        life = asyncio.run(run(arguments, Path(folder)))
    rows = [[name, seconds] for name, seconds in life.stages.items()]
    print_table("The life of a release", ["stage", "seconds"], rows)
    same = life.after_kill == life.answer
    print(f"the same answer after its home was killed: {same} ({life.continued:.0f} continued)")
    print(f"answers during the upgrade: {life.during_upgrade}, other or lost: {len(life.wrong)}")
    print(f"pods that ended badly: {life.ended_badly}; left over: {life.left_over}")
    result = {
        "seconds": life.stages,
        "same_after_kill": same,
        "continued": life.continued,
        "answers_during_upgrade": life.during_upgrade,
        "wrong_during_upgrade": life.wrong,
        "ended_badly": life.ended_badly,
        "left_over": life.left_over,
    }
    finish(result, arguments.save)


if __name__ == "__main__":
    main()
