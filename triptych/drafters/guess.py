"""From a drafter's logits to the tokens that it would bet on."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import groupby

import torch
from torch import Tensor

from triptych.drafters.tree_growth import GrowingTree
from triptych.engine.sampler import Sampler, Spot, needs_shaping, shape_logits
from triptych.engine.sequence import Sequence
from triptych.request import SamplingParams
from triptych_kernels.best_logits import NoisyRow
from triptych_kernels.cpu.best_logits import best_find_best, best_find_leaders
from triptych_kernels.sampling import GREEDY_BELOW, filter_logits, inverse_temperature

Guess = tuple[int, float]  # a token, and how likely the drafter finds it

_LEADERS = 32  # tokens that are compared when it is told how likely one of them is to be drawn
# How far a drafter's logits lie from the target's, as the scale of a Gumbel law: the target draws
# the token whose score leads by more than such errors.
_ERROR = 1.3


class Guesser:
    """Greedy requests get the likeliest tokens. For all others the tokens are those that lead under
    the noise, temperature and filters with which the target will draw, so that the two agree far
    more often than two draws would (Gumbel coupling, Daliri et al., arXiv 2408.07978). With the
    runners-up a sampled tree is as wide as a greedy one.
    """

    def __init__(self, sampler: Sampler, vocab_size: int, token_ids: Tensor | None = None) -> None:
        """token_ids int64 [Vd]: what the columns of the logits stand for; None: all tokens."""
        self._eos = sampler.eos_token_ids
        self._vocab_size = vocab_size
        self._token_ids = token_ids
        self._find_best = best_find_best()
        self._find_leaders = best_find_leaders()

    def expand(self, trees: Seq[tuple[Sequence, GrowingTree]], logits: Tensor) -> None:
        """The next level of every tree; logits float32 [R, Vd], a row per node of all frontiers."""
        spots = [
            Spot(sequence, tree.path(node)) for sequence, tree in trees for node in tree.frontier
        ]
        children = iter(self.children(logits, spots, trees[0][1].growth.width))
        for _, tree in trees:
            tree.expand([next(children) for _ in tree.frontier])

    def children(self, logits: Tensor, spots: Seq[Spot], width: int) -> list[list[Guess]]:
        """logits float32 [R, Vd], row r for what follows spots[r] → its guesses, best first."""
        logits = self._shaped(logits, spots)
        guesses: list[list[Guess]] = []
        for drawn, group in groupby(range(len(spots)), lambda row: _is_drawn(spots[row])):
            rows = list(group)
            part = logits[rows[0] : rows[-1] + 1]
            if drawn:
                guesses += self._leading(part, [spots[row] for row in rows], width)
            else:
                guesses += self._likeliest(part, width)
        return guesses

    def _likeliest(self, logits: Tensor, width: int) -> list[list[Guess]]:
        best = self._find_best(logits, min(width, logits.shape[1]))
        chances = (best.values - best.log_sums[:, None]).exp_()
        return self._told(best.columns, chances)

    def _leading(self, logits: Tensor, spots: Seq[Spot], width: int) -> list[list[Guess]]:
        """Those with the greatest sums of logit / temperature and noise; P(first) if each sum may
        still change by a Gumbel-distributed error.
        """
        logits = self._filtered(logits, spots)
        ids = self._ids(logits.shape[1])
        scores, columns = self._find_leaders(
            logits, ids, [_noise_of(spot) for spot in spots], min(_LEADERS, logits.shape[1])
        )
        chances = (scores / _ERROR).softmax(-1)
        return self._told(columns[:, :width], chances[:, :width])

    def _filtered(self, logits: Tensor, spots: Seq[Spot]) -> Tensor:
        """What top-k, top-p and min-p would keep if the drafter were right."""
        rows = [row for row, spot in enumerate(spots) if _is_filtered(_params(spot))]
        if not rows:
            return logits
        logits = logits.clone()
        for row in rows:
            params = _params(spots[row])
            scale = inverse_temperature(params.temperature)
            kept = filter_logits(
                logits[row] * scale, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p
            )
            logits[row] = logits[row].masked_fill(kept == -torch.inf, -torch.inf)
        return logits

    def _ids(self, columns: int) -> Tensor:
        if self._token_ids is None:
            self._token_ids = torch.arange(columns)
        return self._token_ids

    def _shaped(self, logits: Tensor, spots: Seq[Spot]) -> Tensor:
        """With the requests' biases and penalties."""
        rows = [row for row, spot in enumerate(spots) if needs_shaping(spot, _params(spot))]
        if not rows:
            return logits
        logits = logits.clone()
        for row in rows:
            logits[row] = self._shaped_row(logits[row], spots[row])
        return logits

    def _shaped_row(self, logits: Tensor, spot: Spot) -> Tensor:
        if self._token_ids is None:
            return shape_logits(logits, spot, _params(spot), self._eos)
        whole = logits.new_full((self._vocab_size,), -torch.inf)
        whole[self._token_ids] = logits
        return shape_logits(whole, spot, _params(spot), self._eos)[self._token_ids]

    def _told(self, columns: Tensor, chances: Tensor) -> list[list[Guess]]:
        ids = (columns if self._token_ids is None else self._token_ids[columns]).tolist()
        return [list(zip(*row, strict=True)) for row in zip(ids, chances.tolist(), strict=True)]


def _params(spot: Spot) -> SamplingParams:
    params = spot.sequence.params
    assert params is not None, "a prompt without sampling parameters draws nothing"
    return params


def _is_drawn(spot: Spot) -> bool:
    return _params(spot).temperature >= GREEDY_BELOW


def _is_filtered(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _noise_of(spot: Spot) -> NoisyRow:
    params = _params(spot)
    return NoisyRow(params.seed, len(spot.sequence.tokens) + len(spot.path), params.temperature)
