"""Whole models on the native kernels: what plain torch computes, one answer however it is cut."""

from __future__ import annotations

import functools
import itertools
import math
import os
import statistics
import threading
import unittest.mock
import warnings
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.engine.backend import choose_backend
from triptych.engine.native_runner import NativeRunner
from triptych.engine.reference_runner import ReferenceRunner
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner
from triptych.engine.sequence import Sequence
from triptych.engine.storage import KvStorage, plain_storage
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.models.taps import LayerTap, StateTap
from triptych.testing.checkpoints import FAMILIES, MIXTURES, VOCAB_SIZE, WINDOW, tiny_checkpoint
from triptych.testing.compute_modes import MODES
from triptych.testing.distant import OnTheSpot
from triptych.testing.native_kernels import libraries, threads
from triptych.worker.boot import kv_layout

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

NATIVE_MODES = [name for name, (_, _, in_torch) in MODES.items() if not in_torch]
BLOCK_TOKENS = 16
LENGTH = 5 * WINDOW + 5
ODD_SIZES: dict[str, Any] = {
    "hidden_size": 72,
    "intermediate_size": 90,
    "head_dim": 20,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "attention_bias": True,
    "mlp_bias": True,
}
ODD_LATENT: dict[str, Any] = {
    "q_lora_rank": None,
    "qk_nope_head_dim": 14,
    "qk_rope_head_dim": 6,
    "v_head_dim": 10,
    "attention_bias": True,
    "rope_interleave": False,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", ODD_SIZES),
    ("llama", {"tie_word_embeddings": True, "max_position_embeddings": 8192}),
    ("qwen3", {"attention_bias": True, "num_key_value_heads": 1}),
    *((family, {}) for family in MIXTURES),
    ("gemma3", {"attn_logit_softcapping": 1.5, "hidden_size": 80, "intermediate_size": 56}),
    ("deepseek_v3", {"first_k_dense_replace": 3}),
    ("deepseek_v3", {"first_k_dense_replace": 3, **ODD_LATENT}),
    ("deepseek_v32", {"index_n_heads": 19, "index_head_dim": 14, "index_topk": 9}),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """checkpoint(number of a variant) → its directory."""

    @functools.cache
    def make(variant: int) -> Path:
        family, overrides = VARIANTS[variant]
        return tiny_checkpoint(tmp_path_factory.mktemp(family), family, **overrides)

    return make


def native_model(path: Path, mode: str, **options: Any) -> Model:
    weights, kv, _ = MODES[mode]
    return load_model(path, dtype=weights, packer=choose_backend(weights, kv).packer, **options)


def storage_of(model: Model, kv_dtype: str, num_tokens: int = 256) -> KvStorage:
    layout = kv_layout(model.config, BLOCK_TOKENS, kv_dtype)
    return plain_storage(layout, layout.blocks_for(num_tokens))


def native_runner(path: Path, mode: str, *, num_tokens: int = 256, **options: Any) -> NativeRunner:
    model = native_model(path, mode, **options)
    return NativeRunner(model, storage_of(model, MODES[mode][1], num_tokens))


def prompt(length: int = LENGTH, *, seed: int = 0, first_block: int = 0) -> Sequence:
    """Random tokens; its blocks go down from behind to `first_block`."""
    source = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCAB_SIZE, (length,), generator=source).tolist()
    count = -(-length // BLOCK_TOKENS)
    blocks = [first_block + count - 1 - index for index in range(count)]
    return Sequence("a", tokens, b"root", BLOCK_TOKENS, blocks=blocks)


def logits_in_chunks(runner: Runner, sequence: Sequence, cuts: Items[int]) -> Tensor:
    """Logits behind every token, [tokens, V]."""
    edges = itertools.pairwise([0, *cuts, len(sequence.tokens)])
    hidden = [runner.forward_all([RowJob(sequence, *edge)]) for edge in edges]
    return runner.logits(torch.cat(hidden)).clone()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_every_family_computes_what_torch_computes(checkpoint: Any, variant: int) -> None:
    path = checkpoint(variant)
    model = load_model(path, dtype="float32")
    reference = ReferenceRunner(model, storage_of(model, "float32"))
    found = logits_in_chunks(native_runner(path, "float32"), prompt(), [])
    torch.testing.assert_close(
        found, logits_in_chunks(reference, prompt(), []), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("mode", NATIVE_MODES)
def test_small_types_stay_near_the_same_weights_in_torch(
    checkpoint: Any, mode: str, variant: int
) -> None:
    path = checkpoint(variant)
    model = load_model(path, dtype=MODES[mode][0])
    reference = ReferenceRunner(model, storage_of(model, "float32"))
    found = logits_in_chunks(native_runner(path, mode), prompt(), [])
    wanted = logits_in_chunks(reference, prompt(), [])
    if model.config.moe is None:
        assert relative_error(found, wanted) < 0.06
    else:  # some rows, where two experts are nearly tied, go to the other one
        errors = [relative_error(*rows) for rows in zip(found, wanted, strict=True)]
        assert statistics.median(errors) < 0.06


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("mode", NATIVE_MODES)
def test_chunks_and_threads_change_no_bit(checkpoint: Any, mode: str, variant: int) -> None:
    runner = native_runner(checkpoint(variant), mode)
    whole = logits_in_chunks(runner, prompt(), [])
    assert whole.isfinite().all()
    cuts = [[1], [16, 17, 33], [LENGTH - 1], [5, 10, 15, 20, 40], range(1, LENGTH)]
    for number, cut in enumerate(cuts):
        with threads(LIBRARIES[0], 1 + number % 3):
            assert torch.equal(logits_in_chunks(runner, prompt(), cut), whole)


@pytest.mark.parametrize("variant", [0, 1, 4, 5, 19, 21])
@pytest.mark.parametrize("mode", NATIVE_MODES)
def test_sequences_in_one_batch_do_not_meet(checkpoint: Any, mode: str, variant: int) -> None:
    runner = native_runner(checkpoint(variant), mode)
    prompts = [
        prompt(length, seed=length, first_block=first)
        for length, first in ((45, 0), (1, 3), (17, 4), (70, 6))
    ]
    alone = [logits_in_chunks(runner, sequence, []) for sequence in prompts]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        jobs = [RowJob(prompts[i], 0, len(prompts[i].tokens)) for i in order]
        logits = runner.logits(runner.forward_all(jobs))
        assert torch.equal(logits, torch.cat([alone[i] for i in order]))


@pytest.mark.parametrize("mode", NATIVE_MODES)
def test_only_rows_that_end_a_sequence_come_back(checkpoint: Any, mode: str) -> None:
    runner = native_runner(checkpoint(0), mode)
    first, second, third = (prompt(20, seed=i, first_block=2 * i) for i in range(3))
    jobs = [RowJob(first, 0, 20), RowJob(second, 0, 7), RowJob(third, 0, 20)]
    rows = runner.forward_all(jobs)
    assert torch.equal(runner.forward(jobs), rows[[19, 46]])
    assert torch.equal(runner.forward([RowJob(first, 19, 20)]), rows[19:20])
    assert runner.forward([RowJob(second, 0, 7)]).shape == (0, rows.shape[1])


@pytest.mark.parametrize("variant", [0, 4])
@pytest.mark.parametrize("mode", NATIVE_MODES)
def test_a_layer_is_final_when_it_is_told_and_telling_changes_no_bit(
    checkpoint: Any, mode: str, variant: int
) -> None:
    plain, told = (native_runner(checkpoint(variant), mode) for _ in range(2))
    job = RowJob(prompt(), 0, LENGTH)
    wanted = plain.forward([job])
    layers: list[int] = []
    early: list[Tensor] = []

    def note(index: int, _: Tensor) -> None:
        layers.append(index)
        early.append(layer_bytes(told, index))

    every = range(plain.model.config.num_layers)
    assert torch.equal(told.forward([job], [LayerTap(every, note)]), wanted)
    assert layers == list(every)
    assert all(torch.equal(early[index], layer_bytes(plain, index)) for index in layers)


@pytest.mark.parametrize("variant", [0, 4])
@pytest.mark.parametrize("mode", NATIVE_MODES)
@pytest.mark.parametrize("stops", [False, True], ids=["on the way", "between stops"])
def test_states_are_copied_as_they_stand_behind_their_layers(
    checkpoint: Any, mode: str, variant: int, stops: bool
) -> None:
    told, copied = (native_runner(checkpoint(variant), mode) for _ in range(2))
    job, last = RowJob(prompt(), 0, LENGTH), told.model.config.num_layers - 1
    wanted: list[Tensor] = []
    answer = told.forward([job], [LayerTap([0, last], lambda _, h: wanted.append(h.bfloat16()))])
    tap = StateTap([0, last])
    others = [LayerTap([last], lambda *_: None)] if stops else []
    assert torch.equal(copied.forward([job], [*others, tap]), answer)
    assert tap.states is not None
    assert torch.equal(tap.states, torch.stack(wanted, 1))


def test_states_are_copied_when_somebody_else_computes_ffns(checkpoint: Any) -> None:
    local = native_runner(checkpoint(0), NATIVE_MODES[0])
    elsewhere = OnTheSpot(LIBRARIES[0], local.model, lanes=2)
    remote = native_runner(checkpoint(0), NATIVE_MODES[0], distant=elsewhere)
    taps = [StateTap([0, 1]), StateTap([0, 1])]
    for runner, tap in zip((local, remote), taps, strict=True):
        runner.forward([RowJob(prompt(), 0, LENGTH)], [tap])
    ours, theirs = (tap.states for tap in taps)
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)


def layer_bytes(runner: NativeRunner, layer: int) -> Tensor:
    storage = runner._storage
    both = (storage.keys(layer), storage.values(layer))
    return torch.stack([part.contiguous().view(torch.uint8) for part in both])


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("mode", NATIVE_MODES)
def test_ffns_computed_by_somebody_else_change_no_bit(
    checkpoint: Any, mode: str, variant: int
) -> None:
    path = checkpoint(variant)
    local = native_runner(path, mode)
    elsewhere = OnTheSpot(LIBRARIES[0], local.model)
    remote = native_runner(path, mode, distant=elsewhere)
    wanted = logits_in_chunks(local, prompt(), [])
    for cuts, elsewhere.lanes in (([], 1), ([1, 20, 21], 1), ([], 2), ([2, 37], 3)):
        assert torch.equal(logits_in_chunks(remote, prompt(), cuts), wanted)
    assert elsewhere.layers and elsewhere.most_away == 2


def test_a_sequence_may_outgrow_the_tables_of_positions(checkpoint: Any) -> None:
    runner = native_runner(checkpoint(6), "bfloat16", num_tokens=4400)
    sequence = prompt(4300)
    grown = logits_in_chunks(runner, sequence, [4000, 4090, 4096, 4097, 4200])
    assert torch.equal(logits_in_chunks(runner, sequence, [2500]), grown)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("mode", NATIVE_MODES)
def test_a_sequence_of_broken_numbers_harms_no_other(
    checkpoint: Any, mode: str, bad: float
) -> None:
    runner = native_runner(checkpoint(0), mode)
    healthy, broken = prompt(20, seed=5, first_block=4), prompt(18, seed=4)
    alone = logits_in_chunks(runner, healthy, [])
    embed = runner._native.embed

    def embed_badly(token_ids: Tensor) -> Tensor:
        hidden = embed(token_ids)
        hidden[10] = bad
        return hidden

    with unittest.mock.patch.object(runner._native, "embed", embed_badly):
        hidden = runner.forward_all([RowJob(broken, 0, 18), RowJob(healthy, 0, 20)])
    logits = runner.logits(hidden).clone()
    assert torch.equal(logits[18:], alone)
    assert not logits[10:18].isfinite().any()  # they see the broken position
    assert torch.equal(logits[:10], logits_in_chunks(runner, broken, [])[:10])


def test_two_threads_compute_side_by_side(checkpoint: Any) -> None:
    runners = [native_runner(checkpoint(v), m) for v, m in ((0, "bfloat16"), (5, "int4"))]
    wanted = [logits_in_chunks(runner, prompt(), []) for runner in runners]
    wrong: list[int] = []

    def compute(number: int) -> None:
        for _ in range(20):
            if not torch.equal(logits_in_chunks(runners[number], prompt(), [7]), wanted[number]):
                wrong.append(number)

    with threads(LIBRARIES[0], 2):
        callers = [threading.Thread(target=compute, args=(number,)) for number in (0, 1)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not wrong


def test_a_forked_child_runs_the_same_model(checkpoint: Any) -> None:
    runner = native_runner(checkpoint(0), "bfloat16")
    wanted = logits_in_chunks(runner, prompt(), [])
    with threads(LIBRARIES[0], 2), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(logits_in_chunks(runner, prompt(), [9]), wanted) else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("mode", NATIVE_MODES)
def test_a_tap_sees_the_rows_as_they_are_between_two_layers(checkpoint: Any, mode: str) -> None:
    runner = native_runner(checkpoint(0), mode)
    last = runner.model.config.num_layers - 1
    seen: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor) -> None:
        seen[layer] = hidden.clone()

    job = RowJob(prompt(), 0, LENGTH)
    wanted = runner.forward([job], [LayerTap([0, last], keep)])
    assert seen.keys() == {0, last} and not torch.equal(seen[0], seen[last])
    norm = runner.model.norm(seen[last][-1:])
    torch.testing.assert_close(norm.to(wanted.dtype), wanted, rtol=1e-2, atol=1e-2)
