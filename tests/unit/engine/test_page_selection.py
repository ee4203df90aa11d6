"""Rows of an answer that read some pages give other numbers, but the same ones in every mode.

What a row chooses is checked in tests/unit/kernels/test_page_choice.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from decode_worker.speculate.dice import Dice
from tests.unit.engine.choosing import LENGTH, rows_in_chunks
from tests.unit.engine.test_sparse_attention import params_of, prompts
from triptych.engine.native_runner import NativeRunner
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner, make_runner
from triptych.engine.sequence import Sequence
from triptych.engine.storage import plain_storage
from triptych.models.model import Model
from triptych.request import PAGE_TOKENS, PageBudget, SparseAttention, pages_seen
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.compute_modes import MODES, model_in
from triptych.testing.drafters import Oracle
from triptych.testing.native_kernels import libraries, threads
from triptych.worker.boot import kv_layout
from triptych_kernels.cpu.native import native

FEW = SparseAttention(pages=PageBudget(tokens=160))
SHARE = SparseAttention(pages=PageBudget(share=0.4))
WITH_TILES = SparseAttention(380.0, max_omitted=0.5, pages=PageBudget(tokens=192, share=0.3))
ENOUGH = SparseAttention(pages=PageBudget(tokens=4096))
needs_native = pytest.mark.skipif(native() is None, reason="no native kernels here")
ANSWER = 300  # rows of the long sequence that are its answer


@pytest.fixture(params=["float32", "int8 KV"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def runner_of(model: Model, mode: str, block_tokens: int) -> Runner:
    layout = kv_layout(model.config, block_tokens, MODES[mode][1])
    return make_runner(model, plain_storage(layout, layout.blocks_for(LENGTH)))


def long_one(
    sparse: SparseAttention | None, length: int = LENGTH, block_tokens: int = 16
) -> Sequence:
    """Its blocks stand in no order."""
    tokens = [*prompts()[2], *prompts()[0]][:length]
    blocks = list(range(-(-length // block_tokens)))[::-1]
    return Sequence(
        "a", tokens, b"root", block_tokens, blocks=blocks, sparse=sparse, num_answered=ANSWER
    )


# ---- which rows choose, and how much they read -------------------------------------------------


def test_the_larger_budget_holds_and_short_contexts_are_read_whole() -> None:
    budget = PageBudget(tokens=500, share=0.5)
    assert budget.least_tokens == 512
    for position in (0, 100, 511):
        assert budget.kept(position) == pages_seen(position)
    assert budget.kept(512) == 16 and pages_seen(512) == 17
    assert budget.kept(3199) == 3200 // 2 // PAGE_TOKENS
    assert PageBudget(share=0.01).kept(1000) == 4


def test_rows_of_a_prompt_read_everything(checkpoint: Path) -> None:
    model = model_in(checkpoint, "torch")
    sparse, dense = (
        rows_in_chunks(runner_of(model, "torch", 16), long_one(asked, 500)) for asked in (FEW, None)
    )
    answer = 500 - ANSWER
    assert torch.equal(sparse[:answer], dense[:answer])
    assert not torch.isclose(sparse[answer:], dense[answer:]).all(1).any()


# ---- rows ----------------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("sparse", [FEW, SHARE], ids=["tokens", "share"])
def test_native_kernels_say_what_torch_says(checkpoint: Path, sparse: SparseAttention) -> None:
    found, wanted = (
        rows_in_chunks(runner_of(model_in(checkpoint, name), name, 16), long_one(sparse, 600))
        for name in ("float32", "torch")
    )
    near = (found - wanted).norm(dim=1) < 1e-4 * wanted.norm(dim=1)
    assert near.float().mean() > 0.99  # a tie but for rounding may go the other way


@pytest.mark.parametrize("mode", ["torch", "float32", "int8 KV"])
@pytest.mark.parametrize("sparse", [FEW, WITH_TILES], ids=["pages", "and tiles"])
def test_chunks_threads_and_sizes_of_blocks_change_no_bit(
    model: Model, mode: str, sparse: SparseAttention
) -> None:
    if sparse.skips and not model.is_native:
        pytest.skip("plain torch leaves out no tiles")
    length = LENGTH if model.is_native else ANSWER + 100  # plain torch takes its time
    sequence = long_one(sparse, length)
    whole = rows_in_chunks(runner_of(model, mode, 16), sequence)
    assert whole.isfinite().all()
    assert 0 < sequence.tiles.pages_read < sequence.tiles.pages
    assert sparse.skips == (sequence.tiles.omitted > 0)
    answer = length - ANSWER
    singles = range(answer - 20, length) if model.is_native else range(answer, answer + 40)
    for number, (cuts, block_tokens) in enumerate(
        [([answer // 2, answer + 9], 32), ([answer, answer + 1], 24), (singles, 64)]
    ):
        again = long_one(sparse, length, block_tokens)
        with threads(libraries()[0], 1 + number) if model.is_native else nullcontext():
            rows = rows_in_chunks(runner_of(model, mode, block_tokens), again, cuts)
        assert torch.equal(rows, whole)
        assert again.tiles.pages_read == sequence.tiles.pages_read


@needs_native
def test_tiles_of_chosen_pages_are_left_out(model: Model, mode: str) -> None:
    pages: list[Any] = []
    both: list[Any] = []
    for rows, asked in ((pages, replace(WITH_TILES, scale=0.0)), (both, WITH_TILES)):
        runner, sequence = runner_of(model, mode, 16), long_one(asked)
        runner.forward([RowJob(sequence, 0, LENGTH - ANSWER)])
        sequence.tiles.omitted = 0.0
        rows += [runner.forward_all([RowJob(sequence, LENGTH - ANSWER, LENGTH)]), sequence]
        assert (0 < sequence.tiles.omitted <= 0.5) == asked.skips
    assert not torch.equal(pages[0], both[0])
    assert pages[1].tiles.pages_read == both[1].tiles.pages_read


@needs_native
def test_a_budget_that_holds_the_context_is_dense_to_the_bit(model: Model, mode: str) -> None:
    runner, sequence = runner_of(model, mode, 16), long_one(ENOUGH)
    assert torch.equal(rows_in_chunks(runner, sequence), rows_in_chunks(runner, long_one(None)))
    assert sequence.tiles.pages == 0


@needs_native
@pytest.mark.parametrize("family", ["gemma3", "gpt_oss"])
@pytest.mark.parametrize("mode", ["float32"])
def test_layers_with_a_window_stay_as_they_are(family: str, mode: str, tmp_path: Path) -> None:
    options = {"vocab_size": 256, "max_position_embeddings": 2048}
    model = model_in(tiny_checkpoint(tmp_path, family, **options), mode)
    sequence = long_one(FEW)
    whole = rows_in_chunks(runner_of(model, mode, 16), sequence)
    again = rows_in_chunks(runner_of(model, mode, 32), long_one(FEW, block_tokens=32), [850, 851])
    assert torch.equal(whole, again)
    layers = model.config.windows.count(None)
    assert 0 < layers < model.config.num_layers
    seen = sum(map(pages_seen, range(LENGTH - ANSWER, LENGTH))) * layers * model.config.num_kv_heads
    assert sequence.tiles.pages == seen


@needs_native
@pytest.mark.parametrize("mode", ["float32"])
def test_keys_are_bounded_once_and_not_read_again(model: Model, mode: str) -> None:
    """Bounds that were changed by hand stay what they are, and the next row believes them."""
    rows = []
    for liked in (False, True):
        runner, sequence = runner_of(model, mode, 16), long_one(FEW)
        assert isinstance(runner, NativeRunner)
        runner.forward([RowJob(sequence, 0, LENGTH - 1)])
        bounds = runner._pages._bounds[sequence]
        assert bounds.known == (LENGTH - 1) // PAGE_TOKENS
        if liked:
            bounds.numbers[:, :, 11:13] = [[1e6], [-1e6]]  # worth most to everybody
        rows.append(runner.forward([RowJob(sequence, LENGTH - 1, LENGTH)]).clone())
        assert (bounds.numbers[:, :, 11:13, 0] == 1e6).all() == liked
    assert not torch.equal(*rows)


# ---- answers -------------------------------------------------------------------------------------


def answers(home: Any, sparse: SparseAttention) -> list[list[int]]:
    for index, tokens in enumerate(prompts()):
        home.submit(tokens, params_of(index), sparse=sparse)
    found: list[list[int]] = home.run()
    return found[-len(prompts()) :]


@pytest.fixture(params=[FEW, WITH_TILES], ids=["pages", "and tiles"])
def sparse(request: pytest.FixtureRequest) -> SparseAttention:
    asked: SparseAttention = request.param
    return asked


@pytest.fixture
def alone(make_home: Callable[..., Any], sparse: SparseAttention) -> list[list[int]]:
    """Every request on its own, in one chunk, with nothing cached."""
    found = []
    for index, tokens in enumerate(prompts()):
        home = make_home(chunk_tokens=1024)
        sequence = home.submit(tokens, params_of(index), sparse=sparse)
        found += home.run()
        assert 0 < sequence.tiles.pages_read < sequence.tiles.pages
    return found


@needs_native
@pytest.mark.parametrize(
    "settings",
    [{"max_running": 32}, {"chunk_tokens": 16}, {"chunk_tokens": 100}, {"blocks": 70}],
    ids=str,
)
def test_batching_chunking_and_preemption_change_no_token(
    make_home: Callable[..., Any],
    alone: list[list[int]],
    sparse: SparseAttention,
    settings: dict[str, Any],
) -> None:
    home = make_home(**settings)
    assert answers(home, sparse) == alone
    assert answers(home, sparse) == alone  # and what the first ones left in the cache
    if "blocks" in settings:
        assert home.loop.scheduler.num_preemptions > 0


@needs_native
@pytest.mark.parametrize("trees", [False, True], ids=["chains", "trees"])
def test_drafts_change_no_token(
    make_home: Callable[..., Any], alone: list[list[int]], sparse: SparseAttention, trees: bool
) -> None:
    known = {(tuple(tokens), i): alone[i] for i, tokens in enumerate(prompts())}
    oracle = Oracle(known, trees=trees)
    home = make_home(drafters={"oracle": oracle}, policy=Dice(most=9, seed=3))
    assert answers(home, sparse) == alone
    assert oracle.num_accepted > 10 and oracle.num_rejected > 5


def run(home: Any, sparse: SparseAttention, resumed: tuple[int, ...] = ()) -> Sequence:
    """A prompt of 150 tokens and 60 more, some of which another home drew."""
    sequence = Sequence(
        request_id="r",
        tokens=prompts()[0][:150],
        root=b"root",
        block_tokens=16,
        params=replace(params_of(0), max_tokens=60),
        resumed=resumed,
        sparse=sparse,
    )
    home.loop.submit(sequence)
    while home.loop.step():
        pass
    return sequence


@pytest.mark.parametrize("mode", ["torch", "float32"])
def test_every_cut_leads_to_the_same_tokens(make_home: Callable[..., Any], mode: str) -> None:
    least = SparseAttention(pages=PageBudget(tokens=128))
    home = make_home()
    whole = run(home, least).tokens
    dense = run(make_home(), ENOUGH).tokens
    assert whole != dense, "there is something to keep"
    for cut in range(1, 60, 40 if mode == "torch" else 1):
        assert run(make_home(chunk_tokens=24), least, tuple(whole[150 : 150 + cut])).tokens == whole
    again = run(home, least, tuple(whole[150:190]))
    assert again.tokens == whole
    assert again.num_cached == 176, "the home that drew it still has it"


@pytest.mark.parametrize("mode", ["torch"])
def test_an_answers_blocks_are_not_found_by_a_prompt_of_the_same_tokens(
    make_home: Callable[..., Any], mode: str
) -> None:
    """In a prompt these rows read everything."""
    home = make_home()
    least = SparseAttention(pages=PageBudget(tokens=128))
    first = run(home, least)
    turn = home.submit([*first.tokens, 5, 6, 7], params_of(1), sparse=least)
    home.run()
    assert turn.num_cached == 144, "whole blocks of the first prompt"
    fresh = make_home()
    fresh.submit([*first.tokens, 5, 6, 7], params_of(1), sparse=least)
    assert fresh.run() == [turn.tokens[turn.num_prompt :]]


@pytest.mark.parametrize("mode", ["torch"])
def test_answers_within_the_budget_are_found_by_the_next_turn(
    make_home: Callable[..., Any], mode: str
) -> None:
    home = make_home()
    first = run(home, ENOUGH)
    turn = home.submit([*first.tokens, 5, 6, 7], params_of(1), sparse=ENOUGH)
    home.run()
    assert turn.num_cached == 208
