"""Grammars are compiled once, beside the event loop and beside the engine."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from llguidance import LLMatcher, LLTokenizer

from triptych.errors import RequestError
from triptych.grammar.constraint import CompiledGrammar
from triptych.grammar.deep_stack import on_deep_stack
from triptych.grammar.source import LIMITS, check_size, compiler_input
from triptych.request import Grammar


class GrammarCache:
    """The grammars that were asked for last. Lives on one event loop."""

    def __init__(self, vocabulary: Callable[[], LLTokenizer], capacity: int = 64) -> None:
        """`vocabulary` is called in a thread, with the first grammar."""
        self._make_vocabulary = vocabulary
        self._vocabulary: asyncio.Task[LLTokenizer] | None = None
        self._capacity = capacity
        self._compiled: OrderedDict[Grammar, asyncio.Task[CompiledGrammar]] = OrderedDict()

    async def get(self, grammar: Grammar) -> CompiledGrammar:
        """Requests that come while it is being compiled wait for the same. Raises RequestError."""
        task = self._compiled.get(grammar)
        if task is None:
            task = self._compiled[grammar] = asyncio.create_task(self._compile(grammar))
            if len(self._compiled) > self._capacity:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        try:
            return await asyncio.shield(task)  # another request may be waiting too
        except RequestError:
            self._compiled.pop(grammar, None)
            raise

    async def _compile(self, grammar: Grammar) -> CompiledGrammar:
        if self._vocabulary is None:
            self._vocabulary = asyncio.create_task(asyncio.to_thread(self._make_vocabulary))
        vocabulary = await asyncio.shield(self._vocabulary)
        return await on_deep_stack(partial(compile_grammar, vocabulary, grammar))


def compile_grammar(vocabulary: LLTokenizer, grammar: Grammar) -> CompiledGrammar:
    """Raises RequestError. Needs a deep stack for deep grammars."""
    check_size(grammar)
    matcher = LLMatcher(vocabulary, compiler_input(grammar), log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise RequestError(f"{grammar.kind}: {matcher.get_error()}", param="grammar")
    return CompiledGrammar(matcher)
