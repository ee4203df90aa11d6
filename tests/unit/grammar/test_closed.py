"""A closed schema allows less than the schema, and never nothing."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from triptych.grammar.closed import closed

A: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = {**A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, CLOSED),
        ({"type": "array", "items": A}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [A, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": A}},
            {"$ref": "#/$defs/a", "$defs": {"a": CLOSED}},
        ),
        (
            {"properties": {"required": A, "enum": {"enum": [A]}}},
            {
                "properties": {"required": CLOSED, "enum": {"enum": [A]}},
                "additionalProperties": False,
            },
        ),
    ],
)
def test_objects_hold_what_is_named(schema: Any, expected: Any) -> None:
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {"type": "object"},
        {**A, "additionalProperties": True},
        {**A, "additionalProperties": {"type": "string"}},
        {**A, "required": ["b"]},
        {**A, "minProperties": 2},
        {**A, "patternProperties": {"^x": {}}},
        {"allOf": [A, {"properties": {"b": {}}, "required": ["b"]}]},
        {**A, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"$ref": "#/$defs/a", "properties": {"b": {}}, "$defs": {"a": A}},
        {"not": A},
        {"properties": 3, "required": "a"},
        {**A, "required": [["a"], 3]},
        {**A, "required": "a"},
        {"anyOf": 1, "allOf": {}, "items": [3]},
    ],
)
def test_what_may_be_named_elsewhere_stays_open(schema: Any) -> None:
    assert closed(schema) == schema


def test_what_a_closed_schema_allows_the_schema_allows() -> None:
    jsonschema.validate({"a": 1}, closed(A))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"a": 1, "b": 2}, closed(A))
