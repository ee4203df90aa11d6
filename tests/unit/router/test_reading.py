"""Thoughts are told apart from what is said, however an answer was cut into pieces."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from router.reading import AnswerReading, answer_reading
from router.schema import ChatRequest
from router.tool_use import tool_use
from router.tools.source import CallStart, Found, Prose, Thought
from router.tools.thought import THOUGHTS, thinking_of
from triptych.config import RouterConfig
from triptych.testing.tiny_tokenizers import byte_level, save_folder
from triptych.tokenizer import Tokenizer

QWEN = "{% if tools %}<tool_call>{% endif %}{{ '<think>' }}…</think>"
MAGISTRAL = "[TOOL_CALLS][THINK][/THINK]"
GPT_OSS = "<|start|>assistant<|channel|>final<|message|>"
TOOL = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'

# Template, end of the prompt, answer; thought, content, calls.
ANSWERS: list[tuple[str, str, str, str, str, list[str]]] = [
    (QWEN, "", "<think>\nA < b, so </t…\n</think>\n\nIt is.", "A < b, so </t…", "It is.", []),
    (QWEN, "", "  Just <think> said. ", "", "  Just <think> said. ", []),
    (QWEN, "<think>\n\n</think>\n\n", "Short.", "", "Short.", []),
    (QWEN, "<think>\n", "Hm.\n</think>\n\nYes. ", "Hm.", "Yes. ", []),
    (QWEN, "<think>\n", "Hm, and no end", "Hm, and no end", "", []),
    (QWEN, "", "<think>\n\n</think>\n\nNothing to think.", "", "Nothing to think.", []),
    (QWEN, "", f"<think>\nI call.\n</think>\n\n{CALL}", "I call.", "", ["now"]),
    (QWEN, "", f"<think>{CALL}</think>So: {CALL}", CALL, "So:", ["now"]),
    (MAGISTRAL, "", "[THINK]Hm.[/THINK]Yes.", "Hm.", "Yes.", []),
    (
        GPT_OSS,
        "",
        "<|channel|>analysis<|message|>User asks…<|end|><|start|>assistant<|channel|>final"
        "<|message|>Hello!",
        "User asks…",
        "Hello!",
        [],
    ),
    (
        GPT_OSS,
        "",
        "<|channel|>analysis<|message|>I call.<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.now <|constrain|>json<|message|>{}<|call|>",
        "I call.",
        "",
        ["now"],
    ),
]


@pytest.fixture
def make_reading(tmp_path: Path) -> Any:
    """A reading for a model with this template, after a prompt with this end."""

    def make(template: str, prompt: str, **settings: Any) -> AnswerReading:
        folder = save_folder(
            tmp_path, byte_level(), {"tokenizer_config.json": {"chat_template": template}}
        )
        tokenizer = Tokenizer.load(folder)
        messages = [{"role": "user", "content": "Hi"}]
        body = ChatRequest.model_validate({"messages": messages, "tools": [TOOL]})
        ids = tokenizer.encode("Hi" + prompt)
        return answer_reading(RouterConfig(**settings), tokenizer, ids, tool_use(body))

    return make


def told(reading: AnswerReading, pieces: Sequence[str]) -> tuple[str, str, list[str]]:
    parser = reading.parser()
    found: list[Found] = [each for piece in pieces for each in parser.push(piece)]
    found += parser.finish()
    return (
        "".join(each.text for each in found if isinstance(each, Thought)),
        "".join(each.text for each in found if isinstance(each, Prose)),
        [each.name for each in found if isinstance(each, CallStart)],
    )


@pytest.mark.parametrize(("template", "prompt", "answer", "thought", "said", "calls"), ANSWERS)
def test_thought_content_and_calls_are_told_apart_wherever_an_answer_is_cut(
    make_reading: Any,
    template: str,
    prompt: str,
    answer: str,
    thought: str,
    said: str,
    calls: list[str],
) -> None:
    reading, whole = make_reading(template, prompt), (thought, said, calls)
    assert told(reading, [answer]) == whole
    assert told(reading, [*answer]) == whole
    for at in range(len(answer)):
        assert told(reading, [answer[:at], answer[at:]]) == whole
    draw = random.Random(1)
    for _ in range(20):
        cuts = sorted(draw.sample(range(len(answer)), min(4, len(answer))))
        ends = [*cuts, len(answer)]
        assert told(reading, [answer[a:b] for a, b in zip([0, *cuts], ends, strict=True)]) == whole


def test_a_thought_is_told_as_it_comes(make_reading: Any) -> None:
    parser = make_reading(QWEN, "<think>\n").parser()
    assert parser.push("One, two") == [Thought("One, two")]
    assert parser.push(" three </thi") == [Thought(" three")]
    assert parser.push("ng>") == [Thought(" </thing>")]


def test_thoughts_are_text_where_they_are_not_looked_for(make_reading: Any) -> None:
    answer = "<think>Hm.</think>Yes."
    assert told(make_reading(QWEN, "", reasoning_parser="off"), [answer]) == ("", answer, [])
    assert told(make_reading("", ""), [answer]) == ("", answer, [])
    forced = make_reading("", "", reasoning_parser="think")
    assert told(forced, [answer]) == ("Hm.", "Yes.", [])


def test_the_chat_template_tells_how_thoughts_are_marked() -> None:
    assert thinking_of("auto", QWEN) is THOUGHTS["think"]
    assert thinking_of("auto", MAGISTRAL) is THOUGHTS["mistral"]
    assert thinking_of("auto", "{{ messages }}") is None
