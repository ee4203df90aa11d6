"""Attention that leaves out tiles (BLASST) gives other numbers, but the same ones in every mode."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from decode_worker.speculate.fixed import Fixed
from triptych.drafters.ngram import NgramDrafter
from triptych.request import SamplingParams, SparseAttention
from triptych_kernels.cpu.native import native

pytestmark = pytest.mark.skipif(native() is None, reason="no native kernels here")

MUCH = SparseAttention(scale=380.0)
NOTHING = SparseAttention(scale=0.0)


@pytest.fixture(params=["float32", "bfloat16", "int8 KV"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prompts() -> list[list[int]]:
    """Long ones, which say some things again and again."""
    draw = random.Random(4)
    phrase = [draw.randrange(3, 250) for _ in range(40)]
    found = []
    for length in (700, 390, 950, 520):
        tokens: list[int] = []
        while len(tokens) < length:
            tokens += phrase if draw.random() < 0.4 else [draw.randrange(3, 250) for _ in range(30)]
        found.append(tokens[:length])
    return found


def params_of(index: int) -> SamplingParams:
    temperature = 0.0 if index % 2 else 0.8
    return SamplingParams(seed=index, max_tokens=24, temperature=temperature, ignore_eos=True)


def answers(home: Any, sparse: SparseAttention | None) -> list[list[int]]:
    for index, prompt in enumerate(prompts()):
        home.submit(prompt, params_of(index), sparse=sparse)
    found: list[list[int]] = home.run()
    return found


@pytest.fixture
def alone(make_home: Callable[..., Any]) -> list[list[int]]:
    """Every request on its own, in one chunk, with nothing cached."""
    found = []
    for index, prompt in enumerate(prompts()):
        home = make_home(chunk_tokens=1024)
        sequence = home.submit(prompt, params_of(index), sparse=MUCH)
        found += home.run()
        assert sequence.tiles.skipped > 0, "there is something to compare"
    return found


@pytest.mark.parametrize(
    "settings",
    [{"max_running": 32}, {"chunk_tokens": 16}, {"chunk_tokens": 100}, {"blocks": 90}],
    ids=str,
)
def test_batching_chunking_and_preemption_change_no_token(
    make_home: Callable[..., Any], alone: list[list[int]], settings: dict[str, Any]
) -> None:
    assert answers(make_home(**settings), MUCH) == alone


def test_drafts_change_no_token(make_home: Callable[..., Any], alone: list[list[int]]) -> None:
    home = make_home(drafters={"ngram": NgramDrafter()}, policy=Fixed("ngram", 5))
    assert answers(home, MUCH) == alone
    assert sum(sequence.num_drafted for sequence in home.sequences) > 0


def test_a_scale_of_zero_is_dense(make_home: Callable[..., Any]) -> None:
    assert answers(make_home(), NOTHING) == answers(make_home(), None)


def test_a_dense_neighbour_stays_dense(make_home: Callable[..., Any]) -> None:
    dense = make_home()
    expected = answers(dense, None)
    home = make_home()
    for index, prompt in enumerate(prompts()):
        home.submit(prompt, params_of(index), sparse=None if index % 2 else MUCH)
    assert home.run()[1::2] == expected[1::2]
    assert home.sequences[1].tiles.seen == 0


def test_the_worst_row_is_reported(make_home: Callable[..., Any]) -> None:
    home = make_home()
    held = SparseAttention(scale=380.0, max_omitted=1e-3)
    for index, prompt in enumerate(prompts()):
        home.submit(prompt, params_of(index), sparse=held if index % 2 else MUCH)
    home.run()
    free, budgeted = home.sequences[0].tiles, home.sequences[1].tiles
    assert 0 < free.skipped < free.seen and free.omitted > 1e-3
    assert budgeted.omitted <= 1e-3
