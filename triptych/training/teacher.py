"""What the target thinks of a text: the states that a head reads, and those it should predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner
from triptych.engine.sequence import Sequence as TokenSequence
from triptych.errors import ConfigError
from triptych.kv.pool import BlockPool
from triptych.models.model import Model
from triptych.models.taps import StateTap
from triptych_kernels.packer import LinearLike

_ROWS = 1024  # of one forward


class States(NamedTuple):
    """Of every position of a text."""

    taps: Tensor  # bfloat16 [T, taps · H]
    final: Tensor  # bfloat16 [T, H], behind the final norm: what the target's own head reads


class Vocabulary:
    """The target's matrices of tokens, however packed."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def embedded(self, token_ids: Tensor) -> Tensor:
        """token_ids [M] int64 → float32 [M, H]."""
        return self._model.embedding.row(token_ids)

    def head_rows(self, token_ids: Tensor) -> Tensor:
        """Rows [M, H] float32 of the matrix that the target's logits come from."""
        return rows_of(self._model.head)[token_ids]


def rows_of(linear: LinearLike) -> Tensor:
    """The matrix [N, K] float32, however packed; without its bias."""
    zero = linear(torch.zeros(1, linear.in_features))
    return (linear(torch.eye(linear.in_features)) - zero).t().contiguous()


class Teacher:
    """Runs the target over whole texts, on the engine's kernels."""

    def __init__(
        self, runner: Runner, pool: BlockPool, block_tokens: int, taps: Sequence[int]
    ) -> None:
        self._runner = runner
        self._pool = pool
        self._block_tokens = block_tokens
        self._taps = tuple(taps)
        self.vocabulary = Vocabulary(runner.model)
        self.hidden_size = runner.model.config.hidden_size
        self.taps_size = len(self._taps) * self.hidden_size

    def states(self, texts: Sequence[Sequence[int]]) -> list[States]:
        """Of each text. Raises ConfigError when the KV pool cannot hold one."""
        found: list[States] = []
        group: list[Sequence[int]] = []
        for text in texts:
            if group and sum(map(len, group)) + len(text) > _ROWS:
                found += self._forward(group)
                group = []
            group.append(text)
        return found + (self._forward(group) if group else [])

    def _forward(self, texts: Sequence[Sequence[int]]) -> list[States]:
        tap = StateTap(self._taps)
        jobs: list[RowJob] = []
        try:
            for text in texts:
                jobs.append(self._job(text))
            final = self._runner.forward_all(jobs, [tap]).bfloat16()
        finally:
            for job in jobs:
                self._pool.release(job.sequence.blocks)
        lengths = [len(text) for text in texts]
        assert tap.states is not None, "heads have taps"
        taps = torch.split(tap.states[: sum(lengths)].flatten(1), lengths)
        parts = zip(taps, torch.split(final, lengths), strict=True)
        return [States(*part) for part in parts]

    def _job(self, text: Sequence[int]) -> RowJob:
        sequence = TokenSequence("teacher", list(text), b"", self._block_tokens)
        blocks = self._pool.allocate(-(-len(text) // self._block_tokens))
        if blocks is None:
            raise ConfigError(f"kv.memory: a text of {len(text)} tokens does not fit")
        sequence.blocks = blocks
        return RowJob(sequence, 0, len(text))
