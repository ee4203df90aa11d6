"""The engine on Triton's kernels computes what the reference does, and a row's bits are its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from triptych.engine.draft import NO_DRAFT, ROOT, Draft
from triptych.engine.pages import PageRow, PageScores, PageTable
from triptych.engine.reference_runner import ReferenceRunner
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner
from triptych.engine.storage import plain_storage
from triptych.engine.triton_runner import TritonRunner
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.models.taps import StateTap
from triptych.testing.checkpoints import tiny_checkpoint, tiny_llama
from triptych.testing.on_triton import layout_of, sequence_of, triton_model, triton_runner

PROMPT = torch.randint(3, 190, (37,), generator=torch.Generator().manual_seed(4)).tolist()
OTHER = torch.randint(3, 190, (21,), generator=torch.Generator().manual_seed(5)).tolist()
BLOCKS = [5, 0, 9, 3]
FAMILIES = ("mistral", "qwen2", "qwen3", "gemma3")  # windows, biases, head norms, caps

MakeRunner = Callable[..., TritonRunner]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"), num_layers=2)


@pytest.fixture(scope="module")
def model(checkpoint: Path, device: torch.device) -> Model:
    return triton_model(checkpoint, device)


@pytest.fixture
def runner(model: Model, device: torch.device) -> TritonRunner:
    return triton_runner(model, device)


def reference(checkpoint: Path) -> ReferenceRunner:
    model = load_model(checkpoint, dtype="float32")
    return ReferenceRunner(model, plain_storage(layout_of(model), 16))


def last_row(runner: Runner, tokens: list[int], stops: tuple[int, ...] = ()) -> Tensor:
    """Of tokens computed in chunks that end at `stops`, the last one's hidden state."""
    sequence, start = sequence_of(tokens, BLOCKS), 0
    for end in (*stops, len(tokens)):
        hidden = runner.forward([RowJob(sequence, start, end)])
        start = end
    return hidden[-1].clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_what_the_reference_does(
    family: str, tmp_path: Path, device: torch.device
) -> None:
    tiny_checkpoint(tmp_path, family, num_hidden_layers=2)
    ours, theirs = triton_runner(triton_model(tmp_path, device), device), reference(tmp_path)
    rows = [runner.forward_all([RowJob(sequence_of(PROMPT, BLOCKS), 0, 37)]).cpu()
            for runner in (ours, theirs)]  # fmt: skip
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        ours.logits(rows[0]).cpu(), theirs.logits(rows[1]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("stops", [(36,), (16, 32), (1, 2, 20, 35, 36)], ids=str)
def test_how_a_prompt_is_cut_changes_no_bit(
    model: Model, device: torch.device, stops: tuple[int, ...]
) -> None:
    whole = last_row(triton_runner(model, device), PROMPT)
    assert torch.equal(last_row(triton_runner(model, device), PROMPT, stops), whole)


def test_batch_mates_and_padding_change_no_bit(model: Model, device: torch.device) -> None:
    """Decode steps of one, two and three sequences: buckets of one, two and four rows."""
    alone = last_row(triton_runner(model, device), PROMPT, (36,))
    for mates in (1, 2):
        runner = triton_runner(model, device)
        sequences = [sequence_of(PROMPT, BLOCKS)]
        sequences += [sequence_of(OTHER, [10 + 2 * i, 11 + 2 * i], str(i)) for i in range(mates)]
        runner.forward([RowJob(of, 0, len(of.tokens) - 1) for of in sequences])
        rows = runner.forward(
            [RowJob(of, len(of.tokens) - 1, len(of.tokens)) for of in sequences]
        )
        assert torch.equal(rows[0], alone)
        assert all(torch.equal(row, rows[1]) for row in rows[1:])


def test_prompts_drafts_and_decode_steps_may_share_a_forward(
    model: Model, device: torch.device
) -> None:
    alone = last_row(triton_runner(model, device), PROMPT, (36,))
    runner = triton_runner(model, device)
    first, second = sequence_of(PROMPT, BLOCKS), sequence_of(OTHER, [10, 11], "b")
    third = sequence_of(OTHER, [12, 13], "c")
    runner.forward([RowJob(first, 0, 36), RowJob(second, 0, 20)])
    draft = Draft((7, 9, 11), (ROOT, 0, ROOT))
    rows = runner.forward(
        [RowJob(third, 0, 21), RowJob(first, 36, 37), RowJob(second, 20, 21, draft)]
    )
    assert len(rows) == 6
    assert torch.equal(rows[1], alone)
    assert torch.equal(rows[0], rows[2])  # the same tokens, as a prompt and as a decode step


@pytest.mark.parametrize(
    "draft", [Draft((7, 9, 11)), Draft((7, 9, 11, 13, 15), (ROOT, 0, 0, ROOT, 2))], ids=["chain", "tree"]
)  # fmt: skip
def test_a_node_of_a_draft_has_the_bits_of_plain_decoding(
    model: Model, device: torch.device, draft: Draft
) -> None:
    runner, sequence, end = triton_runner(model, device), sequence_of(PROMPT, BLOCKS), 37
    runner.forward([RowJob(sequence, 0, end - 1)])
    rows = runner.forward([RowJob(sequence, end - 1, end, draft)]).clone()
    assert len(rows) == 1 + len(draft)
    for node in range(-1, len(draft)):
        path = [draft.tokens[step] for step in draft.path(node)]
        other = last_row(triton_runner(model, device), [*PROMPT, *path], (36,))
        assert torch.equal(rows[1 + node], other), f"node {node}"


def test_an_accepted_branch_is_decoded_from_as_if_it_had_been_plain(
    model: Model, device: torch.device
) -> None:
    runner, sequence = triton_runner(model, device), sequence_of(PROMPT, BLOCKS)
    runner.forward([RowJob(sequence, 0, 36)])
    runner.forward([RowJob(sequence, 36, 37, Draft((7, 9, 11), (ROOT, ROOT, 1)))])
    runner.move_kv(BLOCKS, [(38, 37), (39, 38)])
    sequence.tokens += [9, 11, 4]
    rows = runner.forward([RowJob(sequence, 39, 40)])
    plain = last_row(triton_runner(model, device), [*PROMPT, 9, 11, 4], (36, 37, 38, 39))
    assert torch.equal(rows[0], plain)


def test_padding_writes_nowhere(model: Model, device: torch.device) -> None:
    """Three sequences in a bucket of four rows; every slot but theirs stays as it was."""
    runner = triton_runner(model, device)
    pool = runner.kv.keys(0), runner.kv.values(1)
    sequences = [sequence_of([7], [block], str(block)) for block in (0, 4, 8)]
    runner.forward([RowJob(of, 0, 1) for of in sequences])
    for half in pool:
        written = half.ne(0).any(-1).any(-1).nonzero().tolist()
        assert written == [[0, 0], [4, 0], [8, 0]]


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_packed_weights_compute_near_the_reference_and_alone_as_among_others(
    checkpoint: Path, device: torch.device, weights: str
) -> None:
    model = triton_model(checkpoint, device, weights)  # type: ignore[arg-type]
    alone = last_row(triton_runner(model, device, kv="bfloat16"), PROMPT, (36,))
    runner = triton_runner(model, device, kv="bfloat16")
    first, second = sequence_of(PROMPT, BLOCKS), sequence_of(OTHER, [10, 11], "b")
    runner.forward([RowJob(first, 0, 36), RowJob(second, 0, 20)])
    rows = runner.forward([RowJob(first, 36, 37), RowJob(second, 20, 21)])
    assert torch.equal(rows[0], alone)
    packed = load_model(checkpoint, dtype=weights)  # type: ignore[arg-type]
    theirs = last_row(ReferenceRunner(packed, plain_storage(layout_of(packed), 16)), PROMPT)
    torch.testing.assert_close(alone.cpu(), theirs, rtol=0.1, atol=0.1)


def test_a_tap_sees_what_the_reference_tells(
    checkpoint: Path, runner: TritonRunner
) -> None:
    told = []
    for one in (runner, reference(checkpoint)):
        tap = StateTap([0, 1])
        one.forward([RowJob(sequence_of(PROMPT, BLOCKS), 0, 37)], [tap])
        assert tap.states is not None
        told.append(tap.states.float())
    torch.testing.assert_close(*told, rtol=1e-2, atol=1e-2)


def test_pages_are_scored_and_read_as_by_the_reference(
    checkpoint: Path, runner: TritonRunner
) -> None:
    scored, rows = [], []
    for one in (runner, reference(checkpoint)):
        sequence = sequence_of(PROMPT, BLOCKS)
        one.forward([RowJob(sequence, 0, 36)])
        wish = PageScores(sequence)
        one.score_pages(wish)
        one.forward([RowJob(sequence, 36, 37)])
        assert wish.shares is not None
        scored.append(torch.from_numpy(wish.shares))
        table = PageTable(torch.tensor([[[0, 2], [1, 2]]] * 2).int().numpy(), skipped=1)
        rows.append(one.forward_pages([PageRow(sequence, 8, 37, table)]).cpu())
    torch.testing.assert_close(*scored, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-4)


def test_recorded_and_launched_steps_are_the_same(model: Model, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("nothing is recorded where kernels are interpreted")
    rows = [
        last_row(triton_runner(model, device, graphs=graphs), [*PROMPT, 5, 6], (36, 37, 38))
        for graphs in (True, False)
    ]
    assert torch.equal(*rows)
