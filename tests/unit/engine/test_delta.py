"""Gated delta layers (Qwen3-Next): their states lie in the blocks, and one answer holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.choosing import (
    BLOCK_TOKENS,
    SIZES,
    answers,
    bytes_of,
    prompt,
    prompts,
    rows_in_chunks,
)
from triptych.engine.rows import RowJob
from triptych.engine.runner import make_runner
from triptych.engine.storage import KvStorage, plain_storage
from triptych.errors import ModelError
from triptych.models.model import Model
from triptych.request import SamplingParams
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.compute_modes import MODES
from triptych.worker.boot import kv_layout

LENGTH = 103


@pytest.fixture(params=["torch", "float32", "bfloat16", "int4"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("delta"), "qwen3_next", **SIZES)


def storage_of(model: Model, mode: str) -> KvStorage:
    layout = kv_layout(model.config, BLOCK_TOKENS, MODES[mode][1])
    return plain_storage(layout, layout.blocks_for(LENGTH))


@pytest.mark.parametrize("cuts", [[1], [16], [15, 17], [3, 4, 50, 102], list(range(1, LENGTH))])
def test_no_cut_of_a_prompt_changes_a_bit(model: Model, mode: str, cuts: list[int]) -> None:
    whole, cut = (
        rows_in_chunks(make_runner(model, storage_of(model, mode)), prompt(LENGTH), edges)
        for edges in ([], cuts)
    )
    assert torch.equal(cut, whole)


def test_a_copy_of_the_blocks_is_all_that_the_next_rows_need(model: Model, mode: str) -> None:
    sequence, here = prompt(LENGTH), storage_of(model, mode)
    runner = make_runner(model, here)
    for known in (LENGTH - 1, 96, 95):
        wanted = rows_in_chunks(make_runner(model, storage_of(model, mode)), sequence)[known:]
        runner.forward([RowJob(sequence, 0, known)])
        copy = KvStorage(here.layout, bytes_of(here).copy())
        found = make_runner(model, copy).forward_all([RowJob(sequence, known, LENGTH)])
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("mode", ["torch"])
def test_rows_that_a_state_has_taken_in_already_are_refused(model: Model, mode: str) -> None:
    runner, sequence = make_runner(model, storage_of(model, mode)), prompt(LENGTH)
    runner.forward([RowJob(sequence, 0, 40)])
    with pytest.raises(RuntimeError, match="behind 40 tokens of a, wanted is that behind 39"):
        runner.forward([RowJob(sequence, 39, 41)])


@pytest.mark.parametrize(
    "settings",
    [{"chunk_tokens": 16}, {"chunk_tokens": 50}, {"cache": False}, {"max_running": 2}],
    ids=str,
)
def test_batches_chunks_and_cached_prefixes_change_no_token(
    make_home: Callable[..., Any], settings: dict[str, Any]
) -> None:
    alone = []
    for index, tokens in enumerate(prompts()):
        home = make_home(chunk_tokens=512)
        home.submit(tokens, _params(index))
        alone += home.run()
    home = make_home(**settings)
    assert answers(home) == alone
    assert answers(home) == alone
    if settings.get("cache", True):
        assert sum(sequence.num_cached for sequence in home.sequences) > 0


def test_preemption_changes_no_token(make_home: Callable[..., Any]) -> None:
    roomy, tight = make_home(), make_home(blocks=7)
    for home in (roomy, tight):
        for index in range(3):
            tokens = [7 + index, *prompts()[3][:19]]
            home.submit(tokens, SamplingParams(seed=5, max_tokens=30, ignore_eos=True))
    assert tight.run() == roomy.run()
    assert tight.loop.scheduler.num_preemptions > 0


@pytest.mark.parametrize("mode", ["torch"])
def test_a_layer_of_a_block_is_as_large_as_its_state(model: Model, mode: str) -> None:
    delta = model.config.delta
    assert delta is not None
    values, mixed = 4 * 16, 2 * 2 * 12 + 4 * 16
    assert delta.state_bytes == 4 * (1 + 3 * mixed + values * 12)
    assert kv_layout(model.config, 1, "float32").layer_bytes == delta.state_bytes
    wide = kv_layout(model.config, 512, "float32")
    assert wide.layer_bytes == 2 * wide.half_bytes > delta.state_bytes


@pytest.mark.parametrize("mode", ["torch"])
def test_device_cuda_refuses_it_by_name(model: Model) -> None:
    pytest.importorskip("triton")
    from triptych.models.triton_model import check_config

    with pytest.raises(ModelError, match=r"gated delta layers .* yet, and qwen3_next has them"):
        check_config(model.config)


def _params(index: int) -> SamplingParams:
    temperature = 0.0 if index % 3 == 0 else 0.9
    return SamplingParams(seed=index, max_tokens=20, temperature=temperature, ignore_eos=True)
