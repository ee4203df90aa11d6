"""A head that learns while it serves gets better, and a version that is worse goes away again."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from decode_worker.speculate.fixed import Fixed
from triptych.drafters.heads.drafter import HeadOptions
from triptych.drafters.tree_growth import Growth
from triptych.engine.runner import Runner
from triptych.kv.pool import BlockPool
from triptych.models.model import Model
from triptych.request import SamplingParams
from triptych.testing.heads import head_drafter, random_head
from triptych.training.checkpoint import load_head_tensors
from triptych.training.learning_drafter import LearningHead
from triptych.training.online import DraftTrainer, OnlineSettings
from triptych.training.versions import VersionWatch


class School:
    """A home whose drafter learns; lessons are given by hand."""

    def __init__(self, make_home: Callable[..., Any], model: Model, folder: Path) -> None:
        self.folder = folder
        random_head(folder, model, "eagle3")

        def drafters(pool: BlockPool, runner: Runner) -> dict[str, Any]:
            options = HeadOptions(Growth(min_prob=1e-9), window=64)
            drafter = head_drafter(folder, model, pool, options=options)
            settings = OnlineSettings(rate=3e-3, batch_rows=256, held_out=5, steps_per_version=10)
            weights = load_head_tensors(folder)
            self.trainer = DraftTrainer(drafter.head, weights, settings)
            self.drafter = LearningHead(drafter, self.trainer.offer, self.trainer.rolled_back)
            return {"eagle3": self.drafter}

        self.home = make_home(drafters_of=drafters, policy=Fixed("eagle3", 3))

    def serve(self, prompts: int) -> float:
        """Accepted tokens per draft, on the same few prompts again and again."""
        before = len(self.home.sequences)
        draw = random.Random(0)
        for index in range(prompts):
            params = SamplingParams(seed=index, max_tokens=40, temperature=0.0, ignore_eos=True)
            self.home.submit([draw.randrange(3, 250) for _ in range(20)], params)
        self.home.run()
        new = self.home.sequences[before:]
        return sum(s.num_accepted for s in new) / max(1, sum(s.num_rounds for s in new))

    def lesson(self) -> None:
        """Until a version is better than the one in use."""
        heads = (self.trainer.learn() for _ in range(400))
        self.drafter.publish(next(head for head in heads if head is not None))


@pytest.fixture
def mode() -> str:
    return "bfloat16"


@pytest.fixture
def school(make_home: Callable[..., Any], model: Model, tmp_path: Path) -> School:
    return School(make_home, model, tmp_path / "head")


def test_acceptance_rises_with_what_was_verified(school: School) -> None:
    before = school.serve(8)
    for _ in range(4):
        school.lesson()
        after = school.serve(8)
    assert school.drafter.version == 4
    assert after > before + 0.3


def test_a_version_that_is_worse_goes_away_and_changes_no_token(
    school: School, make_home: Callable[..., Any]
) -> None:
    for _ in range(3):
        school.serve(8)
        school.lesson()
    good = school.serve(12)
    broken = {
        name: torch.randn_like(value) if name.startswith("model") else value
        for name, value in load_head_tensors(school.folder).items()
    }
    version, rollbacks = school.drafter.version, school.drafter.num_rollbacks
    school.drafter.publish(school.drafter.head.successor(99, broken))
    school.serve(12)
    assert school.drafter.num_rollbacks == rollbacks + 1
    assert school.drafter.version == version
    assert school.serve(12) > 0.8 * good
    fresh = make_home()
    for sequence in school.home.sequences:
        fresh.submit(sequence.tokens[: sequence.num_prompt], sequence.params)
    assert fresh.run() == [s.tokens[s.num_prompt :] for s in school.home.sequences]


def test_learning_goes_on_from_the_version_before_when_one_fell(school: School) -> None:
    school.serve(8)
    school.lesson()
    kept = {name: value.clone() for name, value in school.trainer._previous.items()}
    school.trainer.rolled_back()
    learned = school.trainer._learner.module.state_dict()
    assert all(torch.equal(learned[name], kept[name].float()) for name in learned)


def test_a_version_is_judged_after_enough_drafts_by_what_the_one_before_brought() -> None:
    watch = VersionWatch()
    for _ in range(60):
        watch.add(2)
    watch.swapped()
    for _ in range(40):
        watch.add(1)
    assert not watch.has_fallen, "too few drafts to tell"
    for _ in range(20):
        watch.add(1)
    assert watch.has_fallen
    watch.rolled_back()
    assert not watch.has_fallen


def test_a_version_that_brings_a_little_less_stays() -> None:
    watch = VersionWatch()
    for version in (2.0, 1.8):
        for _ in range(60):
            watch.add(int(version * 10))
        watch.swapped()
    assert not watch.has_fallen
