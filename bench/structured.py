"""What a grammar costs: microseconds of a mask, and steps with grammars beside steps without.

    python -m bench.structured [--model NAME] [--sequences 8] [--rounds 3] [--answers 100]

Both kinds of steps are taken in turns in one process; the ratio is what counts. Then so many
answers are drawn under schemas of many kinds, greedy and sampled, with drafts and without: each is
checked by the `jsonschema` library, and drafts must not change a character.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
from llguidance import LLTokenizer
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
from triptych.testing.grammars import PERSON
from triptych.testing.schemas import SCHEMAS
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
        self,
        params: list[SamplingParams],
        grammars: list[CompiledGrammar | None],
        masks: list[float],
        *,
        drafts: str = "auto",
    ) -> tuple[float, list[Sequence]]:
        """Seconds from the first token of all to the last of all, and what was drawn.

        `grammars`: one each; `drafts`: `speculation.mode`.
        """
        speculation = self._speculation.model_copy(update={"mode": drafts})
        parts, sampler = self.parts, Sampler(self.eos)
        loop = DecodeLoop(
            parts.scheduler,
            parts.runner,
            sampler,
            make_speculator(speculation, parts, sampler),
            lambda outputs: None,
            WorkerMetrics(new_registry()),
            eos_token_ids=self.eos,
            max_model_len=parts.max_model_len,
        )
        sequences = [
            self._sequence(number, each, grammar, masks)
            for number, (each, grammar) in enumerate(zip(params, grammars, strict=True))
        ]
        for sequence in sequences:
            loop.submit(sequence)
        while not all(sequence.num_output for sequence in sequences):
            loop.step()
        began = time.perf_counter()
        while loop.step():
            pass
        return time.perf_counter() - began, sequences

    def text_of(self, sequence: Sequence) -> str:
        """Of its answer."""
        return self.tokenizer.decode(sequence.tokens[sequence.num_prompt :])

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
    free: list[CompiledGrammar | None] = [None] * len(params)
    engine.run(params, free, masks)  # warm
    for _ in range(options.rounds):
        plain.append(engine.run(params, free, masks)[0])
        bound.append(engine.run(params, [people] * len(params), masks)[0])
    answers = draw_answers(engine, vocabulary, options.answers)
    _report(engine, vocabulary_s, compile_s, masks, plain, bound, answers)


class Answer(NamedTuple):
    schema: str
    text: str
    plain_text: str  # without drafts
    ended: bool
    drafted: int
    accepted: int

    @property
    def valid(self) -> bool:
        try:
            jsonschema.validate(json.loads(self.text), SCHEMAS[self.schema])
        except (ValueError, jsonschema.ValidationError):
            return False
        return True


def draw_answers(engine: Engine, vocabulary: LLTokenizer, count: int) -> list[Answer]:
    """Of all schemas in turn, every other one greedy."""
    compiled = {
        name: compile_grammar(vocabulary, json_schema(schema)) for name, schema in SCHEMAS.items()
    }
    names = [[*SCHEMAS][number % len(SCHEMAS)] for number in range(count)]
    params = [
        SamplingParams(seed=seed, max_tokens=400, temperature=float(seed // len(SCHEMAS) % 2))
        for seed in range(count)
    ]
    grammars: list[CompiledGrammar | None] = [compiled[name] for name in names]
    _, drafted = engine.run(params, grammars, [], drafts="fixed")
    _, plain = engine.run(params, grammars, [], drafts="off")
    return [
        Answer(
            name,
            engine.text_of(one),
            engine.text_of(other),
            one.finish_reason is FinishReason.STOP,
            one.num_drafted,
            one.num_accepted,
        )
        for name, one, other in zip(names, drafted, plain, strict=True)
    ]


def _report(
    engine: Engine,
    vocabulary_s: float,
    compile_s: float,
    masks: list[float],
    plain: list[float],
    bound: list[float],
    answers: list[Answer],
) -> None:
    masks.sort()
    ratios = [with_it / without for with_it, without in zip(bound, plain, strict=True)]
    for answer in answers:
        if not answer.valid or answer.text != answer.plain_text:
            print(f"{answer.schema}: {answer.text!r}, without drafts {answer.plain_text!r}")
    found: dict[str, Any] = {
        "vocabulary": engine.vocab_size,
        "vocabulary_ms": round(vocabulary_s * 1e3, 1),
        "compile_ms": round(compile_s * 1e3, 2),
        "mask_us_median": round(statistics.median(masks) * 1e6),
        "mask_us_p99": round(masks[len(masks) * 99 // 100] * 1e6),
        "time_ratio": round(statistics.median(ratios), 3),
        "schemas": len(SCHEMAS),
        "answers": len(answers),
        "answers_ended": sum(answer.ended for answer in answers),
        "answers_valid": sum(answer.valid for answer in answers),
        "answers_same": sum(answer.text == answer.plain_text for answer in answers),
        "drafted": sum(answer.drafted for answer in answers),
        "accepted": sum(answer.accepted for answer in answers),
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
