"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from router.body import read_body
from router.generation import Job
from router.logprobs import completion_logprobs
from router.openapi import generated, json_body
from router.prompt import text_prompts
from router.reply import Completion, CompletionChoice, CompletionLogprobs
from router.schema import CompletionRequest
from router.services import Services
from router.structured import asked_grammar
from router.text import Piece
from triptych.tokenizer import Tokenizer


def completion_routes(services: Services) -> APIRouter:
    routes = APIRouter(tags=["generation"])

    @routes.post(
        "/v1/completions",
        summary="Continue a text",
        response_model=None,
        responses=generated(Completion),
        openapi_extra=json_body(CompletionRequest),
    )
    async def complete(request: Request) -> Response:
        body = await read_body(request, CompletionRequest, services.config.router.max_body)
        arrived = time.monotonic()
        services.check(body.model)
        prompts = await text_prompts(services.tokenizer, body.prompts)
        grammar = await asked_grammar(body)
        job = services.job(request, body, prompts, prefix="cmpl", arrived=arrived, grammar=grammar)
        shape = CompletionShape(services.model, services.tokenizer, job, body)
        return await services.answer(request, body, job, shape)

    return routes


class CompletionShape:
    """OpenAI's text completion; its chunks have the same shape."""

    shows_text = True

    def __init__(self, model: str, tokenizer: Tokenizer, job: Job, body: CompletionRequest) -> None:
        self._tokenizer = tokenizer
        self._job = job
        self._echo = bool(body.echo)
        self._top = bool(body.logprobs)
        self._begun: set[int] = set()
        self._head: dict[str, Any] = {
            "id": job.id,
            "object": "text_completion",
            "created": job.created,
            "model": model,
        }

    def chunk_choices(self, piece: Piece) -> Sequence[CompletionChoice]:
        """Text as it comes, the echoed prompt first; the finish reason beside an empty text."""
        choices = []
        if self._echo and piece.choice not in self._begun:
            self._begun.add(piece.choice)
            choices.append(_chunk_choice(piece, self._prompt_text(piece.choice)))
        if piece.text or piece.logprobs:
            logprobs = completion_logprobs(self._tokenizer, [piece], top=self._top)
            choices.append(_chunk_choice(piece, piece.text, logprobs))
        if piece.finish_reason is not None:
            choices.append(
                CompletionChoice(
                    index=piece.choice,
                    text="",
                    logprobs=None,
                    finish_reason=piece.finish_reason.value,
                    stop_reason=piece.stop_reason,
                )
            )
        return choices

    def chunk(self, choices: Sequence[CompletionChoice], extra: dict[str, Any]) -> Completion:
        return Completion(**self._head, choices=list(choices), **extra)

    def whole(self, pieces: Sequence[Sequence[Piece]], extra: dict[str, Any]) -> Completion:
        choices = [self._choice(index, mine) for index, mine in enumerate(pieces)]
        return Completion(**self._head, choices=choices, **extra)

    def _choice(self, index: int, pieces: Sequence[Piece]) -> CompletionChoice:
        last = pieces[-1]
        assert last.finish_reason is not None, "a generation ends with every choice finished"
        echoed = self._prompt_text(index) if self._echo else ""
        return CompletionChoice(
            index=index,
            text=echoed + "".join(piece.text for piece in pieces),
            logprobs=completion_logprobs(self._tokenizer, pieces, top=self._top),
            finish_reason=last.finish_reason.value,
            stop_reason=last.stop_reason,
        )

    def _prompt_text(self, choice: int) -> str:
        prompt = self._job.prompts[self._job.prompt_of(choice)]
        return self._tokenizer.decode(prompt.ids) if prompt.text is None else prompt.text


def _chunk_choice(
    piece: Piece, text: str, logprobs: CompletionLogprobs | None = None
) -> CompletionChoice:
    return CompletionChoice(index=piece.choice, text=text, logprobs=logprobs, finish_reason=None)
