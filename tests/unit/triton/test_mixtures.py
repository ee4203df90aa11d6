"""Mixtures of experts on `device: cuda`: what the CPU says, and a row's bits are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner, make_runner
from triptych.engine.storage import plain_storage
from triptych.models.load import load_model
from triptych.models.storage import WeightDtype
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.on_triton import (
    TINY,
    knows_fp8,
    layout_of,
    sequence_of,
    triton_model,
    triton_runner,
)
from triptych_kernels.cpu.linear import NativePacker
from triptych_kernels.cpu.native import native

PROMPT = torch.randint(3, 60, (7,), generator=torch.Generator().manual_seed(4)).tolist()
OTHER = [9, 8, 40]
ONE_LAYER = TINY | {"num_hidden_layers": 1}
# Sliding windows; shared experts behind a gate; dense layers among mixtures and head norms;
# multipliers and a softmax of the chosen; biases of routers and experts, sinks.
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen2_moe": {"num_hidden_layers": 2},
    "qwen3_moe": {"num_hidden_layers": 2},
    "granitemoeshared": {},
    "gpt_oss": {},
}


def cpu_runner(path: Path) -> Runner:
    library = native()
    packer = None if library is None else NativePacker(library)
    model = load_model(path, dtype="float32", packer=packer)
    return make_runner(model, plain_storage(layout_of(model), 16))


def greedy(runner: Runner, count: int) -> list[int]:
    """Tokens behind the prompt, computed as one chunk, then one by one."""
    sequence, start = sequence_of(PROMPT, [5]), 0
    for _ in range(count):
        hidden = runner.forward([RowJob(sequence, start, len(sequence.tokens))])
        start = len(sequence.tokens)
        sequence.append(int(runner.logits(hidden)[-1].argmax()))
    return sequence.tokens[len(PROMPT) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_says_what_it_says_on_the_cpu(
    family: str, tmp_path: Path, device: torch.device
) -> None:
    tiny_checkpoint(tmp_path, family, **ONE_LAYER | FAMILIES[family])
    ours, theirs = triton_runner(triton_model(tmp_path, device), device), cpu_runner(tmp_path)
    job = RowJob(sequence_of(PROMPT, [3]), 0, len(PROMPT))
    rows, expected = ours.forward_all([job]), theirs.forward_all([job])
    torch.testing.assert_close(rows.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert greedy(ours, 2) == greedy(theirs, 2)


def test_who_else_is_sent_to_an_expert_changes_no_bit(tmp_path: Path, device: torch.device) -> None:
    """In a chunk, alone; decoded in a bucket with others; and beside a chunk of another."""
    tiny_checkpoint(tmp_path, "mixtral", **ONE_LAYER)
    runner = triton_runner(triton_model(tmp_path, device, "bfloat16"), device, kv="bfloat16")
    first, second = sequence_of(PROMPT, [5]), sequence_of(OTHER, [1], "b")
    end = len(PROMPT)
    whole = runner.forward([RowJob(first, 0, end)])[0].clone()
    runner.forward([RowJob(second, 0, 2)])
    step = RowJob(first, end - 1, end)
    assert torch.equal(runner.forward([step])[0], whole)
    assert torch.equal(runner.forward([RowJob(second, 2, 3), step])[1], whole)
    assert torch.equal(runner.forward([RowJob(second, 0, 3), step])[1], whole)


@pytest.mark.parametrize("weights", ["float32", "int4"])
def test_experts_lie_in_memory_once(
    weights: WeightDtype, tmp_path: Path, device: torch.device
) -> None:
    tiny_checkpoint(tmp_path, "mixtral", **ONE_LAYER)
    model = triton_model(tmp_path, device, weights)
    triton_runner(model, device)
    units: Any = model.experts.units[0]  # type: ignore[attr-defined]
    matrices = [unit.gate_up.weight for unit in units]
    if weights == "int4":
        matrices = [matrix.q for matrix in matrices]
    assert len({matrix.untyped_storage().data_ptr() for matrix in matrices}) == 1


@pytest.mark.parametrize("weights", ["fp8", "int4"])
def test_smaller_experts_compute_near_the_reference(
    weights: WeightDtype, tmp_path: Path, device: torch.device
) -> None:
    if weights == "fp8" and not knows_fp8(device):
        pytest.skip("this GPU knows no e4m3")
    tiny_checkpoint(tmp_path, "mixtral", **ONE_LAYER)
    ours = triton_runner(triton_model(tmp_path, device, weights), device)
    plain = load_model(tmp_path, dtype=weights)
    theirs = make_runner(plain, plain_storage(layout_of(plain), 16))
    job = RowJob(sequence_of(OTHER, [3]), 0, len(OTHER))
    rows, expected = ours.forward_all([job]).cpu(), theirs.forward_all([job])
    assert (rows - expected).norm() / expected.norm() < (0.1 if weights == "fp8" else 0.03)
