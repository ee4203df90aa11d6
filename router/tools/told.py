"""Tools for models whose chat template knows of none: told in the conversation, in Hermes's way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = """\
You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_TAIL = """
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""

Turn = Mapping[str, Any]


def with_tools_told(turns: Sequence[Turn], tools: Sequence[Turn]) -> list[Turn]:
    """The tools in the system message, calls and their results as text."""
    told = [_plain_turn(turn) for turn in turns]
    if not tools:
        return told
    listed = _HEAD + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + _TAIL
    if told and told[0]["role"] in ("system", "developer"):
        first = {**told[0], "content": f"{_text(told[0]['content'])}\n\n{listed}"}
        return [first, *told[1:]]
    return [{"role": "system", "content": listed}, *told]


def _plain_turn(turn: Turn) -> Turn:
    if turn["role"] == "tool":
        result = f"<tool_response>\n{_text(turn['content'])}\n</tool_response>"
        return {"role": "user", "content": result}
    if not turn.get("tool_calls"):
        return turn
    calls = "\n".join(_call_text(call["function"]) for call in turn["tool_calls"])
    said = _text(turn.get("content"))
    return {"role": turn["role"], "content": f"{said}\n{calls}" if said else calls}


def _call_text(function: Turn) -> str:
    name = json.dumps(function["name"])
    arguments = function["arguments"] or "{}"
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""
