"""One config object for every process, read once from one file.

The same file drives `triptych up`, the tests, Ray and the Helm chart. Unknown keys are errors. This
is the only module that reads the environment.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, model_validator

from transport.kv.paths import link_of
from transport.tls import TlsFiles
from triptych.admission_config import AdmissionConfig, SloConfig, TenantConfig, check_tenants
from triptych.errors import ConfigError, ModelError
from triptych.speculation_config import (
    HostedDrafterConfig,
    RemoteConfig,
    SpeculationConfig,
    SuffixConfig,
    yaml_off,
)
from triptych.weights.source import is_source, parse_source

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Role = Literal["prefill", "decode", "draft", "ffn"]
LinkName = Literal["shm", "tcp", "nixl"]
PathName = LinkName | Literal["nixl:rdma"]  # a link, or one of its paths
RowsLinkName = Literal["shm", "tcp"]
PlacementName = Literal[
    "predicted", "least-loaded", "power-of-two", "round-robin", "cache-aware", "block-cost"
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KvConfig(_Frozen):
    """The KV pool of one worker."""

    block_tokens: int = Field(
        32, ge=1, le=256, description="tokens in a block; multiples of 32 are read where they lie"
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto", description="auto: float32 beside float32 weights, else bfloat16"
    )
    memory: ByteSize = Field(ByteSize(1 << 30), description="pool size of one worker, e.g. 1GiB")


class EngineConfig(_Frozen):
    """What one step may hold."""

    chunk_tokens: int = Field(512, ge=16, description="rows of one step, prompt chunks included")
    max_running: int = Field(64, ge=1, description="sequences that hold KV blocks at once")
    prefix_cache: bool = Field(True, description="keep finished blocks for later requests")
    cuda_graphs: bool = Field(
        True, description="device: cuda alone: decode steps are recorded and replayed"
    )
    catch_up_ms: float = Field(
        250.0,
        gt=0,
        description="of a decode worker: how long a step should take, by the rows of prompts that "
        "it computes, while streams whose home was lost catch up",
    )


class PoolConfig(_Frozen):
    """Workers of one kind. Settings left out are taken from the cluster."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    role: Role
    replicas: int = Field(1, ge=0)
    threads: int = Field(0, ge=0, description="compute threads of a worker; 0: one per core")
    engine: EngineConfig | None = None
    kv: KvConfig | None = None
    drafters: tuple[HostedDrafterConfig, ...] = Field(
        (SuffixConfig(),), min_length=1, description="what draft workers host"
    )
    unit_memory: ByteSize | None = Field(
        None, description="of an FFN worker, for experts or FFNs; default: 80 % of what is free"
    )


class TransportConfig(_Frozen):
    """How KV blocks travel from prefill to decode workers."""

    links: tuple[LinkName, ...] = Field(("shm", "tcp"), min_length=1, description="best first")
    require: PathName | None = Field(
        None, description="refuse to move KV over any other link; nixl:rdma: nor over NIXL's others"
    )
    digest: Annotated[Literal["full", "sampled", "off"], yaml_off] = Field(
        "full", description="which blocks are checked after the copy"
    )
    min_remote_tokens: int = Field(
        32, ge=1, description="fewer missing tokens are prefilled at home"
    )
    prefill_deadline_s: float = Field(120.0, gt=0)
    announce_layers: int = Field(0, ge=0, description="layers per announcement; 0: whole chunks")
    keep_lost_s: float = Field(
        10.0,
        ge=0,
        description="how long homes keep the memory of a home that died, whose streams go on "
        "there; over shm only; 0: they compute everything anew",
    )


class ExpertsConfig(_Frozen):
    """Where experts, and the FFNs of dense layers, are computed."""

    run: Literal["auto", "local", "remote"] = Field(
        "auto", description="auto: remote where a pool of role ffn has workers"
    )
    links: tuple[RowsLinkName, ...] = Field(("shm", "tcp"), min_length=1, description="best first")
    rows: Literal["exact", "int8", "fp8"] = Field(
        "exact", description="how rows travel; int8 and fp8 are smaller and change answers"
    )
    copies: int = Field(2, ge=1, description="workers that host each expert, while memory allows")
    dense: Literal["replica", "layer"] = Field(
        "replica", description="of dense models, each FFN worker hosts all layers, or some"
    )
    micro_batches: int = Field(0, ge=0, le=4, description="in flight in a step; 0: as measured")
    slots: int = Field(16, ge=4, le=64, description="messages on their way to one worker")
    slot_rows: int = Field(128, ge=16, le=1024, description="rows of one message")
    min_deadline_ms: float = Field(
        20.0,
        gt=0,
        description="a worker that answers later than this, and much later than usual, is bypassed",
    )
    rebalance_s: float = Field(
        10.0, ge=0, description="between looks at the load of experts; 0: never move one"
    )
    home_memory: ByteSize = Field(
        ByteSize(1 << 30), description="for experts that a home computes when nobody else can"
    )


