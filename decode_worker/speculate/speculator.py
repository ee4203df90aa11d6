"""Between the scheduler and the forward: who drafts, and what became of it."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

from decode_worker.speculate.policy import Budget, BudgetPolicy, Candidate, StepLoad, StepReport
from triptych.drafters.drafter import Ask, Drafter, Hints, Verdict
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.rows import RowJob
from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import Sequence

_log = logging.getLogger(__name__)


class Speculator:
    """Without a policy every draft is empty, and that is plain decoding: there is no other path.

    A drafter that raises is asked no more; its drafts are empty from then on.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        drafters: Mapping[str, Drafter] | None = None,
        policy: BudgetPolicy | None = None,
        *,
        max_model_len: int,
        vocab_size: int,
        max_nodes: int = 16,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._scheduler = scheduler
        self._drafters = dict(drafters or {})
        self._vocab_size = vocab_size
        self._max_nodes = max_nodes
        self._policy = policy
        self._max_model_len = max_model_len
        self._clock = clock
        self._known: set[Sequence] = set()
        self._load: StepLoad | None = None
        self._draft_seconds: dict[str, float] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Drafters that a request may name."""
        return tuple(self._drafters)

    def begin(self, sequence: Sequence) -> None:
        """May be called again for a sequence that came back."""
        wanted = sequence.speculation
        if sequence in self._known or self._policy is None or wanted.off:
            return
        self._known.add(sequence)
        hints = Hints(wanted.tenant, wanted.problem_id)
        for drafter in self._drafters.values():
            drafter.begin(sequence, hints)

    def end(self, sequence: Sequence) -> None:
        if sequence not in self._known or self._policy is None:
            return
        self._known.discard(sequence)
        self._policy.forget(sequence)
        for drafter in self._drafters.values():
            drafter.end(sequence)

    def draft(self, jobs: list[RowJob]) -> list[RowJob]:
        """The jobs, those that reach their end with a draft behind them where one may pay."""
        self._load, self._draft_seconds = None, {}
        if self._policy is None:
            return jobs
        places = [
            i for i, job in enumerate(jobs) if job.reaches_end and job.sequence in self._known
        ]
        if not places:
            return jobs
        self._load = self._load_of(jobs, places)
        drafts = self._policy.trim(self._load, self._propose(self._load, jobs))
        jobs = list(jobs)
        for place, draft in zip(places, drafts, strict=True):
            if draft:
                jobs[place] = replace(jobs[place], draft=draft)
        return jobs

    def observe(self, verdicts: list[Verdict], rows: int, seconds: float) -> None:
        """After the step; seconds: all of it, from `draft` on. Who was no candidate is left out."""
        if self._policy is None or self._load is None:
            return
        candidates = {candidate.sequence for candidate in self._load.candidates}
        verdicts = [verdict for verdict in verdicts if verdict.sequence in candidates]
        self._policy.observe(
            StepReport(
                tuple(verdicts),
                rows,
                self._load.kv_tokens,
                self._draft_seconds,
                seconds - sum(self._draft_seconds.values()),
            )
        )
        for drafter in self._drafters.values():
            drafter.observe(verdicts)

    def _load_of(self, jobs: list[RowJob], places: list[int]) -> StepLoad:
        left = self._scheduler.rows_left(jobs)
        return StepLoad(
            tuple(self._candidate(jobs[place].sequence, left) for place in places),
            sum(job.num_rows for job in jobs) - len(places),
            sum(job.end for job in jobs),
        )

    def _candidate(self, sequence: Sequence, rows: int) -> Candidate:
        assert sequence.params is not None
        wanted = sequence.speculation
        # What follows the last node that can become a token is the step's own token.
        room = min(
            rows,
            sequence.params.max_tokens - sequence.num_output - 1,
            self._max_model_len - len(sequence.tokens) - 1,
            self._max_nodes,
            wanted.max_nodes or self._max_nodes,
        )
        names = [name for name in self._drafters if not wanted.drafters or name in wanted.drafters]
        return Candidate(sequence, max(0, room), tuple(names))

    def _propose(self, load: StepLoad, jobs: list[RowJob]) -> list[Draft]:
        assert self._policy is not None
        rows = self._scheduler.rows_left(jobs)
        drafts = [NO_DRAFT] * len(load.candidates)
        self._make(drafts, load, self._policy.plan(load), rows)
        self._make(drafts, load, self._policy.improve(load, drafts), rows)
        return drafts

    def _make(self, drafts: list[Draft], load: StepLoad, budgets: list[Budget], rows: int) -> None:
        """Puts what the budgets ask for into `drafts`, all of them within so many rows."""
        rows -= sum(map(len, drafts))
        asked = defaultdict[str, list[tuple[int, Ask]]](list)
        for place, budget in enumerate(budgets):
            if not budget.max_nodes:
                continue
            candidate = load.candidates[place]
            sequence = candidate.sequence
            room = rows + len(drafts[place])  # a better draft takes the place of this one
            wanted = min(budget.max_nodes, candidate.max_nodes, room)
            if wanted > 0:
                wanted = self._scheduler.lease(sequence, len(sequence.tokens), wanted)
            if wanted > 0:
                rows = room - max(wanted, len(drafts[place]))
                asked[budget.drafter].append((place, Ask(sequence, wanted)))
        for name, asks in asked.items():
            made = self._ask(name, [ask for _, ask in asks])
            for (place, ask), draft in zip(asks, made, strict=True):
                drafts[place] = self._sound(draft, name, ask.max_nodes) or drafts[place]

    def _sound(self, draft: Draft, name: str, max_nodes: int) -> Draft:
        """What of a draft may be verified, whoever made it."""
        tokens = draft.tokens
        if not tokens:
            return NO_DRAFT
        if min(tokens) < 0 or max(tokens) >= self._vocab_size or len(tokens) > max_nodes:
            sound = [0 <= token < self._vocab_size for token in tokens]
            draft = draft.kept(sound).first(max_nodes)
        return draft if draft.drafter == name else replace(draft, drafter=name)

    def _ask(self, name: str, asks: list[Ask]) -> list[Draft]:
        drafter = self._drafters.get(name)
        if drafter is None:
            return [NO_DRAFT] * len(asks)
        began = self._clock()
        try:
            return drafter.propose(asks)
        except Exception:
            _log.exception("drafter %s failed and is switched off", name)
            del self._drafters[name]
            return [NO_DRAFT] * len(asks)
        finally:
            spent = self._clock() - began
            self._draft_seconds[name] = self._draft_seconds.get(name, 0.0) + spent
