"""From a request's fields to `SamplingParams`. Pure, but for the seed nobody gave."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable

from router.schema import ChatRequest, CompletionRequest, SparseAttentionBody, SpeculationBody
from triptych.config import SparseAttentionConfig
from triptych.errors import ContextLengthError, RequestError
from triptych.request import (
    Grammar,
    PageBudget,
    SamplingParams,
    SparseAttention,
    Speculation,
    choice_seed,
)

_MASK64 = (1 << 64) - 1


def draw_seed(asked: int | None) -> int:
    """The caller's seed modulo 2^64 (OpenAI's may be negative), else a random one of 64 bits."""
    return secrets.randbits(64) if asked is None else asked & _MASK64


def prompt_seed(seed: int, prompt: int, choices: int) -> int:
    """The seed of one prompt of several; prompt 0 keeps the request's.

    Choice i of a prompt draws with `choice_seed(prompt_seed, i)`. Steps of `choices` keep the first
    choice of a prompt apart from the later choices of prompt 0, which may be the same text.
    """
    return choice_seed(seed, prompt * choices)


def speculation_of(asked: str | SpeculationBody | None) -> Speculation | None:
    """None: the request says nothing about it."""
    if asked is None:
        return None
    if isinstance(asked, str):
        return Speculation(off=asked == "off")
    return Speculation(
        drafters=tuple(asked.drafters or ()),
        max_nodes=asked.max_nodes or 0,
        problem_id=asked.problem_id or "",
    )


def sparse_of(
    asked: str | SparseAttentionBody | None, usual: SparseAttentionConfig | None
) -> SparseAttention | None:
    """What a request's attention leaves out; None: nothing, it is dense."""
    if asked == "off":
        return None
    if isinstance(asked, SparseAttentionBody):
        most = math.inf if asked.max_omitted is None else asked.max_omitted
        pages = None
        if asked.pages is not None:
            pages = PageBudget(asked.pages.tokens or 0, asked.pages.share or 0.0)
        return SparseAttention(asked.scale or 0.0, most, pages)
    return None if usual is None else usual.settings


def new_tokens(body: ChatRequest | CompletionRequest, prompt_tokens: int, context: int) -> int:
    """How many tokens may be generated: what was asked for, else the rest of the context.

    Raises ContextLengthError when the prompt leaves no room for a single token, RequestError naming
    the field when it leaves less than was asked for.
    """
    field, prompt_field = "max_tokens", "prompt"
    asked = body.max_tokens
    if isinstance(body, ChatRequest):
        prompt_field = "messages"
        if body.max_completion_tokens is not None:
            field, asked = "max_completion_tokens", body.max_completion_tokens
    room = context - prompt_tokens
    if room < 1:
        raise ContextLengthError(
            f"{prompt_field}: the prompt has {prompt_tokens} tokens and the model's context "
            f"{context}; shorten it to at most {context - 1} tokens",
            param=prompt_field,
        )
    if asked is not None and asked > room:
        raise RequestError(
            f"{field}: the prompt has {prompt_tokens} tokens and the model's context {context}; "
            f"ask for at most {room} tokens",
            param=field,
            code="context_length_exceeded",
        )
    return room if asked is None else asked


def sampling_params(
    body: ChatRequest | CompletionRequest,
    *,
    seed: int,
    max_tokens: int,
    vocab_size: int,
    grammar: Grammar | None = None,
) -> SamplingParams:
    """Raises RequestError naming the field when a token id is outside of the vocabulary."""
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    stop_ids = tuple(body.stop_token_ids or ())
    check_token_ids(bias, vocab_size, "logit_bias")
    check_token_ids(stop_ids, vocab_size, "stop_token_ids")
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise RequestError(
            f"min_tokens: {min_tokens} is more than the {max_tokens} tokens that may be generated",
            param="min_tokens",
        )
    return SamplingParams(
        seed=seed,
        max_tokens=max_tokens,
        temperature=_or(body.temperature, 1.0),
        top_k=max(0, body.top_k or 0),
        top_p=_or(body.top_p, 1.0),
        min_p=_or(body.min_p, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        logit_bias=bias,
        logprobs=_logprobs(body),
        stop=_stops(body.stop),
        stop_token_ids=stop_ids,
        min_tokens=min_tokens,
        ignore_eos=bool(body.ignore_eos),
        grammar=grammar,
    )


def check_token_ids(ids: Iterable[int], vocab_size: int, field: str) -> None:
    worst = max(ids, default=0)
    if worst >= vocab_size:
        raise RequestError(
            f"{field}: token id {worst} is outside of the vocabulary; ids end at {vocab_size - 1}",
            param=field,
        )


def _logprobs(body: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(body, CompletionRequest):
        return body.logprobs
    return (body.top_logprobs or 0) if body.logprobs else None


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(dict.fromkeys(stop or ()))


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)
