"""Chat messages to prompt text, by the model's own template.

Templates see what they see in transformers: the same Jinja settings, functions and variables.
Messages come as OpenAI clients send them; what templates commonly do not expect is put right first:
text parts are joined (unless the template goes through the parts itself), null content becomes "",
the arguments of tool calls are parsed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from triptych.errors import ModelError, RequestError

_RESERVED = ("messages", "tools", "add_generation_prompt")
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names in use, the standard one first


class ChatTemplate:
    """One compiled template. Raises ModelError when its source is not valid Jinja."""

    def __init__(self, source: str) -> None:
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self._reads_parts = _loops_over_content(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"chat template, line {error.lineno}: {error.message}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """`variables`: special tokens and whatever else the template may read; JSON values.

        Raises RequestError(param="messages") with the template's own words when it refuses.
        """
        for name in _RESERVED:
            if name in variables:
                raise RequestError(
                    f"chat_template_kwargs: {name} cannot be set here", param="chat_template_kwargs"
                )
        try:
            return self._template.render(
                {"documents": None, **variables},
                messages=[self._prepare(message) for message in messages],
                tools=tools or None,
                add_generation_prompt=add_generation_prompt,
            )
        # What an expression in a template can raise on values that it did not expect.
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise RequestError(
                f"messages: the model's chat template refused them: {error}", param="messages"
            ) from error

    def _prepare(self, message: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(message)
        if "content" in found:
            found["content"] = _plain_content(found["content"], self._reads_parts)
        if found.get("tool_calls"):
            found["tool_calls"] = [_parse_arguments(call) for call in found["tool_calls"]]
        for name in _REASONING:
            if found.get(name) is not None:
                found = {"thinking": found[name], **found, "reasoning_content": found[name]}
                break
        return found


def _plain_content(content: Any, keep_parts: bool) -> Any:
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    for part in content:
        if part.get("type") != "text":
            raise RequestError(
                f"messages: content of type {part.get('type')!r} is not supported, only 'text'",
                param="messages",
            )
    return content if keep_parts else "\n".join(part["text"] for part in content)


def _parse_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI sends the arguments as a JSON string; templates print them with `tojson`."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError as error:
        raise RequestError(
            f"messages: arguments of a tool call to {function.get('name')!r} are not JSON: {error}",
            param="messages",
        ) from error
    return {**call, "function": {**function, "arguments": arguments}}


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is transparent."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML and non-ASCII characters; models were trained without.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _loops_over_content(template: jinja2.nodes.Template) -> bool:
    """Whether there is a `for part in message.content` or the like."""
    return any(_names_content(loop.iter) for loop in template.find_all(jinja2.nodes.For))


def _names_content(expression: jinja2.nodes.Node) -> bool:
    match expression:
        case jinja2.nodes.Name(name="content") | jinja2.nodes.Getattr(attr="content"):
            return True
        case jinja2.nodes.Getitem(arg=jinja2.nodes.Const(value="content")):
            return True
    return any(_names_content(child) for child in expression.iter_child_nodes())
