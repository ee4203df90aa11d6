"""How a chat answer is read: what of it is thought, what is said and what is a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.tool_use import ToolUse
from router.tools.format import ToolFormat, literal
from router.tools.ids import long_id
from router.tools.registry import tool_format
from router.tools.source import Reading, Source, ToolParser, read_prose
from router.tools.thought import Thinking, thinking_of
from triptych.config import RouterConfig
from triptych.tokenizer import Tokenizer

_LAST_TOKENS = 16  # of a prompt: more than any mark of a thought has


@dataclass(frozen=True, slots=True)
class AnswerReading:
    """One for all choices of a request."""

    tokenizer: Tokenizer
    format: ToolFormat | None  # None: nothing can be a call
    thinking: Thinking | None
    opened: bool  # the prompt has begun a thought
    tools: ToolUse | None

    @property
    def is_plain(self) -> bool:
        """All of an answer's text is what is said."""
        return self.format is None and self.thinking is None

    @property
    def shown_tokens(self) -> frozenset[int]:
        """Marks that are special tokens, and must be seen."""
        marks = [*(self.format.markers if self.format else ())]
        marks += self.thinking.markers if self.thinking else ()
        found = (self.tokenizer.special_id(mark) for mark in marks)
        return frozenset(token_id for token_id in found if token_id is not None)

    @property
    def most_calls(self) -> int | None:
        """None: any number."""
        return 1 if self.tools is not None and self.tools.most == 1 else None

    def new_id(self) -> str:
        """Of a call."""
        return long_id() if self.format is None else self.format.new_id()

    def spell(self, mark: str) -> str:
        """As a term of a Lark grammar: text, or a special token."""
        token_id = self.tokenizer.special_id(mark)
        return literal(mark) if token_id is None else f"<[{token_id}]>"

    def lead(self) -> str:
        """Lark rule `lead`: what the model thinks before it answers; "": it does not."""
        if self.format is not None and self.format.frame is not None:
            return self.format.frame.lead(self.spell)
        return "" if self.thinking is None else self.thinking.rules(self.opened, self.spell)

    def said(self, answer: str) -> str:
        """An answer that is no call, both as terms of a Lark grammar."""
        if self.format is None or self.format.frame is None:
            return answer
        return self.format.frame.said(answer, self.spell)

    def parser(self) -> ToolParser:
        return ToolParser(self._read)

    def _read(self, source: Source) -> Reading[None]:
        if self.thinking is not None:
            yield from self.thinking.read(source, self.opened)
        if self.format is None:
            yield from read_prose(source, ())
        else:
            functions = self.tools.functions if self.tools is not None else ()
            yield from self.format.read(source, {function.name for function in functions})


def answer_reading(
    config: RouterConfig, tokenizer: Tokenizer, prompt: Sequence[int], tools: ToolUse | None
) -> AnswerReading:
    """`prompt`: its token ids, whose end tells whether it has begun a thought."""
    chosen = tool_format(config.tool_parser, tokenizer.template_text)
    thinking = None
    if chosen.frame is None:
        thinking = thinking_of(config.reasoning_parser, tokenizer.template_text)
    opened = False
    if thinking is not None:
        end = tokenizer.decode(prompt[-_LAST_TOKENS:], skip_special_tokens=False)
        opened = thinking.is_opened_by(end)
    is_read = tools is not None or chosen.frame is not None
    return AnswerReading(tokenizer, chosen if is_read else None, thinking, opened, tools)
