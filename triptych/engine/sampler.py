"""Draws tokens. The token at a position is a function of logits, parameters, history, seed and
position.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.engine.sequence import Sequence
from triptych.request import SamplingParams, TokenLogprobs
from triptych_kernels import filter_logits, gumbel_noise

_GREEDY_BELOW = 1e-5  # logits divided by less than that overflow


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token and, if asked for, its log-probabilities."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class Sampler:
    def __init__(self, eos_token_ids: Seq[int]) -> None:
        self._eos = tuple(eos_token_ids)

    @torch.inference_mode()
    def draw(self, logits: Tensor, sequences: Seq[Sequence]) -> list[Drawn]:
        """logits float32 [R, V], row r predicts the next token of sequences[r].

        Rows are handled one by one, so that no row's result can depend on its batch mates.
        """
        return [self._draw_row(row, seq) for row, seq in zip(logits, sequences, strict=True)]

    def _draw_row(self, raw: Tensor, sequence: Sequence) -> Drawn:
        params = sequence.params
        assert params is not None, "a prompt without sampling parameters draws nothing"
        logits = shape_logits(raw, sequence, params, self._eos)
        if params.temperature < _GREEDY_BELOW:
            token = int(logits.argmax())
        else:
            kept = filter_logits(
                logits / params.temperature,
                top_k=params.top_k,
                top_p=params.top_p,
                min_p=params.min_p,
            )
            noise = gumbel_noise(params.seed, len(sequence.tokens), kept.shape[0])
            token = int((kept + noise).argmax())
        return Drawn(
            token, None if params.logprobs is None else _logprobs(raw, token, params.logprobs)
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


def _logprobs(raw: Tensor, token: int, count: int) -> TokenLogprobs:
    logprobs = torch.log_softmax(raw, dim=-1)
    best, ids = torch.topk(logprobs, min(count, logprobs.shape[0])) if count else ((), ())
    top = tuple((int(i), float(value)) for i, value in zip(ids, best, strict=True))
    return TokenLogprobs(token, float(logprobs[token]), top)
