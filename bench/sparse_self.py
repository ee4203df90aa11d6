"""How often is a draft right that reads a part of the KV, and does it matter which part?

    python -m bench.sparse_self --context 1024 4096
    python -m bench.sparse_self --context 8192 16384 --stretch 4 --dtype float32

The model answers questions about the project's own documents, drafting for itself from as many
pages each: those that verification scored highest, the most recent ones, or random ones. Counted
are right tokens per full draft and the KV bytes read per token of the answer; the scoring's second
look at the keys is included. `speed-up`: of the answers, their prompts apart, over plain decoding's
time in the same round; the median of the rounds. Answers are compared with plain decoding, token by
token. `--stretch`: so many times the model's context, by YaRN; nobody trained the model for that,
so its answers there are poor, but they are drafted and verified like any others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.captured import documents
from bench.engine_checkpoint import bfloat16_folder
from bench.one_answer import differing
from bench.report import commit, finish, machine, print_table
from decode_worker.loop import DecodeLoop
from decode_worker.speculate.fixed import Fixed
from decode_worker.speculate.speculator import Speculator
from triptych.config import load_config
from triptych.drafters.drafter import Verdict
from triptych.drafters.page_choice import PageChoice, best_pages, recent_pages
from triptych.drafters.sparse_self import SparseDrafter, SparseOptions
from triptych.engine.pages import PageRow, PageScores
from triptych.engine.runner import Runner
from triptych.engine.sampler import Sampler
from triptych.engine.sequence import Sequence
from triptych.hub import pull_model
from triptych.models.model import Model
from triptych.obs.metrics import WorkerMetrics, new_registry
from triptych.request import SamplingParams
from triptych.tokenizer import Tokenizer
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts, build_engine

RESULTS = Path(__file__).parent / "results"
QUESTIONS = (
    "Explain in detail how this system works.",
    "Which failures can happen, and what happens then?",
    "Write a short tutorial for new users of this software.",
)


def random_pages(shares: NDArray[np.float32], tail: int, count: int) -> NDArray[np.int32]:
    """The same for every run; other ones in each layer and head."""
    order = np.random.default_rng(tail).random((*shares.shape[:2], tail)).argsort(axis=-1)
    return np.sort(order[..., :count], axis=-1).astype(np.int32)


CHOICES: dict[str, PageChoice] = {
    "scored": best_pages,
    "recent": recent_pages,
    "random": random_pages,
}


class CountingRunner:
    """Drafts on a runner, and counts the pages that are read for it, of one layer and head each."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.pages = 0

    @property
    def model(self) -> Model:
        return self._runner.model

    def score_pages(self, scores: PageScores) -> None:
        self._runner.score_pages(scores)

    def forward_pages(self, rows: Seq[PageRow]) -> Tensor:
        self.pages += sum(row.table.pages.size for row in rows)
        return self._runner.forward_pages(rows)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._runner.logits(hidden)


class CountingDrafter(SparseDrafter):
    """Remembers the verdicts of full drafts, and how long the sequences were that were scored."""

    def __init__(self, runner: CountingRunner, sampler: Sampler, options: SparseOptions) -> None:
        super().__init__(runner, sampler, options)
        self.accepted: list[int] = []
        self.verified_tokens = 0

    def observe(self, verdicts: Seq[Verdict]) -> None:
        for verdict in verdicts:
            self.verified_tokens += len(verdict.sequence.tokens)
            if len(verdict.draft) == self.stride:
                self.accepted.append(verdict.num_accepted)

    stride = 8


@dataclass(frozen=True, slots=True)
class Run:
    answers: list[list[int]]
    accepted: float  # of a full draft
    rounds: int  # with a full draft
    kv_bytes: float  # read per token
    seconds: float  # of the answers, first tokens apart


def run(
    parts: EngineParts,
    prompts: Seq[list[int]],
    params: SamplingParams,
    options: SparseOptions | None,
) -> Run:
    """Without options: plain decoding."""
    runner, sampler = CountingRunner(parts.runner), Sampler(parts.model.config.eos_token_ids)
    drafter = CountingDrafter(runner, sampler, options or SparseOptions())
    policy = None if options is None else Fixed(drafter.name, drafter.stride)
    speculator = Speculator(
        parts.scheduler,
        {drafter.name: drafter},
        policy,
        max_model_len=parts.max_model_len,
        vocab_size=parts.model.config.vocab_size,
        max_nodes=drafter.stride,
    )
    metrics = WorkerMetrics(new_registry())
    loop = DecodeLoop(
        parts.scheduler,
        parts.runner,
        sampler,
        speculator,
        lambda outputs: None,
        metrics,
        eos_token_ids=(),
        max_model_len=parts.max_model_len,
    )
    sequences, seconds = [], 0.0
    for number, prompt in enumerate(prompts):
        size = parts.layout.block_tokens
        sequence = Sequence(str(number), list(prompt), parts.root(""), size, params)
        sequences.append(sequence)
        loop.submit(sequence)
        while not sequence.num_output:
            loop.step()
        began = time.perf_counter()
        while loop.step():
            pass
        seconds += time.perf_counter() - began
    answers = [sequence.tokens[sequence.num_prompt :] for sequence in sequences]
    return _summary(parts, sequences, answers, runner.pages, drafter, seconds)


