"""What a container is told: its environment and its command line. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Manifest = dict[str, Any]

_REFERENCE = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")
_KEYED = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class Identity:
    """What the downward API tells a pod of itself."""

    name: str
    namespace: str
    address: str = ""
    node: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    def field(self, path: str) -> str:
        """Raises KeyError for what this stand-in does not know."""
        keyed = _KEYED.fullmatch(path)
        if keyed:
            values = self.labels if keyed[1] == "labels" else self.annotations
            return values.get(keyed[2], "")
        known = {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "status.podIP": self.address,
            "status.podIPs": self.address,
            "status.hostIP": self.address,
            "spec.nodeName": self.node,
        }
        return known[path]


@dataclass(frozen=True, slots=True)
class Stored:
    """The ConfigMaps and Secrets of a namespace: values by key, by name."""

    config_maps: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, manifests: Sequence[Manifest]) -> Stored:
        return cls(
            {
                each["metadata"]["name"]: _plain(each)
                for each in manifests
                if _is(each, "ConfigMap")
            },
            {each["metadata"]["name"]: _plain(each) for each in manifests if _is(each, "Secret")},
        )


def _is(manifest: Manifest, kind: str) -> bool:
    return bool(manifest["kind"] == kind)


def _plain(manifest: Manifest) -> dict[str, bytes]:
    encoded = {**(manifest.get("binaryData") or {})}
    text = {**(manifest.get("stringData") or {})}
    data = manifest.get("data") or {}
    (encoded if manifest["kind"] == "Secret" else text).update(data)
    plain = {key: value.encode() for key, value in text.items()}
    return plain | {key: base64.b64decode(value) for key, value in encoded.items()}


def expand(text: str, values: Mapping[str, str]) -> str:
    """$(NAME) is its value, if it has one; $$ is $."""

    def replace(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return values.get(found[1], found[0])

    return _REFERENCE.sub(replace, text)


def environment(container: Manifest, pod: Identity, stored: Stored) -> dict[str, str]:
    """envFrom, then env, each of which may refer to those before it. Raises KeyError."""
    values: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        prefix = source.get("prefix", "")
        found = _group(source, stored)
        values |= {f"{prefix}{key}": value.decode() for key, value in found.items()}
    for variable in container.get("env") or ():
        origin = variable.get("valueFrom")
        told = _origin(origin, pod, stored) if origin else expand(variable.get("value", ""), values)
        if told is not None:
            values[variable["name"]] = told
    return values


def _group(source: Manifest, stored: Stored) -> Mapping[str, bytes]:
    for key, groups in (("configMapRef", stored.config_maps), ("secretRef", stored.secrets)):
        reference = source.get(key)
        if reference:
            return _look_up(groups, reference["name"], reference.get("optional", False))
    raise KeyError(f"envFrom: {source}: this stand-in knows configMapRef and secretRef")


def _origin(origin: Manifest, pod: Identity, stored: Stored) -> str | None:
    if "fieldRef" in origin:
        return pod.field(origin["fieldRef"]["fieldPath"])
    for kind, groups in (("configMapKeyRef", stored.config_maps), ("secretKeyRef", stored.secrets)):
        reference = origin.get(kind)
        if reference:
            optional = reference.get("optional", False)
            found = _look_up(groups, reference["name"], optional).get(reference["key"])
            if found is None and not optional:
                raise KeyError(f"{kind}: {reference['name']} has no key {reference['key']}")
            return None if found is None else found.decode()
    raise KeyError(f"valueFrom: {origin}: this stand-in knows fieldRef and keys of maps")


def _look_up(
    groups: Mapping[str, Mapping[str, bytes]], name: str, optional: bool
) -> Mapping[str, bytes]:
    if name not in groups and not optional:
        raise KeyError(f"no ConfigMap or Secret {name}; there are {sorted(groups)}")
    return groups.get(name, {})


def command_line(container: Manifest, values: Mapping[str, str]) -> list[str]:
    """Raises KeyError when it would be the image's, which nobody here knows."""
    return [expand(each, values) for each in (*container["command"], *container.get("args", ()))]
