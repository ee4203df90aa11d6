"""BLASST in native attention: tiles that hardly matter are left out, by proof, per row alone."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from triptych.testing.kv_prompts import Prompt
from triptych.testing.native_kernels import Rows, libraries, threads
from triptych.testing.skipped_tiles import SPLIT, TILE, Tiles, tiles_left_out

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

DTYPES = ["float32", "bfloat16", "int8"]
VISIBLE = [(0, 0.0), (700, 0.0), (0, 9.0)]  # window, softcap
GRID = pytest.mark.parametrize(
    ("dtype", "visible"), list(itertools.product(DTYPES, VISIBLE)), ids=str
)
SCALE = 4.0  # λ × positions


def peaky_prompt(dtype: str, length: int, *, head_dim: int = 64, group: int = 3) -> Prompt:
    """Every fifth tile has keys that queries like; the others are of no interest to anybody."""
    prompt = Prompt(LIBRARIES[0], dtype, head_dim, group, 32, length)
    dice = random.Random(length)
    liked = torch.tensor([dice.random() < 0.2 for _ in range(-(-length // TILE))])
    strength = torch.where(liked, 1.5, 0.05).repeat_interleave(TILE)[:length]
    prompt.keys *= strength[:, None, None]
    prompt.queries *= 3.0
    return prompt.put()


def one_call(prompt: Prompt, rows: Rows, window: int = 0, softcap: float = 0.0) -> Tensor:
    (found,) = prompt.attend(rows, window=window, softcap=softcap)
    return found


def share_skipped(rows: Rows) -> float:
    assert rows.skip is not None
    return rows.skip.count.skipped / rows.skip.count.tiles


@GRID
def test_a_threshold_of_zero_is_dense_attention_to_the_bit(
    dtype: str, visible: tuple[int, float]
) -> None:
    prompt = peaky_prompt(dtype, 2500)
    for begin, end in ((2499, 2500), (2450, 2500), (0, 200)):
        rows = prompt.rows(begin, end).skipping(0.0)
        assert torch.equal(
            one_call(prompt, rows, *visible), one_call(prompt, prompt.rows(begin, end), *visible)
        )
        assert rows.skip is not None and rows.skip.count.skipped == 0
        assert torch.equal(rows.skip.omitted, torch.zeros_like(rows.skip.omitted))


@GRID
def test_exactly_those_tiles_are_left_out_that_the_rule_names(
    dtype: str, visible: tuple[int, float]
) -> None:
    prompt = peaky_prompt(dtype, 3000)
    left_out = 0
    for begin, end in ((2999, 3000), (2800, 2850), (1500, 1540), (500, 540)):
        rows = prompt.rows(begin, end).skipping(SCALE)
        found = one_call(prompt, rows, *visible)
        tiles = tiles_left_out(prompt, rows, *visible)
        left_out += int(tiles.gone.sum())
        sure = ~tiles.doubtful
        assert sure.double().mean() > 0.9
        atol = 1e-4 if dtype == "float32" else 1e-2
        torch.testing.assert_close(found.double()[sure], tiles.exact()[sure], rtol=1e-2, atol=atol)
    assert left_out > 0


@GRID
def test_the_error_is_never_larger_than_the_certificate_says(
    dtype: str, visible: tuple[int, float]
) -> None:
    prompt = peaky_prompt(dtype, 3000)
    for scale in (0.5, 8.0, 64.0, 512.0):
        rows = prompt.rows(2900, 3000).skipping(scale)
        found = one_call(prompt, rows, *visible)
        dense = one_call(prompt, prompt.rows(2900, 3000), *visible)
        assert rows.skip is not None
        omitted = rows.skip.omitted.double()
        bound = omitted / (1 + omitted) * Tiles.of(prompt, rows, *visible).widest_distance()
        error = (found - dense).double().norm(dim=-1)
        noise = 1e-5 if dtype == "float32" else 2e-2  # of the weights' own rounding
        assert (error <= bound + noise).all()
        assert rows.skip.count.omitted == rows.skip.omitted.max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_leaves_out_the_same_alone_in_any_chunk_and_on_any_threads(dtype: str) -> None:
    prompt = peaky_prompt(dtype, 2600)
    for window, softcap in VISIBLE:
        whole = prompt.rows(2500, 2600).skipping(SCALE)
        found = one_call(prompt, whole, window, softcap)
        assert whole.skip is not None
        for number, (first, last) in enumerate([(0, 1), (99, 100), (5, 7), (60, 100), (0, 41)]):
            part = prompt.rows(2500 + first, 2500 + last).skipping(SCALE)
            with threads(prompt.library, 1 + number % 3):
                alone = one_call(prompt, part, window, softcap)
            assert torch.equal(alone, found[first:last])
            assert part.skip is not None
            assert torch.equal(part.skip.omitted, whole.skip.omitted[first:last])


@pytest.mark.parametrize("start", [1300, 1278, 1019])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_draft_leaves_out_what_it_would_leave_out_as_a_token(dtype: str, start: int) -> None:
    parents = [-1, 0, 1, 0, 3, -1, 5, 2, 7, 7, 4]
    prompt = peaky_prompt(dtype, start + len(parents))
    tree = Rows(prompt.queries[start:], start, prompt.blocks, parents).skipping(SCALE)
    found = one_call(prompt, tree)
    assert share_skipped(tree) > 0.1
    for node in range(len(parents)):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        other = peaky_prompt(dtype, start + len(parents))
        places = [*range(start), *(start + step for step in path)]
        other.keys[: len(places)] = prompt.keys[places]
        other.values[: len(places)] = prompt.values[places]
        other.put(0, len(places))
        chain = Rows(prompt.queries[start:][path], start, other.blocks).skipping(SCALE)
        assert torch.equal(one_call(other, chain)[-1], found[node])


@pytest.mark.parametrize("budget", [0.0, 1e-4, 1e-2])
def test_a_budget_is_never_overdrawn(budget: float) -> None:
    prompt = peaky_prompt("float32", 5000)
    for begin, end in ((4999, 5000), (4900, 4960), (2900, 2940)):
        free = prompt.rows(begin, end).skipping(2500.0)
        held = prompt.rows(begin, end).skipping(2500.0, budget)
        one_call(prompt, free)
        one_call(prompt, held)
        assert free.skip is not None and held.skip is not None
        assert free.skip.count.omitted > budget
        assert held.skip.count.omitted <= budget
        assert held.skip.count.skipped <= free.skip.count.skipped


def test_a_needle_behind_a_huge_sink_is_found() -> None:
    """The largest score of a sequence may stand in the last token of a tile that looks dull."""
    prompt = peaky_prompt("float32", 3000)
    prompt.keys[0] = prompt.queries[2999, 0] * 0.5  # the sink
    needle = 11 * TILE - 1
    prompt.keys[needle] = prompt.queries[2999, 0] * 4.0
    prompt.put()
    rows = prompt.rows(2999, 3000).skipping(64.0)
    found = one_call(prompt, rows)[0, 0]
    torch.testing.assert_close(found, prompt.values[needle, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_is_never_left_out(dtype: str) -> None:
    prompt = peaky_prompt(dtype, 3000)
    rows = prompt.rows(2990, 3000)
    dull = int(tiles_left_out(prompt, rows.skipping(SCALE), 0, 0.0).gone.all(0).all(0).nonzero()[0])
    prompt.keys[dull * TILE + 5] = math.nan
    prompt.put()
    assert one_call(prompt, rows.skipping(SCALE)).isnan().all()


def test_a_context_shorter_than_the_scale_is_dense() -> None:
    prompt = peaky_prompt("float32", 2000)
    rows = prompt.rows(1990, 2000).skipping(2000.0)
    assert torch.equal(one_call(prompt, rows), one_call(prompt, prompt.rows(1990, 2000)))


def test_sparse_and_dense_jobs_share_a_call() -> None:
    prompt = peaky_prompt("float32", 2600)
    jobs = [
        prompt.rows(2599, 2600).skipping(SCALE),
        prompt.rows(2500, 2540),
        prompt.rows(2000, 2033).skipping(SCALE, 0.01),
        prompt.rows(0, 5).skipping(SCALE),
    ]
    alone = [one_call(prompt, job) for job in jobs]
    for order in (range(4), (2, 0, 3, 1)):
        found = prompt.attend(*(jobs[i] for i in order))
        assert all(torch.equal(part, alone[i]) for part, i in zip(found, order, strict=True))


def test_most_of_a_long_prompt_with_few_peaks_is_left_out() -> None:
    prompt = peaky_prompt("float32", 8 * SPLIT)
    rows = prompt.rows(8 * SPLIT - 1, 8 * SPLIT).skipping(SCALE)
    one_call(prompt, rows)
    assert share_skipped(rows) > 0.4


def test_a_count_speaks_of_its_own_job_alone() -> None:
    prompt = peaky_prompt("float32", 2600)
    alone, beside = (prompt.rows(2599, 2600).skipping(SCALE) for _ in range(2))
    one_call(prompt, alone)
    prompt.attend(prompt.rows(2500, 2540), beside, prompt.rows(2300, 2400).skipping(SCALE))
    assert alone.skip is not None and beside.skip is not None
    counts = [(skip.count.tiles, skip.count.skipped) for skip in (alone.skip, beside.skip)]
    assert counts[0] == counts[1]
    assert counts[0][1] > 0
