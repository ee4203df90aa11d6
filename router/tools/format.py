"""How a family of models writes tool calls: the seam, and what its grammars are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

from router.tools.source import Reading, Source
from triptych.grammar.source import with_blanks

MOST_CALLS = 16  # that a grammar allows in one answer: a small model would never stop


class Function(NamedTuple):
    """What may be called."""

    name: str
    parameters: dict[str, Any]  # JSON schema of the arguments


Spell = Callable[[str], str]  # a marker as a term of a Lark grammar: text, or a special token


class ToolFormat(Protocol):
    @property
    def markers(self) -> tuple[str, ...]:
        """Where one is a special token, its text must be seen."""

    @property
    def marks(self) -> tuple[str, ...]:
        """A chat template that has one of these is of this family."""

    def read(self, source: Source, names: Collection[str]) -> Reading[None]:
        """An answer's text, to its end; `names` of the functions that there are."""

    def rules(self, functions: Sequence[Function], most: int, spell: Spell) -> str:
        """A Lark grammar of an answer that is 1 to `most` calls."""

    def new_id(self) -> str:
        """Of a call."""


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def schema_term(function: Function) -> str:
    """The arguments, as a term of a Lark grammar.

    Other arguments than those that are named are left out where the schema leaves it open.
    """
    schema: dict[str, Any] = {"type": "object", **function.parameters}
    if "properties" in schema or not function.parameters:
        schema.setdefault("additionalProperties", False)
    return f"%json {json.dumps(with_blanks(schema), ensure_ascii=False)}"


def object_rules(functions: Sequence[Function], arguments: str) -> str:
    """Rule `call`: {"name": …, ARGUMENTS: {…}} of any of the functions."""
    rules = [f"call: {' | '.join(f'call_{index}' for index in range(len(functions)))}"]
    for index, function in enumerate(functions):
        head = literal(f'{{"name": {literal(function.name)}, "{arguments}": ')
        rules.append(f"call_{index}: {head} {schema_term(function)} {literal('}')}")
    return "\n".join(rules) + "\n"


def repeated(rule: str, separator: str, most: int) -> str:
    """RULE (SEPARATOR RULE)*, at most so many."""
    return rule if most == 1 else f"{rule} ({separator} {rule}){{0,{most - 1}}}"
