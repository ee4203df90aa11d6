"""NSA as flash-linear-attention writes it: names and sizes, and what its three parts add up to."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.engine.rows import RowJob
from triptych.engine.runner import make_runner
from triptych.engine.sequence import Sequence
from triptych.engine.storage import plain_storage
from triptych.errors import ModelError
from triptych.models.config import ModelConfig, NsaConfig
from triptych.models.families import parse_config
from triptych.models.fields import Fields
from triptych.models.load import load_model
from triptych.models.rope import Rope
from triptych.testing.checkpoints import VOCAB_SIZE, tiny_checkpoint
from triptych.testing.dense_kv import DenseSequence
from triptych.worker.boot import kv_layout
from triptych_kernels import nsa_attention

PROMPT = torch.randint(3, VOCAB_SIZE, (90,), generator=torch.Generator().manual_seed(1)).tolist()
# As `save_pretrained` writes it.
TOY: dict[str, Any] = {
    "architectures": ["NSAForCausalLM"],
    "model_type": "nsa",
    "attnres_block_size": None,
    "block_counts": 16,
    "block_size": 64,
    "bos_token_id": 1,
    "elementwise_affine": True,
    "eos_token_id": 2,
    "fuse_norm": True,
    "head_dim": 64,
    "hidden_act": "swish",
    "hidden_ratio": 4,
    "hidden_size": 1024,
    "intermediate_size": None,
    "max_position_embeddings": 4096,
    "norm_eps": 1e-05,
    "num_heads": 32,
    "num_hidden_layers": 24,
    "num_kv_heads": 2,
    "qkv_bias": False,
    "rope_theta": 50000.0,
    "tie_word_embeddings": True,
    "vocab_size": 32000,
    "window_size": 512,
}


def parsed(**changes: Any) -> ModelConfig:
    return parse_config(Fields(TOY | changes, "config.json"))


def test_a_configuration_is_read_in_its_own_words() -> None:
    config = parsed()
    assert config.nsa == NsaConfig(block_tokens=64, top_k=16, window=512) and config.chooses
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 2, 64)
    assert config.intermediate_size == 2816  # 256 × ⌈1024 · 4 · 2 / 3 / 256⌉
    assert config.rms_norm_eps == 1e-5 and set(config.ropes) == {Rope(50000.0)}
    assert config.tie_word_embeddings and config.activation == "silu" and not config.qkv_bias
    assert config.index_dim == 0 and set(config.windows) == {None}
    assert parsed(intermediate_size=100).intermediate_size == 100
    assert parsed(num_kv_heads=None).num_kv_heads == 32


def test_what_is_absent_has_the_default_of_the_library() -> None:
    few = {"architectures": ["NSAForCausalLM"], "model_type": "nsa"}
    config = parse_config(Fields(few, "config.json"))
    assert config.nsa == NsaConfig(block_tokens=64, top_k=16, window=512)
    assert (config.hidden_size, config.num_layers, config.vocab_size) == (2048, 24, 32000)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (64, 4, 32)
    assert config.intermediate_size == 5632
    assert config.max_model_len == 2048 and config.eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"block_counts": 2}, "block_counts: 2 blocks, fewer than the 3 that are always chosen"),
        ({"block_size": 0}, "block_size: expected an integer ≥ 1"),
        ({"window_size": -1}, "window_size: expected an integer ≥ 0"),
        ({"hidden_act": "powlu"}, "hidden_act: 'powlu' is not supported"),
        ({"attnres_block_size": 4}, "attnres_block_size: residuals that attend"),
        ({"num_kv_heads": 3}, "num_kv_heads: 3 does not divide 32"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        parsed(**changes)


def waves(*shape: int, step: float) -> Tensor:
    """Numbers that every library computes alike."""
    size = torch.Size(shape).numel()
    return torch.sin(torch.arange(size, dtype=torch.float64) * step).float().view(shape) * 2


# Three numbers each of rows 0, 3, 20 and 39, heads 5 and 31: `naive_nsa` of fla-core 0.6.0, with
# windows computed by plain softmax.
BY_FLA = {
    6: [
        [[0.0, 2.6966197, -2.7227559], [-1.4751490, 0.0838032, 1.3905336]],
        [[-0.5303857, 0.4471388, 0.0789132], [-0.1627303, 0.3272382, -0.1676796]],
        [[0.5213842, -0.0303048, -0.4907857], [0.1813244, -0.1847862, 0.0052528]],
        [[-0.5400736, 0.4640771, 0.0714986], [-0.3928826, 0.4240471, -0.0352745]],
    ],
    0: [
        [[0.0, 1.5078453, -1.5224596], [-1.0807207, 0.0613957, 1.0187298]],
        [[-0.3717221, 0.4120843, -0.0443562], [-0.1519061, 0.1510972, -0.0006556]],
        [[-0.5575043, 0.4022545, 0.1513510], [-0.0209180, -0.0585200, 0.0800051]],
        [[-0.3648428, 0.2779354, 0.0842137], [-0.1523378, 0.0959106, 0.0554976]],
    ],
}


@pytest.mark.parametrize("window", [6, 0])
def test_three_parts_are_those_of_flash_linear_attention(window: int) -> None:
    tokens, heads, kv_heads, dim, size = 40, 32, 2, 8, 16
    q = waves(tokens, heads, dim, step=0.7)
    gates = waves(tokens, heads, 3, step=0.9).sigmoid()
    blocks = torch.tensor([2, 0, 1])
    pools = [torch.zeros(3, size, kv_heads, dim) for _ in range(2)]
    for pool, step in zip(pools, (1.3, 2.1), strict=True):
        rows = waves(tokens, kv_heads, dim, step=step)
        for number, part in enumerate(rows.split(size)):
            pool[blocks[number], : len(part)] = part
    sizes = {"block_tokens": 4, "top_k": 4, "window": window, "scale": dim**-0.5}
    found = nsa_attention(q, *pools, blocks, 0, gates, **sizes)  # type: ignore[arg-type]
    shown = found[[0, 3, 20, 39]][:, [5, 31], :3]
    torch.testing.assert_close(shown, torch.tensor(BY_FLA[window]), rtol=0, atol=2e-6)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"window_size": 0},
    {"block_counts": 3, "qkv_bias": True},
    {"block_size": 24, "num_kv_heads": 8},
    {"num_heads": 20, "num_kv_heads": 1, "tie_word_embeddings": True},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_logits_over_pages_are_those_of_the_formulas(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model = load_model(tiny_checkpoint(tmp_path, "nsa", **options), dtype="float32")
    expected = DenseSequence(model).extend(PROMPT)
    layout = kv_layout(model.config, 16, "float32")
    runner = make_runner(model, plain_storage(layout, 6))
    sequence = Sequence("a", list(PROMPT), b"root", 16, blocks=[5, 2, 0, 1, 3, 4])
    logits = runner.logits(runner.forward_all([RowJob(sequence, 0, len(PROMPT))]))
    torch.testing.assert_close(logits, expected, rtol=2e-5, atol=2e-5)


def test_every_tensor_has_a_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_checkpoint(tmp_path, "nsa")
    with caplog.at_level(logging.WARNING):
        load_model(tmp_path, dtype="float32")
    assert not caplog.records
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.attn.g_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"tensor 'model.layers.1.self_attn.g_proj.weight' is mis"):
        load_model(tmp_path, dtype="float32")
