"""Mixtures of experts compute what transformers computes, and rows do not notice each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.unit.models.long_prompt import PROMPT, YARN
from triptych.models.build import build_model
from triptych.models.checkpoint import open_checkpoint
from triptych.models.layers import DenseFfn, LocalExperts
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.models.sources import CheckedSource
from triptych.models.storage import WeightDtype
from triptych.models.units import num_units, open_units
from triptych.models.weights import WeightReader
from triptych.testing.checkpoints import (
    MIXTURES,
    WINDOW,
    edit_config,
    tiny_checkpoint,
)
from triptych.testing.dense_kv import DenseSequence, greedy_tokens
from triptych.testing.tiny_mixture import tiny_mixture
from triptych_kernels import combine
from triptych_kernels.packer import ReferenceLinear, ReferencePacker

DTYPES: tuple[WeightDtype, ...] = ("float32", "bfloat16", "int8", "int4")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in MIXTURES),
    ("mixtral", {"sliding_window": None, "num_experts_per_tok": 8, "max_shard_size": "40KB"}),
    ("mixtral", {"num_experts_per_tok": 1, "tie_word_embeddings": True, "head_dim": 24}),
    ("qwen2_moe", {"norm_topk_prob": True, "qkv_bias": False, "use_sliding_window": False}),
    ("qwen2_moe", {"mlp_only_layers": [], "decoder_sparse_step": 2, "max_window_layers": 1}),
    ("qwen2_moe", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}),
    ("qwen3_moe", {"norm_topk_prob": False, "attention_bias": True, "mlp_only_layers": None}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": WINDOW}),
    ("qwen3_moe", {"rope_parameters": YARN, "mlp_only_layers": [0, 2]}),
    ("olmoe", {"norm_topk_prob": True, "attention_bias": True, "num_key_value_heads": None}),
    ("granitemoe", {"attention_bias": True, "tie_word_embeddings": True}),
    ("granitemoeshared", {"shared_intermediate_size": 0, "num_experts_per_tok": 8}),
]


class RowwiseKv:
    """Attends to nothing: hands each row's own query back."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        return q


