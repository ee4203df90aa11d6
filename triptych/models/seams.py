"""The two seams of a model: where attention finds its KV, and where a layer's FFN runs.

Everything else in a forward pass is row-wise: a row's numbers never depend on the rows beside it.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class KvView(Protocol):
    """The KV that one forward pass may read and extend. It knows which row belongs to whom."""

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Stores k, v [M, Hkv, D] of the pass's rows, then attends causally: q [M, Hq, D] → same.

        Query head h reads KV head h // (Hq / Hkv). Scores are q · k × `scale`; with a `softcap` c
        they become c × tanh(scores / c). With a `window` w, position p sees (p − w, p]: itself and
        the w − 1 before. Called once per layer, layers ascending. Arguments may be strided views
        (the last dimension is contiguous) and must not be kept. What padding rows get back is
        undefined, but it must not raise and no real row may see them.
        """


class Experts(Protocol):
    """A layer's feed-forward part: rows in, rows out, wherever it runs."""

    def __call__(
        self, layer: int, rows: Tensor, ids: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        """rows [M, H] (normed) → [M, H] without the residual, same dtype.

        ids, weights [M, k]: the routing of each row; both None for a dense FFN.
        """
