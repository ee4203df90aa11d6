"""What can be switched on, and what it renders then."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from tests.chart.conftest import Rendered
from tests.chart.helm import RELEASE, ROOT, Release, pools
from tests.unit.test_docs import families, samples_of
from triptych.config import load_config

EXAMPLES = ROOT / "k8s/examples"
FULLNAME = f"{RELEASE}-triptych"

EVERYTHING = (  # that no example has, so that each manifest is validated once
    pools(("prefill", "prefill"), ("decode", "decode"), ("ffn", "ffn")),
    "pods.ffn.autoscaling.enabled=true",
    "pods.prefill.autoscaling.enabled=true",
    "pods.decode.autoscaling.enabled=true",
    "pods.decode.autoscaling.kind=keda",
    "pods.decode.hostNetwork=true",
    "pods.decode.ports.grpc=7001",
    "pods.decode.ports.metrics=7002",
    "pods.decode.priorityClassName=high",
    "pods.decode.schedulerName=other",
    "pods.decode.rdma.ipcLock=true",
    "tls.enabled=true",
    "monitoring.scrape.enabled=true",
    "monitoring.rules.enabled=true",
    "monitoring.dashboard.enabled=true",
    "monitoring.prometheusUrl=http://prometheus:9090",
    "config.transport.links={nixl,tcp}",
    "inferencePool.enabled=true",
    "inferencePool.endpointPicker.name=picker",
    "image.digest=sha256:" + 64 * "a",
    "config.router.api_keys={secret-key}",
)


@pytest.fixture(scope="module")
def everything(rendered: Rendered) -> Release:
    return rendered(None, *EVERYTHING)


def test_nothing_optional_is_rendered_by_default(rendered: Rendered) -> None:
    kinds = {each["kind"] for each in rendered().manifests}
    assert kinds == {
        "ConfigMap",
        "Deployment",
        "Pod",  # of helm test
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
        "StatefulSet",
    }


def test_api_keys_in_the_config_make_it_a_secret(everything: Release, rendered: Rendered) -> None:
    assert "secret-key" in everything.config
    assert everything.get("Secret")["stringData"]
    assert not [each for each in everything.kinds("ConfigMap") if "config.yaml" in each["data"]]
    [volume] = [v for v in everything.pod("decode")["spec"]["volumes"] if v["name"] == "config"]
    assert volume["secret"] == {"secretName": FULLNAME}
    tenant = ("config.router.tenants[0].name=a", "config.router.tenants[0].keys={b}")
    assert rendered(None, *tenant).get("Secret")["stringData"]


def test_keys_in_a_secret_of_your_own_are_files_for_the_routers_alone(rendered: Rendered) -> None:
    release = rendered(EXAMPLES / "tls.yaml")
    assert "/etc/triptych/keys" in mounts(release, "router")
    assert "/etc/triptych/keys" not in mounts(release, "decode")
    assert not release.kinds("Secret")


def mounts(release: Release, pool: str) -> list[str]:
    return [each["mountPath"] for each in release.container(pool)["volumeMounts"]]


def test_generated_certificates_are_signed_by_their_ca_and_bear_the_servers_name(
    everything: Release, tmp_path: Path
) -> None:
    data = everything.get("Secret", "tls")["data"]
    pem = {name: base64.b64decode(text) for name, text in data.items()}
    authority = x509.load_pem_x509_certificate(pem["ca.crt"])
    certificate = x509.load_pem_x509_certificate(pem["tls.crt"])
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    file = tmp_path / "config.yaml"
    file.write_text(everything.config)
    tls = load_config(file).tls
    assert tls is not None
    assert names.value.get_values_for_type(x509.DNSName) == [tls.server_name]
    for pool in ("router", "decode", "prefill", "ffn"):
        assert str(tls.cert.parent) in mounts(everything, pool)
    assert {tls.cert.name, tls.key.name, tls.ca.name} == set(pem)


def test_cert_manager_fills_the_secret_that_pods_mount(rendered: Rendered) -> None:
    release = rendered(EXAMPLES / "tls.yaml")
    certificate = release.get("Certificate")["spec"]
    [volume] = [v for v in release.pod("decode")["spec"]["volumes"] if v["name"] == "tls"]
    assert certificate["secretName"] == volume["secret"]["secretName"]
    issuers = {each["metadata"]["name"]: each["spec"] for each in release.kinds("Issuer")}
    authority = release.get("Certificate", "ca")["spec"]
    assert issuers[certificate["issuerRef"]["name"]]["ca"]["secretName"] == authority["secretName"]
    assert issuers[authority["issuerRef"]["name"]] == {"selfSigned": {}}


def test_an_autoscaled_pool_has_no_replicas_and_the_config_its_least_ones(
    rendered: Rendered, tmp_path: Path
) -> None:
    release = rendered(EXAMPLES / "autoscaling.yaml")
    file = tmp_path / "config.yaml"
    file.write_text(release.config)
    config = load_config(file)
    for pool, kind in (("prefill", "ScaledObject"), ("decode", "HorizontalPodAutoscaler")):
        assert "replicas" not in release.workload(pool)["spec"]
        scaler = release.get(kind, pool)["spec"]
        workload = release.workload(pool)
        assert scaler["scaleTargetRef"]["name"] == workload["metadata"]["name"]
        assert scaler["scaleTargetRef"]["kind"] == workload["kind"]
        least = scaler.get("minReplicas") or scaler.get("minReplicaCount")
        assert config.pool(pool).replicas == least


def test_pools_grow_by_what_their_role_runs_out_of(everything: Release, rendered: Rendered) -> None:
    prefill = everything.get("HorizontalPodAutoscaler", "prefill")["spec"]["metrics"][0]["object"]
    assert prefill["metric"]["name"] == "triptych_queued_tokens"
    assert prefill["target"] == {"type": "AverageValue", "averageValue": "4096000m"}
    ffn = everything.get("HorizontalPodAutoscaler", "ffn")["spec"]["metrics"][0]["pods"]
    assert (ffn["metric"]["name"], ffn["target"]["averageValue"]) == (
        "triptych_ffn_busy_ratio",
        "600m",
    )
    [trigger] = everything.get("ScaledObject", "decode")["spec"]["triggers"]
    assert "triptych_kv_blocks" in trigger["metadata"]["query"]
    assert trigger["metadata"]["threshold"] == "0.7"
    named = "pods.decode.autoscaling.metrics[0].type=Resource"
    own = rendered(None, "pods.decode.autoscaling.enabled=true", named)
    assert own.get("HorizontalPodAutoscaler", "decode")["spec"]["metrics"] == [{"type": "Resource"}]


def test_every_metric_that_alerts_and_scalers_ask_for_exists(everything: Release) -> None:
    rules = [
        rule
        for group in everything.get("PrometheusRule")["spec"]["groups"]
        for rule in group["rules"]
    ]
    asked = [rule["expr"] for rule in rules]
    asked += [
        trigger["metadata"]["query"]
        for each in everything.kinds("ScaledObject")
        for trigger in each["spec"]["triggers"]
    ]
    known = {sample for family in families() for sample in samples_of(family)}
    recorded = {rule["record"] for rule in rules if "record" in rule}
    scaled = re.findall(
        r'"name": "(triptych_\w+)"', json.dumps(everything.kinds("HorizontalPodAutoscaler"))
    )
    assert len(asked) > 12
    for query in asked:
        named = set(re.findall(r"\btriptych_(?!pool\b)\w+", query))
        assert named and named <= known | recorded, query
    assert set(scaled) <= known | recorded


def test_labels_that_alerts_choose_by_are_given_to_the_series_when_they_are_scraped(
    everything: Release,
) -> None:
    given = {
        re.sub(r"[./-]", "_", label)
        for label in (
            *everything.get("PodMonitor")["spec"]["podTargetLabels"],
            *everything.get("ServiceMonitor")["spec"]["targetLabels"],
        )
    }
    text = json.dumps([everything.get("PrometheusRule"), everything.kinds("ScaledObject")])
    assert set(re.findall(r"\b(app_kubernetes_io_\w+|triptych_pool)=", text)) <= given


def test_the_dashboard_is_the_repositorys(everything: Release) -> None:
    [text] = everything.get("ConfigMap", "dashboard")["data"].values()
    assert json.loads(text) == json.loads((ROOT / "docs/grafana/triptych.json").read_text())


def test_pods_on_the_hosts_network_listen_on_ports_of_their_own(everything: Release) -> None:
    spec = everything.pod("decode")["spec"]
    assert spec["hostNetwork"] is True and spec["dnsPolicy"] == "ClusterFirstWithHostNet"
    container = everything.container("decode")
    assert {"--port=7001", "--metrics-port=7002"} <= set(container["args"])
    assert {port["containerPort"] for port in container["ports"]} == {7001, 7002}


def test_rdma_asks_for_the_device_and_sends_kv_through_the_named_interface(
    rendered: Rendered, everything: Release
) -> None:
    release = rendered(EXAMPLES / "rdma.yaml")
    for pool in ("prefill", "decode"):
        container = release.container(pool)
        for kind in ("requests", "limits"):
            assert container["resources"][kind]["rdma/hca_sriov_a"] == "1"
        assert "--kv-host=net1" in container["args"]
        annotations = release.pod(pool)["metadata"]["annotations"]
        assert annotations["k8s.v1.cni.cncf.io/networks"] == "rdma/rail-0"
    assert "rdma/hca_sriov_a" not in json.dumps(release.pod("router"))
    capabilities = everything.container("decode")["securityContext"]["capabilities"]
    assert capabilities == {"drop": ["ALL"], "add": ["IPC_LOCK"]}


def test_copies_of_experts_avoid_each_others_nodes(rendered: Rendered) -> None:
    hard = rendered(EXAMPLES / "experts.yaml").pod("ffn")["spec"]["affinity"]["podAntiAffinity"]
    [rule] = hard["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert rule["labelSelector"]["matchLabels"]["triptych/pool"] == "ffn"
    pool = pools(("decode", "decode"), ("ffn", "ffn"))
    soft = rendered(None, pool).pod("ffn")["spec"]["affinity"]["podAntiAffinity"]
    assert "preferredDuringSchedulingIgnoredDuringExecution" in soft
    none = rendered(None, pool, "pods.ffn.spread.host=none", "pods.ffn.spread.zone=none")
    assert not {"affinity", "topologySpreadConstraints"} & set(none.pod("ffn")["spec"])


def test_a_fetched_model_is_brought_by_a_container_that_runs_first(rendered: Rendered) -> None:
    release = rendered(EXAMPLES / "two-models-b.yaml")
    for pool in ("router", "prefill", "decode"):
        [fetch] = release.pod(pool)["spec"]["initContainers"]
        assert fetch["command"] == ["triptych", "fetch"]
        assert fetch["args"] == [
            "https://models.example/qwen2.5-1.5b-instruct-q4_0.gguf",
            "--to=/models",
            "--sha256=" + 64 * "0",
        ]
        assert "/models" in mounts(release, pool)


def test_a_model_in_an_image_is_mounted_and_not_fetched(rendered: Rendered) -> None:
    spec = rendered(EXAMPLES / "experts.yaml").pod("decode")["spec"]
    [volume] = [each for each in spec["volumes"] if each["name"] == "model"]
    assert volume["image"]["reference"] == "registry.example/models/mixture:1"
    assert "initContainers" not in spec


def test_two_releases_share_a_host_by_their_paths(rendered: Rendered) -> None:
    routes = [rendered(EXAMPLES / f"two-models-{x}.yaml").get("HTTPRoute")["spec"] for x in "ab"]
    prefixes = [route["rules"][0]["matches"][0]["path"]["value"] for route in routes]
    assert prefixes == ["/small", "/large"]
    assert routes[0]["hostnames"] == routes[1]["hostnames"]
    for route in routes:
        [rule] = route["rules"]
        assert rule["timeouts"]["request"] == "615s"
        [rewrite] = rule["filters"]
        assert rewrite["urlRewrite"]["path"]["replacePrefixMatch"] == "/"


def test_a_network_policy_lets_the_release_speak_with_itself_and_clients_with_routers(
    rendered: Rendered,
) -> None:
    release = rendered(EXAMPLES / "tls.yaml")
    inside = release.get("NetworkPolicy")["spec"]
    [peers, metrics] = inside["ingress"]
    assert "ports" not in peers  # KV and rows take any
    assert peers["from"][0]["podSelector"]["matchLabels"] == inside["podSelector"]["matchLabels"]
    assert metrics["ports"] == [{"port": "metrics"}]
    doctor = release.get("Pod", "doctor")["metadata"]["labels"]
    assert inside["podSelector"]["matchLabels"].items() <= doctor.items()
    [clients] = release.get("NetworkPolicy", "router")["spec"]["ingress"]
    assert clients["ports"] == [{"port": "http"}] and len(clients["from"]) == 2


def test_a_pools_image_lies_over_the_common_one(everything: Release, rendered: Rendered) -> None:
    assert everything.container("decode")["image"] == "triptych@sha256:" + 64 * "a"
    release = rendered(EXAMPLES / "gpu.yaml", "image.registry=registry.example/llm")
    assert release.container("decode")["image"] == "registry.example/llm/triptych:0.1.0-cuda"
    assert release.container("router")["image"] == "registry.example/llm/triptych:0.1.0-router"


def test_what_a_pool_says_wins_even_when_it_is_nothing(rendered: Rendered) -> None:
    release = rendered(
        None,
        "podDefaults.nodeSelector.disk=ssd",
        "podDefaults.preStopSeconds=9",
        "pods.decode.preStopSeconds=0",
        "pods.decode.disruptionBudget=false",
        "pods.decode.nodeSelector.disk=null",
    )
    assert "lifecycle" in release.container("prefill")
    assert "lifecycle" not in release.container("decode")
    assert release.pod("prefill")["spec"]["nodeSelector"] == {"disk": "ssd"}
    assert "nodeSelector" not in release.pod("decode")["spec"]
    budgets = {each["metadata"]["name"] for each in release.kinds("PodDisruptionBudget")}
    assert budgets == {f"{FULLNAME}-router", f"{FULLNAME}-prefill"}
