"""A model with native sparse attention: what its three parts say of a row. What holds of all models
that choose what they attend to is in test_choosers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.choosing import (
    BLOCK_TOKENS,
    LENGTH,
    SIZES,
    SOME_MODES,
    bytes_of,
    prompt,
    rows_in_chunks,
    runner_of,
)
from triptych.engine.draft import ROOT, Draft
from triptych.engine.rows import RowJob
from triptych.engine.runner import make_runner
from triptych.engine.sequence import Sequence
from triptych.engine.storage import KvStorage, plain_storage
from triptych.errors import ModelError
from triptych.models.model import Model
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.compute_modes import MODES, model_in
from triptych.worker.boot import kv_layout

ALL_READ = 4 * 8  # tokens of the blocks that a row reads: fewer are all read


@pytest.fixture(params=SOME_MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("parts"), "nsa", **SIZES)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_size": 0, "block_counts": 3},
        {"num_heads": 20, "num_kv_heads": 1, "block_size": 12},
        {"num_heads": 32, "num_kv_heads": 2, "block_size": 64, "block_counts": 5},
        {"head_dim": 24, "num_kv_heads": 8, "qkv_bias": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["float32"])
def test_native_kernels_say_what_torch_says(
    options: dict[str, Any], tmp_path: Path, mode: str
) -> None:
    checkpoint = tiny_checkpoint(tmp_path, "nsa", **SIZES, **options)
    found, wanted = (
        rows_in_chunks(runner_of(model_in(checkpoint, name), name), prompt())
        for name in (mode, "torch")
    )
    near = (found - wanted).norm(dim=1) < 1e-4 * wanted.norm(dim=1)
    # A tie but for rounding may go the other way.
    assert near.float().mean() > 0.99
    assert near[:ALL_READ].all()


@pytest.mark.parametrize("mode", ["float32", "bfloat16", "int8 KV"])
def test_sizes_of_the_pools_blocks_change_no_bit(model: Model, mode: str) -> None:
    """Blocks of tokens that the model averages, 8, and that the pool keeps together are two."""
    rows = []
    for block_tokens in (4, 16, 64):
        layout = kv_layout(model.config, block_tokens, MODES[mode][1])
        count = layout.blocks_for(300)
        runner = make_runner(model, plain_storage(layout, count))
        tokens, blocks = prompt(300).tokens, list(range(count))[::-1]
        sequence = Sequence("a", tokens, b"root", block_tokens, blocks=blocks)
        rows.append(rows_in_chunks(runner, sequence, [70, 290]))
    assert all(torch.equal(other, rows[0]) for other in rows[1:])


def test_a_path_of_drafts_completes_blocks_as_decoding_does(model: Model, mode: str) -> None:
    """Paths of 20 tokens, two whole blocks of 8, that part after 3."""
    start = 150
    tokens = prompt(start + 20).tokens
    sequence = prompt(start)
    sequence.blocks = list(range(-(-LENGTH // BLOCK_TOKENS)))
    runner = runner_of(model, mode)
    runner.forward([RowJob(sequence, 0, start - 1)])
    path = tokens[start:]
    branch = [*path[:3], *(token + 1 for token in path[3:])]
    parents = [ROOT, *range(19), 2, *range(20, 36)]
    draft = Draft((*path, *branch[3:]), tuple(parents))
    rows = runner.forward([RowJob(sequence, start - 1, start, draft)]).clone()
    plain = runner_of(model, mode)
    for number, steps in ((0, path), (17, branch)):
        whole = prompt(start)
        whole.tokens[start:] = steps
        whole.blocks = list(sequence.blocks)
        wanted = rows_in_chunks(plain, whole, [start])[start - 1 :]
        nodes = [0, *range(1, 21)] if number == 0 else [0, 1, 2, 3, *range(21, 38)]
        assert torch.equal(rows[nodes], wanted)


def test_a_copy_of_the_blocks_is_all_that_the_next_rows_need(model: Model, mode: str) -> None:
    layout = kv_layout(model.config, BLOCK_TOKENS, MODES[mode][1])
    sequence, blocks = prompt(103), layout.blocks_for(103)
    here, there = (plain_storage(layout, blocks) for _ in range(2))
    wanted = make_runner(model, here).forward_all([RowJob(sequence, 0, 103)])[-1].clone()
    make_runner(model, there).forward_all([RowJob(sequence, 0, 102)])
    copy = KvStorage(layout, bytes_of(there).copy())
    assert torch.equal(
        make_runner(model, copy).forward_all([RowJob(sequence, 102, 103)])[-1], wanted
    )


@pytest.mark.parametrize("mode", ["torch"])
def test_device_cuda_refuses_it_by_name(model: Model) -> None:
    pytest.importorskip("triton")
    from triptych.models.triton_model import check_config

    with pytest.raises(ModelError, match=r"three parts \(NSA\) yet, and nsa has them: set device"):
        check_config(model.config)
