"""How a family of models writes tool calls: the seam, and what its grammars are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

from router.tools.source import Reading, Source
from triptych.grammar.source import json_term

MOST_CALLS = 16  # that a grammar allows in one answer: a small model would never stop
TEXT = r"/(.|\n)*/"  # of ordinary tokens, as a term of a Lark grammar


class Function(NamedTuple):
    """What may be called."""

    name: str
    parameters: dict[str, Any]  # JSON schema of the arguments

    @property
    def loose(self) -> Function:
        """With any arguments."""
        return Function(self.name, {"type": "object", "additionalProperties": True})


Spell = Callable[[str], str]  # a marker as a term of a Lark grammar: text, or a special token


class Frame(Protocol):
    """What stands around every answer of a family, whether there are tools or not."""

    def lead(self, spell: Spell) -> str:
        """Lark rule `lead`: what the model thinks before."""

    def said(self, answer: str, spell: Spell) -> str:
        """An answer that is no call, as a term."""


class ToolFormat(Protocol):
    @property
    def frame(self) -> Frame | None:
        """None: a plain answer is bare text."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Where one is a special token, its text must be seen."""

    @property
    def marks(self) -> tuple[str, ...]:
        """A chat template that has one of these is of this family."""

    @property
    def opening(self) -> str:
        """The marker that begins the calls, with any text before it. "": there is none."""

    @property
    def prose(self) -> str:
        """Without an opening: a term of texts that cannot be taken for a call. Else ""."""

    def read(self, source: Source, names: Collection[str]) -> Reading[None]:
        """An answer's text, to its end; `names` of the functions that there are."""

    def rules(self, functions: Sequence[Function], most: int, spell: Spell, begin: str) -> str:
        """Lark rule `calls`: 1 to `most` of them. `begin`: the opening, as a term."""

    def new_id(self) -> str:
        """Of a call."""


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def schema_term(function: Function) -> str:
    """The arguments, as a term of a Lark grammar."""
    schema: dict[str, Any] = {"type": "object", **function.parameters}
    if not function.parameters:
        schema["additionalProperties"] = False
    return json_term(schema)


def object_rules(functions: Sequence[Function], arguments: str) -> str:
    """Rule `call`: {"name": …, ARGUMENTS: {…}} of any of the functions."""
    rules = [f"call: {' | '.join(f'call_{index}' for index in range(len(functions)))}"]
    for index, function in enumerate(functions):
        head = literal(f'{{"name": {literal(function.name)}, "{arguments}": ')
        rules.append(f"call_{index}: {head} {schema_term(function)} {literal('}')}")
    return "\n".join(rules) + "\n"


def text_until(rule: str, mark: str, term: str) -> str:
    """A Lark rule: any text, and the mark that ends it, spelled as `term`."""
    is_text = term == literal(mark)  # a special token cannot be in a text
    return f"{rule}{'[lazy]' if is_text else ''}: {TEXT} {term}\n"


def repeated(term: str, most: int) -> str:
    """Up to so many more of them, behind what stands before."""
    return f" ({term}){{0,{most}}}" if most else ""


def separated(rule: str, separator: str, most: int) -> str:
    """1 to `most` of them, with a text between."""
    return rule + repeated(f"{literal(separator)} {rule}", most - 1)
