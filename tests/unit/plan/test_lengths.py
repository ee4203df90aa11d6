"""What slots hold, against closed forms and against a simulated slot."""

from __future__ import annotations

import numpy as np
import pytest

from triptych.plan.lengths import (
    Constant,
    Geometric,
    Law,
    Lognormal,
    Uniform,
    load_of_laws,
    load_of_trace,
    slowest_of,
)


def test_theta_in_closed_form() -> None:
    prompt = Constant(mean=1000)
    assert load_of_laws(prompt, Constant(mean=500)).theta == pytest.approx(1000 + 499 / 2)
    assert load_of_laws(prompt, Geometric(mean=300)).theta == pytest.approx(1000 + 299)
    low, high = 100, 900
    squares = sum(d * d for d in range(low, high + 1)) / (high - low + 1)
    uniform = load_of_laws(prompt, Uniform(low=low, high=high))
    assert uniform.theta == pytest.approx(1000 + (squares / 500 - 1) / 2)
    heavy = load_of_laws(prompt, Lognormal(mean=500, sigma=1.0))
    assert heavy.theta == pytest.approx(1000 + (500 * np.e - 1) / 2)


def test_constant_lengths_spread_evenly_over_a_request() -> None:
    load = load_of_laws(Constant(mean=10), Constant(mean=5))
    tokens = 10 + np.arange(5)
    assert load.theta == pytest.approx(tokens.mean())
    assert load.nu == pytest.approx(tokens.std())
    assert load.skew == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "output",
    [Geometric(mean=20), Uniform(low=3, high=40), Constant(mean=12)],
    ids=lambda law: law.law,
)
def test_moments_are_those_of_all_steps_of_many_requests(output: Law) -> None:
    random = np.random.default_rng(0)
    prompts = random.geometric(1 / 30, 60_000)
    outputs = {
        "geometric": random.geometric(1 / 20, 60_000),
        "uniform": random.integers(3, 41, 60_000),
        "constant": np.full(60_000, 12),
    }[output.law]
    ages = np.concatenate([np.arange(length) for length in outputs])
    tokens = np.repeat(prompts, outputs) + ages
    skew = ((tokens - tokens.mean()) ** 3).mean() / tokens.std() ** 3
    by_law = load_of_laws(Geometric(mean=30), output)
    by_trace = load_of_trace(list(zip(prompts.tolist(), outputs.tolist(), strict=True)))
    assert by_trace.theta == pytest.approx(tokens.mean())
    assert by_trace.nu == pytest.approx(tokens.std())
    assert by_trace.skew == pytest.approx(skew)
    assert by_law.theta == pytest.approx(tokens.mean(), rel=0.03)
    assert by_law.nu == pytest.approx(tokens.std(), rel=0.03)
    assert by_law.skew == pytest.approx(skew, rel=0.1)


def test_a_short_trace_says_how_little_it_knows() -> None:
    random = np.random.default_rng(1)

    def trace(size: int) -> list[tuple[int, int]]:
        lengths = random.geometric(1 / 100, (size, 2))
        return [(int(p), int(d)) for p, d in lengths]

    thetas = [load_of_trace(trace(200)).theta for _ in range(200)]
    told = load_of_trace(trace(200)).error
    assert told == pytest.approx(np.std(thetas) / np.mean(thetas), rel=0.4)
    assert load_of_trace(trace(20_000)).error < 0.02


def test_requests_without_answers_hold_no_slot() -> None:
    assert load_of_trace([(5, 2), (10**6, 0)]) == load_of_trace([(5, 2)])


def test_the_slowest_of_many() -> None:
    known = {1: 0.0, 2: 0.5642, 3: 0.8463, 4: 1.0294, 5: 1.1630, 8: 1.4236, 16: 1.7660}
    for count, mean in known.items():
        assert slowest_of(count) == pytest.approx(mean, abs=2e-4)
