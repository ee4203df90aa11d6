"""A head that learns, one batch at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triptych.drafters.heads.head_config import HeadConfig
from triptych.models.config import ModelConfig
from triptych.training.batches import Batch
from triptych.training.head_module import HeadModule
from triptych.training.soft_targets import Target, soft_target_loss
from triptych.training.teacher import Vocabulary


@dataclass(frozen=True, slots=True)
class Settings:
    """EAGLE-3 and DFlash train with AdamW, warm-up and cosine; the rates here are for heads of some
    ten million parameters.
    """

    passes: int = 4  # how far the head learns to draft
    first_alone: float = 0.5  # share of the steps in which only the first pass is learned: eagle3
    peak_rate: float = 1e-3
    warmup: float = 0.04  # share of the steps
    total_steps: int = 1000
    decay: float = 0.85  # weight of a pass relative to the one before: late nodes count less often
    states: float = 1.0  # weight of the loss on hidden states, next to that on tokens
    clip: float = 0.5
    weight_decay: float = 0.01


@dataclass(slots=True)
class Score:
    """Of drafts as long as there were passes, behind every row of some answers."""

    reached: list[int]  # per position: drafts that were right up to there
    tried: int = 0
    loss: float = 0.0

    @property
    def acceptance(self) -> list[float]:
        """P(position right | all before right)."""
        before = [self.tried, *self.reached]
        return [n / max(1, b) for n, b in zip(self.reached, before, strict=False)]

    @property
    def tokens_per_round(self) -> float:
        """With greedy drafts of that length."""
        return 1.0 + sum(self.reached) / max(1, self.tried)

    def add(self, other: Score) -> None:
        self.reached = [a + b for a, b in zip(self.reached, other.reached, strict=True)]
        self.tried += other.tried
        self.loss += other.loss

    @classmethod
    def empty(cls, passes: int) -> Score:
        return cls([0] * passes)


class HeadLearner:
    """Module, optimiser and the target's part of the loss."""

    def __init__(
        self,
        config: HeadConfig,
        target: ModelConfig,
        draft_ids: Tensor,
        vocabulary: Vocabulary,
        settings: Settings,
    ) -> None:
        """A head of random weights; whoever makes it says what it starts from."""
        self.settings = settings
        self.draft_ids = draft_ids
        self.module = HeadModule(config, target)
        self._rows = (vocabulary.head_rows(draft_ids) / target.logits_divisor).bfloat16()
        self._softcap = target.final_softcap
        self._draft_of = torch.full((config.target_vocab_size,), -1)
        self._draft_of[draft_ids] = torch.arange(len(draft_ids))
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=settings.peak_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.step = 0

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Weights of another head, in checkpoint names."""
        known = self.module.state_dict()
        self.module.load_state_dict({name: tensors[name].float() for name in known})

    def learn(self, batch: Batch) -> Score:
        """One step; returns how the head did before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.settings)
        self.optimizer.zero_grad(set_to_none=True)
        loss, score = self._forward(batch, self._passes_now())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip)
        self.optimizer.step()
        self.step += 1
        return score

    @torch.no_grad()
    def score(self, batch: Batch) -> Score:
        return self._forward(batch, self.settings.passes)[1]

    def state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _passes_now(self) -> int:
        """What comes after a first token can be learned only when that is right, and every pass
        costs as much as the first. A parallel head has one pass, whose rows differ.
        """
        settings = self.settings
        alone = settings.first_alone if self.module.config.kind == "eagle3" else 0.0
        return 1 if self.step < alone * settings.total_steps else settings.passes

    def _forward(self, batch: Batch, passes: int) -> tuple[Tensor, Score]:
        first = batch.first_row(passes)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self.module(batch.embedded, batch.taps, passes, first)
        batch = batch.rows_from(first)
        places = batch.counts.flatten().nonzero().squeeze(-1)
        wanted = self._draft_of[batch.labels].flatten()[places]
        weights = self._weights(batch, places, wanted, passes)
        target = Target(batch.final.flatten(0, 1)[places], self._rows, self._softcap, wanted)
        total = weights.sum()
        loss, correct = soft_target_loss(
            self.module.lm_head.weight,
            torch.stack([out.flatten(0, 1)[places] for out in outputs]),
            weights / total,
            target,
        )
        if self.settings.states:
            loss = loss + self.settings.states * self._states_loss(outputs, batch, places, weights)
        right = torch.full((passes, batch.counts.numel()), False)
        right[:, places] = correct
        return loss, _score(right.view(passes, *batch.counts.shape), batch.counts, loss.item())

    def _states_loss(
        self, outputs: list[Tensor], batch: Batch, places: Tensor, weights: Tensor
    ) -> Tensor:
        """Of what the head makes of a position, from what the target will make of it: few texts
        teach more this way (EAGLE, arXiv 2401.15077, section 4.2). In units of its mean square.
        """
        wanted = batch.final.flatten(0, 1)[places].float()
        own = torch.stack([out.flatten(0, 1)[places] for out in outputs]).float()
        errors = (own - wanted).square().mean(-1)
        return (errors * weights).sum() / (weights.sum() * wanted.square().mean())

    def _weights(self, batch: Batch, places: Tensor, wanted: Tensor, num_passes: int) -> Tensor:
        """[passes, N]: late passes count less, rows whose token cannot be drafted do not."""
        columns = places % batch.counts.shape[1]
        passes = torch.arange(num_passes)[:, None]
        real = (columns >= passes) & (wanted >= 0)
        return real * self.settings.decay**passes


def rate_at(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    warmup = max(1, int(settings.warmup * settings.total_steps))
    if step < warmup:
        return settings.peak_rate * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, settings.total_steps - warmup))
    return settings.peak_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def _score(right: Tensor, counts: Tensor, loss: float) -> Score:
    """right [passes, B, R]: pass j is right in row t about token t+2. A draft that begins in row t
    is right at its position j if pass j is in row t + j, and all before were.
    """
    passes, _, rows = right.shape
    begins = max(0, rows - passes + 1)
    whole = counts[:, :begins]
    reached = []
    for index in range(passes):
        whole = whole & right[index, :, index : index + begins]
        reached.append(int(whole.sum()))
    return Score(reached, int(counts[:, :begins].sum()), loss)
