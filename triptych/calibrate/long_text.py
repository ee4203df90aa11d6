"""A long text in an engine of its own: what sparse attention leaves out, and what that does."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.engine.backend import Backend
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner, make_runner
from triptych.engine.sequence import Sequence
from triptych.engine.storage import plain_storage
from triptych.models.model import Model
from triptych.request import SamplingParams, SparseAttention, TileCount
from triptych.worker.boot import kv_layout

_CHUNK_TOKENS = 512  # rows of one step while prompts are read, as workers do by default
JUDGED_ROWS = 256  # at the end of the text: their next tokens are compared
SINGLE_ROWS = 32  # of those, the last ones: computed one by one, as an answer's tokens are
_PARAMS = SamplingParams(seed=0, max_tokens=1, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Reading:
    """One pass over a text. `logprobs` float32 [JUDGED_ROWS, V]: of the token behind each row."""

    prompt: TileCount
    decode: TileCount
    logprobs: Tensor


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a reading from the dense one, mean over the judged rows."""

    same_token: float  # share of rows with the same most probable token
    kl: float  # of the dense distribution from the other one, in nats


def difference(dense: Reading, sparse: Reading) -> Difference:
    """Pure."""
    same = dense.logprobs.argmax(-1) == sparse.logprobs.argmax(-1)
    apart = dense.logprobs - sparse.logprobs
    kl = (dense.logprobs.exp() * apart).sum(-1).clamp_min(0)
    return Difference(float(same.double().mean()), float(kl.double().mean()))


def compute(runner: Runner, sequence: Sequence, start: int, end: int) -> Tensor:
    """Rows [start, end), in chunks; the wanted hidden states of the last one."""
    hidden = torch.empty(0)
    for at in range(start, end, _CHUNK_TOKENS):
        hidden = runner.forward([RowJob(sequence, at, min(at + _CHUNK_TOKENS, end))])
    return hidden


class LongText:
    """`ids`: at least JUDGED_ROWS tokens."""

    def __init__(self, model: Model, backend: Backend, ids: Seq[int], block_tokens: int) -> None:
        assert len(ids) >= JUDGED_ROWS
        layout = kv_layout(model.config, block_tokens, backend.kv)
        count = layout.blocks_for(len(ids))
        self._runner: Runner = make_runner(model, plain_storage(layout, count))
        self._blocks = list(range(count))
        self._block_tokens = block_tokens
        self._ids = list(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, sparse: SparseAttention | None) -> Reading:
        """Everything anew, in chunks; then the last rows once more, one by one."""
        prompt, judged = self._sequence(sparse), len(self._ids) - JUDGED_ROWS
        compute(self._runner, prompt, 0, judged)
        hidden = self._runner.forward_all([RowJob(prompt, judged, len(self._ids))])
        logits = self._runner.logits(hidden)
        return Reading(prompt.tiles, self.decode(sparse), torch.log_softmax(logits, dim=-1))

    def decode(self, sparse: SparseAttention | None) -> TileCount:
        """What the last rows leave out, one by one, of the KV that the last reading left."""
        sequence, end = self._sequence(sparse), len(self._ids)
        for row in range(end - SINGLE_ROWS, end):
            self._runner.forward([RowJob(sequence, row, row + 1)])
        return sequence.tiles

    def _sequence(self, sparse: SparseAttention | None) -> Sequence:
        sequence = Sequence(
            "calibration", list(self._ids), b"", self._block_tokens, params=_PARAMS, sparse=sparse
        )
        sequence.blocks = self._blocks
        return sequence
