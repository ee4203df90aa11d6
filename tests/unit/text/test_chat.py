from __future__ import annotations

from typing import Any

import pytest

from triptych.chat import ChatTemplate
from triptych.errors import ModelError, RequestError


def _render(source: str, *messages: dict[str, Any], **variables: Any) -> str:
    tools = variables.pop("tools", None)
    return ChatTemplate(source).render(
        messages, tools=tools, add_generation_prompt=True, variables=variables
    )


def test_text_parts_are_joined_for_a_template_that_expects_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert _render("{{ messages[0].content }}", {"content": parts}) == "one\ntwo"


@pytest.mark.parametrize(
    "source",
    [
        "{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}",
        "{% for part in messages[0]['content'] | list %}[{{ part.text }}]{% endfor %}",
        "{% set content = messages[0]['content'] %}"
        "{% for part in content %}[{{ part.text }}]{% endfor %}",
    ],
)
def test_a_template_that_goes_through_the_parts_gets_them(source: str) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert _render(source, {"content": parts}) == "[one][two]"


def test_parts_other_than_text_are_refused_by_name() -> None:
    with pytest.raises(RequestError, match="content of type 'image_url' is not supported"):
        _render("{{ messages[0].content }}", {"content": [{"type": "image_url"}]})


def test_null_content_is_an_empty_text() -> None:
    assert _render("<{{ 'a' + messages[0].content }}>", {"content": None}) == "<a>"


def test_arguments_of_tool_calls_are_values_not_strings() -> None:
    call = {"function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}
    source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    assert _render(source, {"tool_calls": [call]}) == '{"x": [1, "é"]}'


def test_arguments_that_are_no_json_are_refused() -> None:
    call = {"function": {"name": "weather", "arguments": "{oops"}}
    with pytest.raises(RequestError, match="tool call to 'weather' are not JSON"):
        _render("", {"tool_calls": [call]})


def test_rendering_changes_nothing_in_the_callers_messages() -> None:
    message = {
        "content": None,
        "reasoning": "hm",
        "tool_calls": [{"function": {"arguments": "{}"}}],
    }
    before = repr(message)
    _render("{{ messages }}", message)
    assert repr(message) == before


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_found_under_its_standard_name(name: str) -> None:
    assert _render("{{ messages[0].reasoning_content }}", {name: "hm"}) == "hm"


def test_no_tools_and_an_empty_list_of_tools_are_the_same() -> None:
    assert _render("{{ tools is none }}", tools=[]) == "True"


def test_json_is_neither_escaped_for_html_nor_to_ascii() -> None:
    assert _render("{{ x | tojson }}", x={"a": "<é&'>"}) == """{"a": "<é&'>"}"""


def test_block_tags_leave_no_lines_behind() -> None:
    assert _render("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"


def test_loop_controls_and_generation_marks_are_understood() -> None:
    source = "{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert _render(source) == "1"
    assert _render("{% generation %}a{% endgeneration %}b") == "ab"


def test_a_refusal_by_the_template_reaches_the_caller_in_its_words() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        _render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' + messages[0].missing }}",  # undefined
        "{{ 'a' + 1 }}",  # TypeError
        "{{ 1 // 0 }}",  # ArithmeticError
        "{{ [][0] + 1 }}",
        "{{ 'x' | int(base=99) + {}.x.y }}",
        "{{ range(10 ** 9) }}",  # the sandbox's limit
    ],
)
def test_a_template_that_stumbles_over_the_messages_is_a_bad_request(source: str) -> None:
    with pytest.raises(RequestError) as caught:
        _render(source, {"role": "user"})
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ raise_exception.__globals__.os }}",
    ],
)
def test_templates_run_in_a_sandbox(source: str) -> None:
    with pytest.raises(RequestError):
        _render(source, {"role": "user"})


def test_variables_of_the_request_reach_the_template_but_cannot_replace_the_messages() -> None:
    assert _render("{{ enable_thinking }}", enable_thinking=False) == "False"
    with pytest.raises(RequestError, match="messages cannot be set here") as caught:
        _render("", messages=[])
    assert caught.value.param == "chat_template_kwargs"


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(ModelError, match="line 2"):
        ChatTemplate("ok\n{{ }")
