"""Is a manifest what the API of a Kubernetes version takes? Strict: an unknown field is an error.

Schemas of the API are those inside the package kubernetes-validate; its own function reads 3 MB for
each manifest. Of other people's kinds (custom_kinds.yaml) we know what we use.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry, Resource

VERSIONS = ("1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")


def errors_of(manifest: dict[str, Any], version: str) -> list[str]:
    """With the path of each wrong field."""
    checker = _checker(manifest["kind"], manifest["apiVersion"], version)
    name = f"{manifest['kind']}/{manifest['metadata']['name']}"
    found = checker.iter_errors(manifest)
    return [f"{name}: {error.json_path}: {error.message}" for error in found]


@cache
def _checker(kind: str, api_version: str, version: str) -> jsonschema.Draft202012Validator:
    custom = _custom_kinds().get(f"{api_version} {kind}")
    if custom is not None:
        return jsonschema.Draft202012Validator(custom)
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = _read(version, f"{kind.lower()}-{group}.json")
    return jsonschema.Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    return Resource.from_contents(_read(version, "_definitions.json")) @ Registry()


def _read(version: str, name: str) -> Any:
    folder = files("kubernetes_validate") / "kubernetes-json-schema"
    return json.loads((folder / f"v{version}.0-local-strict" / name).read_text())


@cache
def _custom_kinds() -> dict[str, Any]:
    schemas: dict[str, Any] = yaml.safe_load(
        Path(__file__).with_name("custom_kinds.yaml").read_text()
    )
    return schemas
