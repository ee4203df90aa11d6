"""A chat completion in which the model may think and call tools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from router.chat_shape import ChatShape
from router.generation import Job
from router.reading import AnswerReading
from router.reply import (
    CalledFunction,
    ChatMessage,
    Delta,
    Ending,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)
from router.text import Piece
from router.tools.source import Arguments, CallStart, Found, Prose, Thought
from triptych.request import FinishReason
from triptych.tokenizer import Tokenizer


class ToolShape(ChatShape):
    """Thoughts in chunks of their own; calls: index, id and name first, then the arguments as they
    come.
    """

    shows_text = False

    def __init__(self, model: str, tokenizer: Tokenizer, job: Job, reading: AnswerReading) -> None:
        super().__init__(model, tokenizer, job)
        self._choices = [_Choice(reading) for _ in range(job.num_choices)]

    def deltas(self, piece: Piece) -> Sequence[Delta]:
        return self._choices[piece.choice].read(piece)

    def message(self, pieces: Sequence[Piece]) -> ChatMessage:
        deltas = [delta for piece in pieces for delta in self.deltas(piece)]
        text = "".join(delta.content or "" for delta in deltas)
        thought = "".join(delta.reasoning_content or "" for delta in deltas)
        calls = _whole_calls(call for delta in deltas for call in delta.tool_calls or ())
        found: dict[str, Any] = {"content": text}
        if calls:
            found = {"content": text or None, "tool_calls": calls}
        if thought:
            found["reasoning_content"] = thought
        return ChatMessage(role="assistant", **found)

    def ending(self, last: Piece) -> Ending:
        if last.finish_reason is FinishReason.STOP and self._choices[last.choice].num_calls:
            return "tool_calls"
        return super().ending(last)


class _Choice:
    """Where one choice's text is in its calls."""

    def __init__(self, reading: AnswerReading) -> None:
        self._reading = reading
        self._parser = reading.parser()
        self._silent = False  # behind the last call that is wanted
        self.num_calls = 0

    def read(self, piece: Piece) -> list[Delta]:
        found = self._parser.push(piece.text)
        if piece.finish_reason is not None:
            found += self._parser.finish()
        deltas = [self._delta(each) for each in found]
        return [delta for delta in deltas if delta is not None]

    def _delta(self, found: Found) -> Delta | None:
        match found:
            case Prose(text):
                return Delta(content=text) if text and not self._silent else None
            case Thought(text):
                return Delta(reasoning_content=text) if text and not self._silent else None
            case CallStart(name):
                self._silent = self._silent or self.num_calls == self._reading.most_calls
                if self._silent:
                    return None
                self.num_calls += 1
                function = FunctionDelta(name=name, arguments="")
                call = ToolCallDelta(
                    index=self.num_calls - 1,
                    id=self._reading.new_id(),
                    type="function",
                    function=function,
                )
                return Delta(tool_calls=[call])
            case Arguments(text):
                if self._silent or not text:
                    return None
                piece = FunctionDelta(arguments=text)
                return Delta(tool_calls=[ToolCallDelta(index=self.num_calls - 1, function=piece)])


class _Gathered(NamedTuple):
    id: str
    name: str
    arguments: list[str]


def _whole_calls(pieces: Iterable[ToolCallDelta]) -> list[ToolCall]:
    calls: list[_Gathered] = []
    for piece in pieces:
        if piece.id is not None:
            calls.append(_Gathered(piece.id, piece.function.name or "", []))
        calls[-1].arguments.append(piece.function.arguments)
    return [
        ToolCall(
            id=call.id,
            type="function",
            function=CalledFunction(name=call.name, arguments="".join(call.arguments)),
        )
        for call in calls
    ]
