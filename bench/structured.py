"""What a grammar costs: microseconds of a mask, and steps with grammars beside steps without.

    python -m bench.structured [--model NAME] [--sequences 8] [--rounds 3] [--answers 100]

Both kinds of steps are taken in turns in one process; the ratio is what counts. Then so many
answers are drawn under a schema, with drafts, and each is parsed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.report import finish, print_table
from decode_worker.loop import DecodeLoop
from decode_worker.speculate.make import make_speculator
from triptych.config import load_config
from triptych.engine.sampler import Sampler
from triptych.engine.sequence import Sequence
from triptych.grammar.cache import compile_grammar
from triptych.grammar.constraint import CompiledGrammar, GrammarConstraint
from triptych.grammar.source import json_schema
from triptych.grammar.vocabulary import grammar_vocabulary
from triptych.obs.metrics import WorkerMetrics, new_registry
from triptych.request import FinishReason, SamplingParams
from triptych.testing.grammars import PERSON, is_person
from triptych.tokenizer import Tokenizer
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts, build_engine

STEPS = 64
PEOPLE = {"type": "array", "items": PERSON, "minItems": 100}  # never over within so many tokens
QUESTION = [{"role": "user", "content": "Name some people, as JSON with name, age and tags."}]


class Timed:
    """A constraint that notes how long its masks take."""

    def __init__(self, constraint: GrammarConstraint, seconds: list[float]) -> None:
        self._constraint = constraint
        self._seconds = seconds
        self.failure = ""

    def restrict(self, logits: Tensor, tokens: list[int], path: tuple[int, ...]) -> None:
        began = time.perf_counter()
        self._constraint.restrict(logits, tokens, path)
        self._seconds.append(time.perf_counter() - began)

    def is_complete(self, tokens: list[int]) -> bool:
        return self._constraint.is_complete(tokens)


class Engine:
    """A decode worker's loop, and prompts for it."""

    def __init__(self, model: str) -> None:
        config = load_config(None, [f"model={model}", "pools=[{name: decode, role: decode}]"])
        self._speculation = config.speculation
        args = WorkerArgs(config, config.pools[0], "bench", 1, Path(), "", (), "")
        self.parts: EngineParts = build_engine(args)
        self.tokenizer = Tokenizer.load(self.parts.model_path)
        self.eos = self.parts.eos_token_ids(self.tokenizer)
        self.prompt = self.tokenizer.encode_chat(QUESTION)
        self.vocab_size = self.parts.model.config.vocab_size

    def run(
        self, params: list[SamplingParams], grammar: CompiledGrammar | None, masks: list[float]
    ) -> tuple[float, list[Sequence]]:
        """Seconds from the first token of all to the last of all, and what was drawn."""
        parts, sampler = self.parts, Sampler(self.eos)
        loop = DecodeLoop(
            parts.scheduler,
            parts.runner,
            sampler,
            make_speculator(self._speculation, parts, sampler),
            lambda outputs: None,
            WorkerMetrics(new_registry()),
            eos_token_ids=self.eos,
            max_model_len=parts.max_model_len,
        )
        sequences = [
            self._sequence(number, each, grammar, masks) for number, each in enumerate(params)
        ]
        for sequence in sequences:
            loop.submit(sequence)
        while not all(sequence.num_output for sequence in sequences):
            loop.step()
        began = time.perf_counter()
        while loop.step():
            pass
        return time.perf_counter() - began, sequences

    def _sequence(
        self,
        number: int,
        params: SamplingParams,
        grammar: CompiledGrammar | None,
        masks: list[float],
    ) -> Sequence:
        constraint = None
        if grammar is not None:
            constraint = Timed(grammar.constraint(len(self.prompt)), masks)
        root, size = self.parts.root(""), self.parts.layout.block_tokens
        return Sequence(
            f"bench-{number}", [*self.prompt], root, size, params, constraint=constraint
        )


def main() -> None:
    options = _options()
    engine = Engine(options.model)
    began = time.perf_counter()
    vocabulary = grammar_vocabulary(engine.tokenizer, engine.vocab_size, engine.eos)
    vocabulary_s = time.perf_counter() - began
    began = time.perf_counter()
    people = compile_grammar(vocabulary, json_schema(PEOPLE))
    compile_s = time.perf_counter() - began

    params = [
        SamplingParams(seed=seed, max_tokens=STEPS, ignore_eos=True)
        for seed in range(options.sequences)
    ]
    masks, plain, bound = list[float](), list[float](), list[float]()
    engine.run(params, None, masks)  # warm
    for _ in range(options.rounds):
        plain.append(engine.run(params, None, masks)[0])
        bound.append(engine.run(params, people, masks)[0])
    person = compile_grammar(vocabulary, json_schema(PERSON))
    answers = [SamplingParams(seed=seed, max_tokens=200) for seed in range(options.answers)]
    _, sequences = engine.run(answers, person, [])
    _report(engine, vocabulary_s, compile_s, masks, plain, bound, sequences)


def _report(
    engine: Engine,
    vocabulary_s: float,
    compile_s: float,
    masks: list[float],
    plain: list[float],
    bound: list[float],
    sequences: list[Sequence],
) -> None:
    masks.sort()
    ratios = [with_it / without for with_it, without in zip(bound, plain, strict=True)]
    texts = [engine.tokenizer.decode(s.tokens[s.num_prompt :]) for s in sequences]
    valid = [is_person(text) for text in texts]
    ended = [sequence.finish_reason is FinishReason.STOP for sequence in sequences]
    found: dict[str, Any] = {
        "vocabulary": engine.vocab_size,
        "vocabulary_ms": round(vocabulary_s * 1e3, 1),
        "compile_ms": round(compile_s * 1e3, 2),
        "mask_us_median": round(statistics.median(masks) * 1e6),
        "mask_us_p99": round(masks[len(masks) * 99 // 100] * 1e6),
        "time_ratio": round(statistics.median(ratios), 3),
        "answers": len(sequences),
        "answers_ended": sum(ended),
        "answers_valid": sum(valid),
        "drafted": sum(sequence.num_drafted for sequence in sequences),
        "accepted": sum(sequence.num_accepted for sequence in sequences),
    }
    print_table("what a grammar costs", ["", "found"], [*found.items()])
    finish(found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=100)
    return parser.parse_args()


if __name__ == "__main__":
    main()
