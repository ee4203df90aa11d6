"""k8s/examples/tls.yaml, executed: mutual TLS between pods, API keys out of a Secret."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.chart import SERVICE, client_of, told
from tests.chart.conftest import Rendered
from tests.chart.helm import ROOT, Manifest, Release, pools
from tests.chart.installed import BODY, NEEDS_NAMESPACES, TINY, VOLUME, installed, open_to_all
from triptych.testing.kubelet.cluster import LocalCluster

pytestmark = NEEDS_NAMESPACES
KEYS = {"shop": "a-key-of-the-shop", "batch": "another"}
# As `kubectl create secret generic` makes it, which the file asks its reader to do.
API_KEYS: Manifest = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "triptych-keys"},
    "data": {name: base64.b64encode(key.encode()).decode() for name, key in KEYS.items()},
}


@pytest.fixture
def release(rendered: Rendered) -> Release:
    """Without cert-manager, which this stand-in has not."""
    example = ROOT / "k8s/examples/tls.yaml"
    two = pools(("prefill", "prefill"), ("decode", "decode"))
    return rendered(example, *TINY, VOLUME, two, "tls.source=generated")


@pytest.fixture
async def cluster(
    release: Release, tiny_model: Path, tmp_path: Path
) -> AsyncIterator[LocalCluster]:
    weights = open_to_all(tiny_model, tmp_path / "weights")
    manifests = [*release.manifests, API_KEYS]
    async with installed(manifests, tmp_path / "state", {"weights": weights}) as running:
        yield running


async def test_pods_talk_over_mutual_tls_and_turn_others_away(
    cluster: LocalCluster, release: Release
) -> None:
    body = {**BODY, "max_tokens": 64}
    assert len(await told(cluster, body, key=KEYS["shop"])) > 40
    assert (await told(cluster, body, key="a-wrong-one")).startswith("status 401")
    [doctor] = await cluster.run_hooks([*release.manifests, API_KEYS])
    assert doctor.log().rstrip().endswith("healthy")
    assert re.search(r"KV path +\S+-prefill-\S+ to \S+-decode-\S+: tcp", doctor.log())
    async with client_of(cluster, KEYS["shop"]) as http:
        workers = (await http.get("/workers")).json()["workers"]
    assert len(workers) == 2
    certificates = {
        key: base64.b64decode(value) for key, value in release.get("Secret", "tls")["data"].items()
    }
    ca, cert, key = (certificates[name] for name in ("ca.crt", "tls.crt", "tls.key"))
    registries = [f"{pod.address}:7100" for pod in cluster.pods(f"{SERVICE}-router")]
    for address in (*registries, *(worker["address"] for worker in workers)):
        assert await answers(address, grpc.ssl_channel_credentials(ca, key, cert))
        assert not await answers(address, grpc.ssl_channel_credentials(ca))
        assert not await answers(address, None)


async def answers(address: str, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether a gRPC server tells a client with these credentials that it serves."""
    named = [("grpc.ssl_target_name_override", "triptych")]
    opened = (
        grpc.aio.insecure_channel(address)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, named)
    )
    async with opened:
        try:
            request = health_pb2.HealthCheckRequest()
            reply = await health_pb2_grpc.HealthStub(opened).Check(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
