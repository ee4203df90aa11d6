"""What a request says about its answer's form, and what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.answer_form import answer_grammar
from router.body import parse_body
from router.reading import answer_reading
from router.schema import ChatRequest
from router.structured import asked_grammar
from router.tool_use import tool_use
from triptych.config import RouterConfig
from triptych.errors import RequestError
from triptych.request import Grammar, GrammarKind
from triptych.testing.tiny_chat import save_tiny_chat
from triptych.tokenizer import Tokenizer

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
BAD = {"type": "objec"}
FUNCTION = {"name": "f", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
STRICT = {"type": "function", "function": {**FUNCTION, "strict": True}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(save_tiny_chat(tmp_path_factory.mktemp("tokenizer")))


def chat(**fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "Hi"}]
    return parse_body(json.dumps({"messages": messages, **fields}).encode(), ChatRequest)


def allowed(mode: str, tool: Any = TOOL) -> dict[str, Any]:
    named = {"type": "function", "function": {"name": tool["function"]["name"]}}
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named]}}


async def grammar_for(body: ChatRequest, tokenizer: Tokenizer) -> Grammar | None:
    return await answer_grammar(
        body, answer_reading(RouterConfig(), tokenizer, [1], tool_use(body))
    )


def format_of(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type":"object"}'),
        ({"response_format": format_of(SCHEMA)}, "json_schema", json.dumps(SCHEMA)),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", json.dumps(SCHEMA)),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type":"object"}'),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", json.dumps(SCHEMA)),
        ({"guided_choice": ["a", "b"]}, "choice", '["a", "b"]'),
        ({"guided_grammar": 'root ::= "a"'}, "lark", 'root ::= "a"'),
    ],
)
async def test_every_spelling_becomes_a_grammar(
    fields: dict[str, Any], kind: str, text: str
) -> None:
    assert await asked_grammar(chat(**fields)) == Grammar(GrammarKind(kind), text)


async def test_without_a_wish_there_is_none() -> None:
    assert await asked_grammar(chat(response_format={"type": "text"})) is None


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("response_format.json_schema.schema", {"response_format": format_of(BAD)}),
        ("structured_outputs.json", {"structured_outputs": {"json": BAD}}),
        ("structured_outputs.regex", {"structured_outputs": {"regex": "a("}}),
        ("structured_outputs", {"structured_outputs": {}}),
        ("structured_outputs.regex", {"structured_outputs": {"json": SCHEMA, "regex": "a"}}),
        ("guided_json", {"guided_json": "{"}),
        ("guided_grammar", {"guided_grammar": "start: nobody"}),
        ("guided_regex", {"guided_regex": "a", "response_format": {"type": "json_object"}}),
        ("min_tokens", {"guided_regex": "a", "min_tokens": 3}),
        ("ignore_eos", {"guided_regex": "a", "ignore_eos": True}),
    ],
)
async def test_what_cannot_be_obeyed_is_refused_by_field(
    param: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(RequestError) as refused:
        await asked_grammar(chat(**fields))
    assert refused.value.param == param
    assert str(refused.value).startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("fields", "is_use", "has_grammar"),
    [
        ({}, False, False),
        ({"tools": []}, False, False),
        ({"tools": [TOOL], "tool_choice": "none"}, False, False),
        ({"tools": [TOOL]}, True, False),
        ({"tools": [STRICT]}, True, True),
        ({"tools": [TOOL], "response_format": format_of(SCHEMA)}, True, True),
        ({"tools": [TOOL], "tool_choice": "required"}, True, True),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            True,
            True,
        ),
        ({"tools": [TOOL], "tool_choice": allowed("auto")}, True, False),
        ({"tools": [TOOL], "tool_choice": allowed("required")}, True, True),
    ],
)
async def test_tool_choice_says_whether_an_answer_may_or_must_be_a_call(
    tokenizer: Tokenizer, fields: dict[str, Any], is_use: bool, has_grammar: bool
) -> None:
    body = chat(**fields)
    assert (tool_use(body) is not None) == is_use
    assert (await grammar_for(body, tokenizer) is not None) == has_grammar


@pytest.mark.parametrize("wrapped", [False, True])
def test_with_a_name_only_that_function_can_be_called(wrapped: bool) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    choice = allowed("auto", other) if wrapped else other
    use = tool_use(chat(tools=[TOOL, other], tool_choice=choice))
    assert use is not None and [function.name for function in use.functions] == ["other"]
    assert [each["function"]["name"] for each in use.described] == ["f", "other"]


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("tools[1].function.parameters", {"tool_choice": "required"}),
        ("tools[1].function.parameters", {"tool_choice": allowed("required")}),
        ("min_tokens", {"tool_choice": "required", "min_tokens": 3}),
    ],
)
async def test_tools_that_cannot_be_obeyed_are_refused_by_field(
    tokenizer: Tokenizer, param: str, fields: dict[str, Any]
) -> None:
    bad = {"type": "function", "function": {"name": "g", "parameters": BAD}}
    body = chat(tools=[TOOL, bad], **fields)
    with pytest.raises(RequestError) as refused:
        await grammar_for(body, tokenizer)
    assert refused.value.param == param
