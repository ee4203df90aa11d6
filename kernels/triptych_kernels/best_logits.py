"""The likeliest tokens of rows of logits, in plain torch; what drafters look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triptych_kernels.sampling import inverse_temperature, token_noise


class BestLogits(NamedTuple):
    values: Tensor  # float32 [R, count], greatest first
    columns: Tensor  # int64 [R, count]
    log_sums: Tensor  # float32 [R]: log Σ e^logit of the whole row


class NoisyRow(NamedTuple):
    """How the token of a row will be drawn, without filters."""

    seed: int
    position: int
    temperature: float


class Leaders(NamedTuple):
    scores: Tensor  # float32 [R, count], greatest first
    columns: Tensor  # int64 [R, count]


FindBest = Callable[[Tensor, int], BestLogits]
FindLeaders = Callable[[Tensor, Tensor, Sequence[NoisyRow], int], Leaders]


def best_logits(logits: Tensor, count: int) -> BestLogits:
    """logits float32 [R, V] → the `count` ≤ V greatest of each row."""
    values, columns = logits.topk(count, dim=-1)
    return BestLogits(values, columns, logits.logsumexp(-1))


def leaders(logits: Tensor, token_ids: Tensor, draws: Sequence[NoisyRow], count: int) -> Leaders:
    """logits float32 [R, V] of the tokens token_ids int64 [V] → in each row the `count` ≤ V
    greatest sums of logit / temperature and the noise with which `draws` says that it is drawn.
    """
    rows = [
        row * inverse_temperature(draw.temperature)
        + token_noise(draw.seed, draw.position, token_ids)
        for row, draw in zip(logits, draws, strict=True)
    ]
    return Leaders(*torch.stack(rows).topk(count, dim=-1))
