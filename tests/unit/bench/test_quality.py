"""The quality benchmark's bookkeeping."""

from __future__ import annotations

import math

import pytest
import torch

from bench.quality import fixed_text, perplexity, pieces_of


def test_pieces_are_of_one_size_and_the_rest_is_left_out() -> None:
    assert pieces_of(range(7), 3) == [[0, 1, 2], [3, 4, 5]]
    assert pieces_of(range(2), 3) == []


def test_perplexity_weighs_tokens_not_pieces() -> None:
    class Engine:
        def token_logprobs(self, ids: list[int]) -> torch.Tensor:
            return torch.tensor([math.log(1 / 2)] if ids == [0] else [math.log(1 / 8)] * 2)

    found = perplexity(Engine(), [[0], [1]])  # type: ignore[arg-type]
    assert found == pytest.approx((2 * 8 * 8) ** (1 / 3))


def test_the_default_text_is_long_and_names_its_version() -> None:
    name, text = fixed_text()
    assert "Python 3." in name
    assert len(text) > 100_000
