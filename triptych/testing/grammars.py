"""Grammars whose every sentence is short, and what their sentences are checked with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from triptych.request import Grammar, GrammarKind

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


class Checked(NamedTuple):
    grammar: Grammar
    accepts: Callable[[str], bool]


def is_person(text: str) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return (
        set(found) == {"name", "age", "tags"}
        and isinstance(found["name"], str)
        and len(found["name"]) <= 6
        and 0 <= found["age"] <= 120
        and set(found["tags"]) <= {"red", "green"}
    )


GRAMMARS = {
    "json_schema": Checked(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(PERSON)), is_person),
    "regex": Checked(
        Grammar(GrammarKind.REGEX, r"[a-f]{2,5}-[0-9]{3}(é|ß)?"),
        lambda text: re.fullmatch(r"[a-f]{2,5}-[0-9]{3}(é|ß)?", text) is not None,
    ),
    "choice": Checked(
        Grammar(GrammarKind.CHOICE, json.dumps(["the theme", "the", 'a "quoted" thing', "日 本"])),
        lambda text: text in ("the theme", "the", 'a "quoted" thing', "日 本"),
    ),
    "lark": Checked(
        Grammar(GrammarKind.LARK, 'start: "(" start ")" | DIGIT\nDIGIT: /[0-9]/'),
        lambda text: (
            re.fullmatch(r"(\(*)[0-9](\)*)", text) is not None
            and text.count("(") == text.count(")")
        ),
    ),
}
