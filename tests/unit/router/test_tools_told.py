"""Tools for models whose template knows of none."""

from __future__ import annotations

from typing import Any

from router.tools.told import with_tools_told

TOOL = {"type": "function", "function": {"name": "now"}}
CALL = {"id": "1", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}


def test_tools_join_the_system_message() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    system, user = with_tools_told(turns, [TOOL])
    assert system["content"].startswith("Be brief.\n\n") and '"now"' in system["content"]
    assert user == turns[1]
    assert with_tools_told(turns[1:], [TOOL])[0]["role"] == "system"


def test_calls_and_results_are_told_as_text() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    called, result = with_tools_told(turns, [])
    assert called["content"] == '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
    assert result == {"role": "user", "content": "<tool_response>\nnoon\n</tool_response>"}


def test_an_ordinary_conversation_stays_as_it_is() -> None:
    turns = [{"role": "user", "content": "Hi"}]
    assert with_tools_told(turns, []) == turns
