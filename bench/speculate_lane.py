"""One way of decoding on the engine of this process: what a decode worker's loop does, unserved."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from decode_worker.loop import DecodeLoop, StepOutput
from decode_worker.speculate.make import make_speculator
from triptych.engine.sampler import Sampler
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


class Lane:
    """Keeps its drafters and what its policy has learned from batch to batch, as a worker does."""

    def __init__(
        self, name: str, config: SpeculationConfig, parts: EngineParts, eos: Seq[int]
    ) -> None:
        self.name = name
        self._parts = parts
        self._outputs: list[StepOutput] = []
        sampler = Sampler(eos)
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

    def run(self, jobs: Seq[Job], *, skip_rounds: int = 1) -> Outcome:
        """All jobs at once, to their ends; timed when each has had so many rounds."""
        sequences = [self._submit(number, job) for number, job in enumerate(jobs)]
        while any(_is_behind(sequence, skip_rounds) for sequence in sequences):
            assert self._loop.step(), "prompts that nobody computes"
        outcome = Outcome()
        began_tokens = sum(sequence.num_output for sequence in sequences)
        began_rounds = sum(sequence.num_rounds for sequence in sequences)
        began = time.perf_counter()
        while self._loop.step():
            pass
        outcome.seconds = time.perf_counter() - began
        outcome.tokens = sum(sequence.num_output for sequence in sequences) - began_tokens
        outcome.rounds = sum(sequence.num_rounds for sequence in sequences) - began_rounds
        outcome.drafted = sum(sequence.num_drafted for sequence in sequences)
        outcome.accepted = sum(sequence.num_accepted for sequence in sequences)
        outcome.answers = [sequence.tokens[sequence.num_prompt :] for sequence in sequences]
        self._outputs.clear()
        return outcome

    def finish(self, jobs: Seq[Job]) -> tuple[float, list[Sequence]]:
        """All jobs at once: seconds until the last one has ended, prompts included."""
        began = time.perf_counter()
        sequences = [self._submit(number, job) for number, job in enumerate(jobs)]
        while self._loop.step():
            pass
        seconds = time.perf_counter() - began
        self._outputs.clear()
        return seconds, sequences

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


def _is_behind(sequence: Sequence, rounds: int) -> bool:
    return sequence.num_rounds < rounds and sequence.finish_reason is None


def encode(tokenizer: Tokenizer, text: str, most: int) -> list[int]:
    """A chat prompt; of a long text its first tokens, so that the template stays whole."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) > most:
        text = tokenizer.decode(ids[:most])
    return tokenizer.encode_chat([{"role": "user", "content": text}])
