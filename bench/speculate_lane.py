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
    cache_salt: str = ""  # jobs with another one share no blocks of KV


@dataclass(slots=True)
class Outcome:
    """Of a batch: time and counts behind the prompts, and every answer."""

    seconds: float = 0.0  # from the moment that all prompts are read
    tokens: int = 0  # drawn in that time
    rounds: int = 0  # draws of a sequence in that time, with or without a draft
    drafted: int = 0
    accepted: int = 0
    answers: list[list[int]] = field(default_factory=list)


class Heat:
    """Jobs of a lane on their way."""

    def __init__(self, lane: Lane, sequences: list[Sequence]) -> None:
        self._lane = lane
        self._sequences = sequences
        self._began = self.tokens, self._rounds()
        self._seconds = 0.0

    @property
    def tokens(self) -> int:
        return sum(sequence.num_output for sequence in self._sequences)

    @property
    def done(self) -> bool:
        return all(sequence.finish_reason is not None for sequence in self._sequences)

    def step(self) -> None:
        began = time.perf_counter()
        assert self._lane.step(), "answers that nobody goes on with"
        self._seconds += time.perf_counter() - began

    def outcome(self) -> Outcome:
        tokens, rounds = self._began
        return Outcome(
            seconds=self._seconds,
            tokens=self.tokens - tokens,
            rounds=self._rounds() - rounds,
            drafted=sum(sequence.num_drafted for sequence in self._sequences),
            accepted=sum(sequence.num_accepted for sequence in self._sequences),
            answers=[sequence.tokens[sequence.num_prompt :] for sequence in self._sequences],
        )

    def _rounds(self) -> int:
        return sum(sequence.num_rounds for sequence in self._sequences)


def race(lanes: Seq[Lane], jobs: Seq[Job], skip_rounds: int = 1) -> list[Outcome]:
    """The same jobs in every lane, step by step in turns: always the one that is furthest behind.

    What slows the machine down for more than a step slows all of them down at the same word.
    """
    heats = [lane.start(jobs, skip_rounds) for lane in lanes]
    while going := [heat for heat in heats if not heat.done]:
        min(going, key=lambda heat: heat.tokens).step()
    return [heat.outcome() for heat in heats]


class Lane:
    """Keeps its drafters and what its policy has learned from batch to batch, as a worker does."""

    def __init__(
        self, name: str, config: SpeculationConfig, parts: EngineParts, eos: Seq[int]
    ) -> None:
        self.name = name
        self._parts = parts
        self._outputs: list[StepOutput] = []
        sampler = Sampler(eos)
        parts = replace(parts, scheduler=_scheduler(parts))  # lanes run side by side
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

    def start(self, jobs: Seq[Job], skip_rounds: int = 1) -> Heat:
        """All jobs at once, up to the moment when each has had so many rounds."""
        sequences = [self._submit(number, job) for number, job in enumerate(jobs)]
        while any(_is_behind(sequence, skip_rounds) for sequence in sequences):
            assert self.step(), "prompts that nobody computes"
        return Heat(self, sequences)

    def step(self) -> bool:
        worked = self._loop.step()
        self._outputs.clear()
        return worked

    def run(self, jobs: Seq[Job], *, skip_rounds: int = 1) -> Outcome:
        """All jobs at once, to their ends; timed when each has had so many rounds."""
        heat = self.start(jobs, skip_rounds)
        while not heat.done:
            heat.step()
        return heat.outcome()

    def finish(self, jobs: Seq[Job]) -> tuple[float, list[Sequence]]:
        """All jobs at once: seconds until the last one has ended, prompts included."""
        began = time.perf_counter()
        sequences = [self._submit(number, job) for number, job in enumerate(jobs)]
        while self.step():
            pass
        return time.perf_counter() - began, sequences

    def _submit(self, number: int, job: Job) -> Sequence:
        sequence = Sequence(
            f"bench-{number}",
            list(job.prompt),
            self._parts.root(job.cache_salt),
            self._parts.layout.block_tokens,
            job.params,
            speculation=Speculation(problem_id=job.problem_id),
        )
        self._loop.submit(sequence)
        return sequence


def _scheduler(parts: EngineParts) -> Scheduler:
    engine = EngineConfig()
    return Scheduler(
        parts.pool,
        block_tokens=parts.layout.block_tokens,
        chunk_tokens=engine.chunk_tokens,
        max_running=engine.max_running,
    )


def _is_behind(sequence: Sequence, rounds: int) -> bool:
    return sequence.num_rounds < rounds and sequence.finish_reason is None


def encode(tokenizer: Tokenizer, text: str, most: int) -> list[int]:
    """A chat prompt; of a long text its first tokens, so that the template stays whole."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) > most:
        text = tokenizer.decode(ids[:most])
    return tokenizer.encode_chat([{"role": "user", "content": text}])
