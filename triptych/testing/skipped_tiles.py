"""BLASST in float64: which tiles each row and head of a native job leaves out."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.testing.kv_prompts import Prompt
from triptych.testing.native_kernels import Rows
from triptych.testing.paged_attention import replay_skipping

TILE, SPLIT = 128, 1024  # positions, as in the kernels


@dataclass(frozen=True, slots=True)
class Tiles:
    """Scores of some rows, in tiles. `gone` [R, Hq, tiles]; `doubtful` [R, Hq]: too close."""

    scores: Tensor  # float64 [R, Hq, tiles, 128], −∞ where a row sees nothing
    values: Tensor  # float64 [N, Hq, D]
    gone: Tensor
    doubtful: Tensor

    @staticmethod
    def of(prompt: Prompt, rows: Rows, window: int, softcap: float) -> Tiles:
        count = rows.queries.shape[0]
        end = rows.start + count
        scores, values = prompt.scores(rows.start, end, window, softcap)
        room = -(-end // TILE) * TILE
        padded = torch.full((*scores.shape[:2], room), -torch.inf, dtype=torch.float64)
        padded[..., :end] = scores
        tiles = padded.view(*scores.shape[:2], -1, TILE)
        nothing = torch.zeros(tiles.shape[:3], dtype=torch.bool)
        return Tiles(tiles, values, nothing, nothing[..., 0].clone())

    def exact(self) -> Tensor:
        """[R, Hq, D]: softmax over what is not gone."""
        kept = self.scores.masked_fill(self.gone[..., None], -torch.inf).flatten(2)
        weights = kept.softmax(-1)[..., : len(self.values)]
        return torch.einsum("rhn,nhd->rhd", weights, self.values)

    def widest_distance(self) -> Tensor:
        """[Hq]: of two values of a head, from above: twice the largest distance from their mean."""
        return widest_distance(self.values)


def widest_distance(values: Tensor) -> Tensor:
    """[N, H, D] → [H], see `Tiles.widest_distance`."""
    widest: Tensor = 2 * (values - values.mean(0)).norm(dim=-1).amax(0)
    return widest


def tiles_left_out(prompt: Prompt, rows: Rows, window: int, softcap: float) -> Tiles:
    """What skipping `rows` leave out."""
    assert rows.skip is not None
    tiles = Tiles.of(prompt, rows, window, softcap)
    logits = tiles.scores.flatten(2) * math.log2(math.e)
    for row, head in itertools.product(*map(range, logits.shape[:2])):
        position = rows.start + row
        seen = min(position + 1, window or position + 1)
        if rows.skip.scale >= seen:
            continue
        left = replay_skipping(
            logits[row, head],
            position,
            threshold=rows.skip.scale / seen,
            budget=math.inf,
            tile=TILE,
            split=SPLIT,
        )
        tiles.gone[row, head, left.tiles] = True
        tiles.doubtful[row, head] = left.doubtful
    return tiles
