"""The engine on Triton's kernels computes what the reference does, and a row's bits are its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from triptych.engine.draft import ROOT, Draft
from triptych.engine.pages import PageRow, PageScores, PageTable
from triptych.engine.reference_runner import ReferenceRunner
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner
from triptych.engine.storage import plain_storage
from triptych.engine.triton_runner import TritonRunner
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.models.storage import WeightDtype
from triptych.models.taps import StateTap
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.on_triton import (
    TINY,
    knows_fp8,
    layout_of,
    sequence_of,
    triton_model,
    triton_runner,
)

PROMPT = torch.randint(3, 60, (18,), generator=torch.Generator().manual_seed(4)).tolist()
OTHER = torch.randint(3, 60, (5,), generator=torch.Generator().manual_seed(5)).tolist()
END = len(PROMPT)
BLOCKS = [5, 0, 9]
# Windows and biases; head norms, and heads that fill no tile; caps, two ropes, norms on both sides.
FAMILIES: dict[str, dict[str, Any]] = {"qwen2": {}, "qwen3": {"head_dim": 24}, "gemma3": {}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "llama", **TINY)


@pytest.fixture(scope="module")
def model(checkpoint: Path, device: torch.device) -> Model:
    return triton_model(checkpoint, device)


@pytest.fixture
def runner(model: Model, device: torch.device) -> TritonRunner:
    return triton_runner(model, device)


@pytest.fixture(scope="module")
def whole(model: Model, device: torch.device) -> Tensor:
    """The prompt's last row, of one chunk and alone."""
    return last_row(triton_runner(model, device), PROMPT)


def reference(checkpoint: Path, weights: WeightDtype = "float32") -> ReferenceRunner:
    model = load_model(checkpoint, dtype=weights)
    return ReferenceRunner(model, plain_storage(layout_of(model), 16))


