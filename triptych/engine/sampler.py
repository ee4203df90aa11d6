"""Draws tokens. The token at a position is a function of logits, parameters, history, seed and
position.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.engine.sequence import Sequence
from triptych.request import SamplingParams, TokenLogprobs
from triptych_kernels.cpu.sampling import best_draw_tokens
from triptych_kernels.sampling import NO_TOKEN, Draw, DrawTokens

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token and, if asked for, its log-probabilities."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    # No logit was a number above −∞: the model's output is broken and token_id, 0, means nothing.
    broken: bool = False


class Sampler:
    """`draw_tokens` is the native function where there is one, unless given."""

    def __init__(self, eos_token_ids: Seq[int], draw_tokens: DrawTokens | None = None) -> None:
        self._eos = tuple(eos_token_ids)
        self._draw_tokens = draw_tokens or best_draw_tokens()

    @torch.inference_mode()
    def draw(self, logits: Tensor, sequences: Seq[Sequence]) -> list[Drawn]:
        """logits float32 [R, V], row r predicts the next token of sequences[r].

        One call for all rows, in which no row's result depends on its batch mates: a broken row is
        told by its own Drawn.
        """
        rows = logits.contiguous().unbind(0)
        draws = [self._wish(row, seq) for row, seq in zip(rows, sequences, strict=True)]
        tokens = self._draw_tokens(draws)
        return [
            _drawn(token, row, seq) for token, row, seq in zip(tokens, rows, sequences, strict=True)
        ]

    def _wish(self, raw: Tensor, sequence: Sequence) -> Draw:
        params = sequence.params
        assert params is not None, "a prompt without sampling parameters draws nothing"
        return Draw(
            shape_logits(raw, sequence, params, self._eos),
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            params.seed,
            len(sequence.tokens),
        )


def shape_logits(
    raw: Tensor, sequence: Sequence, params: SamplingParams, eos: tuple[int, ...]
) -> Tensor:
    """Bias, penalties and forbidden tokens; [V] float32, a copy if anything changed.

    Repetition penalty (CTRL, Keskar et al. 2019) covers prompt and output; presence and frequency
    penalties cover the output, as OpenAI defines them.
    """
    forbidden: tuple[int, ...] = ()
    if sequence.num_output < params.min_tokens:
        forbidden = (*eos, *params.stop_token_ids)
    if not (params.logit_bias or params.penalised or forbidden):
        return raw
    logits = raw.clone()
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.tokens)))
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    counts = sequence.output_counts
    if counts and (params.presence_penalty or params.frequency_penalty):
        used = torch.tensor(sorted(counts))
        times = torch.tensor([counts[token] for token in sorted(counts)], dtype=torch.float32)
        logits[used] -= params.frequency_penalty * times + params.presence_penalty
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if forbidden:
        logits[list(forbidden)] = -torch.inf
    return logits


def _drawn(token: int, raw: Tensor, sequence: Sequence) -> Drawn:
    if token == NO_TOKEN:
        position = len(sequence.tokens)
        _log.error("%s: no logit of position %d is a number", sequence.request_id, position)
        return Drawn(0, broken=True)
    params = sequence.params
    if params is None or params.logprobs is None:
        return Drawn(token)
    return Drawn(token, _logprobs(raw, token, params.logprobs))


def _logprobs(raw: Tensor, token: int, count: int) -> TokenLogprobs:
    logprobs = torch.log_softmax(raw, dim=-1)
    best, ids = torch.topk(logprobs, min(count, logprobs.shape[0])) if count else ((), ())
    top = tuple((int(i), float(value)) for i, value in zip(ids, best, strict=True))
    return TokenLogprobs(token, float(logprobs[token]), top)