ToolParserName = Literal[
    "auto", "hermes", "llama3_json", "pythonic", "mistral", "deepseek", "harmony"
]


class SparseAttentionConfig(_Frozen):
    """Tiles of a context that softmax would all but ignore are left out (BLASST). Off unless given:
    it changes numbers.
    """

    scale: float = Field(ge=0, description="who sees n tokens ignores scores below scale / n")
    max_omitted: float = Field(
        math.inf, ge=0, description="of a row's softmax, over what is kept; never exceeded"
    )


class RouterConfig(_Frozen):
    """The HTTP face."""

    host: str = "127.0.0.1"
    port: int = Field(
        8000, ge=0, le=65535, description="0: any free port; further routers take the next ones"
    )
    replicas: int = Field(
        1, ge=1, le=64, description="routers of this machine's cluster; each serves all of the API"
    )
    api_keys: tuple[str, ...] = ()
    placement: PlacementName = Field("predicted", description="how homes are chosen")
    index: Annotated[Literal["events", "approximate", "off"], yaml_off] = Field(
        "events",
        description="how the router knows who holds which prefix: workers tell it, by its own "
        "placements alone, or not at all",
    )
    tool_parser: ToolParserName = Field(
        "auto", description="how the model writes tool calls; auto: as its chat template tells"
    )
    reasoning_parser: Annotated[Literal["auto", "off", "think", "mistral"], yaml_off] = Field(
        "auto",
        description="how the model marks its thoughts; auto: as its chat template tells; "
        "off: they are text like any other",
    )
    max_body: ByteSize = Field(ByteSize(8 << 20), description="larger requests get a 413")
    request_deadline_s: float = Field(600.0, gt=0)
    tenants: tuple[TenantConfig, ...] = ()
    slo: SloConfig = SloConfig()
    admission: AdmissionConfig = AdmissionConfig()
    max_lost_homes: int = Field(
        4, ge=0, description="in a row, without a new token; then a request's error is told"
    )
    home_wait_s: float = Field(
        60.0, ge=0, description="how long a stream whose home was lost waits for another one"
    )
    sparse_attention: SparseAttentionConfig | None = Field(
        None, description="of requests that do not say; none: attention is dense"
    )
    step_limit_s: float = Field(
        30.0, gt=0, description="a worker whose engine is longer in one step counts as hanging"
    )

    @model_validator(mode="after")
    def _check_tenants(self) -> RouterConfig:
        check_tenants(self.tenants, self.api_keys)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of the routers; workers attach to all of them. The first one moves experts."""
        return ("router", *(f"router-{number}" for number in range(1, self.replicas)))

    def port_of(self, name: str) -> int:
        return self.port and self.port + self.names.index(name)

    @property
    def any_key(self) -> str | None:
        """One that opens the API, for the launcher's own questions; key files are not read."""
        keys = (*self.api_keys, *(key for tenant in self.tenants for key in tenant.keys))
        return next(iter(keys), None)


class LogConfig(_Frozen):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "text"


