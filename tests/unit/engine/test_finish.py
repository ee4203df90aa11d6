"""When a choice ends, and what it says about that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from triptych.engine.sampler import Sampler
from triptych.engine.sequence import Sequence
from triptych.request import FinishReason, SamplingParams
from triptych_kernels.sampling import NO_TOKEN

PROMPT = list(range(3, 40))
GREEDY = SamplingParams(seed=0, max_tokens=10, temperature=0.0, ignore_eos=True)


class StopAfter:
    """Matches from a given token on."""

    def __init__(self, count: int) -> None:
        self.left = count

    def push(self, token_id: int) -> str | None:
        self.left -= 1
        return "END" if self.left == 0 else None


@pytest.fixture
def greedy(make_home: Callable[..., Any]) -> list[int]:
    home = make_home()
    home.submit(PROMPT, GREEDY)
    return home.run()[0]


def test_max_tokens_ends_with_length(make_home: Callable[..., Any], greedy: list[int]) -> None:
    home = make_home()
    sequence = home.submit(PROMPT, replace(GREEDY, max_tokens=4))
    assert home.run() == [greedy[:4]]
    assert sequence.finish_reason is FinishReason.LENGTH
    assert home.outputs[-1].delta.finish_reason is FinishReason.LENGTH


def test_a_full_context_ends_with_length(make_home: Callable[..., Any]) -> None:
    home = make_home()
    sequence = home.submit([5] * 1020, replace(GREEDY, max_tokens=100))
    assert len(home.run()[0]) == 4
    assert sequence.finish_reason is FinishReason.LENGTH


def test_a_stop_token_ends_the_choice_and_is_named(
    make_home: Callable[..., Any], greedy: list[int]
) -> None:
    home = make_home()
    sequence = home.submit(PROMPT, replace(GREEDY, stop_token_ids=(greedy[2],)))
    first = greedy.index(greedy[2])
    assert home.run() == [greedy[: first + 1]]
    assert sequence.finish_reason is FinishReason.STOP and sequence.stop_reason == greedy[2]


def test_end_of_sequence_ends_the_choice_unless_it_is_ignored(
    make_home: Callable[..., Any], model: Any
) -> None:
    (eos, *_) = model.config.eos_token_ids
    wants_eos = replace(GREEDY, logit_bias={eos: 1e9}, ignore_eos=False)
    home = make_home()
    home.submit(PROMPT, wants_eos)
    home.submit(PROMPT, replace(wants_eos, ignore_eos=True))
    stopped, ignored = home.run()
    assert stopped == [eos] and ignored == [eos] * 10
    assert home.sequences[0].stop_reason is None


def test_before_min_tokens_neither_end_of_sequence_nor_stop_tokens_are_drawn(
    make_home: Callable[..., Any], model: Any
) -> None:
    (eos, *_) = model.config.eos_token_ids
    params = replace(
        GREEDY, logit_bias={eos: 1e9, 7: 1e8}, ignore_eos=False, stop_token_ids=(7,), min_tokens=5
    )
    home = make_home()
    home.submit(PROMPT, params)
    (tokens,) = home.run()
    assert len(tokens) == 6 and tokens[5] == eos and not {eos, 7} & set(tokens[:5])


def test_a_stop_string_ends_the_choice_but_not_before_min_tokens(
    make_home: Callable[..., Any],
) -> None:
    home = make_home()
    for min_tokens in (0, 3, 4):
        sequence = home.submit(PROMPT, replace(GREEDY, min_tokens=min_tokens))
        sequence.stop_watch = StopAfter(3)
    lengths = [len(tokens) for tokens in home.run()]
    assert lengths == [3, 3, 10]
    assert [seq.stop_reason for seq in home.sequences] == ["END", "END", None]


def test_a_draw_without_any_number_ends_the_sequence_without_a_token(
    make_home: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Sampler, rows: Any, spots: Any) -> list[int]:
        return [NO_TOKEN for _ in spots]

    monkeypatch.setattr(Sampler, "draw_rows", broken)
    home = make_home()
    sequence = home.submit(PROMPT, GREEDY)
    assert home.run() == [[]]
    assert sequence.finished and home.outputs[0].drawn.broken
    assert home.pool.counts()["request"] == 0


def test_output_tokens_are_counted_whenever_somebody_asks() -> None:
    sequence = Sequence("r", [5, 5], b"", 16)
    sequence.append(5)
    sequence.append(6)
    assert sequence.output_counts == {5: 1, 6: 1}
    sequence.append(6)
    assert sequence.output_counts == {5: 1, 6: 2}
