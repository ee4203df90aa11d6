"""`model.fetch`, executed: init containers bring weights from servers of ours, or say why not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from bench.chart import told
from tests.chart.conftest import Rendered
from tests.chart.helm import Manifest, pools
from tests.chart.installed import BODY, NEEDS_NAMESPACES, READY_S, TINY, installed
from triptych.testing.checkpoints import tiny_llama
from triptych.testing.file_server import FileServer, serving
from triptych.testing.kubelet.cluster import LocalCluster

pytestmark = NEEDS_NAMESPACES
ALONE = pools(("decode", "decode"))
MIB = 1 << 20


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Empty."""
    async with installed([], tmp_path / "state", claims={}) as running:
        yield running


@pytest.fixture
def server(cluster: LocalCluster, tmp_path: Path) -> Iterator[FileServer]:
    """Pods reach it. The model as a folder with a list of checksums, and as a hub's repository."""
    model = tiny_llama(tmp_path / "model", num_layers=16)  # so large that half of it is some MiB
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in files.items()]
    with serving(cluster.node.network.gateway) as running:
        running.files = {f"/tiny/{name}": data for name, data in files.items()}
        running.files["/tiny/SHA256SUMS"] = "\n".join(sums).encode()
        running.repos = {"org/tiny": files}
        yield running


Fetching = Callable[..., list[Manifest]]


@pytest.fixture
def fetching(rendered: Rendered, server: FileServer) -> Fetching:
    """fetching(source, sha256) → a release of one router and one worker, each with an emptyDir."""

    def manifests(source: str, sha256: str = "") -> list[Manifest]:
        endpoint = json.dumps([{"name": "HF_ENDPOINT", "value": server.url}])
        fetch = [f"model.fetch.source={source}", f"model.fetch.env={endpoint}"]
        fetch.append("pods.router.preStopSeconds=0")  # no load balancer has to learn of anything
        if sha256:
            fetch.append(f'model.fetch.sha256="{sha256}"')
        return list(rendered(None, *TINY, ALONE, *fetch).manifests)

    return manifests


def logs(cluster: LocalCluster) -> list[str]:
    """Of each pod that stays."""
    return [pod.log() for pod in cluster.pods() if not pod.stopping]


async def test_pods_start_from_what_was_fetched_and_verified_and_from_nothing_else(
    cluster: LocalCluster, server: FileServer, fetching: Fetching
) -> None:
    url = f"{server.url}/tiny/SHA256SUMS"
    await cluster.apply(fetching(url, "0" * 64))
    wrong = f"{url}: has a wrong checksum, expected sha256:{'0' * 64}"
    await cluster.until(
        lambda _: len(logs(cluster)) == 2 and all(wrong in log for log in logs(cluster)), READY_S
    )
    assert not any(pod.ready for pod in cluster.pods())
    assert {path for path, _ in server.asked} == {"/tiny/SHA256SUMS"}

    server.longest = 3 * MIB // 2
    right = hashlib.sha256(server.files["/tiny/SHA256SUMS"]).hexdigest()
    await cluster.apply(fetching(url, right))
    await cluster.until_settled(READY_S)
    weights = [asked for path, asked in server.asked if path == "/tiny/model.safetensors"]
    assert weights.count(f"bytes={MIB}-") == 2, "of the router's pod and of the worker's"
    assert all(f"fetching {url}: 2 of 2 MiB" in log for log in logs(cluster))
    answer = await told(cluster, BODY)
    assert len(answer) > 400, answer

    server.asked.clear()
    await cluster.apply(fetching("hf://org/tiny"))
    await cluster.until_settled(READY_S)
    assert {path.split("/resolve/")[0] for path, _ in server.asked} == {"/org/tiny"}
    assert all("fetching hf://org/tiny: 2 of 2 MiB" in log for log in logs(cluster))
    assert await told(cluster, BODY) == answer
