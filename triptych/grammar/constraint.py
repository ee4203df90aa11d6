"""A compiled grammar, and where one sequence stands in it."""

from __future__ import annotations

import functools

import numpy as np
import torch
from llguidance import LLMatcher
from numpy.typing import NDArray
from torch import Tensor


class CompiledGrammar:
    """Immutable; any number of sequences start from it."""

    def __init__(self, matcher: LLMatcher) -> None:
        """`matcher` stands at the grammar's beginning and stays there."""
        self._matcher = matcher

    def constraint(self, start: int) -> GrammarConstraint:
        """For a sequence whose tokens from index `start` on are the answer."""
        return GrammarConstraint(self._matcher, start)


class GrammarConstraint:
    """The engine's Constraint by llguidance.

    The matcher can go back, so it is moved to whatever it is asked about, from where it stands: a
    walk down a draft costs a token each, the next branch goes back to where the two part.
    """

    def __init__(self, origin: LLMatcher, start: int) -> None:
        """`origin` stands at the grammar's beginning and stays there."""
        self._origin = origin
        self._start = start
        self._begin()
        self.failure = ""

    def restrict(self, logits: Tensor, tokens: list[int], path: tuple[int, ...]) -> None:
        if self._move_to(tokens, path):
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            penalties = _penalties_of_bytes().take(bits, axis=0).reshape(-1)
            logits += torch.from_numpy(penalties)[: len(logits)]
        if self._matcher.is_error():  # a limit: some tokens are allowed, but nobody knows which
            logits.fill_(-torch.inf)
            self.failure = f"the grammar became too complex: {self._matcher.get_error()}"
            self._begin()  # it may have been the wrong branch of a draft

    def is_complete(self, tokens: list[int]) -> bool:
        there = self._move_to(tokens, ())
        return there and self._matcher.is_stopped() and not self._matcher.is_error()

    def _begin(self) -> None:
        self._matcher = self._origin.deep_copy()
        self._settled = self._start  # tokens that were taken in, never to be taken back
        self._ahead: list[int] = []  # taken in behind them

    def _move_to(self, tokens: list[int], path: tuple[int, ...]) -> bool:
        """False: the grammar does not allow them."""
        wanted = [*tokens[self._settled :], *path]
        common = _common_length(wanted, self._ahead)
        if common < len(self._ahead):
            self._matcher.rollback(len(self._ahead) - common)
        taken = common + self._matcher.try_consume_tokens(wanted[common:])
        settled = min(taken, len(tokens) - self._settled)
        self._settled += settled
        self._ahead = wanted[settled:taken]
        return taken == len(wanted)


@functools.cache
def _penalties_of_bytes() -> NDArray[np.float32]:
    """[256, 8]: 0 where a byte of the mask has a bit, −∞ elsewhere. To add eight of these at a time
    takes a tenth of what filling by single bits does.
    """
    values = np.arange(256, dtype=np.uint8)[:, None]
    bits = np.unpackbits(values, axis=1, bitorder="little")
    return np.where(bits, np.float32(0), np.float32(-np.inf))


def _common_length(first: list[int], second: list[int]) -> int:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
