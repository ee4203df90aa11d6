"""OpenAI's chat completion and its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router.generation import Job
from router.logprobs import chat_logprobs
from router.reply import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    Delta,
    Ending,
)
from router.text import Piece
from triptych.tokenizer import Tokenizer


class ChatShape:
    """OpenAI's chat completion and its chunks."""

    shows_text = True

    def __init__(self, model: str, tokenizer: Tokenizer, job: Job) -> None:
        self._tokenizer = tokenizer
        self._head: dict[str, Any] = {"id": job.id, "created": job.created, "model": model}
        self._greeted: set[int] = set()

    def chunk_choices(self, piece: Piece) -> Sequence[ChatChunkChoice]:
        """The role once, content as it comes, an empty delta with the finish reason."""
        choices = []
        if piece.choice not in self._greeted:
            self._greeted.add(piece.choice)
            choices.append(_chunk_choice(piece, Delta(role="assistant", content="")))
        logprobs = chat_logprobs(self._tokenizer, [piece])
        for delta in self.deltas(piece) or ([Delta(content="")] if logprobs else []):
            choices.append(_chunk_choice(piece, delta, logprobs))
            logprobs = None  # of all the piece's tokens, told once
        if piece.finish_reason is not None:
            choices.append(
                ChatChunkChoice(
                    index=piece.choice,
                    delta=Delta(),
                    logprobs=None,
                    finish_reason=self.ending(piece),
                    stop_reason=piece.stop_reason,
                )
            )
        return choices

    def deltas(self, piece: Piece) -> Sequence[Delta]:
        """What a piece adds to its choice's message."""
        return [Delta(content=piece.text)] if piece.text else []

    def message(self, pieces: Sequence[Piece]) -> ChatMessage:
        """Of one choice, all its pieces together."""
        return ChatMessage(role="assistant", content="".join(piece.text for piece in pieces))

    def ending(self, last: Piece) -> Ending:
        """The finish reason, asked for when all pieces of the choice were shown."""
        assert last.finish_reason is not None, "a generation ends with every choice finished"
        return last.finish_reason.value

    def chunk(self, choices: Sequence[ChatChunkChoice], extra: dict[str, Any]) -> ChatChunk:
        return ChatChunk(
            **self._head, object="chat.completion.chunk", choices=list(choices), **extra
        )

    def whole(self, pieces: Sequence[Sequence[Piece]], extra: dict[str, Any]) -> ChatCompletion:
        choices = [self._choice(index, mine) for index, mine in enumerate(pieces)]
        return ChatCompletion(**self._head, object="chat.completion", choices=choices, **extra)

    def _choice(self, index: int, pieces: Sequence[Piece]) -> ChatChoice:
        message = self.message(pieces)
        return ChatChoice(
            index=index,
            message=message,
            logprobs=chat_logprobs(self._tokenizer, pieces),
            finish_reason=self.ending(pieces[-1]),
            stop_reason=pieces[-1].stop_reason,
        )


def _chunk_choice(
    piece: Piece, delta: Delta, logprobs: ChatLogprobs | None = None
) -> ChatChunkChoice:
    return ChatChunkChoice(index=piece.choice, delta=delta, logprobs=logprobs, finish_reason=None)
