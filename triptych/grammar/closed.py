"""Objects that hold what their schema names, and nothing besides.

JSON schema lets every object have further properties unless it says otherwise, which hardly any
schema does. A small model that may add some adds them until `max_tokens`. What a closed schema
allows, the schema itself allows as well; xgrammar calls this its strict mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BY_NAME = ("properties", "$defs", "definitions")  # names to schemas
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_COMBINE = ("anyOf", "oneOf", "allOf", "$ref", "$dynamicRef")
# With one of these an object's properties may be named in another place than where it is closed.
_ELSEWHERE = frozenset(
    ("not", "if", "dependentSchemas", "unevaluatedProperties", "contains", "propertyNames")
)


class _NamedElsewhere(Exception):
    """Nobody knows here which properties an object has."""


def closed(schema: Any) -> Any:
    """`schema` with `additionalProperties: false` where it says nothing of them, or as it is."""
    try:
        return _closed(schema)
    except _NamedElsewhere:
        return schema


def _closed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    combined = [key for key in _COMBINE if key in schema]
    named = "properties" in schema or "required" in schema
    if _ELSEWHERE & schema.keys() or len(combined) + named > 1 or _is_many(schema.get("allOf")):
        raise _NamedElsewhere
    found = {key: _inner(key, value) for key, value in schema.items()}
    if _names_all(schema):
        found.setdefault("additionalProperties", False)
    return found


def _inner(key: str, value: Any) -> Any:
    if key in _BY_NAME and isinstance(value, Mapping):
        return {name: _closed(each) for name, each in value.items()}
    if key in _LISTS and isinstance(value, list):
        return [_closed(each) for each in value]
    return _closed(value) if key in _SINGLE else value


def _is_many(schemas: Any) -> bool:
    return isinstance(schemas, list) and len(schemas) > 1


def _names_all(schema: Mapping[str, Any]) -> bool:
    """Whether an object can be made of the properties that are named."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or "patternProperties" in schema:
        return False
    required, fewest = schema.get("required", []), schema.get("minProperties", 0)
    return (
        isinstance(required, list)
        and all(isinstance(name, str) and name in properties for name in required)
        and isinstance(fewest, int | float)
        and fewest <= len(properties)
    )
