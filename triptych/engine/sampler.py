"""Draws tokens. The token at a position is a function of logits, parameters, history, seed and
position.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.engine.sequence import Sequence
from triptych.request import SamplingParams, TokenLogprobs
from triptych_kernels.cpu.sampling import best_draw_tokens, best_token_law
from triptych_kernels.sampling import NO_TOKEN, Draw, DrawTokens

_log = logging.getLogger(__name__)


class Spot(NamedTuple):
    """Where a token is drawn: behind a sequence, or behind a path of a draft that follows it."""

    sequence: Sequence
    path: tuple[int, ...] = ()  # tokens


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token and, if asked for, its log-probabilities."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    broken: str = ""  # why there is no token; token_id, 0, then means nothing


class Sampler:
    """`draw_tokens` is the native function where there is one, unless given."""

    def __init__(self, eos_token_ids: Seq[int], draw_tokens: DrawTokens | None = None) -> None:
        self.eos_token_ids = tuple(eos_token_ids)
        self._draw_tokens = draw_tokens or best_draw_tokens()
        self._token_law = best_token_law()

    @torch.inference_mode()
    def draw(self, logits: Tensor, spots: Seq[Spot]) -> list[int]:
        """logits float32 [R, V], row r predicts the token of spots[r]: its id, or NO_TOKEN.

        One call for all rows, in which no row's result depends on its batch mates.
        """
        return self.draw_rows(logits.contiguous().unbind(0), spots)

    @torch.inference_mode()
    def draw_rows(self, rows: Seq[Tensor], spots: Seq[Spot]) -> list[int]:
        """`draw` from rows [V] that need not lie together; each is contiguous."""
        return self._draw_tokens(
            [self._wish(row, spot) for row, spot in zip(rows, spots, strict=True)]
        )

    @torch.inference_mode()
    def laws(self, logits: Tensor, spots: Seq[Spot]) -> list[Tensor]:
        """What `draw` draws from, for rows as there: P(token) [V] float32 after bias, penalties,
        temperature and filters. One-hot if greedy, all 0 for a row that draws NO_TOKEN.
        """
        rows = logits.cpu().contiguous().unbind(0)
        return [
            self._token_law(self._wish(row, spot)) for row, spot in zip(rows, spots, strict=True)
        ]

    @torch.inference_mode()
    def tell(self, token: int, logits: Tensor, spot: Spot) -> Drawn:
        """What is to be said of a token that `draw` found at `spot` in logits [V]."""
        sequence = spot.sequence
        if token == NO_TOKEN:
            position, why = len(sequence.tokens) + len(spot.path), _why_none(sequence)
            _log.error("%s: no token for position %d: %s", sequence.request_id, position, why)
            return Drawn(0, broken=why)
        if sequence.params is None or sequence.params.logprobs is None:
            return Drawn(token)
        return Drawn(token, _logprobs(logits, token, sequence.params.logprobs))

    def _wish(self, raw: Tensor, spot: Spot) -> Draw:
        params = spot.sequence.params
        assert params is not None, "a prompt without sampling parameters draws nothing"
        return Draw(
            shape_logits(raw, spot, params, self.eos_token_ids),
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            params.seed,
            len(spot.sequence.tokens) + len(spot.path),
        )


def needs_shaping(spot: Spot, params: SamplingParams) -> bool:
    """Whether `shape_logits` may change a row of it."""
    return bool(
        params.logit_bias
        or params.penalised
        or spot.sequence.constraint is not None
        or _is_early(spot, params)
    )


def _is_early(spot: Spot, params: SamplingParams) -> bool:
    """The sequence must not end there yet."""
    return spot.sequence.num_output + len(spot.path) < params.min_tokens


def shape_logits(raw: Tensor, spot: Spot, params: SamplingParams, eos: tuple[int, ...]) -> Tensor:
    """Bias, penalties, forbidden tokens and the grammar; [V] float32, a copy if anything changed.
    What is changed is changed on the host, where grammars are.

    Repetition penalty (CTRL, Keskar et al. 2019) covers prompt and output; presence and frequency
    penalties cover the output, as OpenAI defines them.
    """
    if not needs_shaping(spot, params):
        return raw
    sequence, path = spot
    forbidden = (*eos, *params.stop_token_ids) if _is_early(spot, params) else ()
    logits = raw.to("cpu", copy=True)
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*sequence.tokens, *path}))
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    counts = sequence.output_counts
    if path:
        counts = counts + Counter(path)
    if counts and (params.presence_penalty or params.frequency_penalty):
        used = torch.tensor(sorted(counts))
        times = torch.tensor([counts[token] for token in sorted(counts)], dtype=torch.float32)
        logits[used] -= params.frequency_penalty * times + params.presence_penalty
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if forbidden:
        logits[list(forbidden)] = -torch.inf
    if sequence.constraint is not None:
        sequence.constraint.restrict(logits, sequence.tokens, path)
    return logits.to(raw.device)


def _why_none(sequence: Sequence) -> str:
    failure = None if sequence.constraint is None else sequence.constraint.failure
    return failure or "the model's output has no number in it"


def _logprobs(raw: Tensor, token: int, count: int) -> TokenLogprobs:
    logprobs = torch.log_softmax(raw, dim=-1)
    best, ids = torch.topk(logprobs, min(count, logprobs.shape[0])) if count else ((), ())
    top = tuple((int(i), float(value)) for i, value in zip(ids, best, strict=True))
    return TokenLogprobs(token, float(logprobs[token]), top)
