"""What a prompt's home learns of it for its drafters when another worker computed the prompt."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from decode_worker.speculate.fixed import Fixed
from prefill_worker.loop import PrefillLoop, Progress
from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.runner import make_runner
from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import Sequence as TokenSequence
from triptych.engine.storage import plain_storage
from triptych.kv.pool import BlockPool
from triptych.models.model import Model
from triptych.models.taps import NO_STATES, StatesWanted
from triptych.obs.metrics import WorkerMetrics, new_registry
from triptych.request import SamplingParams
from triptych.testing.compute_modes import MODES
from triptych.worker.boot import kv_layout

BLOCK_TOKENS = 16
WANTED = StatesWanted(layers=(0, 1), rows=24)

Prefill = Callable[..., list[Tensor | None]]


def prompts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(3, 250) for _ in range(count)] for count in (70, 9, 24, 130)]


@pytest.fixture
def prefill(model: Model, mode: str) -> Prefill:
    """The states of each prompt, from a prefill worker's loop."""

    def run(
        texts: Sequence[list[int]], wanted: StatesWanted, chunk_tokens: int = 256, blocks: int = 64
    ) -> list[Tensor | None]:
        layout = kv_layout(model.config, BLOCK_TOKENS, MODES[mode][1])
        pool = BlockPool(blocks, cache=True)
        scheduler = Scheduler(
            pool, block_tokens=BLOCK_TOKENS, chunk_tokens=chunk_tokens, max_running=8
        )
        ended: dict[TokenSequence, Tensor | None] = {}

        def emit(progress: Progress) -> None:
            if progress.last_hidden is not None:
                ended[progress.sequence] = progress.states
                loop.remove(progress.sequence)

        loop = PrefillLoop(
            scheduler,
            make_runner(model, plain_storage(layout, blocks)),
            emit,
            WorkerMetrics(new_registry()),
            announce_layers=0,
        )
        sequences = [TokenSequence("r", list(text), b"root", BLOCK_TOKENS) for text in texts]
        for sequence in sequences:
            loop.submit(sequence, wanted)
        while loop.step():
            pass
        return [ended[sequence] for sequence in sequences]

    return run


class Reader:
    """A drafter that drafts nothing and keeps what it is told."""

    name = "reader"
    taps = (0, 1)
    window = WANTED.rows

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}

    def begin(self, sequence: TokenSequence, hints: Hints) -> None: ...

    def end(self, sequence: TokenSequence) -> None: ...

    def observe(self, verdicts: Sequence[Verdict]) -> None: ...

    def feed(self, sequence: TokenSequence, start: int, taps: Tensor) -> None:
        self.rows.update(enumerate(taps.bfloat16(), start))

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [NO_DRAFT] * len(asks)


def test_last_states_do_not_depend_on_how_prompts_were_cut(prefill: Prefill) -> None:
    whole = prefill(prompts(), WANTED)
    for settings in ({"chunk_tokens": 20}, {"chunk_tokens": 33}, {"blocks": 10}):
        for states, expected in zip(prefill(prompts(), WANTED, **settings), whole, strict=True):
            assert states is not None and expected is not None
            assert torch.equal(states, expected)


def test_they_are_as_many_as_were_wanted_and_computed(prefill: Prefill) -> None:
    texts = prompts()
    sizes = [len(states) for states in prefill(texts, WANTED) if states is not None]
    assert sizes == [min(len(text), WANTED.rows) for text in texts]
    again = prefill([texts[0], [*texts[0], 7, 8]], WANTED, chunk_tokens=70)
    assert again[1] is not None
    assert len(again[1]) == 72 - 64, "blocks from the prefix cache are not computed again"
    assert prefill(texts, NO_STATES) == [None] * len(texts)


def test_a_home_tells_its_drafters_what_it_would_have_seen_itself(
    prefill: Prefill, make_home: Callable[..., Any]
) -> None:
    (prompt, *_) = prompts()
    params = SamplingParams(seed=1, max_tokens=2, temperature=0.0, ignore_eos=True)
    seen, told = Reader(), Reader()
    home = make_home(drafters={"reader": seen}, policy=Fixed("reader", 2))
    home.submit(prompt, params)
    home.run()
    (states,) = prefill([prompt], WANTED)
    home = make_home(drafters={"reader": told}, policy=Fixed("reader", 2))
    sequence = home.submit(prompt, params)
    assert home.loop.states_read(sequence) == WANTED
    home.loop._speculator.arrived(sequence, states)
    assert sorted(told.rows) == list(range(len(prompt) - WANTED.rows, len(prompt)))
    assert all(torch.equal(row, seen.rows[place]) for place, row in told.rows.items())
