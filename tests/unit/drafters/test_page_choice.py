"""Which pages a sparse draft reads."""

from __future__ import annotations

import numpy as np
import pytest

from triptych.drafters.page_choice import best_pages, make_table, page_budget, recent_pages

SHARES = np.array(
    [[[0.1, 0.5, 0.0, 0.3, 0.05, 0.05]], [[0.0, 0.1, 0.4, 0.1, 0.3, 0.1]]], np.float32
)


def test_the_best_pages_and_the_first_one_are_read() -> None:
    found = best_pages(SHARES, 5, 3)
    assert found.tolist() == [[[0, 1, 3]], [[0, 2, 4]]]


def test_a_page_that_is_no_number_is_not_preferred() -> None:
    shares = SHARES.copy()
    shares[0, 0, 2] = np.nan
    assert best_pages(shares, 5, 3)[0].tolist() == [[0, 1, 3]]


def test_the_tail_is_the_same_everywhere_and_has_no_gap() -> None:
    table = make_table(SHARES, 5, 8, 2, [None, None])
    assert table.pages.tolist() == [[[0, 1, 5, 6, 7]], [[0, 2, 5, 6, 7]]]
    assert table.skipped == 3


def test_a_layer_with_a_window_reads_what_came_last() -> None:
    table = make_table(SHARES, 5, 6, 2, [None, 64])
    assert table.pages.tolist() == [[[0, 1, 5]], [[3, 4, 5]]]


def test_a_budget_for_all_pages_skips_none() -> None:
    table = make_table(SHARES, 5, 7, 9, [None, None])
    assert (table.pages == np.arange(7)).all() and table.skipped == 0


def test_recent_pages_are_the_last_ones() -> None:
    assert recent_pages(SHARES, 5, 2).tolist() == [[[3, 4]], [[3, 4]]]


@pytest.mark.parametrize(("tokens", "pages"), [(10, 16), (5120, 16), (5200, 17), (100_000, 313)])
def test_a_budget_is_a_share_of_the_context_with_a_floor(tokens: int, pages: int) -> None:
    assert page_budget(tokens, 0.05, 256, 16) == pages
