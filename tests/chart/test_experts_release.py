"""k8s/examples/experts.yaml, executed: experts and drafts in pods of their own change no token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from bench.chart import SERVICE, metrics_of, steps, told, told_though, total
from tests.chart.conftest import Rendered
from tests.chart.helm import ROOT
from tests.chart.installed import (
    BODY,
    NEEDS_NAMESPACES,
    READY_S,
    TINY,
    VOLUME,
    installed,
    open_to_all,
)
from triptych.testing.cluster import eventually
from triptych.testing.kubelet.cluster import LocalCluster
from triptych.testing.kubelet.pod import Pod
from triptych.testing.tiny_mixture import tiny_mixture
from triptych_kernels.cpu.native import native

pytestmark = [
    *NEEDS_NAMESPACES,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(native() is None, reason="no native kernels here"),
]
SMALL = (
    'config.pools=[{"name": "prefill", "role": "prefill", "threads": 1},'
    ' {"name": "decode", "role": "decode", "threads": 1},'
    ' {"name": "ffn", "role": "ffn", "replicas": 2, "threads": 1},'
    ' {"name": "draft", "role": "draft", "threads": 1}]',
    # Patience, for the machine may be busy; drafts at every step, whether they pay or not.
    "config.experts.min_deadline_ms=200",
    "config.speculation.mode=fixed",
    "config.speculation.drafters[0].deadline_ms=200",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    rendered: Rendered, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("experts")
    weights = open_to_all(tiny_mixture(folder / "mixture"), folder / "weights")
    release = rendered(ROOT / "k8s/examples/experts.yaml", *TINY, VOLUME, *SMALL)
    async with installed(release.manifests, folder / "state", {"weights": weights}) as running:
        yield running


def pod_of(cluster: LocalCluster, pool: str, number: int = 0) -> Pod:
    return cluster.pods(f"{SERVICE}-{pool}")[number]


async def until_both_ffn_pods_compute(cluster: LocalCluster) -> None:
    """Everything is hosted twice: any of them may go."""

    async def hosted_twice() -> bool:
        pages = [await metrics_of(pod) for pod in cluster.pods(f"{SERVICE}-ffn")]
        units = [total(page, "triptych_ffn_units") for page in pages]
        homes = [await metrics_of(pod_of(cluster, pool)) for pool in ("prefill", "decode")]
        known = [total(page, "triptych_ffn_workers") for page in homes]
        return units == [16, 16] and known == [2, 2]

    await eventually(hosted_twice, timeout_s=60)


async def test_drafts_of_the_draft_pool_are_accepted_and_change_no_token(
    cluster: LocalCluster,
) -> None:
    plain = await told(cluster, {**BODY, "speculation": "off"})
    assert len(plain) > 400, plain
    decode = pod_of(cluster, "decode")

    async def accepted() -> bool:
        page = await metrics_of(decode)
        return total(page, "triptych_accepted_tokens_total", drafter="remote") > 0

    assert not await accepted()

    async def drafted() -> bool:
        # What was answered before is what the same question's drafts are made of.
        assert await told(cluster, BODY) == plain
        return await accepted()

    await eventually(drafted, timeout_s=60)


async def test_an_ffn_pod_that_is_killed_under_a_stream_takes_no_token_with_it(
    cluster: LocalCluster,
) -> None:
    await until_both_ffn_pods_compute(cluster)
    undisturbed = await told(cluster, BODY)
    at_the_kill = 0.0

    async def kill(before: Mapping[Pod, float]) -> None:
        nonlocal at_the_kill
        await cluster.delete_pod(pod_of(cluster, "ffn"), grace_s=0)
        at_the_kill = await home_steps()

    async def home_steps() -> float:
        return sum((await steps(cluster, "decode")).values())

    async def in_time() -> bool:
        return await home_steps() > at_the_kill

    assert await told_though(cluster, BODY, kill, in_time) == undisturbed
    assert await in_time(), "the answer had always ended before"
    await cluster.until_settled(READY_S)
    await until_both_ffn_pods_compute(cluster)
    assert await told(cluster, BODY) == undisturbed
    for number in range(2):
        page = await metrics_of(pod_of(cluster, "ffn", number))
        assert total(page, "triptych_ffn_messages_answered_total") > 0
