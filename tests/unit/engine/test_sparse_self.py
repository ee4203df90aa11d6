"""A model that drafts for itself from a part of its KV says what it says anyway."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decode_worker.speculate.dice import Dice
from decode_worker.speculate.fixed import Fixed
from triptych.drafters.drafter import Ask
from triptych.drafters.sparse_self import SparseDrafter, SparseOptions
from triptych.engine.pages import PageScores
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner
from triptych.engine.sampler import Sampler
from triptych.kv.pool import BlockPool
from triptych.request import SamplingParams
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.compute_modes import MODES, model_in
from triptych_kernels.sampling import NO_TOKEN

EVERYTHING = SparseOptions(ratio=1.0)
LITTLE = SparseOptions(ratio=0.05, min_tokens=48)


in_all_modes = pytest.mark.parametrize("mode", list(MODES))


def prompts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(3, 190) for _ in range(n)] for n in (1, 33, 130, 300)]


def params_of(index: int, max_tokens: int) -> SamplingParams:
    if index % 2 == 0:
        return SamplingParams(seed=index, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return SamplingParams(
        seed=index,
        max_tokens=max_tokens,
        temperature=0.9,
        top_p=0.95,
        frequency_penalty=0.2,
        ignore_eos=True,
    )


def answers(home: Any, max_tokens: int = 30) -> list[list[int]]:
    for index, prompt in enumerate(prompts()):
        home.submit(prompt, params_of(index, max_tokens))
    return home.run()


@pytest.fixture
def plain(make_home: Callable[..., Any]) -> list[list[int]]:
    return answers(make_home())


@pytest.fixture
def sparse_home(make_home: Callable[..., Any]) -> Callable[..., Any]:
    """A home that drafts sparsely, with its own runner."""

    def make(options: SparseOptions, policy: Any = None, **settings: Any) -> Any:
        def drafters(pool: BlockPool, runner: Runner) -> dict[str, Any]:
            sampler = Sampler(runner.model.config.eos_token_ids)
            return {"sparse": SparseDrafter(runner, sampler, options)}

        policy = policy or Fixed("sparse", 8)
        return make_home(policy=policy, drafters_of=drafters, **settings)

    return make


def rates(home: Any) -> tuple[int, int]:
    drafted = sum(sequence.num_drafted for sequence in home.sequences)
    return sum(sequence.num_accepted for sequence in home.sequences), drafted


@in_all_modes
def test_a_draft_that_reads_everything_is_never_wrong(
    sparse_home: Callable[..., Any], plain: list[list[int]]
) -> None:
    home = sparse_home(EVERYTHING)
    assert answers(home) == plain
    accepted, drafted = rates(home)
    assert accepted == drafted > 60


@in_all_modes
def test_a_draft_that_reads_little_changes_no_token(
    sparse_home: Callable[..., Any], plain: list[list[int]]
) -> None:
    home = sparse_home(LITTLE)
    assert answers(home) == plain
    accepted, drafted = rates(home)
    assert 0 < accepted < drafted


@pytest.mark.parametrize("settings", [{}, {"chunk_tokens": 20}, {"blocks": 33}], ids=str)
@pytest.mark.parametrize("policy", [None, Dice(9, seed=4)], ids=["fixed", "dice"])
def test_sparse_drafts_stand_any_budget_chunk_and_preemption(
    sparse_home: Callable[..., Any], plain: list[list[int]], policy: Any, settings: dict[str, Any]
) -> None:
    home = sparse_home(LITTLE, policy, **settings)
    assert answers(home) == plain
    assert home.loop.scheduler.num_preemptions > 0 or "blocks" not in settings
    assert rates(home)[0] > 0


def test_provisional_kv_is_in_no_prefix_cache(
    sparse_home: Callable[..., Any], make_home: Callable[..., Any]
) -> None:
    """Answers that continue answers: their KV comes from blocks that sparse rows wrote to."""
    home = sparse_home(LITTLE)
    found = answers(home)
    fresh = make_home(cache=False)
    home.loop._speculator._policy = None
    for index, (prompt, answer) in enumerate(zip(prompts(), found, strict=True)):
        for place in (home, fresh):
            place.submit([*prompt, *answer, 9], params_of(index, 6))
    assert home.run()[len(found) :] == fresh.run()
    assert sum(sequence.num_cached for sequence in home.sequences[len(found) :]) > 0
    assert home.pool.counts()["request"] == 0


def test_a_prompt_from_the_prefix_cache_is_drafted_for_alike(
    sparse_home: Callable[..., Any], plain: list[list[int]]
) -> None:
    home = sparse_home(LITTLE)
    answers(home)
    assert answers(home)[len(plain) :] == plain
    assert home.sequences[-1].num_cached > 0


def test_nothing_is_kept_of_sequences_that_ended(sparse_home: Callable[..., Any]) -> None:
    home = sparse_home(LITTLE)
    answers(home)
    assert not home.loop._speculator.drafter("sparse")._scores


def test_a_draft_ends_where_nothing_can_be_drawn(
    sparse_home: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = sparse_home(EVERYTHING)
    sequence = home.submit(prompts()[2], params_of(0, 30))
    home.loop.scheduler.next_batch()
    home.loop._runner.forward([RowJob(sequence, 0, 129)])
    sequence.num_computed = 129
    drafter = home.loop._speculator.drafter("sparse")
    drawn = iter([[7], [NO_TOKEN]])
    monkeypatch.setattr(drafter._sampler, "draw", lambda logits, spots: next(drawn))
    assert [draft.tokens for draft in drafter.propose([Ask(sequence, 4)])] == [(7,)]


@in_all_modes
def test_each_runner_scores_the_pages_of_wanted_rows(make_home: Callable[..., Any]) -> None:
    home = make_home()
    sequence = home.submit(prompts()[3])
    home.loop.scheduler._chunk_tokens = 400
    scores = PageScores(sequence)
    (job,) = home.loop.scheduler.next_batch()
    home.loop._runner.score_pages(scores)
    home.loop._runner.forward([job])
    assert scores.root == 299 and scores.shares is not None
    assert scores.shares.shape[2] == 19
    np.testing.assert_allclose(scores.shares.sum(-1), 1.0, rtol=1e-2)
    once = scores.shares
    home.loop._runner.forward([job])
    assert scores.shares is once, "a wish is for one forward"


@pytest.mark.parametrize("mode", ["torch", "bfloat16"])
def test_layers_with_windows_draft_too(
    sparse_home: Callable[..., Any], make_home: Callable[..., Any], mode: str, tmp_path: Path
) -> None:
    gemma = model_in(tiny_checkpoint(tmp_path, "gemma3"), mode)
    wanted = answers(make_home(gemma), 12)
    everything, little = (sparse_home(options, model=gemma) for options in (EVERYTHING, LITTLE))
    assert answers(everything, 12) == wanted == answers(little, 12)
    accepted, drafted = rates(everything)
    assert accepted == drafted > 20
