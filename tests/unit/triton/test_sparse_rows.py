"""Sparse attention (BLASST) in the engine on Triton's kernels: asked for by request, counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triptych.engine.draft import ROOT, Draft
from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence
from triptych.engine.step_graph import is_plain_decode
from triptych.engine.triton_runner import TritonRunner
from triptych.models.model import Model
from triptych.request import SparseAttention, TileCount
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.on_triton import TINY, sequence_of, triton_model, triton_runner

# Three tiles of 64: rows of the last one may leave out the one in the middle.
PROMPT = torch.randint(3, 60, (136,), generator=torch.Generator().manual_seed(6)).tolist()
END = len(PROMPT)
BLOCKS = list(range(9))
LARGE = SparseAttention(128.0)  # λ is near to 1 for the last rows: tiny models' logits lie close
NEXT = 11


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Model:
    path = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint(path, "llama", **TINY | {"num_hidden_layers": 1})
    return triton_model(path, device)


@pytest.fixture(scope="module")
def runner(model: Model, device: torch.device) -> TritonRunner:
    return triton_runner(model, device, num_blocks=20)


@pytest.fixture(scope="module")
def dense(runner: TritonRunner) -> list[Tensor]:
    return said(runner, asking(None))


@pytest.fixture(scope="module")
def sparse(runner: TritonRunner) -> tuple[list[Tensor], TileCount]:
    """What a request with LARGE gets, of one chunk and alone, and what it is told."""
    sequence = asking(LARGE)
    return said(runner, sequence), sequence.tiles


def asking(
    sparse: SparseAttention | None, tokens: list[int] = PROMPT, first: int = 0, name: str = "a"
) -> Sequence:
    sequence = sequence_of(tokens, [first + block for block in BLOCKS], name)
    sequence.sparse = sparse
    return sequence


def said(runner: TritonRunner, sequence: Sequence, *stops: int) -> list[Tensor]:
    """States at the ends of chunks: of a prompt, and of a token decoded behind it."""
    rows, start = [], 0
    for end in (*stops, len(sequence.tokens)):
        rows.append(runner.forward_all([RowJob(sequence, start, end)])[-1].clone())
        start = end
    sequence.append(NEXT)
    rows.append(runner.forward([RowJob(sequence, start, start + 1)])[-1].clone())
    return rows


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_scale_of_0_changes_no_bit_and_counts_what_it_looked_at(
    runner: TritonRunner, dense: list[Tensor]
) -> None:
    nothing = asking(SparseAttention(0.0))
    assert equal(said(runner, nothing), dense)
    assert nothing.tiles.seen > 0
    assert nothing.tiles.skipped == 0 and nothing.tiles.omitted == 0.0


def test_tiles_are_left_out_and_counted_and_numbers_change(
    dense: list[Tensor], sparse: tuple[list[Tensor], TileCount]
) -> None:
    rows, tiles = sparse
    assert 0 < tiles.skipped < tiles.seen
    assert tiles.omitted > 0
    assert not torch.equal(rows[-1], dense[-1])


def test_what_may_be_lost_is_bounded_as_asked(
    runner: TritonRunner, sparse: tuple[list[Tensor], TileCount]
) -> None:
    bound = sparse[1].omitted / 2
    sequence = asking(SparseAttention(LARGE.scale, max_omitted=bound))
    said(runner, sequence)
    assert sequence.tiles.omitted <= bound


def test_how_a_sparse_prompt_is_cut_changes_no_bit(
    runner: TritonRunner, sparse: tuple[list[Tensor], TileCount]
) -> None:
    """Chunks of many rows, of few, and of one, which decode's kernel computes."""
    pieces = said(runner, asking(LARGE), 70, END - 1)
    assert equal(pieces[-2:], sparse[0])


def test_dense_and_sparse_neighbours_show_in_no_bit(
    runner: TritonRunner, dense: list[Tensor], sparse: tuple[list[Tensor], TileCount]
) -> None:
    both = [asking(None), asking(LARGE, first=len(BLOCKS), name="b")]
    runner.forward([RowJob(of, 0, END) for of in both])
    for of in both:
        of.append(NEXT)
    before = both[1].tiles.seen
    rows = runner.forward([RowJob(of, END, END + 1) for of in both])
    assert equal(list(rows), [dense[-1], sparse[0][-1]])
    assert both[0].tiles.seen == 0 and both[1].tiles.seen > before


def test_nodes_of_a_sparse_tree_have_the_bits_of_sparse_decoding(
    runner: TritonRunner, sparse: tuple[list[Tensor], TileCount]
) -> None:
    sequence = asking(LARGE)
    runner.forward([RowJob(sequence, 0, END - 1)])
    rows = runner.forward([RowJob(sequence, END - 1, END, Draft((NEXT, 9), (ROOT, ROOT)))])
    assert equal(list(rows[:2]), sparse[0])


def test_steps_of_sparse_sequences_are_not_recorded() -> None:
    jobs = [RowJob(asking(of), END - 1, END) for of in (None, LARGE)]
    assert is_plain_decode(jobs[:1]) and not is_plain_decode(jobs)
