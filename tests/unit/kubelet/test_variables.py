"""What a container is told."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from triptych.testing.kubelet.variables import (
    Identity,
    Stored,
    command_line,
    environment,
    expand,
)

POD = Identity(
    "decode-0",
    "llm",
    address="10.1.2.3",
    node="node-7",
    labels={"apps.kubernetes.io/pod-index": "0"},
)


def test_references_are_replaced_once_and_unknown_ones_stay() -> None:
    values = {"A": "1", "B": "$(A)"}
    assert expand("$(A) $(B) $(C) $$(A) $A", values) == "1 $(A) $(C) $(A) $A"


def told(container: dict[str, Any], stored: Stored = Stored()) -> dict[str, str]:  # noqa: B008
    return environment(container, POD, stored)


def field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def test_a_pod_is_told_of_itself() -> None:
    paths = {
        "POD": "metadata.name",
        "NS": "metadata.namespace",
        "IP": "status.podIP",
        "NODE": "spec.nodeName",
        "INDEX": "metadata.labels['apps.kubernetes.io/pod-index']",
    }
    env = told({"env": [field(name, path) for name, path in paths.items()]})
    assert list(env.values()) == ["decode-0", "llm", "10.1.2.3", "node-7", "0"]


def test_a_field_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError, match="metadata.uid"):
        told({"env": [field("UID", "metadata.uid")]})


def test_variables_refer_to_those_before_them_and_arguments_to_all() -> None:
    container = {
        "command": ["run"],
        "args": ["--a=$(A)", "--b=$(B)"],
        "env": [{"name": "B", "value": "<$(A)>"}, {"name": "A", "value": "1"}],
    }
    env = told(container)
    assert env == {"B": "<$(A)>", "A": "1"}
    assert command_line(container, env) == ["run", "--a=1", "--b=<$(A)>"]


def test_secrets_are_decoded_and_missing_ones_are_errors_unless_optional() -> None:
    secret = {
        "kind": "Secret",
        "metadata": {"name": "keys"},
        "data": {"key": base64.b64encode(b"s3cret").decode()},
    }
    stored = Stored.of(
        [secret, {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"x": "y"}}]
    )

    def from_key(name: str, key: str, **more: Any) -> dict[str, Any]:
        reference = {"name": name, "key": key, **more}
        return {"env": [{"name": "K", "valueFrom": {"secretKeyRef": reference}}]}

    assert told(from_key("keys", "key"), stored) == {"K": "s3cret"}
    assert told({"envFrom": [{"configMapRef": {"name": "c"}, "prefix": "P_"}]}, stored) == {
        "P_x": "y"
    }
    assert told(from_key("keys", "other", optional=True), stored) == {}
    with pytest.raises(KeyError, match="no key other"):
        told(from_key("keys", "other"), stored)
    with pytest.raises(KeyError, match="no ConfigMap or Secret lost"):
        told(from_key("lost", "key"), stored)
