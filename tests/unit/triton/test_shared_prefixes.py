"""Sequences that begin with the same blocks read them together, and no token shows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.engine import triton_bundles, triton_rows, triton_runner
from triptych.engine.draft import NO_DRAFT, ROOT, Draft
from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence
from triptych.engine.triton_runner import TritonRunner
from triptych.request import SparseAttention
from triptych.testing import on_triton
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.on_triton import BLOCK_TOKENS, TINY, sequence_of, triton_model

SPLIT = 1024
SYSTEM = list(range(SPLIT // BLOCK_TOKENS))  # blocks that are shared
SIZES = TINY | {"num_hidden_layers": 1, "max_position_embeddings": 2048}
TAIL = 7  # tokens behind them


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> TritonRunner:
    """Its pool holds chance instead of what prompts would leave."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint(path, "llama", **SIZES)
    runner = on_triton.triton_runner(triton_model(path, device), device, num_blocks=80)
    random = torch.Generator().manual_seed(3)
    for half in (runner.kv.keys(0), runner.kv.values(0)):
        half.copy_(torch.randn(half.shape, generator=random))
    return runner


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bundles of every search."""
    seen: list[int] = []

    def counted(*arguments: Any) -> Any:
        bundles = triton_bundles.find_bundles(*arguments)
        seen.append(len(bundles.found))
        return bundles

    for module in (triton_rows, triton_runner):
        monkeypatch.setattr(module, "find_bundles", counted)
    return seen


def sharing(number: int) -> Sequence:
    tokens = [(number * n) % 60 + 3 for n in range(SPLIT + TAIL)]
    return sequence_of(tokens, [*SYSTEM, len(SYSTEM) + number], str(number))


def apart(number: int) -> Sequence:
    return sequence_of([5, number, 9], [len(SYSTEM) + number], str(number))


def step(sequence: Sequence, draft: Draft = NO_DRAFT) -> RowJob:
    end = len(sequence.tokens)
    return RowJob(sequence, end - 1, end, draft)


def alone(runner: TritonRunner, jobs: list[RowJob]) -> Tensor:
    return torch.cat([runner.forward([job]).clone() for job in jobs])


def test_decoded_together_they_have_the_bits_of_each_alone(
    runner: TritonRunner, found: list[int]
) -> None:
    """In a step that is recorded: three who share, and one among them who does not."""
    jobs = [step(of) for of in (sharing(1), apart(4), sharing(2), sharing(3))]
    expected = alone(runner, jobs)
    assert max(found) == 0
    assert torch.equal(runner.forward(jobs), expected)
    assert found[-1] == 1
    assert torch.equal(runner.forward(jobs[1:2]), expected[1:2])


def test_drafts_of_those_who_share_have_the_bits_of_each_alone(
    runner: TritonRunner, found: list[int]
) -> None:
    """Chains beside each other, and trees."""
    chain, tree = Draft((7, 9)), Draft((7, 9, 11), (ROOT, ROOT, 1))
    jobs = [
        step(sharing(1), chain),
        step(sharing(2), tree),
        step(apart(4)),
        step(sharing(3), tree),
    ]
    expected = alone(runner, jobs)
    found.clear()
    assert torch.equal(runner.forward(jobs), expected)
    assert found == [1, 1], "rows that follow each other, and nodes of trees"


def test_sparse_attention_reads_alone(runner: TritonRunner, found: list[int]) -> None:
    sequences = [sharing(1), sharing(2)]
    for sequence in sequences:
        sequence.sparse = SparseAttention(1.0)
    runner.forward([step(of) for of in sequences])
    assert found == [0]
