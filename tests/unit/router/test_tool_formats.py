"""Calls are found in what each family writes, however it was cut into pieces."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from router.tools.format import Function, literal
from router.tools.registry import FORMATS, tool_format
from router.tools.source import Arguments, CallStart, Found, Prose, ToolParser
from triptych.grammar.source import check_grammar
from triptych.request import Grammar, GrammarKind

NAMES = {"get_weather", "now"}
PARIS = {"city": 'Paris "Cité" {, ]}', "days": 3}
PARIS_TEXT = json.dumps(PARIS, ensure_ascii=False)
Call = tuple[str, Any]

# Format, answer, content, calls.
ANSWERS: list[tuple[str, str, str, list[Call]]] = [
    ("hermes", "Just text, 1 < 2 and <tool> too. ", "Just text, 1 < 2 and <tool> too. ", []),
    (
        "hermes",
        f'Let me see.\n<tool_call>\n{{"name": "get_weather", "arguments": {PARIS_TEXT}}}\n'
        '</tool_call>\n<tool_call>{"arguments": {}, "name": "now"}</tool_call>\n',
        "Let me see.",
        [("get_weather", PARIS), ("now", {})],
    ),
    ("hermes", '<tool_call>{"name": "now"}</tool_call> Done.', "Done.", [("now", {})]),
    (
        "hermes",
        '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("now", {"a": 1})],
    ),
    ("hermes", "<tool_call>\n<function=now></tool_call>", "<function=now></tool_call>", []),
    (
        "llama3_json",
        f'{{"name": "get_weather", "parameters": {PARIS_TEXT}}}; '
        '{"name": "now", "parameters": {}}',
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    ("llama3_json", '<|python_tag|>{"name": "now", "parameters": {}}', "", [("now", {})]),
    ("llama3_json", '{"name": "Anna", "age": 3}', '{"name": "Anna", "age": 3}', []),
    ("llama3_json", '{"age": [3, {}]} is JSON', '{"age": [3, {}]} is JSON', []),
    ("llama3_json", "Plain {text}.", "Plain {text}.", []),
    (
        "pythonic",
        "[get_weather(city='Paris \"Cité\" {, ]}', days=3), now()]",
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    ("pythonic", "[now(a=[true, None, -1.5])]", "", [("now", {"a": [True, None, -1.5]})]),
    ("pythonic", '["a", now] is a list', '["a", now] is a list', []),
    ("pythonic", "[erase()]", "[erase()]", []),
    ("pythonic", '{"name": "now", "parameters": {}}', "", [("now", {})]),
    (
        "mistral",
        f'I call.[TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS_TEXT}}}, '
        '{"name": "now", "arguments": {}}]',
        "I call.",
        [("get_weather", PARIS), ("now", {})],
    ),
    (
        "mistral",
        f"[TOOL_CALLS]get_weather[ARGS]{PARIS_TEXT}[TOOL_CALLS]now{{}}",
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    (
        "deepseek",
        "So:\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        f"```json\n{PARIS_TEXT}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function"
        "<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "So:",
        [("get_weather", PARIS), ("now", {})],
    ),
    (
        "deepseek",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS_TEXT}"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [("get_weather", PARIS)],
    ),
    ("harmony", "<|channel|>final<|message|>It is 1 < 2. <|return|>", "It is 1 < 2.", []),
    (
        "harmony",
        "<|channel|>analysis<|message|>Who asks?<|end|><|start|>assistant<|channel|>commentary"
        "<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        f"<|constrain|>json<|message|>{PARIS_TEXT}<|call|>",
        "I look.",
        [("get_weather", PARIS)],
    ),
    (
        "harmony",
        f" to=functions.get_weather<|channel|>commentary json<|message|>{PARIS_TEXT}<|end|>"
        "<|start|>assistant to=functions.now<|channel|>commentary<|message|><|call|>",
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    ("harmony", "No head < at all.", "No head < at all.", []),
    ("harmony", "<|channel|>analysis to=python<|message|>1 + 1<|call|>", "", []),
]
TEMPLATES = {
    "hermes": "{{ '<tool_call>' }}",
    "llama3_json": "Environment: ipython",
    "mistral": "[AVAILABLE_TOOLS] [TOOL_CALLS]",
    "deepseek": "<｜tool▁calls▁begin｜>",
    "harmony": "<|channel|>",
    "pythonic": "<|python_start|>",
}


def told(name: str, pieces: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls, as a client joins them."""
    reads = FORMATS[name]
    parser = ToolParser(lambda source: reads.read(source, NAMES))
    found: list[Found] = [each for piece in pieces for each in parser.push(piece)]
    text, calls = "", list[tuple[str, str]]()
    for each in [*found, *parser.finish()]:
        match each:
            case Prose(said):
                text += said
            case CallStart(called):
                calls.append((called, ""))
            case Arguments(piece):
                calls[-1] = (calls[-1][0], calls[-1][1] + piece)
    return text, calls


