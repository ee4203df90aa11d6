"""What do the answers lose by what sparse attention leaves out?

    python -m bench.sparse_quality [--solved gsm8k.jsonl] [--plot docs/sparse.svg] [--save]

* Text: a long one is read densely and with several scales; compared are the most probable next
  tokens of its last 256 rows, and the divergence of their distributions.
* Answers: greedy ones to short questions behind a long context, token by token against the dense
  ones. With `--solved`, lines of {"question", "answer": "… #### number"}, the context is solved
  problems and the questions are others: told is, too, how often the final number stays what it was
  and how often it is right. Without, the context is this project's documents. Short prompts would
  prove nothing: where a context is shorter than the scale, sparse attention is dense.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.captured import documents
from bench.kernels import native_or_exit
from bench.report import finish, print_table
from bench.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Line, chart, linear
from triptych.calibrate.long_text import LongText, compute, difference
from triptych.calibrate.text import fixed_text
from triptych.engine.backend import Backend, choose_backend
from triptych.engine.rows import RowJob
from triptych.engine.runner import make_runner
from triptych.engine.sampler import Sampler, Spot
from triptych.engine.sequence import Sequence as Tokens
from triptych.engine.storage import plain_storage
from triptych.hub import pull_model
from triptych.launch.machine import usable_cores
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.request import SamplingParams, SparseAttention
from triptych.tokenizer import Tokenizer
from triptych.worker.boot import kv_layout
from triptych_kernels.cpu.native import set_threads

RESULTS = Path(__file__).parent / "results"
SCALES = (4.0, 16.0, 64.0, 256.0, 1024.0)
BLOCK_TOKENS = 32
QUESTIONS = (
    "How is a request served, step by step?",
    "What happens when a decode worker dies?",
    "How does the router choose a worker?",
    "What does speculation need to be lossless?",
    "Which metrics tell that the cache works?",
    "How is KV moved between workers?",
    "What does sparse attention change?",
    "How are new workers added?",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question's tokens, and its right answer if there is one."""

    ids: list[int]
    right: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A scale on one task; shares. `same_number`, `right`: of problems with a number to find."""

    task: str
    tokens: int  # of the context
    scale: float  # 0: dense
    skipped: float  # in decode
    same_token: float
    same_answer: float | None = None  # to the last token
    kl: float | None = None
    same_number: float | None = None
    right: float | None = None


class Context:
    """A long context that many questions are asked behind: it is computed once for each setting."""

    def __init__(self, model: Model, backend: Backend, ids: list[int], room: int) -> None:
        layout = kv_layout(model.config, BLOCK_TOKENS, backend.kv)
        count = layout.blocks_for(len(ids) + room)
        self._runner = make_runner(model, plain_storage(layout, count))
        self._blocks = list(range(count))
        self._ids = ids
        self._eos = model.config.eos_token_ids
        self._sampler = Sampler(self._eos)

    def answers(
        self, asked: Sequence[Asked], tokens: int, sparse: SparseAttention | None
    ) -> tuple[list[list[int]], float]:
        """(greedy answers, share of tiles that their tokens left out)."""
        compute(self._runner, self._sequence([], sparse), 0, len(self._ids))
        found, seen, skipped = [], 0, 0
        for each in asked:
            sequence = self._sequence(each.ids, sparse)
            hidden = compute(self._runner, sequence, len(self._ids), len(sequence.tokens))
            sequence.tiles.seen = sequence.tiles.skipped = 0
            answer: list[int] = []
            while True:
                (token,) = self._sampler.draw(self._runner.logits(hidden), [Spot(sequence)])
                answer.append(token)
                sequence.append(token)
                if len(answer) == tokens or token in self._eos:
                    break
                end = len(sequence.tokens)
                hidden = self._runner.forward([RowJob(sequence, end - 1, end)])
            seen, skipped = seen + sequence.tiles.seen, skipped + sequence.tiles.skipped
            found.append(answer)
        return found, skipped / max(1, seen)

    def _sequence(self, question: Sequence[int], sparse: SparseAttention | None) -> Tokens:
        params = SamplingParams(seed=0, max_tokens=1 << 20, temperature=0.0)
        ids = [*self._ids, *question]
        sequence = Tokens("bench", ids, b"", BLOCK_TOKENS, params=params, sparse=sparse)
        sequence.blocks = self._blocks
        return sequence


def solved_problems(
    tokenizer: Tokenizer, path: Path, context: int, count: int
) -> tuple[list[int], list[Asked]]:
    """As many solved problems as `context` tokens hold; the questions are those behind them."""
    problems = [json.loads(line) for line in path.read_text().splitlines()]
    ids: list[int] = []
    while problems:
        problem = problems[0]
        shot = tokenizer.encode(f"Question: {problem['question']}\nAnswer: {problem['answer']}\n\n")
        if len(ids) + len(shot) > context:
            break
        ids += shot
        problems.pop(0)
    asked = [
        Asked(
            tokenizer.encode(f"Question: {problem['question']}\nAnswer:"),
            final_number(problem["answer"]),
        )
        for problem in problems[:count]
    ]
    return ids, asked


def questions(tokenizer: Tokenizer, context: int) -> tuple[list[int], list[Asked]]:
    ids = tokenizer.encode(documents())[:context]
    return ids, [Asked(tokenizer.encode(f"\n\nQuestion: {q}\nAnswer:")) for q in QUESTIONS]


def final_number(answer: str) -> str | None:
    """Behind the first `####`."""
    found = re.search(r"####\s*(-?[\d,.]*\d)", answer)
    return found[1].replace(",", "") if found else None


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def text_rows(
    model: Model, backend: Backend, ids: Sequence[int], scales: Sequence[float]
) -> Iterator[Row]:
    text = LongText(model, backend, ids, BLOCK_TOKENS)
    dense = text.read(None)
    yield Row("text", len(ids), 0.0, 0.0, 1.0, kl=0.0)
    for scale in scales:
        found = text.read(SparseAttention(scale))
        apart = difference(dense, found)
        yield Row("text", len(ids), scale, found.decode.share, apart.same_token, kl=apart.kl)


def answer_rows(
    tokenizer: Tokenizer,
    context: Context,
    tokens: int,
    asked: Sequence[Asked],
    name: tuple[str, int],
    scales: Sequence[float],
) -> Iterator[Row]:
    dense, _ = context.answers(asked, tokens, None)
    yield _judged(tokenizer, name, 0.0, 0.0, asked, dense, dense)
    for scale in scales:
        found, skipped = context.answers(asked, tokens, SparseAttention(scale))
        yield _judged(tokenizer, name, scale, skipped, asked, dense, found)


def _judged(
    tokenizer: Tokenizer,
    name: tuple[str, int],
    scale: float,
    skipped: float,
    asked: Sequence[Asked],
    dense: Sequence[list[int]],
    found: Sequence[list[int]],
) -> Row:
    pairs = list(zip(dense, found, strict=True))
    same = sum(common(one, other) for one, other in pairs) / sum(len(one) for one, _ in pairs)
    whole = sum(one == other for one, other in pairs) / len(pairs)
    row = Row(*name, scale, skipped, same, whole)
    if asked[0].right is None:
        return row
    numbers = [[final_number(tokenizer.decode(ids)) for ids in each] for each in (dense, found)]
    agree = [a == b for a, b in zip(*numbers, strict=True) if a is not None]
    right = sum(n == each.right for n, each in zip(numbers[1], asked, strict=True)) / len(asked)
    told = asdict(row) | {"same_number": sum(agree) / max(1, len(agree)), "right": right}
    return Row(**told)


def picture(rows: Sequence[Row]) -> str:
    """Share of equal tokens over share left out."""
    lines = []
    for task, tokens in dict.fromkeys((row.task, row.tokens) for row in rows):
        own = [row for row in rows if (row.task, row.tokens) == (task, tokens)]
        points = sorted((100 * row.skipped, 100 * row.same_token) for row in own)
        lines.append(Line(f"{task}, {tokens:,}", f"{task} {tokens}", tuple(points)))
    ticks = [(value, f"{value} %") for value in range(0, 101, 20)]
    x = Axis(linear(0, 100, LEFT, WIDTH - RIGHT), ticks, "tiles left out in decode")
    y = Axis(linear(0, 100, HEIGHT - BOTTOM, TOP), ticks)
    return chart("Tokens as with dense attention", lines, x, y)


def measure(options: argparse.Namespace) -> list[Row]:
    path = pull_model(options.model)
    tokenizer = Tokenizer.load(path)
    backend = choose_backend(options.dtype, "auto")
    model = load_model(path, dtype=backend.weights, packer=backend.packer)
    most = model.config.max_model_len
    rows: list[Row] = []

    def keep(found: Iterator[Row]) -> None:
        for row in found:
            rows.append(row)
            print(row, file=sys.stderr, flush=True)

    ids = tokenizer.encode(fixed_text()[1][: 16 * most])
    for tokens in options.tokens:
        keep(text_rows(model, backend, ids[: min(tokens, most)], options.scales))
    room = options.answer_tokens + 512
    for tokens in options.tokens:
        size = min(tokens, most - room)
        if options.solved:
            task = "problems"
            known, asked = solved_problems(tokenizer, options.solved, size, options.questions)
        else:
            task = "questions"
            known, asked = questions(tokenizer, size)
        context = Context(model, backend, known, room)
        name = (task, len(known))
        keep(answer_rows(tokenizer, context, options.answer_tokens, asked, name, options.scales))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--scales", type=float, nargs="+", default=list(SCALES))
    parser.add_argument("--solved", type=Path, help="JSON lines of solved problems, as of GSM8K")
    parser.add_argument("--questions", type=int, default=16, help="of --solved")
    parser.add_argument("--answer-tokens", type=int, default=96)
    parser.add_argument("--plot", type=Path, help="draw it into this SVG file")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    native_or_exit()
    set_threads(usable_cores())
    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = measure(options)
    told: list[dict[str, Any]] = [asdict(row) for row in rows]
    columns = list(told[0])
    print_table(
        "sparse against dense attention",
        columns,
        [["" if row[name] is None else row[name] for name in columns] for row in told],
    )
    if options.plot:
        options.plot.write_text(picture(rows))
    finish({"rows": told}, RESULTS / "sparse_quality.json" if options.save else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
