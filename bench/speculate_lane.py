"""One way of decoding on the engine of this process: what a decode worker's loop does, unserved."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from decode_worker.loop import DecodeLoop, StepOutput
from decode_worker.speculate.make import make_speculator
from triptych.config import EngineConfig
from triptych.engine.sampler import Sampler
from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import Sequence
from triptych.obs.metrics import WorkerMetrics, new_registry
from triptych.request import SamplingParams, Speculation
from triptych.speculation_config import SpeculationConfig
from triptych.tokenizer import Tokenizer
from triptych.worker.boot import EngineParts


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt and how it is answered."""

    prompt: list[int]
    params: SamplingParams
    problem_id: str = ""
    tenant: str = ""  # jobs of another one share no answers
    cache_salt: str = ""  # jobs with another one share no blocks of KV


@dataclass(slots=True)
class Outcome:
    """What was timed, and every answer."""

    seconds: float = 0.0
    tokens: int = 0  # drawn in that time
    rounds: int = 0  # draws of a sequence in that time, with or without a draft
    drafted: int = 0
    accepted: int = 0
    answers: list[list[int]] = field(default_factory=list)

    @property
    def tokens_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_round(self) -> float:
        return self.tokens / max(1, self.rounds)


class Heat:
    """Jobs of a lane on their way, so many at once: whenever one ends, the next one begins.

    What is timed is a full house: steps in which all places are taken and nobody reads a prompt or
    is in his first `skip_rounds` rounds. It ends when a place stays free.
    """

    def __init__(self, lane: Lane, jobs: Seq[Job], places: int, skip_rounds: int = 1) -> None:
        self._lane = lane
        self._jobs = [*enumerate(jobs)][::-1]
        self._places = places
        self._skip = skip_rounds
        self._sequences: list[Sequence] = []  # of all that began
        self._active: list[Sequence] = []
        self.done = False
        self.timed = Outcome()
        self._fill()

    @property
    def tokens(self) -> int:
        return self.timed.tokens

    def step(self) -> None:
        counts = all(sequence.num_rounds >= self._skip for sequence in self._active)
        tokens, rounds = _progress(self._active)
        began = time.perf_counter()
        assert self._lane.step(), "answers that nobody goes on with"
        seconds = time.perf_counter() - began
        if counts:
            after = _progress(self._active)
            self.timed.seconds += seconds
            self.timed.tokens += after[0] - tokens
            self.timed.rounds += after[1] - rounds
        self._active = [s for s in self._active if s.finish_reason is None]
        self._fill()

    def _fill(self) -> None:
        while self._jobs and len(self._active) < self._places:
            sequence = self._lane.submit(*self._jobs.pop())
            self._sequences.append(sequence)
            self._active.append(sequence)
        self.done = len(self._active) < self._places

    def outcome(self) -> Outcome:
        """Answers that are not done by now stay as they are."""
        for sequence in self._active:
            self._lane.cancel(sequence)
        return _with_answers(self.timed, self._sequences)


class Sprint:
    """All jobs of a lane at once, prompts included, until the last answer has ended."""

    def __init__(self, lane: Lane, jobs: Seq[Job]) -> None:
        self._lane = lane
        self._sequences = [lane.submit(number, job) for number, job in enumerate(jobs)]
        self._seconds = 0.0

    @property
    def done(self) -> bool:
        return all(sequence.finish_reason is not None for sequence in self._sequences)

    @property
    def tokens(self) -> int:
        return sum(sequence.num_output for sequence in self._sequences)

    def step(self) -> None:
        began = time.perf_counter()
        assert self._lane.step(), "answers that nobody goes on with"
        self._seconds += time.perf_counter() - began

    def outcome(self) -> Outcome:
        tokens, rounds = _progress(self._sequences)
        return _with_answers(Outcome(self._seconds, tokens, rounds), self._sequences)


