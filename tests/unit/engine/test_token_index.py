"""A model that chooses its tokens (DeepSeek-V3.2): what a row chooses is that row's own affair."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from collections.abc import Sequence as Items
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from decode_worker.speculate.dice import Dice
from decode_worker.speculate.make_drafter import DrafterMaker
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner, make_runner
from triptych.engine.sampler import Sampler
from triptych.engine.sequence import Sequence
from triptych.engine.storage import KvStorage, plain_storage
from triptych.errors import ConfigError
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.request import SamplingParams
from triptych.speculation_config import SparseConfig
from triptych.testing.checkpoints import INDEX_TOP_K, edit_config, tiny_checkpoint
from triptych.testing.compute_modes import MODES, model_in
from triptych.testing.drafters import Oracle
from triptych.testing.native_kernels import libraries, threads
from triptych.worker.boot import EngineParts, kv_layout

SOME_MODES = ("torch", "float32", "bfloat16", "int4", "int8 KV")
LENGTH, BLOCK_TOKENS = 1100, 16  # two splits of a native kernel, and a tile that is not full


@pytest.fixture(params=SOME_MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"vocab_size": 256, "max_position_embeddings": 2048}
    return tiny_checkpoint(tmp_path_factory.mktemp("chooses"), "deepseek_v32", **sizes)


def copied(checkpoint: Path, to: Path, **config: Any) -> Path:
    shutil.copytree(checkpoint, to)
    edit_config(to, **config)
    return to


def runner_of(model: Model, mode: str) -> Runner:
    layout = kv_layout(model.config, BLOCK_TOKENS, MODES[mode][1])
    return make_runner(model, plain_storage(layout, layout.blocks_for(LENGTH)))


def prompt(length: int = LENGTH) -> Sequence:
    tokens = torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(7)).tolist()
    blocks = list(range(-(-length // BLOCK_TOKENS)))[::-1]
    return Sequence("a", tokens, b"root", BLOCK_TOKENS, blocks=blocks)


def rows_in_chunks(runner: Runner, sequence: Sequence, cuts: Items[int] = ()) -> Tensor:
    edges = itertools.pairwise([0, *cuts, len(sequence.tokens)])
    return torch.cat([runner.forward_all([RowJob(sequence, *edge)]).clone() for edge in edges])


def test_chunks_and_threads_change_no_bit_of_a_long_sequence(model: Model, mode: str) -> None:
    length = LENGTH if model.is_native else 300  # plain torch takes its time
    runner, sequence = runner_of(model, mode), prompt(length)
    whole = rows_in_chunks(runner, sequence)
    assert whole.isfinite().all()
    for number, cuts in enumerate(
        ([128, length - 76], [200, length - 1], range(length - 20, length))
    ):
        with threads(libraries()[0], 1 + number) if model.is_native else nullcontext():
            assert torch.equal(rows_in_chunks(runner, sequence, cuts), whole)


def test_native_kernels_choose_what_torch_chooses(checkpoint: Path) -> None:
    found, wanted = (
        rows_in_chunks(runner_of(model_in(checkpoint, mode), mode), prompt())
        for mode in ("float32", "torch")
    )
    near = (found - wanted).norm(dim=1) < 1e-4 * wanted.norm(dim=1)
    # A tie but for rounding may go the other way.
    assert near.float().mean() > 0.99
    assert near[:INDEX_TOP_K].all()


@pytest.mark.parametrize("mode", ["torch", "float32", "bfloat16"])
def test_of_equally_worthy_tokens_the_first_are_read(
    checkpoint: Path, tmp_path: Path, mode: str
) -> None:
    """Then a row sees the first tokens and nothing else, not even itself."""
    path = copied(checkpoint, tmp_path / "ties")
    weights = load_file(path / "model.safetensors")
    flat = {n: w * 0 if n.endswith("weights_proj.weight") else w for n, w in weights.items()}
    save_file(flat, path / "model.safetensors", metadata={"format": "pt"})
    runner = runner_of(model_in(path, mode), mode)
    sequence, other = prompt(400), prompt(400)
    other.tokens[INDEX_TOP_K:-1] = other.tokens[INDEX_TOP_K:-1][::-1]
    rows = rows_in_chunks(runner, sequence)
    assert torch.equal(rows_in_chunks(runner, other, [137])[-1], rows[-1])
    other.tokens[INDEX_TOP_K - 1] += 1
    assert not torch.equal(rows_in_chunks(runner, other)[-1], rows[-1])


def test_where_all_tokens_may_be_chosen_it_is_v3_bit_for_bit(
    checkpoint: Path, tmp_path: Path, mode: str
) -> None:
    roomy = copied(checkpoint, tmp_path / "roomy", index_topk=200)
    dense = copied(checkpoint, tmp_path / "dense", architectures=["DeepseekV3ForCausalLM"])
    found, wanted, strict = (
        rows_in_chunks(runner_of(model_in(path, mode), mode), prompt(300), [90, 250])
        for path in (roomy, dense, checkpoint)
    )
    assert torch.equal(found[:200], wanted[:200])
    assert not torch.equal(found[200:], wanted[200:])
    assert torch.equal(strict[:INDEX_TOP_K], wanted[:INDEX_TOP_K])
    assert not torch.equal(strict[INDEX_TOP_K:200], wanted[INDEX_TOP_K:200])


def prompts() -> list[list[int]]:
    draw = random.Random(2)
    shared = [draw.randrange(3, 250) for _ in range(70)]
    own = [[draw.randrange(3, 250) for _ in range(n)] for n in (5, 23, 33, 140)]
    return [*own, shared, [*shared, 7, 8]]


def answers(home: Any) -> list[list[int]]:
    for index, tokens in enumerate(prompts()):
        temperature = 0.0 if index % 3 == 0 else 0.9
        params = SamplingParams(seed=index, max_tokens=20, temperature=temperature, ignore_eos=True)
        home.submit(tokens, params)
    return home.run()[-len(prompts()) :]


def test_batches_caches_preemption_and_drafts_change_no_token(
    make_home: Callable[..., Any],
) -> None:
    plain = make_home(max_running=1, cache=False)
    wanted = answers(plain)
    known = {(tuple(tokens), index): wanted[index] for index, tokens in enumerate(prompts())}
    crowded = make_home(chunk_tokens=50, blocks=30)
    assert answers(crowded) == wanted
    assert answers(crowded) == wanted
    assert sum(sequence.num_cached for sequence in crowded.sequences) > 0
    tight = make_home(blocks=12)
    assert answers(tight) == wanted
    assert tight.loop.scheduler.num_preemptions > 0
    for trees in (False, True):
        oracle = Oracle(dict(known), trees=trees)
        drafting = make_home(drafters={"oracle": oracle}, policy=Dice(most=9, seed=3))
        assert answers(drafting) == wanted
        assert oracle.num_accepted > 20 and oracle.num_rejected > 5


@pytest.mark.parametrize("mode", ["torch"])
def test_the_drafter_that_reads_pages_is_refused_with_the_remedy(model: Model) -> None:
    parts = cast(EngineParts, SimpleNamespace(model=model))
    make = DrafterMaker(parts, Sampler(model.config.eos_token_ids))
    with pytest.raises(ConfigError, match="drafters: sparse: this model .* take suffix or ngram"):
        make(SparseConfig())


def test_index_keys_are_a_part_of_a_block(model: Model, mode: str) -> None:
    """Whoever copies a block's bytes has all that the next rows need, and needs all of them."""
    layout = kv_layout(model.config, BLOCK_TOKENS, MODES[mode][1])
    sequence, blocks = prompt(100), layout.blocks_for(100)
    here, there = (plain_storage(layout, blocks) for _ in range(2))
    first = make_runner(model, here)
    wanted = first.forward_all([RowJob(sequence, 0, 100)])[-1].clone()
    make_runner(model, there).forward_all([RowJob(sequence, 0, 99)])
    last = RowJob(sequence, 99, 100)
    assert torch.equal(make_runner(model, there).forward_all([last])[-1], wanted)
    copy = KvStorage(layout, bytes_of(there).copy())
    assert torch.equal(make_runner(model, copy).forward_all([last])[-1], wanted)
    for layer in range(layout.num_layers):
        copy.index_keys(layer).mul_(-1)
    assert not torch.equal(make_runner(model, copy).forward_all([last])[-1], wanted)


def bytes_of(storage: KvStorage) -> Any:
    return storage._layers.reshape(storage.num_blocks, -1).numpy()


def test_pools_with_and_without_index_keys_exchange_nothing(checkpoint: Path, model: Model) -> None:
    config = load_model(checkpoint, dtype="float32").config
    layout = kv_layout(config, BLOCK_TOKENS, "float32")
    plain = type(layout)(
        layout.num_layers, layout.num_kv_heads, layout.head_dim, BLOCK_TOKENS, layout.dtype
    )
    assert layout.describe(model="m", weights="w") != plain.describe(model="m", weights="w")
    per_token = config.index.head_dim * 4 * config.num_layers  # type: ignore[union-attr]
    assert layout.block_bytes - plain.block_bytes == BLOCK_TOKENS * per_token
