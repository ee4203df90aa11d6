"""Models that choose what they attend to: what a row chooses is that row's own affair, whatever it
chooses by (DeepSeek-V3.2's token index, NSA's means of blocks).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from decode_worker.speculate.dice import Dice
from decode_worker.speculate.make_drafter import DrafterMaker
from tests.unit.engine.choosing import (
    LENGTH,
    SIZES,
    SOME_MODES,
    answers,
    prompt,
    prompts,
    rows_in_chunks,
    runner_of,
)
from triptych.engine.sampler import Sampler
from triptych.errors import ConfigError
from triptych.models.model import Model
from triptych.speculation_config import SparseConfig
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.drafters import Oracle
from triptych.testing.native_kernels import libraries, threads
from triptych.worker.boot import EngineParts


@pytest.fixture(params=SOME_MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["deepseek_v32", "nsa"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("chooses"), request.param, **SIZES)


def test_chunks_and_threads_change_no_bit_of_a_long_sequence(model: Model, mode: str) -> None:
    length = LENGTH if model.is_native else 300  # plain torch takes its time
    runner, sequence = runner_of(model, mode), prompt(length)
    whole = rows_in_chunks(runner, sequence)
    assert whole.isfinite().all()
    for number, cuts in enumerate(
        ([128, length - 76], [200, 201, length - 1], range(length - 20, length))
    ):
        with threads(libraries()[0], 1 + number) if model.is_native else nullcontext():
            assert torch.equal(rows_in_chunks(runner, sequence, cuts), whole)


def test_batches_caches_preemption_and_drafts_change_no_token(
    make_home: Callable[..., Any],
) -> None:
    plain = make_home(max_running=1, cache=False)
    wanted = answers(plain)
    known = {(tuple(tokens), index): wanted[index] for index, tokens in enumerate(prompts())}
    crowded = make_home(chunk_tokens=50, blocks=30)
    assert answers(crowded) == wanted
    assert answers(crowded) == wanted
    assert sum(sequence.num_cached for sequence in crowded.sequences) > 0
    tight = make_home(blocks=24)
    assert answers(tight) == wanted
    assert tight.loop.scheduler.num_preemptions > 0
    for trees in (False, True):
        oracle = Oracle(dict(known), trees=trees)
        drafting = make_home(drafters={"oracle": oracle}, policy=Dice(most=9, seed=3))
        assert answers(drafting) == wanted
        assert oracle.num_accepted > 20 and oracle.num_rejected > 5


@pytest.mark.parametrize("mode", ["torch"])
def test_the_drafter_that_reads_pages_is_refused_with_the_remedy(model: Model) -> None:
    parts = cast(EngineParts, SimpleNamespace(model=model))
    make = DrafterMaker(parts, Sampler(model.config.eos_token_ids))
    with pytest.raises(ConfigError, match="drafters: sparse: this model .* take suffix or ngram"):
        make(SparseConfig())
