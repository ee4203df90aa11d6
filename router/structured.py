"""What a request says about its answer's form, as the grammar that homes obey."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from router.schema import GenerationBody
from triptych.errors import RequestError
from triptych.grammar.deep_stack import on_deep_stack
from triptych.grammar.source import any_json_object, check_grammar, json_schema
from triptych.request import Grammar, GrammarKind


class Asked(NamedTuple):
    """A grammar and the field that asks for it."""

    field: str
    grammar: Grammar


async def asked_grammar(body: GenerationBody) -> Grammar | None:
    """Raises RequestError naming the field when it says nothing that can be obeyed."""
    asked = [*_asked(body)]
    if not asked:
        return None
    if len(asked) > 1:
        raise RequestError(
            f"{asked[1].field}: the answer's form is said by {asked[0].field} already; send one",
            param=asked[1].field,
        )
    [(field, grammar)] = asked
    await on_deep_stack(partial(check_grammar, grammar, field))
    refuse_without_end(body, field)
    return grammar


def refuse_without_end(body: GenerationBody, field: str) -> None:
    """The grammar says where an answer ends, and nobody else."""
    for other, given in (("min_tokens", body.min_tokens), ("ignore_eos", body.ignore_eos)):
        if given:
            raise RequestError(
                f"{other}: does not go with {field}, which says where the answer ends", param=other
            )


def _asked(body: GenerationBody) -> Iterator[Asked]:
    openai = body.response_format
    if openai is not None and openai.json_schema is not None:
        schema = openai.json_schema.json_schema
        grammar = any_json_object() if schema is None else json_schema(schema)
        yield Asked("response_format.json_schema.schema", grammar)
    elif openai is not None and openai.type == "json_object":
        yield Asked("response_format", any_json_object())
    vllm = body.structured_outputs
    if vllm is not None:
        found = [
            *_vllm(vllm.json_schema, vllm.regex, vllm.choice, vllm.grammar, "structured_outputs.")
        ]
        if vllm.json_object:
            found.append(Asked("structured_outputs.json_object", any_json_object()))
        if not found:
            names = "json, json_object, regex, choice, grammar"
            raise RequestError(
                f"structured_outputs: send one of {names}", param="structured_outputs"
            )
        yield from found
    yield from _vllm(
        body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar, "guided_"
    )


def _vllm(
    schema: dict[str, Any] | str | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
    prefix: str,
) -> Iterator[Asked]:
    given: list[tuple[str, Any, Callable[[Any], Grammar]]] = [
        ("json", schema, lambda value: _schema(value, f"{prefix}json")),
        ("regex", regex, lambda text: Grammar(GrammarKind.REGEX, text)),
        ("choice", choice, lambda texts: Grammar(GrammarKind.CHOICE, json.dumps(texts))),
        ("grammar", grammar, lambda text: Grammar(GrammarKind.LARK, text)),
    ]
    for name, value, make in given:
        if value is not None:
            yield Asked(prefix + name, make(value))


def _schema(given: dict[str, Any] | str, field: str) -> Grammar:
    if not isinstance(given, str):
        return json_schema(given)
    try:
        return json_schema(json.loads(given))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{field}: not valid JSON: {error}", param=field) from None
