"""What a chat request says about tools, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from router.schema import ChatRequest, NamedTool, Tool
from router.structured import asked_grammar, refuse_without_end
from router.tools.format import MOST_CALLS, Function, ToolFormat, literal
from router.tools.registry import tool_format
from router.tools.source import ToolParser
from triptych.errors import RequestError
from triptych.grammar.deep_stack import on_deep_stack
from triptych.grammar.source import check_grammar, json_schema
from triptych.request import Grammar, GrammarKind
from triptych.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The model may call, or must."""

    format: ToolFormat
    described: Sequence[Mapping[str, Any]]  # as templates show them
    functions: Sequence[Function]  # that may be called
    parallel: bool
    shown_tokens: frozenset[int]  # the format's markers, where they are special tokens
    grammar: Grammar | None  # of an answer that must call

    def parser(self) -> ToolParser:
        names = {function.name for function in self.functions}
        return ToolParser(lambda source: self.format.read(source, names))


def tool_use(body: ChatRequest, parser: str, tokenizer: Tokenizer) -> ToolUse | None:
    """`parser`: `router.tool_parser`. None: no answer can be a call.

    With `tool_choice` "none" the model does not even see the tools.
    """
    if not body.tools or body.tool_choice == "none":
        return None
    wanted, tools = body.tool_choice, body.tools
    if isinstance(wanted, NamedTool):
        tools = [tool for tool in tools if tool.function.name == wanted.function.name]
    most = 1 if body.parallel_tool_calls is False or isinstance(wanted, NamedTool) else MOST_CALLS
    chosen = tool_format(parser, tokenizer.template_text)
    functions = [Function(tool.function.name, tool.function.parameters or {}) for tool in tools]
    special = {marker: tokenizer.special_id(marker) for marker in chosen.markers}

    def spell(marker: str) -> str:
        token_id = special[marker]
        return literal(marker) if token_id is None else f"<[{token_id}]>"

    grammar = None
    if isinstance(wanted, NamedTool) or wanted == "required":
        grammar = Grammar(GrammarKind.LARK, chosen.rules(functions, most, spell))
    return ToolUse(
        format=chosen,
        described=[_described(tool) for tool in body.tools],
        functions=functions,
        parallel=most > 1,
        shown_tokens=frozenset(each for each in special.values() if each is not None),
        grammar=grammar,
    )


async def answer_grammar(body: ChatRequest, tools: ToolUse | None) -> Grammar | None:
    """Of a call where one is required, else what the request asks for.

    Raises RequestError naming the field.
    """
    asked = await asked_grammar(body)
    if tools is None:
        return asked
    if tools.grammar is None:
        if asked is not None:
            raise RequestError(
                "tool_choice: an answer of a form that was asked for is no tool call; "
                'send "none", "required" or the name of a function',
                param="tool_choice",
            )
        return None
    refuse_without_end(body, "tool_choice")
    await on_deep_stack(partial(_check, body, tools.grammar))
    return tools.grammar


def _check(body: ChatRequest, grammar: Grammar) -> None:
    """Raises RequestError naming the function whose parameters cannot be obeyed."""
    for index, tool in enumerate(body.tools or ()):
        field = f"tools[{index}].function.parameters"
        check_grammar(json_schema(tool.function.parameters or {}), field)
    check_grammar(grammar, "tools")


def _described(tool: Tool) -> Mapping[str, Any]:
    return tool.model_dump(exclude_none=True, exclude={"function": {"strict"}})
