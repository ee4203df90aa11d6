"""BLASST in float64, as written in skipping.h: which tiles each row and head leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.testing.kv_prompts import Prompt
from triptych.testing.native_kernels import Rows

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
        far = (self.values - self.values.mean(0)).norm(dim=-1)
        widest: Tensor = 2 * far.amax(0)
        return widest


def tiles_left_out(prompt: Prompt, rows: Rows, window: int, softcap: float) -> Tiles:
    """What skipping `rows` leave out."""
    assert rows.skip is not None
    tiles = Tiles.of(prompt, rows, window, softcap)
    top = tiles.scores.amax(-1)
    for row in range(top.shape[0]):
        position = rows.start + row
        low = max(0, position + 1 - window) if window else 0
        first, own = low // TILE, position // TILE
        limit = torch.tensor(rows.skip.scale / (position + 1 - low)).log().double()
        if limit >= 0:
            continue
        seed = top[row][:, [first, own]].amax(-1)
        for head in range(top.shape[1]):
            known = seed[head]
            for tile in range(first, own + 1):
                if tile % (SPLIT // TILE) == 0:
                    known = seed[head]
                margin = top[row, head, tile] - known - limit
                kept = tile in (first, own)
                tiles.doubtful[row, head] |= bool(not kept and abs(margin) < 1e-3)
                if margin < 0 and not kept:
                    tiles.gone[row, head, tile] = True
                else:
                    known = torch.maximum(known, top[row, head, tile])
    return tiles
