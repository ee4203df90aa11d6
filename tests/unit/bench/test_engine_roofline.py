"""The limits that the engine's figures are divided by, against sums done by hand."""

from __future__ import annotations

import pytest

from bench.engine_roofline import Rates, Sizes, decode_seconds, model_sizes, prefill_seconds
from triptych.models.config import ModelConfig
from triptych.models.rope import Rope

MEMORY_BOUND = Rates(read_gb_s=1.0, tflop_s=1e6)
COMPUTE_BOUND = Rates(read_gb_s=1e9, tflop_s=1.0)


@pytest.fixture
def sizes() -> Sizes:
    return Sizes(
        layer_weights=100, head_weights=20, kv_bytes=6, attention_flops=12, weight_bytes=2.0
    )


def test_smollm2_has_the_135_million_weights_that_its_name_says() -> None:
    model = ModelConfig(
        architecture="llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        max_model_len=8192,
        rms_norm_eps=1e-5,
        ropes=(Rope(1e5),) * 30,
        windows=(None,) * 30,
        attention_scale=0.125,
        eos_token_ids=(2,),
        tie_word_embeddings=True,
        activation="silu",
        qkv_bias=False,
        output_bias=False,
        ffn_bias=False,
    )
    sizes = model_sizes(model, 16.0, kv_item_bytes=2)
    assert sizes.layer_weights + sizes.head_weights == 134_479_872
    assert sizes.kv_bytes == 23_040  # 30 layers × (3 keys + 3 values) × 64 × 2 bytes
    assert sizes.attention_flops == 30 * 4 * 9 * 64
    assert sizes.weight_bytes == 2.0


def test_a_decode_step_reads_the_weights_once_and_the_kv_of_every_sequence(sizes: Sizes) -> None:
    one = decode_seconds(sizes, MEMORY_BOUND, batch=1, context=10)
    four = decode_seconds(sizes, MEMORY_BOUND, batch=4, context=10)
    assert one == pytest.approx((240 + 60) / 1e9)
    assert four == pytest.approx((240 + 4 * 60) / 1e9)


def test_rows_of_one_sequence_share_its_kv_but_not_the_arithmetic(sizes: Sizes) -> None:
    def step(rates: Rates, rows: int) -> float:
        return decode_seconds(sizes, rates, batch=1, context=10, rows=rows)

    assert step(MEMORY_BOUND, 5) == step(MEMORY_BOUND, 1)
    assert step(COMPUTE_BOUND, 5) == pytest.approx(5 * (2 * 120 + 10 * 12) / 1e12)


def test_a_prompt_costs_its_arithmetic_and_one_row_of_the_head(sizes: Sizes) -> None:
    seen = 1 + 2 + 3 + 4
    flops = 2 * (4 * 100 + 20) + seen * 12
    assert prefill_seconds(sizes, COMPUTE_BOUND, 4) == pytest.approx(flops / 1e12)
