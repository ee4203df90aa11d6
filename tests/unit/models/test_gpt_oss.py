"""gpt-oss: sinks, windows in every other layer, a clamped gate, weights of MXFP4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.unit.models.long_prompt import PROMPT, YARN
from triptych.errors import ModelError
from triptych.models.config import ModelConfig
from triptych.models.families import parse_config
from triptych.models.fields import Fields
from triptych.models.load import load_config, load_model
from triptych.models.moe import Routing
from triptych.models.packed_source import PackedSource
from triptych.models.packed_tensors import from_mxfp4
from triptych.models.rope import YarnScaling
from triptych.models.safetensors_source import SafetensorsSource
from triptych.models.storage import WeightDtype
from triptych.models.units import open_units
from triptych.testing.checkpoints import edit_config, tiny_checkpoint
from triptych.testing.dense_kv import DenseSequence, greedy_tokens
from triptych_kernels import clamped_swiglu_mul
from triptych_kernels.packer import ReferencePacker

VARIANTS: list[dict[str, Any]] = [
    {"rope_parameters": YARN},
    {"rope_parameters": YARN | {"truncate": False}},
    {"attention_bias": False, "num_key_value_heads": 1, "tie_word_embeddings": True},
    {"layer_types": ["full_attention", "full_attention", "sliding_attention"]},
    {"num_experts_per_tok": 1, "num_local_experts": 3, "max_shard_size": "40KB"},
]
GPT_OSS_20B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "quantization_config": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}


def parsed(**changes: Any) -> ModelConfig:
    return parse_config(Fields(GPT_OSS_20B | changes, "config.json"))


def expected_logits(path: Path, token_ids: list[int]) -> Tensor:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM  # untyped
    model = auto.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits.clone()


def logits_of(path: Path, dtype: WeightDtype = "float32") -> Tensor:
    return DenseSequence(load_model(path, dtype=dtype)).extend(PROMPT)


def edit_weights(path: Path, **factors: float) -> None:
    """Multiplies tensors by what their names contain."""
    file = path / "model.safetensors"
    weights = load_file(file)
    for part, factor in factors.items():
        weights |= {name: w * factor for name, w in weights.items() if part in name}
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("options", VARIANTS)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    options: dict[str, Any], tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path, "gpt_oss", **options)
    expected = expected_logits(tmp_path, PROMPT)
    torch.testing.assert_close(logits_of(tmp_path), expected, rtol=2e-5, atol=2e-5)
    tokens = greedy_tokens(load_model(tmp_path, dtype="float32"), PROMPT, 20)
    likeliest = expected_logits(tmp_path, [*PROMPT, *tokens]).argmax(-1)
    assert tokens == likeliest[len(PROMPT) - 1 : -1].tolist()


def test_gates_and_sinks_are_those_of_transformers_where_they_saturate(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "gpt_oss")
    plain = logits_of(tmp_path)
    edit_weights(tmp_path, gate_up_proj=40.0, sinks=20.0)
    expected = expected_logits(tmp_path, PROMPT)
    torch.testing.assert_close(logits_of(tmp_path), expected, rtol=2e-5, atol=2e-5)
    assert (expected - plain).abs().max() > 1


def test_bfloat16_stays_near_transformers_in_float32(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "gpt_oss")
    found, expected = logits_of(tmp_path, "bfloat16"), expected_logits(tmp_path, PROMPT)
    # Where two experts are nearly tied another one is chosen: few rows may be far away.
    distance = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert distance.median() < 0.04
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.8


def test_the_20b_is_read_as_it_is_published() -> None:
    config = parsed()
    assert config.sinks and config.qkv_bias and config.output_bias
    assert config.windows == (128, None) * 12 and config.activation == "clamped_swiglu"
    scaling = config.ropes[0].scaling
    assert isinstance(scaling, YarnScaling) and not scaling.truncate
    assert config.ropes[0].theta == 150_000 and scaling.attention_scaling == pytest.approx(
        1.3466, 1e-4
    )
    assert config.moe is not None and config.moe.router_bias and config.moe.expert_bias
    assert config.moe.routing == Routing(32, 4, "softmax_of_chosen")
    assert parsed(layer_types=None, rope_scaling=None) == config


@pytest.mark.parametrize("key", ["swiglu_limit", "swiglu_alpha"])
def test_another_gate_is_refused(key: str) -> None:
    with pytest.raises(ModelError, match=f"{key}: 5.0 is not supported"):
        parsed(**{key: 5.0})


def test_the_gate_is_clamped_as_transformers_does() -> None:
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    experts: Any = GptOssExperts(GptOssConfig(hidden_size=8, intermediate_size=8))
    gate, up = torch.linspace(-20, 20, 801), torch.linspace(15, -15, 801)
    expected = experts._apply_gate(torch.stack([gate, up], dim=-1).flatten())
    torch.testing.assert_close(clamped_swiglu_mul(gate, up), expected)


def store_as_mxfp4(path: Path) -> None:
    """As gpt-oss is published: experts in blocks [E, outputs, inputs / 32, 16] with scales."""
    file = path / "model.safetensors"
    source, stored = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for name, weight in load_file(file).items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = weight
            continue
        experts, inputs, outputs = weight.shape
        shape = (experts, outputs, inputs // 32)
        stored[f"{name}_blocks"] = torch.randint(
            0, 256, (*shape, 16), generator=source, dtype=torch.uint8
        )
        stored[f"{name}_scales"] = torch.randint(
            120, 125, shape, generator=source, dtype=torch.uint8
        )
    save_file(stored, file, metadata={"format": "pt"})
    edit_config(path, quantization_config=GPT_OSS_20B["quantization_config"])


def unpack_mxfp4(packed: Path, plain: Path) -> None:
    """The same numbers as transformers unpacks them, in the other layout."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    weights = load_file(packed / "model.safetensors")
    for name in [n for n in weights if n.endswith("_blocks")]:
        whole = name.removesuffix("_blocks")
        parts = (weights.pop(f"{whole}_{part}") for part in ("blocks", "scales"))
        unpacked = convert_moe_packed_tensors(*parts, dtype=torch.float32)
        weights[whole] = unpacked.contiguous()
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """The same model in MXFP4 and in plain numbers."""
    packed, plain = (
        tiny_checkpoint(tmp_path / name, "gpt_oss", intermediate_size=96)
        for name in ("packed", "plain")
    )
    store_as_mxfp4(packed)
    unpack_mxfp4(packed, plain)
    return packed, plain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_weights_of_mxfp4_are_the_numbers_that_they_stand_for(
    both: tuple[Path, Path], dtype: WeightDtype
) -> None:
    packed, plain = both
    assert load_config(packed) == load_config(plain)
    assert torch.equal(logits_of(packed, dtype), logits_of(plain, dtype))


