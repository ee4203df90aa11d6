"""From a drafter's logits to the tokens that it would bet on."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from triptych.drafters.tree_growth import GrowingTree
from triptych.engine.sampler import Sampler, Spot
from triptych.engine.sequence import Sequence

Guess = tuple[int, float]  # a token, and how likely the drafter finds it


class Guesser:
    """Greedy requests get the likeliest tokens. For all others the token is drawn as the target
    draws it: by the same filters, the same penalties and the same noise, so that the two agree far
    more often than two draws would (Gumbel coupling, Daliri et al., arXiv 2408.07978).
    """

    def __init__(self, sampler: Sampler, vocab_size: int, token_ids: Tensor | None = None) -> None:
        """token_ids int64 [Vd]: what the columns of the logits stand for; None: all tokens."""
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._token_ids = token_ids

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
        guesses: list[list[Guess]] = [[] for _ in spots]
        plain = [row for row, spot in enumerate(spots) if _is_plain(spot)]
        drawn = [row for row, spot in enumerate(spots) if not _is_plain(spot)]
        if plain:
            rows = logits if len(plain) == len(spots) else logits[plain]
            for row, found in zip(plain, self._likeliest(rows, width), strict=True):
                guesses[row] = found
        if drawn:
            rows = logits if len(drawn) == len(spots) else logits[drawn]
            found_ones = self._drawn(rows, [spots[row] for row in drawn])
            for row, found in zip(drawn, found_ones, strict=True):
                guesses[row] = found
        return guesses

    def _likeliest(self, logits: Tensor, width: int) -> list[list[Guess]]:
        values, columns = logits.topk(min(width, logits.shape[1]), dim=-1)
        chances = (values - logits.logsumexp(-1, keepdim=True)).exp_().tolist()
        ids = (columns if self._token_ids is None else self._token_ids[columns]).tolist()
        return [list(zip(*row, strict=True)) for row in zip(ids, chances, strict=True)]

    def _drawn(self, logits: Tensor, spots: Seq[Spot]) -> list[list[Guess]]:
        if self._token_ids is not None:
            whole = logits.new_full((len(spots), self._vocab_size), -torch.inf)
            whole[:, self._token_ids] = logits
            logits = whole
        tokens = self._sampler.draw(logits, spots)
        temperatures = [max(_temperature(spot), 1e-2) for spot in spots]
        scaled = logits / torch.tensor(temperatures)[:, None]
        totals = scaled.logsumexp(-1).tolist()
        return [
            [(token, float((scaled[row, token] - totals[row]).exp()))] if token >= 0 else []
            for row, token in enumerate(tokens)
        ]


def _temperature(spot: Spot) -> float:
    params = spot.sequence.params
    return 1.0 if params is None else params.temperature


def _is_plain(spot: Spot) -> bool:
    params = spot.sequence.params
    assert params is not None, "a prompt without sampling parameters draws nothing"
    return params.temperature == 0.0 and not (params.logit_bias or params.penalised)
