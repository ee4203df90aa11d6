"""A tiny model and a home's loop around it, in this process and without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from decode_worker.loop import DecodeLoop, StepOutput
from decode_worker.speculate.policy import BudgetPolicy
from decode_worker.speculate.speculator import Speculator
from triptych.drafters.draft_model import DraftModelDrafter, DraftModelOptions
from triptych.drafters.drafter import Drafter
from triptych.drafters.guess import Guesser
from triptych.drafters.tree_growth import Growth
from triptych.engine.constraint import Constraint
from triptych.engine.runner import Runner, make_runner
from triptych.engine.sampler import Sampler
from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import ANY_SPECULATION, Sequence
from triptych.engine.storage import plain_storage
from triptych.kv.pool import BlockPool
from triptych.models.model import Model
from triptych.obs.metrics import WorkerMetrics, new_registry
from triptych.request import SamplingParams, SparseAttention, Speculation
from triptych.testing.checkpoints import tiny_llama
from triptych.testing.compute_modes import MODES, model_in
from triptych.worker.boot import kv_layout

BLOCK_TOKENS = 16
MAX_MODEL_LEN = 1024


@pytest.fixture
def mode() -> str:
    """One of MODES; a module that wants them all overrides this."""
    return "bfloat16"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny_llama(path)
    return path


@pytest.fixture
def model(checkpoint: Path, mode: str) -> Model:
    return model_in(checkpoint, mode)


@dataclass
class Home:
    """A decode worker's loop with its pool."""

    loop: DecodeLoop
    pool: BlockPool
    outputs: list[StepOutput]
    sequences: list[Sequence] = field(default_factory=list)

    def submit(
        self,
        prompt: list[int],
        params: SamplingParams | None = None,
        *,
        choice: int = 0,
        leader: Sequence | None = None,
        speculation: Speculation = ANY_SPECULATION,
        constraint: Constraint | None = None,
        sparse: SparseAttention | None = None,
    ) -> Sequence:
        sequence = Sequence(
            request_id=str(len(self.sequences)),
            tokens=list(prompt),
            root=b"root",
            block_tokens=BLOCK_TOKENS,
            params=params or SamplingParams(seed=0, max_tokens=8, temperature=0.0, ignore_eos=True),
            choice=choice,
            leader=leader,
            speculation=speculation,
            constraint=constraint,
            sparse=sparse,
        )
        self.sequences.append(sequence)
        self.loop.submit(sequence)
        return sequence

    def run(self) -> list[list[int]]:
        """Steps until nothing is left; the output tokens of every sequence."""
        while self.loop.step():
            pass
        return [sequence.tokens[sequence.num_prompt :] for sequence in self.sequences]


def home_of(
    model: Model,
    kv_dtype: str,
    *,
    blocks: int,
    chunk_tokens: int,
    max_running: int,
    cache: bool,
    drafters: dict[str, Drafter] | None = None,
    drafters_of: Callable[[BlockPool, Runner], dict[str, Drafter]] | None = None,
    policy: BudgetPolicy | None = None,
) -> Home:
    pool = BlockPool(blocks, cache=cache)
    storage = plain_storage(kv_layout(model.config, BLOCK_TOKENS, kv_dtype), blocks)
    scheduler = Scheduler(
        pool, block_tokens=BLOCK_TOKENS, chunk_tokens=chunk_tokens, max_running=max_running
    )
    outputs: list[StepOutput] = []
    runner = make_runner(model, storage)
    if drafters_of is not None:
        drafters = drafters_of(pool, runner)
    loop = DecodeLoop(
        scheduler,
        runner,
        Sampler(model.config.eos_token_ids),
        Speculator(
            scheduler,
            drafters,
            policy,
            max_model_len=MAX_MODEL_LEN,
            vocab_size=model.config.vocab_size,
        ),
        outputs.extend,
        WorkerMetrics(new_registry()),
        eos_token_ids=model.config.eos_token_ids,
        max_model_len=MAX_MODEL_LEN,
    )
    return Home(loop, pool, outputs)


@pytest.fixture
def make_home(model: Model, mode: str) -> Callable[..., Home]:
    def make(
        model: Model = model,
        kv_dtype: str = MODES[mode][1],
        *,
        blocks: int = 256,
        chunk_tokens: int = 128,
        max_running: int = 32,
        cache: bool = True,
        drafters: dict[str, Drafter] | None = None,
        drafters_of: Callable[[BlockPool, Runner], dict[str, Drafter]] | None = None,
        policy: BudgetPolicy | None = None,
    ) -> Home:
        return home_of(
            model,
            kv_dtype,
            blocks=blocks,
            chunk_tokens=chunk_tokens,
            max_running=max_running,
            cache=cache,
            drafters=drafters,
            drafters_of=drafters_of,
            policy=policy,
        )

    return make


@pytest.fixture
def twin(model: Model, mode: str) -> Callable[..., Any]:
    """The target again, as a draft model with KV of its own."""

    def make(width: int = 1, **options: Any) -> Callable[[BlockPool, Runner], dict[str, Any]]:
        def drafters(pool: BlockPool, runner: Runner) -> dict[str, Any]:
            layout = kv_layout(model.config, BLOCK_TOKENS, MODES[mode][1])
            drafter = DraftModelDrafter(
                make_runner(model, plain_storage(layout, pool.num_blocks)),
                Guesser(Sampler(model.config.eos_token_ids), model.config.vocab_size),
                DraftModelOptions(Growth(width, width, min_prob=1e-9), **options),
                pool.generations,
                BLOCK_TOKENS,
            )
            return {drafter.name: drafter}

        return drafters

    return make
