"""Messages and prompts to token ids. Long ones are encoded in a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from router.off_loop import off_loop
from router.sampling import check_token_ids
from router.schema import ChatRequest, Message
from router.tools.told import with_tools_told
from triptych.errors import RequestError
from triptych.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: Sequence[int]
    text: str | None = None  # as the caller wrote it; None: given as messages or token ids


async def chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    variables: Mapping[str, Any] = MappingProxyType({}),
    add_generation_prompt: bool = True,
    scope: str = "",
) -> Prompt:
    """`scope`: who shares it may find out, by time, which turns were sent before.

    Raises RequestError when the model's template refuses the messages.
    """
    turns: Sequence[Mapping[str, Any]] = [_turn(message) for message in messages]
    if not tokenizer.knows_tools:
        turns, tools = with_tools_told(turns, tools), ()
    size = sum(message.num_chars for message in messages)

    def encode() -> list[int]:
        return tokenizer.encode_chat(
            turns,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            extra=variables,
            scope=scope,
        )

    return Prompt(await off_loop(encode, size))


def template_variables(body: ChatRequest, template: str) -> dict[str, Any]:
    """What a request sets of the chat template's own variables.

    Raises RequestError for a `reasoning_effort` that the model's template knows no way to obey.
    """
    found = dict(body.chat_template_kwargs or {})
    effort = body.reasoning_effort
    if effort is None:
        return found
    if "reasoning_effort" in template:
        found.setdefault("reasoning_effort", effort)
    elif "enable_thinking" in template:
        found.setdefault("enable_thinking", effort != "none")
    elif effort != "none":
        raise RequestError(
            'reasoning_effort: this model\'s chat template knows none; leave it out or send "none"',
            param="reasoning_effort",
            code="unsupported_parameter",
        )
    return found


def _turn(message: Message) -> dict[str, Any]:
    return {"content": None, **message.model_dump(exclude_none=True)}


async def text_prompts(
    tokenizer: Tokenizer, given: Sequence[str | Sequence[int]], *, add_special_tokens: bool = True
) -> list[Prompt]:
    """Raises RequestError for an id outside of the vocabulary."""

    def prompt(item: str | Sequence[int]) -> Prompt:
        if isinstance(item, str):
            return Prompt(tokenizer.encode(item, add_special_tokens=add_special_tokens), item)
        check_token_ids(item, tokenizer.vocab_size, "prompt")
        return Prompt(item)

    size = sum(len(item) for item in given)
    return await off_loop(lambda: [prompt(item) for item in given], size)
