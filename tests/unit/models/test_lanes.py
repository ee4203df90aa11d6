"""A forward in lanes, whose feed-forward parts answer later and in any order, gives the bits of a
forward in one piece.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.engine.backend import choose_backend
from triptych.engine.draft import Draft
from triptych.engine.native_runner import NativeRunner
from triptych.engine.pages import PageRow, PageScores, PageTable
from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence as Tokens
from triptych.engine.storage import plain_storage
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.models.taps import LayerTap, StateTap
from triptych.request import PageBudget, SparseAttention
from triptych.testing.checkpoints import VOCAB_SIZE, tiny_checkpoint
from triptych.testing.distant import OnTheSpot
from triptych.testing.native_kernels import libraries
from triptych.testing.tiny_mixture import tiny_mixture
from triptych.worker.boot import kv_layout

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

BLOCK_TOKENS = 16
# Norms behind attention and FFN; a shared expert beside mixtures, a dense layer among them; latent
# heads; sinks and windows; a dense family.
KINDS = ["gemma3", "qwen2_moe", "deepseek_v3", "gpt_oss", "llama"]
MIXTURE = KINDS[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Model]]:
    """models(family) → its checkpoint, and the model with all units here."""

    @functools.cache
    def make(family: str) -> tuple[Path, Model]:
        path = tiny_checkpoint(tmp_path_factory.mktemp(family), family)
        return path, load(path)

    return make


def load(path: Path, distant: OnTheSpot | None = None) -> Model:
    packer = choose_backend("bfloat16", "bfloat16").packer
    return load_model(path, dtype="bfloat16", packer=packer, distant=distant)


def runner_of(model: Model) -> NativeRunner:
    layout = kv_layout(model.config, BLOCK_TOKENS, "bfloat16")
    return NativeRunner(model, plain_storage(layout, 64))


Pair = tuple[NativeRunner, NativeRunner, OnTheSpot]


@pytest.fixture
def pair(models: Callable[[str], tuple[Path, Model]]) -> Callable[..., Pair]:
    """pair(family) → a runner in one piece, one in lanes, and who computes for that."""

    def make(family: str, **options: int) -> Pair:
        path, model = models(family)
        distant = OnTheSpot(LIBRARIES[0], model, **options)
        return runner_of(model), runner_of(load(path, distant)), distant

    return make


def sequence(length: int, seed: int, first_block: int) -> Tokens:
    """With room for 32 tokens more; blocks go downwards."""
    source = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCAB_SIZE, (length,), generator=source).tolist()
    count = -(-(length + 32) // BLOCK_TOKENS)
    blocks = [first_block + count - 1 - index for index in range(count)]
    return Tokens(str(seed), tokens, b"root", BLOCK_TOKENS, blocks=blocks)


TREE = Draft((5, 6, 7, 8, 9, 10), parents=(-1, -1, 0, 0, 2, 1))
LONG_CHAIN = Draft(tuple(range(20, 40)))


def history() -> list[Tokens]:
    return [
        sequence(length, seed, first)
        for seed, (length, first) in enumerate([(90, 0), (23, 8), (40, 12), (31, 17), (50, 21)])
    ]


def first_jobs(sequences: Sequence[Tokens]) -> list[RowJob]:
    """Prompts up to some point."""
    ends = (20, 22, 39, 30, 49)
    return [RowJob(one, 0, end) for one, end in zip(sequences, ends, strict=True)]


def mixed_jobs(sequences: Sequence[Tokens]) -> list[RowJob]:
    """A prompt chunk of 70 rows, decoding rows, a tree of drafts, a long chain of them."""
    chunk, plain, tree, chain, other = sequences
    return [
        RowJob(plain, 22, 23),
        RowJob(chunk, 20, 90),
        RowJob(tree, 39, 40, TREE),
        RowJob(chain, 30, 31, LONG_CHAIN),
        RowJob(other, 49, 50),
    ]


def kv_bytes(runner: NativeRunner) -> Tensor:
    storage, layers = runner._storage, range(runner.model.config.num_layers)
    parts = [part(layer) for layer in layers for part in (storage.keys, storage.values)]
    return torch.stack([part.contiguous().view(torch.uint8) for part in parts])


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("family", KINDS)
def test_any_number_of_lanes_gives_the_same_bits_and_the_same_kv(
    pair: Callable[..., Pair], family: str, lanes: int
) -> None:
    whole, laned, distant = pair(family, lanes=lanes, seed=lanes)
    sequences = history()
    for jobs in (first_jobs(sequences), mixed_jobs(sequences)):
        wanted = whole.forward_all(jobs)
        assert wanted.isfinite().all()
        assert torch.equal(laned.forward_all(jobs), wanted)
    assert torch.equal(kv_bytes(laned), kv_bytes(whole))
    used = [count for _, count in distant.steps]
    assert max(used) == min(lanes, 5) or (lanes == 8 and max(used) > 5)
    assert (distant.most_away > 1) == (lanes > 1)


@pytest.mark.parametrize("seed", range(12))
def test_answers_may_come_in_any_order(pair: Callable[..., Pair], seed: int) -> None:
    whole, laned, _ = pair(MIXTURE, lanes=4, seed=seed)
    sequences = history()
    for jobs in (first_jobs(sequences), mixed_jobs(sequences)):
        assert torch.equal(laned.forward_all(jobs), whole.forward_all(jobs))


def test_a_chunk_that_is_cut_keeps_its_pieces_behind_each_other(pair: Callable[..., Pair]) -> None:
    whole, laned, distant = pair("gemma3", lanes=4, seed=3)
    alone = sequence(90, 7, 0)
    wanted = whole.forward_all([RowJob(alone, 0, 90)])
    assert torch.equal(laned.forward_all([RowJob(alone, 0, 90)]), wanted)
    assert distant.steps == [(90, 4)] and distant.most_away > 1
    in_chunks = [
        laned.forward_all([RowJob(alone, *edge)]) for edge in ((0, 33), (33, 89), (89, 90))
    ]
    assert torch.equal(torch.cat(in_chunks), wanted)


def test_a_dense_layer_beside_mixtures_is_computed_at_home(pair: Callable[..., Pair]) -> None:
    whole, laned, distant = pair(MIXTURE, lanes=2)
    job = RowJob(sequence(40, 1, 0), 0, 40)
    assert torch.equal(laned.forward([job]), whole.forward([job]))
    assert distant.layers == {0, 2}  # the second one is dense


@pytest.mark.parametrize("family", ["gemma3", MIXTURE])
def test_a_tap_stops_all_lanes_behind_its_layers_and_sees_all_rows(
    pair: Callable[..., Pair], family: str
) -> None:
    whole, laned, _ = pair(family, lanes=3, seed=5)
    sequences = history()
    last = whole.model.config.num_layers - 1
    seen: dict[str, list[tuple[int, Tensor, Tensor]]] = {"whole": [], "laned": []}

    def noting(name: str, runner: NativeRunner) -> LayerTap:
        def note(layer: int, hidden: Tensor) -> None:
            seen[name].append((layer, hidden.clone(), kv_bytes(runner)))

        return LayerTap([0, last], note)

    for jobs in (first_jobs(sequences), mixed_jobs(sequences)):
        wanted = whole.forward_all(jobs, [noting("whole", whole)])
        states, other_states = StateTap([1]), StateTap([1])
        whole.forward_all(jobs, [states])
        found = laned.forward_all(jobs, [other_states, noting("laned", laned)])
        assert torch.equal(found, wanted)
        assert states.states is not None and other_states.states is not None
        assert torch.equal(other_states.states, states.states)
    assert len(seen["whole"]) == 4
    for ours, theirs in zip(seen["whole"], seen["laned"], strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
        # Later layers' KV is not there yet: of this forward no row went further in any lane.
        assert torch.equal(ours[2], theirs[2])


def test_rows_that_read_some_pages_only_go_through_lanes_too(pair: Callable[..., Pair]) -> None:
    whole, laned, distant = pair("llama", lanes=3, seed=1)
    sequences = history()
    config = whole.model.config
    rows = []
    for one in sequences:
        position = len(one.tokens)
        tail = position // BLOCK_TOKENS
        shape = (config.num_layers, config.num_kv_heads, 1)
        pages = np.broadcast_to(np.array([0, tail], np.int32), (*shape[:2], 2)).copy()
        rows.append(PageRow(one, 11, position, PageTable(pages, skipped=tail - 1)))
    found = []
    for runner in (whole, laned):
        runner.forward_all(first_jobs(sequences))
        runner.forward_all(mixed_jobs(sequences))
        found.append(runner.forward_pages(rows))
    assert torch.equal(*found)
    assert distant.steps[-1] == (5, 3)


@pytest.mark.parametrize("lanes", [2, 3, 4])
def test_scores_of_pages_do_not_notice_where_a_chunk_or_a_long_draft_is_cut(
    pair: Callable[..., Pair], lanes: int
) -> None:
    whole, laned, _ = pair("llama", lanes=lanes)
    sequences = history()
    draft = Draft(tuple(range(20, 66)))
    chain, chunk = sequence(31, 3, 40), sequences[0]
    chain.blocks += [48, 49, 50]
    found = []
    for runner in (whole, laned):
        wishes = [PageScores(chunk), PageScores(chain)]
        for wish in wishes:
            runner.score_pages(wish)
        runner.forward_all([RowJob(chunk, 0, 90), RowJob(chain, 0, 31, draft)])
        found.append([wish.shares for wish in wishes])
    for ours, theirs in zip(*found, strict=True):
        assert ours.sum() > 0
        np.testing.assert_array_equal(theirs, ours)


def test_hidden_rows_go_through_the_same_lanes(pair: Callable[..., Pair]) -> None:
    whole, laned, _ = pair(MIXTURE, lanes=2)
    job = RowJob(sequence(40, 1, 0), 0, 40)
    rows = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    wanted = whole.forward_hidden([job], rows.clone())
    assert torch.equal(laned.forward_hidden([job], rows.clone()), wanted)


@pytest.mark.parametrize("is_mixture", [False, True])
def test_units_that_live_elsewhere_are_not_even_read(tmp_path: Path, is_mixture: bool) -> None:
    if is_mixture:
        path, gone = tiny_mixture(tmp_path), "mlp.experts."
    else:
        path, gone = tiny_checkpoint(tmp_path, "llama"), ".mlp."
    whole = load(path)
    file = path / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file({name: w for name, w in weights.items() if gone not in name}, file)
    distant = OnTheSpot(LIBRARIES[0], whole)
    job = RowJob(sequence(40, 1, 0), 0, 40)
    wanted = runner_of(whole).forward([job])
    assert torch.equal(runner_of(load(path, distant)).forward([job]), wanted)


def test_rows_of_an_answer_choose_the_same_pages_in_every_lane(pair: Callable[..., Pair]) -> None:
    """Chunks whose rows choose are cut, as an answer's are that is computed again."""
    whole, laned, distant = pair("llama", lanes=3)
    ids = [7 * at % VOCAB_SIZE for at in range(520)]
    rows = []
    for runner in (whole, laned):
        sparse = SparseAttention(pages=PageBudget(tokens=128))
        sequence = Tokens("a", ids, b"", BLOCK_TOKENS, sparse=sparse, num_answered=220)
        sequence.blocks = list(range(33))[::-1]
        chunks = [(0, 250), (250, 480), (480, 520)]
        rows.append([runner.forward_all([RowJob(sequence, *chunk)]).clone() for chunk in chunks])
        assert 0 < sequence.tiles.pages_read < sequence.tiles.pages
    assert distant.most_away > 1 and all(lanes == 3 for _, lanes in distant.steps[:2])
    for one, other in zip(*rows, strict=True):
        assert torch.equal(one, other)
