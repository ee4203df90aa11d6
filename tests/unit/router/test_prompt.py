"""Prompts to token ids, beside the event loop when there is much to do."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from router.prompt import chat_prompt, template_variables, text_prompts
from router.schema import ChatRequest, Message
from triptych.errors import RequestError
from triptych.testing.tiny_tokenizers import byte_level, save_folder
from triptych.tokenizer import Tokenizer


class Watched:
    """A tokenizer that notes the threads it works in."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.threads: set[int] = set()

    @property
    def knows_tools(self) -> bool:
        return self._tokenizer.knows_tools

    def __getattr__(self, name: str) -> Any:
        self.threads.add(threading.get_ident())
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("prompts", [["the " * 20_000], ["the " * 100] * 300, [[5] * 50_000]])
async def test_much_text_is_encoded_beside_the_event_loop(
    tokenizer: Tokenizer, prompts: Any
) -> None:
    watched: Any = Watched(tokenizer)
    found = await text_prompts(watched, prompts)
    assert threading.get_ident() not in watched.threads
    assert len(found) == len(prompts)


async def test_little_text_is_encoded_on_the_spot(tokenizer: Tokenizer) -> None:
    watched: Any = Watched(tokenizer)
    [found] = await text_prompts(watched, ["the"])
    assert watched.threads == {threading.get_ident()}
    assert (found.ids, found.text) == (tokenizer.encode("the"), "the")


async def test_a_long_conversation_is_rendered_beside_the_event_loop(tokenizer: Tokenizer) -> None:
    watched: Any = Watched(tokenizer)
    turn = Message(role="user", content="the " * 100)
    found = await chat_prompt(watched, [turn] * 100)
    assert threading.get_ident() not in watched.threads
    assert len(found.ids) > 10_000


async def test_parts_count_as_text(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "Hi"}]
    turn = Message.model_validate({"role": "user", "content": parts})
    found = await chat_prompt(tokenizer, [turn])
    assert found.ids == tokenizer.encode_chat([{"role": "user", "content": "Hi"}])


async def test_an_id_outside_of_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="prompt: token id 9999"):
        await text_prompts(tokenizer, [[1, 9999]])


TOOLS = [{"type": "function", "function": {"name": "weather"}}]
CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
}


def turns() -> list[Message]:
    said = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "No."},
    ]
    return [Message.model_validate(turn) for turn in said]


async def test_a_template_that_knows_tools_shows_tools_calls_and_results(tmp_path: Path) -> None:
    template = (
        "{% if tools %}{{ tools[0].function.name }}|{% endif %}{% for m in messages %}"
        "{{ m.role }}:{{ m.content }}{% for call in m.tool_calls or [] %}"
        "{{ call.function.arguments.city }}{% endfor %}|{% endfor %}"
    )
    settings = {"eos_token": "<|im_end|>", "chat_template": template}
    files = {"config.json": {"model_type": "llama"}, "tokenizer_config.json": settings}
    knowing = Tokenizer.load(save_folder(tmp_path, byte_level(), files))
    found = await chat_prompt(knowing, turns(), tools=TOOLS)
    assert knowing.decode(found.ids) == "weather|user:Rain?|assistant:Paris|tool:No.|"


async def test_to_another_template_they_are_told_as_text(tokenizer: Tokenizer) -> None:
    found = tokenizer.decode((await chat_prompt(tokenizer, turns(), tools=TOOLS)).ids)
    assert found.index('"name": "weather"') < found.index("Rain?")
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}' in found
    assert "<tool_response>\nNo.\n</tool_response>" in found


@pytest.mark.parametrize(
    ("template", "fields", "variables"),
    [
        ("", {}, {}),
        ("", {"reasoning_effort": "none"}, {}),
        ("", {"chat_template_kwargs": {"a": [1]}}, {"a": [1]}),
        ("{{ reasoning_effort }}", {"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ("{{ enable_thinking }}", {"reasoning_effort": "none"}, {"enable_thinking": False}),
        ("{{ enable_thinking }}", {"reasoning_effort": "high"}, {"enable_thinking": True}),
        (
            "{{ enable_thinking }}",
            {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
            {"enable_thinking": False},
        ),
    ],
)
def test_a_request_sets_variables_of_the_template(
    template: str, fields: dict[str, Any], variables: dict[str, Any]
) -> None:
    body = ChatRequest.model_validate({"messages": [{"role": "user", "content": "Hi"}], **fields})
    assert template_variables(body, template) == variables


def test_an_effort_that_the_model_cannot_make_is_refused_by_name() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = ChatRequest.model_validate({"messages": messages, "reasoning_effort": "low"})
    with pytest.raises(RequestError) as refused:
        template_variables(body, "")
    assert (refused.value.param, refused.value.code) == (
        "reasoning_effort",
        "unsupported_parameter",
    )
