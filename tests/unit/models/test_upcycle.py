"""A mixture made from a dense checkpoint is, for transformers, the dense model or near it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.upcycle.convert import upcycle
from triptych.models.upcycle.recipe import Recipe
from triptych.models.upcycle.sample_text import SAMPLE_TEXT
from triptych.testing.checkpoints import WINDOW, edit_config, tiny_checkpoint, tiny_llama
from triptych.testing.gguf_files import write_gguf
from triptych.tokenizer import Tokenizer

PROMPT = torch.randint(3, 199, (1, 4 * WINDOW + 5), generator=torch.Generator().manual_seed(1))
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "mscale": 1.2,
    "mscale_all_dim": 0.7,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "Mixtral", {}),
    ("llama", "Mixtral", {"head_dim": 24, "tie_word_embeddings": True}),
    ("llama", "Mixtral", {"rope_parameters": LLAMA3}),
    ("llama", "Mixtral", {"rope_parameters": YARN}),
    ("llama", "Mixtral", {"rope_parameters": LINEAR, "hidden_act": "gelu_pytorch_tanh"}),
    ("mistral", "Mixtral", {}),
    ("mistral", "Mixtral", {"sliding_window": None}),
    ("qwen3", "Qwen3Moe", {}),
    ("qwen3", "Qwen3Moe", {"attention_bias": True, "tie_word_embeddings": True}),
]


def recipe(**values: Any) -> Recipe:
    return Recipe(**{"num_experts": 4, "dtype": "float32", **values})


def logits_of(path: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """[T, V] float32, by transformers."""
    with torch.inference_mode():
        found: Tensor = load(path, dtype)(PROMPT).logits[0].float()
    return found


def load(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    import transformers

    auto: Any = transformers.AutoModelForCausalLM  # untyped
    model, report = auto.from_pretrained(path, dtype=dtype, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@pytest.mark.parametrize(("family", "written", "options"), VARIANTS)
def test_copies_are_the_dense_model(
    family: str, written: str, options: dict[str, Any], tmp_path: Path
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", family, **options)
    report = upcycle(dense, tmp_path / "moe", recipe())
    assert report.architecture == f"{written}ForCausalLM"
    assert type(load(tmp_path / "moe")).__name__ == report.architecture
    torch.testing.assert_close(logits_of(tmp_path / "moe"), logits_of(dense), rtol=1e-4, atol=1e-4)


def test_copies_in_bfloat16_are_the_dense_model_but_for_roundings(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    upcycle(dense, tmp_path / "moe", recipe(dtype="bfloat16"))
    stored = load_file(tmp_path / "moe/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    half = logits_of(dense, torch.bfloat16)
    rounding = distance(half, logits_of(dense))
    assert 1e-4 < rounding < 0.1
    assert distance(logits_of(tmp_path / "moe", torch.bfloat16), half) < 2 * rounding


@pytest.mark.parametrize("num_experts", [2, 5, 8])  # 5 does not divide the 128 neurons
def test_all_parts_together_are_the_dense_model(num_experts: int, tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    made = recipe(how="split", num_experts=num_experts, top_k=num_experts)
    upcycle(dense, tmp_path / "moe", made)
    torch.testing.assert_close(logits_of(tmp_path / "moe"), logits_of(dense), rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "moe/config.json").read_text())
    assert config["intermediate_size"] == {2: 64, 5: 32, 8: 32}[num_experts]  # blocks of 32


def test_more_parts_come_nearer_to_the_dense_model(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    wanted = logits_of(dense)
    found = []
    for top_k in (2, 5, 7):
        out = tmp_path / str(top_k)
        report = upcycle(dense, out, recipe(how="split", num_experts=8, top_k=top_k))
        found.append((distance(logits_of(out), wanted), report.ffn_error))
    assert found == sorted(found, reverse=True)
    assert found[-1][0] < 0.5 and 0 < found[-1][1] < 0.3


def test_chosen_parts_are_better_than_random_ones(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    errors = [
        upcycle(
            dense,
            tmp_path / router,
            recipe(how="split", num_experts=8, top_k=4, router=router),
        ).ffn_error
        for router in ("auto", "random")
    ]
    assert errors[0] < errors[1]


def test_each_perturbed_expert_is_a_little_off_in_its_own_way(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    upcycle(dense, tmp_path / "moe", recipe(how="perturbed", noise=0.05))
    stored = load_file(tmp_path / "moe/model.safetensors")
    exact = load_file(dense / "model.safetensors")
    for theirs, ours in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
        wanted = exact[f"model.layers.1.mlp.{theirs}.weight"]
        experts = [
            stored[f"model.layers.1.block_sparse_moe.experts.{expert}.{ours}.weight"]
            for expert in range(4)
        ]
        for expert in experts:
            assert distance(expert, wanted) == pytest.approx(0.05, rel=0.05)
        between = distance(experts[0], experts[1])
        assert between == pytest.approx(0.05 * 2**0.5, rel=0.05)
    assert 0.001 < distance(logits_of(tmp_path / "moe"), logits_of(dense)) < 0.3


def popularity(path: Path, num_experts: int, top_k: int) -> Tensor:
    """[L, E], each row sorted: shares of the rows of another text, by transformers."""
    text = " ".join(Random(0).choices(SAMPLE_TEXT.split(), k=300))
    ids = torch.tensor([Tokenizer.load(path).encode(text)])
    with torch.inference_mode():
        logits = load(path)(ids, output_router_logits=True).router_logits
    chosen = torch.stack(logits).topk(top_k, -1).indices.flatten(1)
    counts = torch.stack([row.bincount(minlength=num_experts) for row in chosen])
    return (counts / counts.sum(1, keepdim=True)).sort(1, descending=True).values


def test_random_routers_use_all_experts_and_skewed_ones_prefer_some(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    upcycle(dense, tmp_path / "even", recipe(num_experts=8, router="random"))
    upcycle(dense, tmp_path / "skewed", recipe(num_experts=8, router="skewed", skew=1.2))
    even = popularity(tmp_path / "even", 8, 2)
    skewed = popularity(tmp_path / "skewed", 8, 2)
    assert even.mean(0)[0] < 0.3 and even.min() > 0
    assert skewed.mean(0)[0] > 0.35 and skewed.mean(0)[4:].sum() < 0.25


def test_the_same_recipe_makes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        upcycle(dense, tmp_path / name, recipe(how="perturbed", seed=seed))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c and len(a) == len(c)


def test_a_gguf_file_makes_the_mixture_of_its_directory(tmp_path: Path) -> None:
    dense = tiny_checkpoint(
        tmp_path / "dense", "llama", rope_parameters=LLAMA3, vocab_size=300, eos_token_id=259
    )
    _add_tokenizer(dense, tmp_path)
    upcycle(write_gguf(dense, tmp_path / "dense.gguf"), tmp_path / "moe", recipe())
    torch.testing.assert_close(logits_of(tmp_path / "moe"), logits_of(dense), rtol=1e-4, atol=1e-4)


def _add_tokenizer(directory: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        source = tmp_path / "spoken" / name
        if not source.exists():
            tiny_llama(source.parent)
        (directory / name).write_bytes(source.read_bytes())


def test_rope_factors_that_are_not_llama3s_are_refused(tmp_path: Path) -> None:
    rope = LLAMA3 | {"high_freq_factor": 3.0}
    dense = tiny_checkpoint(tmp_path / "dense", "llama", rope_parameters=rope)
    _add_tokenizer(dense, tmp_path)
    with pytest.raises(ModelError, match=r"dense.gguf: rope_freqs.weight: .* not those of Llama 3"):
        upcycle(write_gguf(dense, tmp_path / "dense.gguf"), tmp_path / "moe", recipe())
    assert not (tmp_path / "moe").exists()


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    upcycle(dense, tmp_path / "whole", recipe())
    upcycle(dense, tmp_path / "shards", recipe(), shard_bytes=200_000)
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    assert all(shard.stat().st_size < 220_000 for shard in shards)
    torch.testing.assert_close(
        logits_of(tmp_path / "shards"), logits_of(tmp_path / "whole"), rtol=0, atol=0
    )


def test_config_says_where_it_comes_from_and_keeps_the_ends_of_answers(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    edit_config(dense, bos_token_id=0)
    upcycle(dense, tmp_path / "moe", recipe(how="perturbed", seed=3))
    before, after = (
        json.loads((path / "config.json").read_text()) for path in (dense, tmp_path / "moe")
    )
    assert after["eos_token_id"] == before["eos_token_id"] and after["bos_token_id"] == 0
    assert after["upcycled"]["source"] == "dense"
    assert (after["upcycled"]["how"], after["upcycled"]["seed"]) == ("perturbed", 3)
