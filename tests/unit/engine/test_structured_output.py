"""An answer that must obey a grammar does, and drafts change it as little as any other answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from decode_worker.speculate.acceptance import InLaw
from decode_worker.speculate.dice import Dice
from decode_worker.speculate.fixed import Fixed
from triptych.engine.sequence import Sequence
from triptych.grammar.cache import compile_grammar
from triptych.grammar.constraint import CompiledGrammar
from triptych.grammar.vocabulary import grammar_vocabulary
from triptych.request import FinishReason, SamplingParams
from triptych.testing.drafters import Answers, Oracle
from triptych.testing.grammars import GRAMMARS
from triptych.tokenizer import Tokenizer
from triptych_kernels.verification import rejection

SEEDS = range(8)  # of each grammar


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.load(checkpoint)


@pytest.fixture(scope="module")
def compiled(tokenizer: Tokenizer) -> dict[str, CompiledGrammar]:
    vocabulary = grammar_vocabulary(tokenizer, tokenizer.vocab_size, tokenizer.eos_token_ids)
    return {
        name: compile_grammar(vocabulary, checked.grammar) for name, checked in GRAMMARS.items()
    }


def prompts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(3, 250) for _ in range(n)] for n in (1, 16, 40, 130)]


def params_of(seed: int) -> SamplingParams:
    """Greedy, sampled, filtered and penalised in turn."""
    plain: dict[str, Any] = {"seed": seed, "max_tokens": 120, "logprobs": 2 if seed % 5 else None}
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 40},
        {"temperature": 1.2, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    ]
    return SamplingParams(**plain, **kinds[seed % len(kinds)])


def requests() -> list[tuple[str, list[int], int]]:
    """Grammar, prompt, seed; every seed once, so that a seed names a request."""
    names = [*GRAMMARS, ""]  # some may say what they like
    given = prompts()
    return [
        (name, given[seed % len(given)], len(SEEDS) * index + seed)
        for index, name in enumerate(names)
        for seed in SEEDS
    ]


def submit_all(home: Any, compiled: dict[str, CompiledGrammar]) -> list[Sequence]:
    for name, prompt, seed in requests():
        constraint = compiled[name].constraint(len(prompt)) if name else None
        home.submit(prompt, params_of(seed), constraint=constraint)
    home.run()
    found: list[Sequence] = home.sequences
    return found


def told(home: Any, compiled: dict[str, CompiledGrammar]) -> list[tuple[Any, ...]]:
    """Tokens, log-probabilities and finish reasons, by request."""
    sequences = submit_all(home, compiled)
    logprobs: dict[str, list[Any]] = {}
    for output in home.outputs:
        logprobs.setdefault(output.sequence.request_id, []).append(output.drawn.logprobs)
    return [
        (s.tokens[s.num_prompt :], s.finish_reason, s.stop_reason, logprobs[s.request_id])
        for s in sequences
    ]


@pytest.fixture
def plain(
    make_home: Callable[..., Any], compiled: dict[str, CompiledGrammar]
) -> list[tuple[Any, ...]]:
    return told(make_home(), compiled)


def known(plain: list[tuple[Any, ...]]) -> Answers:
    return {
        (tuple(prompt), seed): answer[0]
        for (_, prompt, seed), answer in zip(requests(), plain, strict=True)
    }


def text_of(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode(tokens)


def test_every_answer_obeys_its_grammar_and_ends_with_it(
    plain: list[tuple[Any, ...]], tokenizer: Tokenizer
) -> None:
    texts: dict[str, set[str]] = {}
    for (name, _, _), (tokens, reason, _, _) in zip(requests(), plain, strict=True):
        if name and reason is FinishReason.STOP:
            text = text_of(tokenizer, tokens)
            assert GRAMMARS[name].accepts(text), (name, text)
            texts.setdefault(name, set()).add(text)
    assert texts.keys() == GRAMMARS.keys() and len(texts["json_schema"]) > 3
    unfinished = [
        name
        for (name, *_), (_, reason, *_) in zip(requests(), plain, strict=True)
        if name and reason is not FinishReason.STOP
    ]
    assert set(unfinished) <= {"lark"}, "only parentheses may nest for ever"


@pytest.mark.parametrize("trees", [False, True], ids=["chains", "trees"])
@pytest.mark.parametrize("settings", [{}, {"chunk_tokens": 40}, {"blocks": 24}], ids=str)
def test_any_draft_gives_the_answers_and_logprobs_of_plain_decoding(
    make_home: Callable[..., Any],
    compiled: dict[str, CompiledGrammar],
    plain: list[tuple[Any, ...]],
    trees: bool,
    settings: dict[str, Any],
) -> None:
    oracle = Oracle(known(plain), trees=trees)
    home = make_home(drafters={"oracle": oracle}, policy=Dice(most=9, seed=3), **settings)
    assert told(home, compiled) == plain
    assert oracle.num_accepted > 100 and oracle.num_rejected > 30


def test_a_drafter_that_draws_by_the_same_masks_agrees_with_its_target(
    make_home: Callable[..., Any],
    compiled: dict[str, CompiledGrammar],
    plain: list[tuple[Any, ...]],
    twin: Callable[..., Any],
) -> None:
    home = make_home(drafters_of=twin(), policy=Fixed("draft_model", 4))
    assert told(home, compiled) == plain
    accepted = sum(sequence.num_accepted for sequence in home.sequences)
    ended = len(home.sequences) * 4  # a last draft goes on behind the end
    assert accepted >= sum(sequence.num_drafted for sequence in home.sequences) - ended


def test_rules_that_are_lossless_in_law_obey_grammars_too(
    make_home: Callable[..., Any],
    compiled: dict[str, CompiledGrammar],
    plain: list[tuple[Any, ...]],
    tokenizer: Tokenizer,
) -> None:
    home = make_home(drafters={"oracle": Oracle(known(plain))}, policy=Dice(most=9, seed=3))
    home.loop._speculator.rule = InLaw(rejection)
    sequences = submit_all(home, compiled)
    ended = 0
    for (name, _, _), sequence in zip(requests(), sequences, strict=True):
        if name and sequence.finish_reason is FinishReason.STOP:
            text = text_of(tokenizer, sequence.tokens[sequence.num_prompt :])
            assert GRAMMARS[name].accepts(text), (name, text)
            ended += 1
    assert ended > 20
