"""Between the scheduler and the forward: who drafts, and what became of it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from typing import Protocol

from prometheus_client import CollectorRegistry
from torch import Tensor

from decode_worker.speculate.acceptance import AcceptanceRule, Equality
from decode_worker.speculate.policy import (
    Budget,
    BudgetPolicy,
    Candidate,
    Introduced,
    StepLoad,
    StepReport,
)
from decode_worker.speculate.tally import Tally
from decode_worker.speculate.tap_bus import TapBus
from triptych.drafters.contained import Contained
from triptych.drafters.drafter import Ask, Drafter, Hints, Verdict
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.rows import RowJob
from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import Sequence
from triptych.models.taps import NO_STATES, StatesWanted, StateTap
from triptych.obs.speculation import SpeculationMetrics


class Teacher(Protocol):
    """Teaches a drafter, on a thread of its own."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Speculator:
    """Without a policy every draft is empty, and that is plain decoding: there is no other path.

    A drafter that fails is switched off: its drafts are empty from then on.
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
        rule: AcceptanceRule | None = None,
        teachers: Seq[Teacher] = (),
        clock: Callable[[], float] = time.perf_counter,
        metrics: SpeculationMetrics | None = None,  # None: nobody reads them
    ) -> None:
        metrics = metrics or SpeculationMetrics(CollectorRegistry())
        self.rule = rule or Equality()
        self._scheduler = scheduler
        self._drafters = Contained(drafters or {}, vocab_size, metrics.drafters)
        self._bus = TapBus(self._drafters)
        self._tally = Tally(metrics)
        self._teachers = tuple(teachers)
        self._max_nodes = max_nodes
        self._policy = policy
        self._max_model_len = max_model_len
        self._clock = clock
        self._known: set[Sequence] = set()
        self._load: StepLoad | None = None
        self._draft_seconds: dict[str, float] = {}
        self._decide_seconds = 0.0
        self._learn_seconds = 0.0  # of the last report

    def start(self) -> None:
        """Drafters that learn may begin to."""
        for teacher in self._teachers:
            teacher.start()

    def stop(self) -> None:
        for teacher in self._teachers:
            teacher.stop()

    def drafter(self, name: str) -> Drafter:
        """One that works. Raises KeyError."""
        return self._drafters.drafter(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Drafters that a request may name."""
        return self._drafters.names

    def begin(self, sequence: Sequence) -> None:
        """May be called again for a sequence that came back."""
        wanted = sequence.speculation
        if sequence in self._known or self._policy is None or wanted.off:
            return
        self._known.add(sequence)
        hints = Hints(wanted.tenant, wanted.problem_id)
        if isinstance(self._policy, Introduced):
            self._policy.begin(sequence, hints)
        self._drafters.begin(sequence, hints)

    def end(self, sequence: Sequence) -> None:
        if sequence not in self._known or self._policy is None:
            return
        self._known.discard(sequence)
        self._policy.forget(sequence)
        self._drafters.end(sequence)

    def draft(self, jobs: list[RowJob]) -> list[RowJob]:
        """The jobs, those that reach their end with a draft behind them where one may pay."""
        self._load, self._draft_seconds, self._decide_seconds = None, {}, 0.0
        if self._policy is None:
            return jobs
        places = [
            i for i, job in enumerate(jobs) if job.reaches_end and job.sequence in self._known
        ]
        if not places:
            return jobs
        if self._policy.rests(len(places)):
            self._tally.rested(len(places))
            return jobs
        began = self._clock()
        rows_left = self._scheduler.rows_left(jobs)
        self._load = self._load_of(jobs, places, rows_left)
        proposed = self._propose(self._load, rows_left)
        drafts = self._trim(self._load, proposed)
        self._decide_seconds = self._clock() - began - sum(self._draft_seconds.values())
        self._tally.drafted(self._load, proposed, drafts, self._draft_seconds)
        if not any(draft.tokens for draft in drafts):
            return jobs
        jobs = list(jobs)
        for place, draft in zip(places, drafts, strict=True):
            if draft.tokens:
                job = jobs[place]  # dataclasses.replace takes five times as long
                jobs[place] = RowJob(job.sequence, job.start, job.end, draft, job.first_block)
        return jobs

    def taps(self, jobs: list[RowJob]) -> list[StateTap]:
        """What drafters want to see of the forward of these jobs."""
        asleep = () if self._policy is None else self._policy.asleep()
        return self._bus.taps(jobs, self._known, asleep)

    def states_read(self, sequence: Sequence) -> StatesWanted:
        """Of a prompt that is computed elsewhere; from any thread."""
        return NO_STATES if sequence.speculation.off else self._bus.read_at_start

    def arrived(self, sequence: Sequence, states: Tensor) -> None:
        """states [m, layers · H] of the last rows of its prompt, which was computed elsewhere."""
        if sequence in self._known:
            self._bus.hand_in(sequence, states)

    def observe(self, verdicts: list[Verdict], rows: int, seconds: float) -> None:
        """After every step that had rows; seconds: all of it, from `draft` on. Who was no candidate
        is left out.
        """
        self._bus.hand_out(verdicts, self._known)
        if self._policy is not None and self._load is not None:
            self._learn(self._policy, self._load, verdicts, rows, seconds)
        if self._policy is not None:
            self._tally.step_ends(idle=not self._known)

    def _learn(
        self,
        policy: BudgetPolicy,
        load: StepLoad,
        verdicts: list[Verdict],
        rows: int,
        seconds: float,
    ) -> None:
        began = self._clock()
        if len(verdicts) > len(load.candidates):
            candidates = {candidate.sequence for candidate in load.candidates}
            verdicts = [verdict for verdict in verdicts if verdict.sequence in candidates]
        drafting, deciding = self._draft_seconds, self._decide_seconds
        rest = seconds - sum(drafting.values()) - deciding
        deciding += self._learn_seconds
        policy.observe(StepReport(tuple(verdicts), rows, load.kv_tokens, drafting, rest, deciding))
        self._drafters.observe(verdicts)
        self._tally.verified(verdicts, rest)
        self._learn_seconds = self._clock() - began

    def _load_of(self, jobs: list[RowJob], places: list[int], rows_left: int) -> StepLoad:
        most = min(rows_left, self._max_nodes)
        working = self._drafters.working
        return StepLoad(
            tuple(self._candidate(jobs[place].sequence, most, working) for place in places),
            sum([job.end - job.start for job in jobs]) - len(places),
            sum([job.end for job in jobs]),
        )

    def _candidate(self, sequence: Sequence, most: int, names: tuple[str, ...]) -> Candidate:
        assert sequence.params is not None
        wanted, length = sequence.speculation, len(sequence.tokens)
        # What follows the last node that can become a token is the step's own token.
        room = min(
            most,
            sequence.params.max_tokens + sequence.num_prompt - length - 1,
            self._max_model_len - length - 1,
            wanted.max_nodes or most,
        )
        if wanted.drafters:
            names = tuple(name for name in names if name in wanted.drafters)
        return Candidate(sequence, max(0, room), names)

    def _propose(self, load: StepLoad, rows: int) -> list[Draft]:
        assert self._policy is not None
        drafts = [NO_DRAFT] * len(load.candidates)
        self._make(drafts, load, self._policy.plan(load), rows)
        self._make(drafts, load, self._policy.improve(load, drafts), rows)
        return drafts

    def _make(self, drafts: list[Draft], load: StepLoad, budgets: list[Budget], rows: int) -> None:
        """Puts what the budgets ask for into `drafts`, all of them within so many rows."""
        rows -= sum([len(draft.tokens) for draft in drafts])
        asked = defaultdict[str, list[tuple[int, Ask]]](list)
        for place, (drafter, nodes) in enumerate(budgets):
            if not nodes:
                continue
            sequence, most, _ = load.candidates[place]
            there = len(drafts[place].tokens)
            room = rows + there  # a better draft takes the place of this one
            wanted = min(nodes, most, room)
            if wanted > 0:
                wanted = self._scheduler.lease(sequence, len(sequence.tokens), wanted)
            if wanted > 0:
                rows = room - max(wanted, there)
                asked[drafter].append((place, Ask(sequence, wanted)))
        for name, asks in asked.items():
            began = self._clock()
            made = self._drafters.propose(name, [ask for _, ask in asks])
            spent = self._clock() - began
            self._draft_seconds[name] = self._draft_seconds.get(name, 0.0) + spent
            for (place, _), draft in zip(asks, made, strict=True):
                drafts[place] = draft if draft.tokens else drafts[place]

    def _trim(self, load: StepLoad, drafts: list[Draft]) -> list[Draft]:
        """By the policy, but for drafts whose laws the rule reads: it must not see what was drawn.

        Its plan said how long they are. To drop the laws of those that it cut would not do: of the
        rest the law is no longer the stated one.
        """
        assert self._policy is not None
        if not self.rule.reads_laws:
            return self._policy.trim(load, drafts)
        whole = [bool(draft.laws) for draft in drafts]
        fixed = sum(len(draft) for draft, stays in zip(drafts, whole, strict=True) if stays)
        trimmed = self._policy.trim(
            load._replace(other_rows=load.other_rows + fixed),
            [NO_DRAFT if s else draft for draft, s in zip(drafts, whole, strict=True)],
        )
        each = zip(drafts, trimmed, whole, strict=True)
        return [draft if stays else cut for draft, cut, stays in each]
