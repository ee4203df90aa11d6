"""Which bodies are taken, and what a caller hears about the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.body import parse_body
from router.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from triptych.errors import RequestError

MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> ChatRequest:
    return parse_body(json.dumps({"messages": MESSAGES, **fields}).encode(), ChatRequest)


def completion(**fields: Any) -> CompletionRequest:
    return parse_body(json.dumps({"prompt": "Hi", **fields}).encode(), CompletionRequest)


def refused(make: Any, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        make(**fields)
    return raised.value


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


CALLS = {
    "role": "assistant",
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ],
}
CALLS_WITH_AN_OBJECT = {
    "role": "assistant",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}],
}
FORMAT_OF_A_LIST = {"type": "json_schema", "json_schema": {"name": "n", "schema": []}}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"tools": None, "tool_choice": "auto", "parallel_tool_calls": True},
        {"functions": [], "function_call": "none"},
        {"store": False, "metadata": {"a": "b"}, "user": "me", "service_tier": "auto"},
        {"modalities": ["text"], "audio": None, "prediction": None},
        {"safety_identifier": "x", "prompt_cache_key": "y", "priority": 0},
        {"logprobs": False, "top_logprobs": 0},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"temperature": None, "n": None, "stop": None, "seed": None, "stream_options": None},
        {"seed": -(1 << 63)},
        {"max_tokens": 3, "max_completion_tokens": 3},
    ],
)
def test_what_clients_send_without_meaning_anything_is_accepted(fields: dict[str, Any]) -> None:
    chat(**fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("store", True),
        ("store", 0),
        ("service_tier", "flex"),
        ("modalities", ["text", "audio"]),
        ("prompt_logprobs", 2),
        ("audio", {}),
    ],
)
def test_what_is_not_supported_is_refused_by_name_with_the_remedy(field: str, value: Any) -> None:
    error = refused(chat, **{field: value})
    assert (error.param, error.code) == (field, "unsupported_parameter")
    assert str(error).startswith(f"{field}: not supported yet; leave it out or send one of: null")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.1, "should be greater than or equal to 0"),
        ("temperature", "1", "should be a valid number"),
        ("temperature", True, "should be a valid number"),
        ("top_p", 0, "should be greater than 0"),
        ("top_k", -2, "should be greater than or equal to -1"),
        ("n", 0, "should be greater than or equal to 1"),
        ("n", 1.5, "should be a valid integer"),
        ("max_tokens", 0, "should be greater than or equal to 1"),
        ("seed", 1 << 64, "should be less than"),
        ("stop", 5, "should be a valid string or should be a valid list"),
        ("stop", ["a"] * 17, "should have at most 16 items"),
        ("stop[1]", ["a", ""], "string should have at least 1 character"),
        ("logit_bias.x", {"x": 1}, "string should match pattern"),
        ("logit_bias.7", {"7": 101}, "should be less than or equal to 100"),
        ("top_logprobs", 21, "should be less than or equal to 20"),
        ("stream", "yes", "should be a valid boolean"),
        ("messages", [], "list should have at least 1 item"),
        ("messages[0].role", [{"role": "robot", "content": ""}], "should be 'system', 'developer'"),
        ("messages[1].content", [*MESSAGES, {"role": "user"}], "field required"),
        ("messages[0].content", [{"role": "user", "content": None}], "field required"),
        ("messages[0].tool_calls[0].function.arguments", [CALLS_WITH_AN_OBJECT], "valid string"),
        ("messages[0].tool_calls", [{**CALLS, "role": "user"}], "only an assistant makes"),
        ("tools[0].function.name", [tool("no blanks")], "string should match pattern"),
        ("tools", [tool("f"), tool("f")], "two functions share a name"),
        ("tool_choice", "required", '"required" needs tools'),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}, "not among tools"),
        ("response_format.type", {"type": "xml"}, "'json_schema'"),
        ("response_format.json_schema", {"type": "json_schema"}, "goes with type"),
        ("response_format.json_schema.schema", FORMAT_OF_A_LIST, "should be a valid dictionary"),
        ("structured_outputs.whitespace", {"whitespace": ""}, "knows no such field"),
        ("sparse_attention.scale", {}, "give scale, pages or both"),
        ("sparse_attention.pages.tokens", {"pages": {}}, "give tokens, share or both"),
        ("sparse_attention.pages.tokens", {"pages": {"tokens": 64}}, "or equal to 128"),
        ("sparse_attention.pages.share", {"pages": {"share": 1.5}}, "less than or equal to 1"),
        ("guided_choice", [], "at least 1 item"),
        ("messages[0].text", [{"role": "user", "text": ""}], "this server knows no such field"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(field: str, value: Any, message: str) -> None:
    error = refused(chat, **{field.partition("[")[0].partition(".")[0]: value})
    assert error.param == field
    assert message in str(error)


def test_an_unknown_field_is_named() -> None:
    error = refused(chat, guided_whitespace_pattern=" ")
    assert (error.param, error.code) == ("guided_whitespace_pattern", "unknown_parameter")


def test_text_parts_are_taken_and_others_named() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].num_chars == 2
    parts.append({"type": "image_url", "text": ""})
    error = refused(chat, messages=[{"role": "user", "content": parts}])
    assert error.param == "messages[0].content"
    assert "part 2 is of type 'image_url'" in str(error)


def test_an_answer_can_be_sent_back_as_openais_client_dumps_it() -> None:
    answer = {
        "role": "assistant",
        "content": "Hello",
        "refusal": None,
        "audio": None,
        "annotations": [],
        "function_call": None,
        "tool_calls": None,
    }
    chat(messages=[*MESSAGES, answer, *MESSAGES])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: Any, param: str) -> None:
    assert refused(chat, **fields).param == param


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", ""], ["a", ""]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_comes_in_four_shapes(prompt: Any, prompts: Any) -> None:
    assert completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "should be a string or a list"),
        ({"a": 1}, "should be a string or a list"),
        (["a", 1], "item [1] should be a valid string"),
        ([1, "a"], "item [1] should be a valid integer"),
        ([1, True], "item [1] should be a valid integer"),
        ([-1], "item [0] should be greater than or equal to 0"),
        ([1 << 32], "item [0] should be less than or equal to"),
        ([[1], []], "item [1] list should have at least 1 item"),
        ([[1], [2, None]], "item [1][1] should be a valid integer"),
        ([None], "item [0] should be a valid integer"),
    ],
)
def test_a_prompt_of_another_shape_is_refused_at_its_item(prompt: Any, message: str) -> None:
    error = refused(completion, prompt=prompt)
    assert error.param == "prompt"
    assert message in str(error)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": ["a"] * 600, "n": 2}, "prompt"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_completions_refuse_what_they_cannot_do(fields: Any, param: str) -> None:
    assert refused(completion, **fields).param == param


def test_best_of_may_repeat_n() -> None:
    assert completion(n=2, best_of=2).choices == 2


def test_tokenize_wants_a_prompt_or_messages() -> None:
    for fields in ({}, {"prompt": "a", "messages": MESSAGES}):
        with pytest.raises(RequestError, match="either prompt or messages"):
            parse_body(json.dumps(fields).encode(), TokenizeRequest)


def test_detokenize_refuses_what_is_no_token_id() -> None:
    with pytest.raises(RequestError) as raised:
        parse_body(b'{"tokens": [1, -1]}', DetokenizeRequest)
    assert raised.value.param == "tokens[1]"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"n": ' + b"9" * 100_000 + b"}",
        b"[]",
        b"null",
        b"{} {}",
    ],
    ids=repr,
)
def test_what_is_not_a_json_object_is_refused_as_such(raw: bytes) -> None:
    with pytest.raises(RequestError) as raised:
        parse_body(raw, CompletionRequest)
    assert raised.value.code == "invalid_json"


def test_a_number_too_large_for_a_float_is_not_infinite() -> None:
    with pytest.raises(RequestError, match="temperature: should be"):
        parse_body(b'{"prompt": "a", "temperature": 1e999}', CompletionRequest)


def test_an_error_is_short_whatever_the_body_holds() -> None:
    for fields in (
        {"x" * 100_000: 1},
        {"logit_bias": {"y" * 100_000: 1}},
        {"model": ["z" * 100_000]},
        {"messages": [{"role": "user", "content": [{"type": "t" * 100_000}]}]},
    ):
        error = refused(chat, **fields)
        assert len(str(error)) < 500
        assert len(error.param or "") < 200


@pytest.mark.parametrize(
    "fields",
    [
        {str(number): 1 for number in range(50_000)},
        {"messages": [{"x": 1}] * 4_000},
        {"messages": [MESSAGES[0]] * 50_000},
        {"logit_bias": {f"x{number}": 1 for number in range(50_000)}},
        {"metadata": {f"x{number}": 1 for number in range(50_000)}},
        {"stop": [""] * 50_000},
        {"messages": [{"role": "user", "content": [1] * 50_000}]},
    ],
    ids=["keys", "messages", "many messages", "bias", "metadata", "stops", "parts"],
)
def test_many_wrong_items_cost_one_error(fields: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def count(error: Any, data: Any) -> RequestError:
        counts.append(error.error_count())
        return RequestError("")

    monkeypatch.setattr("router.body.explain", count)
    refused(chat, **fields)
    assert counts[0] <= 3
