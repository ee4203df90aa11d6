"""From a grammar to the text that llguidance compiles, and what is wrong with it. No torch here."""

from __future__ import annotations

import json
from typing import Any

from llguidance import LLMatcher, LLParserLimits, grammar_from

from triptych.errors import RequestError
from triptych.grammar.closed import closed
from triptych.request import Grammar, GrammarKind

# Between JSON's tokens: nothing, one blank, or a line break with its indentation. Where any run of
# blanks is allowed, small models never stop writing them.
_JSON_BLANKS = r"(\n[ \t]{0,32}| )?"

# A grammar is the caller's, the step loop everybody's: the library's own limits end a mask after 20
# milliseconds at most. Each lexer state takes about 2 KB for as long as the grammar is kept.
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
_MOST_CHARS = 1 << 17
_MOST_RULES = 1000  # a rule a line; and as many references of a JSON schema


def any_json_object() -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object"}')


def json_schema(schema: object) -> Grammar:
    """`schema`: JSON values."""
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema, ensure_ascii=False))


def json_term(schema: Any) -> str:
    """JSON of a schema, as a term of a Lark grammar."""
    if isinstance(schema, dict):
        schema = {"x-guidance": {"whitespace_pattern": _JSON_BLANKS}, **closed(schema)}
    return f"%json {json.dumps(schema, ensure_ascii=False)}"


def term(grammar: Grammar) -> str:
    """All of a grammar, as a term of a Lark grammar. Raises RequestError like `compiler_input`."""
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        return json_term(json.loads(grammar.text))
    source = compiler_input(grammar)
    if grammar.kind is GrammarKind.REGEX:
        [wrapped] = json.loads(source)["grammars"]
        source = wrapped["lark_grammar"]
    return f"%lark {{\n{source}\n}}"


def compiler_input(grammar: Grammar) -> str:
    """Raises RequestError where the text is not even of its language."""
    try:
        match grammar.kind:
            case GrammarKind.JSON_SCHEMA:
                return LLMatcher.grammar_from_json_schema(
                    json.dumps(closed(json.loads(grammar.text)), ensure_ascii=False),
                    defaults={"whitespace_pattern": _JSON_BLANKS},
                )
            case GrammarKind.REGEX:
                return LLMatcher.grammar_from_regex(grammar.text)
            case GrammarKind.CHOICE:
                texts = (json.dumps(each, ensure_ascii=False) for each in json.loads(grammar.text))
                return LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}")
            case GrammarKind.LARK:
                return grammar_from("grammar", grammar.text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{grammar.kind}: {error}") from None


def check_size(grammar: Grammar) -> None:
    """Raises RequestError for more than the compiler can be trusted with."""
    text = grammar.text
    rules = text.count('"$ref"') + text.count("\n") * (grammar.kind is GrammarKind.LARK)
    for count, most, what in (
        (len(text), _MOST_CHARS, "characters"),
        (rules, _MOST_RULES, "rules and references"),
    ):
        if count > most:
            raise RequestError(f"has {count} {what}; at most {most} are compiled")


def check_grammar(grammar: Grammar, field: str) -> None:
    """Raises RequestError(param=field) for what no home could compile. Needs a deep stack."""
    try:
        check_size(grammar)
        problem = LLMatcher.validate_grammar(compiler_input(grammar), limits=LIMITS)
    except RequestError as error:
        problem = str(error)
    if problem:
        raise RequestError(f"{field}: {' '.join(problem.split())[:1000]}", param=field)
