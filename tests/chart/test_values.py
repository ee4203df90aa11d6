"""Wrong values are refused with the key's name, by the schema or by the templates."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from k8s.generate import generated, values_schema
from k8s.values import ChartValues, PodValues
from tests.chart.helm import CHART, EXAMPLES, ROOT, Helm, pools
from triptych.config import ClusterConfig

PREFILL, DECODE = ("prefill", "prefill"), ("decode", "decode")
LONG_NAME = "a-pool-with-such-a-long-name-that-it-fits-nowhere"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        # by the schema
        ("replicas=3", "replicas"),
        ("config.kv.mem=1GiB", "/config/kv': additional properties 'mem'"),
        ("config.drain_s=soon", "/config/drain_s"),
        ("config.speculation.drafters[0].kind=sufix", "/config/speculation/drafters/0/kind"),
        ("config.router.placement=best", "/config/router/placement"),
        ("podDefaults.resource.cpu=1", "/podDefaults': additional properties 'resource'"),
        ("pods.decode.autoscaling.kind=vpa", "/pods/decode/autoscaling/kind"),
        ("pods.decode.probes.startup=9", "/pods/decode/probes"),
        ("tls.source=vault", "/tls/source"),
        ("model.fetch.sha256=123", "/model/fetch/sha256"),
        ("service.port=http", "/service/port"),
        # by the templates
        ("pods.decoder.hostNetwork=true", "pods.decoder: config.pools has no pool of this name"),
        (pools(PREFILL, ("prefill", "decode")), 'two pools share the name "prefill"'),
        (pools(PREFILL, ("router", "decode")), 'two pools share the name "router"'),
        (pools(PREFILL), "config.pools: a cluster needs at least one decode"),
        (pools(PREFILL, DECODE, replicas=0), "config.pools: a cluster needs at least one decode"),
        (pools(PREFILL, (LONG_NAME, "decode")), "more than 52 characters"),
        ("config.router.host=127.0.0.1", "config.router.host"),
        ("config.router.port=0", "config.router.port"),
        ("config.transport.require=shm", "config.transport.require: pods share no memory"),
        ("config.transport.require=nixl", "nixl is not among config.transport.links"),
        ("config.kv.memory=3 parsecs", "config.kv.memory: 3 parsecs is no size"),
        ("pods.decode.resources.limits.memory=256Mi", "pods.decode.resources.limits.memory"),
        ("model.fetch.source=hf://a/b", "config.model: smollm2-135m does not lie under"),
        ("model.volume.emptyDir.medium=Memory", "config.model: smollm2-135m does not lie under"),
        ("pods.router.autoscaling.enabled=true", "pods.router.autoscaling"),
        ("httpRoute.enabled=true", "httpRoute.parentRefs"),
        ("inferencePool.enabled=true", "inferencePool.endpointPicker.name"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(helm: Helm, setting: str, told: str) -> None:
    done = helm.template(None, setting)
    assert done.returncode != 0
    assert told in done.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["config.tls.cert=a", "config.tls.key=b", "config.tls.ca=c"], "set tls.enabled instead"),
        (["tls.enabled=true", "tls.source=secret"], "tls.secretName"),
        (["pods.decode.hostNetwork=true"], "pods.decode.ports: 8000 is config.router.port"),
        (
            ["pods.decode.autoscaling.enabled=true", "pods.decode.autoscaling.minReplicas=9"],
            "pods.decode.autoscaling.maxReplicas: 4 is less than minReplicas, 9",
        ),
        (
            ["pods.decode.autoscaling.enabled=true", "pods.decode.autoscaling.kind=keda"],
            "monitoring.prometheusUrl",
        ),
        (
            [pools(DECODE, ("draft", "draft")), "pods.draft.autoscaling.enabled=true"],
            "pods.draft.autoscaling",
        ),
        (
            [
                "config.speculation.drafters[0].kind=remote",
                "config.speculation.drafters[0].pool=draft",
            ],
            'config.speculation.drafters: no workers in a pool "draft"',
        ),
        (
            ["config.model=/models/m", "model.fetch.source=hf://a/b", "model.fetch.to=/data"],
            "model.fetch.to: /data does not lie under model.mountPath",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(
    helm: Helm, settings: list[str], told: str
) -> None:
    done = helm.template(None, *settings)
    assert done.returncode != 0
    assert told in done.stderr


@pytest.mark.parametrize("file", list(generated()), ids=lambda path: path.name)
def test_a_generated_file_is_in_step(file: Path) -> None:
    assert file.read_text() == generated()[file], "run `make chart`"


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_the_schema_takes_every_config_that_triptych_takes() -> None:
    checker = jsonschema.Draft7Validator(values_schema())
    checker.check_schema(checker.schema)
    every = yaml.safe_load((CHART / "values.yaml").read_text())
    for config in (ClusterConfig(), ClusterConfig.model_validate({"router": {"index": False}})):
        dumped = json.loads(config.model_dump_json())
        checker.validate({**every, "config": dumped})
    checker.validate({**every, "config": {"transport": {"digest": False}}})  # `off`, to YAML
    with pytest.raises(jsonschema.ValidationError, match="True"):
        checker.validate({"config": {"transport": {"digest": True}}})


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_valid_beyond_what_a_schema_can_say(file: Path) -> None:
    ChartValues.model_validate(yaml.safe_load(file.read_text()))


def missing_keys(model: type[BaseModel], values: dict[str, Any], prefix: str = "") -> list[str]:
    """Those of sections that are there: an empty section changes nothing of what lies under it."""
    found = [prefix + (field.alias or "") for field in model.model_fields.values()]
    found = [key for key in found if key.removeprefix(prefix) not in values]
    for field in model.model_fields.values():
        nested, inner = field.annotation, values.get(field.alias or "")
        is_section = isinstance(nested, type) and issubclass(nested, BaseModel)
        if is_section and nested is not ClusterConfig and inner:
            found += missing_keys(nested, inner, f"{prefix}{field.alias}.")
    return found


def test_every_key_stands_in_values_yaml_with_its_default() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert missing_keys(ChartValues, {**values, "global": {}}) == []
    assert missing_keys(PodValues, values["podDefaults"]) == []


def test_examples_in_the_guide_are_valid(helm: Helm, tmp_path: Path) -> None:
    guide = (ROOT / "docs/kubernetes.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    examples = [block for block in blocks if "apiVersion" not in block]  # those are manifests
    examples += [text for text in re.findall(r"\| `(model: \{.*\})` \|", guide) if "…" not in text]
    assert len(examples) == 3
    for example in examples:
        file = tmp_path / "values.yaml"
        file.write_text(example)
        done = helm.template(file, "config.model=/models/m")
        assert done.returncode == 0, done.stderr
