"""Trained heads draft what they were trained to, and change no token."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from decode_worker.speculate.dice import Dice
from decode_worker.speculate.fixed import Fixed
from triptych.drafters.drafter import Verdict
from triptych.drafters.heads.drafter import HeadDrafter, HeadOptions
from triptych.drafters.heads.head_config import HeadKind
from triptych.drafters.tree_growth import Growth
from triptych.engine.draft import Draft
from triptych.engine.runner import Runner
from triptych.errors import ModelError
from triptych.kv.pool import BlockPool
from triptych.models.model import Model
from triptych.models.taps import LayerTap
from triptych.request import SamplingParams
from triptych.testing.heads import head_drafter, random_head
from triptych.training.head_module import HeadModule

KINDS: tuple[HeadKind, ...] = ("eagle3", "parallel")


@pytest.fixture(params=["torch", "bfloat16", "int8"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> HeadKind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "head"


class Recorder:
    """Passes everything on to a drafter and keeps what it drafted for whom."""

    def __init__(self, drafter: HeadDrafter) -> None:
        self._drafter = drafter
        self.drafts: list[tuple[list[int], Draft]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def begin(self, *args: Any) -> None:
        self._drafter.begin(*args)

    def end(self, *args: Any) -> None:
        self._drafter.end(*args)

    def feed(self, *args: Any) -> None:
        self._drafter.feed(*args)

    def observe(self, verdicts: list[Verdict]) -> None:
        self._drafter.observe(verdicts)

    def propose(self, asks: Any) -> list[Draft]:
        drafts = self._drafter.propose(asks)
        self.drafts += [
            (list(ask.sequence.tokens), draft) for ask, draft in zip(asks, drafts, strict=True)
        ]
        return drafts


def prompts() -> list[list[int]]:
    draw = random.Random(2)
    return [[draw.randrange(3, 250) for _ in range(n)] for n in (2, 15, 17, 40, 130)]


def params_of(index: int) -> SamplingParams:
    temperature = 0.0 if index % 2 == 0 else 0.9
    return SamplingParams(seed=index, max_tokens=40, temperature=temperature, ignore_eos=True)


def answers(home: Any) -> list[list[int]]:
    for index, prompt in enumerate(prompts()):
        home.submit(prompt, params_of(index))
    return home.run()  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [1, 3], ids=["chains", "trees"])
@pytest.mark.parametrize("settings", [{}, {"chunk_tokens": 20}, {"blocks": 24}], ids=str)
def test_drafts_of_heads_change_no_token(
    make_home: Callable[..., Any],
    model: Model,
    folder: Path,
    kind: HeadKind,
    width: int,
    settings: dict[str, Any],
) -> None:
    random_head(folder, model, kind)

    def drafters(pool: BlockPool, runner: Runner) -> dict[str, Any]:
        options = HeadOptions(Growth(width, width, min_prob=1e-6), window=64)
        return {kind: head_drafter(folder, model, pool, options=options)}

    plain = answers(make_home())
    home = make_home(drafters_of=drafters, policy=Dice(9, seed=3), **settings)
    assert answers(home) == plain
    assert sum(sequence.num_drafted for sequence in home.sequences) > 50


def expected_chain(
    module: HeadModule, model: Model, states: torch.Tensor, tokens: list[int], depth: int
) -> list[int]:
    """What the module that is trained would draft behind these tokens, from all of them."""
    drafted: list[int] = []
    rows = len(tokens) - 1
    for index in range(depth):
        known = [*tokens, *drafted] if module.config.kind == "eagle3" else tokens
        padded = [*known[1:], *[0] * (index + rows - len(known) + 1)]
        taps = torch.cat([states[:rows], states.new_zeros(index, states.shape[1])])
        with torch.no_grad():
            embedded = model.embedding.row(torch.tensor(padded))
            out = module(embedded[None], taps[None], index + 1)[index][0, rows - 1 + index]
            drafted.append(int(module.lm_head(out).argmax()) + 20)
    return drafted


@pytest.mark.parametrize("mode", ["torch"], indirect=True)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_head_drafts_what_the_trained_module_would(
    make_home: Callable[..., Any],
    model: Model,
    folder: Path,
    kind: HeadKind,
    num_layers: int,
) -> None:
    module = random_head(folder, model, kind, num_layers=num_layers)
    recorders: list[Recorder] = []

    def drafters(pool: BlockPool, runner: Runner) -> dict[str, Any]:
        options = HeadOptions(Growth(min_prob=1e-9), window=512)
        recorders.append(Recorder(head_drafter(folder, model, pool, options=options)))
        return {kind: recorders[0]}

    home = make_home(drafters_of=drafters, policy=Fixed(kind, 4), cache=False)
    params = SamplingParams(seed=1, max_tokens=12, temperature=0.0, ignore_eos=True)
    sequence = home.submit(prompts()[3], params)
    home.run()
    states = _states(make_home(cache=False), model, sequence.tokens, module.config.taps)
    checked = [(tokens, draft) for tokens, draft in recorders[0].drafts if len(draft) == 4]
    assert len(checked) >= 5
    for tokens, draft in checked:
        assert list(draft.tokens) == expected_chain(module, model, states, tokens, 4)


def _states(home: Any, model: Model, tokens: list[int], taps: tuple[int, ...]) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    params = SamplingParams(seed=1, max_tokens=1, temperature=0.0, ignore_eos=True)
    home.submit(tokens, params)
    jobs = home.loop.scheduler.next_batch()
    tap = LayerTap(taps, lambda _, hidden: kept.append(hidden[: len(tokens)].bfloat16().float()))
    home.loop._runner.forward(jobs, [tap])
    return torch.cat(kept, dim=-1)


def test_a_head_that_begins_in_the_middle_knows_what_came_from_the_prefix_cache(
    make_home: Callable[..., Any], model: Model, folder: Path, kind: HeadKind
) -> None:
    """A second request with the same prompt drafts as the first one did."""
    random_head(folder, model, kind)
    recorders: list[Recorder] = []

    def drafters(pool: BlockPool, runner: Runner) -> dict[str, Any]:
        options = HeadOptions(Growth(min_prob=1e-9))
        recorders.append(Recorder(head_drafter(folder, model, pool, options=options)))
        return {kind: recorders[0]}

    home = make_home(drafters_of=drafters, policy=Fixed(kind, 3))
    params = SamplingParams(seed=1, max_tokens=8, temperature=0.0, ignore_eos=True)
    prompt = prompts()[4]
    home.submit(prompt, params)
    home.run()
    first = list(recorders[0].drafts)
    again = home.submit(prompt, params)
    home.run()
    assert again.num_cached >= 112
    assert recorders[0].drafts[len(first) :] == first


def test_a_head_of_other_weights_is_refused(model: Model, folder: Path, kind: HeadKind) -> None:
    random_head(folder, model, kind)
    text = (folder / "head.json").read_text().replace("a tiny model", "another")
    (folder / "head.json").write_text(text)
    with pytest.raises(ModelError, match="triptych draft train"):
        head_drafter(folder, model, BlockPool(8))


def test_a_directory_without_a_head_says_what_makes_one(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="head.json.*triptych draft train"):
        head_drafter(tmp_path, model, BlockPool(8))
