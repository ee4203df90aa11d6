"""Which of its drafted tokens a sequence takes, and the one behind them.

`Equality` is the rule of the house: a node is right iff it is the token that plain decoding draws
there. The others take a drafted token more often and keep the *law* of plain decoding: over many
seeds every answer is as frequent as before, but the answer to one seed depends on what was drafted,
so on drafters, budgets and batch mates. With the same drafts it is the same, wherever a stream is
continued. A drafter that remembers answers to the very same seed is not independent of its coins,
so the promise is one over different seeds. Greedy requests are judged by equality under all rules.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from decode_worker.speculate.verify import Walk, spots_of
from triptych.engine.draft import Draft, Law
from triptych.engine.rows import RowJob
from triptych.engine.sampler import Drawn, Sampler
from triptych_kernels.coins import Purpose, coins, stream
from triptych_kernels.sampling import GREEDY_BELOW
from triptych_kernels.verification import Round, Verify, one_hot, rejection, sample

_log = logging.getLogger(__name__)
_SUM_ERROR = 1e-3  # of a law's float32 probabilities


class Judged(NamedTuple):
    path: list[int]  # nodes of the draft that are right, from the root down
    tokens: list[Drawn]  # theirs, and the one behind them


class AcceptanceRule(Protocol):
    @property
    def reads_laws(self) -> bool:
        """Drafts that state laws must come as they were drawn."""

    def judge(self, jobs: Seq[RowJob], logits: Tensor, sampler: Sampler) -> list[Judged]:
        """Per job, from logits float32 [R, V] of the wanted rows of all."""


class Equality:
    """Right is what plain decoding draws; so no answer depends on any draft."""

    reads_laws = False

    def judge(self, jobs: Seq[RowJob], logits: Tensor, sampler: Sampler) -> list[Judged]:
        """Level by level: behind a wrong node nothing is drawn, and most nodes of a tree are."""
        rows = logits.contiguous().unbind(0)
        walks, first = list[Walk](), 0
        for job in jobs:
            walks.append(Walk(job.sequence, job.draft, first))
            first += job.num_wanted
        going = walks
        while going:
            spots = [walk.spot for walk in going]
            tokens = sampler.draw_rows([rows[walk.row] for walk in going], spots)
            going = [walk for walk, token in zip(going, tokens, strict=True) if walk.take(token)]
        return [
            Judged(walk.path, [sampler.tell(t, rows[at], spot) for t, at, spot in walk.drawn])
            for walk in walks
        ]


class InLaw:
    """Lossless in law: right by the coins of `verify`, under the laws that drafts state."""

    reads_laws = True

    def __init__(self, verify: Verify) -> None:
        """verify: `rejection`, or `block`, which trees leave to `rejection`."""
        self._verify = verify
        self._liars: set[str] = set()

    @torch.inference_mode()
    def judge(self, jobs: Seq[RowJob], logits: Tensor, sampler: Sampler) -> list[Judged]:
        judged, row = [], 0
        for job in jobs:
            rows = logits[row : row + job.num_wanted]
            row += job.num_wanted
            params = job.sequence.params
            assert params is not None, "a prompt without sampling parameters draws nothing"
            if params.temperature < GREEDY_BELOW:
                judged += Equality().judge([job], rows, sampler)
            else:
                judged.append(self._judge(job, params.seed, rows, sampler))
        return judged

    def _judge(self, job: RowJob, seed: int, logits: Tensor, sampler: Sampler) -> Judged:
        """Coins of nodes belong to the round, which no other round shares a first position with;
        a rule may look at more of them than it takes tokens.
        """
        draft, begin = job.draft, len(job.sequence.tokens)
        spots = spots_of(job.sequence, draft)
        parents = [draft.parent(node) for node in range(len(draft))]
        drafted = Round(
            parents,
            torch.tensor([draft.tokens], dtype=torch.int64),
            torch.stack(sampler.laws(logits, spots))[None],
            self._drafted_laws(draft, logits.shape[1])[None],
        )
        verify = self._verify if parents == list(range(-1, len(draft) - 1)) else rejection
        node, law = verify(drafted, coins(stream(seed, Purpose.ACCEPT), begin, len(draft))[None])
        path = draft.path(int(node))
        coin = coins(stream(seed, Purpose.EMIT), begin + len(path), 1)
        tokens = [*(draft.tokens[right] for right in path), int(sample(law, coin))]
        rows = [0, *(1 + right for right in path)]
        told = [sampler.tell(t, logits[at], spots[at]) for t, at in zip(tokens, rows, strict=True)]
        return Judged(path, told)

    def _drafted_laws(self, draft: Draft, vocab_size: int) -> Tensor:
        """[T, V]; one-hot, which is right for any draft, unless its drafter states sound laws."""
        tokens = torch.tensor(draft.tokens, dtype=torch.int64)
        if draft.laws:
            laws = [_dense(law, vocab_size) for law in draft.laws]
            if all(_may_draw(law, token) for law, token in zip(laws, draft.tokens, strict=True)):
                return torch.stack(laws)
            if draft.drafter not in self._liars:
                self._liars.add(draft.drafter)
                _log.error("drafter %s states laws that it does not draw from", draft.drafter)
        return one_hot(tokens, vocab_size)


def _dense(law: Law, vocab_size: int) -> Tensor:
    """[V] float32, all 0 if it has tokens that are none."""
    dense = torch.zeros(vocab_size)
    ids = law.ids.long()
    if len(ids) and int(ids.min()) >= 0 and int(ids.max()) < vocab_size:
        dense[ids] = law.probs
    return dense


def _may_draw(law: Tensor, token: int) -> bool:
    """law [V] is one, and the token can come from it."""
    return bool(law[token] > 0 and law.min() >= 0 and abs(law.sum() - 1.0) < _SUM_ERROR)
