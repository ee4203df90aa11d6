"""What `upcycle` writes is a mixture that Triptych runs itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.load import load_config, load_model
from triptych.models.upcycle.convert import upcycle
from triptych.models.upcycle.recipe import Recipe
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.dense_kv import DenseSequence

PROMPT = [(7 * at * at + 3) % 199 for at in range(40)]


def logits_of(path: Path) -> Tensor:
    return DenseSequence(load_model(path, dtype="float32")).extend(PROMPT)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize(
    "values",
    [
        {"how": "copies", "router": "skewed"},
        {"how": "split", "num_experts": 6, "top_k": 6},
    ],
)
def test_it_gives_the_dense_models_logits(
    family: str, values: dict[str, Any], tmp_path: Path
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", family)
    upcycle(dense, tmp_path / "moe", Recipe(dtype="float32", **values))
    config = load_config(tmp_path / "moe")
    assert config.moe is not None and all(config.moe.layers)
    assert config.moe.routing.top_k == values.get("top_k", 2)
    torch.testing.assert_close(logits_of(tmp_path / "moe"), logits_of(dense), rtol=1e-4, atol=1e-4)


def test_a_mixture_is_not_upcycled_again(tmp_path: Path) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", "llama")
    upcycle(dense, tmp_path / "moe", Recipe(num_experts=2))
    with pytest.raises(ModelError, match="is a mixture of experts already"):
        upcycle(tmp_path / "moe", tmp_path / "more", Recipe(num_experts=2))
