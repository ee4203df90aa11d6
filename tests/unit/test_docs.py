"""The documents say what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric
from pydantic import BaseModel

from ffn_worker.metrics import FfnMetrics
from router.admission.metrics import AdmissionMetrics
from router.index.metrics import IndexMetrics
from router.metrics import RouterMetrics
from triptych.admission_config import TenantConfig
from triptych.config import ClusterConfig, PoolConfig, load_config
from triptych.obs.experts import ExpertCollector, ExpertTally
from triptych.obs.metrics import WorkerMetrics
from triptych.obs.speculation import SpeculationMetrics

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs/operations.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("name", ["README.md", "docs/operations.md"])
def test_every_config_example_is_valid(name: str, tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert examples
    for example in examples:
        file = tmp_path / "example.yaml"
        file.write_text(example)
        load_config(file)


def settings(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            found += settings(nested, f"{prefix}{name}.")
        elif name != "pools":
            found.append(prefix + name)
    return found


@pytest.mark.parametrize("key", settings(ClusterConfig))
def test_every_setting_is_documented(key: str) -> None:
    assert f"`{key}`" in OPERATIONS


@pytest.mark.parametrize("key", TenantConfig.model_fields)
def test_every_setting_of_a_tenant_is_documented(key: str) -> None:
    assert f"`{key}`" in OPERATIONS


@pytest.mark.parametrize("key", PoolConfig.model_fields)
def test_every_setting_of_a_pool_is_documented(key: str) -> None:
    assert f"`pools[].{key}`" in OPERATIONS or f"`.{key}`" in OPERATIONS


@pytest.mark.parametrize(
    "metrics", [RouterMetrics, AdmissionMetrics, WorkerMetrics, SpeculationMetrics]
)
def test_every_metric_is_documented(metrics: Callable[[CollectorRegistry], object]) -> None:
    registry = CollectorRegistry(auto_describe=True)
    metrics(registry)
    suffixes = {"counter": "_total"}
    for family in registry.collect():
        assert family.name + suffixes.get(family.type, "") in OPERATIONS


def test_every_query_of_the_dashboard_names_metrics_that_exist() -> None:
    known = {sample for family in families() for sample in samples_of(family)}
    dashboard = json.loads((ROOT / "docs/grafana/triptych.json").read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    assert len(queries) > 20
    for query in queries:
        named = re.findall(r"\b(?:triptych_|vllm:)\w+", query)
        assert named, query
        assert set(named) <= known, query


def samples_of(family: Metric) -> list[str]:
    """The names of its time series."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return [family.name + ending for ending in endings.get(family.type, ("",))]


def test_no_metric_is_documented_that_does_not_exist() -> None:
    known = {family.name for family in families()}
    for name in re.findall(r"`(triptych_\w+)", OPERATIONS):
        assert name.removesuffix("_total") in known


def families() -> list[Metric]:
    """Of all processes."""
    registry = CollectorRegistry(auto_describe=True)
    RouterMetrics(registry)
    IndexMetrics(registry).watch(list)
    AdmissionMetrics(registry)
    WorkerMetrics(registry)
    SpeculationMetrics(registry)
    ExpertCollector(ExpertTally(), registry)
    FfnMetrics(registry)
    return list(registry.collect())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


def told_defaults() -> list[tuple[str, str]]:
    """(setting, default) of the tables in docs/operations.md."""
    row = r"^\| `([a-z_]+(?:\.[a-z_]+)+)` \| ([\d.]+|none|true|false) \|"
    return re.findall(row, OPERATIONS, re.M)


def test_the_guide_tells_the_defaults_that_settings_have() -> None:
    config = load_config(None, ["model=m"])
    words = {"none": None, "true": True, "false": False}
    told = told_defaults()
    assert len(told) > 20
    for name, default in told:
        actual: Any = config
        for part in name.split("."):
            actual = getattr(actual, part)
        expected = words[default] if default in words else float(default)
        assert actual == expected or (expected is None and actual == ()), name
