"""The chart's values: what they may be and what each is for. `k8s.generate` writes the chart's
schema and its reference from here; the defaults are those of chart/values.yaml.

What Kubernetes itself defines (tolerations, resources, …) passes through as it is.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from triptych.config import ClusterConfig

Object = dict[str, Any]  # of the Kubernetes API
Texts = dict[str, str | None]  # null unsets what podDefaults say
Spread = Literal["soft", "hard", "none"]


class _Section(BaseModel):
    """All keys may be left out: Helm puts chart/values.yaml underneath."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


class ImageValues(_Section):
    registry: str = Field("", description="host, and path, before the repository")
    repository: str = ""
    tag: str = Field("", description="default: the chart's appVersion")
    variant: str = Field("", description="behind the tag, e.g. -cuda")
    digest: str = Field("", pattern="^(sha256:[0-9a-f]{64})?$", description="instead of the tag")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: list[Object] = Field([], description="`[{name: …}]`")


class PoolImage(_Section):
    """Of one pool; what is left out is that of `image`."""

    registry: str = ""
    repository: str = ""
    tag: str = ""
    variant: str = ""
    digest: str = Field("", pattern="^(sha256:[0-9a-f]{64})?$")


class SecretKey(_Section):
    name: str = ""
    key: str = ""


class FetchValues(_Section):
    """An init container brings the model, shows its progress and verifies its checksum."""

    source: str = Field(
        "",
        description="`hf://org/name[@revision]`, `https://…/file.gguf`, `https://…/SHA256SUMS`, or "
        "a known name",
    )
    to: str = Field("", description="folder under `mountPath`; default: `mountPath` itself")
    sha256: str = Field(
        "", pattern="^([0-9a-f]{64})?$", description="of a single file, or of `SHA256SUMS`"
    )
    size_limit: str = Field("", description="of the volume, when it is the default: an emptyDir")
    token_secret: SecretKey = Field(SecretKey(), description="becomes `HF_TOKEN`")
    env: list[Object] = Field([], description="e.g. `HTTPS_PROXY`")
    resources: Object = {}


class ModelValues(_Section):
    """Where weights come from. Neither `volume` nor `fetch`: out of the image."""

    mount_path: str = Field("/models", pattern="^/", description="`config.model` lies under it")
    volume: Object = Field(
        {}, description="a volume source: `{persistentVolumeClaim: …}`, `{image: …}`, …"
    )
    fetch: FetchValues = FetchValues()


class PortValues(_Section):
    grpc: int = Field(8000, ge=1, le=65535)
    metrics: int = Field(9090, ge=1, le=65535, description="of /metrics, /live and /ready")


class SpreadValues(_Section):
    """How copies of a pool keep apart: `hard` rather leaves them pending."""

    host: Spread = "soft"
    zone: Spread = "soft"


class RdmaValues(_Section):
    resource: str = Field("", description="of a device plugin, e.g. `rdma/ib`; one per pod")
    count: int = Field(1, ge=1)
    interface: str = Field("", description="network interface of KV and rows, e.g. `net1`")
    ipc_lock: bool = Field(
        False, description="adds the capability IPC_LOCK, which only root has in force"
    )


class ProbeValues(_Section):
    startup_seconds: int = Field(600, ge=2, description="until the model must be loaded")
    readiness_period_seconds: int = Field(2, ge=1)
    liveness_period_seconds: int = Field(10, ge=1)
    liveness_failures: int = Field(6, ge=1, description="in a row, before a restart")
    timeout_seconds: int = Field(5, ge=1)


class AutoscalingValues(_Section):
    """Of a pool of role prefill, decode or ffn; `minReplicas` takes the place of its `replicas`."""

    enabled: bool = False
    kind: Literal["hpa", "keda"] = "hpa"
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    target: float | None = Field(
        None,
        gt=0,
        description="per worker. prefill: queued tokens (4096); decode: used share of KV blocks "
        "(0.7); ffn: busy share of time (0.6)",
    )
    metrics: list[Object] = Field([], description="of `hpa`, instead of ours")
    triggers: list[Object] = Field([], description="of `keda`, instead of ours")
    behavior: Object = {}


class PodValues(_Section):
    """Pods of routers or of one pool."""

    image: PoolImage = PoolImage()
    resources: Object = Field({}, description="GPUs, too: `limits: {nvidia.com/gpu: 1}`")
    labels: Texts = {}
    annotations: Texts = {}
    args: list[str] = Field([], description="more arguments of the process")
    env: list[Object] = Field([], description="e.g. `UCX_NET_DEVICES`")
    env_from: list[Object] = []
    volumes: list[Object] = []
    volume_mounts: list[Object] = []
    ports: PortValues = Field(PortValues(), description="of workers")
    node_selector: Texts = {}
    tolerations: list[Object] = []
    affinity: Object = {}
    spread: SpreadValues = SpreadValues()
    priority_class_name: str = ""
    runtime_class_name: str = ""
    scheduler_name: str = ""
    host_network: bool = False
    networks: str = Field("", description="annotation of Multus: more interfaces, e.g. `rail-0`")
    rdma: RdmaValues = RdmaValues()
    shm_size: str = Field(
        "", description="of /dev/shm; default: the KV pool and 64 MiB; counts as memory once used"
    )
    pre_stop_seconds: int = Field(
        0, ge=0, description="between the end of new connections and SIGTERM"
    )
    probes: ProbeValues = ProbeValues()
    strategy: Object = Field({}, description="of a Deployment: how its pods are replaced")
    disruption_budget: bool = Field(True, description="nodes are drained one pod at a time")
    pod_security_context: Object = {}
    security_context: Object = {}
    autoscaling: AutoscalingValues = AutoscalingValues()


