"""Our engine for the benchmark: what a worker's step does, without scheduler and network."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from bench.engine_peer import Timed
from bench.engine_roofline import Sizes, model_sizes
from triptych.calibrate.long_text import compute
from triptych.engine.backend import choose_backend
from triptych.engine.rows import RowJob
from triptych.engine.runner import make_runner
from triptych.engine.sampler import Sampler, Spot
from triptych.engine.sequence import Sequence
from triptych.engine.storage import plain_storage
from triptych.kv.layout import ITEM_BYTES
from triptych.models.load import load_model
from triptych.request import SamplingParams
from triptych.worker.boot import kv_layout

BLOCK_TOKENS = 32
BITS = {"float32": 32.0, "bfloat16": 16.0}

_WARM_STEPS = 2
_HEAD_ROWS = 128  # of which logits are held at a time
_GREEDY = SamplingParams(seed=0, max_tokens=1 << 30, temperature=0.0, ignore_eos=True)


class OurEngine:
    """One model in one dtype. Reads the prompts of all decode measurements once, on arrival."""

    def __init__(
        self,
        path: Path,
        dtype: str,
        prompts: Seq[list[int]],
        *,
        steps: int,
        longest: int,
        group: int = 32,
    ) -> None:
        """Room for `steps` tokens behind each of `prompts`, and for one more prompt of `longest`
        tokens that comes and goes.
        """
        began = time.perf_counter()
        self.dtype = dtype
        backend = choose_backend(dtype, "auto", group)
        self._model = load_model(
            path, dtype=backend.weights, group=backend.group, packer=backend.packer
        )
        self.load_s = time.perf_counter() - began
        config = self._model.config
        self._layout = kv_layout(config, BLOCK_TOKENS, backend.kv)
        lengths = [len(prompt) + steps + _WARM_STEPS for prompt in prompts]
        counts = [self._layout.blocks_for(length) for length in [*lengths, longest]]
        self._runner = make_runner(self._model, plain_storage(self._layout, sum(counts)))
        self._sampler = Sampler(config.eos_token_ids)
        self._passing = [*range(sum(counts[:-1]), sum(counts))]  # blocks of the prompt that goes
        self._sequences = []
        for number, prompt in enumerate(prompts):
            first = sum(counts[:number])
            sequence = _sequence(prompt, [*range(first, first + counts[number])])
            self._compute(sequence)
            self._sequences.append(sequence)

    def sizes(self) -> Sizes:
        kept = self._model.quantisation
        bits = BITS[self.dtype] if kept is None else kept.bits_per_weight
        return model_sizes(self._model.config, bits, ITEM_BYTES[self._layout.dtype])

    def decode(self, batch: int, steps: int) -> Timed:
        """Times steps that each give the first `batch` sequences one more token."""
        sequences = self._sequences[:batch]
        for sequence in sequences:
            del sequence.tokens[sequence.num_prompt :]
        for _ in range(_WARM_STEPS):  # the first computes the prompts' last rows again
            self._step(sequences)
        began = time.perf_counter()
        for _ in range(steps):
            self._step(sequences)
        seconds = time.perf_counter() - began
        drawn = [sequence.tokens[sequence.num_prompt :] for sequence in sequences]
        return Timed(steps * batch, seconds, drawn)

    def prefill(self, prompt: list[int]) -> Timed:
        """Times a prompt from nothing to its first token."""
        sequence = _sequence(prompt, self._passing)
        began = time.perf_counter()
        drawn = self._draw(self._compute(sequence), [sequence])
        return Timed(len(prompt), time.perf_counter() - began, [drawn])

    def greedy(self, number: int, tokens: int) -> list[int]:
        """The answer to one of the prompts; end-of-sequence does not stop it."""
        sequence = self._sequences[number]
        for _ in range(tokens):
            self._step([sequence])
        return sequence.tokens[sequence.num_prompt :]

    def token_logprobs(self, ids: list[int]) -> Tensor:
        """float32 [len(ids) - 1]: log p of every token but the first, given those before it."""
        sequence, found = _sequence(ids, self._passing), []
        for start in range(0, len(ids), _HEAD_ROWS):
            end = min(start + _HEAD_ROWS, len(ids))
            hidden = self._runner.forward_all([RowJob(sequence, start, end)])
            logprobs = torch.log_softmax(self._runner.logits(hidden), dim=-1)
            wanted = torch.tensor(ids[start + 1 : end + 1])
            found.append(logprobs[: len(wanted)].gather(1, wanted[:, None])[:, 0])
        return torch.cat(found)

    def verify(self, prompt: list[int], rows: int, repeats: int) -> float:
        """Seconds of a step that checks the last `rows` tokens of `prompt`: KV, logits and a draw
        for each. The median of `repeats`.
        """
        sequence = _sequence(prompt, self._passing)
        self._compute(sequence)
        job = RowJob(sequence, len(prompt) - rows, len(prompt))
        found = []
        for _ in range(repeats):
            began = time.perf_counter()
            self._draw(self._runner.forward_all([job]), [sequence] * rows)
            found.append(time.perf_counter() - began)
        return median(found)

    def _step(self, sequences: list[Sequence]) -> None:
        jobs = [RowJob(s, len(s.tokens) - 1, len(s.tokens)) for s in sequences]
        tokens = self._draw(self._runner.forward(jobs), sequences)
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.append(token)

    def _draw(self, hidden: Tensor, sequences: list[Sequence]) -> list[int]:
        spots = [Spot(sequence) for sequence in sequences]
        return self._sampler.draw(self._runner.logits(hidden), spots)

    def _compute(self, sequence: Sequence) -> Tensor:
        """All its rows, in chunks; the last hidden state."""
        return compute(self._runner, sequence, 0, len(sequence.tokens))


def _sequence(prompt: list[int], blocks: list[int]) -> Sequence:
    sequence = Sequence("bench", [*prompt], b"", BLOCK_TOKENS, params=_GREEDY)
    sequence.blocks = blocks
    return sequence
