"""Grammars of chat answers: calls where one must or may be, thoughts before, the form asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken

from router.answer_form import answer_grammar
from router.reading import answer_reading
from router.schema import ChatRequest
from router.tool_use import tool_use
from router.tools.registry import FORMATS
from triptych.config import RouterConfig
from triptych.errors import RequestError
from triptych.grammar.source import LIMITS, compiler_input
from triptych.grammar.vocabulary import grammar_vocabulary
from triptych.testing.tiny_tokenizers import byte_level, save_folder
from triptych.tokenizer import Tokenizer

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
LOOSE = {"type": "function", "function": {"name": "now"}}
STRICT = {"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": True}}
FORM = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}

# By format: prose, and a call of `weather` with arguments in place of @.
CALLS = {
    "hermes": 'I look.<tool_call>\n{"name": "weather", "arguments": @}\n</tool_call>',
    "mistral": 'I look.[TOOL_CALLS][{"name": "weather", "arguments": @}]',
    "deepseek": "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>@"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "llama3_json": '{"name": "weather", "parameters": @}',
    "pythonic": '{"name": "weather", "parameters": @}',
    "harmony": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
    "to=functions.weather <|constrain|>json<|message|>@",
}


@pytest.fixture(scope="module", params=["special", "text"])
def tokenizer(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Marks are special tokens, or text like any other."""
    backend = byte_level()
    if request.param == "special":
        marks = {mark for each in FORMATS.values() for mark in each.markers}
        marks |= {"<think>", "</think>"}
        backend.add_special_tokens([AddedToken(mark, special=True) for mark in sorted(marks)])
    settings = {"eos_token": "<|im_end|>", "chat_template": "{{ messages }}"}
    folder = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer.load(save_folder(folder, backend, {"tokenizer_config.json": settings}))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    return grammar_vocabulary(tokenizer, tokenizer.vocab_size, tokenizer.eos_token_ids)


@pytest.fixture
def allows(tokenizer: Tokenizer, vocabulary: LLTokenizer) -> Any:
    """async (answer, settings, prompt, **fields) -> is this a whole answer that may be given?"""

    async def check(answer: str, settings: Any, prompt: str = "", **fields: Any) -> bool:
        body = ChatRequest.model_validate(
            {"messages": [{"role": "user", "content": "Hi"}], **fields}
        )
        ids = tokenizer.encode("Hi" + prompt)
        reading = answer_reading(RouterConfig(**settings), tokenizer, ids, tool_use(body))
        grammar = await answer_grammar(body, reading)
        assert grammar is not None
        matcher = LLMatcher(vocabulary, compiler_input(grammar), log_level=0, limits=LIMITS)
        wanted = tokenizer.encode(answer, add_special_tokens=False)
        return matcher.try_consume_tokens(wanted) == len(wanted) and matcher.is_accepting()

    return check


@pytest.mark.parametrize("format", CALLS)
async def test_a_strict_function_is_obeyed_where_the_model_chooses_to_call(
    allows: Any, format: str
) -> None:
    call, settings, tools = CALLS[format], {"tool_parser": format}, [STRICT, LOOSE]
    said = "<|channel|>final<|message|>" if format == "harmony" else ""
    assert await allows(call.replace("@", '{"city": "Rome"}'), settings, tools=tools)
    assert not await allows(call.replace("@", '{"city": "Oslo"}'), settings, tools=tools)
    assert not await allows(call.replace("@", "{}"), settings, tools=tools)
    loose = call.replace("weather", "now")
    assert await allows(loose.replace("@", '{"zone": [1]}'), settings, tools=tools)
    nobody = call.replace("weather", "nobody")
    assert not await allows(nobody.replace("@", "{}"), settings, tools=tools)
    assert await allows(f"{said}It is cold, 1 < 2 {{and}} <tool>.", settings, tools=tools)


@pytest.mark.parametrize("format", ["hermes", "mistral", "deepseek", "harmony"])
async def test_an_answer_of_a_form_may_be_a_call_instead(allows: Any, format: str) -> None:
    asked: dict[str, Any] = {"tools": [STRICT], "response_format": FORM}
    settings = {"tool_parser": format}
    said = "<|channel|>final<|message|>" if format == "harmony" else ""
    call = CALLS[format].removeprefix("I look.")
    assert await allows(said + '{"city": "Paris"}', settings, **asked)
    assert await allows(call.replace("@", '{"city": "Rome"}'), settings, **asked)
    assert not await allows(call.replace("@", '{"city": 1}'), settings, **asked)
    assert not await allows(said + "Paris", settings, **asked)


@pytest.mark.parametrize("format", ["llama3_json", "pythonic"])
async def test_where_a_call_is_mere_json_a_form_and_tools_do_not_go_together(
    allows: Any, format: str
) -> None:
    with pytest.raises(RequestError, match="cannot be told from") as refused:
        await allows("", {"tool_parser": format}, tools=[STRICT], response_format=FORM)
    assert refused.value.param == "tool_choice"


@pytest.mark.parametrize("format", CALLS)
async def test_a_required_call_is_nothing_else(allows: Any, format: str) -> None:
    settings = {"tool_parser": format}
    call = CALLS[format].removeprefix("I look.").replace("@", '{"city": "Rome"}')
    said = "<|channel|>final<|message|>" if format == "harmony" else ""
    asked = {"tools": [STRICT], "tool_choice": "required"}
    assert await allows(call, settings, **asked)
    assert not await allows(f"{said}It is cold.", settings, **asked)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": FORM},
        {"guided_json": json.dumps(CITY)},
        {"guided_regex": r'\{"city": "(Paris|Rome)"\}'},
        {"guided_choice": ['{"city": "Paris"}', "{}"]},
        {"guided_grammar": 'root ::= "{" "\\"city\\": \\"Paris\\"" "}"'},
    ],
)
async def test_a_model_may_think_before_it_answers_in_the_form_asked_for(
    allows: Any, fields: Any
) -> None:
    settings, answer = {"reasoning_parser": "think"}, '{"city": "Paris"}'
    assert await allows(answer, settings, **fields)
    assert await allows(f"<think>Hm, {{Rome}}?\n</think>\n\n{answer}", settings, **fields)
    assert not await allows("<think>Hm.</think>Rome.", settings, **fields)
    assert not await allows(f"Hm. {answer}", settings, **fields)
    opened = {**fields, "prompt": "<think>\n"}
    assert await allows(f"Hm, {{Rome}}?\n</think>\n\n{answer}", settings, **opened)
    assert not await allows("Hm.", settings, **opened)