def race(lanes: Seq[Lane], jobs: Seq[Job], places: int, skip_rounds: int = 1) -> list[Outcome]:
    """The same jobs in every lane, as a full house."""
    return side_by_side([Heat(lane, jobs, places, skip_rounds) for lane in lanes])


def side_by_side(runs: Seq[Heat | Sprint]) -> list[Outcome]:
    """Step by step in turns, always the one that is furthest behind: what slows the machine down
    for more than a step slows all of them down at the same word.
    """
    while going := [run for run in runs if not run.done]:
        min(going, key=lambda run: run.tokens).step()
    return [run.outcome() for run in runs]


class Lane:
    """Keeps its drafters and what its policy has learned from batch to batch, as a worker does."""

    def __init__(
        self,
        name: str,
        config: SpeculationConfig,
        parts: EngineParts,
        eos: Seq[int],
        running: int = EngineConfig().max_running,
    ) -> None:
        """running: sequences decoded at a time."""
        self.name = name
        self._parts = parts
        self._outputs: list[StepOutput] = []
        sampler = Sampler(eos)
        parts = replace(parts, scheduler=_scheduler(parts, running))  # lanes run side by side
        self.speculator = make_speculator(config, parts, sampler)
        self._loop = DecodeLoop(
            parts.scheduler,
            parts.runner,
            sampler,
            self.speculator,
            self._outputs.extend,
            WorkerMetrics(new_registry()),
            eos_token_ids=tuple(eos),
            max_model_len=parts.max_model_len,
        )

    def step(self) -> bool:
        worked = self._loop.step()
        self._outputs.clear()
        return worked

    def run(self, jobs: Seq[Job]) -> Outcome:
        """All jobs at once, to their ends; timed when every prompt is read."""
        sequences = [self.submit(number, job) for number, job in enumerate(jobs)]
        while any(_is_reading(sequence) for sequence in sequences):
            assert self.step(), "prompts that nobody computes"
        before = _progress(sequences)
        began = time.perf_counter()
        while self.step():
            pass
        seconds, after = time.perf_counter() - began, _progress(sequences)
        timed = Outcome(seconds, after[0] - before[0], after[1] - before[1])
        return _with_answers(timed, sequences)

    def cancel(self, sequence: Sequence) -> None:
        self._loop.cancel(sequence)

    def submit(self, number: int, job: Job) -> Sequence:
        sequence = Sequence(
            f"bench-{number}",
            list(job.prompt),
            self._parts.root(job.cache_salt),
            self._parts.layout.block_tokens,
            job.params,
            speculation=Speculation(tenant=job.tenant, problem_id=job.problem_id),
        )
        self._loop.submit(sequence)
        return sequence


def _scheduler(parts: EngineParts, running: int) -> Scheduler:
    return Scheduler(
        parts.pool,
        block_tokens=parts.layout.block_tokens,
        chunk_tokens=EngineConfig().chunk_tokens,
        max_running=running,
    )


def _progress(sequences: Seq[Sequence]) -> tuple[int, int]:
    """Tokens and rounds so far."""
    return sum(s.num_output for s in sequences), sum(s.num_rounds for s in sequences)


def _with_answers(timed: Outcome, sequences: Seq[Sequence]) -> Outcome:
    return replace(
        timed,
        drafted=sum(sequence.num_drafted for sequence in sequences),
        accepted=sum(sequence.num_accepted for sequence in sequences),
        answers=[sequence.tokens[sequence.num_prompt :] for sequence in sequences],
    )


def _is_reading(sequence: Sequence) -> bool:
    return sequence.num_rounds == 0 and sequence.finish_reason is None


def encode(tokenizer: Tokenizer, text: str, most: int) -> list[int]:
    """A chat prompt; of a long text its first tokens, so that the template stays whole."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) > most:
        text = tokenizer.decode(ids[:most])
    return tokenizer.encode_chat([{"role": "user", "content": text}])
