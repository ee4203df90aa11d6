"""What a worker learns of its own speed."""

from __future__ import annotations

import random

import pytest

from transport.pace import Pace, StepCost
from triptych.obs.pace import PaceMeter
from triptych.obs.step_fit import StepFit

TRUE = StepCost(base_s=0.01, row_s=1e-4, pair_s=1e-8)


def learn(fit: StepFit, cost: StepCost, count: int, noise: float = 0.0) -> None:
    drawn = random.Random(1)
    for _ in range(count):
        rows, context = drawn.randint(1, 512), drawn.randint(0, 8192)
        seconds = cost.seconds(rows, rows * context) * (1 + noise * drawn.random())
        fit.add(rows, rows * context, seconds)


def close(cost: StepCost | None, expected: StepCost, rel: float) -> bool:
    assert cost is not None
    sizes = [(1, 100), (512, 0), (512, 512 * 8000)]
    return all(
        cost.seconds(*size) == pytest.approx(expected.seconds(*size), rel=rel) for size in sizes
    )


def test_steps_of_many_sizes_give_the_law_behind_them() -> None:
    fit = StepFit()
    learn(fit, TRUE, 50)
    assert close(fit.cost(), TRUE, 0.001)


def test_noise_of_a_fifth_leaves_predictions_right_within_that() -> None:
    fit = StepFit()
    learn(fit, TRUE, 200, noise=0.2)
    assert close(fit.cost(), TRUE, 0.2)


def test_a_pause_hardly_changes_what_is_predicted() -> None:
    fit = StepFit()
    learn(fit, TRUE, 50)
    fit.add(256, 256 * 1000, 30.0)
    assert close(fit.cost(), TRUE, 0.05)


def test_a_worker_that_becomes_slower_is_believed_soon() -> None:
    fit = StepFit()
    learn(fit, TRUE, 300)
    slower = StepCost(3 * TRUE.base_s, 3 * TRUE.row_s, 3 * TRUE.pair_s)
    learn(fit, slower, 300)
    assert close(fit.cost(), slower, 0.1)


def test_where_only_pairs_seem_to_cost_time_a_row_is_still_not_free() -> None:
    fit = StepFit()
    for context in range(100, 2000, 100):
        fit.add(64, 64 * context, 1e-8 * 64 * context)
    cost = fit.cost()
    assert cost is not None and cost.seconds(64, 64 * 1000) == pytest.approx(6.4e-4, rel=0.01)
    assert cost.seconds(512, 0.0) > 0
    told = Pace.of(Pace(prefill=StepCost(0.0, 0.0, 1e-8)).message()).prefill
    assert told is not None and told.seconds(1, 0.0) > 0


def test_no_term_is_ever_negative() -> None:
    fit = StepFit()
    for rows in (100, 200, 300, 400) * 4:
        fit.add(rows, rows, 0.001 * rows - 0.05)  # steeper than proportional
    cost = fit.cost()
    assert cost is not None
    assert min(cost.base_s, cost.row_s, cost.pair_s) >= 0


def test_batches_of_one_size_are_predicted_though_nothing_tells_their_parts_apart() -> None:
    fit = StepFit()
    for _ in range(20):
        fit.add(8, 0, 0.02)
    cost = fit.cost()
    assert cost is not None
    assert cost.seconds(8, 0) == pytest.approx(0.02, rel=1e-3)


def test_a_worker_that_has_hardly_run_says_nothing() -> None:
    fit = StepFit()
    learn(fit, TRUE, 1)
    assert fit.cost() is None


def test_a_second_step_like_the_first_is_enough_though_that_one_was_long() -> None:
    fit = StepFit()
    fit.add(300, 45_000, 20.0)  # weights were read, kernels loaded
    fit.add(250, 31_250, 1.0)
    cost = fit.cost()
    assert cost is not None
    assert cost.seconds(200, 20_000) == pytest.approx(0.8, rel=0.2)


def test_decode_rows_beside_a_prompt_do_not_make_prompts_look_slow() -> None:
    meter = PaceMeter()
    decode = StepCost(0.01, 1e-4, 1e-6)  # reading KV is a hundred times as dear as in a prompt
    for batch in range(1, 40):
        context = batch * 1000
        meter.observe_step(decode.seconds(batch, context), decode_rows=batch, decode_pairs=context)
    for number in range(1, 40):
        rows, pairs, batch = 10 * number, 100 * number, 20
        beside = decode.seconds(batch, batch * 1000, steps=0)
        meter.observe_step(
            TRUE.seconds(rows, pairs) + beside,
            prompt_rows=rows,
            prompt_pairs=pairs,
            decode_rows=batch,
            decode_pairs=batch * 1000,
        )
    pace = meter.pace(chunk_tokens=512, token_bytes=1000)
    assert pace.prefill is not None
    assert pace.prefill.seconds(200, 2000) == pytest.approx(TRUE.seconds(200, 2000), rel=0.05)


def test_drafts_that_are_right_show_in_the_tokens_of_a_step() -> None:
    meter = PaceMeter()
    for _ in range(10):
        meter.observe_tokens(tokens=6, sequences=2)
    assert meter.pace(chunk_tokens=512, token_bytes=1000).tokens_per_step == pytest.approx(3)


def test_the_link_is_as_fast_as_its_fetches() -> None:
    meter = PaceMeter()
    for _ in range(10):
        meter.observe_fetch(num_bytes=1 << 20, seconds=0.001)
    pace = meter.pace(chunk_tokens=512, token_bytes=1)
    assert pace.link_bytes_s == pytest.approx((1 << 20) * 1e3)


@pytest.mark.parametrize("pace", [Pace(), Pace(TRUE, None, 512, 1.5, 1e9, 4096, 0.25)])
def test_a_pace_reaches_the_router_as_it_was_measured(pace: Pace) -> None:
    assert Pace.of(pace.message()) == pace


def test_a_step_has_as_many_rows_as_fit_its_time_unless_its_base_would_be_wasted() -> None:
    slow = StepCost(base_s=0.02, row_s=0.004, pair_s=0.0)
    assert slow.rows_in(0.25) == pytest.approx(57.5)
    assert slow.seconds(slow.rows_in(0.25), 0) == pytest.approx(0.25)
    heavy = StepCost(base_s=0.2, row_s=0.004, pair_s=0.0)
    assert heavy.rows_in(0.25) == pytest.approx(200), "four times the base, or more"
