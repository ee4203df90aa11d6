"""The two seams of a model: where attention finds its KV, and where a layer's FFN runs.

Everything else in a forward pass is row-wise: a row's numbers never depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from triptych.models.config import DeltaConfig
from triptych_kernels.packer import DeltaRule


@dataclass(frozen=True, slots=True)
class IndexRows:
    """What rows bring to choose the tokens that they attend to: DeepSeek-V3.2's sparse attention.

    Row t is worth s what Σ_j weights[t, j] · ReLU(queries[t, j] · keys[s]) says.
    """

    queries: Tensor  # [M, J, D], rotated
    weights: Tensor  # float32 [M, J], with all constant factors
    keys: Tensor  # [M, D], rotated; kept beside the rows' KV
    top_k: int


@dataclass(frozen=True, slots=True)
class NsaRows:
    """What rows bring to native sparse attention (NSA), whose three parts a row weighs."""

    gates: Tensor  # [M, Hq, 3]: of the means of blocks, of the blocks chosen by them, of the window
    block_tokens: int
    top_k: int  # blocks that a row reads token by token
    window: int  # positions, the row's own included; 0: there is no such part


@dataclass(frozen=True, slots=True)
class DeltaRows:
    """What rows bring to a gated delta layer; see `triptych_kernels.gated_delta`."""

    mixed: Tensor  # [M, C]
    decay: Tensor  # float32 [M, Hv]
    beta: Tensor  # float32 [M, Hv]
    conv: Tensor  # float32 [K, C]
    sizes: DeltaConfig
    rule: DeltaRule  # what computes them


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
        sinks: Tensor | None,
        index: IndexRows | NsaRows | None = None,
    ) -> Tensor:
        """Stores k, v [M, Hkv, D] of the pass's rows, then attends causally: q [M, Hq, D] → same.

        Query head h reads KV head h // (Hq / Hkv). Scores are q · k × `scale`; with a `softcap` c
        they become c × tanh(scores / c). With a `window` w, position p sees (p − w, p]: itself and
        the w − 1 before. sinks [Hq] float32: a logit of each head that takes its share of the
        softmax and adds nothing. With an `index` a row sees, of
        these positions, the `top_k` that are worth most to it, the first of equal ones; its keys
        are stored, too. With `NsaRows` it attends as `triptych_kernels.nsa_attention` says, and
        has neither window nor sinks. Called once per layer, layers ascending. Arguments may be
        strided views (the last dimension is contiguous) and must not be kept. What padding rows get
        back is undefined, but it must not raise and no real row may see them.
        """


@runtime_checkable
class StateView(Protocol):
    """A KvView that also keeps the states of layers that have no KV."""

    def take_in(self, layer: int, rows: DeltaRows) -> Tensor:
        """Takes the pass's rows into the layer's states, those of a sequence in order of positions
        → float32 [M, Hv, Dv], what each reads of the state behind it. Called once per layer in
        place of `attend`, and like that.
        """


class Experts(Protocol):
    """A layer's feed-forward part: rows in, rows out, wherever it runs."""

    def __call__(
        self, layer: int, rows: Tensor, ids: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        """rows [M, H] (normed) → [M, H] without the residual, same dtype.

        ids int32, weights float32 [M, k]: the routing of each row, ids ascending, and the answer is
        the weighted sum; both None for a dense FFN.
        """


class DistantExperts(Protocol):
    """Feed-forward parts that answer later. Rows of several lanes, one micro-batch each, may be on
    their way at once; of one lane, one layer's.
    """

    def num_lanes(self, rows: int) -> int:
        """Into how many micro-batches a step of so many rows should be cut, 1 or more."""

    def send(self, lane: int, layer: int, rows: Tensor, ids: Tensor | None) -> None:
        """rows [M, H] float32 (normed), ids [M, k] int32 ascending; None for a dense FFN. Both
        are read until the lane's `end`, and must not change.
        """

    def returned(self) -> Sequence[int]:
        """Lanes whose rows are all back, at least one; waits for it. Whatever happens to workers,
        they come back.
        """

    def cells(self, lane: int) -> Tensor:
        """What came back, [M · k, H] float32 or bfloat16: row m's expert ids[m, j] at m · k + j.
        Valid until `end`.
        """

    def end(self, lane: int) -> None:
        """The lane may send again."""

    def stepped(self, rows: int, lanes: int, attention_s: float, step_s: float) -> None:
        """A forward of `rows` rows in `lanes` lanes is over: it took `step_s`, and this side
        computed for `attention_s` of it. Seconds.
        """