class TracingConfig(_Frozen):
    """Spans of requests, sent to an OpenTelemetry collector."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="OTLP over HTTP, e.g. http://localhost:4318/v1/traces; none: no spans",
    )
    sample: float = Field(1.0, ge=0, le=1, description="share of requests that come untraced")


class TlsConfig(_Frozen):
    """Certificates of the calls between routers and workers on different hosts (mutual TLS)."""

    cert: Path = Field(description="PEM file; the same name in every process's certificate")
    key: Path = Field(description="PEM file")
    ca: Path = Field(description="PEM file of the authority that signed all of them")
    server_name: str = Field("triptych", min_length=1, description="the name in the certificates")

    @property
    def files(self) -> TlsFiles:
        return TlsFiles(self.cert, self.key, self.ca, self.server_name)


class MetricsConfig(_Frozen):
    vllm_aliases: bool = Field(False, description="the router's metrics under vLLM's names too")


class ClusterConfig(_Frozen):
    """A whole cluster: one model, one router, any number of pools."""

    model: str = Field(
        "smollm2-135m", description="a known name, a HF directory, a .gguf file or hf://org/name"
    )
    served_model_name: str | None = Field(
        None, description="name in the API; default: from `model`"
    )
    dtype: Literal["auto", "float32", "bfloat16", "fp8", "int8", "int4"] = Field(
        "auto",
        description="of the weights; auto: bfloat16, float32 without native kernels; fp8: on "
        "device: cuda alone",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="what computes; auto: the CPU. The kernels for cuda have been interpreted and "
        "compiled, not run on a GPU",
    )
    quant_group: Literal[32, 64, 128] = Field(
        32, description="weights that share a scale when int8 or int4 quantises; smaller is finer"
    )
    max_model_len: int | None = Field(None, ge=16, description="default: the checkpoint's context")
    drain_s: float = Field(
        30.0, ge=0, description="how long a stopping worker may finish its requests"
    )
    router: RouterConfig = RouterConfig()
    engine: EngineConfig = EngineConfig()
    kv: KvConfig = KvConfig()
    transport: TransportConfig = TransportConfig()
    experts: ExpertsConfig = ExpertsConfig()
    speculation: SpeculationConfig = SpeculationConfig()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()
    metrics: MetricsConfig = MetricsConfig()
    tls: TlsConfig | None = Field(
        None, description="none: calls between hosts are plain text; unix sockets always are"
    )
    pools: tuple[PoolConfig, ...] = (
        PoolConfig(name="prefill", role="prefill"),
        PoolConfig(name="decode", role="decode"),
    )

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        _check_source("model", self.model)
        for name in self.speculation.models:
            _check_source("speculation.drafters: model", name)
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            raise ValueError(f"pools: two pools share a name: {sorted(names)}")
        if "router" in names:
            raise ValueError("pools: 'router' is the name of the routers; give the pool another")
        if not self.has_workers("decode"):
            raise ValueError("pools: a cluster needs at least one decode worker")
        required = self.transport.require
        if required is not None and link_of(required) not in self.transport.links:
            raise ValueError(f"transport.require: {required} is not among transport.links")
        for drafter in self.speculation.drafters:
            if isinstance(drafter, RemoteConfig) and drafter.pool is not None:
                self._check_draft_pool(drafter.pool)
        sizes = {self.kv_of(pool).block_tokens for pool in self.pools}
        if len(sizes) > 1:
            raise ValueError(f"kv.block_tokens: all pools must agree, found {sorted(sizes)}")
        return self

    def _check_draft_pool(self, name: str) -> None:
        drafting = [pool.name for pool in self.pools if pool.role == "draft" and pool.replicas]
        if name not in drafting:
            raise ValueError(
                f"speculation.drafters: no workers in a pool {name!r} of role draft; "
                f"there are {drafting}"
            )

    def pool(self, name: str) -> PoolConfig:
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise ConfigError(f"no pool named {name!r}; pools: {[pool.name for pool in self.pools]}")

    def engine_of(self, pool: PoolConfig) -> EngineConfig:
        return pool.engine or self.engine

    def kv_of(self, pool: PoolConfig) -> KvConfig:
        return pool.kv or self.kv

    @property
    def remote_experts(self) -> bool:
        """Whether prefill and decode workers send their rows to FFN workers."""
        if self.experts.run == "auto":
            return self.has_workers("ffn")
        return self.experts.run == "remote"

    def has_workers(self, role: Role) -> bool:
        return any(pool.role == role and pool.replicas for pool in self.pools)

    @property
    def models(self) -> tuple[str, ...]:
        """Of all checkpoints that its processes load: the target's, then drafters'."""
        return (self.model, *self.speculation.models)

    @property
    def served_name(self) -> str:
        if self.served_model_name:
            return self.served_model_name
        name = parse_source(self.model).short_name if is_source(self.model) else self.model
        return Path(name).name.removesuffix(".gguf")


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Reads a YAML file (none: all defaults), then applies `a.b=value` overrides, values as YAML.

    Raises ConfigError naming the file and the key.
    """
    data = read_settings(path, overrides)
    return parse_config(data, str(path or "config"))


def read_settings(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a YAML file (none: nothing) and `a.b=value` overrides say, unchecked.

    Raises ConfigError naming the file.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            read = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: {error}") from error
        if not isinstance(read, dict):
            raise ConfigError(f"{path}: expected a mapping at the top, got {type(read).__name__}")
        data = read
    for item in overrides:
        _override(data, item)
    return data


def parse_config(data: Mapping[str, Any], source: str = "config") -> ClusterConfig:
    """Raises ConfigError naming `source` and the key."""
    try:
        return ClusterConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {problems_of(error)}") from error


def problems_of(error: ValidationError) -> str:
    """All of them, each with its key."""
    return "; ".join(_sentence(problem) for problem in error.errors())


def dump_config(config: ClusterConfig) -> str:
    """YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def cache_dir() -> Path:
    """Where models and compiled kernels are kept: $TRIPTYCH_HOME, else the user's cache."""
    home = os.environ.get("TRIPTYCH_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"


def _check_source(key: str, name: str) -> None:
    if is_source(name):
        try:
            parse_source(name)
        except ModelError as error:
            raise ValueError(f"{key}: {error}") from error


def _override(data: dict[str, Any], item: str) -> None:
    key, separator, value = item.partition("=")
    if not separator:
        raise ConfigError(f"--set {item}: expected key=value, e.g. engine.chunk_tokens=64")
    *parents, leaf = key.split(".")
    node = data
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {item}: {parent} is not a section")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {item}: {error}") from error


def _sentence(problem: ErrorDetails) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    # Our own checks name the key themselves.
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
