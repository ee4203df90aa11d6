"""Mixtures of experts in the engine: an answer does not depend on how its rows were computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from decode_worker.speculate.fixed import Fixed
from triptych.config import dump_config, load_config
from triptych.drafters.heads.head_config import HeadKind
from triptych.engine.backend import Backend
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner, make_runner
from triptych.engine.sequence import Sequence
from triptych.engine.storage import plain_storage
from triptych.kv.pool import BlockPool
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.models.storage import WeightDtype
from triptych.request import SamplingParams
from triptych.testing.checkpoints import MIXTURES, tiny_checkpoint
from triptych.testing.heads import head_drafter, random_head
from triptych.testing.tiny_mixture import tiny_mixture
from triptych.training.first_weights import start_from_target
from triptych.worker import boot
from triptych.worker.args import parse_worker_args
from triptych_kernels.packer import ReferencePacker

PROMPT = torch.randint(3, 190, (37,), generator=torch.Generator().manual_seed(4)).tolist()
BLOCK_TOKENS = 16
GREEDY = SamplingParams(seed=0, max_tokens=64, temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(seed=3, max_tokens=24, temperature=0.9, top_p=0.9, ignore_eos=True)


@pytest.fixture
def mode() -> str:
    return "torch"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mixture(tmp_path_factory.mktemp("tiny") / "mixture")


def runner_of(path: Path, dtype: WeightDtype) -> Runner:
    model = load_model(path, dtype=dtype)
    layout = boot.kv_layout(model.config, BLOCK_TOKENS, "float32")
    return make_runner(model, plain_storage(layout, 8))


def sequence_of(tokens: list[int]) -> Sequence:
    sequence = Sequence(
        request_id="0", tokens=list(tokens), root=b"root", block_tokens=BLOCK_TOKENS, params=GREEDY
    )
    sequence.blocks = list(range(8))
    return sequence


def hidden_of(runner: Runner, tokens: list[int], ends: list[int]) -> Tensor:
    """Final-norm states of all rows, computed in chunks that end at `ends`."""
    sequence = sequence_of(tokens)
    starts = [0, *ends[:-1]]
    jobs = [RowJob(sequence, start, end) for start, end in zip(starts, ends, strict=True)]
    return torch.cat([runner.forward_all([job]).clone() for job in jobs])


def decode(runner: Runner, count: int) -> list[int]:
    """The prompt in one chunk, then token by token."""
    sequence = sequence_of(PROMPT)
    start = 0
    for _ in range(count):
        hidden = runner.forward([RowJob(sequence, start, len(sequence.tokens))])
        start = len(sequence.tokens)
        sequence.tokens.append(int(runner.logits(hidden)[0].argmax()))
    return sequence.tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", MIXTURES)
def test_64_tokens_are_the_same_bits_whole_in_chunks_and_one_by_one(
    family: str, dtype: WeightDtype, tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path, family)
    runner = runner_of(tmp_path, dtype)
    tokens = decode(runner, 64)
    total = len(tokens)
    assert total == len(PROMPT) + 64
    whole = hidden_of(runner, tokens, [total])
    likeliest = runner.logits(whole).argmax(-1)
    assert likeliest[len(PROMPT) - 1 : -1].tolist() == tokens[len(PROMPT) :]
    assert torch.equal(hidden_of(runner, tokens, [5, 16, 49, 50, total]), whole)
    by_one = hidden_of(runner, tokens, [len(PROMPT), *range(len(PROMPT) + 1, total + 1)])
    assert torch.equal(by_one, whole)


@pytest.mark.parametrize(
    "settings", [{}, {"chunk_tokens": 16}, {"max_running": 2}, {"blocks": 16}], ids=str
)
def test_batching_chunking_and_preemption_change_no_token(
    make_home: Callable[..., Any], settings: dict[str, Any]
) -> None:
    prompts = [(PROMPT, GREEDY), (PROMPT[:5], SAMPLED), (PROMPT[9:30], SAMPLED), ([7], SAMPLED)]
    alone = []
    for prompt, params in prompts:
        home = make_home(chunk_tokens=512)
        home.submit(prompt, params)
        alone += home.run()
    together = make_home(**settings)
    for prompt, params in prompts:
        together.submit(prompt, params)
    assert together.run() == alone


@pytest.mark.parametrize("kind", ["eagle3", "parallel"])
def test_a_head_may_draft_for_a_mixture(
    kind: HeadKind, make_home: Callable[..., Any], model: Model, tmp_path: Path
) -> None:
    module = random_head(tmp_path, model, kind)
    ids = torch.arange(20, model.config.vocab_size)  # that a random head may draft
    start_from_target(module, model, ids, 1.0)  # what training begins with; has no FFN to copy

    def drafters(pool: BlockPool, runner: Runner) -> dict[str, Any]:
        return {kind: head_drafter(tmp_path, model, pool)}

    plain, drafting = make_home(), make_home(drafters_of=drafters, policy=Fixed(kind, 3))
    for home in (plain, drafting):
        home.submit(PROMPT, SAMPLED)
    assert drafting.run() == plain.run()
    assert drafting.sequences[0].num_drafted > 10


def test_a_worker_without_native_kernels_boots_with_a_mixture(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(ReferencePacker(), "torch", "float32", "float32", 32)
    monkeypatch.setattr(boot, "choose_backend", lambda *_: backend)
    config = load_config(None, [f"model={checkpoint}", "kv.memory=1MiB"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    pool = next(pool.name for pool in config.pools if pool.role == "decode")
    where = ["--config", str(tmp_path / "config.yaml"), "--run-dir", str(tmp_path)]
    args = parse_worker_args("decode", [*where, "--pool", pool, "--id", "decode-0"])
    threads = torch.get_num_threads()
    try:
        engine = boot.build_engine(args)
        sequence = sequence_of(PROMPT)
        sequence.blocks = list(range(3))
        logits = engine.runner.logits(engine.runner.forward([RowJob(sequence, 0, len(PROMPT))]))
    finally:
        torch.set_num_threads(threads)
        boot.set_threads(threads)
    assert engine.model.config.moe is not None and logits.isfinite().all()
    expected = runner_of(checkpoint, "float32")
    hidden = expected.forward([RowJob(sequence_of(PROMPT), 0, len(PROMPT))])
    assert torch.equal(logits, expected.logits(hidden))
    engine.region.close()
