"""A generation as an API's answer: whole or in chunks. The APIs differ in their `Shape` only."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from router.generation import Generation
from router.protocol import DirectBody
from router.reply import Reply
from router.schema import GenerationBody
from router.stream import event
from router.text import Piece


class Shape(Protocol):
    """How an API spells an answer. `extra`: `usage` and `triptych`, where they are sent."""

    @property
    def shows_text(self) -> bool:
        """A piece's text is what its chunk shows, whatever came before."""

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

    def keep_token(choice: int, token_id: int) -> bool:
        text = generation.add_token(choice, token_id)
        choices[choice].append(Piece(choice, text, (token_id,), (), (), None, None))
        return True

    async with contextlib.aclosing(generation.pieces(keep_token)) as batches:
        async for pieces in batches:
            for piece in pieces:
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
    shape: Shape, generation: Generation, extras: Extras, body: DirectBody | None
) -> AsyncGenerator[bytes, None]:
    """Events with chunks of one choice each, as many at a time as there are.

    At last one without a choice, if usage or timings are wanted. Most go into `body` at once, if
    there is one, and are not yielded.
    """
    writer = ChunkWriter(shape, generation, extras, body)
    async with contextlib.aclosing(generation.pieces(writer.show_token)) as batches:
        async for pieces in batches:
            events = writer.events(pieces)
            if events:
                yield events.encode()
    final: dict[str, Any] = {}
    if extras.usage:
        final["usage"] = generation.usage
    if extras.timings:
        final["triptych"] = generation.timings
    if final:
        yield event(shape.chunk([], final).json_text()).encode()


class ChunkWriter:
    """Pieces of one answer to events with JSON chunks.

    Most chunks of a stream differ in their text only, so the API's own rendering of one is kept as
    a template, by choice.
    """

    def __init__(
        self,
        shape: Shape,
        generation: Generation,
        extras: Extras,
        body: DirectBody | None,
    ) -> None:
        self._shape = shape
        self._generation = generation
        self._extras = extras
        self._body = body
        self._templates: dict[int, tuple[str, str]] = {}  # what stands around the text's JSON
        self._has_templates = shape.shows_text and not (extras.running_usage or extras.token_ids)
        self._num_tokens = 0
        self._unsent: defaultdict[int, list[int]] = defaultdict(list)  # token ids by choice

    def events(self, pieces: Sequence[Piece]) -> str:
        """May be empty: a piece without text has nothing to show."""
        found: list[str] = []
        for piece in pieces:
            template = self._templates.get(piece.choice)
            if template is not None and piece.is_plain:
                found += (template[0], json_string(piece.text), template[1])
            else:
                found += map(event, self._chunks(piece))
        return "".join(found)

    def show_token(self, choice: int, token_id: int) -> bool:
        """The short way of a bare token; False: it is not open now."""
        template = self._templates.get(choice)
        if template is None or self._body is None or not self._body.ready:
            return False
        text = self._generation.add_token(choice, token_id)
        if text:
            self._body.write(f"{template[0]}{json_string(text)}{template[1]}".encode())
        return True

    def _chunks(self, piece: Piece) -> list[str]:
        self._num_tokens += len(piece.token_ids)
        choices = list(self._shape.chunk_choices(piece))
        if self._has_templates and piece.is_plain:
            self._templates[piece.choice] = self._template(piece)
        if self._extras.token_ids:
            self._unsent[piece.choice] += piece.token_ids
            if choices:
                ids = {"token_ids": self._unsent.pop(piece.choice)}
                choices[-1] = choices[-1].model_copy(update=ids)
        return [self._chunk(choice) for choice in choices]

    def _chunk(self, choice: Any) -> str:
        extra: dict[str, Any] = {}
        if self._extras.usage:
            running = self._extras.running_usage
            extra["usage"] = self._generation.running_usage(self._num_tokens) if running else None
        return self._shape.chunk([choice], extra).json_text()

    def _template(self, piece: Piece) -> tuple[str, str]:
        """For a choice whose first piece has been shown: from now on a piece is one chunk."""
        (choice,) = self._shape.chunk_choices(piece._replace(text=_MARK))
        head, _, tail = event(self._chunk(choice)).rpartition(f'"{_MARK}"')
        return head, tail


_MARK = "text goes here"
json_string = json.encoder.encode_basestring  # UTF-8 stays as it is, as in the other chunks
