"""JSON schemas as people write them, whose every answer is short."""

from __future__ import annotations

from typing import Any


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


_WORD = {"type": "string", "maxLength": 8}

SCHEMAS: dict[str, dict[str, Any]] = {
    "nested objects": _object(
        user=_object(name=_WORD, home=_object(city=_WORD, zip={"type": "integer", "maximum": 999}))
    ),
    "arrays": _object(
        points={
            "type": "array",
            "items": {
                "type": "array",
                "items": {"type": "number", "minimum": -1, "maximum": 1},
                "minItems": 2,
                "maxItems": 2,
            },
            "minItems": 1,
            "maxItems": 2,
        }
    ),
    "enums": _object(
        color={"enum": ["red", "green", None, 7]}, unit={"const": "°C"}, sure={"type": "boolean"}
    ),
    "references": {
        "$defs": {"person": {**_object(name=_WORD, age={"type": "integer", "minimum": 0})}},
        **_object(
            boss={"$ref": "#/$defs/person"},
            team={"type": "array", "items": {"$ref": "#/$defs/person"}, "maxItems": 1},
        ),
    },
    "recursion": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "leaf": {"type": "boolean"},
                    "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                },
                "required": ["leaf"],
            }
        },
        "$ref": "#/$defs/tree",
    },
    "alternatives": {
        "anyOf": [
            _object(kind={"const": "circle"}, radius={"type": "number", "minimum": 0}),
            _object(kind={"const": "square"}, side={"type": "integer", "minimum": 1}),
        ]
    },
    "optional values": {
        "type": "object",
        "properties": {"name": _WORD, "nick": {"anyOf": [_WORD, {"type": "null"}]}},
        "required": ["name"],
    },
    "patterns": _object(
        code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        hex={"type": "string", "pattern": "^(0x)?[0-9a-f]{1,6}$"},
    ),
    "formats": _object(
        day={"type": "string", "format": "date"},
        at={"type": "string", "format": "time", "maxLength": 15},
        id={"type": "string", "format": "uuid"},
        ip={"type": "string", "format": "ipv4"},
    ),
    "bounds": _object(
        low={"type": "integer", "minimum": -5, "maximum": 17},
        open={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        even={"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 1000},
    ),
    "unicode": _object(
        Größe={"enum": ["klein", "groß"]},
        名前={"type": "string", "maxLength": 4},
        emoji={"enum": ["🙂", "🚀", '"\\']},
    ),
    "tuples": {
        "type": "array",
        "prefixItems": [{"type": "integer", "minimum": 0, "maximum": 99}, {"type": "boolean"}],
        "items": False,
        "minItems": 2,
    },
    "maps": {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
        "maxProperties": 2,
    },
}
