"""An engine without a network: prompts in, answers out, as many at once as its scheduler runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from triptych.config import load_config
from triptych.engine.finish import check_finish
from triptych.engine.sampler import Sampler, Spot
from triptych.engine.sequence import Sequence as TokenSequence
from triptych.request import SamplingParams
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts, build_engine


class Ask(NamedTuple):
    """A prompt and how it is answered; `kind` comes back with the answer."""

    prompt: Sequence[int]
    params: SamplingParams
    kind: str = ""


class Answer(NamedTuple):
    ask: Ask
    tokens: list[int]  # the end-of-sequence token included


def offline_parts(overrides: Sequence[str] = (), config: Path | None = None) -> EngineParts:
    """A decode worker's parts as configured, serving nobody. Raises ModelError or ConfigError."""
    loaded = load_config(config, overrides)
    pool = next(pool for pool in loaded.pools if pool.role == "decode")
    return build_engine(WorkerArgs(loaded, pool, "offline", 1, Path(), "", (), ""))


class OfflineEngine:
    """Plain decoding, one step after the other, on the caller's thread."""

    def __init__(self, parts: EngineParts, eos_token_ids: Sequence[int], at_once: int = 32) -> None:
        self._parts = parts
        self._eos = tuple(eos_token_ids)
        self._sampler = Sampler(self._eos)
        self._at_once = at_once

    def answers(self, asks: Iterator[Ask]) -> Iterator[Answer]:
        """In the order in which they end. `asks` is read when there is room for more, so what it
        yields may depend on the answers so far.
        """
        running: dict[TokenSequence, Ask] = {}
        scheduler = self._parts.scheduler
        try:
            while True:
                for ask in islice(asks, self._at_once - len(running)):
                    sequence = self._sequence(ask)
                    running[sequence] = ask
                    scheduler.add(sequence)
                if not running:
                    return
                for sequence in self._step():
                    yield Answer(running.pop(sequence), sequence.tokens[sequence.num_prompt :])
        finally:
            for sequence in running:  # the caller has enough
                scheduler.remove(sequence)

    def _step(self) -> list[TokenSequence]:
        """One forward; the sequences that ended with it."""
        runner, scheduler = self._parts.runner, self._parts.scheduler
        jobs = scheduler.next_batch()
        drawing = [job.sequence for job in jobs if job.reaches_end]
        hidden = runner.forward(jobs)
        for job in jobs:
            scheduler.advance(job)
        if not drawing:
            return []
        tokens = self._sampler.draw(runner.logits(hidden), [Spot(seq) for seq in drawing])
        for sequence, token in zip(drawing, tokens, strict=True):
            sequence.append(token)
            check_finish(sequence, token, self._eos, self._parts.max_model_len)
        ended = [sequence for sequence in drawing if sequence.finish_reason is not None]
        for sequence in ended:
            scheduler.remove(sequence)
        return ended

    def _sequence(self, ask: Ask) -> TokenSequence:
        parts = self._parts
        return TokenSequence(
            "offline", list(ask.prompt), parts.root(""), parts.layout.block_tokens, ask.params
        )