def test_a_model_of_mxfp4_computes_what_transformers_computes(both: tuple[Path, Path]) -> None:
    expected = expected_logits(both[1], PROMPT)
    torch.testing.assert_close(logits_of(both[0]), expected, rtol=1e-4, atol=1e-4)


def test_of_a_packed_stack_only_the_wanted_expert_is_unpacked(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[int | None] = []
    raw = SafetensorsSource.raw

    def noted(self: SafetensorsSource, name: str, entry: int | None = None) -> Tensor:
        entries.append(entry)
        return raw(self, name, entry)

    monkeypatch.setattr(SafetensorsSource, "raw", noted)
    rows = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    answers = []
    for path in both:
        units = open_units(path, dtype="float32", group=32, packer=ReferencePacker())
        answers.append(units.read(1, 5)(rows))
    assert torch.equal(*answers)
    assert set(entries) == {5}


def test_a_packed_stack_is_also_read_whole(both: tuple[Path, Path]) -> None:
    packed, plain = (PackedSource(SafetensorsSource(path)) for path in both)
    assert set(packed.names()) == set(plain.names())
    name = "model.layers.0.mlp.experts.down_proj"
    assert packed.shape(name) == plain.shape(name) == (8, 96, 64)
    assert torch.equal(packed.read(name).float(), plain.read(name))


def test_every_value_of_four_bits_is_known() -> None:
    blocks = torch.arange(16, dtype=torch.uint8).mul(17)[None, None]  # each value twice
    values = from_mxfp4(blocks, torch.tensor([[128]], dtype=torch.uint8))
    half = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0])
    expected = torch.cat([half, -half]).repeat_interleave(2)[None]
    assert torch.equal(values.float(), expected)
    mixed = from_mxfp4(torch.full((1, 1, 16), 0x21, dtype=torch.uint8), torch.tensor([[127]]))
    assert mixed[0, :2].tolist() == [0.5, 1.0]