class ServiceAccountValues(_Section):
    create: bool = True
    name: str = Field("", description="default: the release's name")
    annotations: Texts = {}


class ApiKeyValues(_Section):
    existing_secret: str = Field(
        "", description="its keys are files in /etc/triptych/keys, for tenants' `key_file`"
    )


class CertManagerValues(_Section):
    issuer_ref: Object = Field({}, description="default: a CA of the release's own")
    duration: str = "2160h"
    renew_before: str = "720h"


class TlsValues(_Section):
    """Mutual TLS of gRPC between routers and workers. KV, rows, metrics and HTTP stay plain."""

    enabled: bool = False
    source: Literal["generated", "certManager", "secret"] = Field(
        "generated", description="`generated` by Helm, once; `secret`: one that exists"
    )
    secret_name: str = Field("", description="with tls.crt, tls.key and ca.crt; of `secret`")
    server_name: str = Field("triptych", min_length=1, description="in each certificate")
    days: int = Field(3650, ge=1, description="of `generated`")
    cert_manager: CertManagerValues = CertManagerValues()


class ServiceValues(_Section):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    port: int = Field(8000, ge=1, le=65535)
    node_port: int | None = Field(None, ge=1, le=65535)
    annotations: Texts = {}


class IngressValues(_Section):
    enabled: bool = False
    class_name: str = ""
    host: str = ""
    path: str = "/"
    tls_secret: str = ""
    annotations: Texts = {}


class HttpRouteValues(_Section):
    """Of the Gateway API."""

    enabled: bool = False
    parent_refs: list[Object] = Field([], description="gateways: `[{name: …, namespace: …}]`")
    hostnames: list[str] = []
    path_prefix: str = Field("/", pattern="^/", description="taken off before the router sees it")
    annotations: Texts = {}


class EndpointPickerValues(_Section):
    name: str = Field("", description="Service of the endpoint picker")
    port: int = Field(9002, ge=1, le=65535)
    failure_mode: Literal["FailOpen", "FailClose"] = "FailOpen"


class InferencePoolValues(_Section):
    """The routers as an InferencePool, for a gateway with an endpoint picker."""

    enabled: bool = False
    endpoint_picker: EndpointPickerValues = EndpointPickerValues()


class NetworkPolicyValues(_Section):
    """Workers speak with this release's pods only."""

    enabled: bool = False
    clients: list[Object] = Field([], description="who may use the API; none said: everybody")
    monitoring: list[Object] = Field([], description="who may read metrics; none said: everybody")
    restrict_egress: bool = Field(
        False, description="to this release, DNS, and `egress`; `model.fetch` needs more"
    )
    egress: list[Object] = []


class ScrapeValues(_Section):
    enabled: bool = False
    interval: str = "15s"
    labels: Texts = Field({}, description="that Prometheus selects monitors by")


class RulesValues(_Section):
    enabled: bool = False
    labels: Texts = {}


class DashboardValues(_Section):
    enabled: bool = False
    labels: Texts = Field({}, description="that Grafana's sidecar looks for")


class MonitoringValues(_Section):
    scrape: ScrapeValues = Field(ScrapeValues(), description="ServiceMonitor and PodMonitor")
    rules: RulesValues = Field(RulesValues(), description="alerts, and what autoscaling asks for")
    dashboard: DashboardValues = DashboardValues()
    prometheus_url: str = Field("", description="for KEDA")


class TestValues(_Section):
    """`helm test` runs `triptych doctor` against the release."""

    api_key_secret: SecretKey = Field(SecretKey(), description="where the config holds no key")


class ChartValues(_Section):
    """All of it."""

    config: ClusterConfig = Field(
        ClusterConfig(), description="the cluster, as `triptych up -c FILE` reads it"
    )
    pod_defaults: PodValues = Field(PodValues(), description="of all pods")
    pods: dict[str, PodValues] = Field(
        {}, description="over `podDefaults`, by pool; `router`: the routers"
    )
    name_override: str = ""
    fullname_override: str = ""
    cluster_domain: str = "cluster.local"
    image: ImageValues = ImageValues()
    model: ModelValues = ModelValues()
    api_keys: ApiKeyValues = ApiKeyValues()
    tls: TlsValues = TlsValues()
    service: ServiceValues = ServiceValues()
    ingress: IngressValues = IngressValues()
    http_route: HttpRouteValues = HttpRouteValues()
    inference_pool: InferencePoolValues = InferencePoolValues()
    network_policy: NetworkPolicyValues = NetworkPolicyValues()
    service_account: ServiceAccountValues = ServiceAccountValues()
    monitoring: MonitoringValues = MonitoringValues()
    tests: TestValues = TestValues()
    global_: Object = Field({}, alias="global", description="Helm's own, when this is a subchart")
