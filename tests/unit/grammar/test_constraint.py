"""Where a sequence stands in its grammar is a function of its tokens, not of what was asked."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from triptych.errors import RequestError
from triptych.grammar.cache import GrammarCache, compile_grammar
from triptych.grammar.constraint import CompiledGrammar, GrammarConstraint
from triptych.grammar.deep_stack import on_deep_stack
from triptych.grammar.source import check_grammar, json_schema
from triptych.grammar.vocabulary import grammar_vocabulary
from triptych.request import Grammar, GrammarKind
from triptych.testing.grammars import GRAMMARS, PERSON
from triptych.testing.tiny_chat import save_tiny_chat
from triptych.testing.tiny_tokenizers import byte_level, save_folder, sentencepiece
from triptych.tokenizer import Detokenizer, Tokenizer

TEXT = '{"name": "thé", "age": 12, "tags": ["red"]}'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(save_tiny_chat(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    # As if the model's head had some columns more.
    return grammar_vocabulary(tokenizer, tokenizer.vocab_size + 5, tokenizer.eos_token_ids)


@pytest.fixture
def person(vocabulary: LLTokenizer) -> CompiledGrammar:
    return compile_grammar(vocabulary, json_schema(PERSON))


def allowed(
    constraint: GrammarConstraint, size: int, tokens: list[int], path: tuple[int, ...] = ()
) -> list[int]:
    logits = torch.zeros(size)
    constraint.restrict(logits, tokens, path)
    return [token for token, value in enumerate(logits.tolist()) if value == 0.0]


def test_masks_do_not_depend_on_which_branches_were_asked_for_before(
    person: CompiledGrammar, tokenizer: Tokenizer
) -> None:
    prompt, answer = [1, 2, 3], tokenizer.encode(TEXT, add_special_tokens=False)
    size, draw = tokenizer.vocab_size + 5, random.Random(1)
    wandering = person.constraint(len(prompt))
    for length in range(len(answer)):
        tokens = prompt + answer[:length]
        for _ in range(6):  # branches of a draft: some right, some forbidden, some too long
            path = answer[length : length + draw.randrange(6)]
            path += [draw.randrange(size) for _ in range(draw.randrange(3))]
            fresh = person.constraint(len(prompt))
            assert allowed(wandering, size, tokens, (*path,)) == allowed(
                fresh, size, tokens, (*path,)
            )
        assert answer[length] in allowed(wandering, size, tokens)


def test_nothing_is_said_of_what_follows_a_forbidden_token(
    person: CompiledGrammar, tokenizer: Tokenizer
) -> None:
    constraint, size = person.constraint(0), tokenizer.vocab_size
    [brace] = tokenizer.encode("]", add_special_tokens=False)
    assert brace not in allowed(constraint, size, [])
    assert len(allowed(constraint, size, [], (brace,))) == size
    assert allowed(constraint, size, []) == allowed(person.constraint(0), size, [])


def test_a_grammar_is_complete_when_nothing_but_the_end_may_follow(
    person: CompiledGrammar, tokenizer: Tokenizer
) -> None:
    answer = tokenizer.encode(TEXT, add_special_tokens=False)
    constraint = person.constraint(0)
    assert [constraint.is_complete(answer[:n]) for n in range(len(answer) + 1)] == [False] * len(
        answer
    ) + [True]


def test_the_end_is_allowed_where_the_grammar_may_end_and_nowhere_else(
    vocabulary: LLTokenizer, tokenizer: Tokenizer
) -> None:
    digits = compile_grammar(vocabulary, Grammar(GrammarKind.REGEX, "[0-9]{1,3}")).constraint(0)
    size, end = tokenizer.vocab_size, tokenizer.eos_token_ids[0]
    two = tokenizer.encode("12", add_special_tokens=False)
    assert end not in allowed(digits, size, [])
    assert end in allowed(digits, size, two)
    assert not digits.is_complete(two), "a third may follow"


def test_ids_without_a_piece_are_never_allowed(
    vocabulary: LLTokenizer, tokenizer: Tokenizer
) -> None:
    anything = compile_grammar(vocabulary, Grammar(GrammarKind.REGEX, "(.|\n)*")).constraint(0)
    size = tokenizer.vocab_size + 5
    assert max(allowed(anything, size, [])) < tokenizer.vocab_size


@pytest.mark.parametrize(
    "tight", [{"step_max_items": 1}, {"max_items_in_row": 1}], ids=["masks", "moves"]
)
def test_a_grammar_that_grows_too_complex_forbids_everything_and_says_why(
    vocabulary: LLTokenizer, tokenizer: Tokenizer, tight: dict[str, int]
) -> None:
    limits = LLParserLimits(verbose_errors=False, **tight)
    source = LLMatcher.grammar_from_json_schema(json.dumps(PERSON))
    matcher = LLMatcher(vocabulary, source, limits=limits, log_level=0)
    constraint, size = CompiledGrammar(matcher).constraint(0), tokenizer.vocab_size
    answer = tokenizer.encode(TEXT, add_special_tokens=False)
    at_start = allowed(constraint, size, [])
    assert at_start and not constraint.failure
    paths = [(*answer[:length],) for length in range(1, len(answer))]
    assert any(allowed(constraint, size, [], path) == [] for path in paths)
    assert "too complex" in constraint.failure
    assert allowed(constraint, size, []) == at_start, "it was a draft's branch only"


@pytest.mark.parametrize("name", GRAMMARS)
def test_sound_grammars_pass_the_check(name: str) -> None:
    check_grammar(GRAMMARS[name].grammar, "field")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (GrammarKind.JSON_SCHEMA, '{"type": "objec"}'),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "#/nowhere"}'),
        (GrammarKind.JSON_SCHEMA, "[1"),
        (GrammarKind.REGEX, "a("),
        (GrammarKind.LARK, "start: nobody"),
        (GrammarKind.LARK, "root ::= ["),
        (GrammarKind.REGEX, "(?<=a)b"),
    ],
)
def test_the_others_are_refused_by_field(kind: GrammarKind, text: str) -> None:
    with pytest.raises(RequestError, match="^field: .") as refused:
        check_grammar(Grammar(kind, text), "field")
    assert refused.value.param == "field"


def chain(count: int) -> Grammar:
    """Every object holds the next."""
    links = {
        f"a{index}": {"properties": {"x": {"$ref": f"#/$defs/a{index + 1}"}}, "required": ["x"]}
        for index in range(count)
    }
    schema = {"$ref": "#/$defs/a0", "$defs": {**links, f"a{count}": {"type": "integer"}}}
    return json_schema(schema)


async def test_a_long_chain_of_rules_compiles_on_a_deep_stack(
    vocabulary: LLTokenizer, tokenizer: Tokenizer
) -> None:
    grammar = chain(990)
    await on_deep_stack(lambda: check_grammar(grammar, "field"))
    compiled = await GrammarCache(lambda: vocabulary).get(grammar)
    assert allowed(compiled.constraint(0), tokenizer.vocab_size, [])


@pytest.mark.parametrize(
    ("grammar", "what"),
    [
        (chain(1100), "rules and references"),
        (Grammar(GrammarKind.LARK, "\n".join(f"a{n}: a{n + 1}" for n in range(3000))), "rules"),
        (Grammar(GrammarKind.REGEX, "a" * 200_000), "characters"),
    ],
    ids=["references", "rules", "characters"],
)
async def test_what_is_too_large_to_be_compiled_is_refused(
    vocabulary: LLTokenizer, grammar: Grammar, what: str
) -> None:
    with pytest.raises(RequestError, match=f"^field: has [0-9]+ {what}"):
        check_grammar(grammar, "field")
    with pytest.raises(RequestError, match=what):
        await GrammarCache(lambda: vocabulary).get(grammar)


async def test_a_grammar_is_compiled_once_however_many_ask(vocabulary: LLTokenizer) -> None:
    made: list[None] = []

    def make() -> LLTokenizer:
        made.append(None)
        return vocabulary

    cache = GrammarCache(make, capacity=2)
    asked = [GRAMMARS[name].grammar for name in ("regex", "choice")] * 3
    found = await asyncio.gather(*map(cache.get, asked))
    assert len(made) == 1 and len({id(compiled) for compiled in found}) == 2
    await cache.get(GRAMMARS["lark"].grammar)
    assert await cache.get(asked[1]) is found[1], "asked for last"
    assert await cache.get(asked[0]) is not found[0], "made room"


async def test_what_does_not_compile_is_refused_every_time(vocabulary: LLTokenizer) -> None:
    cache = GrammarCache(lambda: vocabulary)
    for _ in range(2):
        with pytest.raises(RequestError, match="regex"):
            await cache.get(Grammar(GrammarKind.REGEX, "a("))


def test_a_grammar_may_ask_for_a_special_token_by_its_id(
    vocabulary: LLTokenizer, tokenizer: Tokenizer
) -> None:
    """As those of tool calls do, where a family's markers are special tokens."""
    marker, size = tokenizer.special_id("<|im_start|>"), tokenizer.vocab_size
    assert marker is not None
    by_id = compile_grammar(vocabulary, Grammar(GrammarKind.LARK, f'start: <[{marker}]> "th"'))
    assert allowed(by_id.constraint(0), size, []) == [marker]
    following = allowed(by_id.constraint(0), size, [marker])
    assert [tokenizer.token_text(token) for token in following] == ["th"], "as it is tokenised"
    by_text = compile_grammar(vocabulary, Grammar(GrammarKind.LARK, 'start: "<|im_start|>"'))
    assert marker not in allowed(by_text.constraint(0), size, [])


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("name", GRAMMARS)
def test_random_tokens_that_a_grammar_allows_are_a_sentence_of_it(
    name: str, make: Callable[[], Any], tmp_path: Path
) -> None:
    """Also where the tokenizer puts a space before whatever it is given."""
    files = {"config.json": {}, "tokenizer_config.json": {"eos_token": "</s>"}}
    tokenizer = Tokenizer.load(save_folder(tmp_path, make(), files))
    vocabulary = grammar_vocabulary(tokenizer, tokenizer.vocab_size, tokenizer.eos_token_ids)
    compiled, draw, texts = (
        compile_grammar(vocabulary, GRAMMARS[name].grammar),
        random.Random(3),
        [],
    )
    for _ in range(20):
        constraint, tokens = compiled.constraint(0), list[int]()
        while len(tokens) < 150 and not constraint.is_complete(tokens):
            tokens.append(draw.choice(allowed(constraint, tokenizer.vocab_size, tokens)))
            if tokens[-1] in tokenizer.eos_token_ids:
                break
        else:
            if len(tokens) == 150:
                continue
        detokenizer = Detokenizer(tokenizer, continues=True)
        texts.append("".join([*map(detokenizer.push, tokens), detokenizer.flush()]))
    assert len(texts) > 5
    assert all(map(GRAMMARS[name].accepts, texts))
