"""The grammar of a chat answer: of what is said, of calls, and of the thought before them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from router.reading import AnswerReading
from router.schema import ChatRequest
from router.structured import asked_grammar, refuse_without_end
from router.tool_use import ToolUse
from router.tools.format import TEXT, text_until
from triptych.errors import RequestError
from triptych.grammar.deep_stack import on_deep_stack
from triptych.grammar.source import check_grammar, json_schema, term
from triptych.request import Grammar, GrammarKind


async def answer_grammar(body: ChatRequest, reading: AnswerReading) -> Grammar | None:
    """What was asked for, or calls, or either; None: the model writes what it likes.

    Raises RequestError naming the field.
    """
    asked, tools = await asked_grammar(body), reading.tools
    if tools is None or not (tools.must_call or tools.strict or asked):
        if asked is None or reading.is_plain:
            return asked
        return await on_deep_stack(lambda: _grammar(reading, [reading.said(term(asked))]))
    if asked is None:
        refuse_without_end(body, "tool_choice" if tools.must_call else "tools")
    return await on_deep_stack(partial(_with_calls, body, reading, tools, asked))


def _with_calls(
    body: ChatRequest, reading: AnswerReading, tools: ToolUse, asked: Grammar | None
) -> Grammar:
    for index, tool in enumerate(body.tools or ()):
        if tools.must_call or tool.function.strict:
            field = f"tools[{index}].function.parameters"
            check_grammar(json_schema(tool.function.parameters or {}), field)
    assert reading.format is not None, "who has tools has a format"
    opening = reading.spell(reading.format.opening) if reading.format.opening else ""
    rules = ""
    if tools.must_call:
        said = []
    elif asked is not None:
        if reading.format.prose:  # its calls are JSON that nothing marks
            raise RequestError(
                "tool_choice: this model's calls cannot be told from an answer of the form that "
                'was asked for; send "none", "required" or the name of a function',
                param="tool_choice",
            )
        said = [reading.said(term(asked))]
    else:
        said = [reading.said(reading.format.prose or TEXT)]
        if opening:
            rules = text_until("opening", reading.format.opening, opening)
            opening = "opening"
    rules += reading.format.rules(tools.functions, tools.most, reading.spell, opening)
    found = _grammar(reading, ["calls", *said], rules)
    check_grammar(found, "tools")
    return found


def _grammar(reading: AnswerReading, answers: Sequence[str], rules: str = "") -> Grammar:
    """One of `answers`, behind what the model thinks."""
    lead = reading.lead()
    start = f"start: {'lead ' if lead else ''}({' | '.join(answers)})\n"
    return Grammar(GrammarKind.LARK, start + lead + rules)
