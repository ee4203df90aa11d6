"""Sequences to draft for, and the drafters that learn nothing from a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from triptych.drafters.drafter import Ask, Drafter, Hints
from triptych.drafters.ngram import NgramDrafter
from triptych.drafters.suffix import SuffixDrafter, SuffixOptions
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence
from triptych_kernels.suffix_tree import PythonSuffixTree

DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "ngram": NgramDrafter,
    "suffix": SuffixDrafter,
    "suffix tree mode": lambda: SuffixDrafter(SuffixOptions(tree=True)),
    "suffix in Python": lambda: SuffixDrafter(make_tree=PythonSuffixTree),
}


@pytest.fixture(params=list(DRAFTERS))
def drafter(request: pytest.FixtureRequest) -> Drafter:
    return DRAFTERS[request.param]()


class Talk:
    """One sequence and its drafter."""

    def __init__(self, drafter: Drafter, prompt: Iterable[int], hints: Hints = Hints()) -> None:  # noqa: B008
        self.drafter = drafter
        self.sequence = Sequence("talk", list(prompt), root=b"", block_tokens=16)
        drafter.begin(self.sequence, hints)

    def say(self, tokens: Iterable[int]) -> Talk:
        for token in tokens:
            self.sequence.append(token)
        return self

    def draft(self, max_nodes: int = 8) -> Draft:
        (draft,) = self.drafter.propose([Ask(self.sequence, max_nodes)])
        return draft

    def end(self) -> None:
        self.drafter.end(self.sequence)


@pytest.fixture
def talk() -> type[Talk]:
    return Talk