def last_row(
    runner: Runner, tokens: list[int], stops: Iterable[int] = (), start: int = 0
) -> Tensor:
    """Of tokens computed from `start` on in chunks that end at `stops`, the last one's state."""
    sequence = sequence_of(tokens, BLOCKS)
    for end in (*stops, len(tokens)):
        hidden = runner.forward([RowJob(sequence, start, end)])
        start = end
    return hidden[-1].clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_what_the_reference_does(
    family: str, tmp_path: Path, device: torch.device
) -> None:
    """Its prompt is longer than the window."""
    tiny_checkpoint(tmp_path, family, **TINY | FAMILIES[family])
    ours, theirs = triton_runner(triton_model(tmp_path, device), device), reference(tmp_path)
    job = RowJob(sequence_of(PROMPT[:10], BLOCKS), 0, 10)
    rows, expected = ours.forward_all([job]), theirs.forward_all([job])
    torch.testing.assert_close(rows.cpu(), expected, rtol=1e-4, atol=1e-4)
    logits, expected = ours.logits(rows), theirs.logits(expected)
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_a_long_prompt_is_computed_as_by_the_reference(checkpoint: Path, whole: Tensor) -> None:
    expected = last_row(reference(checkpoint), PROMPT)
    torch.testing.assert_close(whole.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stops", [(17,), (1, 2, 16)], ids=str)
def test_how_a_prompt_is_cut_changes_no_bit(
    runner: TritonRunner, whole: Tensor, stops: tuple[int, ...]
) -> None:
    assert torch.equal(last_row(runner, PROMPT, stops), whole)


def test_batch_mates_drafts_and_padding_change_no_bit(runner: TritonRunner, whole: Tensor) -> None:
    """Alone in its bucket; with two others, in a bucket of four rows; and in a forward with a
    prompt and a draft.
    """
    first = sequence_of(PROMPT, BLOCKS)
    second, third = (sequence_of(OTHER, [block], str(block)) for block in (10, 11))
    runner.forward([RowJob(first, 0, END - 1), RowJob(second, 0, 4), RowJob(third, 0, 4)])
    step = RowJob(first, END - 1, END)
    assert torch.equal(runner.forward([step])[0], whole)
    rows = runner.forward([RowJob(second, 4, 5), step, RowJob(third, 4, 5)])
    assert torch.equal(rows[1], whole)
    assert torch.equal(rows[0], rows[2])
    draft = Draft((7, 9), (ROOT, ROOT))
    mixed = runner.forward([RowJob(third, 0, 5), step, RowJob(second, 4, 5, draft)])
    assert torch.equal(mixed[:3], rows[[2, 1, 0]])


@pytest.mark.parametrize(
    "draft", [Draft((7, 9)), Draft((7, 9, 11), (ROOT, ROOT, 1))], ids=["chain", "tree"]
)
def test_a_node_of_a_draft_has_the_bits_of_plain_decoding(
    runner: TritonRunner, draft: Draft
) -> None:
    runner.forward([RowJob(sequence_of(PROMPT, BLOCKS), 0, END - 1)])
    job = RowJob(sequence_of(PROMPT, BLOCKS), END - 1, END, draft)
    rows = runner.forward([job]).clone()
    assert len(rows) == 1 + len(draft)
    for node in range(len(draft)):
        tokens = [*PROMPT, *(draft.tokens[step] for step in draft.path(node))]
        plain = last_row(runner, tokens, range(END + 1, len(tokens)), start=END)
        assert torch.equal(rows[1 + node], plain), f"node {node}"


def test_an_accepted_branch_is_decoded_from_as_if_it_had_been_plain(runner: TritonRunner) -> None:
    sequence = sequence_of(PROMPT, BLOCKS)
    runner.forward([RowJob(sequence, 0, END - 1)])
    tokens = [*PROMPT, 9, 4]
    plain = last_row(runner, tokens, (END, END + 1), start=END - 1)
    runner.forward([RowJob(sequence, END - 1, END, Draft((7, 9), (ROOT, ROOT)))])
    runner.move_kv(BLOCKS, [(END + 1, END)])
    assert torch.equal(last_row(runner, tokens, start=END + 1), plain)


def test_padding_writes_nowhere(runner: TritonRunner) -> None:
    """Three sequences in a bucket of four rows; every slot but theirs stays as it was."""
    sequences = [sequence_of([7], [block], str(block)) for block in (1, 4, 8)]
    runner.forward([RowJob(of, 0, 1) for of in sequences])
    for half in (runner.kv.keys(0), runner.kv.values(1)):
        written = half.ne(0).any(-1).any(-1).nonzero().tolist()
        assert written == [[1, 0], [4, 0], [8, 0]]


@pytest.mark.parametrize("weights", ["bfloat16", "fp8", "int8", "int4"])
def test_smaller_weights_compute_near_the_reference_and_a_row_keeps_its_bits(
    checkpoint: Path, device: torch.device, weights: WeightDtype
) -> None:
    if weights == "fp8" and not knows_fp8(device):
        pytest.skip("this GPU knows no e4m3")
    runner = triton_runner(triton_model(checkpoint, device, weights), device, kv="bfloat16")
    first, second = sequence_of(PROMPT[:6], BLOCKS), sequence_of(OTHER, [10], "b")
    expected = last_row(reference(checkpoint, weights), first.tokens)
    rows = runner.forward([RowJob(first, 0, 6), RowJob(second, 0, 5)])
    # In fp8 rows are rounded as well, to four bits.
    torch.testing.assert_close(
        rows[0].cpu(), expected, rtol=0.05, atol=0.3 if weights == "fp8" else 0.1
    )
    assert torch.equal(runner.forward([RowJob(second, 4, 5)])[0], rows[1])


def test_a_tap_sees_what_the_reference_tells(checkpoint: Path, runner: TritonRunner) -> None:
    told = []
    for one in (runner, reference(checkpoint)):
        tap = StateTap([0, 1])
        one.forward([RowJob(sequence_of(OTHER, BLOCKS), 0, 5)], [tap])
        assert tap.states is not None
        told.append(tap.states[:5].float())
    torch.testing.assert_close(*told, rtol=1e-2, atol=1e-2)


def test_pages_are_scored_and_read_as_by_the_reference(
    checkpoint: Path, runner: TritonRunner
) -> None:
    """A row behind the prompt reads the second of its two pages."""
    scored, rows = [], []
    for one in (runner, reference(checkpoint)):
        sequence = sequence_of(PROMPT, BLOCKS)
        wish = PageScores(sequence)
        one.score_pages(wish)
        one.forward([RowJob(sequence, 0, END)])
        assert wish.shares is not None
        scored.append(torch.from_numpy(wish.shares))
        table = PageTable(np.array([[[1]], [[1]]], dtype=np.int32), skipped=1)
        rows.append(one.forward_pages([PageRow(sequence, 8, END, table)]).cpu())
    torch.testing.assert_close(*scored, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[0], rows[1][:1], rtol=1e-4, atol=1e-4)


def test_recorded_and_launched_steps_are_the_same(
    model: Model, device: torch.device, whole: Tensor
) -> None:
    if device.type != "cuda":
        pytest.skip("nothing is recorded where kernels are interpreted")
    for graphs in (True, False):
        runner = triton_runner(model, device, graphs=graphs)
        assert torch.equal(last_row(runner, PROMPT, range(15, END)), whole)
