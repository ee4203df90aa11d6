"""What a chat request says about tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.schema import AllowedTools, ChatRequest, NamedTool, Tool
from router.tools.format import MOST_CALLS, Function


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The model may call, or must."""

    described: Sequence[Mapping[str, Any]]  # as templates show them
    functions: Sequence[Function]  # that may be called, with the arguments that a grammar allows
    most: int  # calls in one answer
    must_call: bool
    strict: bool  # a call that it makes of its own accord must obey `functions`


def tool_use(body: ChatRequest) -> ToolUse | None:
    """None: no answer can be a call. With `tool_choice` "none" the model does not even see the
    tools; it sees all of them where only some are allowed.
    """
    if not body.tools or body.tool_choice == "none":
        return None
    wanted = body.tool_choice
    must_call = isinstance(wanted, NamedTool) or "required" in (wanted, body.tool_mode)
    tools = [tool for tool in body.tools if _may_be_called(tool, wanted)]
    single = body.parallel_tool_calls is False or isinstance(wanted, NamedTool)
    return ToolUse(
        described=[_described(tool) for tool in body.tools],
        functions=[_function(tool, must_call) for tool in tools],
        most=1 if single else MOST_CALLS,
        must_call=must_call,
        strict=any(tool.function.strict for tool in tools),
    )


def _may_be_called(tool: Tool, wanted: str | NamedTool | AllowedTools | None) -> bool:
    match wanted:
        case NamedTool(function=function):
            return tool.function.name == function.name
        case AllowedTools(allowed_tools=allowed):
            return tool.function.name in {each.function.name for each in allowed.tools}
        case _:
            return True


def _function(tool: Tool, must_call: bool) -> Function:
    function = Function(tool.function.name, tool.function.parameters or {})
    return function if must_call or tool.function.strict else function.loose


def _described(tool: Tool) -> Mapping[str, Any]:
    return tool.model_dump(exclude_none=True, exclude={"function": {"strict"}})
