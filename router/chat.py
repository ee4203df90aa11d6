"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from router.body import read_body
from router.generation import Job
from router.logprobs import chat_logprobs
from router.openapi import generated, json_body
from router.prompt import chat_prompt
from router.reply import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    Delta,
)
from router.schema import ChatRequest
from router.services import Services
from router.text import Piece
from triptych.tokenizer import Tokenizer


def chat_routes(services: Services) -> APIRouter:
    routes = APIRouter(tags=["generation"])

    @routes.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        response_model=None,
        responses=generated(ChatCompletion),
        openapi_extra=json_body(ChatRequest),
    )
    async def chat(request: Request) -> Response:
        body = await read_body(request, ChatRequest, services.config.router.max_body)
        arrived = time.monotonic()
        services.check(body.model)
        prompt = await chat_prompt(services.tokenizer, body.messages)
        job = services.job(request, body, [prompt], prefix="chatcmpl", arrived=arrived)
        shape = ChatShape(services.model, services.tokenizer, job)
        return await services.answer(request, body, job, shape)

    return routes


class ChatShape:
    """OpenAI's chat completion and its chunks."""

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
        if piece.text or piece.logprobs:
            logprobs = chat_logprobs(self._tokenizer, [piece])
            choices.append(_chunk_choice(piece, Delta(content=piece.text), logprobs))
        if piece.finish_reason is not None:
            choices.append(
                ChatChunkChoice(
                    index=piece.choice,
                    delta=Delta(),
                    logprobs=None,
                    finish_reason=piece.finish_reason.value,
                    stop_reason=piece.stop_reason,
                )
            )
        return choices

    def chunk(self, choices: Sequence[ChatChunkChoice], extra: dict[str, Any]) -> ChatChunk:
        return ChatChunk(
            **self._head, object="chat.completion.chunk", choices=list(choices), **extra
        )

    def whole(self, pieces: Sequence[Sequence[Piece]], extra: dict[str, Any]) -> ChatCompletion:
        choices = [self._choice(index, mine) for index, mine in enumerate(pieces)]
        return ChatCompletion(**self._head, object="chat.completion", choices=choices, **extra)

    def _choice(self, index: int, pieces: Sequence[Piece]) -> ChatChoice:
        last = pieces[-1]
        assert last.finish_reason is not None, "a generation ends with every choice finished"
        return ChatChoice(
            index=index,
            message=ChatMessage(role="assistant", content="".join(p.text for p in pieces)),
            logprobs=chat_logprobs(self._tokenizer, pieces),
            finish_reason=last.finish_reason.value,
            stop_reason=last.stop_reason,
        )


def _chunk_choice(
    piece: Piece, delta: Delta, logprobs: ChatLogprobs | None = None
) -> ChatChunkChoice:
    return ChatChunkChoice(index=piece.choice, delta=delta, logprobs=logprobs, finish_reason=None)
