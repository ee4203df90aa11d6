"""Sinks, and heads out of low ranks, in the engine: drafts of every kind change no token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from decode_worker.speculate.fixed import Fixed
from triptych.drafters.sparse_self import SparseDrafter, SparseOptions
from triptych.engine.draft import ROOT, Draft
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner, make_runner
from triptych.engine.sampler import Sampler
from triptych.engine.sequence import Sequence
from triptych.engine.storage import plain_storage
from triptych.kv.pool import BlockPool
from triptych.models.model import Model
from triptych.request import SamplingParams
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.compute_modes import MODES, model_in
from triptych.testing.heads import head_drafter, random_head
from triptych.training.first_weights import start_from_target
from triptych.worker.boot import kv_layout

FAMILIES = ("gpt_oss", "deepseek_v2", "deepseek_v3", "deepseek_v32", "nsa")
CHOOSING = ("deepseek_v32", "nsa")
SOME_MODES = ("torch", "float32", "bfloat16", "int8 KV")
PROMPT = torch.randint(3, 190, (150,), generator=torch.Generator().manual_seed(4)).tolist()
SAMPLED = SamplingParams(seed=3, max_tokens=16, temperature=0.9, top_p=0.9, ignore_eos=True)
BLOCK_TOKENS = 16

in_some_modes = pytest.mark.parametrize("mode", SOME_MODES)
of_each_kind = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {family: tiny_checkpoint(folder / family, family) for family in FAMILIES}


@pytest.fixture
def model(checkpoints: dict[str, Path], family: str, mode: str) -> Model:
    return model_in(checkpoints[family], mode)


def runner_of(model: Model, mode: str) -> Runner:
    layout = kv_layout(model.config, BLOCK_TOKENS, MODES[mode][1])
    return make_runner(model, plain_storage(layout, 16))


def sequence_of(tokens: list[int]) -> Sequence:
    blocks = list(range(15, -1, -1))
    return Sequence("a", list(tokens), b"root", BLOCK_TOKENS, blocks=blocks)


def last_row(runner: Runner, tokens: list[int]) -> Tensor:
    """Of tokens computed one chunk behind the other, the last one alone."""
    sequence = sequence_of(tokens)
    end = len(tokens)
    for start, stop in ((0, 40), (40, end - 1), (end - 1, end)):
        hidden = runner.forward([RowJob(sequence, start, stop)])
    return hidden[-1].clone()


@of_each_kind
@in_some_modes
def test_a_node_of_a_tree_has_the_bits_of_plain_decoding(model: Model, mode: str) -> None:
    runner = runner_of(model, mode)
    draft = Draft((7, 9, 11, 13, 15), (ROOT, 0, 0, ROOT, 2))
    sequence, end = sequence_of(PROMPT), len(PROMPT)
    runner.forward([RowJob(sequence, 0, end - 1)])
    rows = runner.forward([RowJob(sequence, end - 1, end, draft)]).clone()
    assert len(rows) == 6
    other = runner_of(model, mode)
    assert torch.equal(rows[0], last_row(other, PROMPT))
    for node in range(5):
        path = [draft.tokens[step] for step in draft.path(node)]
        assert torch.equal(rows[1 + node], last_row(other, [*PROMPT, *path])), f"node {node}"


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in CHOOSING])
@in_some_modes
def test_rows_that_read_pages_draft_what_plain_decoding_says(
    model: Model, make_home: Callable[..., Any]
) -> None:
    def home(options: SparseOptions) -> Any:
        def drafters(pool: BlockPool, runner: Runner) -> dict[str, Any]:
            sampler = Sampler(runner.model.config.eos_token_ids)
            return {"sparse": SparseDrafter(runner, sampler, options)}

        return make_home(policy=Fixed("sparse", 6), drafters_of=drafters)

    plain = make_home()
    everything, little = (home(SparseOptions(ratio=r, min_tokens=48)) for r in (1.0, 0.05))
    for place in (plain, everything, little):
        place.submit(PROMPT, SAMPLED)
    answer = plain.run()
    assert everything.run() == answer == little.run()
    assert everything.sequences[0].num_accepted == everything.sequences[0].num_drafted > 8
    assert little.sequences[0].num_drafted > 0


@of_each_kind
@pytest.mark.parametrize("mode", ["torch", "bfloat16"])
def test_a_head_may_draft_for_it(
    model: Model, make_home: Callable[..., Any], tmp_path: Path
) -> None:
    module = random_head(tmp_path, model, "eagle3")
    ids = torch.arange(20, model.config.vocab_size)  # that a random head may draft
    start_from_target(module, model, ids, 1.0)

    def drafters(pool: BlockPool, runner: Runner) -> dict[str, Any]:
        return {"eagle3": head_drafter(tmp_path, model, pool)}

    plain, drafting = make_home(), make_home(drafters_of=drafters, policy=Fixed("eagle3", 3))
    for home in (plain, drafting):
        home.submit(PROMPT, SAMPLED)
    assert drafting.run() == plain.run()
    assert drafting.sequences[0].num_drafted > 8
