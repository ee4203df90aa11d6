"""The whole recipe: texts, a head that learns from them, and how well it drafts in the end."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from triptych.drafters.heads.head_config import HeadConfig, HeadKind, default_taps
from triptych.errors import ConfigError
from triptych.launch.machine import usable_cores
from triptych.tokenizer import Tokenizer
from triptych.training.allocator import keep_freed_memory
from triptych.training.batches import batches, collate, usable
from triptych.training.checkpoint import (
    drop_state,
    load_head_tensors,
    load_state,
    save_head,
    save_state,
)
from triptych.training.corpus import Corpus, Text
from triptych.training.draft_vocab import choose_draft_vocab
from triptych.training.first_weights import start_from_target
from triptych.training.generate import Recipe, write_corpus
from triptych.training.kept_states import KeptStates
from triptych.training.learner import HeadLearner, Score, Settings
from triptych.training.offline import OfflineEngine
from triptych.training.teacher import Teacher, Vocabulary
from triptych.worker.boot import EngineParts

_HELD_OUT = 100  # texts, but never more than a tenth
_SAVE_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted. `answer_tokens` of the target's own writing are learned `epochs` times."""

    kind: HeadKind
    out: Path
    given: Sequence[str] = ()  # texts of users
    answer_tokens: int = 600_000
    epochs: int = 5
    draft_vocab: int = 8192
    num_layers: int = 1
    batch_rows: int = 1024  # small: what a head lacks is steps, not precise ones
    max_tokens: int = 768  # of a text
    seed: int = 0
    start: Path | None = None  # a head of the same model whose weights it begins with
    settings: Settings = Settings()


class Watcher(Protocol):
    """Sees how far it is."""

    def stage(self, name: str, total: int) -> None: ...

    def progress(self, done: int, note: str = "") -> None: ...


def train(plan: Plan, parts: EngineParts, watcher: Watcher) -> Score:
    """Leaves a head in `plan.out` and returns its score on texts that it never saw. Cut off at any
    moment and called again with the same plan, it goes on. Raises ConfigError or ModelError.
    """
    if parts.model.config.delta is not None:
        raise ConfigError("model: this one keeps states, and verifies no drafts: it needs no head")
    keep_freed_memory()
    torch.set_num_threads(usable_cores())
    plan.out.mkdir(parents=True, exist_ok=True)
    corpus = _write(plan, parts, watcher)
    texts = [text for text in (usable(t, plan.max_tokens) for t in corpus.texts()) if text]
    held = texts[: min(_HELD_OUT, max(1, len(texts) // 10))]
    texts = texts[len(held) :]
    if not texts:
        raise ConfigError("--tokens: too few to learn from; give 10000 or more")
    learner = _learner(plan, parts, texts)
    teacher = KeptStates(_teacher(parts, learner.module.config), plan.out)
    try:
        _learn(plan, learner, teacher, texts, watcher)
        save_head(learner, plan.out)
        drop_state(plan.out)
        watcher.stage("held-out texts", len(held))
        return score_of(learner, teacher, held, plan)
    finally:
        teacher.close()


def _write(plan: Plan, parts: EngineParts, watcher: Watcher) -> Corpus:
    tokenizer = Tokenizer.load(parts.model_path)
    eos = parts.eos_token_ids(tokenizer)
    corpus = Corpus(plan.out / "corpus.jsonl")
    watcher.stage("the target writes", plan.answer_tokens)
    write_corpus(
        OfflineEngine(parts, eos),
        Recipe(tokenizer, plan.seed, plan.given),
        corpus,
        plan.answer_tokens,
        watcher.progress,
    )
    return corpus


def _learner(plan: Plan, parts: EngineParts, texts: Sequence[Text]) -> HeadLearner:
    """A new one, or the one that was cut off."""
    target = parts.model.config
    state = load_state(plan.out)
    size = min(plan.draft_vocab, target.vocab_size)
    before = None if plan.start is None else _head_to_start_from(plan, parts)
    if state is not None:
        ids = state["draft_ids"]
    elif before is not None:
        ids = before["draft_ids"].long()
    else:
        ids = choose_draft_vocab(texts, size, target.vocab_size)
    config = HeadConfig(
        kind=plan.kind,
        target=parts.fingerprint,
        target_vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        taps=default_taps(target.num_layers),
        num_layers=plan.num_layers,
        draft_vocab_size=len(ids),
        block=max(2, plan.settings.passes),
    )
    rows = sum(len(text.tokens) for text in texts)
    total = max(1, plan.epochs * rows // plan.batch_rows)
    settings = replace(plan.settings, total_steps=total)
    learner = HeadLearner(config, target, ids, Vocabulary(parts.model), settings)
    if state is None:
        taps = _teacher(parts, config).states([texts[0].tokens])[0].taps
        scale = float(taps[1:, -target.hidden_size :].float().square().mean().sqrt())
        start_from_target(learner.module, parts.model, ids, scale)
        if before is not None:
            learner.load({**learner.module.state_dict(), **before})  # an eagle3 head has no marks
    else:
        learner.restore(state["learner"])
    return learner


def _head_to_start_from(plan: Plan, parts: EngineParts) -> dict[str, Tensor]:
    assert plan.start is not None
    config = HeadConfig.load(plan.start)
    if config.target != parts.fingerprint or config.num_layers != plan.num_layers:
        raise ConfigError(f"--start: {plan.start} is a head of another model or with other layers")
    return load_head_tensors(plan.start)


def _teacher(parts: EngineParts, config: HeadConfig) -> Teacher:
    return Teacher(parts.runner, parts.pool, parts.layout.block_tokens, config.taps)


def _learn(
    plan: Plan, learner: HeadLearner, teacher: KeptStates, texts: Sequence[Text], watcher: Watcher
) -> None:
    total = learner.settings.total_steps
    watcher.stage("the head learns", total)
    saved = time.monotonic()
    for group in _groups(plan, texts, learner.step):
        if learner.step >= total:
            return
        score = learner.learn(collate(group, teacher))
        note = f"{score.tokens_per_round:.2f} tokens per round"
        watcher.progress(learner.step, f"{note}, loss {score.loss:.2f}")
        if time.monotonic() - saved > _SAVE_EVERY_S:
            save_state(learner, plan.out)
            saved = time.monotonic()


def _groups(plan: Plan, texts: Sequence[Text], done: int) -> Iterator[list[Text]]:
    """Endless; without the first `done`, which a run that was cut off has learned."""
    epoch = 0
    while True:
        for group in batches(texts, plan.batch_rows, random.Random(f"{plan.seed}/{epoch}")):
            if done > 0:
                done -= 1
                continue
            yield group
        epoch += 1


def score_of(learner: HeadLearner, teacher: KeptStates, texts: Sequence[Text], plan: Plan) -> Score:
    score = Score.empty(plan.settings.passes)
    for group in batches(texts, plan.batch_rows, random.Random(0)):
        score.add(learner.score(collate(group, teacher)))
    return score