class RecordingExperts:
    """Remembers who is asked for what; answers what another one does."""

    def __init__(self, inner: LocalExperts) -> None:
        self._inner = inner
        self.calls: list[tuple[int, Tensor | None, Tensor | None]] = []

    def __call__(
        self, layer: int, rows: Tensor, ids: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        self.calls.append((layer, ids, weights))
        return self._inner(layer, rows, ids, weights)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of a family, written once."""
    folder = tmp_path_factory.mktemp("mixtures")

    def path(family: str) -> Path:
        if not (folder / family).exists():
            tiny_checkpoint(folder / family, family)
        return folder / family

    return path


def transformers_model(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM  # untyped
    return auto.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()


def expected_logits(model: Any, token_ids: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits.float()


def logits_of(model: Model, token_ids: list[int]) -> Tensor:
    return DenseSequence(model).extend(token_ids)


@pytest.mark.parametrize(("family", "options"), VARIANTS)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path, family, **options)
    theirs, ours = transformers_model(tmp_path), load_model(tmp_path, dtype="float32")
    expected = expected_logits(theirs, PROMPT)
    assert expected.std() > 0.1, "the checkpoint must say something"
    torch.testing.assert_close(logits_of(ours, PROMPT), expected, rtol=2e-5, atol=2e-5)
    tokens = greedy_tokens(ours, PROMPT, 12 if options else 64)
    likeliest = expected_logits(theirs, [*PROMPT, *tokens]).argmax(-1)
    assert tokens == likeliest[len(PROMPT) - 1 : -1].tolist()


@pytest.mark.parametrize("family", MIXTURES)
def test_bfloat16_stays_near_transformers_in_bfloat16(
    family: str, checkpoint: Callable[[str], Path]
) -> None:
    expected = expected_logits(transformers_model(checkpoint(family), torch.bfloat16), PROMPT)
    found = logits_of(load_model(checkpoint(family), dtype="bfloat16"), PROMPT)
    # Where two experts are nearly tied another one is chosen: few rows may be far away.
    distance = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert distance.median() < 0.04
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.8


def test_a_tiny_mixture_is_what_transformers_thinks_it_is(tmp_path: Path) -> None:
    tiny_mixture(tmp_path)
    expected = expected_logits(transformers_model(tmp_path), PROMPT)
    found = logits_of(load_model(tmp_path, dtype="float32"), PROMPT)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_qwen_3_may_spell_the_number_of_experts_as_of_old(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "qwen3_moe")
    new = load_model(tmp_path, dtype="float32").config
    edit_config(tmp_path, num_local_experts=None, num_experts=16)
    assert load_model(tmp_path, dtype="float32").config == new


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", MIXTURES)
def test_a_row_does_not_notice_its_neighbours(
    family: str, dtype: WeightDtype, checkpoint: Callable[[str], Path]
) -> None:
    model = load_model(checkpoint(family), dtype=dtype)
    ids, positions = torch.arange(192), torch.arange(192) * 3
    together = model.forward(ids, positions, RowwiseKv())
    for start, end in ((16, 32), (0, 176)):
        alone = model.forward(ids[start:end], positions[start:end], RowwiseKv())
        assert torch.equal(together[start:end], alone)
    shuffled = torch.randperm(192, generator=torch.Generator().manual_seed(5))
    mixed = model.forward(ids[shuffled], positions[shuffled], RowwiseKv())
    assert torch.equal(mixed, together[shuffled])


def test_every_layer_asks_its_experts_as_it_must(checkpoint: Callable[[str], Path]) -> None:
    model = load_model(checkpoint("qwen2_moe"), dtype="bfloat16")
    assert isinstance(model.experts, LocalExperts)
    model.experts = recorder = RecordingExperts(model.experts)
    model.forward(torch.arange(32), torch.arange(32), RowwiseKv())
    assert [layer for layer, _, _ in recorder.calls] == [0, 1, 2]
    assert recorder.calls[1][1:] == (None, None)
    for layer, ids, weights in (recorder.calls[0], recorder.calls[2]):
        assert ids is not None and weights is not None, layer
        assert ids.dtype == torch.int32 and weights.dtype == torch.float32
        assert ids.shape == weights.shape == (32, 3)
        assert bool((ids[:, 1:] > ids[:, :-1]).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_routers_and_gates_are_float32_in_every_dtype(
    dtype: WeightDtype, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint("qwen2_moe")
    mixture = load_model(path, dtype=dtype).layers[0].mixture
    stored = load_file(path / "model.safetensors")
    assert mixture is not None and mixture.shared_gate is not None
    for linear, name in ((mixture.router, "gate"), (mixture.shared_gate, "shared_expert_gate")):
        weight = stored[f"model.layers.0.mlp.{name}.weight"]
        assert torch.equal(linear.row(torch.arange(len(weight))), weight)


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_that_live_elsewhere_are_not_even_read(
    family: str, tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    weights = load_file(checkpoint(family) / "model.safetensors")
    experts = ("mlp.experts.", "moe.experts.", "moe.input_linear", "moe.output_linear")
    at_home = {n: w for n, w in weights.items() if not any(part in n for part in experts)}
    assert len(at_home) < len(weights)
    save_file(at_home, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((checkpoint(family) / "config.json").read_bytes())
    config, source = open_checkpoint(tmp_path)
    reader = WeightReader(CheckedSource(source), "float32", 32, ReferencePacker())
    somebody: Any = object()
    model = build_model(config, reader, somebody)
    assert config.moe is not None
    for layer, is_mixture in zip(model.layers, config.moe.layers, strict=True):
        assert (layer.mixture is not None) == is_mixture
        if layer.mixture is not None:
            assert (layer.mixture.shared is not None) == (config.moe.shared_size > 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "granitemoeshared"])
def test_units_read_one_by_one_answer_as_the_whole_model(
    family: str, dtype: WeightDtype, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint(family)
    model = load_model(path, dtype=dtype)
    wanted = logits_of(model, PROMPT)
    assert isinstance(model.experts, LocalExperts)
    reader = open_units(path, dtype=dtype, group=32, packer=ReferencePacker())
    units = [
        [reader.read(layer, expert) for expert in range(num_units(reader.config, layer))]
        for layer in range(reader.config.num_layers)
    ]
    model.experts = LocalExperts(units, model.experts.cell_dtype)
    assert torch.equal(logits_of(model, PROMPT), wanted)


@pytest.mark.parametrize("cell_dtype", [torch.float32, torch.bfloat16])
def test_what_an_expert_answers_is_rounded_before_it_is_weighed(cell_dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(2)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    units = [
        DenseFfn(ReferenceLinear(noise(48, 64)), ReferenceLinear(noise(64, 24)), "silu")
        for _ in range(4)
    ]
    rows, weights = noise(16, 64), noise(16, 2).abs()
    ids = torch.tensor([[0, 2], [1, 2], [0, 1], [0, 2]] * 4, dtype=torch.int32)
    everybody = torch.stack([unit(rows) for unit in units], dim=1)  # [M, E, H]
    chosen = everybody[torch.arange(16)[:, None], ids].flatten(0, 1)
    found = LocalExperts([units], cell_dtype)(0, rows, ids, weights)
    assert torch.equal(found, combine(chosen.to(cell_dtype), weights))
    assert torch.equal(found, combine(chosen, weights)) == (cell_dtype == torch.float32)


@pytest.mark.parametrize(("dtype", "near"), [("int8", 0.03), ("int4", 0.45)])
def test_quantised_mixtures_stay_near_and_say_what_they_cost(
    dtype: WeightDtype, near: float, checkpoint: Callable[[str], Path]
) -> None:
    exact = logits_of(load_model(checkpoint("granitemoeshared"), dtype="float32"), PROMPT)
    model = load_model(checkpoint("granitemoeshared"), dtype=dtype)
    wrong = (logits_of(model, PROMPT) - exact).norm(dim=1) / exact.norm(dim=1)
    assert 0 < wrong.median() < near
    # Attention's 2, two of each of 8 experts and of the shared one, in 3 layers; the vocabulary's.
    assert model.quantisation is not None
    assert model.quantisation.requantised == 3 * (4 + 2 * 8 + 2) + 2
