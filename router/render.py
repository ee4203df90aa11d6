"""A generation as an API's answer: whole or in chunks. The APIs differ in their `Shape` only."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from router.generation import Generation
from router.reply import Reply
from router.schema import GenerationBody
from router.text import Piece


class Shape(Protocol):
    """How an API spells an answer. `extra`: `usage` and `triptych`, where they are sent."""

    def chunk_choices(self, piece: Piece) -> Sequence[Any]:
        """The `choices[0]` of each chunk that this piece becomes, in order; may be none."""

    def chunk(self, choices: Sequence[Any], extra: dict[str, Any]) -> Reply: ...

    def whole(self, pieces: Sequence[Sequence[Piece]], extra: dict[str, Any]) -> Reply:
        """`pieces` by choice; the last one of each bears the finish reason."""


@dataclass(frozen=True, slots=True)
class Extras:
    """Which of the optional fields a request wants."""

    usage: bool
    running_usage: bool
    timings: bool
    token_ids: bool

    @classmethod
    def wanted(cls, body: GenerationBody, timings: bool) -> Extras:
        options = body.stream_options
        usage = options is not None and bool(options.include_usage)
        running = usage and options is not None and bool(options.continuous_usage_stats)
        return cls(usage, running, timings, bool(body.return_token_ids))


async def whole_answer(shape: Shape, generation: Generation, extras: Extras) -> Reply:
    choices: list[list[Piece]] = [[] for _ in range(generation.job.num_choices)]
    async with contextlib.aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            choices[piece.choice].append(piece)
    extra: dict[str, Any] = {"usage": generation.usage}
    if extras.timings:
        extra["triptych"] = generation.timings
    reply = shape.whole(choices, extra)
    return with_token_ids(reply, choices) if extras.token_ids else reply


def with_token_ids(reply: Any, pieces: Sequence[Sequence[Piece]]) -> Reply:
    """A whole answer whose choices tell their token ids as well."""
    choices = [
        choice.model_copy(update={"token_ids": [i for piece in mine for i in piece.token_ids]})
        for choice, mine in zip(reply.choices, pieces, strict=True)
    ]
    answer: Reply = reply.model_copy(update={"choices": choices})
    return answer


async def chunked_answer(
    shape: Shape, generation: Generation, extras: Extras
) -> AsyncGenerator[Reply, None]:
    """Chunks of one choice each; at last one without, if usage or timings are wanted."""
    unsent: defaultdict[int, list[int]] = defaultdict(list)  # token ids by choice
    async with contextlib.aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            extra: dict[str, Any] = {}
            if extras.usage:
                extra["usage"] = generation.running_usage if extras.running_usage else None
            choices = list(shape.chunk_choices(piece))
            if extras.token_ids:
                unsent[piece.choice] += piece.token_ids
                if choices:
                    ids = {"token_ids": unsent.pop(piece.choice)}
                    choices[-1] = choices[-1].model_copy(update=ids)
            for choice in choices:
                yield shape.chunk([choice], extra)
    final: dict[str, Any] = {}
    if extras.usage:
        final["usage"] = generation.usage
    if extras.timings:
        final["triptych"] = generation.timings
    if final:
        yield shape.chunk([], final)
