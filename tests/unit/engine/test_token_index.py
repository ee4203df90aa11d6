"""A model that chooses its tokens (DeepSeek-V3.2). What holds of all models that choose what they
attend to is in test_choosers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.engine.choosing import (
    BLOCK_TOKENS,
    SIZES,
    SOME_MODES,
    bytes_of,
    prompt,
    rows_in_chunks,
    runner_of,
)
from triptych.engine.rows import RowJob
from triptych.engine.runner import make_runner
from triptych.engine.storage import KvStorage, plain_storage
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.testing.checkpoints import INDEX_TOP_K, edit_config, tiny_checkpoint
from triptych.testing.compute_modes import MODES, model_in
from triptych.worker.boot import kv_layout


@pytest.fixture(params=SOME_MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("chooses"), "deepseek_v32", **SIZES)


def copied(checkpoint: Path, to: Path, **config: Any) -> Path:
    shutil.copytree(checkpoint, to)
    edit_config(to, **config)
    return to


def test_native_kernels_choose_what_torch_chooses(checkpoint: Path) -> None:
    found, wanted = (
        rows_in_chunks(runner_of(model_in(checkpoint, mode), mode), prompt())
        for mode in ("float32", "torch")
    )
    near = (found - wanted).norm(dim=1) < 1e-4 * wanted.norm(dim=1)
    # A tie but for rounding may go the other way.
    assert near.float().mean() > 0.99
    assert near[:INDEX_TOP_K].all()


@pytest.mark.parametrize("mode", ["torch", "float32", "bfloat16"])
def test_of_equally_worthy_tokens_the_first_are_read(
    checkpoint: Path, tmp_path: Path, mode: str
) -> None:
    """Then a row sees the first tokens and nothing else, not even itself."""
    path = copied(checkpoint, tmp_path / "ties")
    weights = load_file(path / "model.safetensors")
    flat = {n: w * 0 if n.endswith("weights_proj.weight") else w for n, w in weights.items()}
    save_file(flat, path / "model.safetensors", metadata={"format": "pt"})
    runner = runner_of(model_in(path, mode), mode)
    sequence, other = prompt(400), prompt(400)
    other.tokens[INDEX_TOP_K:-1] = other.tokens[INDEX_TOP_K:-1][::-1]
    rows = rows_in_chunks(runner, sequence)
    assert torch.equal(rows_in_chunks(runner, other, [137])[-1], rows[-1])
    other.tokens[INDEX_TOP_K - 1] += 1
    assert not torch.equal(rows_in_chunks(runner, other)[-1], rows[-1])


def test_where_all_tokens_may_be_chosen_it_is_v3_bit_for_bit(
    checkpoint: Path, tmp_path: Path, mode: str
) -> None:
    roomy = copied(checkpoint, tmp_path / "roomy", index_topk=200)
    dense = copied(checkpoint, tmp_path / "dense", architectures=["DeepseekV3ForCausalLM"])
    found, wanted, strict = (
        rows_in_chunks(runner_of(model_in(path, mode), mode), prompt(300), [90, 250])
        for path in (roomy, dense, checkpoint)
    )
    assert torch.equal(found[:200], wanted[:200])
    assert not torch.equal(found[200:], wanted[200:])
    assert torch.equal(strict[:INDEX_TOP_K], wanted[:INDEX_TOP_K])
    assert not torch.equal(strict[INDEX_TOP_K:200], wanted[INDEX_TOP_K:200])


def test_index_keys_are_a_part_of_a_block(model: Model, mode: str) -> None:
    """Whoever copies a block's bytes has all that the next rows need, and needs all of them."""
    layout = kv_layout(model.config, BLOCK_TOKENS, MODES[mode][1])
    sequence, blocks = prompt(100), layout.blocks_for(100)
    here, there = (plain_storage(layout, blocks) for _ in range(2))
    first = make_runner(model, here)
    wanted = first.forward_all([RowJob(sequence, 0, 100)])[-1].clone()
    make_runner(model, there).forward_all([RowJob(sequence, 0, 99)])
    last = RowJob(sequence, 99, 100)
    assert torch.equal(make_runner(model, there).forward_all([last])[-1], wanted)
    copy = KvStorage(layout, bytes_of(there).copy())
    assert torch.equal(make_runner(model, copy).forward_all([last])[-1], wanted)
    for layer in range(layout.num_layers):
        copy.index_keys(layer).mul_(-1)
    assert not torch.equal(make_runner(model, copy).forward_all([last])[-1], wanted)


def test_pools_with_and_without_index_keys_exchange_nothing(checkpoint: Path, model: Model) -> None:
    config = load_model(checkpoint, dtype="float32").config
    layout = kv_layout(config, BLOCK_TOKENS, "float32")
    plain = type(layout)(
        layout.num_layers, layout.num_kv_heads, layout.head_dim, BLOCK_TOKENS, layout.dtype
    )
    assert layout.describe(model="m", weights="w") != plain.describe(model="m", weights="w")
    per_token = config.index.head_dim * 4 * config.num_layers  # type: ignore[union-attr]
    assert layout.block_bytes - plain.block_bytes == BLOCK_TOKENS * per_token
