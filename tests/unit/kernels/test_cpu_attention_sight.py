"""Native attention shows a row what it may see, nothing else: trees of drafts, broken numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from triptych.testing.kv_prompts import Prompt
from triptych.testing.native_kernels import Rows, libraries

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

DTYPES = ["float32", "bfloat16", "int8"]
TREE = [-1, 0, 1, 0, 3, -1, 5, 2, 7, 7, 4]  # each draft's parent


def path_of(node: int) -> list[int]:
    """Nodes from the root to `node`."""
    return [] if node < 0 else [*path_of(TREE[node]), node]


def tree_prompt(dtype: str, head_dim: int, base: int) -> tuple[Prompt, Rows]:
    """The tree's nodes lie behind `base` positions, one slot each."""
    prompt = Prompt(LIBRARIES[0], dtype, head_dim, 3, 32, base + len(TREE)).put()
    return prompt, Rows(prompt.queries[base:], base, prompt.blocks, TREE)


def chain_of(prompt: Prompt, base: int, nodes: list[int]) -> tuple[Prompt, Rows]:
    """A prompt of its own, in which the path's nodes follow each other."""
    layout = prompt.pool.layout
    group = prompt.queries.shape[1] // layout.num_kv_heads
    chain = Prompt(LIBRARIES[0], layout.dtype, layout.head_dim, group, 16, base + len(nodes))
    order = [*range(base), *(base + node for node in nodes)]
    chain.keys, chain.values = prompt.keys[order], prompt.values[order]
    chain.queries = prompt.queries[order]
    return chain.put(), chain.rows(base, base + len(nodes))


@pytest.mark.parametrize("visible", [(0, 0.0), (4, 0.0), (40, 3.0)], ids=str)
@pytest.mark.parametrize("base", [0, 5, 117, 126, 128, 150, 1020])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_draft_in_a_tree_has_the_bits_of_its_own_path(
    dtype: str, base: int, visible: tuple[int, float]
) -> None:
    window, softcap = visible
    for head_dim in (24, 64):
        prompt, tree = tree_prompt(dtype, head_dim, base)
        (found,) = prompt.attend(tree, window=window, softcap=softcap)
        for node in range(len(TREE)):
            chain, rows = chain_of(prompt, base, path_of(node))
            (alone,) = chain.attend(rows, window=window, softcap=softcap)
            assert torch.equal(found[node], alone[-1]), f"node {node}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_given_as_a_tree_is_a_chain(dtype: str) -> None:
    for base in (0, 100, 1000):
        prompt = Prompt(LIBRARIES[0], dtype, 64, 3, 32, base + 40).put()
        chain = prompt.rows(base, base + 40)
        tree = Rows(chain.queries, base, prompt.blocks, list(range(-1, 39)))
        for window in (0, 30):
            (plain,) = prompt.attend(chain, window=window)
            assert torch.equal(prompt.attend(tree, window=window)[0], plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_draft_sees_nothing_of_its_siblings(dtype: str) -> None:
    prompt, tree = tree_prompt(dtype, 64, 125)
    (before,) = prompt.attend(tree)
    prompt.keys[125 + 3] = 100.0
    prompt.values[125 + 3] = math.nan
    prompt.put(125)
    (after,) = prompt.attend(tree)
    changed = [node for node in range(len(TREE)) if 3 in path_of(node)]
    for node in range(len(TREE)):
        if node in changed:
            assert after[node].isnan().all()
        else:
            assert torch.equal(after[node], before[node])


def break_key(prompt: Prompt, position: int) -> None:
    prompt.keys[position, 0, 3] = math.nan


def break_value(prompt: Prompt, position: int) -> None:
    prompt.values[position, 0, 3] = math.nan


def break_value_beyond_bounds(prompt: Prompt, position: int) -> None:
    prompt.values[position, 0, 3] = -math.inf


@pytest.mark.parametrize("harm", [break_key, break_value, break_value_beyond_bounds])
@pytest.mark.parametrize("head_dim", [24, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_shows_in_exactly_the_rows_that_see_it(
    dtype: str, head_dim: int, harm: Callable[[Prompt, int], None]
) -> None:
    for block_tokens, position in ((32, 77), (16, 77), (64, 1023), (32, 1100)):
        prompt = Prompt(LIBRARIES[0], dtype, head_dim, 3, block_tokens, 1200).put()
        begin, end = position - 50, position + 100
        for window in (0, 30):
            (clean,) = prompt.attend(prompt.rows(begin, end), window=window)
            broken = Prompt(LIBRARIES[0], dtype, head_dim, 3, block_tokens, 1200)
            harm(broken, position)
            (found,) = broken.put().attend(broken.rows(begin, end), window=window)
            seen = slice(50, 50 + (window or 100))
            assert found[seen, :3].isnan().any(-1).all()  # by the heads that read KV head 0
            found[seen, :3] = clean[seen, :3]
            assert torch.equal(found, clean)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_is_not_a_number_harms_no_row_beside_it(dtype: str) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        prompt = Prompt(LIBRARIES[0], dtype, 64, 3, 32, 300).put()
        (clean,) = prompt.attend(prompt.rows(200, 300))
        prompt.queries[250, 4, 0] = bad
        (found,) = prompt.attend(prompt.rows(200, 300))
        assert not found[50, 4].isfinite().any()
        found[50, 4] = clean[50, 4]
        assert torch.equal(found, clean)