@pytest.mark.parametrize(("name", "answer", "content", "calls"), ANSWERS)
def test_content_and_calls_are_told_apart(
    name: str, answer: str, content: str, calls: list[Call]
) -> None:
    text, found = told(name, [answer])
    assert text == content
    assert [(called, json.loads(arguments)) for called, arguments in found] == calls


@pytest.mark.parametrize(("name", "answer", "content", "calls"), ANSWERS)
def test_it_does_not_matter_where_an_answer_is_cut(
    name: str, answer: str, content: str, calls: list[Call]
) -> None:
    whole = told(name, [answer])
    assert told(name, [*answer]) == whole
    for at in range(len(answer)):
        assert told(name, [answer[:at], answer[at:]]) == whole
    draw = random.Random(1)
    for _ in range(20):
        cuts = sorted(draw.sample(range(len(answer)), min(4, len(answer))))
        ends = [*cuts, len(answer)]
        assert told(name, [answer[a:b] for a, b in zip([0, *cuts], ends, strict=True)]) == whole


@pytest.mark.parametrize(("name", "answer", "content", "calls"), ANSWERS)
def test_an_answer_that_is_cut_off_tells_a_beginning_of_what_the_whole_would_tell(
    name: str, answer: str, content: str, calls: list[Call]
) -> None:
    _, whole = told(name, [answer])
    for length in range(len(answer)):
        _, found = told(name, [answer[:length]])
        assert [called for called, _ in found] == [called for called, _ in whole[: len(found)]]
        for (_, part), (_, arguments) in zip(found, whole, strict=False):
            assert arguments.startswith(part) or json.loads(part) == json.loads(arguments)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("hermes", ['<tool_call>{"name": "now", "arguments": {"a', '": 1', "2}}</tool_call>"]),
        ("llama3_json", ['{"name": "now", "parameters": {"a', '": 1', "2}}"]),
        ("mistral", ['[TOOL_CALLS][{"name": "now", "arguments": {"a', '": 1', "2}}]"]),
        (
            "harmony",
            [
                '<|channel|>commentary to=functions.now<|message|>{"a',
                '": 1',
                "2}<|call|>",
            ],
        ),
        (
            "deepseek",
            ['<｜tool▁call▁begin｜>now<｜tool▁sep｜>{"a', '": 1', "2}<｜tool▁call▁end｜>"],
        ),
    ],
)
def test_arguments_are_told_as_they_come(name: str, pieces: list[str]) -> None:
    reads = FORMATS[name]
    parser = ToolParser(lambda source: reads.read(source, NAMES))
    found = [parser.push(piece) for piece in pieces]
    assert found == [
        [CallStart("now"), Arguments('{"a')],
        [Arguments('": 1')],
        [Arguments("2}")],
    ]


def test_text_is_held_back_only_where_a_call_may_begin() -> None:
    parser = ToolParser(lambda source: FORMATS["hermes"].read(source, NAMES))
    assert parser.push("a < b") == [Prose("a < b")]
    assert parser.push(" \n<tool") == []
    assert parser.push("box>") == [Prose(" \n<toolbox>")]


@pytest.mark.parametrize("name", FORMATS)
def test_the_chat_template_tells_the_format(name: str) -> None:
    assert tool_format("auto", TEMPLATES[name]) is FORMATS[name]
    assert tool_format(name, "") is FORMATS[name]
    assert tool_format("auto", "") is FORMATS["hermes"]


@pytest.mark.parametrize("most", [1, 5])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_grammar_for_its_calls(name: str, most: int) -> None:
    functions = [Function("get_weather", {"properties": {"city": {"type": "string"}}})]
    functions.append(Function("now", {}))
    for spell in (literal, lambda marker: "<[3]>"):
        opening = FORMATS[name].opening
        rules = FORMATS[name].rules(functions, most, spell, spell(opening) if opening else "")
        check_grammar(Grammar(GrammarKind.LARK, f"start: calls\n{rules}"), "tools")