def _summary(
    parts: EngineParts,
    sequences: Seq[Sequence],
    answers: list[list[int]],
    pages: int,
    drafter: CountingDrafter,
    seconds: float,
) -> Run:
    layout, drawn = parts.layout, sum(map(len, answers))
    token_bytes = layout.block_bytes / layout.block_tokens
    page_bytes = layout.block_bytes / layout.num_layers / layout.num_kv_heads
    plain = sum(s.num_output * (s.num_prompt + len(s.tokens)) / 2 for s in sequences)
    rounds = len(drafter.accepted)
    full = 1.5 * drafter.verified_tokens if rounds else plain  # keys are half of it, read twice
    return Run(
        answers,
        sum(drafter.accepted) / max(1, rounds),
        rounds,
        (pages * page_bytes + full * token_bytes) / drawn,
        seconds,
    )


def main() -> None:
    options = _options()
    settings = [f"dtype={options.dtype}", f"kv.memory={options.kv_memory}"]
    if options.stretch > 1:
        settings.append(f"model={stretched(options.stretch)}")
    config = load_config(None, settings)
    parts = build_engine(WorkerArgs(config, config.pool("decode"), "bench", 1, Path(), "", (), ""))
    tokenizer = Tokenizer.load(parts.model_path)
    rows: list[dict[str, Any]] = []
    for context in options.context:
        prompts = [_prompt(tokenizer, question, context) for question in QUESTIONS]
        for temperature in options.temperatures:
            params = SamplingParams(
                seed=1, max_tokens=options.max_tokens, temperature=temperature, ignore_eos=True
            )
            arms: dict[str, list[Run]] = {}
            for _ in range(options.rounds):
                for name in ("plain", *options.pages):
                    sparse = None
                    if name != "plain":
                        sparse = SparseOptions(options.ratio, options.min_tokens, CHOICES[name])
                    arms.setdefault(name, []).append(run(parts, prompts, params, sparse))
            for name in options.pages:
                rows.append(
                    {"context": context, "temperature": temperature, "pages": name}
                    | compared(arms["plain"], arms[name])
                )
                print(rows[-1], file=sys.stderr, flush=True)
    print_table("sparse self-speculation", list(rows[0]), [list(row.values()) for row in rows])
    result = {"rows": rows, "machine": machine(), "commit": commit()}
    finish(result, RESULTS / f"{options.save}.json" if options.save else None)


def compared(plain: Seq[Run], found: Seq[Run]) -> dict[str, Any]:
    """Of the same prompts, round by round."""
    gains = [one.seconds / other.seconds for one, other in zip(plain, found, strict=True)]
    return {
        "accepted of 8": found[0].accepted,
        "rounds": found[0].rounds,
        "KV MB / token": found[0].kv_bytes / 1e6,
        "plain": plain[0].kv_bytes / 1e6,
        "speed-up": median(gains),
        "mismatches": sum(
            differing(one.answers, other.answers) for one, other in zip(plain, found, strict=True)
        ),
    }


def stretched(factor: int) -> Path:
    """The default model as a folder whose configuration says that it sees `factor` times as far."""
    plain = bfloat16_folder(pull_model("smollm2-135m"))
    folder = plain.with_name(f"{plain.name}-x{factor}")
    folder.mkdir(exist_ok=True)
    for file in plain.iterdir():
        if file.name != "config.json" and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    fields = json.loads((plain / "config.json").read_text())
    trained = fields["max_position_embeddings"]
    fields["max_position_embeddings"] = factor * trained
    fields["rope_scaling"] = {
        "rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": trained
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def _prompt(tokenizer: Tokenizer, question: str, context: int) -> list[int]:
    ids = tokenizer.encode(documents(), add_special_tokens=False)
    text = tokenizer.decode(ids[:context])
    return tokenizer.encode_chat([{"role": "user", "content": f"{text}\n\n{question}"}])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--context", nargs="+", type=int, default=[1024, 4096], help="tokens")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 0.8])
    parser.add_argument("--pages", nargs="+", choices=[*CHOICES], default=[*CHOICES])
    parser.add_argument("--rounds", type=int, default=1, help="each of all arms, in turn")
    parser.add_argument("--stretch", type=int, default=1, help="times the model's own context")
    parser.add_argument("--kv-memory", default="512MiB")
    parser.add_argument("--ratio", type=float, default=0.05)
    parser.add_argument("--min-tokens", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--save", metavar="NAME", help="keep as bench/results/NAME.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
