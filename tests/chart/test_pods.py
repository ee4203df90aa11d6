"""The stand-in for Kubernetes does with small pods what Kubernetes would do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from triptych.testing.hosts import why_not
from triptych.testing.kubelet.cluster import LocalCluster, NotSettled
from triptych.testing.kubelet.volumes import Image, users_are_ours

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(why_not() is not None, reason=f"no namespaces: {why_not()}"),
]
ROOT = Path(__file__).parents[2]
# Serves what it sees of itself; /break makes /live fail; says in its log how it was stopped.
SERVER = """
import http.server, json, os, pathlib, signal, socket, sys
def writable(path):
    try:
        (pathlib.Path(path) / "probe").write_text("x")
        return True
    except OSError:
        return False
broken = False
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global broken
        broken = broken or self.path == "/break"
        seen = {"uid": os.getuid(), "host": socket.gethostname(), "argv": sys.argv[1:],
                "writable": [path for path in ("/", "/usr", "/data") if writable(path)],
                "processes": sum(name.isdigit() for name in os.listdir("/proc")),
                "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
                "files": {p.name: p.read_text() for p in pathlib.Path("/data").glob("*.txt")},
                "service": socket.gethostbyname("web")}
        self.send_response(503 if broken and self.path == "/live" else 200)
        self.end_headers()
        self.wfile.write(json.dumps(seen).encode())
    def log_message(self, *_): pass
def stop(*_):
    print("stopped, hook ran:", os.path.exists("/data/hook"), flush=True)
    if "--stubborn" not in sys.argv: os._exit(0)
signal.signal(signal.SIGTERM, stop)
http.server.HTTPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
"""
SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
}


def field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def web(*args: str, replicas: int = 1, mark: str = "", **pod: Any) -> dict[str, Any]:
    """A Deployment of SERVER. `mark` tells templates apart."""
    look = {"httpGet": {"path": "/live", "port": "http"}, "periodSeconds": 0.1, "timeoutSeconds": 5}
    container = {
        "name": "web",
        "image": "unused",
        "command": ["python", "-c", SERVER],
        "args": list(args),
        "env": [field("POD_IP", "status.podIP"), field("POD_NAME", "metadata.name")],
        "ports": [{"name": "http", "containerPort": 8080}],
        "startupProbe": {**look, "failureThreshold": 600},
        "readinessProbe": look,
        "livenessProbe": {**look, "failureThreshold": 2},
        "lifecycle": {"preStop": {"exec": {"command": ["touch", "/data/hook"]}}},
        "securityContext": {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    init = {
        "name": "fill",
        "image": "unused",
        "command": ["sh", "-c", "echo -n $(WORD) > /data/word.txt"],
        "env": [{"name": "WORD", "value": "hello"}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    spec = {
        "containers": [container],
        "initContainers": [init],
        "securityContext": {"runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001},
        "terminationGracePeriodSeconds": 20,
        "volumes": [
            {"name": "data", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        ],
        **pod,
    }
    labels = {"app": "web", "mark": mark}
    template = {"metadata": {"labels": labels}, "spec": spec}
    rolling = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "template": template, "strategy": rolling},
    }


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    image = Image.of_checkout(ROOT, tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    async with LocalCluster.create(image, state, namespace="llm") as running:
        yield running


async def ask(cluster: LocalCluster, path: str = "/") -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as http:
        found: dict[str, Any] = (await http.get(cluster.url_of("web", 80) + path)).json()
    return found


async def test_a_container_sees_what_its_pod_says_and_nothing_else(cluster: LocalCluster) -> None:
    await cluster.apply([SERVICE, web("--name=$(POD_NAME)", "$$(POD_NAME)")])
    await cluster.until_settled(timeout_s=60)
    [pod] = cluster.pods("web")
    seen = await ask(cluster)
    assert seen["host"] == pod.identity.name
    assert seen["argv"] == [f"--name={pod.identity.name}", "$(POD_NAME)"]
    assert seen["files"] == {"word.txt": "hello"}  # of the init container
    assert seen["writable"] == ["/data"]
    assert seen["shm"] == 8 << 20
    assert seen["processes"] < 10
    assert cluster.url_of("web", 80) == f"http://{seen['service']}:80"
    assert seen["uid"] == 10001 or not users_are_ours()


async def test_what_is_not_alive_is_started_again_in_the_same_pod(cluster: LocalCluster) -> None:
    await cluster.apply([SERVICE, web()])
    await cluster.until_settled(timeout_s=60)
    [pod] = cluster.pods("web")
    await ask(cluster, "/break")
    await cluster.until(lambda _: not pod.ready, timeout_s=60)
    await cluster.until_settled(timeout_s=60)
    assert cluster.pods("web") == [pod]
    assert pod.restarts == 1
    assert "stopped" in pod.log()
    assert await ask(cluster)


async def test_a_deleted_pod_runs_its_hook_ends_and_is_replaced(cluster: LocalCluster) -> None:
    await cluster.apply([SERVICE, web()])
    await cluster.until_settled(timeout_s=60)
    [pod] = cluster.pods("web")
    await cluster.delete_pod(pod)
    assert "stopped, hook ran: True" in pod.log()
    assert not pod.cut_short
    await cluster.until_settled(timeout_s=60)
    [other] = cluster.pods("web")
    assert other.identity.name != pod.identity.name
    assert other.address != pod.address


async def test_who_does_not_end_is_killed_when_its_grace_is_over(cluster: LocalCluster) -> None:
    await cluster.apply([SERVICE, web("--stubborn", terminationGracePeriodSeconds=1)])
    await cluster.until_settled(timeout_s=60)
    [pod] = cluster.pods("web")
    await cluster.uninstall()
    assert pod.cut_short
    assert "stopped" in pod.log()
    assert cluster.pods() == []


async def test_an_upgrade_never_leaves_the_service_without_a_pod(cluster: LocalCluster) -> None:
    await cluster.apply([SERVICE, web(replicas=2, mark="old")])
    await cluster.until_settled(timeout_s=60)
    old = cluster.pods("web")
    fewest = 2

    def count(running: LocalCluster) -> bool:
        nonlocal fewest
        fewest = min(fewest, sum(p.ready and not p.stopping for p in running.pods("web")))
        return all(pod.gone.is_set() for pod in old)

    await cluster.apply([SERVICE, web(replicas=2, mark="new")])
    await cluster.until(count, timeout_s=60)
    await cluster.until_settled(timeout_s=60)
    assert fewest == 2
    assert {pod.identity.labels["mark"] for pod in cluster.pods("web")} == {"new"}


async def test_a_test_hook_is_run_to_its_end_and_told_when_it_fails(cluster: LocalCluster) -> None:
    def hook(script: str) -> dict[str, Any]:
        container = {"name": "check", "image": "unused", "command": ["sh", "-c", script]}
        return {
            "kind": "Pod",
            "metadata": {"name": "check", "annotations": {"helm.sh/hook": "test"}},
            "spec": {"restartPolicy": "Never", "containers": [container]},
        }

    [pod] = await cluster.run_hooks([SERVICE, hook("echo fine")])
    assert pod.log().strip() == "fine"
    with pytest.raises(NotSettled, match="ended with 3:\nbroken"):
        await cluster.run_hooks([hook("echo broken; exit 3")])


async def test_a_pod_that_can_never_start_is_told_with_its_reason(cluster: LocalCluster) -> None:
    volume = {"name": "c", "configMap": {"name": "lost"}}
    await cluster.apply([SERVICE, web(volumes=[volume])])
    with pytest.raises(NotSettled, match="no configMap like"):
        await cluster.until_settled(timeout_s=60)
