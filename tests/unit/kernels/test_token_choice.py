"""Which tokens an indexer chooses: exactly the best, of equal ones the first, however rows come."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from triptych_kernels import choose_tokens
from triptych_kernels.reference_sparse import index_logits, select_best

LENGTH, BLOCK_TOKENS, HEADS, DIM = 300, 16, 5, 20


class Rows:
    """Random queries, weights and keys of one sequence, the keys in scattered blocks."""

    def __init__(self) -> None:
        source = torch.Generator().manual_seed(2)
        self.queries = torch.randn(LENGTH, HEADS, DIM, generator=source)
        self.weights = torch.randn(LENGTH, HEADS, generator=source)
        self.keys = torch.randn(LENGTH, DIM, generator=source)
        self.blocks = torch.randperm(-(-LENGTH // BLOCK_TOKENS), generator=source)

    def pool(self) -> Tensor:
        """What lies behind the sequence is not a number."""
        pool = torch.full((len(self.blocks), BLOCK_TOKENS, 1, DIM), torch.nan)
        for at, key in enumerate(self.keys):
            pool[self.blocks[at // BLOCK_TOKENS], at % BLOCK_TOKENS, 0] = key
        return pool

    def chosen(self, begin: int, end: int, top_k: int) -> list[list[int]]:
        """Positions by row."""
        q, w = self.queries[begin:end], self.weights[begin:end]
        found = choose_tokens(q, w, self.pool(), self.blocks, begin, top_k)
        if found is None:
            return [list(range(row + 1)) for row in range(begin, end)]
        return [row.nonzero().flatten().tolist() for row in found]


@pytest.mark.parametrize("top_k", [1, 7, 128, 299, 300])
def test_the_best_are_chosen_whatever_chunks_rows_come_in(top_k: int) -> None:
    rows = Rows()
    whole = rows.chosen(0, LENGTH, top_k)
    assert [len(row) for row in whole] == [min(at + 1, top_k) for at in range(LENGTH)]
    ends = torch.arange(1, LENGTH + 1)
    worth = index_logits(rows.queries, rows.weights, rows.keys, 0 * ends, ends, LENGTH)
    best = select_best(worth, top_k)
    assert whole == [row[row >= 0].tolist() for row in best]
    for cuts in ([0, 1, 16, 130, LENGTH], [0, 299, LENGTH], range(LENGTH + 1)):
        parts = [rows.chosen(*edge, top_k) for edge in itertools.pairwise(cuts)]
        assert [row for part in parts for row in part] == whole


def test_of_equal_ones_the_first_are_chosen_and_what_is_no_number_always() -> None:
    rows = Rows()
    rows.weights.zero_()
    assert rows.chosen(200, 202, 5) == [[0, 1, 2, 3, 4]] * 2
    rows.keys[130] = torch.nan
    assert rows.chosen(200, 201, 5) == [[0, 1, 2, 3, 130]]
    assert rows.chosen(129, 131, 5) == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 130]]
